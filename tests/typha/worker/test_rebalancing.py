"""Clients that a worker sends to other replicas, on real sockets."""

from collections.abc import AsyncIterator

import pytest

from tests.harness.worker_stand import WorkerStand, eventually
from typha.ipc import messages as ipc
from typha.worker import policy


@pytest.fixture
async def stand() -> AsyncIterator[WorkerStand]:
    async with WorkerStand(policy.Policy()).running() as opened:
        opened.in_sync()
        yield opened


async def test_a_client_is_told_to_go_elsewhere(stand: WorkerStand) -> None:
    peers = [await stand.subscribe() for _ in range(4)]
    await stand.converged(*peers)
    stand.handle.send(ipc.SendAway(3))
    await eventually(lambda: stand.disconnects == {"rebalanced": 3})
    await eventually(lambda: sum(peer.read() or peer.goodbye is not None for peer in peers) == 3)
    gone = [peer for peer in peers if peer.goodbye is not None]
    assert len(gone) == 3
    for peer in gone:
        assert peer.goodbye is not None
        assert (peer.goodbye.reason, peer.goodbye.retry_after_milliseconds) == ("rebalanced", 60_000)


async def test_nobody_goes_who_is_not_in_sync(stand: WorkerStand) -> None:
    stand.holds_snapshots = True
    waiting = await stand.subscribe()
    silent = await stand.connect()
    await stand.client_of(waiting)
    stand.handle.send(ipc.SendAway(5))
    stand.handle.send(ipc.ListClients(1))
    await stand.client_of(silent)
    stand.holds_snapshots = False
    stand.make_snapshots()
    await stand.converged(waiting)
    assert stand.disconnects == {}


async def test_nobody_goes_who_has_not_been_sent_everything(stand: WorkerStand) -> None:
    slow = await stand.subscribe(receive_buffer_bytes=4096)
    quick = await stand.subscribe()
    await stand.converged(slow, quick)
    blocked = await stand.block(slow)
    await stand.converged(quick)
    stand.handle.send(ipc.SendAway(2))
    await eventually(lambda: stand.disconnects == {"rebalanced": 1})
    assert not blocked.is_closing()
    await eventually(lambda: quick.read() or quick.goodbye is not None)
