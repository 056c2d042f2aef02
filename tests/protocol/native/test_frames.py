"""Frames: they survive any split of the stream, and excessive sizes are refused early."""

import contextlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors, reasons
from protocol.native import frames

payloads = st.lists(st.binary(max_size=400), max_size=6)


def drain(splitter: frames.FrameSplitter) -> list[bytes]:
    found = []
    while (frame := splitter.next_frame()) is not None:
        found.append(bytes(frames.unpack_payload(*frame)))
    return found


@given(payloads, st.data())
def test_frames_survive_any_split_of_the_stream(sent: list[bytes], data: st.DataObject) -> None:
    compressor = frames.make_compressor()
    stream = b"".join(frames.pack_frame(payload, compressor=compressor) for payload in sent)
    cuts = sorted(data.draw(st.lists(st.integers(min_value=0, max_value=len(stream)), max_size=10)))
    splitter = frames.FrameSplitter()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        splitter.receive(stream[start:end])
        received += drain(splitter)
    assert received == sent
    assert splitter.pending_bytes == 0


def test_one_byte_at_a_time() -> None:
    sent = [b"", b"first", b"x" * 1000]
    splitter = frames.FrameSplitter()
    received = []
    for byte in b"".join(frames.pack_frame(payload, compressor=frames.make_compressor()) for payload in sent):
        splitter.receive(bytes([byte]))
        received += drain(splitter)
    assert received == sent


def test_bytes_after_a_frame_stay_buffered() -> None:
    splitter = frames.FrameSplitter()
    splitter.receive(frames.pack_frame(b"one") + b"\x00\x00")
    assert drain(splitter) == [b"one"]
    assert splitter.pending_bytes == 2


@pytest.mark.parametrize("length", [1025, 100 * 1024 * 1024, 2**32 - 1])
def test_a_long_frame_is_refused_at_its_header(length: int) -> None:
    splitter = frames.FrameSplitter(max_frame_bytes=1024)
    splitter.receive(frames.LENGTH.pack(length))  # not even the flags are awaited
    with pytest.raises(errors.RemoteProtocolError, match=f"a frame has {length} bytes, and the limit is 1024") as info:
        splitter.next_frame()
    assert info.value.reason is reasons.DisconnectReason.MESSAGE_TOO_LARGE


def test_a_frame_of_the_maximum_size_is_accepted() -> None:
    splitter = frames.FrameSplitter(max_frame_bytes=1024)
    splitter.receive(frames.pack_frame(bytes(1023)))
    assert drain(splitter) == [bytes(1023)]


def test_a_frame_without_flags_is_refused() -> None:
    splitter = frames.FrameSplitter()
    splitter.receive(bytes(4))
    with pytest.raises(errors.RemoteProtocolError, match="length 0"):
        splitter.next_frame()


@pytest.mark.parametrize("flags", [0x02, 0x03, 0x80, 0xFF])
def test_unknown_flags_are_refused(flags: int) -> None:
    with pytest.raises(errors.RemoteProtocolError, match="unknown flags"):
        frames.unpack_payload(flags, b"")


def test_compression_is_used_only_if_it_helps() -> None:
    compressor = frames.make_compressor()
    small = frames.pack_frame(b"x" * (frames.ZSTD_MIN_BYTES - 1), compressor=compressor)
    large = frames.pack_frame(b"x" * frames.ZSTD_MIN_BYTES, compressor=compressor)
    noise = frames.pack_frame(bytes(range(256)), compressor=compressor)
    assert [frame[4] for frame in (small, large, noise)] == [0, frames.FLAG_ZSTD, 0]


def test_a_decompression_bomb_is_refused_before_decompression() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * 1024 * 1024))
    assert len(bomb) < 10_000
    with pytest.raises(errors.RemoteProtocolError, match="67108864 bytes of content, and the limit is 1048576") as info:
        frames.unpack_payload(frames.FLAG_ZSTD, bomb, max_payload_bytes=1024 * 1024)
    assert info.value.reason is reasons.DisconnectReason.MESSAGE_TOO_LARGE


def test_a_bomb_without_content_size_is_refused() -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1024 * 1024))
    with pytest.raises(errors.RemoteProtocolError, match="does not state its content size"):
        frames.unpack_payload(frames.FLAG_ZSTD, bomb)


def test_a_bomb_with_a_wrong_content_size_is_refused() -> None:
    # Single segment, content size in 4 bytes. It announces 1,000 bytes, but contains 64 MiB of zeros in RLE blocks.
    blocks = [(128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"] * 511
    last = (128 * 1024 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    bomb = b"\x28\xb5\x2f\xfd\xa0" + (1000).to_bytes(4, "little") + b"".join(blocks) + last
    with pytest.raises(errors.RemoteProtocolError, match="a compressed frame"):
        frames.unpack_payload(frames.FLAG_ZSTD, bomb)


def test_two_zstd_frames_in_one_frame_are_refused() -> None:
    compressor = frames.make_compressor()
    with pytest.raises(errors.RemoteProtocolError, match="a compressed frame"):
        frames.unpack_payload(frames.FLAG_ZSTD, compressor.compress(b"one") + compressor.compress(b"two"))


@given(st.binary(max_size=300))
def test_random_bytes_are_not_zstd(body: bytes) -> None:
    for candidate in (body, b"\x28\xb5\x2f\xfd" + body):
        with contextlib.suppress(errors.RemoteProtocolError):
            frames.unpack_payload(frames.FLAG_ZSTD, candidate, max_payload_bytes=4096)
