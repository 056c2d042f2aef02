"""What the swarm's agents of both protocols have in common: their map over all connections, and what they count. Pure.

A snapshot may be older than what the agent received on an earlier connection. It takes the place of the agent's map at
the first status behind it, as docs/protocol.md demands: until then the agent keeps its map, and otherwise it would see
live objects deleted, and created again.
"""

import abc
import enum

from loadtest.swarm import frames, histogram, shared_maps, timeline, typha_frames
from protocol import messages


class Phase(enum.IntEnum):
    """What was received last on this connection."""

    DISCONNECTED = 0
    PREFACE = 1
    HELLO = 2
    READY = 3
    SNAPSHOT = 4
    RETURNING = 5
    """Behind a snapshot (in Typha's protocol: in it), and before the status that says where the present is."""
    FOLLOWING = 6
    ENDED = 7
    """The server said goodbye."""


class Group:
    """Counters of some agents of one process, those that behave or those that do not; plain integers: it is hot."""

    __slots__ = (
        "back_after",
        "bytes",
        "deletions",
        "frames",
        "goodbyes",
        "in_sync_after",
        "latency",
        "read_gap_ns",
        "silence_ns",
        "snapshots",
        "updates",
    )

    def __init__(self) -> None:
        self.bytes = 0
        self.frames = 0
        self.updates = 0
        self.deletions = 0
        self.snapshots = 0
        self.goodbyes: dict[str, int] = {}
        self.silence_ns = 0
        """The longest time in which the network brought nothing to one connection, since the last report."""
        self.read_gap_ns = 0
        """The longest time between two reads of one connection, since the last report: it has our own delays in it."""
        self.latency = histogram.Histogram()
        """From the writer's mark to the return of the agent's read, for updates written while it was in sync."""
        self.in_sync_after = histogram.Histogram()
        """From the connect to the first status in-sync."""
        self.back_after = histogram.Histogram()
        """From the loss of a connection that had been in sync to the next status in-sync, all attempts included."""


class Shared:
    """What the agents of one process have in common."""

    __slots__ = ("cache", "places", "table", "timeline")

    def __init__(self) -> None:
        self.cache = frames.FrameCache()
        self.places = typha_frames.Places()
        self.table = shared_maps.StateTable()
        self.timeline = timeline.Timeline()

    @property
    def distinct_frames(self) -> int:
        """Frames, or messages of Typha's protocol, decoded so far."""
        return self.cache.distinct + self.places.distinct


class Agent(abc.ABC):
    """An agent over all its connections; its map outlives them, as that of a real one does."""

    __slots__ = (
        "_connected_ns",
        "_lost_ns",
        "_next_state",
        "_shared",
        "deletions",
        "group",
        "heard_ns",
        "in_sync",
        "incarnation",
        "live_since_ns",
        "name",
        "phase",
        "retry_after_seconds",
        "sequence",
        "state",
        "status",
    )

    def __init__(self, name: str, shared: Shared, group: Group) -> None:
        self.name = name
        self.group = group
        self.state = shared.table.empty
        self.phase = Phase.DISCONNECTED
        self.sequence = 0
        self.incarnation = b""
        self.status: messages.SyncStatus | None = None
        self.in_sync = False
        self.live_since_ns = 0
        """When this connection first was in sync; 0 if it was not yet."""
        self.heard_ns = 0
        """When this connection was last read; at first, when it came to be."""
        self.deletions = 0
        """Objects that this agent saw go, over all connections."""
        self.retry_after_seconds = 0.0
        """What the last goodbye asked for."""
        self._shared = shared
        self._next_state = self.state
        """While RETURNING: what will be the agent's map."""
        self._connected_ns = 0
        self._lost_ns = 0
        """When a connection in sync was lost, until the agent is in sync again; else 0."""

    @abc.abstractmethod
    def connected(self, *, feed: str, compressed: bool, now_ns: int) -> bytes:
        """A new connection is up; returns the bytes to send first."""

    @abc.abstractmethod
    def receive(self, data: bytes, now_ns: int) -> bytes:
        """Takes what was read from the socket; returns what is to be sent, mostly nothing.

        Raises RemoteProtocolError if the server broke the protocol; the connection is of no more use then.
        """

    def disconnected(self, now_ns: int) -> None:
        """The connection is gone; the map stays as it is."""
        if self.live_since_ns:
            self._lost_ns = now_ns
        self.phase = Phase.DISCONNECTED
        self.sequence = 0
        self.status = None
        self.in_sync = False
        self.live_since_ns = 0
        self.heard_ns = 0
        self.retry_after_seconds = 0.0
        self._next_state = self._shared.table.empty

    def _begin(self, now_ns: int) -> None:
        """A new connection is up."""
        self._connected_ns = self.heard_ns = now_ns

    def _hear(self, size_bytes: int, now_ns: int) -> None:
        """Counts what was read."""
        group = self.group
        group.bytes += size_bytes
        if now_ns - self.heard_ns > group.read_gap_ns:
            group.read_gap_ns = now_ns - self.heard_ns
        self.heard_ns = now_ns

    def _arrive(self, now_ns: int) -> None:
        """Swaps the snapshot in."""
        table = self._shared.table
        step = table.replace(self.state, self._next_state)
        if step.gone:
            self._see_deletions(step, now_ns)
        self.state = step.state
        self._next_state = table.empty
        self.phase = Phase.FOLLOWING

    def _see_deletions(self, step: shared_maps.Step, now_ns: int) -> None:
        self.deletions += len(step.gone)
        self.group.deletions += len(step.gone)
        self._shared.table.record(step.gone, now_ns)

    def _note_in_sync(self, now_ns: int) -> None:
        self.in_sync = self.status == messages.SyncStatus.IN_SYNC
        if self.in_sync and not self.live_since_ns:
            self.live_since_ns = now_ns
            self.group.in_sync_after.add((now_ns - self._connected_ns) // 1000)
            if self._lost_ns:
                self.group.back_after.add((now_ns - self._lost_ns) // 1000)
                self._lost_ns = 0
