"""A feed: a bad object affects only itself, and a batch contains exactly the changes of the store."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import objects, resources
from cache.feeds import feed, raw
from protocol import messages
from tests.harness.channel_harness import NODES, PODS, pod_event

Status = messages.SyncStatus
LIMIT = 500
DEEP = b'{"metadata":{"name":"a"},"x":' + b"[" * 12_000 + b"]" * 12_000 + b"}"


def key(name: str) -> str:
    return f"/core/v1/pods/default/{name}"


@pytest.fixture
def pods() -> feed.RawFeed:
    return make_feed()


def make_feed() -> feed.RawFeed:
    return feed.RawFeed(raw.FeedSpec("pods", (raw.ResourceSpec(PODS), raw.ResourceSpec(NODES))), max_value_bytes=LIMIT)


def taken(source: feed.RawFeed) -> list[tuple[str, int, str]]:
    batch = source.take()
    return [] if batch is None else [(u.key, u.update_type, u.revision) for u in batch.updates]


def test_objects_become_updates(pods: feed.RawFeed) -> None:
    assert pods.take() is None
    pods.apply(pod_event("a", version=1, content=1))
    pods.apply(pod_event("b", version=2, content=1))
    pods.apply(pod_event("a", version=3, content=2))
    pods.delete(pod_event("b", version=4))
    pods.delete(pod_event("never seen", version=5))
    assert taken(pods) == [(key("a"), 1, "1"), (key("b"), 1, "2"), (key("a"), 2, "3"), (key("b"), 3, "4")]
    assert pods.take() is None
    assert [entry.key for entry in pods.store] == [key("a")]
    assert pods.types == [PODS, NODES]


def test_a_change_of_other_fields_causes_no_update(pods: feed.RawFeed) -> None:
    pods.apply(pod_event("a", version=1, content=1))
    pods.take()
    pods.apply(pod_event("a", version=2, content=1))
    assert pods.take() is None
    entry = pods.store.get(key("a"))
    assert entry is not None
    assert entry.revision == "1"


def test_each_type_has_its_own_fields() -> None:
    specs = (raw.ResourceSpec(PODS, (("spec", "a"),)), raw.ResourceSpec(NODES))
    source = feed.RawFeed(raw.FeedSpec("pods", specs), max_value_bytes=LIMIT)
    source.apply(pod_event("x", version=1, content={"a": 1, "b": 2}))
    source.apply(pod_event("x", version=1, content={"a": 1, "b": 2}, type=NODES))
    source.take()
    values = {entry.key: entry.value for entry in source.store}
    assert values[key("x")].endswith(b'"spec":{"a":1}}')
    assert values["/core/v1/nodes/default/x"].endswith(b'"spec":{"a":1,"b":2}}')


def test_the_store_changes_only_in_take(pods: feed.RawFeed) -> None:
    """A snapshot is cut between two batches of the feed, possibly within a batch of a watcher."""
    pods.apply(pod_event("a", version=1, content=1))
    pods.take()
    pods.apply(pod_event("a", version=2, content=2))
    pods.apply(pod_event("b", version=3, content=1))
    pods.delete(pod_event("a", version=4))
    for type in pods.types:
        pods.set_status(type, Status.IN_SYNC)
    cut = pods.store.cut()
    assert (cut.sequence, cut.keys, cut.status, pods.synced_once) == (1, 1, Status.WAITING, False)
    batch = pods.take()
    assert batch is not None
    assert (batch.previous_sequence, len(batch.updates), batch.status) == (1, 3, Status.IN_SYNC)
    cut = pods.store.cut()
    assert (cut.sequence, cut.keys, cut.status, pods.synced_once) == (4, 1, Status.IN_SYNC, True)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (pod_event("bad", version=9, raw=b"{"), "invalid-object"),
        (pod_event("bad", version=9, raw=b""), "invalid-object"),
        (pod_event("bad", version=9, raw=DEEP), "invalid-object"),
        (pod_event("bad", version=9, content="x" * LIMIT), "value-too-large"),
        (pod_event("b" * 5000, version=9, raw=b'{"metadata":{}}'), "key-too-long"),
    ],
)
def test_a_rejected_object_affects_no_other(pods: feed.RawFeed, bad: objects.ObjectEvent, reason: str) -> None:
    assert pods.apply(pod_event("good", version=1, content=1)) is None
    rejection = pods.apply(bad)
    assert pods.apply(pod_event("other", version=1, content=1)) is None
    assert rejection is not None
    assert (rejection.feed, rejection.key, rejection.reason) == ("pods", key(bad.name), reason)
    assert rejection.detail
    assert pods.rejected == 1
    assert [name for name, _, _ in taken(pods)] == [key("good"), key("other")]


def test_a_value_that_becomes_too_large_is_deleted_until_it_shrinks(pods: feed.RawFeed) -> None:
    assert pods.apply(pod_event("a", version=1, content=1)) is None
    rejection = pods.apply(pod_event("a", version=2, content="x" * LIMIT))
    assert rejection is not None
    assert f"limit {LIMIT}" in rejection.detail
    assert pods.apply(pod_event("a", version=3, content="y" * LIMIT)) is not None
    assert pods.apply(pod_event("a", version=4, content=1)) is None
    assert taken(pods) == [(key("a"), 1, "1"), (key("a"), 3, "2"), (key("a"), 1, "4")]
    assert pods.rejected == 2


def test_a_value_of_exactly_the_limit_is_sent(pods: feed.RawFeed) -> None:
    pods.apply(pod_event("a", version=1, content=""))
    pods.take()
    entry = pods.store.get(key("a"))
    assert entry is not None
    room = LIMIT - len(entry.value)
    assert pods.apply(pod_event("a", version=2, content="x" * room)) is None
    assert pods.apply(pod_event("a", version=3, content="x" * (room + 1))) is not None


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.product([Status.WAITING, Status.RESYNC, Status.IN_SYNC], repeat=2))
)
def test_the_status_of_two_types(one: Status, other: Status) -> None:
    expected = one if one is other else Status.RESYNC
    assert feed.combined_status({PODS: one, NODES: other}) is expected


def test_a_status_comes_after_its_data_and_once(pods: feed.RawFeed) -> None:
    pods.set_status(PODS, Status.RESYNC)
    pods.set_status(NODES, Status.IN_SYNC)
    pods.apply(pod_event("a", version=1, content=1))
    batch = pods.take()
    assert batch is not None
    assert (len(batch.updates), batch.status) == (1, Status.RESYNC)
    assert not pods.synced_once
    pods.set_status(PODS, Status.IN_SYNC)
    pods.apply(pod_event("b", version=2, content=1))
    batch = pods.take()
    assert batch is not None
    assert (len(batch.updates), batch.status, pods.synced_once) == (1, Status.IN_SYNC, True)
    pods.set_status(PODS, Status.RESYNC)
    pods.set_status(PODS, Status.IN_SYNC)
    assert pods.take() is None
    pods.set_status(PODS, Status.RESYNC)
    batch = pods.take()
    assert batch is not None
    assert (batch.updates, batch.status, pods.synced_once) == ([], Status.RESYNC, True)


steps = st.one_of(
    st.tuples(st.sampled_from("abc"), st.integers(0, 2) | st.none() | st.just("x" * LIMIT)),
    st.tuples(st.sampled_from([PODS, NODES]), st.sampled_from(list(Status)[:3])),
    st.just("take"),
)


@given(st.lists(steps, max_size=40))
def test_batches_are_consecutive_and_rebuild_the_store(history: list[object]) -> None:
    source = make_feed()
    rebuilt: dict[str, bytes] = {}
    status, sequence = Status.WAITING, 0
    for version, step in enumerate([*history, "take"]):
        match step:
            case (str(name), None):
                source.delete(pod_event(name, version=version))
            case (str(name), content):
                source.apply(pod_event(name, version=version, content=content))
            case (resources.ResourceType() as type, Status() as new):
                source.set_status(type, new)
            case _:
                batch = source.take()
                if batch is None:
                    continue
                assert batch.previous_sequence == sequence
                sequence += len(batch.updates)
                for update in batch.updates:
                    if update.value is None:
                        del rebuilt[update.key]
                    else:
                        rebuilt[update.key] = update.value
                assert batch.status is not status
                status = status if batch.status is None else batch.status
        assert source.store.sequence == sequence
        assert {entry.key: entry.value for entry in source.store} == rebuilt
        assert source.store.status is status


def test_a_batch_can_be_taken_in_parts_with_the_status_at_the_end(pods: feed.RawFeed) -> None:
    for number in range(5):
        pods.apply(pod_event(f"p{number}", version=number, content=number))
    for type in pods.types:
        pods.set_status(type, Status.IN_SYNC)
    limits = feed.BatchLimits(changes=2)
    parts = []
    while (batch := pods.take(limits)) is not None:
        parts.append((batch.previous_sequence, len(batch.updates), batch.status))
        assert pods.is_unfinished is (batch.status is None)
        assert pods.synced_once is (batch.status is not None)
        assert pods.store.cut().status is (batch.status or Status.WAITING)
    assert parts == [(0, 2, None), (2, 2, None), (4, 1, Status.IN_SYNC)]


def test_a_part_ends_when_its_values_are_large(pods: feed.RawFeed) -> None:
    for number in range(6):
        pods.apply(pod_event(f"p{number}", version=number, content="x" * 100))
    limits = feed.BatchLimits(value_bytes=400)
    sizes = []
    while (batch := pods.take(limits)) is not None:
        sizes.append(sum(len(update.value or b"") for update in batch.updates))
    assert len(sizes) > 1
    assert all(400 <= size < 400 + LIMIT for size in sizes[:-1])


def test_changes_that_change_nothing_count_for_the_size_of_a_part(pods: feed.RawFeed) -> None:
    for number in range(10):
        pods.delete(pod_event(f"p{number}", version=number))
    assert pods.take(feed.BatchLimits(changes=4)) is None
    assert pods.is_unfinished
    assert (pods.take(), pods.skipped, pods.is_unfinished) == (None, 10, False)


def test_a_value_that_is_not_utf_8_is_rejected(pods: feed.RawFeed) -> None:
    event = pod_event("a", version=1, content="text")
    pods.apply(event)
    assert event.raw is not None
    broken = pods.apply(event._replace(raw=event.raw.replace(b"text", b"\xff")))
    assert broken is not None
    assert broken.reason == "invalid-object"
    assert pods.apply(pod_event("b", version=1, content="\u00e9")) is None
    pods.take()
    assert [entry.key for entry in pods.store] == [key("b")]
