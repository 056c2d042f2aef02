"""What one hub has published, update by update: every map that a client may hold, and when it was the newest."""

import bisect

from cache.feeds import feed, raw
from protocol import digest, messages
from tests.simulation import world as worlds

ABSENT = 0
"""The digest of a key that is not there."""


class Truth:
    """The history of one feed of one hub."""

    def __init__(self, world: worlds.World) -> None:
        self._world = world
        self.map: dict[str, int] = {}
        """Key to digest of key and value."""
        self.digests = [0]
        """State digest by sequence."""
        self._sequences: dict[int, list[int]] = {0: [0]}
        self._keys: dict[str, dict[int, list[int]]] = {}
        self._committed_sequences: list[int] = []
        self._committed_at: list[float] = []
        self._statuses: list[tuple[int, messages.SyncStatus]] = [(0, messages.SyncStatus.WAITING)]

    @property
    def sequence(self) -> int:
        """The newest."""
        return len(self.digests) - 1

    @property
    def digest(self) -> int:
        """Of the newest map."""
        return self.digests[-1]

    @property
    def status(self) -> messages.SyncStatus:
        """The newest."""
        return self._statuses[-1][1]

    def record(self, batch: feed.Batch) -> None:
        """A batch has been taken."""
        if batch.previous_sequence != self.sequence:
            raise worlds.Violation(f"batch behind {batch.previous_sequence}, the store was at {self.sequence}")
        total = self.digest
        for update in batch.updates:
            before = self.map.pop(update.key, ABSENT)
            now = ABSENT if update.value is None else digest.pair_digest(update.key.encode(), update.value)
            if now:
                self.map[update.key] = now
            total = (total + now - before) % digest.MODULUS
            self.digests.append(total)
            self._sequences.setdefault(total, []).append(self.sequence)
            self._keys.setdefault(update.key, {}).setdefault(now, []).append(self.sequence)
        if batch.status is not None:
            self._statuses.append((self.sequence, batch.status))
        if batch.updates:
            self._committed_sequences.append(self.sequence)
            self._committed_at.append(self._world.time)

    def first_cut(self, total: int, not_before: int) -> int | None:
        """The first sequence from one on at which the map had this digest."""
        sequences = self._sequences.get(total, [])
        place = bisect.bisect_left(sequences, not_before)
        return sequences[place] if place < len(sequences) else None

    def key_moved(self, key: str, now: int, not_before: int) -> int | None:
        """The first sequence from one on at which the key got this digest; None if it never did."""
        if now == ABSENT and not_before == 0:
            return 0
        sequences = self._keys.get(key, {}).get(now, [])
        place = bisect.bisect_left(sequences, not_before)
        return sequences[place] if place < len(sequences) else None

    def due_at(self, when: float) -> int:
        """The newest sequence that had been committed at a time."""
        place = bisect.bisect_right(self._committed_at, when)
        return self._committed_sequences[place - 1] if place else 0

    def statuses_at(self, sequence: int) -> set[messages.SyncStatus]:
        """Those that were told of a sequence, or held when it came."""
        told = {status for at, status in self._statuses if at == sequence}
        before = [status for at, status in self._statuses if at < sequence]
        return told | set(before[-1:])


class RecordedFeed(feed.RawFeed):
    """A feed whose batches are recorded."""

    def __init__(self, spec: raw.FeedSpec, *, max_value_bytes: int, truth: Truth) -> None:
        super().__init__(spec, max_value_bytes=max_value_bytes)
        self.truth = truth

    def take(self) -> feed.Batch | None:
        """What has happened since the last call."""
        batch = super().take()
        if batch is not None:
            self.truth.record(batch)
            if self.truth.digest != self.store.digest:
                raise worlds.Violation("the store's digest is not that of its updates")
        return batch
