"""Unsigned and signed integers, strings and bytes: written by functions, read by a `Scanner` over one body."""

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
"""Most of what is encoded are lengths of keys and values."""


def encode_uint(number: int) -> bytes:
    """An unsigned integer below 2**64: one byte below 128, else the count of bytes, negated, and the bytes."""
    return _KNOWN[number] if number < 4096 else _encode_uint(number)


def encode_int(number: int) -> bytes:
    """A signed integer: the sign is the lowest bit of an unsigned one."""
    return encode_uint(number << 1 if number >= 0 else ~number << 1 | 1)


def encode_bytes(data: bytes) -> bytes:
    """Bytes behind their length."""
    return encode_uint(len(data)) + data


def encode_text(text: str) -> bytes:
    """A string: its UTF-8 behind its length."""
    return encode_bytes(text.encode("utf-8", "replace"))


def split_uint(buffer: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """The unsigned integer at `start` and the position behind it, or None if it is not complete yet.

    Raises:
        RemoteProtocolError: it announces more than 8 bytes.
    """
    if start >= len(buffer):
        return None
    first = buffer[start]
    if first < 128:
        return first, start + 1
    count = 256 - first
    if count > MAX_UINT_BYTES:
        raise errors.RemoteProtocolError(f"gob: an integer of {count} bytes")
    end = start + 1 + count
    if end > len(buffer):
        return None
    return int.from_bytes(buffer[start + 1 : end], "big"), end


class Scanner:
    """Reads from `data` between `position` and `end`; a read past the end raises RemoteProtocolError."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes = b"", position: int = 0) -> None:
        self.data = data
        self.position = position
        self.end = len(data)

    def uint(self) -> int:
        """An unsigned integer, minimal or not."""
        position = self.position
        if position >= self.end:
            raise errors.RemoteProtocolError("gob: the message ends where an integer should be")
        first = self.data[position]
        position += 1
        if first < 128:
            self.position = position
            return first
        behind = position + 256 - first
        if behind - position > MAX_UINT_BYTES:
            raise errors.RemoteProtocolError(f"gob: an integer of {behind - position} bytes")
        if behind > self.end:
            raise errors.RemoteProtocolError("gob: the message ends inside an integer")
        self.position = behind
        return int.from_bytes(self.data[position:behind], "big")

    def signed(self) -> int:
        """A signed integer."""
        number = self.uint()
        return ~(number >> 1) if number & 1 else number >> 1

    def double(self) -> float:
        """A float: its 8 bytes in reverse order, as an unsigned integer."""
        (number,) = _DOUBLE.unpack(self.uint().to_bytes(8, "little"))
        return float(number)

    def raw(self) -> bytes:
        """Bytes behind their length."""
        length = self.uint()
        position = self.position
        behind = position + length
        if behind > self.end:
            raise errors.RemoteProtocolError(f"gob: {length} bytes announced where {self.end - position} are left")
        self.position = behind
        return self.data[position:behind]

    def text(self) -> str:
        """A string; Go sends any bytes, so what is no UTF-8 is replaced."""
        return self.raw().decode("utf-8", "replace")

    def skip_bytes(self) -> None:
        """Passes over bytes behind their length."""
        length = self.uint()
        if length > self.end - self.position:
            raise errors.RemoteProtocolError(f"gob: {length} bytes announced where {self.end - self.position} are left")
        self.position += length
