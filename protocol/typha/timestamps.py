"""Internal: the binary encoding of Go's time.Time. Times stay bytes, because a pong must echo the ping's exactly.

    version 1: 01, seconds since 0001-01-01 UTC (8 bytes), nanoseconds (4), zone offset in minutes (2), -1 for UTC
    version 2: 02, the same, and one more byte: seconds of the offset

All numbers are big-endian and signed. The zero time is not sent; here it is b"".
"""

import struct

from protocol import errors

_V1 = struct.Struct(">Bqih")
_V2 = struct.Struct(">Bqihb")
_UNIX_EPOCH_SECONDS = 62_135_596_800
"""Seconds from the year 1 to 1970."""
_UTC = -1
NANOSECONDS = 1_000_000_000


def check(data: bytes) -> None:
    """Raises RemoteProtocolError if the bytes are not a time."""
    if not data or (data[0], len(data)) not in ((1, _V1.size), (2, _V2.size)):
        raise errors.RemoteProtocolError(f"invalid time of {len(data)} bytes: {data[:20].hex()}")


def from_unix_nanoseconds(nanoseconds: int) -> bytes:
    """Encodes an instant in UTC."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return _V1.pack(1, seconds + _UNIX_EPOCH_SECONDS, rest, _UTC)


def to_unix_nanoseconds(data: bytes) -> int:
    """Decodes a time that `check` has accepted. The zero time is in the year 1."""
    if not data:
        return -_UNIX_EPOCH_SECONDS * NANOSECONDS
    _, seconds, rest, _ = _V1.unpack_from(data)
    return (int(seconds) - _UNIX_EPOCH_SECONDS) * NANOSECONDS + int(rest)
