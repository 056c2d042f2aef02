"""A channel (feed x wire format) as a worker sees it: the log, the newest snapshot, and who reads them."""

import bisect
import os
from collections import deque
from collections.abc import Callable

from cache import cursor, log
from protocol import encoding
from typha import client

FRESH_SECONDS = 1.0
"""How old a snapshot may be for newcomers of a format in key order. They must not be led through the past: Felix keeps
an old order of policies that have changed, or have come and gone, before it is in sync. The original's number."""
_PUBLISH_TIMES = 1024
"""How many publishes' times are remembered, to say how many seconds a lagging client is behind."""


class ChannelView:
    """The worker's end of a channel. `following` holds the clients that have sent all they could be sent."""

    def __init__(self, feed: str, encoder: encoding.Encoder, tell: Callable[[list[object]], None]) -> None:
        self._tell = tell
        self.number = -1
        """The hub's number for it; -1 while the hub has not made it yet, and there is nothing to serve."""
        self.feed = feed
        self.wire_format = encoder.name
        self._encoder = encoder
        self.log = log.LogReader()
        self.snapshot: cursor.SnapshotFile | None = None
        self._snapshot_at = 0.0
        self._awaits_newer = False
        """The hub has been asked for a newer snapshot; nobody begins the old one."""
        self.following: list[client.Client] = []
        self.held: dict[client.Client, None] = {}
        """Clients that wait for a snapshot, in order of arrival."""
        self.away: set[client.Client] = set()
        """Clients that are neither: in a snapshot, behind in the log, catching up."""
        self.flush_index = 0
        """Where an interrupted pass over `following` goes on."""
        self.rescan = False
        """A client that this pass has not reached may have moved before `flush_index`."""
        self.status_offset = 0
        """Offset behind the last status in the log."""
        self.snapshots_begun = 0
        """By how many clients since the worker's start."""
        self._greeting: tuple[int, memoryview] = (-1, memoryview(b""))
        self._ping: tuple[int, bytes] = (-1, b"")
        self.trim_offset = 0
        """Offset before which the hub wants the log back."""
        self._publish_ends: deque[int] = deque(maxlen=_PUBLISH_TIMES)
        self._publish_times: deque[float] = deque(maxlen=_PUBLISH_TIMES)
        self._old_snapshots: list[cursor.SnapshotFile] = []

    def __repr__(self) -> str:
        return f"<ChannelView {self.feed} {self.wire_format} {self.log!r} following={len(self.following)}>"

    def open(self, number: int, *, start: int, start_sequence: int) -> None:
        """The hub has made the channel; its log begins here."""
        self.number = number
        self.log = log.LogReader(start=start, start_sequence=start_sequence)

    def all_clients(self) -> list[client.Client]:
        """Everyone who is subscribed to it."""
        return [*self.following, *self.held, *self.away]

    def publish(self, end: int, frames: int, status_offset: int, now: float) -> None:
        """The log has grown."""
        self.log.publish(end, frames)
        self.status_offset = status_offset
        self._publish_ends.append(self.log.end)
        self._publish_times.append(now)

    def age_of(self, offset: int, now: float) -> float:
        """Seconds since the first byte behind `offset` was published; 0.0 at the end of the log."""
        if offset >= self.log.end or not self._publish_ends:
            return 0.0
        place = bisect.bisect_right(self._publish_ends, offset)
        return now - self._publish_times[min(place, len(self._publish_times) - 1)]

    def set_snapshot(self, snapshot: cursor.SnapshotFile, now: float) -> None:
        """A newer snapshot; the one before it is kept while somebody reads it."""
        if self.snapshot is not None:
            self._old_snapshots.append(self.snapshot)
        self.snapshot = snapshot
        self._snapshot_at = now
        self._awaits_newer = False
        self.close_unread_snapshots()

    def renew_snapshot(self, now: float) -> None:
        """Asks for a newer snapshot if newcomers would be told too much of the past behind this one."""
        if (
            self.snapshot is not None
            and not self._awaits_newer
            and self._encoder.in_key_order
            and self.log.end > self.snapshot.log_offset
            and now - self._snapshot_at > FRESH_SECONDS
        ):
            self._awaits_newer = True
            self._tell(["stale", self.number])

    def close_unread_snapshots(self) -> None:
        """Lets go of replaced snapshots without readers."""
        for snapshot in self._old_snapshots:
            if snapshot.readers == 0:
                os.close(snapshot.descriptor)
        self._old_snapshots = [snapshot for snapshot in self._old_snapshots if snapshot.readers]

    @property
    def servable_snapshot(self) -> cursor.SnapshotFile | None:
        """The newest snapshot, if the log behind it is all there, holds no status, and is no long history.

        A status on a newcomer's way to the present would make it take a map of the past for the present.
        """
        snapshot = self.snapshot
        if snapshot is None or self._awaits_newer or snapshot.log_offset < max(self.trim_offset, self.status_offset):
            return None
        return snapshot

    def ping(self, unix_nanoseconds: int) -> bytes:
        """The ping frame of a moment, the same for all who are pinged in it."""
        if self._ping[0] != unix_nanoseconds:
            self._ping = (unix_nanoseconds, self._encoder.make_ping(unix_nanoseconds))
        return self._ping[1]

    def greeting(self, snapshot: cursor.SnapshotFile) -> tuple[int, memoryview]:
        """Where a client that begins this snapshot now will have caught up with the present, and the status due there.

        There is no status between the snapshot and the log's end, so the snapshot's own still holds.
        """
        offset = max(self.log.end, snapshot.log_offset)
        if self._greeting[0] != offset:
            sequence = snapshot.sequence if offset == snapshot.log_offset else self.log.sequence_at(offset)
            self._greeting = (offset, memoryview(self._encoder.status(sequence, snapshot.status).data))
        return self._greeting

    def add_following(self, reader: client.Client) -> None:
        """The client has been sent everything, or is about to be in a pass."""
        reader.index = len(self.following)
        self.following.append(reader)
        self.away.discard(reader)

    def remove_following(self, reader: client.Client) -> None:
        """Takes a client out; the last one takes its place."""
        last = self.following.pop()
        if last is not reader:
            self.following[reader.index] = last
            last.index = reader.index
            self.rescan = self.rescan or reader.index < self.flush_index
        reader.index = -1

    def forget(self, reader: client.Client) -> None:
        """The client is gone, wherever it stood."""
        if reader.index >= 0:
            self.remove_following(reader)
        self.held.pop(reader, None)
        self.away.discard(reader)

    def report(self, now: float) -> dict[str, object]:
        """For the hub: clients, the lowest offset of the log that one of them needs, and the worst lag."""
        behind = [reader.offset for reader in self.away if reader.state is cursor.CursorState.FOLLOWING]
        snapshots = [s.log_offset for s in [*self._old_snapshots, self.snapshot] if s is not None and s.readers]
        slowest = min(behind, default=self.log.end)
        lowest = min([self.log.end, slowest, *snapshots, *(reader.offset for reader in self.following)])
        return {
            "clients": len(self.following) + len(self.held) + len(self.away),
            "held": len(self.held),
            "snapshots_begun": self.snapshots_begun,
            "min_offset": lowest,
            "lag_bytes": max(0, self.log.end - slowest),
            "lag_seconds": self.age_of(slowest, now),
        }

    def close(self) -> None:
        """Lets go of all files."""
        self.log.close()
        for snapshot in [*self._old_snapshots, *([self.snapshot] if self.snapshot else [])]:
            os.close(snapshot.descriptor)
        self._old_snapshots.clear()
        self.snapshot = None
