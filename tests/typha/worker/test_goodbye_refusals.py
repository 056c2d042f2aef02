"""Goodbyes arrive, whatever the client still sends, and say in plain words what was wrong."""

import socket
import struct

import msgpack
import msgspec
import pytest

from protocol import messages
from protocol.native import codec, frames
from protocol.reasons import DisconnectReason
from tests.harness.worker_stand import FAST, FEED, Peer, WorkerStand, eventually
from tests.typha.conftest import OpenStage

HELLO = frames.PREFACE + frames.pack_frame(codec.encode(messages.ClientHello(feed=FEED, agent="test")))
PATIENT = msgspec.structs.replace(FAST, refusal_hold_seconds=3600.0, goodbye_linger_seconds=3600.0)
"""Nothing but the client, or too many bytes of it, closes a connection after its goodbye."""


def hello(**members: object) -> bytes:
    """A preface and a hello with these members."""
    payload: bytes = msgpack.packb([1, {"versions": [1], "feed": FEED, "agent": "test"} | members])
    return frames.PREFACE + frames.pack_frame(payload)


async def told(stage: WorkerStand, peer: Peer) -> messages.Goodbye:
    """Reads to the end of the stream; the goodbye that came before it. The connection is still open at the server."""
    await peer.read_to_end()
    assert peer.ended_well
    assert peer.goodbye is not None
    [closing] = stage.server.connections.closing
    assert closing.close_at > 0.0
    return peer.goodbye


@pytest.mark.parametrize(
    ("sent", "reason", "text"),
    [
        (HELLO + struct.pack(">I", 2049), "message-too-large", "a frame has 2049 bytes, and the limit is 2048"),
        (HELLO + bytes(4), "protocol-error", "a frame has length 0"),
        (frames.PREFACE + struct.pack(">I", 65_537), "message-too-large", "65537 bytes, and the limit is 65536"),
        (frames.PREFACE + bytes(4), "protocol-error", "a frame has length 0"),
        (HELLO + HELLO[8:], "protocol-error", "message client-hello is not allowed in state ready"),
        (hello(feed=7), "protocol-error", "Expected `text`, got `integer` - at `$[1].feed`"),
        (hello(versions=[1.0]), "protocol-error", "Expected `integer`, got `float` - at `$[1].versions[0]`"),
        (frames.PREFACE + frames.pack_frame(b"\x92\x01"), "protocol-error", "not one whole msgpack value"),
        (frames.PREFACE + frames.pack_frame(b"\x93\x0a\xa1\xff\xa0"), "protocol-error", "message is not valid"),
        (frames.PREFACE + frames.pack_frame(codec.encode(messages.Goodbye("bye"))), "protocol-error", "in state hello"),
        (hello(feed="nowhere"), "unknown-feed", "no feed 'nowhere' here"),
        (hello(versions=[2]), "unsupported-version", "this server speaks version 1 only"),
        (
            hello(features=[f"{number:02}{'é' * 1000}" for number in range(17)]),
            "message-too-large",
            "names of unknown features",
        ),
    ],
)
async def test_a_goodbye_arrives_and_the_stream_ends(
    open_stage: OpenStage, sent: bytes, reason: str, text: str
) -> None:
    stage = await open_stage(PATIENT)
    stage.in_sync()
    peer = await stage.connect()
    peer.send(sent)
    goodbye = await told(stage, peer)
    assert goodbye.reason == reason
    assert text in goodbye.text
    peer.close()
    await eventually(lambda: not stage.server.poller.clients)
    assert stage.disconnects == {reason: 1}


async def test_what_follows_an_oversize_length_costs_no_goodbye(open_stage: OpenStage) -> None:
    stage = await open_stage(PATIENT)
    stage.in_sync()
    peer = await stage.connect()
    peer.send(frames.PREFACE + struct.pack(">I", 65_537))
    await eventually(lambda: stage.server.connections.closing)
    [closing] = stage.server.connections.closing
    for _ in range(8):
        assert peer.socket.send(bytes(10_000)) == 10_000
        await eventually(lambda: not stage.server.poller.has_unread(closing))
    assert (await told(stage, peer)).reason == "message-too-large"


async def test_a_client_that_never_stops_sending_is_closed(open_stage: OpenStage) -> None:
    stage = await open_stage(PATIENT)
    stage.in_sync()
    peer = await stage.connect()
    peer.send(hello(feed="nowhere"))
    await told(stage, peer)

    def flood() -> bool:
        try:
            peer.socket.send(bytes(60_000))
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    await eventually(flood)
    await eventually(lambda: not stage.server.poller.clients)
    assert stage.disconnects == {"unknown-feed": 1}


@pytest.mark.parametrize("is_refusal", [True, False])
async def test_how_long_a_goodbye_is_held(open_stage: OpenStage, is_refusal: bool) -> None:
    """A refusal for RefusalHoldSecs; the goodbye of an accepted client for a short while."""
    limits = msgspec.structs.replace(FAST, refusal_hold_seconds=1000.0, goodbye_linger_seconds=100.0)
    stage = await open_stage(limits)
    stage.in_sync()
    peer = await stage.connect()
    peer.send(hello(feed="nowhere") if is_refusal else HELLO + bytes(4))
    await told(stage, peer)
    [closing] = stage.server.connections.closing
    held_seconds = closing.close_at - closing.connected_at
    assert (held_seconds > 500.0) == is_refusal
    stage.server.connections.close_overdue(closing.close_at)
    assert not stage.server.poller.clients


async def test_nil_is_absence_in_a_hello(stage: WorkerStand) -> None:
    stage.in_sync()
    peer = await stage.connect()
    absent = dict.fromkeys(("features", "software", "node", "subscription", "resume", "chunk_digests"))
    peer.send(hello(**absent))
    await stage.converged(peer)
    assert peer.hello is not None
    assert peer.hello.not_supported == frozenset()


async def test_a_half_closed_connection_is_closed(stage: WorkerStand) -> None:
    stage.in_sync()
    peer = await stage.connect()
    peer.send(HELLO)
    await stage.converged(peer)
    peer.socket.shutdown(socket.SHUT_WR)
    await peer.read_to_end()
    assert peer.goodbye is None
    await eventually(lambda: stage.disconnects == {DisconnectReason.CLIENT_CLOSED.value: 1})


async def test_a_pong_may_name_any_sequence(stage: WorkerStand) -> None:
    stage.in_sync()
    peer = await stage.connect()
    peer.send(HELLO + frames.pack_frame(codec.encode(messages.Pong(2**64 - 1))))
    await stage.converged(peer)
    assert stage.disconnects == {}


async def test_the_last_of_duplicate_members_counts(stage: WorkerStand) -> None:
    stage.in_sync()
    peer = await stage.connect()
    members = [("versions", [1]), ("feed", "nowhere"), ("agent", "test"), ("feed", FEED)]
    packed = b"".join(msgpack.packb(part) for member in members for part in member)
    peer.send(frames.PREFACE + frames.pack_frame(b"\x92\x01" + bytes([0x80 | len(members)]) + packed))
    await stage.converged(peer)
