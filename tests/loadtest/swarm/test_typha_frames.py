"""Tests of loadtest.swarm.typha_frames."""

import pytest

from loadtest.swarm import typha_frames
from protocol import errors
from protocol.typha import codec, connection, messages, snappy


def start_of(form: typha_frames.Form, places: typha_frames.Places) -> typha_frames.Place:
    """The place behind the hello and the restart, or behind the hello alone."""
    hello = codec.encode(messages.ServerHello("v", "felix", True, 1), types=codec.SERVER)
    restart = codec.encode(connection.RESTART, types=codec.SERVER)
    pieces = bytearray(codec.SERVER.definitions + hello + (b"" if form is typha_frames.Form.PLAIN else restart))
    place = places.start
    while pieces:
        size = typha_frames.first_piece_bytes(place, pieces)
        place = places.step(place, bytes(pieces[:size])).place
        del pieces[:size]
    return place


@pytest.mark.parametrize("form", [typha_frames.Form.PLAIN, typha_frames.Form.SNAPPY_START])
def test_two_streams_with_the_same_pieces_are_at_one_place(form: typha_frames.Form) -> None:
    places = typha_frames.Places()
    first, second = (start_of(form, places) for _ in range(2))
    assert first is second
    assert first.form is form


def test_a_message_may_lie_in_two_chunks() -> None:
    places = typha_frames.Places()
    place = places.step(start_of(typha_frames.Form.SNAPPY_START, places), snappy.IDENTIFIER).place
    place = places.step(place, snappy.compress(codec.SERVER.definitions)).place
    data = codec.encode(messages.SyncStatus(2), types=codec.SERVER)
    half = places.step(place, snappy.compress(data[:5]))
    assert (half.messages, half.place.tail) == ((), data[:5])
    whole = places.step(half.place, snappy.compress(data[5:]))
    assert [message.message for message in whole.messages] == [messages.SyncStatus(2)]
    assert whole.place is place
    assert places.step(half.place, snappy.compress(data[5:])) is whole


def test_a_compressed_stream_begins_with_its_identifier() -> None:
    places = typha_frames.Places()
    with pytest.raises(errors.RemoteProtocolError, match="the stream begins with"):
        places.step(start_of(typha_frames.Form.SNAPPY_START, places), snappy.compress(b"x"))


def test_a_restart_that_the_service_never_asks_for_is_refused() -> None:
    places = typha_frames.Places()
    place = start_of(typha_frames.Form.PLAIN, places)
    with pytest.raises(errors.RemoteProtocolError, match="never asks for"):
        places.step(place, codec.encode(messages.DecoderRestart("m", "zlib"), types=codec.SERVER))


def test_incomplete_pieces_are_awaited() -> None:
    places = typha_frames.Places()
    compressed = places.step(start_of(typha_frames.Form.SNAPPY_START, places), snappy.IDENTIFIER).place
    chunk = snappy.compress(b"content")
    for place, piece in ((places.start, codec.encode(messages.Ack(), types=codec.CLIENT)), (compressed, chunk)):
        assert [typha_frames.first_piece_bytes(place, bytearray(piece[:size])) for size in range(len(piece))] == [
            0
        ] * len(piece)
        assert typha_frames.first_piece_bytes(place, bytearray(piece + b"more")) == len(piece)
    with pytest.raises(errors.RemoteProtocolError, match="a piece of"):
        typha_frames.first_piece_bytes(places.start, bytearray(b"\xf8" + b"\xff" * 8))
