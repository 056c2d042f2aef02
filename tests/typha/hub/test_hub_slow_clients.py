"""The hub's part for slow clients: which deletions it remembers, which blocks it sends, which statuses it announces."""

from protocol import messages
from tests.harness.hub_stand import HubStand
from tests.harness.worker_stand import PODS, build_snapshot, pod
from typha.ipc import messages as ipc

IN_SYNC, RESYNC = messages.SyncStatus.IN_SYNC, messages.SyncStatus.RESYNC


def test_deletions_that_no_client_needs_are_forgotten_after_a_while(bench: HubStand) -> None:
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
    bench.add_worker(2)  # it has reported nothing yet
    for _ in range(20):
        bench.hub.look_after_channels()
    assert content.tombstone_floor == 120


def test_some_deletions_are_kept_for_native_clients_that_come_back(bench: HubStand) -> None:
    worker = bench.add_worker()
    for number in range(100):
        bench.put(f"p{number}")
    channel = bench.open()
    for number in range(60):
        bench.hub.delete(pod(f"p{number}"))
    bench.hub.batch_end()
    build_snapshot(bench.hub, channel)
    content = channel.feed.store
    worker.report(clients=1, min_offset=0, min_sequence=content.sequence)
    for _ in range(20):
        bench.hub.look_after_channels()
    assert (len(content), content.tombstone_count, content.tombstone_floor) == (40, 20, 140)


def test_deletions_are_forgotten_if_there_are_no_clients(bench: HubStand) -> None:
    for number in range(20):
        bench.put(f"p{number}")
        bench.hub.delete(pod(f"p{number}"))
    bench.hub.batch_end()
    [source] = bench.hub.feeds.values()
    for _ in range(10):
        bench.hub.look_after_channels()
    assert (source.store.tombstone_count, source.store.tombstone_floor) == (0, source.store.sequence)


def test_a_worker_asks_for_blocks_of_an_open_channel(bench: HubStand) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    for number in range(8):
        bench.put(f"p{number}")
    worker.hear()
    worker.handle.publish(channel, ipc.UpdateTimes(0.0))  # not flushed: it waits for other ends
    worker.link.send(ipc.WantBlock(channel.number, 5, 7))
    worker.link.send(ipc.WantBlock(77, 5, 7))  # a channel that was closed: the worker is about to hear it
    bench.hub.hear(worker.handle)
    assert worker.broken == []
    for _ in bench.hub.catch_ups.steps():
        pass
    published, sent = worker.hear()
    assert isinstance(published, ipc.Publish)
    assert published.ends[0].end == channel.log.end
    assert isinstance(sent, ipc.SendBlock)
    assert sent.channel == channel.number
    block = sent.block
    assert (block.from_sequence, block.to_sequence, block.log_offset) == (5, 8, channel.log.end)
    for message in (ipc.WantBlock(channel.number, 7, 9), ipc.WantBlock(channel.number, -1, 5)):
        worker.say(message)
    assert len(worker.broken) == 2


def test_statuses_are_announced_one_by_one_before_they_are_published(bench: HubStand) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    worker.hear()
    for status in (RESYNC, IN_SYNC):
        bench.hub.status(PODS, status)
        bench.hub.commit()
    heard = worker.hear()
    noted = [message for message in heard if isinstance(message, ipc.NoteStatus)]
    assert [message.status for message in noted] == [RESYNC, IN_SYNC]
    assert noted[-1].offset == channel.log.status_offset
    assert heard.index(noted[0]) < [type(message) for message in heard].index(ipc.Publish)
    later = bench.add_worker(2)
    assert ipc.NoteStatus(channel.number, channel.log.status_offset, IN_SYNC) in later.hear()
