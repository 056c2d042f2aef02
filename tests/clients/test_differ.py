"""The differ yields only real changes across connections, and refuses data that does not match its digest."""

import dataclasses
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import differ, testing
from protocol import digest, errors, messages, subscriptions

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


# What the next hello says.

HELLO = messages.ClientHello("pods", "test", features=frozenset({"resume", "chunk-digests"}))
INCARNATION = b"an incarnation.."


def with_a_map(*, sequence: int = 5) -> differ.Differ:
    """A client that has been in sync on a connection."""
    one = differ.Differ()
    pairs = [("/a", b"1"), ("/b", b"2")]
    updates = tuple(messages.Update(key, value, "1", 1) for key, value in pairs)
    total = digest.state_digest(pairs)
    for message in (
        messages.ServerHello(version=1, feed="pods", incarnation=INCARNATION),
        messages.SnapshotBegin(sequence, 2, 1),
        messages.SnapshotChunk(0, total, False, updates),
        messages.SnapshotEnd(sequence, 2, total),
        messages.Status(sequence, messages.SyncStatus.IN_SYNC),
    ):
        one.receive(message)
    return one


def position(one: differ.Differ) -> int | None:
    resume = one.resuming(HELLO).resume
    assert resume is None or resume.incarnation == INCARNATION
    return None if resume is None else resume.sequence


def test_a_newcomer_has_nothing_to_say() -> None:
    one = differ.Differ()
    assert one.resuming(HELLO) == HELLO
    one.receive(messages.ServerHello(version=1, feed="pods", incarnation=INCARNATION))
    one.receive(messages.SnapshotBegin(5, 0, 1))
    one.receive(messages.SnapshotEnd(5, 0, 0))
    assert one.resuming(HELLO) == HELLO  # the snapshot is not the map yet


def test_the_position_is_that_of_the_map() -> None:
    one = with_a_map()
    assert position(one) == 5
    one.receive(messages.Updates(5, 7, (messages.Update("/c", b"", "1", 1),)))
    assert position(one) == 7
    one.receive(messages.Status(7, messages.SyncStatus.RESYNC))
    assert position(one) == 7
    one.receive(messages.Status(6, messages.SyncStatus.CATCHING_UP))
    assert position(one) is None
    one.receive(messages.Updates(6, 9, (messages.Update("/c", None, "1", 3),)))
    assert position(one) is None
    one.receive(messages.Status(9, messages.SyncStatus.IN_SYNC))
    assert position(one) == 9


def test_a_snapshot_that_waits_for_its_status_has_no_position_yet() -> None:
    one = with_a_map()
    for message in (
        messages.SnapshotBegin(20, 0, 1),
        messages.SnapshotEnd(20, 0, 0),
        messages.Updates(20, 21, (messages.Update("/d", b"", "1", 1),)),
        messages.Status(21, messages.SyncStatus.CATCHING_UP),
    ):
        one.receive(message)
        assert position(one) == 5
    one.begin_connection()
    assert position(one) == 5
    assert len(one) == 2


@pytest.mark.parametrize(
    ("chunks", "keys", "expected"),
    [(1, 2, 1), (4, 2, 4), (5, 2, 8), (1, 1000, 8), (1, 100_000, 1024), (1 << 15, 2, 4096), (1, 1_000_000, 4096)],
)
def test_digests_are_as_many_as_the_map_needs(chunks: int, keys: int, expected: int) -> None:
    one = differ.Differ()
    one._known = dict.fromkeys((f"/{number}" for number in range(keys)), differ._Known(1, "1"))
    one.chunks = chunks
    digests = one.resuming(HELLO).chunk_digests
    assert digests is not None
    assert len(digests) == expected
    assert sum(digests) == keys


def test_digests_are_those_of_the_chunks() -> None:
    one = with_a_map()
    one.chunks = 4
    pairs = {"/a": b"1", "/b": b"2"}
    expected = tuple(
        digest.state_digest((key, value) for key, value in pairs.items() if zlib.crc32(key.encode()) % 4 == number)
        for number in range(4)
    )
    assert one.resuming(HELLO).chunk_digests == expected


def test_only_features_that_are_offered_are_used() -> None:
    one = with_a_map()
    told = one.resuming(messages.ClientHello("pods", "test", features=frozenset({"resume"})))
    assert (told.resume is not None, told.chunk_digests) == (True, None)
    told = one.resuming(messages.ClientHello("pods", "test", features=frozenset({"chunk-digests"})))
    assert (told.resume, told.chunk_digests is not None) == (None, True)


def test_after_a_contradiction_nothing_is_said_until_there_is_a_whole_map() -> None:
    one = with_a_map()
    one.distrust()
    assert one.resuming(HELLO) == HELLO
    assert with_a_map().resuming(HELLO) != HELLO
    one.begin_connection()
    for message in (messages.SnapshotBegin(8, 0, 1), messages.SnapshotEnd(8, 0, 0)):
        one.receive(message)
        assert one.resuming(HELLO) == HELLO
    one.receive(messages.Status(8, messages.SyncStatus.IN_SYNC))
    assert position(one) == 8


def test_kept_chunks_and_sent_ones_are_the_new_map() -> None:
    one = with_a_map()
    of_a, of_b = (zlib.crc32(key.encode()) % 64 for key in ("/a", "/b"))
    assert of_a != of_b
    begin = messages.SnapshotResume(3, 2, 64, (2**64 - 1 - (1 << of_b)).to_bytes(8, "little"))
    sent = messages.Update("/b", b"3", "9", 1)
    one.begin_connection()
    assert one.receive(begin) is None
    assert one.receive(messages.SnapshotChunk(of_b, digest.state_digest([("/b", b"3")]), False, (sent,))) is None
    end = messages.SnapshotEnd(3, 2, digest.state_digest([("/a", b"1"), ("/b", b"3")]))
    assert one.receive(end) is None
    batch = one.receive(messages.Status(3, messages.SyncStatus.IN_SYNC))
    assert batch is not None
    assert [update.key for update in batch.updates] == ["/b"]
    one.receive(begin)
    with pytest.raises(errors.RemoteProtocolError, match="was to be kept"):
        one.receive(messages.SnapshotChunk(of_a, 0, False, ()))


@pytest.mark.parametrize("is_in_force", [True, False])
def test_the_whole_feed_in_place_of_a_subscription_has_no_position(is_in_force: bool) -> None:
    """The next server may put the subscription in force, and the position of the whole feed means another map."""
    one = with_a_map()
    hello = msgspec.structs.replace(
        HELLO, features=HELLO.features | {"subscriptions"}, subscription=subscriptions.Subscription(prefixes=("/a",))
    )
    one.resuming(hello)
    features = frozenset({"subscriptions", "resume"}) if is_in_force else frozenset({"resume"})
    for message in (
        messages.ServerHello(version=1, feed="pods", incarnation=INCARNATION, features=features),
        messages.SnapshotBegin(9, 0, 1),
        messages.SnapshotEnd(9, 0, 0),
        messages.Status(9, messages.SyncStatus.IN_SYNC),
        messages.Updates(9, 10, (messages.Update("/a", b"", "1", 1),)),
    ):
        one.receive(message)
    told = one.resuming(hello)
    assert (told.resume is not None) == is_in_force
    assert told.chunk_digests is not None
