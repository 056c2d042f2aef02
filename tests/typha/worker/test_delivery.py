"""What clients are sent, on real sockets: snapshots, deltas, and what clients get that cannot keep up."""

import asyncio
import math

import msgspec
import pytest

from cache.state import cursor
from protocol import messages
from tests.harness import worker_stand
from tests.harness.worker_stand import FAST, HUB_LIMITS, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage
from typha.worker import channel, client

SMALL_BUFFER = 4096
PATIENT = msgspec.structs.replace(FAST, notsent_lowat_bytes=16 * 1024, ping_interval_seconds=30.0)
"""The kernel takes little for a client that does not read, and the client gets no ping."""
SMALL_LOG = msgspec.structs.replace(HUB_LIMITS, log_budget_bytes=2 * 1024 * 1024, segment_bytes=128 * 1024)


def churn(stage: WorkerStand, count: int, *, size: int = 20_000, names: int = 20) -> None:
    """Publishes batches of one object each."""
    for number in range(count):
        stage.put(pod(f"p{number % names}", str(number).rjust(size, "x"), version=number + 2))


async def fast_and_blocked(stage: WorkerStand) -> tuple[worker_stand.Peer, worker_stand.Peer, client.Client]:
    """Two peers in sync, of which the second does not read any more; and the server's end of the second."""
    stage.put(pod("a"))
    stage.in_sync()
    fast = await stage.subscribe()
    slow = await stage.subscribe(receive_buffer_bytes=SMALL_BUFFER)
    await stage.converged(fast, slow)
    return fast, slow, await stage.block(slow)


async def test_a_snapshot_then_what_changes(stage: WorkerStand) -> None:
    peer = await stage.subscribe()
    await stage.converged(peer)
    assert (peer.snapshots, peer.updates, len(peer.entries)) == (1, 0, 3)
    assert peer.hello is not None
    assert peer.hello.feed == worker_stand.FEED
    stage.put(pod("a", "y", version=2), pod("d", "x"))
    stage.delete("b")
    await stage.converged(peer)
    assert (peer.snapshots, peer.updates) == (1, 3)
    assert sorted(key.rpartition("/")[2] for key in peer.entries) == ["a", "c", "d"]
    stage.hub.status(worker_stand.PODS, messages.SyncStatus.RESYNC)
    stage.commit()
    await peer.read_until(lambda: peer.status is messages.SyncStatus.RESYNC)
    assert stage.disconnects == {}


async def test_a_change_that_changes_nothing_is_no_delivery(stage: WorkerStand) -> None:
    peer = await stage.subscribe()
    await stage.converged(peer)
    stage.put(pod("a", "x", version=7))
    stage.put(pod("b", "new", version=8))
    await stage.converged(peer)
    assert peer.updates == 1


@pytest.mark.parametrize("features", [frozenset[str](), frozenset({"zstd"})])
async def test_all_clients_of_a_format_get_the_same_bytes(open_stage: OpenStage, features: frozenset[str]) -> None:
    stage = await open_stage(PATIENT)
    stage.put(*(pod(name, "x") for name in ("a", "b", "c")))
    stage.in_sync()
    peers = [await stage.subscribe(features=features) for _ in range(40)]
    await stage.converged(*peers)
    churn(stage, 30, size=2_000)
    await stage.converged(*peers)
    assert len({peer.stream for peer in peers}) == 1
    assert len({peer.hello.connection_id for peer in peers if peer.hello}) == 40
    counts = stage.server.stats.feeds[worker_stand.FEED].counts
    assert counts.deliveries == 30 * 40
    assert counts.bytes_sent == 40 * len(peers[0].stream)
    assert counts.snapshots_sent == 40


async def test_both_formats_side_by_side(stage: WorkerStand) -> None:
    plain, compressed = await stage.subscribe(), await stage.subscribe(features=frozenset({"zstd"}))
    await stage.converged(plain, compressed)
    churn(stage, 10)
    await stage.converged(plain, compressed)
    assert len(compressed.received) < len(plain.received) / 10


async def test_a_client_that_an_interrupted_pass_left_at_a_segments_end_is_sent_the_rest(open_stage: OpenStage) -> None:
    stage = await open_stage(PATIENT, hub_limits=msgspec.structs.replace(HUB_LIMITS, segment_bytes=64 * 1024))
    stage.put(pod("a"))
    stage.in_sync()
    peers = [await stage.subscribe() for _ in range(2)]
    await stage.converged(*peers)
    [served] = {one.channel for one in stage.server.poller.clients.values()}
    assert served is not None
    left, gone = served.live.clients
    churn(stage, 2, size=40_000)  # in two segments of the log
    stage.server._hear_hub()
    stage.server.delivery.run(0.0)
    assert (served.flush_index, left.offset < served.log.end) == (1, True)
    served.forget(gone)
    for _ in range(3):
        stage.server.delivery.run(float("inf"))
    assert left.offset == served.log.end


async def test_a_blocked_client_leaves_the_pass_and_catches_up(open_stage: OpenStage) -> None:
    stage = await open_stage(PATIENT)
    fast, slow, blocked = await fast_and_blocked(stage)
    assert blocked.state is cursor.CursorState.FOLLOWING
    churn(stage, 40)
    await stage.converged(fast)
    assert blocked.index == -1
    assert blocked.offset < stage.channel.log.end
    await stage.converged(slow)
    assert slow.snapshots == 1
    assert slow.stream == fast.stream
    assert blocked.index >= 0
    assert not blocked.waiting
    stats = stage.server.stats
    assert stats.feeds[worker_stand.FEED].counts.deliveries == slow.updates + fast.updates
    assert stats.counts.catch_ups == 0
    assert stage.disconnects == {}


async def test_a_client_far_behind_waits_while_others_are_sent_something_and_converges(open_stage: OpenStage) -> None:
    paced = msgspec.structs.replace(PATIENT, slow_consumers_bytes_per_second=1)
    stage = await open_stage(paced)
    fast, slow, blocked = await fast_and_blocked(stage)
    churn(stage, 40)
    await stage.converged(fast)
    while math.isinf(stage.server.delivery.due_at):  # until it reads again, and has had its first turn
        slow.read()
        churn(stage, 1, size=10)
        await stage.converged(fast)
    assert not blocked.waiting
    assert not blocked.watching_write  # epoll would report its socket until its next turn
    assert blocked.offset < stage.channel.log.end
    await stage.converged(slow)
    assert slow.stream == fast.stream
    assert blocked.held_up_seconds == 0.0
    assert stage.disconnects == {}


async def test_a_client_that_falls_out_of_the_log_gets_the_rest_of_its_frame_and_a_new_snapshot(
    open_stage: OpenStage,
) -> None:
    stage = await open_stage(PATIENT, hub_limits=SMALL_LOG)
    fast, slow, blocked = await fast_and_blocked(stage)
    for _ in range(10):
        churn(stage, 25)
        assert stage.hub.retention.log_bytes < SMALL_LOG.log_budget_bytes * 1.5
        await stage.converged(fast)
    assert blocked.tail
    await stage.converged(slow)
    assert slow.snapshots == 2
    assert fast.snapshots == 1
    assert stage.server.stats.counts.catch_ups == 1
    assert blocked.state is cursor.CursorState.FOLLOWING
    stage.put(pod("last"))
    await stage.converged(fast, slow)
    assert stage.disconnects == {}


async def test_a_client_whose_snapshot_lost_its_log_gets_another_snapshot(open_stage: OpenStage) -> None:
    stage = await open_stage(PATIENT, hub_limits=SMALL_LOG)
    churn(stage, 100)
    stage.in_sync()
    slow = await stage.subscribe(receive_buffer_bytes=SMALL_BUFFER)
    server_end = await stage.client_of(slow)
    await eventually(lambda: server_end.waiting)
    assert server_end.state is cursor.CursorState.SNAPSHOT
    for _ in range(10):
        churn(stage, 50)
        await asyncio.sleep(0.01)
    assert server_end.state is cursor.CursorState.SNAPSHOT
    await stage.converged(slow)
    assert slow.snapshots == 2
    assert stage.server.stats.counts.catch_ups == 1
    assert stage.disconnects == {}


async def test_replaced_snapshots_and_old_segments_are_closed(open_stage: OpenStage) -> None:
    stage = await open_stage(PATIENT, hub_limits=SMALL_LOG)
    stage.in_sync()
    peer = await stage.subscribe()
    counts = []
    for _ in range(6):
        for _ in range(10):
            churn(stage, 25)
            await stage.converged(peer)
        counts.append(worker_stand.open_descriptors())
    assert max(counts[2:]) <= counts[1] + 14  # hub and worker hold seven descriptors for a segment


async def in_the_middle_of_a_pass(served: channel.WorkerChannel) -> None:
    for _ in range(1000):
        if served.flush_index:
            return
        await asyncio.sleep(0)
    pytest.fail("no pass was interrupted")


async def test_clients_at_the_beginning_of_an_interrupted_pass_get_what_was_published_meanwhile(
    open_stage: OpenStage,
) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, pass_seconds=0.0))
    stage.in_sync()
    peers = [await stage.subscribe() for _ in range(70)]
    await stage.converged(*peers)
    served = (await stage.client_of(peers[0])).channel
    assert served is not None
    stage.put(pod("first"))
    await in_the_middle_of_a_pass(served)
    stage.put(pod("second"))
    await stage.converged(*peers)


async def test_newcomers_get_their_snapshot_while_passes_never_end(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, pass_seconds=0.0, send_bytes=1024, snapshot_send_bytes=1024))
    churn(stage, 20, size=5_000)
    stage.in_sync()
    peers = [await stage.subscribe() for _ in range(40)]
    await stage.converged(*peers)
    newcomer = await stage.subscribe()
    turns = 0
    while newcomer.snapshots == 0:
        turns += 1
        stage.put(pod("busy", turns, version=turns + 10))
        for peer in (*peers, newcomer):
            peer.read()
        await asyncio.sleep(0)
        assert turns < 20_000
    await stage.converged(newcomer, *peers)


async def test_clients_that_vanish_during_a_pass_take_no_others_along(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, pass_seconds=0.0))
    stage.in_sync()
    peers = [await stage.subscribe() for _ in range(60)]
    await stage.converged(*peers)
    for round_number in range(10):
        stage.put(pod(f"round-{round_number}"))
        for _ in range(4):
            peers.pop(round_number % len(peers)).close()
        await asyncio.sleep(0)
    await stage.converged(*peers)
    await eventually(lambda: stage.disconnects == {"client-closed": 40})
    assert len(stage.server.poller.clients) == 20
