"""The common part of the swarm's agents of both protocols: their map over all connections, and their counters. Pure.

A snapshot may be older than what the agent received on an earlier connection. As docs/protocol.md demands, it replaces
the agent's map at the first status after it. Until then the agent keeps its map; otherwise it would see live objects
deleted and created again.
"""

import abc
import enum
from typing import Final

from loadtest.swarm import control, frames, histogram, shared_maps, timeline, typha_frames
from protocol import messages

_bucket_of: Final = histogram.bucket_of


class Phase(enum.IntEnum):
    """What the agent has received last on this connection."""

    DISCONNECTED = 0
    PREFACE = 1
    HELLO = 2
    READY = 3
    SNAPSHOT = 4
    RETURNING = 5
    """After a snapshot (in Typha's protocol: in it), before the status that ends the catch-up."""
    FOLLOWING = 6
    ENDED = 7
    """The server has said goodbye."""


class Shared:
    """What all agents of a process share."""

    __slots__ = ("cache", "positions", "table", "timeline")

    def __init__(self) -> None:
        self.cache = frames.FrameCache()
        self.positions = typha_frames.Positions()
        self.table = shared_maps.MapTable()
        self.timeline = timeline.Timeline()

    @property
    def distinct_frames(self) -> int:
        """Frames, or messages of Typha's protocol, decoded so far."""
        return self.cache.distinct + self.positions.distinct


class Agent(abc.ABC):
    """An agent over all its connections. Its map outlives them, as that of a real agent does."""

    __slots__ = (
        "_answer",
        "_connected_ns",
        "_lost_ns",
        "_next_map",
        "_shared",
        "connected_ns",
        "deletions",
        "group",
        "heard_ns",
        "in_sync",
        "incarnation",
        "live_since_ns",
        "map",
        "name",
        "phase",
        "retry_after_seconds",
        "sequence",
        "servers",
        "status",
    )

    def __init__(self, name: str, shared: Shared, group: control.Group) -> None:
        self.name = name
        self.group = group
        self.map = shared.table.empty
        self.phase = Phase.DISCONNECTED
        self.sequence = 0
        self.incarnation = b""
        self.status: messages.SyncStatus | None = None
        self.in_sync = False
        self.live_since_ns = 0
        """When this connection was first in sync; 0 before that."""
        self.heard_ns = 0
        """When this connection was last read; before the first read, when it was opened."""
        self.deletions = 0
        """Objects that this agent saw deleted, over all connections."""
        self.retry_after_seconds = 0.0
        """Delay that the last goodbye asked for, before the next connection to the same address."""
        self.servers: tuple[str, ...] = ()
        """Others that the last goodbye named."""
        self.connected_ns = 0
        """When this connection had the server's hello; 0 before that."""
        self._shared = shared
        self._answer = b""
        self._next_map = self.map
        """While RETURNING: the map that will replace the agent's map."""
        self._connected_ns = 0
        self._lost_ns = 0
        """When a connection in sync was lost; 0 once the agent is in sync again."""

    @abc.abstractmethod
    def connected(self, *, feed: str, compressed: bool, now_ns: int) -> bytes:
        """A new connection is up; returns the bytes to send first."""

    @abc.abstractmethod
    def receive(self, data: bytes, now_ns: int) -> bytes:
        """Take what was read from the socket; returns the bytes to send, mostly none.

        Raises RemoteProtocolError if the server broke the protocol; the connection is unusable then.
        """

    def disconnected(self, now_ns: int) -> None:
        """The connection has ended; the map stays."""
        if self.live_since_ns:
            self._lost_ns = now_ns
        self.phase = Phase.DISCONNECTED
        self.sequence = 0
        self.status = None
        self.in_sync = False
        self.live_since_ns = 0
        self.heard_ns = 0
        self.connected_ns = 0
        self.retry_after_seconds = 0.0
        self.servers = ()
        self._answer = b""
        self._next_map = self._shared.table.empty

    def _begin(self, now_ns: int) -> None:
        """A new connection is up."""
        self._connected_ns = self.heard_ns = now_ns

    def _hear(self, size_bytes: int, now_ns: int) -> None:
        """Count a read."""
        group = self.group
        group.bytes += size_bytes
        if now_ns - self.heard_ns > group.read_gap_ns:
            group.read_gap_ns = now_ns - self.heard_ns
        self.heard_ns = now_ns

    def _take_answer(self) -> bytes:
        answer, self._answer = self._answer, b""
        return answer

    def _update(self, content: frames.Content, sequence: int, now_ns: int) -> None:
        """Apply an update that every agent in the same state receives; hot."""
        step = self.map.next.get(content)
        if step is None:
            step = self._shared.table.update(self.map, content)
            self._shared.timeline.reached(self.incarnation, sequence, now_ns)
        self.map = step.map
        group = self.group
        group.updates += len(content.changes)
        if step.gone:
            self._see_deletions(step, now_ns)
        live_since = self.live_since_ns
        if live_since:
            counts = group.latency.counts
            for written_at in content.written_at:
                if written_at >= live_since:
                    counts[_bucket_of((now_ns - written_at) // 1000)] += 1

    def _swap_in_snapshot(self, now_ns: int) -> None:
        """Replace the map by the snapshot that was received."""
        table = self._shared.table
        step = table.replace(self.map, self._next_map)
        if step.gone:
            self._see_deletions(step, now_ns)
        self.map = step.map
        self._next_map = table.empty
        self.phase = Phase.FOLLOWING

    def _see_deletions(self, step: shared_maps.MapStep, now_ns: int) -> None:
        self.deletions += len(step.gone)
        self.group.deletions += len(step.gone)
        self._shared.table.record(step, now_ns)

    def _note_in_sync(self, now_ns: int) -> None:
        self.in_sync = self.status == messages.SyncStatus.IN_SYNC
        if self.in_sync and not self.live_since_ns:
            self.live_since_ns = now_ns
            self.group.in_sync_after.add((now_ns - self._connected_ns) // 1000)
            if self._lost_ns:
                self.group.back_after.add((now_ns - self._lost_ns) // 1000)
                self._lost_ns = 0
