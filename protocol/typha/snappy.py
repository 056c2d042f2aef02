"""Internal: Snappy's framing format: a stream identifier, then chunks that are compressed independently.

    type     1 byte: 00 compressed, 01 uncompressed, 80..fe skippable, ff stream identifier; others are errors
    length   3 bytes, little-endian: number of bytes of the body
    body     of 00 and 01: masked CRC-32C of the content (4 bytes, little-endian), then a snappy block or the content

A chunk does not depend on earlier chunks, so the chunks of a frame are the same for every client.
"""

import cramjam
import google_crc32c

from protocol import buffers, errors

IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
"""Begins a stream, and may be repeated."""
CHUNK_CONTENT_BYTES = 65_536
CHUNK_BODY_BYTES = 76_490 + 4
"""The longest block that 64 KiB can become, and the checksum. As in Go, no chunk may be longer."""
_COMPRESSED, _UNCOMPRESSED, _FIRST_SKIPPED, _IDENTIFIER_TYPE = 0x00, 0x01, 0x80, 0xFF
_HEADER_BYTES = 4
_CHECKSUM_BYTES = 4


def _checksum(content: bytes) -> bytes:
    crc: int = google_crc32c.value(content)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def _chunk(content: bytes) -> bytes:
    block = bytes(cramjam.snappy.compress_raw(content))
    chunk_type = _COMPRESSED
    if len(block) >= len(content) - len(content) // 8:  # Saves less than 12.5 %: the rule of Go.
        chunk_type, block = _UNCOMPRESSED, content
    header = (chunk_type | len(block) + _CHECKSUM_BYTES << 8).to_bytes(_HEADER_BYTES, "little")
    return header + _checksum(content) + block


def compress(content: bytes) -> bytes:
    """Returns complete chunks; no bytes for empty content."""
    if len(content) <= CHUNK_CONTENT_BYTES:
        return _chunk(content) if content else b""
    return b"".join(
        [_chunk(content[start : start + CHUNK_CONTENT_BYTES]) for start in range(0, len(content), CHUNK_CONTENT_BYTES)]
    )


def content_length(chunks: bytes) -> int:
    """The length of what was compressed into complete chunks, by their headers."""
    total = position = 0
    while position < len(chunks):
        header = int.from_bytes(chunks[position : position + _HEADER_BYTES], "little")
        body, length = position + _HEADER_BYTES + _CHECKSUM_BYTES, (header >> 8) - _CHECKSUM_BYTES
        total += _block_length(chunks, body) if header & 0xFF == _COMPRESSED else length
        position = body + length
    return total


def _block_length(data: bytes, position: int) -> int:
    """The number at the start of a snappy block: 7 bits a byte, the lowest first."""
    length = shift = 0
    while True:
        byte = data[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length
        position, shift = position + 1, shift + 7


class ChunkReader(buffers.ReceiveBuffer):
    """Reads a stream chunk by chunk. It never reads beyond the current chunk: another stream may begin there."""

    __slots__ = ("_identified",)

    def __init__(self) -> None:
        super().__init__()
        self._identified = False

    def take_rest(self) -> bytes:
        """Removes and returns the bytes after the last chunk."""
        rest = bytes(self._buffer[self._start :])
        self._buffer.clear()
        self._start = 0
        return rest

    def next_content(self) -> bytes | None:
        """Returns the content of the next non-empty chunk, or None if more bytes are needed.

        Raises:
            RemoteProtocolError: a missing identifier, an unknown or too long chunk, an invalid block or checksum.
        """
        while (chunk := self._next_chunk()) is not None:
            content = self._content(*chunk)
            if content:
                return content
        return None

    def _next_chunk(self) -> tuple[int, bytes] | None:
        start = self._start
        if len(self._buffer) - start < _HEADER_BYTES:
            self.drop_consumed()
            return None
        header = int.from_bytes(self._buffer[start : start + _HEADER_BYTES], "little")
        chunk_type, length = header & 0xFF, header >> 8
        if not self._identified and chunk_type != _IDENTIFIER_TYPE:
            raise errors.RemoteProtocolError(f"snappy: chunk 0x{chunk_type:02x} before the stream identifier")
        if length > CHUNK_BODY_BYTES:
            raise errors.RemoteProtocolError(f"snappy: chunk of {length} bytes is over the limit of {CHUNK_BODY_BYTES}")
        body = start + _HEADER_BYTES
        if len(self._buffer) < body + length:
            self.drop_consumed()
            return None
        self._start = body + length
        with memoryview(self._buffer) as view:
            return chunk_type, bytes(view[body : body + length])

    def _content(self, chunk_type: int, body: bytes) -> bytes:
        if chunk_type == _IDENTIFIER_TYPE:
            if body != IDENTIFIER[_HEADER_BYTES:]:
                raise errors.RemoteProtocolError("snappy: wrong stream identifier")
            self._identified = True
            return b""
        if chunk_type >= _FIRST_SKIPPED:
            return b""
        if chunk_type > _UNCOMPRESSED:
            raise errors.RemoteProtocolError(f"snappy: unsupported chunk 0x{chunk_type:02x}")
        if len(body) < _CHECKSUM_BYTES:
            raise errors.RemoteProtocolError("snappy: chunk without its checksum")
        content = body[_CHECKSUM_BYTES:]
        if chunk_type == _COMPRESSED:
            content = _decompress(content)
        if len(content) > CHUNK_CONTENT_BYTES:
            raise errors.RemoteProtocolError(f"snappy: chunk with {len(content)} bytes of content")
        if body[:_CHECKSUM_BYTES] != _checksum(content):
            raise errors.RemoteProtocolError("snappy: wrong checksum")
        return content


def _decompress(block: bytes) -> bytes:
    """Decompresses a block. Checks the announced size before it allocates."""
    try:
        size = cramjam.snappy.decompress_raw_len(block)
        if size > CHUNK_CONTENT_BYTES:
            raise errors.RemoteProtocolError(f"snappy: chunk with {size} bytes of content")
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise errors.RemoteProtocolError(f"snappy: {error}") from error
