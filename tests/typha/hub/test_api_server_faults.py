"""Native clients learn that the API server is lost; clients of Typha's protocol do not, as with the original."""

import os

import pytest

from protocol import formats, messages
from protocol.native import codec, frames
from tests.harness import worker_stand
from tests.harness.hub_stand import LIMITS, HubStand, Worker
from tests.harness.worker_stand import FEED, NODES, PODS, WorkerStand, pod
from typha.hub import hub
from typha.hub.channel import HubChannel
from typha.ipc import messages as ipc

WAITING, RESYNC, IN_SYNC = messages.SyncStatus.WAITING, messages.SyncStatus.RESYNC, messages.SyncStatus.IN_SYNC


async def test_a_client_and_a_newcomer_are_told_and_keep_their_map(stage: WorkerStand) -> None:
    stage.put(pod("a"))
    stage.in_sync()
    peer = await stage.subscribe()
    await stage.converged(peer)
    stage.hub.set_unconfirmed(PODS, True)
    stage.hub.look_after_channels()
    stage.make_snapshots()
    await peer.read_until(lambda: peer.status is WAITING)
    newcomer = await stage.subscribe()
    await newcomer.read_until(lambda: newcomer.status is WAITING)
    assert peer.entries == newcomer.entries == stage.content
    assert peer.deleted == []
    assert newcomer.told == [WAITING]
    stage.hub.set_unconfirmed(PODS, False)
    stage.hub.look_after_channels()
    stage.make_snapshots()
    await stage.converged(peer, newcomer)
    assert peer.told == [IN_SYNC, WAITING, IN_SYNC]
    late = await stage.subscribe()
    await stage.converged(late)
    assert late.told == [IN_SYNC]


async def test_changes_go_on_during_a_loss(stage: WorkerStand) -> None:
    stage.in_sync()
    peer = await stage.subscribe()
    await stage.converged(peer)
    stage.hub.set_unconfirmed(PODS, True)
    stage.put(pod("a"))
    await peer.read_until(lambda: peer.entries == stage.content and peer.status is WAITING)


def statuses(channel: HubChannel) -> list[messages.SyncStatus]:
    """The statuses in a native channel's log."""
    splitter = frames.FrameSplitter()
    for segment in channel.log.segments:
        splitter.receive(os.pread(segment.descriptor, channel.log.end - segment.base, 0))
    found = []
    while (frame := splitter.next_frame()) is not None:
        message = codec.decode(frames.unpack_payload(*frame))
        if isinstance(message, messages.Status):
            found.append(message.status)
    return found


def test_some_types_lost_is_a_resync() -> None:
    source = worker_stand.raw_feed(FEED, PODS, NODES)
    made = hub.Hub([source], LIMITS)
    for type in (PODS, NODES):
        made.status(type, IN_SYNC)
    made.commit()
    made.want_channel(FEED, "native")
    [channel] = made.channels.values()
    worker = Worker()
    worker.attach(made)
    for lost in ([PODS], [PODS], [PODS, NODES], [NODES], []):
        for type in (PODS, NODES):
            made.set_unconfirmed(type, type in lost)
        made.look_after_channels()
    assert statuses(channel) == [RESYNC, WAITING, RESYNC, IN_SYNC]
    made.status(PODS, RESYNC)
    made.set_unconfirmed(NODES, True)
    made.commit()
    assert statuses(channel)[4:] == [RESYNC]  # the loss of the other type changes nothing of that
    for _ in range(10):  # one type after the other is read again, as after an outage
        made.status(PODS, IN_SYNC)
        made.commit()
        made.status(PODS, RESYNC)
        made.commit()
    assert statuses(channel)[5:] == []  # clients are not told the same again, which would cost a snapshot each time
    made.status(PODS, IN_SYNC)
    made.set_unconfirmed(NODES, False)
    made.commit()
    assert statuses(channel)[5:] == [IN_SYNC]
    told = [message.status for message in worker.hear() if isinstance(message, ipc.NoteStatus)]
    assert told == statuses(channel)
    worker.close()
    made.close()


@pytest.mark.parametrize("wire_format", formats.NAMES)
def test_snapshots_and_blocks_have_the_status_of_the_log(wire_format: str, bench: HubStand) -> None:
    bench.sync()
    bench.hub.want_channel(FEED, wire_format)
    [channel] = bench.hub.channels.values()
    for is_lost in (False, True, False):
        bench.hub.set_unconfirmed(PODS, is_lost)
        bench.hub.look_after_channels()
        worker_stand.build_snapshot(bench.hub, channel)
        expected = WAITING if is_lost and formats.replaces_by_snapshot(wire_format) else IN_SYNC
        assert channel.snapshot is not None
        assert (channel.status, channel.snapshot.status) == (expected, expected)
        worker = bench.add_worker()
        bench.hub.catch_ups.close()  # an older block is as good: the log after it has the status
        bench.hub.catch_ups.request(channel, worker.handle, from_sequence=0, needed_sequence=0)
        for _ in bench.hub.catch_ups.steps():
            pass
        blocks = [kept.block for kept in bench.hub.catch_ups._kept.values()]
        assert [block.status for block in blocks] == [expected]


def test_typhas_clients_are_not_told(bench: HubStand) -> None:
    bench.sync()
    bench.hub.want_channel(FEED, "typha")
    [channel] = bench.hub.channels.values()
    end = channel.log.end
    bench.hub.set_unconfirmed(PODS, True)
    bench.hub.look_after_channels()
    assert channel.log.end == end


def told(worker: Worker) -> list[dict[str, float]]:
    """What the worker has heard of when feeds were confirmed."""
    return [message.confirmed_at for message in worker.hear() if isinstance(message, ipc.NoteConfirmed)]


def test_workers_hear_when_a_feed_was_confirmed_and_when_it_is_not() -> None:
    stand = HubStand(worker_stand.raw_feed(FEED, PODS, NODES))
    worker = stand.add_worker()
    stand.hub.set_unconfirmed(PODS, False, 100.0)
    stand.hub.look_after_channels()
    assert told(worker) == []  # it is not complete
    stand.sync(PODS, NODES)
    stand.hub.look_after_channels()
    assert told(worker) == [{FEED: 100.0}]
    stand.hub.set_unconfirmed(NODES, False, 102.0)
    stand.hub.set_unconfirmed(PODS, False, 101.0)
    stand.hub.look_after_channels()
    assert told(worker) == []  # a few seconds do not matter
    stand.hub.set_unconfirmed(PODS, False, 104.0)
    stand.hub.look_after_channels()
    assert told(worker) == [{FEED: 104.0}]
    assert stand.hub.stale_feeds == []
    stand.hub.set_unconfirmed(NODES, True, 102.0)
    stand.hub.look_after_channels()
    assert told(worker) == [{}]
    assert stand.hub.stale_feeds == [FEED]
    late = stand.add_worker(2)
    assert told(late) == []
    stand.hub.set_unconfirmed(NODES, False, 105.0)
    stand.hub.look_after_channels()
    assert told(worker) == told(late) == [{FEED: 105.0}]
    stand.hub.close()
    for one in stand.workers:
        one.close()
