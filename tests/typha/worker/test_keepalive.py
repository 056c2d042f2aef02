"""Pings and deadlines, on real sockets and in virtual time."""

import asyncio
import collections
import functools
import random
import socket
import types
from typing import Any, cast

import msgspec
import pytest

from cache.state import cursor
from protocol import messages
from protocol.native import codec, frames
from tests.harness import full_transport, worker_stand
from tests.harness.worker_stand import FAST, FEED, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage
from typha import clock
from typha.worker import client, keepalive, policy

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("virtual_time")]

SHORT = msgspec.structs.replace(
    FAST,
    ping_interval_seconds=0.2,
    pong_timeout_seconds=0.6,
    handshake_timeout_seconds=0.3,
    no_progress_timeout_seconds=0.6,
    notsent_lowat_bytes=16 * 1024,
)
LOOK_SECONDS = 0.01
"""Peers look every 2 ms whether something has come."""


async def test_no_client_goes_without_bytes_for_longer_than_the_ping_interval(open_stage: OpenStage) -> None:
    limits = msgspec.structs.replace(FAST, ping_interval_seconds=0.8)
    stage = await open_stage(limits)
    held = [await stage.subscribe() for _ in range(20)]  # before the first sync
    for peer in held:
        await peer.read_until(lambda: held[0].hello)
    await asyncio.gather(*(peer.read_until(lambda: held[0].pings >= 3) for peer in held))
    assert {peer.snapshots for peer in held} == {0}
    stage.in_sync()
    stage.put(pod("a"))
    live = [await stage.subscribe() for _ in range(20)]
    await stage.converged(*held, *live)
    await asyncio.gather(*(peer.read_until(lambda: live[0].pings >= 3) for peer in (*held, *live)))
    for peer in (*held, *live):
        assert peer.longest_silence_seconds < 0.8 + LOOK_SECONDS
        assert peer.pings >= 2
    answered = sum(peer.pings for peer in (*held, *live))
    await eventually(lambda: stage.server.stats.pongs_received == answered)
    assert stage.disconnects == {}


def has_all(stage: WorkerStand, peer: worker_stand.Peer) -> bool:
    return peer.entries == stage.content


async def churn(stage: WorkerStand, *peers: worker_stand.Peer, seconds: float) -> None:
    """Makes small changes all the time, which the peers read at once."""
    until = clock.monotonic() + seconds
    version = 1
    while clock.monotonic() < until:
        version += 1
        stage.put(pod("a", f"{version:0300}", version=version))
        for peer in peers:
            await peer.read_until(functools.partial(has_all, stage, peer))
        await asyncio.sleep(0.02)


async def test_a_client_that_is_sent_data_and_reads_it_needs_no_ping(stage: WorkerStand) -> None:
    peer = await stage.subscribe()
    await stage.converged(peer)
    await churn(stage, peer, seconds=4 * FAST.ping_interval_seconds)
    assert peer.pings == 0


@pytest.mark.looptime(False)  # it depends on times that the kernel takes
async def test_a_peer_that_does_not_read_is_seen_to_lag_whatever_its_host_takes(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, unread_seconds=0.3))
    stage.put(*(pod(name, "x") for name in ("a", "b", "c")))
    stage.in_sync()
    reading, deaf = await stage.subscribe(), await stage.subscribe(receive_buffer_bytes=1 << 20)
    await stage.converged(reading, deaf)
    server_end = await stage.client_of(deaf)
    await churn(stage, reading, seconds=3 * FAST.ping_interval_seconds)
    assert not server_end.waiting  # its socket has taken everything
    number = stage.channel.number
    await eventually(lambda: stage.handle.report.channels[number].lag_seconds > 0.3)
    assert stage.handle.report.channels[number].lag_bytes > 0
    await stage.converged(deaf)
    await churn(stage, reading, deaf, seconds=0.3)
    await eventually(lambda: stage.handle.report.channels[number].lag_seconds < 0.3)
    assert stage.disconnects == {}


@pytest.mark.parametrize("sent", [b"", frames.PREFACE[:3], frames.PREFACE + b"\0\0\1"])
async def test_a_hello_that_never_comes(open_stage: OpenStage, sent: bytes) -> None:
    stage = await open_stage(SHORT)
    begun = clock.monotonic()
    peer = await stage.connect()
    if sent:
        peer.send(sent)
    await peer.read_to_end()
    assert clock.monotonic() - begun >= 0.3
    assert stage.disconnects == {"handshake-timeout": 1}
    assert not peer.received


async def test_bytes_that_trickle_do_not_prolong_the_handshake(open_stage: OpenStage) -> None:
    stage = await open_stage(SHORT)
    peer = await stage.connect()
    hello = frames.PREFACE + frames.pack_frame(codec.encode(messages.ClientHello(feed=FEED, agent="x" * 1000)))
    for position in range(len(hello)):
        try:
            peer.send(hello[position : position + 1])
        except (BrokenPipeError, ConnectionResetError):
            break
        peer.read()
        if peer.ended:
            break
        await asyncio.sleep(0.01)
    await eventually(lambda: stage.disconnects == {"handshake-timeout": 1})


async def test_many_silent_connections_are_closed_a_few_at_a_time(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(SHORT, expired_at_a_time=7))
    stage.in_sync()
    good = await stage.subscribe()
    await stage.converged(good)
    silent = [await stage.connect() for _ in range(20)]
    await asyncio.gather(
        good.read_until(lambda: all(peer.ended for peer in silent)), *(peer.read_to_end() for peer in silent)
    )
    assert stage.disconnects == {"handshake-timeout": 20}
    assert not stage.server.connections.handshaking
    stage.put(pod("a"))
    await stage.converged(good)


async def test_pings_without_pongs(open_stage: OpenStage) -> None:
    stage = await open_stage(SHORT)
    stage.in_sync()
    good, mute = await stage.subscribe(), await stage.subscribe()
    mute.answers_pings = False
    await asyncio.gather(good.read_until(lambda: stage.disconnects), mute.read_to_end())
    assert mute.pings >= 2
    assert stage.disconnects == {"pong-timeout": 1}
    assert good.pings >= 2


async def test_a_peer_that_takes_nothing_is_given_up(open_stage: OpenStage) -> None:
    stage = await open_stage(SHORT)
    stage.in_sync()
    good, stuck = await stage.subscribe(), await stage.subscribe(receive_buffer_bytes=4096)
    await stage.converged(good, stuck)
    await stage.block(stuck)
    await good.read_until(lambda: stage.disconnects)
    assert stage.disconnects == {"no-progress": 1}
    await stage.converged(good)


async def test_a_peer_that_is_sent_data_and_whose_host_is_gone_is_given_up(open_stage: OpenStage) -> None:
    void = full_transport.VoidTransport()
    stage = await open_stage(SHORT, bytes_through=void)
    stage.in_sync()
    good, gone = await stage.subscribe(), await stage.subscribe()
    await stage.converged(good, gone)
    server_end = await stage.client_of(gone)
    void.gone.add(server_end.fd)
    async with asyncio.timeout(180):
        while not stage.disconnects:
            await churn(stage, good, seconds=0.1)
    assert not server_end.waiting  # its socket was never full
    assert stage.disconnects == {"pong-timeout": 1}


async def test_a_peer_that_takes_little_is_kept(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(SHORT, pong_timeout_seconds=30.0))
    stage.in_sync()
    slow = await stage.subscribe(receive_buffer_bytes=4096)
    await stage.converged(slow)
    server_end = await stage.block(slow)
    until = clock.monotonic() + 3 * SHORT.no_progress_timeout_seconds
    while clock.monotonic() < until:
        assert stage.disconnects == {}
        slow.read(2048)
        if not server_end.waiting:
            await stage.block(slow)
        await asyncio.sleep(0.02)
    await stage.converged(slow)


async def test_a_pong_may_take_as_long_as_reading_what_was_sent_before_the_ping(open_stage: OpenStage) -> None:
    limits = msgspec.structs.replace(
        SHORT, pong_timeout_seconds=1.2, no_progress_timeout_seconds=5.0, notsent_lowat_bytes=256 * 1024
    )
    stage = await open_stage(limits)
    stage.in_sync()
    slow = await stage.subscribe(receive_buffer_bytes=4096)
    await stage.converged(slow)
    server_end = await stage.client_of(slow)
    stage.put(pod("a", random.Random(1).randbytes(40_000).hex()))
    until = clock.monotonic() + 3 * limits.pong_timeout_seconds
    while clock.monotonic() < until:
        assert stage.disconnects == {}
        assert not server_end.waiting
        slow.read(256)
        await asyncio.sleep(0.02)
    assert server_end.liveness.pinged_at
    assert clock.monotonic() - server_end.liveness.pinged_at > limits.pong_timeout_seconds
    await stage.converged(slow)


async def test_a_snapshot_that_is_not_taken_is_given_up(open_stage: OpenStage) -> None:
    stage = await open_stage(SHORT)
    stage.put(*(pod(f"p{number}", "x" * 20_000) for number in range(100)))
    stage.in_sync()
    stuck = await stage.subscribe(receive_buffer_bytes=4096)
    server_end = await stage.client_of(stuck)
    await eventually(lambda: server_end.state is cursor.CursorState.CLOSING)
    assert stage.disconnects == {"no-progress": 1}


async def test_a_full_socket_has_no_room_for_a_ping_and_that_is_no_reason_to_close(open_stage: OpenStage) -> None:
    full = full_transport.FullTransport()
    stage = await open_stage(SHORT, bytes_through=full)
    stage.in_sync()
    peer = await stage.subscribe()
    await stage.converged(peer)
    full.full.add((await stage.client_of(peer)).fd)
    await eventually(lambda: full.refused >= 3)
    assert stage.disconnects == {}
    assert stage.server.stats.pings_sent == 0
    stage.put(pod("a"))
    await stage.converged(peer)


async def test_a_hello_that_waited_for_the_worker_is_not_overdue(stage: WorkerStand) -> None:
    peer, silent = await stage.connect(), await stage.connect()
    for one in (peer, silent):
        await aged(stage, one, 100.0)
    peer.say(messages.ClientHello(feed=stage.feed.name, agent="test"))
    stage.server.keepalive.expire_handshakes(clock.monotonic())  # the worker has had no turn to read it
    assert stage.disconnects == {"handshake-timeout": 1}
    await stage.converged(peer)


async def aged(stage: WorkerStand, peer: worker_stand.Peer, seconds: float) -> client.PendingHello:
    """Makes a connection older, as if it had been accepted earlier; its pending hello."""
    newcomer = await stage.client_of(peer)
    newcomer.connected_at -= seconds
    assert newcomer.hello is not None
    newcomer.hello.restart(newcomer.connected_at)
    return newcomer.hello


async def test_a_peer_that_sends_a_byte_at_a_time_does_not_stay_forever(stage: WorkerStand) -> None:
    peer = await stage.connect()
    timeout_seconds = FAST.handshake_timeout_seconds
    pending = await aged(stage, peer, timeout_seconds)
    for _ in range(20):  # at every check another byte has just arrived, and the worker has not read it
        await aged(stage, peer, timeout_seconds)
        peer.send(b"\0")
        stage.server.keepalive.expire_handshakes(clock.monotonic())
        if stage.disconnects:
            break
        assert pending.own_seconds(clock.monotonic()) < timeout_seconds
    assert stage.disconnects == {"handshake-timeout": 1}


class CountingKeepalive(keepalive.Keepalive):
    """Looks after nobody, and each look takes a millisecond."""

    def __init__(self, clients: list[client.Client]) -> None:
        self.looks: collections.Counter[client.Client] = collections.Counter()
        self.now = 100.0
        poller_of_them = types.SimpleNamespace(clients={current.fd: current for current in clients})
        super().__init__(policy.Policy(), cast("Any", poller_of_them), *(cast("Any", None),) * 3)
        for current in clients:
            self.add(current)

    def _look_after(self, current: client.Client, now: float) -> None:
        self.looks[current] += 1
        self.now += 0.001


@pytest.mark.looptime(False)
def test_a_turn_looks_after_as_many_clients_as_there_is_time_for_and_the_next_turns_after_the_others() -> None:
    sockets = [socket.socket() for _ in range(200)]
    clients = [client.Client(one, "10.0.0.1:1", number=one.fileno(), slot=5, now=0.0) for one in sockets]
    kept = CountingKeepalive(clients)
    turns = 1
    with clock.replaced(monotonic=lambda: kept.now, time_ns=lambda: 0):
        while not kept.tick(100.0):
            assert kept.looks.total() <= 6 * turns
            turns += 1
        assert turns >= len(clients) / 6
        assert kept.looks == dict.fromkeys(clients, 1)
        kept.now = 100.0 + policy.Policy().ping_interval_seconds
        while not kept.tick(kept.now):
            pass
    assert set(kept.looks.values()) == {2}
    for one in sockets:
        one.close()
