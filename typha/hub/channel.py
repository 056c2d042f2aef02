"""A channel (feed x wire format) as the hub sees it: it encodes, appends to the log and keeps a snapshot current."""

from typing import NamedTuple

from cache.feeds import feed
from cache.state import log, snapshot
from protocol import encoding
from typha import clock
from typha.worker import channel

_monotonic = clock.monotonic

SNAPSHOT_LOG_SHARE = 0.25
"""A new snapshot is made when the log behind the last one is this part of it: a newcomer takes at most so much more,
and snapshots cost at most so many times what the updates cost."""
UNREAD_SNAPSHOT_LOG_SHARE = 1.0
"""The same where nobody has taken the last one: a fleet that stays connected is not worth the work. The first
newcomer brings the other share back into force."""
SNAPSHOT_LOG_BYTES_MIN = 256 * 1024
REBUILD_SHARE_MAX = 0.1
"""The largest part of the time that snapshots on newcomers' demand may take."""


class Appended(NamedTuple):
    """What a batch did to the log."""

    segments: list[log.Segment]
    end: int
    frames: int
    """Frames in the last segment."""


class HubChannel:
    """One log and its newest snapshot; made only once its feed has been in sync, so there is something to cut."""

    def __init__(self, number: int, source: feed.Feed, encoder: encoding.Encoder, *, segment_bytes: int) -> None:
        self.number = number
        self.feed = source
        self.encoder = encoder
        self.log = log.LogWriter(segment_bytes=segment_bytes, sequence=source.store.sequence)
        self.snapshot: snapshot.Snapshot | None = None
        self.building = False
        self.idle_since: float | None = None
        """Monotonic time since which no worker has had a client of it."""
        self.snapshots_built = 0
        self._cut_at = 0.0
        self._build_seconds = 0.0
        self._begun_total = 0
        self._has_newcomers = False
        """Somebody has begun the newest snapshot."""

    def __repr__(self) -> str:
        return f"<HubChannel {self.number} {self.feed.name} {self.encoder.name} {self.log!r} {self.snapshot!r}>"

    @property
    def key(self) -> tuple[str, str]:
        """(feed, wire format)."""
        return self.feed.name, self.encoder.name

    @property
    def frames(self) -> int:
        """Frames in the log's last segment."""
        return self.log.segments[-1].frames if self.log.segments else 0

    def append(self, batch: feed.Batch) -> Appended:
        """Encodes a batch and appends it: updates, then the status."""
        frames = self.encoder.updates(batch.previous_sequence, batch.updates) if batch.updates else []
        if batch.status is not None:
            frames.append(self.encoder.status(batch.previous_sequence + len(batch.updates), batch.status))
        return Appended(self.log.append(frames), self.log.end, self.frames)

    def wants_snapshot(self, *, log_budget_bytes: int) -> bool:
        """Whether it is time for a new snapshot."""
        if self.building:
            return False
        if self.snapshot is None:
            return True
        if self.snapshot.log_offset < self.log.status_offset:
            return True  # newcomers must not meet a status of the past on their way to the present
        share = SNAPSHOT_LOG_SHARE if self._has_newcomers else UNREAD_SNAPSHOT_LOG_SHARE
        share_bytes = max(SNAPSHOT_LOG_BYTES_MIN, int(self.snapshot.length * share))
        return self.log.end - self.snapshot.log_offset > min(share_bytes, log_budget_bytes // 4)

    def note_newcomers(self, begun_total: int) -> None:
        """So many clients of all workers have begun a snapshot of it; another number than last time is news."""
        if begun_total != self._begun_total:
            self._begun_total = begun_total
            self._has_newcomers = True

    def is_fresh(self, now: float) -> bool:
        """Whether newcomers must make do with the newest snapshot: it is young, or it costs much to make another."""
        fresh_seconds = max(channel.FRESH_SECONDS, self._build_seconds / REBUILD_SHARE_MAX)
        return self.snapshot is not None and now - self._cut_at < fresh_seconds

    def begin_snapshot(self) -> snapshot.SnapshotBuilder:
        """Cuts the store now; call between two batches, run the builder's steps, then `end_snapshot`."""
        self.building = True
        self._cut_at = _monotonic()
        return snapshot.begin(self.encoder, self.feed.store, log_offset=self.log.end, previous=self.snapshot)

    def end_snapshot(self, built: snapshot.Snapshot) -> None:
        """The new snapshot takes the place of the last one."""
        self.building = False
        self._build_seconds = _monotonic() - self._cut_at
        self.snapshots_built += 1
        self._has_newcomers = False
        if self.snapshot is not None:
            self.snapshot.close()
        self.snapshot = built

    def trim_limit(self, before_offset: int) -> int:
        """How much of the log may go: never what stands behind the newest snapshot."""
        return min(before_offset, self.snapshot.log_offset if self.snapshot else self.log.start)

    def close(self) -> None:
        """Lets go of all files."""
        self.log.close()
        if self.snapshot is not None:
            self.snapshot.close()
