"""The history that one hub has published: every map that a client may have, and when it was the newest."""

import bisect
from collections.abc import Callable

from cache.feeds import feed, raw
from protocol import digest, messages
from tests.simulation import world as worlds

ABSENT = 0
"""Digest of a missing key."""


def digest_of(update: messages.Update) -> int:
    """Digest of the key and the value that an update gives it."""
    return ABSENT if update.value is None else digest.pair_digest(update.key.encode(), update.value)


class ExpectedState:
    """The history of one feed of one hub."""

    def __init__(self, world: worlds.World) -> None:
        self._world = world
        self.map: dict[str, int] = {}
        """Digest of key and value, by key."""
        self.digests = [0]
        """Digest of the whole map, by sequence number."""
        self.changes: list[tuple[str, bytes | None]] = []
        """Key and value of each update, in order."""
        self._sequences: dict[int, list[int]] = {0: [0]}
        self._keys: dict[str, dict[int, list[int]]] = {}
        self._committed_sequences: list[int] = []
        self._committed_at: list[float] = []
        self.on_update: Callable[[messages.Update], None] = lambda _: None
        """Called for each update that is recorded."""
        self._statuses: list[tuple[int, messages.SyncStatus]] = [(0, messages.SyncStatus.WAITING)]

    @property
    def sequence(self) -> int:
        """The newest sequence number."""
        return len(self.digests) - 1

    @property
    def digest(self) -> int:
        """Digest of the newest map."""
        return self.digests[-1]

    @property
    def status(self) -> messages.SyncStatus:
        """The newest status."""
        return self._statuses[-1][1]

    def record(self, batch: feed.Batch) -> None:
        """Record a batch."""
        if batch.previous_sequence != self.sequence:
            raise worlds.Violation(f"a batch follows {batch.previous_sequence}, but the store was at {self.sequence}")
        total = self.digest
        for update in batch.updates:
            self.on_update(update)
            before = self.map.pop(update.key, ABSENT)
            now = digest_of(update)
            if now:
                self.map[update.key] = now
            total = (total + now - before) % digest.MODULUS
            self.digests.append(total)
            self.changes.append((update.key, update.value))
            self._sequences.setdefault(total, []).append(self.sequence)
            self._keys.setdefault(update.key, {}).setdefault(now, []).append(self.sequence)
        if batch.status is not None:
            self._statuses.append((self.sequence, batch.status))
        if batch.updates:
            self._committed_sequences.append(self.sequence)
            self._committed_at.append(self._world.time)

    def first_cut(self, total: int, not_before: int) -> int | None:
        """The first sequence number, from `not_before` on, at which the map had this digest; None if there is none."""
        sequences = self._sequences.get(total, [])
        place = bisect.bisect_left(sequences, not_before)
        return sequences[place] if place < len(sequences) else None

    def key_moved(self, key: str, now: int, not_before: int) -> int | None:
        """The first sequence number, from `not_before` on, at which the key got this digest; None if there is none."""
        if now == ABSENT and not_before == 0:
            return 0
        sequences = self._keys.get(key, {}).get(now, [])
        place = bisect.bisect_left(sequences, not_before)
        return sequences[place] if place < len(sequences) else None

    def due_at(self, when: float) -> int:
        """The newest sequence number that was committed at a time."""
        place = bisect.bisect_right(self._committed_at, when)
        return self._committed_sequences[place - 1] if place else 0

    def statuses_at(self, sequence: int) -> set[messages.SyncStatus]:
        """The statuses published at a sequence number, and the status that was valid before."""
        told = {status for at, status in self._statuses if at == sequence}
        before = [status for at, status in self._statuses if at < sequence]
        return told | set(before[-1:])


class RecordedFeed(feed.RawFeed):
    """A feed whose batches are recorded."""

    def __init__(self, spec: raw.FeedSpec, *, max_value_bytes: int, expected: ExpectedState) -> None:
        super().__init__(spec, max_value_bytes=max_value_bytes)
        self.expected = expected

    def take(self, limits: feed.BatchLimits = feed.EVERYTHING) -> feed.Batch | None:
        """Return the changes since the last call, and record them."""
        batch = super().take(limits)
        if batch is not None:
            self.expected.record(batch)
            if self.expected.digest != self.store.digest:
                raise worlds.Violation("the store's digest is not that of its updates")
        return batch
