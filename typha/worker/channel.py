"""A channel (feed x wire format) as a worker sees it: the log, the newest snapshot, and who reads them."""

import bisect
import os
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from cache.state import cursor, log
from protocol import encoding, messages
from typha.worker import client, live_set

FRESH_SECONDS = 1.0
"""How old a snapshot may be for newcomers of a format in key order. They must not be led through the past: Felix keeps
an old order of policies that have changed, or have come and gone, before it is in sync. The original's number."""
UNREAD_SECONDS = 2.0
"""A client that is sent data and leaves a ping unanswered for so long is taken not to read."""
_OLD_TIMES_SECONDS = 1.0
_PUBLISH_TIMES = 1024
"""How many publishes' times are remembered, to say how many seconds a lagging client is behind."""


class Greeting(NamedTuple):
    """A newcomer's first status, where in the log it is due, and the sequence there."""

    offset: int
    sequence: int
    status: messages.SyncStatus
    frame: memoryview


class WorkerChannel:
    """The worker's end of a channel. `live` holds the clients that have sent all they could be sent."""

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
        self.live = live_set.LiveSet()
        self.held: dict[client.Client, None] = {}
        """Clients that wait for a snapshot, in order of arrival."""
        self.away: set[client.Client] = set()
        """Clients that are neither: in a snapshot, behind in the log, catching up."""
        self.flush_index = 0
        """Where an interrupted pass over `live` goes on."""
        self.rescan = False
        """Someone before `flush_index` may not be at the log's end: a client that this pass had not reached has moved
        there, or one was sent no more than its file of the log had."""
        self.status_offset = 0
        """Offset behind the last status in the log."""
        self.snapshots_begun = 0
        """By how many clients since the worker's start."""
        self._statuses: deque[tuple[int, messages.SyncStatus]] = deque()
        """The statuses in the log as far as it is kept, and the last one before: (offset behind it, status)."""
        self._greeting = Greeting(-1, 0, messages.SyncStatus.WAITING, memoryview(b""))
        self._status_frame: tuple[int, messages.SyncStatus, bytes] = (-1, messages.SyncStatus.WAITING, b"")
        self._ping: tuple[int, bytes] = (-1, b"")
        self.trim_offset = 0
        """Offset before which the hub wants the log back."""
        self._publish_ends: deque[int] = deque(maxlen=_PUBLISH_TIMES)
        self._publish_times: deque[float] = deque(maxlen=_PUBLISH_TIMES)
        self._old_ends: deque[int] = deque(maxlen=_PUBLISH_TIMES)
        """One publish a second, for those who are further behind."""
        self._old_times: deque[float] = deque(maxlen=_PUBLISH_TIMES)
        self._old_snapshots: list[cursor.SnapshotFile] = []

    def __repr__(self) -> str:
        return f"<WorkerChannel {self.feed} {self.wire_format} {self.log!r} live={len(self.live)}>"

    def open(self, number: int, *, start: int, start_sequence: int) -> None:
        """The hub has made the channel; its log begins here."""
        self.number = number
        self.log = log.LogReader(start=start, start_sequence=start_sequence)

    def all_clients(self) -> list[client.Client]:
        """Everyone who is subscribed to it."""
        return [*self.live, *self.held, *self.away]

    def publish(self, end: int, frames: int, now: float) -> None:
        """The log has grown."""
        self.log.publish(end, frames)
        self._publish_ends.append(self.log.end)
        self._publish_times.append(now)
        if not self._old_times or now - self._old_times[-1] >= _OLD_TIMES_SECONDS:
            self._old_ends.append(self.log.end)
            self._old_times.append(now)

    def age_of(self, offset: int, now: float) -> float:
        """Seconds since the first byte behind `offset` was published; 0.0 at the end of the log."""
        if offset >= self.log.end or not self._publish_ends:
            return 0.0
        place = bisect.bisect_right(self._publish_ends, offset)
        if place == 0:  # published by the oldest of them, or before
            old_place = bisect.bisect_right(self._old_ends, offset)
            if old_place < len(self._old_times):
                return now - min(self._old_times[old_place], self._publish_times[0])
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

    def note_status(self, offset: int, status: messages.SyncStatus) -> None:
        """The log tells a status; it may be published a moment later."""
        self.status_offset = offset
        self._statuses.append((offset, status))

    def status_told_at(self, offset: int, told_offset: int, told_status: messages.SyncStatus) -> messages.SyncStatus:
        """What a client at `offset` was told last, by the log or, at `told_offset`, apart from it."""
        for status_offset, status in reversed(self._statuses):
            if status_offset <= told_offset:
                break
            if status_offset <= offset:
                return status
        return told_status

    def status_frame(self, sequence: int, status: messages.SyncStatus) -> bytes:
        """The frame that tells it, the same for all who are told it in one go."""
        if self._status_frame[:2] != (sequence, status):
            self._status_frame = (sequence, status, self._encoder.status(sequence, status).data)
        return self._status_frame[2]

    def drop_log(self, before_offset: int) -> None:
        """Nobody needs the log before an offset any more."""
        self.log.drop(before_offset)
        while len(self._statuses) > 1 and self._statuses[1][0] <= self.log.start:
            self._statuses.popleft()

    def greeting(self, snapshot: cursor.SnapshotFile) -> Greeting:
        """Where a client that begins this snapshot now will have caught up with the present, and the status due there.

        There is no status between the snapshot and the log's end, so the snapshot's own still holds.
        """
        offset = max(self.log.end, snapshot.log_offset)
        if self._greeting.offset != offset:
            sequence = snapshot.sequence if offset == snapshot.log_offset else self.log.sequence_at(offset)
            frame = memoryview(self._encoder.status(sequence, snapshot.status).data)
            self._greeting = Greeting(offset, sequence, snapshot.status, frame)
        return self._greeting

    def add_live(self, reader: client.Client) -> None:
        """The client has been sent everything, or is about to be in a pass."""
        self.live.add(reader)
        self.away.discard(reader)

    def remove_live(self, reader: client.Client) -> None:
        """Takes a client out; the last one takes its place."""
        filled = self.live.remove(reader)
        if filled is not None:
            self.rescan = self.rescan or filled < self.flush_index

    def forget(self, reader: client.Client) -> None:
        """The client is gone, wherever it stood."""
        if reader.index >= 0:
            self.remove_live(reader)
        self.held.pop(reader, None)
        self.away.discard(reader)

    def report(self, now: float) -> dict[str, float]:
        """For the hub: clients, the lowest offset of the log that one of them needs, and the worst lag.

        The bytes of a client that is catching up are those of the log since it was in it; those of a client that does
        not read what its host takes, the ones since the last ping that it has not answered.
        """
        live, catching_up = cursor.CursorState.FOLLOWING, cursor.CursorState.CATCHING_UP
        behind = [reader.offset for reader in self.away if reader.state is live]
        lost = [reader for reader in self.away if reader.state is catching_up]
        snapshots = [s.log_offset for s in [*self._old_snapshots, self.snapshot] if s is not None and s.readers]
        slowest = min(behind, default=self.log.end)
        lowest = min([self.log.end, slowest, *snapshots, *self.live.offsets])
        unread = [
            reader
            for readers in (self.live, self.away)
            for reader in readers
            if reader.probed_at and now - reader.probed_at > UNREAD_SECONDS
        ]
        slowest = min([slowest, *(reader.offset for reader in lost), *(reader.probed_offset for reader in unread)])
        lag_seconds = [self.age_of(slowest, now), *(now - reader.behind_since for reader in lost)]
        lag_seconds += [now - reader.probed_at for reader in unread]
        return {
            "clients": len(self.live) + len(self.held) + len(self.away),
            "held": len(self.held),
            "snapshots_begun": self.snapshots_begun,
            "min_offset": lowest,
            "lag_bytes": max(0, self.log.end - slowest),
            "lag_seconds": max(lag_seconds),
            "catching_up": len(lost),
            "min_sequence": min([self._sequence_needed(lowest), *(reader.sequence for reader in lost)]),
        }

    def _sequence_needed(self, lowest_offset: int) -> int:
        """Nobody who reads the log from that offset, or a snapshot, would be caught up from an earlier sequence."""
        snapshots = [s.sequence for s in [*self._old_snapshots, self.snapshot] if s is not None]
        base = self.log.base_sequence_at(min(max(lowest_offset, self.log.start), self.log.end))
        return min([base, *snapshots])

    def close(self) -> None:
        """Lets go of all files."""
        self.log.close()
        for snapshot in [*self._old_snapshots, *([self.snapshot] if self.snapshot else [])]:
            os.close(snapshot.descriptor)
        self._old_snapshots.clear()
        self.snapshot = None
