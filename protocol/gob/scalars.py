"""Internal: integers, floats, strings and bytes in gob. Functions encode them; a `Scanner` reads them from a body."""

import struct

from protocol import errors

MAX_UINT_BYTES = 8
_DOUBLE = struct.Struct(">d")


def _encode_uint(number: int) -> bytes:
    if number < 128:
        return bytes((number,))
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes((256 - len(raw),)) + raw


_KNOWN = [_encode_uint(number) for number in range(4096)]
"""Most encoded integers are lengths of keys and values."""


def encode_uint(number: int) -> bytes:
    """Encodes an unsigned integer below 2**64: one byte below 128, else the negated number of bytes and the bytes."""
    return _KNOWN[number] if number < 4096 else _encode_uint(number)


def encode_int(number: int) -> bytes:
    """Encodes a signed integer as an unsigned one, whose lowest bit is the sign."""
    return encode_uint(number << 1 if number >= 0 else ~number << 1 | 1)


def encode_bytes(data: bytes) -> bytes:
    """Encodes bytes: their length and the bytes."""
    return encode_uint(len(data)) + data


def encode_text(text: str) -> bytes:
    """Encodes a string: the length of its UTF-8 and the UTF-8."""
    return encode_bytes(text.encode("utf-8", "replace"))


def split_uint(buffer: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """Returns the unsigned integer at `start` and the position after it, or None if it is incomplete.

    Raises:
        RemoteProtocolError: the integer has more than 8 bytes.
    """
    if start >= len(buffer):
        return None
    first = buffer[start]
    if first < 128:
        return first, start + 1
    count = 256 - first
    if count > MAX_UINT_BYTES:
        raise errors.RemoteProtocolError(f"gob: integer of {count} bytes")
    end = start + 1 + count
    if end > len(buffer):
        return None
    return int.from_bytes(buffer[start + 1 : end], "big"), end


class Scanner:
    """Reads `data` from `position` to `end`. A read past the end raises RemoteProtocolError."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes = b"", position: int = 0) -> None:
        self.data = data
        self.position = position
        self.end = len(data)

    def uint(self) -> int:
        """Reads an unsigned integer. It accepts encodings longer than necessary, as Go does."""
        position = self.position
        if position >= self.end:
            raise errors.RemoteProtocolError("gob: the message ends before an integer")
        first = self.data[position]
        position += 1
        if first < 128:
            self.position = position
            return first
        end = position + 256 - first
        if end - position > MAX_UINT_BYTES:
            raise errors.RemoteProtocolError(f"gob: integer of {end - position} bytes")
        if end > self.end:
            raise errors.RemoteProtocolError("gob: the message ends inside an integer")
        self.position = end
        return int.from_bytes(self.data[position:end], "big")

    def signed(self) -> int:
        """Reads a signed integer."""
        number = self.uint()
        return ~(number >> 1) if number & 1 else number >> 1

    def double(self) -> float:
        """Reads a float: an unsigned integer with the 8 bytes in reverse order."""
        (number,) = _DOUBLE.unpack(self.uint().to_bytes(8, "little"))
        return float(number)

    def raw(self) -> bytes:
        """Reads a length, and that many bytes."""
        length = self.uint()
        position = self.position
        end = position + length
        if end > self.end:
            raise errors.RemoteProtocolError(f"gob: {length} bytes announced, {self.end - position} left")
        self.position = end
        return self.data[position:end]

    def text(self) -> str:
        """Reads a string. Go strings contain any bytes, so invalid UTF-8 is replaced."""
        return self.raw().decode("utf-8", "replace")

    def skip_bytes(self) -> None:
        """Skips a length, and that many bytes."""
        length = self.uint()
        if length > self.end - self.position:
            raise errors.RemoteProtocolError(f"gob: {length} bytes announced, {self.end - self.position} left")
        self.position += length
