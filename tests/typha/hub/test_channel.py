"""A channel of the hub: what it appends, and when it wants a snapshot."""

from collections.abc import Iterator

import pytest

from cache.feeds import feed
from protocol import messages
from protocol.native import encoder
from tests.harness import support
from typha.hub.channel import SNAPSHOT_LOG_BYTES_MIN, SNAPSHOT_LOG_SHARE, Appended, HubChannel

BUDGET = 1 << 24


@pytest.fixture
def source() -> feed.RawFeed:
    """A feed in sync."""
    one = support.raw_feed()
    one.set_status(support.PODS, messages.SyncStatus.IN_SYNC)
    one.take()
    return one


@pytest.fixture
def channel(source: feed.RawFeed) -> Iterator[HubChannel]:
    """Its channel."""
    before = support.open_descriptors()
    one = HubChannel(7, source, encoder.NativeEncoder(), segment_bytes=1 << 16)
    yield one
    one.close()
    assert support.open_descriptors() == before


def append(channel: HubChannel, *contents: tuple[str, object]) -> Appended:
    """A batch of objects."""
    for name, content in contents:
        channel.feed.apply(support.pod(name, content))
    batch = channel.feed.take()
    assert batch is not None
    return channel.append(batch)


def snapshot(channel: HubChannel) -> None:
    """A new snapshot, made in one go."""
    builder = channel.begin_snapshot()
    for _ in builder.steps():
        assert channel.building
    channel.end_snapshot(builder.snapshot)


def test_a_batch_is_appended_with_its_status(channel: HubChannel) -> None:
    assert channel.key == (support.FEED, "native")
    assert channel.frames == 0
    first = append(channel, ("a", 1), ("b", 2))
    assert (len(first.segments), first.end, first.frames) == (1, channel.log.end, 1)
    channel.feed.set_status(support.PODS, messages.SyncStatus.RESYNC)
    second = append(channel, ("c", 3))
    assert (second.segments, second.frames) == ([], 3)
    assert channel.log.sequence == channel.feed.store.sequence


def test_large_batches_begin_segments(channel: HubChannel) -> None:
    appended = append(channel, *((f"p{number}", "x" * 30_000) for number in range(20)))
    assert len(appended.segments) == len(channel.log.segments) >= 1
    append(channel, *((f"p{number}", "y" * 30_000) for number in range(20)))
    assert len(channel.log.segments) >= 2


def test_a_snapshot_is_wanted_first_then_by_the_log_behind_it(channel: HubChannel) -> None:
    assert channel.wants_snapshot(log_budget_bytes=BUDGET)
    builder = channel.begin_snapshot()
    assert not channel.wants_snapshot(log_budget_bytes=BUDGET)
    for _ in builder.steps():
        pass
    channel.end_snapshot(builder.snapshot)
    assert not channel.wants_snapshot(log_budget_bytes=BUDGET)
    append(channel, ("a", "x" * (SNAPSHOT_LOG_BYTES_MIN - 5000)))
    assert not channel.wants_snapshot(log_budget_bytes=BUDGET)
    append(channel, ("b", "x" * 5000))
    assert channel.wants_snapshot(log_budget_bytes=BUDGET)
    snapshot(channel)
    assert not channel.wants_snapshot(log_budget_bytes=BUDGET)
    assert channel.snapshots_built == 2


def test_a_larger_snapshot_is_made_less_often(channel: HubChannel) -> None:
    append(channel, *((f"p{number}", "x" * 100_000) for number in range(40)))
    snapshot(channel)
    append(channel, ("a", "x" * (SNAPSHOT_LOG_BYTES_MIN + 5000)))
    assert not channel.wants_snapshot(log_budget_bytes=BUDGET)
    assert channel.wants_snapshot(log_budget_bytes=BUDGET // 64)  # a small budget asks for them sooner


def test_a_snapshot_that_nobody_took_is_made_anew_less_often(channel: HubChannel) -> None:
    append(channel, *((f"p{number}", "x" * 40_000) for number in range(30)))
    snapshot(channel)
    assert channel.snapshot is not None
    quarter = int(channel.snapshot.length * SNAPSHOT_LOG_SHARE)
    append(channel, ("a", "x" * quarter))
    assert not channel.wants_snapshot(log_budget_bytes=BUDGET)
    channel.note_newcomers(1)
    assert channel.wants_snapshot(log_budget_bytes=BUDGET)
    snapshot(channel)
    channel.note_newcomers(1)  # no news
    append(channel, ("b", "x" * (quarter * 2)))
    assert not channel.wants_snapshot(log_budget_bytes=BUDGET)
    append(channel, ("c", "x" * (quarter * 3)))
    assert channel.wants_snapshot(log_budget_bytes=BUDGET)


def test_the_log_behind_the_newest_snapshot_stays(channel: HubChannel) -> None:
    append(channel, ("a", "x" * 70_000))
    assert channel.trim_limit(1 << 40) == channel.log.start == 0
    snapshot(channel)
    first = channel.log.end
    append(channel, ("a", "y" * 70_000))
    assert channel.trim_limit(1 << 40) == first
    assert channel.trim_limit(10) == 10


def test_a_snapshot_that_is_given_up_leaves_the_last_one(channel: HubChannel) -> None:
    append(channel, ("a", 1))
    snapshot(channel)
    kept = channel.snapshot
    append(channel, ("a", 2))
    builder = channel.begin_snapshot()
    next(builder.steps())
    builder.abandon()
    channel.building = False
    assert channel.snapshot is kept
    snapshot(channel)
    assert channel.snapshot is not kept
