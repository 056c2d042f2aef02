"""A channel of the hub: what it appends, and when it wants a snapshot."""

import contextlib
from collections.abc import Callable, Iterator

import msgspec
import pytest

from cache.feeds import feed
from cache.state import log
from protocol import messages
from protocol.native import encoder
from tests.harness import worker_stand
from typha.hub import policy
from typha.hub.channel import HubChannel

BUDGET_BYTES = 1 << 24
LIMITS = policy.HubPolicy(log_budget_bytes=BUDGET_BYTES, segment_bytes=1 << 16)

OpenChannel = Callable[[policy.HubPolicy], HubChannel]


@pytest.fixture
def source() -> feed.RawFeed:
    """A feed in sync."""
    one = worker_stand.raw_feed()
    one.set_status(worker_stand.PODS, messages.SyncStatus.IN_SYNC)
    one.take()
    return one


@pytest.fixture
def open_channel(source: feed.RawFeed) -> Iterator[OpenChannel]:
    """Opens channels of the feed with limits of the test; when it ends, no descriptor may be left."""
    before = worker_stand.descriptors_before()
    with contextlib.ExitStack() as stack:

        def open_one(limits: policy.HubPolicy) -> HubChannel:
            return stack.enter_context(contextlib.closing(HubChannel(7, source, encoder.NativeEncoder(), limits)))

        yield open_one
    assert worker_stand.open_descriptors() == before


@pytest.fixture
def channel(open_channel: OpenChannel) -> HubChannel:
    """A channel with the default limits."""
    return open_channel(LIMITS)


def append(channel: HubChannel, *contents: tuple[str, object]) -> list[log.Segment]:
    """Appends a batch of objects; returns the segments that were begun for it."""
    assert isinstance(channel.feed, feed.Feed)
    for name, content in contents:
        channel.feed.apply(worker_stand.pod(name, content))
    batch = channel.feed.take()
    assert batch is not None
    return channel.append(batch)


def snapshot(channel: HubChannel) -> None:
    """Builds a new snapshot at once."""
    builder = channel.begin_snapshot()
    for _ in builder.steps():
        assert channel.building
    channel.end_snapshot(builder.snapshot)


def test_a_batch_is_appended_with_its_status(channel: HubChannel) -> None:
    assert channel.key == (worker_stand.FEED, "native", None)
    assert channel.frames == 0
    assert len(append(channel, ("a", 1), ("b", 2))) == 1
    assert channel.frames == 1
    first_end = channel.log.end
    assert first_end > 0
    assert isinstance(channel.feed, feed.Feed)
    channel.feed.set_status(worker_stand.PODS, messages.SyncStatus.RESYNC)
    assert append(channel, ("c", 3)) == []
    assert channel.frames == 3
    assert channel.log.end > first_end
    assert channel.log.sequence == channel.feed.store.sequence


def test_large_batches_begin_segments(channel: HubChannel) -> None:
    segments = append(channel, *((f"p{number}", "x" * 30_000) for number in range(20)))
    assert len(segments) == len(channel.log.segments) >= 1
    append(channel, *((f"p{number}", "y" * 30_000) for number in range(20)))
    assert len(channel.log.segments) >= 2


def test_the_first_snapshot_is_wanted_at_once_and_the_next_after_enough_log(channel: HubChannel) -> None:
    assert channel.wants_snapshot()
    builder = channel.begin_snapshot()
    assert not channel.wants_snapshot()
    for _ in builder.steps():
        pass
    channel.end_snapshot(builder.snapshot)
    assert not channel.wants_snapshot()
    append(channel, ("a", "x" * (LIMITS.snapshot_log_bytes_min - 5000)))
    assert not channel.wants_snapshot()
    append(channel, ("b", "x" * 5000))
    assert channel.wants_snapshot()
    snapshot(channel)
    assert not channel.wants_snapshot()
    assert channel.snapshots_built == 2


@pytest.mark.parametrize(("budget_bytes", "wants"), [(BUDGET_BYTES, False), (BUDGET_BYTES // 64, True)])
def test_large_snapshots_are_built_less_often_unless_the_budget_is_small(
    open_channel: OpenChannel, budget_bytes: int, *, wants: bool
) -> None:
    channel = open_channel(msgspec.structs.replace(LIMITS, log_budget_bytes=budget_bytes))
    append(channel, *((f"p{number}", "x" * 100_000) for number in range(40)))
    snapshot(channel)
    append(channel, ("a", "x" * (LIMITS.snapshot_log_bytes_min + 5000)))
    assert channel.wants_snapshot() is wants


def test_a_snapshot_that_no_client_took_is_replaced_less_often(channel: HubChannel) -> None:
    append(channel, *((f"p{number}", "x" * 40_000) for number in range(30)))
    snapshot(channel)
    assert channel.snapshot is not None
    quarter = int(channel.snapshot.length * LIMITS.snapshot_log_share)
    append(channel, ("a", "x" * quarter))
    assert not channel.wants_snapshot()
    channel.note_newcomers(1)
    assert channel.wants_snapshot()
    snapshot(channel)
    channel.note_newcomers(1)  # the same total: there are no newcomers
    append(channel, ("b", "x" * (quarter * 2)))
    assert not channel.wants_snapshot()
    append(channel, ("c", "x" * (quarter * 3)))
    assert channel.wants_snapshot()


def test_the_log_after_the_newest_snapshot_stays(channel: HubChannel) -> None:
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
