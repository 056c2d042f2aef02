"""Places and memory are limited: who has said nothing gives way, and good clients never do."""

import asyncio
import threading

import msgspec
import pytest

from protocol import messages
from protocol.native import frames
from tests.harness import repository, typha_peer, worker_stand
from tests.harness.worker_stand import FAST, Peer, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage, OpenTlsStage
from typha.worker import trimming

PLACES = 16
TIGHT = msgspec.structs.replace(FAST, connections_max=PLACES)
HALF_A_HELLO = frames.PREFACE + frames.HEADER.pack(5000, 0) + bytes(4000)
TYPHA_HELLO = (repository.DATA / "typha-client-hello.bin").read_bytes()


def open_connections(stage: WorkerStand) -> int:
    return len(stage.server.poller.clients)


async def connected(stage: WorkerStand, count: int) -> list[Peer]:
    """Silent connections, which the worker has accepted in this order."""
    accepted = stage.server.stats.counts.accepted
    peers = [await stage.connect() for _ in range(count)]
    await eventually(lambda: stage.server.stats.counts.accepted == accepted + count)
    return peers


async def ended(*peers: Peer) -> None:
    await asyncio.gather(*(peer.read_to_end() for peer in peers))


async def test_silent_connections_give_way_the_oldest_first(open_stage: OpenStage) -> None:
    stage = await open_stage(TIGHT)
    stage.in_sync()
    good = [await stage.subscribe() for _ in range(3)]
    await stage.converged(*good)
    silent = await connected(stage, PLACES)
    await ended(*silent[:3])
    assert open_connections(stage) == PLACES
    assert stage.disconnects == {"too-many-connections": 3}
    late = await stage.subscribe()
    await stage.converged(late)
    assert stage.disconnects == {"too-many-connections": 4}
    assert not any(peer.ended or peer.read() for peer in silent[4:])
    stage.put(pod("a"))
    await stage.converged(*good, late)


async def test_a_flood_of_silent_connections_keeps_nobody_out(open_stage: OpenStage) -> None:
    stage = await open_stage(TIGHT)
    stage.in_sync()
    good: list[Peer] = []
    for _ in range(10):
        await connected(stage, 2 * PLACES)
        good.append(await stage.subscribe())
        await stage.converged(*good)
        assert open_connections(stage) <= PLACES
    assert stage.disconnects.keys() == {"too-many-connections"}
    assert not any(peer.ended for peer in good)


async def test_when_all_places_are_taken_by_clients_a_native_newcomer_is_told_when_to_come_again(
    open_stage: OpenStage,
) -> None:
    stage = await open_stage(TIGHT)
    stage.in_sync()
    good = [await stage.subscribe() for _ in range(PLACES - PLACES // 8)]
    await stage.converged(*good)
    late = [await stage.subscribe() for _ in range(5)]
    await ended(*late)
    for peer in late:
        assert peer.goodbye is not None
        assert peer.goodbye.reason == "too-many-connections"
        assert peer.goodbye.retry_after_milliseconds > 0
        assert peer.snapshots == 0
    assert stage.disconnects == {"too-many-connections": 5}
    good[0].close()
    await eventually(lambda: stage.disconnects.get("client-closed"))
    again = await stage.subscribe()
    await stage.converged(again, *good[1:])


async def test_a_refused_connection_that_is_held_gives_its_place_to_a_newcomer(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(TIGHT, refusal_hold_seconds=600.0), feed_name="felix")
    stage.in_sync()
    good = [await typha_peer.join(stage) for _ in range(PLACES - PLACES // 8)]
    await stage.converged(*good)
    late = []
    for number in range(5):
        late.append(await stage.connect())
        late[-1].send(TYPHA_HELLO)
        await eventually(lambda: stage.disconnects == {"too-many-connections": len(late)})
        assert open_connections(stage) == min(PLACES, len(good) + number + 1)
    await ended(*late[:3])
    assert not any(peer.ended or peer.read() for peer in late[3:])
    assert not late[0].received


async def test_an_address_with_many_silent_connections_loses_them_first(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, connections_max=40))
    stage.in_sync()
    elsewhere = worker_stand.Peer(worker_stand.connected_from("127.0.0.9", stage.address))
    try:
        await stage.client_of(elsewhere)
        silent = await connected(stage, 80)
        await ended(*silent[:40])
        assert not elsewhere.read()
        elsewhere.say(messages.ClientHello(feed=stage.feed.name, agent="from a slow place"))
        await stage.converged(elsewhere)
    finally:
        elsewhere.close()


async def test_a_hello_that_waits_for_the_worker_is_not_silent(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(TIGHT, hello_seconds=-1.0))
    stage.in_sync()
    peers = await connected(stage, PLACES)
    for peer in peers:  # the worker has no turn in between, and then reads one hello a turn
        peer.say(messages.ClientHello(feed=stage.feed.name, agent="test"))
    late = [await stage.connect() for _ in range(5)]
    await ended(*late)
    await eventually(lambda: not stage.server.connections.handshaking)
    for peer in peers:
        await eventually(lambda: peer.read() or peer.status or peer.ended)  # noqa: B023 - it is called at once
    assert sum(peer.goodbye is None for peer in peers) == PLACES - PLACES // 8
    assert stage.disconnects == {"too-many-connections": len(late) + PLACES // 8}


async def test_unfinished_hellos_share_one_budget(open_stage: OpenStage) -> None:
    budget = 40_000
    stage = await open_stage(msgspec.structs.replace(FAST, unproven_bytes_max=budget))
    stage.in_sync()
    good = await stage.subscribe()
    await stage.converged(good)
    peers = await connected(stage, 12)
    for peer in peers:
        peer.send(HALF_A_HELLO)
    await eventually(lambda: stage.disconnects)
    await eventually(
        lambda: not any(stage.server.poller.has_unread(one) for one in stage.server.connections.handshaking)
    )
    assert stage.server.connections.unproven_bytes <= budget
    kept = budget // (len(HALF_A_HELLO) - len(frames.PREFACE) + 1024)
    assert stage.disconnects == {"too-many-connections": 12 - kept}
    late = await stage.subscribe()
    await stage.converged(good, late)
    assert stage.disconnects == {"too-many-connections": 12 - kept}


async def test_memory_is_counted_down_when_a_connection_ends_or_a_message_is_complete(stage: WorkerStand) -> None:
    held = stage.server.connections
    peer, half = await stage.connect(), await stage.connect()
    await stage.client_of(half)
    half.send(HALF_A_HELLO)
    peer.connection.send(messages.ClientHello(feed=stage.feed.name, agent="test"))
    hello = peer.connection.data_to_send()
    peer.send(hello[:-1])
    await eventually(lambda: held.unproven_bytes > 2 * 1024 + 4000 + len(hello) - len(frames.PREFACE) - 2)
    peer.send(hello[-1:])
    await stage.converged(peer)
    half.close()
    await eventually(lambda: held.unproven_bytes == 0)


async def test_parts_of_messages_after_the_hello_count_too(open_stage: OpenStage) -> None:
    budget = 10_000
    stage = await open_stage(msgspec.structs.replace(FAST, unproven_bytes_max=budget))
    stage.in_sync()
    peers = [await stage.subscribe() for _ in range(20)]
    await stage.converged(*peers)
    for peer in peers:
        peer.send(frames.HEADER.pack(1500, 0) + bytes(1000))
    await eventually(lambda: sum(stage.disconnects.values()) == 20 - budget // 1005)
    assert stage.server.connections.unproven_bytes <= budget
    assert stage.disconnects.keys() == {"too-many-connections"}


async def test_so_many_connections_without_a_hello_use_up_the_budget_too(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, unproven_bytes_max=10 * 1024))
    stage.in_sync()
    await connected(stage, 25)
    assert open_connections(stage) == 10
    assert stage.disconnects == {"too-many-connections": 15}
    await stage.converged(await stage.subscribe())


async def test_unfinished_tls_handshakes_share_the_budget(open_tls: OpenTlsStage) -> None:
    stage = await open_tls(msgspec.structs.replace(FAST, unproven_bytes_max=200_000))
    good = await stage.subscribe()
    await stage.converged(good)
    context, stage.peers_tls = stage.peers_tls, None
    stalled = [await stage.connect() for _ in range(10)]
    assert context is not None
    hello = worker_stand.client_hello(context)
    for peer in stalled:
        peer.send(hello)
    await eventually(lambda: sum(stage.disconnects.values()) >= 10 - 200_000 // 51_024)
    assert stage.disconnects == {"too-many-connections": 10 - 200_000 // 51_024}
    stage.peers_tls = context
    await stage.converged(good, await stage.subscribe())


async def test_memory_is_given_back_after_many_connections_that_said_nothing(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    trims: list[int] = []
    stage = await open_stage()
    stage.in_sync()
    monkeypatch.setattr(trimming, "trim", lambda: trims.append(stage.server.connections.ended_unproven))
    for _ in range(6):
        for peer in await connected(stage, 50):
            peer.close()
    await eventually(lambda: trims)
    assert trims[0] >= 250
    assert len(trims) == 1
    for peer in [await stage.subscribe() for _ in range(5)]:
        await stage.converged(peer)
        peer.close()
    await eventually(lambda: not stage.server.poller.clients)
    assert stage.server.connections.ended_unproven == 300


def test_without_a_thread_nothing_is_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot_start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", cannot_start)
    trimming.in_thread(trimming.trim)


def test_trimming_is_possible_here() -> None:
    trimming.trim()
