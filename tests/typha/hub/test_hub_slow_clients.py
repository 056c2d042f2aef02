"""The hub's part for slow clients: which deletions it remembers, what workers ask it for, and what it announces."""

from protocol import messages
from tests.harness.hub_bench import Bench
from tests.harness.support import PODS, build_snapshot, pod

IN_SYNC, RESYNC = messages.SyncStatus.IN_SYNC, messages.SyncStatus.RESYNC


def test_deletions_that_no_client_needs_are_forgotten_after_a_while(bench: Bench) -> None:
    worker = bench.add_worker()
    for number in range(100):
        bench.put(f"p{number}")
    channel = bench.open()
    for number in range(50):
        bench.hub.delete(pod(f"p{number}"))
    bench.hub.batch_end()
    content = channel.feed.store
    worker.report(clients=1, min_offset=0, min_sequence=120)
    for _ in range(20):
        bench.hub.look_after_channels()
    assert (content.tombstone_count, content.tombstone_floor) == (50, 0)  # the newest snapshot is older
    build_snapshot(bench.hub, channel)
    for _ in range(9):
        bench.hub.look_after_channels()
    assert content.tombstone_floor == 0
    bench.hub.look_after_channels()
    assert (content.tombstone_count, content.tombstone_floor) == (30, 120)
    worker.report(clients=1, min_offset=0, min_sequence=121)
    bench.add_worker(2)  # which has said nothing yet
    for _ in range(20):
        bench.hub.look_after_channels()
    assert content.tombstone_floor == 120


def test_deletions_are_not_kept_for_nobody(bench: Bench) -> None:
    for number in range(20):
        bench.put(f"p{number}")
        bench.hub.delete(pod(f"p{number}"))
    bench.hub.batch_end()
    [source] = bench.hub.feeds.values()
    for _ in range(10):
        bench.hub.look_after_channels()
    assert (source.store.tombstone_count, source.store.tombstone_floor) == (0, source.store.sequence)


def test_a_worker_asks_for_blocks_of_a_channel_that_is_there(bench: Bench) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    for number in range(8):
        bench.put(f"p{number}")
    worker.hear()
    worker.handle.publish(channel, 0.0)  # an end that waits for company
    worker.link.send(["catch-up", channel.number, 5, 7])
    worker.link.send(["catch-up", 77, 5, 7])  # a channel that was dropped: it will hear of that
    worker.handle.hear()
    assert worker.broken == []
    for _ in bench.hub.catch_ups.steps():
        pass
    ends, block = worker.hear()
    assert (ends[0], ends[1][0][1]) == ("ends", channel.log.end)
    assert block[:2] == ["block", channel.number]
    assert (block[2]["from_sequence"], block[2]["to_sequence"], block[2]["log_offset"]) == (5, 8, channel.log.end)
    for message in (["catch-up", channel.number, 7, 9], ["catch-up", channel.number, -1, 5]):
        worker.link.send(message)
        worker.handle.hear()
    assert len(worker.broken) == 2


def test_statuses_are_announced_one_by_one_before_they_are_published(bench: Bench) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    worker.hear()
    for status in (RESYNC, IN_SYNC):
        bench.hub.status(PODS, status)
        bench.hub.commit()
    heard = worker.hear()
    told = [message for message in heard if message[0] == "status"]
    assert [message[3] for message in told] == [RESYNC, IN_SYNC]
    assert [message[2] for message in told][-1] == channel.log.status_offset
    assert heard.index(told[0]) < [message[0] for message in heard].index("ends")
    later = bench.add_worker(2)
    assert ["status", channel.number, channel.log.status_offset, IN_SYNC] in later.hear()
