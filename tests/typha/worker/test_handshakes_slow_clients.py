"""TLS handshakes that wait: for the worker, which is not held against the client, or for a slow or silent client."""

import asyncio
import functools
import socket
import threading

import msgspec
import pytest

from tests.harness import worker_stand
from tests.harness.worker_stand import FAST, Peer, WorkerStand, eventually
from tests.typha.conftest import OpenTlsStage
from typha.worker import client, handshake_steps, handshakes, tls

pytestmark = pytest.mark.slow

HURRIED = msgspec.structs.replace(FAST, handshake_timeout_seconds=3.0)
"""Long enough for an innocent handshake of this process on a busy machine."""


async def test_a_handshake_that_is_not_finished_runs_out_of_time(open_tls: OpenTlsStage) -> None:
    stage = await open_tls(HURRIED)
    context = stage.peers_tls
    stage.peers_tls = None
    half = await stage.connect()
    half.send(b"\x16\x03\x01")
    stage.peers_tls = context
    without_hello = await stage.connect()
    good = await stage.subscribe()
    await stage.converged(good)
    await asyncio.gather(half.read_to_end(), without_hello.read_to_end())
    assert stage.disconnects == {"handshake-timeout": 2}
    await stage.converged(good)


class HeldSteps:
    """Takes handshake steps; those of a batch wait in the thread until `opened` is set."""

    def __init__(self) -> None:
        self.entered: list[socket.socket] = []
        self.opened = threading.Event()

    def __call__(
        self, batch: list[handshake_steps.Handshake], client_tls: tls.ClientTls
    ) -> list[handshake_steps.Verdict]:
        """In the thread: waits, then takes the steps."""
        self.entered += [handshake.connection for handshake in batch]
        self.opened.wait(worker_stand.TIMEOUT_SECONDS)
        return handshake_steps.take_steps(batch, client_tls)


def _more_than(stage: WorkerStand, count: int) -> bool:
    return len(stage.server.poller.clients) > count


async def in_handshake(stage: WorkerStand, count: int) -> list[tuple["asyncio.Task[Peer]", client.Client]]:
    """Connects clients one after another; each with the server's end, whose first step may run."""
    begun = []
    for _ in range(count):
        open_before = len(stage.server.poller.clients)
        task = asyncio.create_task(stage.subscribe())
        await eventually(functools.partial(_more_than, stage, open_before))
        begun.append((task, list(stage.server.poller.clients.values())[-1]))
        await asyncio.sleep(0.02)
    return begun


async def test_the_oldest_goes_first_and_a_client_that_has_given_up_is_passed_over(open_tls: OpenTlsStage) -> None:
    steps = HeldSteps()
    stage = await open_tls(msgspec.structs.replace(FAST, handshake_given_up_seconds=0.0), take_steps=steps)
    begun = await in_handshake(stage, 2)
    await eventually(lambda: len(steps.entered) == 1)
    context, stage.peers_tls = stage.peers_tls, None
    given_up = await stage.connect()
    given_up.send(b"\x16\x03\x01")
    await eventually(lambda: len(stage.server.poller.clients) == 3)
    stage.peers_tls = context
    begun += await in_handshake(stage, 1)
    given_up.close()
    order = [one.socket for _, one in begun]
    steps.opened.set()
    await stage.converged(*[await task for task, _ in begun])
    assert list(dict.fromkeys(steps.entered)) == order
    assert stage.disconnects == {"client-closed": 1}


async def test_clients_that_wait_for_the_worker_are_not_late_but_a_silent_one_is(open_tls: OpenTlsStage) -> None:
    steps = HeldSteps()
    stage = await open_tls(HURRIED, take_steps=steps)
    begun = await in_handshake(stage, 8)
    context, stage.peers_tls = stage.peers_tls, None
    silent = await stage.connect()
    stage.peers_tls = context
    await eventually(lambda: stage.disconnects == {"handshake-timeout": 1})
    await silent.read_to_end()
    await asyncio.sleep(HURRIED.handshake_timeout_seconds)  # all have waited for longer than the timeout
    steps.opened.set()
    peers = [await task for task, _ in begun]
    await stage.converged(*peers)
    assert stage.disconnects == {"handshake-timeout": 1}


async def test_peers_that_send_a_byte_at_a_time_keep_no_client_out(open_tls: OpenTlsStage) -> None:
    # The peers go on for longer than the timeout.
    stage = await open_tls(HURRIED)
    context, stage.peers_tls = stage.peers_tls, None
    dripping = [await stage.connect() for _ in range(handshakes._PLACES + 8)]
    stage.peers_tls = context

    async def drip(peer: Peer) -> None:
        for byte in b"\x16\x03\x01\x02\x00\x01" + bytes(500):
            try:
                peer.send(bytes([byte]))
            except (BrokenPipeError, ConnectionResetError):
                return
            await asyncio.sleep(0.1)

    drips = [asyncio.create_task(drip(peer)) for peer in dripping]
    await stage.converged(await stage.subscribe())
    await asyncio.wait(drips)
    assert stage.disconnects == {"handshake-timeout": len(dripping)}
    assert not stage.server.connections.handshaking


async def test_a_close_waits_for_the_step_that_runs(open_tls: OpenTlsStage) -> None:
    steps = HeldSteps()
    # One timeout closes the connection even though it waits for the worker.
    limits = msgspec.structs.replace(FAST, handshake_timeout_seconds=0.3, handshake_timeouts_max=1)
    stage = await open_tls(limits, take_steps=steps)
    [(task, stepping)] = await in_handshake(stage, 1)
    await eventually(lambda: stage.disconnects == {"handshake-timeout": 1})
    for _ in range(5):  # several checks for overdue connections
        await asyncio.sleep(0.1)
        assert stepping.socket.fileno() == stepping.fd
    steps.opened.set()
    await eventually(lambda: not stage.server.poller.clients)
    assert stepping.socket.fileno() == -1
    assert not stage.server.connections.closing
    await asyncio.wait([task])
