"""The hub between watchers and workers: what it sends to the workers, and how much of the logs it keeps."""

import itertools
import time

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st
from msgspec import structs

from cache import resources
from cache.feeds import raw
from protocol import messages
from tests.harness import worker_stand
from tests.harness.hub_stand import KIBIBYTE, LIMITS, HubStand
from tests.harness.worker_stand import NODES, PODS, build_snapshot, pod
from typha import clock
from typha.ipc import messages as ipc

_WAIT_BATCHES_MAX = 3
"""Less than a batch, and a slice of each of three types on top of it, are at most 49 changes in batches of 20."""
IN_SYNC, RESYNC = messages.SyncStatus.IN_SYNC, messages.SyncStatus.RESYNC


def test_a_channel_is_opened_when_its_feed_has_been_in_sync_and_not_before(bench: HubStand) -> None:
    worker = bench.add_worker()
    bench.put("a")
    bench.hub.want_channel(worker_stand.FEED, "native")
    bench.hub.want_channel(worker_stand.FEED, "native")
    assert bench.hub.channels == {}
    assert worker.hear() == []
    bench.sync()
    assert list(bench.hub.channels) == [(worker_stand.FEED, "native", None)]
    assert worker.kinds() == [ipc.OpenChannel, ipc.Publish]
    bench.make_snapshots()
    assert worker.kinds() == [ipc.OfferSnapshot]
    bench.hub.want_channel(worker_stand.FEED, "native")
    assert worker.hear() == []


def test_nothing_is_encoded_without_clients(bench: HubStand) -> None:
    worker = bench.add_worker()
    bench.sync()
    bench.churn(100)
    assert bench.hub.channels == {}
    assert bench.hub.retention.log_bytes == 0
    assert worker.hear() == []
    assert bench.hub.publisher.updates_total == {worker_stand.FEED: 13}


def test_a_batch_is_published_once(bench: HubStand) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    worker.hear()
    for name in ("a", "b", "c"):
        bench.hub.apply(pod(name))
    assert worker.hear() == []
    bench.hub.batch_end()
    segment, published = worker.hear()
    assert isinstance(segment, ipc.AddSegment)
    assert segment.channel == channel.number
    assert isinstance(published, ipc.Publish)
    assert [(end.channel, end.end) for end in published.ends] == [(channel.number, channel.log.end)]
    bench.hub.batch_end()
    assert worker.hear() == []


def test_while_a_worker_sends_the_next_updates_wait_but_no_status_does(bench: HubStand) -> None:
    worker = bench.add_worker(tells_progress=True)
    channel = bench.open()
    worker.hear()
    worker.sent()
    bench.put("a")
    assert worker.kinds() == [ipc.AddSegment, ipc.Publish]
    bench.put("b")  # leaves while the worker sends the first
    assert worker.kinds() == [ipc.Publish]
    end = channel.log.end
    bench.put("c")
    assert (channel.log.end, worker.kinds()) == (end, [])
    bench.hub.status(PODS, RESYNC)
    bench.hub.batch_end()
    assert worker.kinds() == [ipc.NoteStatus, ipc.Publish]
    assert (len(channel.feed.store), channel.feed.store.status) == (3, RESYNC)
    bench.put("d")
    assert worker.kinds() == []
    worker.sent()
    bench.put("e")
    assert worker.kinds() == [ipc.Publish]
    assert len(channel.feed.store) == 5


def test_updates_do_not_wait_for_a_dead_worker(bench: HubStand) -> None:
    worker = bench.add_worker(tells_progress=True)
    channel = bench.open()
    bench.put("a")
    bench.put("b")
    assert len(channel.feed.store) == 1
    bench.hub.remove_worker(1)
    bench.put("c")
    assert len(channel.feed.store) == 3
    assert ipc.Publish in worker.kinds()


def test_a_feed_of_two_types_is_in_sync_when_both_are() -> None:
    bench = HubStand(worker_stand.raw_feed(worker_stand.FEED, PODS, NODES))
    bench.hub.want_channel(worker_stand.FEED, "native")
    bench.sync(PODS)
    assert bench.hub.channels == {}
    bench.sync(NODES)
    assert len(bench.hub.channels) == 1
    bench.hub.close()


def test_two_feeds_share_a_type_and_each_publishes_to_its_own_channels() -> None:
    bench = HubStand(worker_stand.raw_feed("one", PODS), worker_stand.raw_feed("two", PODS, NODES))
    bench.sync(PODS, NODES)
    bench.hub.want_channel("one", "native")
    bench.hub.want_channel("two", "native+zstd")
    one, two = bench.hub.channels.values()
    bench.put("a")
    assert one.log.end > 0 < two.log.end
    end = one.log.end
    bench.hub.apply(pod("n", type=NODES))
    bench.hub.batch_end()
    assert one.log.end == end
    assert bench.hub.types == [PODS, NODES]
    assert [len(source.store) for source in bench.hub.feeds.values()] == [1, 2]
    bench.hub.close()


def test_a_new_worker_is_sent_everything(bench: HubStand) -> None:
    old = bench.add_worker(1)
    channel = bench.open()
    bench.churn(200)
    new = bench.add_worker(2)
    sent = new.hear()
    assert sent[0] == ipc.OpenChannel(
        channel.number, worker_stand.FEED, "native", channel.log.start, channel.log.start_sequence
    )
    bases = [message.base for message in sent if isinstance(message, ipc.AddSegment)]
    assert bases == [segment.base for segment in channel.log.segments]
    assert len(bases) > 2
    offered, published = sent[-2:]
    assert isinstance(offered, ipc.OfferSnapshot)
    assert isinstance(published, ipc.Publish)
    assert published.ends[0].end == channel.log.end
    old.hear()
    bench.put("b")
    assert old.hear() == new.hear()


def test_a_removed_worker_is_sent_nothing(bench: HubStand) -> None:
    worker = bench.add_worker()
    bench.open()
    worker.hear()
    bench.hub.remove_worker(1)
    bench.hub.remove_worker(1)
    bench.put("a")
    assert worker.hear() == []


@pytest.mark.parametrize("makes_snapshots", [True, False])
def test_the_budget_bounds_the_logs_but_never_cuts_after_the_newest_snapshot(
    bench: HubStand, makes_snapshots: bool
) -> None:
    channel = bench.open()
    assert channel.snapshot is not None
    for _ in range(40):
        bench.churn(128)
        assert channel.log.start <= channel.snapshot.log_offset
        if makes_snapshots:
            bench.make_snapshots()
            assert bench.hub.retention.log_bytes <= (1 << 20) + 256 * KIBIBYTE
    if not makes_snapshots:
        assert bench.hub.retention.log_bytes > 4 << 20  # no log can be freed before there is a newer snapshot
        assert bench.hub.snapshots.take() is channel
        build_snapshot(bench.hub, channel)
        bench.make_snapshots()
    assert bench.hub.retention.log_bytes <= 1 << 20


def test_the_budget_is_taken_from_the_largest_log() -> None:
    bench = HubStand(worker_stand.raw_feed("busy", PODS), worker_stand.raw_feed("calm", NODES))
    bench.sync(PODS, NODES)
    for name in ("busy", "calm"):
        bench.hub.want_channel(name, "native")
    bench.make_snapshots()
    for number in range(12):
        bench.hub.apply(pod(f"n{number}", "x" * 8 * KIBIBYTE, type=NODES))
        bench.hub.batch_end()
        bench.make_snapshots()
    calm = bench.hub.channels["calm", "native", None]
    kept = calm.log.used_bytes
    for _ in range(20):
        bench.churn(128)
        bench.make_snapshots()
    assert calm.log.used_bytes == kept > 0
    bench.hub.close()


def test_logs_of_one_segment_do_not_ask_for_snapshots_without_end() -> None:
    """Many formats share a small budget. None has a segment to free, and a new snapshot would not change that."""
    bench = HubStand(
        worker_stand.raw_feed("busy", PODS),
        worker_stand.raw_feed("calm", NODES),
        limits=msgspec.structs.replace(LIMITS, log_budget_bytes=64 * KIBIBYTE),
    )
    bench.sync(PODS, NODES)
    for name in ("busy", "calm"):
        bench.hub.want_channel(name, "native")
    bench.make_snapshots()
    for number in range(6):
        for type in (PODS, NODES):
            bench.hub.apply(pod(f"n{number}", "x" * 8 * KIBIBYTE, type=type))
            bench.hub.batch_end()
    assert bench.hub.retention.log_bytes > 64 * KIBIBYTE
    rounds = 0
    while rounds < 20 and (channel := bench.hub.snapshots.take()) is not None:
        rounds += 1
        build_snapshot(bench.hub, channel)
    assert bench.hub.snapshots.take() is None
    bench.hub.close()


def test_trimming_is_announced_for_the_log_that_is_gone(bench: HubStand) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    for _ in range(20):
        bench.churn(128)
        bench.make_snapshots()
        for message in worker.hear():
            if isinstance(message, ipc.TrimLog):
                assert message.before_offset <= channel.log.start
    assert channel.log.start > 0


def test_the_log_that_no_client_needs_is_freed(bench: HubStand) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    bench.churn(400)
    bench.make_snapshots()
    middle = channel.log.segments[3].base
    worker.report(clients=1, min_offset=middle + 5)
    bench.hub.look_after_channels()
    assert channel.log.start == middle
    second = bench.add_worker(2)
    worker.report(clients=1, min_offset=channel.log.end)
    bench.hub.look_after_channels()
    assert channel.log.start == middle  # the second has not reported yet
    second.report(clients=0, min_offset=channel.log.end)
    bench.hub.look_after_channels()
    assert channel.snapshot is not None
    assert middle < channel.log.start <= channel.snapshot.log_offset


def test_an_idle_channel_is_closed_after_a_while(bench: HubStand) -> None:
    now = 1000.0
    with clock.replaced(monotonic=lambda: now, time_ns=time.time_ns):
        worker = bench.add_worker()
        bench.open()
        bench.hub.look_after_channels()
        now += 1000
        bench.hub.look_after_channels()  # the worker has not reported yet: not idle
        worker.report(clients=0, min_offset=0)
        bench.hub.look_after_channels()
        now += 59
        bench.hub.look_after_channels()
        worker.report(clients=1, min_offset=0)
        bench.hub.look_after_channels()
        worker.report(clients=0, min_offset=0)
        bench.hub.look_after_channels()
        now += 59
        bench.hub.look_after_channels()
        assert len(bench.hub.channels) == 1
        now += 2
        worker.hear()
        bench.hub.look_after_channels()
        assert bench.hub.channels == {}
        assert worker.hear() == [ipc.CloseChannel(1)]
        bench.put("a")
        assert worker.hear() == []
        bench.hub.want_channel(worker_stand.FEED, "native")
        assert worker.kinds() == [ipc.OpenChannel, ipc.Publish]


def test_ends_are_coalesced_while_the_link_is_full(bench: HubStand) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    worker.hear()
    while not worker.handle.link.wants_write:
        worker.handle.send(ipc.WithdrawFeeds(["x" * 1000]))
    for number in range(500):
        bench.put("a", version=number + 2)
    assert not worker.broken
    assert worker.watching == [True]
    heard: list[ipc.ToWorker] = []
    for _ in range(100):
        heard += worker.hear()
        worker.handle.flush()
    [published] = [message for message in heard if isinstance(message, ipc.Publish)]
    assert published.ends[0].end == channel.log.end
    assert worker.watching == [True, False]


def test_an_object_that_cannot_be_carried_is_counted_and_its_key_is_gone(bench: HubStand) -> None:
    bench.open()
    bench.put("a")
    bench.hub.apply(pod("a")._replace(raw=b"nonsense"))
    bench.hub.apply(pod("b", "x" * (1 << 21)))
    bench.hub.batch_end()
    assert bench.hub.updates_refused == {"invalid-object": 1, "value-too-large": 1}
    assert len(bench.hub.feeds[worker_stand.FEED].store) == 0


def test_a_status_is_published_like_data(bench: HubStand) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    worker.hear()
    end = channel.log.end
    bench.hub.status(PODS, RESYNC)
    bench.hub.batch_end()
    assert channel.log.end > end
    assert ipc.Publish in worker.kinds()


def test_a_worker_with_an_old_snapshot_gets_a_new_one_unless_it_is_still_fresh(bench: HubStand) -> None:
    now = 1000.0
    with clock.replaced(monotonic=lambda: now, time_ns=time.time_ns):
        worker = bench.add_worker()
        channel = bench.open()
        bench.put("a")
        worker.hear()
        now += LIMITS.snapshot_fresh_seconds - 0.1
        worker.say(ipc.WantSnapshot(channel.number))
        assert bench.hub.snapshots.take() is None
        assert worker.kinds() == [ipc.OfferSnapshot]
        now += 0.2
        worker.say(ipc.WantSnapshot(channel.number))
        assert bench.hub.snapshots.take() is channel
        assert worker.kinds() == []
        build_snapshot(bench.hub, channel)
        assert worker.kinds() == [ipc.OfferSnapshot]
        now += LIMITS.snapshot_fresh_seconds + 0.1
        channel.building = True  # the snapshot that is being built is good enough
        worker.say(ipc.WantSnapshot(channel.number))
        worker.say(ipc.WantSnapshot(99))
        assert bench.hub.snapshots.take() is None
        assert worker.kinds() == []
        assert worker.broken == []


@hypothesis.given(st.lists(st.integers(0, 400), min_size=1, max_size=3), st.integers(0, 60))
def test_floods_of_some_types_delay_a_change_of_another_by_few_batches(floods: list[int], turn: int) -> None:
    """Watchers as `cache.kube.watcher`: each passes on a slice in a turn, unless the hub is full."""
    innocent, *flooding = (resources.ResourceType("", "v1", f"type{number}") for number in range(4))
    limits = structs.replace(LIMITS, batch_changes_max=20)
    bench = HubStand(worker_stand.raw_feed(worker_stand.FEED, innocent, *flooding), limits=limits)
    store = bench.hub.feeds[worker_stand.FEED].store
    for now in itertools.count():
        if not bench.hub.is_full:
            for number, left in enumerate(floods):
                for one in range(min(left, 10)):
                    bench.hub.apply(pod(f"p{left - one}", type=flooding[number]))
                floods[number] = max(0, left - 10)
        if now == turn:
            bench.hub.apply(pod("innocent", type=innocent))
        bench.hub.commit()
        if store.get(raw.object_key(innocent, "default", "innocent")) is not None:
            break
    assert now - turn < _WAIT_BATCHES_MAX
