"""What deliveries leave in the metrics: how old what clients are sent is, how much of it there is, how it is read."""

import pytest

from tests.harness.worker_stand import WorkerStand, pod
from tests.typha.worker.test_delivery import fast_and_blocked
from typha import clock
from typha.ipc import messages as ipc
from typha.observability import buckets
from typha.worker import stats


def aged(stage: WorkerStand, *, received: float, written: float = 0.0) -> ipc.UpdateTimes:
    """What is published next came, and was written, so many seconds ago."""
    now = clock.monotonic()
    times = ipc.UpdateTimes(now - received, now - written if written else 0.0)
    stage.handle.publish(stage.channel, times)
    return times


def feed_stats(stage: WorkerStand) -> stats.FeedStats:
    return stage.server.stats.feeds[stage.feed.name]


def counted(found: buckets.BucketCounts, bounds: tuple[float, ...]) -> dict[str, float]:
    """The upper bounds of the buckets that have something, with what they have."""
    names = [*map(str, bounds), "+Inf"]
    return {name: count for name, count in zip(names, found.counts, strict=False) if count}


async def test_propagation_is_counted_for_each_client(stage: WorkerStand) -> None:
    peers = [await stage.subscribe() for _ in range(40)]
    await stage.converged(*peers)
    counts = feed_stats(stage).counts
    assert sum(counts.propagation.counts) == 0  # what newcomers get is old
    aged(stage, received=5.0, written=20.0)
    stage.put(pod("a", "y", version=2))
    await stage.converged(*peers)
    assert counted(counts.propagation, buckets.PROPAGATION_BOUNDS) == {"10.0": 40}
    assert counted(counts.propagation_from_write, buckets.WRITE_BOUNDS) == {"30.0": 40}
    assert 200 <= counts.propagation.seconds < 2 * 200
    aged(stage, received=0.0)
    stage.put(pod("a", "z", version=3))
    await stage.converged(*peers)
    assert sum(counts.propagation.counts) == 80
    assert sum(counts.propagation_from_write.counts) == 40  # the second update did not tell
    assert feed_stats(stage).histograms[stats.WRITE_SECONDS].count == 80 + 40  # a status for each newcomer
    assert (counts.sends, counts.late_sends) == (80, 0)


async def test_what_lies_ready_for_a_client_counts_as_such(stage: WorkerStand) -> None:
    peer = await stage.subscribe()
    await stage.converged(peer)
    feed = feed_stats(stage)
    begun = clock.monotonic()
    for number in range(3):  # the worker hears of them one by one, and sends them together
        stage.handle.publish(stage.channel, ipc.UpdateTimes(begun - 9.0 + 4 * number))
        stage.put(pod("a", str(number), version=number + 2))
    await stage.converged(peer)
    assert (feed.counts.sends, feed.counts.late_sends) == (1, 2)
    latency = feed.histograms[stats.LATENCY_SECONDS]
    assert latency.count == 1
    assert latency.total == pytest.approx(8.0)  # the oldest of what it was sent, behind the newest
    assert counted(feed.counts.propagation, buckets.PROPAGATION_BOUNDS) == {"10.0": 1}


async def test_a_client_that_keeps_up_lags_by_nothing(stage: WorkerStand) -> None:
    peer = await stage.subscribe()
    await stage.converged(peer)
    aged(stage, received=5.0)
    stage.put(pod("a", "y", version=2))
    await stage.converged(peer)
    assert feed_stats(stage).histograms[stats.LATENCY_SECONDS].total == 0.0


async def test_a_slow_consumer_counts_too(stage: WorkerStand) -> None:
    fast, slow, _ = await fast_and_blocked(stage)
    await stage.converged(fast)
    feed = feed_stats(stage)
    before, writes = sum(feed.counts.propagation.counts), feed.histograms[stats.WRITE_SECONDS].count
    late = feed.counts.late_sends
    await stage.converged(fast, slow)
    assert sum(feed.counts.propagation.counts) > before
    assert feed.counts.late_sends > late
    assert feed.histograms[stats.WRITE_SECONDS].count > writes
