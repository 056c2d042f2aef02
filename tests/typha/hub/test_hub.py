"""The hub, told what watchers tell it: what the workers hear, and how much of the logs is kept."""

from typing import Any

import pytest

from protocol import messages
from tests.harness import support
from tests.harness.hub_bench import KIBIBYTE, Bench
from tests.harness.support import NODES, PODS, build_snapshot, pod
from typha.hub import channel as hub_channel
from typha.hub import hub
from typha.worker import channel as channel_view

IN_SYNC, RESYNC = messages.SyncStatus.IN_SYNC, messages.SyncStatus.RESYNC


def test_a_channel_is_opened_when_its_feed_has_been_in_sync_and_not_before(bench: Bench) -> None:
    worker = bench.add_worker()
    bench.put("a")
    bench.hub.wanted(support.FEED, "native")
    bench.hub.wanted(support.FEED, "native")
    assert bench.hub.channels == {}
    assert worker.hear() == []
    bench.sync()
    assert list(bench.hub.channels) == [(support.FEED, "native")]
    assert worker.kinds() == ["channel", "ends"]
    bench.make_snapshots()
    assert worker.kinds() == ["snapshot"]
    bench.hub.wanted(support.FEED, "native")
    assert worker.hear() == []


def test_nothing_is_encoded_for_nobody(bench: Bench) -> None:
    worker = bench.add_worker()
    bench.sync()
    bench.churn(100)
    assert bench.hub.channels == {}
    assert bench.hub.log_bytes == 0
    assert worker.hear() == []
    assert bench.hub.updates_total == {support.FEED: 13}


def test_a_batch_becomes_one_end(bench: Bench) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    worker.hear()
    for name in ("a", "b", "c"):
        bench.hub.apply(pod(name))
    assert worker.hear() == []
    bench.hub.batch_end()
    segment, ends = worker.hear()
    assert segment[:2] == ["segment", channel.number]
    assert ends[0] == "ends"
    assert [end[:2] for end in ends[1]] == [[channel.number, channel.log.end]]
    bench.hub.batch_end()
    assert worker.hear() == []


def test_while_a_worker_sends_the_next_updates_wait_but_no_status_does(bench: Bench) -> None:
    worker = bench.add_worker(tells_progress=True)
    channel = bench.open()
    worker.hear()
    worker.sent()
    bench.put("a")
    assert worker.kinds() == ["segment", "ends"]
    bench.put("b")  # goes round with it
    assert worker.kinds() == ["ends"]
    end = channel.log.end
    bench.put("c")
    assert (channel.log.end, worker.kinds()) == (end, [])
    bench.hub.status(PODS, RESYNC)
    bench.hub.batch_end()
    assert worker.kinds() == ["status", "ends"]
    assert (len(channel.feed.store), channel.feed.store.status) == (3, RESYNC)
    bench.put("d")
    assert worker.kinds() == []
    worker.sent()
    bench.put("e")
    assert worker.kinds() == ["ends"]
    assert len(channel.feed.store) == 5


def test_a_worker_that_dies_is_waited_for_no_longer(bench: Bench) -> None:
    worker = bench.add_worker(tells_progress=True)
    channel = bench.open()
    bench.put("a")
    bench.put("b")
    assert len(channel.feed.store) == 1
    bench.hub.remove_worker(1)
    bench.put("c")
    assert len(channel.feed.store) == 3
    assert "ends" in worker.kinds()


def test_a_feed_of_two_types_is_in_sync_when_both_are() -> None:
    bench = Bench(support.raw_feed(support.FEED, PODS, NODES))
    bench.hub.wanted(support.FEED, "native")
    bench.sync(PODS)
    assert bench.hub.channels == {}
    bench.sync(NODES)
    assert len(bench.hub.channels) == 1
    bench.hub.close()


def test_two_feeds_share_a_type_and_only_their_own_channels_hear() -> None:
    bench = Bench(support.raw_feed("one", PODS), support.raw_feed("two", PODS, NODES))
    bench.sync(PODS, NODES)
    bench.hub.wanted("one", "native")
    bench.hub.wanted("two", "native+zstd")
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


def test_a_new_worker_is_told_everything(bench: Bench) -> None:
    old = bench.add_worker(1)
    channel = bench.open()
    bench.churn(200)
    new = bench.add_worker(2)
    told = new.hear()
    assert told[0] == ["channel", channel.number, support.FEED, "native", channel.log.start, channel.log.start_sequence]
    bases = [message[2] for message in told if message[0] == "segment"]
    assert bases == [segment.base for segment in channel.log.segments]
    assert len(bases) > 2
    assert [message[0] for message in told[-2:]] == ["snapshot", "ends"]
    assert told[-1][1][0][1] == channel.log.end
    old.hear()
    bench.put("b")
    assert old.hear() == new.hear()


def test_a_removed_worker_is_told_nothing(bench: Bench) -> None:
    worker = bench.add_worker()
    bench.open()
    worker.hear()
    bench.hub.remove_worker(1)
    bench.hub.remove_worker(1)
    bench.put("a")
    assert worker.hear() == []


@pytest.mark.parametrize("makes_snapshots", [True, False])
def test_the_budget_bounds_the_logs_but_never_cuts_behind_the_newest_snapshot(
    bench: Bench, makes_snapshots: bool
) -> None:
    channel = bench.open()
    assert channel.snapshot is not None
    for _ in range(40):
        bench.churn(128)
        assert channel.log.start <= channel.snapshot.log_offset
        if makes_snapshots:
            bench.make_snapshots()
            assert bench.hub.log_bytes <= (1 << 20) + 256 * KIBIBYTE
    assert channel in bench.requested or makes_snapshots
    if not makes_snapshots:
        assert bench.hub.log_bytes > 4 << 20  # nothing else can be done before there is a newer snapshot
        bench.make_snapshots()
    assert bench.hub.log_bytes <= 1 << 20


def test_the_budget_is_taken_from_the_largest_log() -> None:
    bench = Bench(support.raw_feed("busy", PODS), support.raw_feed("calm", NODES))
    bench.sync(PODS, NODES)
    for name in ("busy", "calm"):
        bench.hub.wanted(name, "native")
    bench.make_snapshots()
    for number in range(12):
        bench.hub.apply(pod(f"n{number}", "x" * 8 * KIBIBYTE, type=NODES))
        bench.hub.batch_end()
        bench.make_snapshots()
    calm = bench.hub.channels["calm", "native"]
    kept = calm.log.used_bytes
    for _ in range(20):
        bench.churn(128)
        bench.make_snapshots()
    assert calm.log.used_bytes == kept > 0
    bench.hub.close()


def test_logs_of_one_segment_each_are_not_asked_for_snapshots_without_end() -> None:
    """Many formats under a small budget: none has anything to give back, and a new snapshot would not change that."""
    bench = Bench(support.raw_feed("busy", PODS), support.raw_feed("calm", NODES), log_budget_bytes=64 * KIBIBYTE)
    bench.sync(PODS, NODES)
    for name in ("busy", "calm"):
        bench.hub.wanted(name, "native")
    bench.make_snapshots()
    for number in range(6):
        for type in (PODS, NODES):
            bench.hub.apply(pod(f"n{number}", "x" * 8 * KIBIBYTE, type=type))
            bench.hub.batch_end()
    assert bench.hub.log_bytes > 64 * KIBIBYTE
    rounds = 0
    while bench.requested and rounds < 20:
        rounds += 1
        build_snapshot(bench.hub, bench.requested.pop())
    assert bench.requested == []
    bench.hub.close()


def test_trimming_is_told_before_the_memory_is_gone(bench: Bench) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    for _ in range(20):
        bench.churn(128)
        bench.make_snapshots()
        for message in worker.hear():
            if message[0] == "trim":
                assert message[2] <= channel.log.start
    assert channel.log.start > 0


def test_what_every_client_has_behind_it_is_let_go(bench: Bench) -> None:
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
    assert channel.log.start == middle  # the second has not said anything yet
    second.report(clients=0, min_offset=channel.log.end)
    bench.hub.look_after_channels()
    assert channel.snapshot is not None
    assert middle < channel.log.start <= channel.snapshot.log_offset


def test_an_idle_channel_is_dropped_after_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(hub, "_monotonic", lambda: now)
    worker = bench.add_worker()
    bench.open()
    bench.hub.look_after_channels()
    now += 1000
    bench.hub.look_after_channels()  # not a word of the worker yet: not idle
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
    assert worker.hear() == [["drop-channel", 1]]
    bench.put("a")
    assert worker.hear() == []
    bench.hub.wanted(support.FEED, "native")
    assert worker.kinds() == ["channel", "ends"]


def test_ends_are_coalesced_while_the_link_is_full(bench: Bench) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    worker.hear()
    while not worker.handle.link.wants_write:
        worker.handle.tell(["fill", "x" * 1000])
    for number in range(500):
        bench.put("a", version=number + 2)
    assert not worker.broken
    assert worker.watching == [True]
    heard: list[list[Any]] = []
    for _ in range(100):
        heard += worker.hear()
        worker.handle.flush()
    ends = [message for message in heard if message[0] == "ends"]
    assert len(ends) == 1
    assert ends[0][1][0][1] == channel.log.end
    assert worker.watching == [True, False]


def test_an_object_that_cannot_be_carried_is_counted_and_its_key_is_gone(bench: Bench) -> None:
    bench.open()
    bench.put("a")
    bench.hub.apply(pod("a")._replace(raw=b"nonsense"))
    bench.hub.apply(pod("b", "x" * (1 << 21)))
    bench.hub.batch_end()
    assert bench.hub.updates_refused == {"invalid-object": 1, "value-too-large": 1}
    assert len(bench.hub.feeds[support.FEED].store) == 0


def test_a_status_is_published_like_data(bench: Bench) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    worker.hear()
    end = channel.log.end
    bench.hub.status(PODS, RESYNC)
    bench.hub.batch_end()
    assert channel.log.end > end
    assert "ends" in worker.kinds()


def test_a_worker_whose_snapshot_is_old_gets_another_one_and_a_young_one_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    bench.put("a")
    worker.hear()
    bench.hub.stale(worker.handle, channel.number)
    assert bench.requested == []
    assert worker.kinds() == ["snapshot"]
    monkeypatch.setattr(channel_view, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(hub_channel, "REBUILD_SHARE_MAX", 1e9)
    bench.hub.stale(worker.handle, channel.number)
    assert bench.requested == [channel]
    assert worker.kinds() == []
    bench.make_snapshots()
    assert worker.kinds() == ["snapshot"]
    channel.building = True  # the one that is being made will do
    bench.hub.stale(worker.handle, channel.number)
    bench.hub.stale(worker.handle, 99)
    assert bench.requested == []
    assert worker.kinds() == []
