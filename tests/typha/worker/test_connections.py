"""What peers say: good hellos, and every bad one; each ends with one reason, and nobody else notices."""

import asyncio
import random
import socket
import time

import msgspec
import pytest

from protocol import messages
from protocol.native import codec, frames
from protocol.reasons import DisconnectReason
from tests.harness import full_transport, repository
from tests.harness.support import FAST, FEED, Peer, Stage, eventually, pod
from tests.typha.conftest import OpenStage
from typha import clock
from typha.worker import protocol_adapters

TYPHA_HELLO = (repository.DATA / "typha-client-hello.bin").read_bytes()
"""What a Go client of Calico sends first, recorded."""
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(190))
HELLO = frames.PREFACE + frames.pack_frame(codec.encode(messages.ClientHello(feed=FEED, agent="test")))


async def ends(stage: Stage, peer: Peer, reason: str) -> None:
    """The server closes, for this one reason, and goes on serving."""
    await peer.read_to_end()
    await eventually(lambda: not stage.fanout.poller.clients)
    assert stage.disconnects == {reason: 1}
    assert not stage.fanout.sessions.handshaking
    assert not stage.fanout.sessions.closing
    good = await stage.subscribe()
    await stage.converged(good)


async def disconnected(stage: Stage, reasons: dict[str, int]) -> None:
    """So many connections have ended for these reasons."""
    await eventually(lambda: stage.disconnects == reasons)


async def test_what_the_server_says_of_itself(stage: Stage) -> None:
    peer = await stage.connect()
    peer.say(
        messages.ClientHello(
            feed=FEED,
            agent="test",
            versions=(9, 1),
            features=frozenset({"zstd", "positions", "telepathy"}),
            resume=messages.ResumePosition(bytes(16), 5),
            chunk_digests=(1, 2),
            subscription={"node": "n1"},
        )
    )
    await stage.converged(peer)
    hello = peer.hello
    assert hello is not None
    assert hello.version == 1
    assert hello.features == {"zstd"}
    assert hello.not_supported == {"positions", "telepathy", "resume", "chunk-digests", "subscriptions"}
    assert hello.incarnation == bytes(16)
    assert hello.software == protocol_adapters.SOFTWARE
    assert hello.ping_interval_milliseconds == 400
    assert hello.max_frame_bytes == FAST.max_frame_bytes
    conversation = (await stage.client_of(peer)).conversation
    assert conversation is not None
    assert conversation.agent == "test"


async def test_an_answer_leaves_with_the_snapshot_or_soon_without_one(stage: Stage) -> None:
    stage.put(pod("a"))
    stage.in_sync()
    stage.holds_snapshots = True
    peer = await stage.subscribe()
    await peer.read_until(lambda: peer.hello, seconds=2.0)
    assert peer.snapshots == 0
    stage.holds_snapshots = False
    stage.make_snapshots()
    await stage.converged(peer)
    other = await stage.subscribe()
    await eventually(lambda: other.read(1 << 16))
    assert other.snapshots == 1


async def test_a_hello_in_single_bytes(stage: Stage) -> None:
    peer = await stage.connect()
    peer.connection.send(messages.ClientHello(feed=FEED, agent="slow typist"))
    data = peer.connection.data_to_send()
    for position in range(len(data)):
        peer.send(data[position : position + 1])
        if position + 1 < len(data):
            await asyncio.sleep(0.001)  # likely one read a byte; nothing depends on it
    await stage.converged(peer)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (messages.ClientHello(feed="nowhere", agent="x"), "unknown-feed"),
        (messages.ClientHello(feed=FEED, agent="x", versions=(2, 3)), "unsupported-version"),
    ],
)
async def test_a_refused_hello_gets_a_goodbye(stage: Stage, hello: messages.ClientHello, reason: str) -> None:
    peer = await stage.connect()
    peer.say(hello)
    await ends(stage, peer, reason)
    assert peer.goodbye is not None
    assert peer.goodbye.reason == reason
    assert peer.goodbye.text
    assert (peer.goodbye.retry_after_milliseconds > 0) == (reason == "unknown-feed")
    assert peer.hello is None


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00TYPHO\r\n", b"\x99" * 16, b"\x00\x01"],
)
async def test_bytes_of_no_protocol_are_closed_at_once(stage: Stage, first: bytes) -> None:
    peer = await stage.connect()
    peer.send(first)
    await ends(stage, peer, "bad-preface")


async def test_random_bytes(stage: Stage) -> None:
    choose = random.Random(7)
    peers = [await stage.connect() for _ in range(50)]
    for peer in peers:
        peer.send(choose.choice([b"", frames.PREFACE]) + choose.randbytes(choose.randrange(16, 4000)))
    await asyncio.gather(*(peer.read_to_end() for peer in peers))
    await eventually(lambda: not stage.fanout.poller.clients)
    assert sum(stage.disconnects.values()) == 50
    assert stage.disconnects.keys() <= {"bad-preface", "protocol-error", "message-too-large", "unsupported-protocol"}


@pytest.mark.parametrize(("first", "reason"), [(TYPHA_HELLO, "unknown-feed"), (TLS_HELLO, "unsupported-protocol")])
async def test_a_client_that_cannot_be_told_why_it_is_refused_is_held_in_silence_then_closed(
    stage: Stage, first: bytes, reason: str
) -> None:
    peer = await stage.connect()
    peer.send(first)
    await eventually(lambda: stage.disconnects == {reason: 1})
    assert len(stage.fanout.sessions.closing) == 1
    assert not peer.read()
    assert not peer.ended
    await ends(stage, peer, reason)
    assert not peer.received


async def test_a_typha_client_whose_first_bytes_come_in_pieces(stage: Stage) -> None:
    peer = await stage.connect()
    client = await stage.client_of(peer)
    peer.send(TYPHA_HELLO[:3])
    await eventually(lambda: client.conversation and client.conversation.pending_bytes)
    assert stage.disconnects == {}
    peer.send(TYPHA_HELLO[3:])
    await ends(stage, peer, "unknown-feed")


async def test_held_refusals_are_limited(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, max_held_refusals=3, refusal_hold_seconds=30.0))
    peers = [await stage.connect() for _ in range(5)]
    for number, peer in enumerate(peers):
        peer.send(TYPHA_HELLO)
        await disconnected(stage, {"unknown-feed": number + 1})
    await peers[0].read_to_end()
    await peers[1].read_to_end()
    assert len(stage.fanout.poller.clients) == 3
    peers[3].close()
    await eventually(lambda: len(stage.fanout.poller.clients) == 2)
    assert stage.disconnects == {"unknown-feed": 5}


async def test_a_hello_of_100_megabytes_is_refused_by_its_length(stage: Stage) -> None:
    peer = await stage.connect()
    peer.send(frames.PREFACE + frames.HEADER.pack(100_000_000, 0) + b"\x92")
    await ends(stage, peer, "message-too-large")
    assert peer.goodbye is not None
    assert "100000000" in peer.goodbye.text


async def test_a_refused_peer_that_goes_on_sending_is_not_read(stage: Stage) -> None:
    peer = await stage.connect()
    peer.send(frames.PREFACE + frames.HEADER.pack(100_000_000, 0))
    await eventually(lambda: stage.disconnects == {"message-too-large": 1})
    sent = 0
    while not peer.ended:
        try:
            sent += peer.socket.send(bytes(65536))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            peer.read()
            await asyncio.sleep(0.01)
    assert sent < 16_000_000
    assert stage.disconnects == {"message-too-large": 1}


@pytest.mark.parametrize(
    "frame",
    [
        frames.HEADER.pack(0, 0),
        frames.HEADER.pack(2, 1) + b"x",
        frames.pack_frame(b"\xc1"),
        frames.pack_frame(codec.encode(messages.Ping())),
        frames.pack_frame(codec.encode(messages.Pong(3))),
        frames.pack_frame(b"\x92\x01\x80"),
    ],
)
async def test_a_frame_that_breaks_the_protocol(stage: Stage, frame: bytes) -> None:
    peer = await stage.connect()
    peer.send(frames.PREFACE + frame)
    await ends(stage, peer, "protocol-error")
    assert peer.goodbye is not None
    assert peer.goodbye.reason == "protocol-error"


async def test_a_second_hello_ends_a_client_that_was_served(stage: Stage) -> None:
    peer = await stage.subscribe()
    await stage.converged(peer)
    peer.say(messages.ClientHello(feed=FEED, agent="again"))
    await ends(stage, peer, "protocol-error")
    assert peer.goodbye is not None
    assert "ClientHello" in peer.goodbye.text


async def test_clients_hang_up_in_every_way(stage: Stage) -> None:
    for number, how in enumerate(("close", "half", "reset", "goodbye", "before hello"), start=1):
        peer = await (stage.connect() if how == "before hello" else stage.subscribe())
        if how != "before hello":
            await stage.converged(peer)
        else:
            await stage.client_of(peer)
        if how == "half":
            peer.socket.shutdown(socket.SHUT_WR)
        elif how == "goodbye":
            peer.say(messages.Goodbye("client-closed"))
        else:
            if how == "reset":
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            peer.close()
        await disconnected(stage, {"client-closed": number})
    await eventually(lambda: not stage.fanout.poller.clients)


async def test_a_flood_of_messages_is_heard_a_little_at_a_time(stage: Stage) -> None:
    flooder, peer = await stage.subscribe(), await stage.subscribe()
    await stage.converged(flooder, peer)
    pong = frames.pack_frame(codec.encode(messages.Pong(3)))
    sent = flooder.socket.send(pong * 20_000)
    stats = stage.fanout.stats
    await eventually(lambda: stats.pongs_received > 0)
    stage.put(pod("a", "new", version=9))
    await stage.converged(peer)
    assert stats.pongs_received < sent // len(pong)
    await eventually(lambda: stats.pongs_received == sent // len(pong))
    assert stage.disconnects == {}


async def test_a_goodbye_that_does_not_fit_keeps_its_reason(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = full_transport.FullTransport()
    stage = await open_stage(bytes_through=full)
    stage.in_sync()
    peer = await stage.subscribe()
    await stage.converged(peer)
    client = await stage.client_of(peer)
    full.full.add(client.fd)
    stage.fanout.sessions.farewell(client, DisconnectReason.REBALANCED, text="elsewhere")
    assert stage.disconnects == {"rebalanced": 1}
    await peer.read_to_end()
    assert peer.goodbye is None


async def test_who_stands_inside_a_frame_is_closed_without_a_goodbye(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, notsent_lowat_bytes=16384, ping_interval_seconds=30.0))
    stage.in_sync()
    slow = await stage.subscribe(receive_buffer_bytes=4096)
    await stage.converged(slow)
    client = await stage.block(slow)
    assert not client.at_frame_end(stage.fanout.transport)
    stage.fanout.sessions.farewell(client, DisconnectReason.REBALANCED, text="elsewhere")
    await ends(stage, slow, "rebalanced")
    assert slow.goodbye is None


async def test_close_lines_are_counted_when_they_are_too_many(stage: Stage) -> None:
    """All of them end within one second, because the server's clock stands still."""
    now = clock.monotonic()
    with clock.replaced(monotonic=lambda: now, time_ns=time.time_ns):
        for _ in range(60):
            peer = await stage.connect()
            peer.send(b"GET / HTTP/1.1\r\n")
        await eventually(lambda: stage.disconnects == {"bad-preface": 60})
    assert stage.fanout.stats.close_lines_suppressed == 40


async def test_nothing_is_left_of_those_who_came_and_went(stage: Stage) -> None:
    peers = [await stage.subscribe() for _ in range(50)]
    await stage.converged(*peers)
    view = (await stage.client_of(peers[0])).channel
    assert view is not None
    for peer in peers:
        peer.close()
    await eventually(lambda: not stage.fanout.poller.clients)
    assert view.all_clients() == []
    assert stage.disconnects == {"client-closed": 50}
    await eventually(lambda: not any(stage.fanout.sweep._slots))
