"""Tests of loadtest.swarm.typha_frames."""

import pytest

from loadtest.swarm import typha_frames
from protocol import errors
from protocol.typha import codec, connection, messages, snappy


def start_of(form: typha_frames.Form, positions: typha_frames.Positions) -> typha_frames.Position:
    """The position after the hello and the restart, or after the hello alone."""
    hello = codec.encode(messages.ServerHello("v", "felix", True, 1), types=codec.SERVER)
    restart = codec.encode(connection.RESTART, types=codec.SERVER)
    stream = bytearray(codec.SERVER.definitions + hello + (b"" if form is typha_frames.Form.PLAIN else restart))
    position = positions.start
    while stream:
        size = typha_frames.first_frame_bytes(position, stream)
        position = positions.step(position, bytes(stream[:size])).position
        del stream[:size]
    return position


@pytest.mark.parametrize("form", [typha_frames.Form.PLAIN, typha_frames.Form.SNAPPY_START])
def test_two_streams_with_the_same_frames_are_at_one_position(form: typha_frames.Form) -> None:
    positions = typha_frames.Positions()
    first, second = (start_of(form, positions) for _ in range(2))
    assert first is second
    assert first.form is form


def test_a_message_may_span_two_chunks() -> None:
    positions = typha_frames.Positions()
    position = positions.step(start_of(typha_frames.Form.SNAPPY_START, positions), snappy.IDENTIFIER).position
    position = positions.step(position, snappy.compress(codec.SERVER.definitions)).position
    data = codec.encode(messages.SyncStatus(2), types=codec.SERVER)
    half = positions.step(position, snappy.compress(data[:5]))
    assert (half.messages, half.position.tail) == ((), data[:5])
    whole = positions.step(half.position, snappy.compress(data[5:]))
    assert [message.message for message in whole.messages] == [messages.SyncStatus(2)]
    assert whole.position is position
    assert positions.step(half.position, snappy.compress(data[5:])) is whole


def test_a_compressed_stream_begins_with_its_identifier() -> None:
    positions = typha_frames.Positions()
    with pytest.raises(errors.RemoteProtocolError, match="the stream begins with"):
        positions.step(start_of(typha_frames.Form.SNAPPY_START, positions), snappy.compress(b"x"))


def test_a_restart_that_the_service_never_asks_for_is_refused() -> None:
    positions = typha_frames.Positions()
    position = start_of(typha_frames.Form.PLAIN, positions)
    with pytest.raises(errors.RemoteProtocolError, match="never asks for"):
        positions.step(position, codec.encode(messages.DecoderRestart("m", "zlib"), types=codec.SERVER))


def test_incomplete_frames_are_awaited() -> None:
    positions = typha_frames.Positions()
    compressed = positions.step(start_of(typha_frames.Form.SNAPPY_START, positions), snappy.IDENTIFIER).position
    chunk = snappy.compress(b"content")
    for position, frame in ((positions.start, codec.encode(messages.Ack(), types=codec.CLIENT)), (compressed, chunk)):
        assert [typha_frames.first_frame_bytes(position, bytearray(frame[:size])) for size in range(len(frame))] == [
            0
        ] * len(frame)
        assert typha_frames.first_frame_bytes(position, bytearray(frame + b"more")) == len(frame)
    with pytest.raises(errors.RemoteProtocolError, match="a frame of"):
        typha_frames.first_frame_bytes(positions.start, bytearray(b"\xf8" + b"\xff" * 8))
