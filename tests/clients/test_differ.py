"""The differ yields only real changes across connections, and refuses data that does not match its digest."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import differ, testing
from protocol import digest, errors, messages

maps = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([b"", b"1", b"2"]), max_size=6)


def make_feed(content: dict[str, bytes]) -> testing.Feed:
    return testing.Feed(content, status=messages.SyncStatus.IN_SYNC, keys_per_frame=2, chunks=3)


def receive_all(receiver: differ.Differ, *batches: messages.Message) -> list[differ.Batch]:
    return [batch for batch in map(receiver.receive, batches) if batch is not None]


def show(batch: differ.Batch) -> list[str]:
    signs = {messages.UpdateType.NEW: "+", messages.UpdateType.UPDATED: "~", messages.UpdateType.DELETED: "-"}
    return sorted(f"{signs[messages.UpdateType(update.update_type)]}{update.key}" for update in batch.updates)


def take(receiver: differ.Differ, content: dict[str, bytes]) -> differ.Batch:
    [batch] = receive_all(receiver, *make_feed(content).snapshot())
    return batch


@given(st.lists(st.tuples(maps, st.booleans()), min_size=1, max_size=6))
def test_batches_add_up_to_the_servers_map(steps: list[tuple[dict[str, bytes], bool]]) -> None:
    receiver = differ.Differ()
    mine: dict[str, bytes] = {}
    for content, reconnect in steps:
        if reconnect:
            receiver.begin_connection()
        batch = take(receiver, content)
        for update in batch.updates:
            assert mine.get(update.key) != update.value, "not a change"
            assert (update.update_type == messages.UpdateType.NEW) == (update.key not in mine)
            if update.value is None:
                assert update.key not in content, "a live key was deleted"
                del mine[update.key]
            else:
                mine[update.key] = update.value
        assert mine == content
        assert receiver.digest == digest.state_digest(content.items())
        assert len(receiver) == len(content)


@given(maps, st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.sampled_from([b"", b"1"])), max_size=20))
def test_deltas_add_up_to_the_servers_map(content: dict[str, bytes], steps: list[tuple[str, bytes | None]]) -> None:
    receiver = differ.Differ()
    mine = {update.key: update.value for update in take(receiver, content).updates}
    updates = tuple(messages.Update(key, value, str(number), 2) for number, (key, value) in enumerate(steps))
    batch = receiver.receive(messages.Updates(1, 2, updates))
    for update in batch.updates if batch else ():
        assert mine.get(update.key) != update.value
        if update.value is None:
            del mine[update.key]
        else:
            mine[update.key] = update.value
    expected: dict[str, bytes | None] = {**content, **dict(steps)}
    alive = {key: value for key, value in expected.items() if value is not None}
    assert mine == alive
    assert receiver.digest == digest.state_digest(alive.items())


def test_a_second_snapshot_gives_its_difference() -> None:
    receiver = differ.Differ()
    assert show(take(receiver, {"a": b"1", "b": b"1", "c": b"1"})) == ["+a", "+b", "+c"]
    batch = take(receiver, {"b": b"1", "c": b"2", "d": b"1"})
    assert show(batch) == ["+d", "-a", "~c"]
    assert batch.from_snapshot


def test_a_new_revision_alone_is_not_a_change() -> None:
    receiver = differ.Differ()
    take(receiver, {"a": b"1"})
    again = messages.Update("a", b"1", "999", 2)
    assert receiver.receive(messages.Updates(1, 2, (again,))) == differ.Batch((), (again,))
    changed = messages.Update("a", b"2", "1000", 2)
    assert receiver.receive(messages.Updates(2, 3, (again, changed))) == differ.Batch((changed,), ())
    assert receiver.receive(messages.Updates(3, 4, (changed,))) is None


def test_the_deletion_of_an_unknown_key_is_not_a_change() -> None:
    receiver = differ.Differ()
    assert receiver.receive(messages.Updates(1, 2, (messages.Update("a", None, "1", 3),))) is None


@pytest.mark.parametrize("update_type", [0, 1, 2, 3])
def test_a_missing_value_is_a_deletion_for_every_update_type(update_type: int) -> None:
    receiver = differ.Differ()
    take(receiver, {"a": b"1"})
    void = messages.Update("a", None, "2", update_type)
    assert receiver.receive(messages.Updates(1, 2, (void,))) == differ.Batch((void._replace(update_type=3),), ())
    assert receiver.receive(messages.Updates(2, 3, (void,))) is None
    assert receiver.digest == digest.state_digest([])


def test_an_incomplete_snapshot_has_no_effect() -> None:
    receiver = differ.Differ()
    take(receiver, {"a": b"1"})
    before = repr(receiver)
    assert receive_all(receiver, *list(make_feed({"b": b"1", "c": b"1"}).snapshot())[:3]) == []
    receiver.begin_connection()
    assert repr(receiver) == before
    assert show(take(receiver, {"a": b"1", "c": b"1"})) == ["+c"]


def test_a_snapshot_does_not_apply_during_a_catch_up() -> None:
    receiver = differ.Differ()
    take(receiver, {"a": b"1", "b": b"2", "c": b"1"})
    receiver.begin_connection()
    *old, status = make_feed({"a": b"1", "b": b"1"}).snapshot()
    assert isinstance(status, messages.Status)
    assert receive_all(receiver, *old, dataclasses.replace(status, status=messages.SyncStatus.CATCHING_UP)) == []
    later = messages.Updates(
        status.sequence, 90, (messages.Update("b", b"2", "7", 2), messages.Update("c", b"1", "8", 2))
    )
    assert receive_all(receiver, later) == []
    assert receive_all(receiver, messages.Status(90, messages.SyncStatus.IN_SYNC))[0].updates == ()


def test_newest_values_are_ordinary_changes() -> None:
    receiver = differ.Differ()
    take(receiver, {"a": b"1", "b": b"1"})
    updates = [messages.Update(key, value, "9", 2) for key, value in (("a", b"1"), ("b", b"2"), ("c", b"1"))]
    updates += [messages.Update(key, None, "9", 3) for key in ("x", "a")]
    status = messages.Status(0, messages.SyncStatus.CATCHING_UP)
    [batch] = receive_all(receiver, status, messages.Updates(0, 9, tuple(updates)))
    assert show(batch) == ["+c", "-a", "~b"]


def corrupt(
    kind: type[messages.SnapshotBegin | messages.SnapshotChunk | messages.SnapshotEnd], **changes: Any
) -> list[messages.Message]:
    """A snapshot of three keys, with a change in the last message of a kind."""
    found = list(make_feed({"a": b"1", "b": b"1", "c": b"1"}).snapshot())
    index, message = [(index, message) for index, message in enumerate(found) if isinstance(message, kind)][-1]
    found[index] = dataclasses.replace(message, **changes)
    return found


@pytest.mark.parametrize(
    ("snapshot", "problem"),
    [
        (corrupt(messages.SnapshotChunk, digest=1), "chunk 2 does not have its digest"),
        (corrupt(messages.SnapshotChunk, more=True), "ends inside of chunk 2"),
        (corrupt(messages.SnapshotChunk, index=3), "chunk 3 after 1 in a snapshot of 3 chunks"),
        (corrupt(messages.SnapshotChunk, index=0), "chunk 0 after 1"),
        (corrupt(messages.SnapshotEnd, digest=1), "snapshot does not have its digest"),
        (corrupt(messages.SnapshotEnd, keys=2), "speaks of 2"),
        (corrupt(messages.SnapshotBegin, keys=2), "more than its 2 keys"),
        (corrupt(messages.SnapshotBegin, keys=4), "4 keys ends with 3"),
        (
            [
                messages.SnapshotBegin(1, 9, 2),
                messages.SnapshotChunk(0, 0, True, ()),
                messages.SnapshotChunk(1, 0, False, ()),
            ],
            "chunk 1 inside of chunk 0",
        ),
        (
            [
                messages.SnapshotBegin(1, 9, 1),
                messages.SnapshotChunk(0, 0, False, (messages.Update("k", None, "1", 1),)),
            ],
            "deletion of key 'k' in a snapshot",
        ),
        (
            [
                messages.SnapshotBegin(1, 9, 1),
                messages.SnapshotChunk(0, 0, False, (messages.Update("k", b"", "1", 1),) * 2),
            ],
            "second value of key 'k' in a snapshot",
        ),
    ],
)
def test_inconsistent_snapshots_are_refused(snapshot: list[messages.Message], problem: str) -> None:
    receiver = differ.Differ()
    take(receiver, {"a": b"1", "z": b"1"})
    before = receiver.digest
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        receive_all(receiver, *snapshot)
    assert receiver.digest == before
    assert len(receiver) == 2
