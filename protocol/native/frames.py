"""Internal: frames of the native protocol, `length | flags | payload` (docs/protocol.md, section 2).

    length   4 bytes, big-endian: number of bytes that follow, including the flags
    flags    1 byte: bit 0 is set if the payload is one zstd frame with its content size; the other bits are 0
    payload  one msgpack value

A frame does not depend on the connection, so one encoding serves every client.
"""

import struct
import threading
from collections.abc import Callable

import zstandard

from protocol import buffers, errors, reasons

PREFACE = b"\x00TYPHA\r\n"
"""The first bytes of each side. Neither TLS (16) nor a gob stream (a length > 0) begins with `00`."""

FLAG_ZSTD = 0x01
HEADER = struct.Struct(">IB")
LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Default limit of a frame, compressed or not. Objects in etcd are at most 1.5 MiB; other stores rarely exceed 8."""
MAX_HELLO_FRAME_BYTES = 64 * 1024
"""Limit of a client's hello: one with the digests of 4,096 chunks takes 40 kB."""
MAX_CLIENT_FRAME_BYTES = 2 * 1024
"""Limit of a client's frames after its hello: positions, pongs, and a goodbye with a text of 1,024 ASCII characters."""
ZSTD_LEVEL = 3
_DESCRIPTOR = 4
"""Place of a zstd frame's header descriptor."""
_DICTIONARY_ID_BITS = 0x03
"""Of the descriptor: 0 if the frame names no dictionary."""
ZSTD_MIN_BYTES = 256
"""A smaller payload does not shrink as a separate zstd frame."""


class _Decompressor(threading.local):
    """One decompressor per thread: they are not thread-safe, and creating one costs more than a small frame."""

    def __init__(self) -> None:
        self.decompress = zstandard.ZstdDecompressor().decompress


_decompressor = _Decompressor()


def pack_frame(
    payload: bytes, *, compressor: zstandard.ZstdCompressor | None = None, least_bytes: int = ZSTD_MIN_BYTES
) -> bytes:
    """Returns a frame around `payload`, compressed if there is a compressor and the result is smaller.

    A payload of less than `least_bytes` is not tried.
    """
    if compressor is not None and len(payload) >= least_bytes:
        compressed = compressor.compress(payload)
        if len(compressed) < len(payload):
            return HEADER.pack(len(compressed) + 1, FLAG_ZSTD) + compressed
    return HEADER.pack(len(payload) + 1, 0) + payload


def raw_length(frames: bytes) -> int:
    """The length that complete frames have without compression, by their headers."""
    total = position = 0
    while position < len(frames):
        length, flags = HEADER.unpack_from(frames, position)
        body, position = position + HEADER.size, position + HEADER.size + length - 1
        compressed = flags & FLAG_ZSTD
        total += HEADER.size + (zstandard.frame_content_size(frames[body:position]) if compressed else length - 1)
    return total


def make_compressor() -> zstandard.ZstdCompressor:
    """A compressor that writes the content size, so that a reader can refuse a frame before it allocates."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True, write_checksum=False)


def unpack_payload(
    flags: int,
    body: bytes | memoryview,
    *,
    max_payload_bytes: int = MAX_FRAME_BYTES,
    decompress: Callable[[bytes | memoryview], bytes] | None = None,
) -> bytes | memoryview:
    """Returns the payload of a frame's body. `decompress` is for frames that name a dictionary.

    Raises:
        RemoteProtocolError: unknown flags, invalid zstd data, or a content size that is missing or over the limit.
    """
    if flags == 0:
        return body
    if flags != FLAG_ZSTD:
        raise errors.RemoteProtocolError(f"a frame has unknown flags (0x{flags:02x})")
    try:
        content_bytes = zstandard.frame_content_size(body)
        if content_bytes < 0:
            raise errors.RemoteProtocolError("a compressed frame does not state its content size")
        if content_bytes > max_payload_bytes:
            raise errors.RemoteProtocolError(
                f"a frame has {content_bytes} bytes of content, and the limit is {max_payload_bytes}",
                reason=reasons.DisconnectReason.MESSAGE_TOO_LARGE,
            )
        if decompress is not None and names_dictionary(body):
            payload = decompress(body)
        else:
            payload = _decompressor.decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise errors.RemoteProtocolError(f"a compressed frame is broken: {error}") from error
    if len(payload) != content_bytes:
        raise errors.RemoteProtocolError("a compressed frame states a wrong content size")
    return payload


def names_dictionary(body: bytes | memoryview) -> bool:
    """Whether a zstd frame says that it was compressed with a dictionary."""
    return len(body) > _DESCRIPTOR and bool(body[_DESCRIPTOR] & _DICTIONARY_ID_BITS)


class FrameSplitter(buffers.ReceiveBuffer):
    """Splits a byte stream into frames.

    `receive` appends bytes; `next_frame` returns (flags, body), or None if more bytes are needed. The announced length
    of a frame is checked as soon as its four bytes have arrived.
    """

    __slots__ = ("max_frame_bytes",)

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        super().__init__()
        self.max_frame_bytes = max_frame_bytes

    def peek(self, count: int) -> bytes:
        """Returns up to `count` of the next bytes without consuming them."""
        return bytes(self._buffer[self._start : self._start + count])

    def skip(self, count: int) -> None:
        """Consumes `count` bytes that `peek` has returned."""
        self._start += count

    def next_frame(self) -> tuple[int, bytes] | None:
        """Returns the next complete frame as (flags, body), or None.

        Raises:
            RemoteProtocolError: the announced length is 0 or over the limit.
        """
        start = self._start
        if len(self._buffer) - start < LENGTH.size:
            self.drop_consumed()
            return None
        (length,) = LENGTH.unpack_from(self._buffer, start)
        if length > self.max_frame_bytes:
            raise errors.RemoteProtocolError(
                f"a frame has {length} bytes, and the limit is {self.max_frame_bytes}",
                reason=reasons.DisconnectReason.MESSAGE_TOO_LARGE,
            )
        if length == 0:
            raise errors.RemoteProtocolError("a frame has length 0")
        end = start + LENGTH.size + length
        if len(self._buffer) < end:
            self.drop_consumed()
            return None
        flags = self._buffer[start + LENGTH.size]
        with memoryview(self._buffer) as view:
            body = bytes(view[start + HEADER.size : end])
        self._start = end
        if end == len(self._buffer):
            self.drop_consumed()
        return flags, body
