"""The store compared with a plain dict: sequences, digests, chunks, and cuts that never change."""

import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache.state import store
from protocol import digest, messages

keys = st.sampled_from([f"/core/v1/pods/default/web-{number}" for number in range(12)])
values = st.sampled_from([b"", b"a", b"b", b"c" * 50])
changes = st.lists(st.tuples(keys, st.none() | values), max_size=40)

SMALL = store.StoreLimits(chunk_target_keys=2, chunk_target_bytes=200, max_chunks=8, tombstones_min=3)
CHUNK_TARGET_BYTES = store.DEFAULT_LIMITS.chunk_target_bytes


class StoreMachine(RuleBasedStateMachine):
    """Puts and deletes in any order. The chunks are so small that they split often."""

    def __init__(self) -> None:
        super().__init__()
        self.store = store.Store(SMALL)
        self.model: dict[str, tuple[bytes, str, str, int]] = {}
        self.order: list[str] = []
        self.sequence = 0
        self.history: list[tuple[int, str, bytes | None]] = []
        """Every change so far."""
        self.known: dict[int, store.ChunkCut] = {}
        self.cut_sequence = -1
        self.frozen: list[tuple[store.Cut, dict[str, bytes]]] = []

    @rule(key=keys, value=values, revision=st.sampled_from("12"), v3=st.sampled_from(["", "v"]), ttl=st.integers(0, 1))
    def put(self, key: str, value: bytes, revision: str, v3: str, ttl: int) -> None:
        old = self.model.get(key)
        update = self.store.put(key, value, revision, v3_resource_version=v3, ttl=ttl)
        if old is not None and (old[0], *old[2:]) == (value, v3, ttl):
            assert update is None
            return
        kind = messages.UpdateType.NEW if old is None else messages.UpdateType.UPDATED
        assert update == messages.Update(key, value, revision, kind, v3, ttl)
        self.model[key] = (value, revision, v3, ttl)
        self._changed(key, value)
        self.order.append(key)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        old = self.model.pop(key, None)
        update = self.store.delete(key, "9")
        if old is None:
            assert update is None
            return
        assert update == messages.Update(key, None, "9", messages.UpdateType.DELETED, old[2])
        self._changed(key, None)

    def _changed(self, key: str, value: bytes | None) -> None:
        self.sequence += 1
        self.history.append((self.sequence, key, value))
        self.order = [other for other in self.order if other != key]

    @rule()
    def cut(self) -> None:
        """The changes since the last cut, together with the last cut, are everything."""
        cut = self.store.cut(since_sequence=self.cut_sequence)
        whole = [self.known[chunk.number] if chunk.entries is None else chunk for chunk in cut.chunks]
        assert whole == list(self.store.cut().chunks)
        self.known = {chunk.number: chunk for chunk in whole}
        self.cut_sequence = cut.sequence
        self.frozen.append((self.store.cut(), self._values()))

    @rule()
    def set_status(self) -> None:
        self.store.status = messages.SyncStatus.IN_SYNC
        assert self.store.cut().status is messages.SyncStatus.IN_SYNC

    def _values(self) -> dict[str, bytes]:
        return {key: value for key, (value, *_) in self.model.items()}

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.store.sequence == self.sequence
        assert len(self.store) == len(self.model)
        assert [entry.key for entry in self.store] == self.order
        sequences = [entry.sequence for entry in self.store]
        assert sequences == sorted(set(sequences))
        for entry in self.store:
            assert self.model[entry.key] == (entry.value, entry.revision, entry.v3_resource_version, entry.ttl)
            assert self.store.get(entry.key) is entry
            assert entry.key in self.store
        assert self.store.value_bytes == sum(len(key) + len(value) for key, value in self._values().items())

    @invariant()
    def digests_say_what_is_there(self) -> None:
        assert self.store.digest == digest.state_digest(self._values().items())
        cut = self.store.cut()
        assert (cut.sequence, cut.keys, cut.digest) == (self.sequence, len(self.model), self.store.digest)
        assert sum(chunk.digest for chunk in cut.chunks) % digest.MODULUS == self.store.digest
        for chunk in cut.chunks:
            assert chunk.entries is not None
            assert digest.state_digest((entry.key, entry.value) for entry in chunk.entries) == chunk.digest
            assert {store.chunk_hash(entry.key) % len(cut.chunks) for entry in chunk.entries} <= {chunk.number}

    @invariant()
    def the_number_of_chunks_is_a_power_of_two(self) -> None:
        count = self.store.chunk_count
        assert count == len(self.store.cut().chunks)
        assert count & (count - 1) == 0
        assert count <= SMALL.max_chunks

    @rule(share=st.floats(0, 1))
    def forget_deletions(self, share: float) -> None:
        floor = self.store.tombstone_floor
        self.store.forget_deletions(int(self.sequence * share))
        assert self.store.tombstone_floor in range(floor, max(floor, int(self.sequence * share)) + 1)

    @invariant()
    def the_difference_since_any_sequence_is_the_last_change_of_each_key(self) -> None:
        for since in range(self.sequence + 1):
            if since < self.store.tombstone_floor:
                with pytest.raises(store.Forgotten, match="forgotten"):
                    self.store.changes_since(since)
                continue
            last = {key: (sequence, value) for sequence, key, value in self.history if sequence > since}
            difference = self.store.changes_since(since)
            assert (difference.since_sequence, difference.sequence) == (since, self.sequence)
            changes = list(difference.changes())
            assert [sequence for sequence, _ in changes] == sorted(sequence for sequence, _ in last.values())
            assert {update.key: (sequence, update.value) for sequence, update in changes} == last
            for _, update in changes:
                is_live = update.value is not None
                assert update.update_type == (messages.UpdateType.UPDATED if is_live else messages.UpdateType.DELETED)

    @invariant()
    def tombstones_are_limited(self) -> None:
        assert self.store.tombstone_count <= max(SMALL.tombstones_min, 2 * len(self.model))

    @invariant()
    def cuts_stay_what_they_were(self) -> None:
        for cut, values in self.frozen:
            assert {entry.key: entry.value for chunk in cut.chunks for entry in chunk.entries or ()} == values


class SlowSplitMachine(StoreMachine):
    """The same, while splits take many steps, with changes and cuts between them."""

    def __init__(self) -> None:
        super().__init__()
        self.store = store.Store(dataclasses.replace(SMALL, split_at_once_keys=0))

    @rule(keys=st.integers(1, 4))
    def advance_split(self, keys: int) -> None:
        self.store.advance_split(keys)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStoreWithSlowSplits = SlowSplitMachine.TestCase
TestStoreWithSlowSplits.settings = TestStore.settings


def filled(history: list[tuple[str, bytes | None]], limits: store.StoreLimits | None = None) -> store.Store:
    made = store.Store(limits)
    for key, value in history:
        if value is None:
            made.delete(key, "1")
        else:
            made.put(key, value, "1")
    return made


def chunk_digests(made: store.Store, *, count: int) -> list[int]:
    """Return the digests for a smaller number of chunks. A chunk's number is the lower bits of a hash."""
    folded = [0] * count
    for chunk in made.cut().chunks:
        folded[chunk.number % count] += chunk.digest
    return [total % digest.MODULUS for total in folded]


@given(changes, changes)
def test_equal_contents_give_equal_chunks_whatever_the_history(
    first: list[tuple[str, bytes | None]], second: list[tuple[str, bytes | None]]
) -> None:
    limits = store.StoreLimits(chunk_target_keys=2)
    one = filled(first, limits)
    values = {entry.key: entry.value for entry in one}
    emptied = [(entry.key, None) for entry in filled(second, limits)]
    other = filled([*second, *emptied, *reversed(values.items())], limits)
    count = min(one.chunk_count, other.chunk_count)
    assert chunk_digests(one, count=count) == chunk_digests(other, count=count)
    assert one.digest == other.digest


def test_finding_recent_changes_does_not_scan_the_rest() -> None:
    made = filled([(f"/{number}", b"") for number in range(50_000)])
    for number in range(10):
        made.delete(f"/{number}", "2")
    looks = 1000
    begun = time.process_time()
    for _ in range(looks):
        made.changes_since(made.sequence - 5)
    assert (time.process_time() - begun) / looks < 0.0005


def test_the_oldest_sixteenth_of_deletions_is_forgotten_at_once() -> None:
    made = filled([(f"/{number}", b"") for number in range(400)], store.StoreLimits(tombstones_min=160))
    for number in range(240):
        made.delete(f"/{number}", "2")
    assert (made.tombstone_count, made.tombstone_floor) == (240, 0)  # fewer than two for each live key
    for number in range(240, 400):
        made.delete(f"/{number}", "2")
    assert made.tombstone_count in range(150, 161)
    assert made.tombstone_floor == 800 - made.tombstone_count
    assert len(made.changes_since(made.tombstone_floor).tombstones) == made.tombstone_count


def test_the_limit_of_deletions_holds_while_live_keys_become_fewer() -> None:
    made = filled([(key, b"") for key in "abcdef"], store.StoreLimits(tombstones_min=3))
    for key in "abcde":
        made.delete(key, "2")
    assert made.tombstone_count == 3
    assert [tombstone.key for tombstone in made.changes_since(made.tombstone_floor).tombstones] == ["e", "d", "c"]


def test_unneeded_deletions_are_forgotten_when_that_frees_enough() -> None:
    made = filled([*((f"/{number}", b"") for number in range(100)), *((f"/{number}", None) for number in range(100))])
    made.forget_deletions(103)
    assert (made.tombstone_count, made.tombstone_floor) == (100, 0)
    made.forget_deletions(150)
    assert (made.tombstone_count, made.tombstone_floor) == (50, 150)
    made.put("/60", b"back", "3")
    assert made.tombstone_count == 49


def test_growing_values_split_chunks() -> None:
    made = filled([(f"/{number}", b"") for number in range(8)])
    assert made.chunk_count == 1
    for number in range(8):
        made.put(f"/{number}", b"x" * CHUNK_TARGET_BYTES, "2")
    assert made.chunk_count > 4


def test_a_chunk_that_is_empty_after_a_split_counts_as_changed() -> None:
    """Its number stood for other keys before: a snapshot that copied the old chunk would have them twice."""
    key = next(f"/{number}" for number in range(100) if store.chunk_hash(f"/{number}") & 1)
    made = filled([(key, b"small")])
    before = made.cut()
    made.put(key, b"x" * (CHUNK_TARGET_BYTES + 1), "2")
    cut = made.cut(since_sequence=before.sequence)
    assert [len(chunk.entries or "") for chunk in cut.chunks] == [0, 1]
    assert all(chunk.entries is not None for chunk in cut.chunks)


def test_a_split_of_many_keys_moves_them_by_and_by() -> None:
    limits = store.StoreLimits(chunk_target_keys=100, split_at_once_keys=50)
    made = filled([(f"/{number}", b"x") for number in range(101)], limits)
    assert (made.chunk_count, made.is_splitting) == (1, True)
    steps = 0
    while made.is_splitting:
        made.advance_split(10)
        steps += 1
    assert steps == 11
    assert made.chunk_count == 1  # the next change has a sequence number that no cut has seen
    cut = made.cut()
    made.put("/0", b"y", "2")
    assert made.chunk_count == 2
    assert all(chunk.entries is not None for chunk in made.cut(since_sequence=cut.sequence).chunks)


def test_keys_that_change_while_chunks_split_are_where_they_belong() -> None:
    names = [f"/{number}" for number in range(101)]
    made = filled([(name, b"x") for name in names], store.StoreLimits(chunk_target_keys=100, split_at_once_keys=50))
    made.advance_split(10)
    for number, name in enumerate(names):
        if number % 3 == 0:
            made.put(name, b"y", "2")
        elif number % 3 == 1:
            made.delete(name, "2")
        if number % 4 == 0:
            made.advance_split(1)
    made.advance_split(len(names))
    made.put("/0", b"z", "3")
    assert made.chunk_count == 2
    for chunk in made.cut().chunks:
        assert chunk.entries is not None
        assert all(made.get(entry.key) is entry for entry in chunk.entries)
        assert chunk.digest == digest.state_digest((entry.key, entry.value) for entry in chunk.entries)
    assert sum(len(chunk.entries or ()) for chunk in made.cut().chunks) == len(made)


def test_unneeded_deletions_are_forgotten_in_steps() -> None:
    count = store._TOMBSTONES_FORGOTTEN_MAX * 2 + 1000
    names = [f"/{number}" for number in range(count)]
    made = filled([*((name, b"") for name in names), *((name, None) for name in names)])
    counts = []
    for _ in range(4):
        made.forget_deletions(made.sequence)
        counts.append(made.tombstone_count)
    assert counts == [count - store._TOMBSTONES_FORGOTTEN_MAX, 1000, 0, 0]


def test_the_hash_of_a_key() -> None:
    assert store.chunk_hash("/core/v1/nodes//n1") == 0x90A1B589
