"""Snappy chunks: valid and invalid input, and our own output."""

import random

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors
from protocol.typha import snappy

NOISE = random.Random(1).randbytes(70_000)


def read_all(data: bytes, reader: snappy.ChunkReader | None = None) -> bytes:
    reader = reader or snappy.ChunkReader()
    reader.receive(data)
    content = b""
    while (piece := reader.next_content()) is not None:
        content += piece
    return content


def chunk(chunk_type: int, body: bytes) -> bytes:
    return bytes([chunk_type]) + len(body).to_bytes(3, "little") + body


def plain(content: bytes) -> bytes:
    return chunk(1, snappy._checksum(content) + content)


@given(st.lists(st.binary(max_size=300) | st.sampled_from([bytes(70_000), NOISE, NOISE[:65_536]]), max_size=4))
def test_round_trip(contents: list[bytes]) -> None:
    data = snappy.IDENTIFIER + b"".join(snappy.compress(content) for content in contents)
    assert read_all(data) == b"".join(contents)


@given(st.binary(max_size=2000) | st.just(bytes(70_000)))
def test_an_independent_decoder_reads_our_chunks(content: bytes) -> None:
    assert bytes(cramjam.snappy.decompress(snappy.IDENTIFIER + snappy.compress(content))) == content


def test_chunks_of_an_independent_encoder_are_read_byte_by_byte() -> None:
    content = b'{"kind":"Pod"}' * 200
    data = bytes(cramjam.snappy.compress(content)) * 2
    reader = snappy.ChunkReader()
    assert b"".join(read_all(bytes([byte]), reader) for byte in data) == content * 2
    assert reader.pending_bytes == 0


def test_random_content_is_not_compressed() -> None:
    assert snappy.compress(NOISE[:1000]) == plain(NOISE[:1000])
    assert snappy.compress(bytes(1000))[0] == 0
    assert snappy.compress(b"") == b""
    assert [snappy.compress(NOISE)[start] for start in (0, 4 + 4 + 65_536)] == [1, 1]


def test_skippable_chunks_are_skipped() -> None:
    filler = [chunk(0x80, b"abc"), chunk(0xFE, bytes(76_494)), plain(b""), snappy.IDENTIFIER]
    assert read_all(snappy.IDENTIFIER + b"".join(filler) + plain(b"content")) == b"content"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (plain(b"x"), "before the stream identifier"),
        (chunk(0xFF, b"sNaPpX"), "wrong stream identifier"),
        (chunk(0xFF, b""), "wrong stream identifier"),
        (snappy.IDENTIFIER + chunk(0x02, b""), "unsupported chunk 0x02"),
        (snappy.IDENTIFIER + chunk(0x7F, b""), "unsupported chunk 0x7f"),
        (snappy.IDENTIFIER + b"\xfe\xcf\x2a\x01", "chunk of 76495 bytes is over the limit of 76494"),
        (snappy.IDENTIFIER + chunk(0, b"abc"), "without its checksum"),
        (snappy.IDENTIFIER + chunk(1, b"\0\0\0\0abc"), "wrong checksum"),
        (snappy.IDENTIFIER + plain(bytes(65_537)), "65537 bytes of content"),
        (snappy.IDENTIFIER + chunk(0, b"\0\0\0\0" + b"\x81\x80\x04"), "65537 bytes of content"),
        (snappy.IDENTIFIER + chunk(0, b"\0\0\0\0" + b"\xff" * 9), "snappy: "),
        (snappy.IDENTIFIER + chunk(0, b"\0\0\0\0" + b"\x10\xf0"), "snappy: "),
        (snappy.IDENTIFIER + chunk(0, b"\0\0\0\0"), "snappy: "),
    ],
)
def test_invalid_input_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        read_all(data)


def test_the_reader_does_not_read_past_a_chunk() -> None:
    reader = snappy.ChunkReader()
    reader.receive(snappy.IDENTIFIER + plain(b"one") + b"rest")
    assert reader.next_content() == b"one"
    assert reader.take_rest() == b"rest"
    assert reader.pending_bytes == 0
