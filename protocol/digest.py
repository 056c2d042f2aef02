"""Internal: the state digest, a number that tells whether two maps have the same keys and values.

It is the sum modulo 2^64, over all keys, of the first 8 bytes (big-endian) of
SHA-256(length of key as 4 bytes, big-endian || key || value). The order of the keys does not matter, and a change costs
one subtraction and one addition (docs/protocol.md, section 5).

A map falls into chunks by a hash of its keys. The digest of a coarser chunk is the sum of those of its parts.
"""

import array
import hashlib
import zlib
from collections.abc import Iterable

MODULUS = 1 << 64

_sha256 = hashlib.sha256
_from_bytes = int.from_bytes


def pair_digest(key: bytes, value: bytes) -> int:
    """Digest of a key and its value, 0 <= digest < 2^64."""
    return _from_bytes(_sha256(len(key).to_bytes(4, "big") + key + value).digest()[:8], "big")


def state_digest(pairs: Iterable[tuple[str, bytes]]) -> int:
    """Digest of a map, given as its (key, value) pairs."""
    total = 0
    for key, value in pairs:
        total += pair_digest(key.encode(), value)
    return total % MODULUS


def chunk_number(key: str, chunks: int) -> int:
    """The chunk of a key, of `chunks` chunks, a power of two."""
    return zlib.crc32(key.encode()) & (chunks - 1)


def fold(digests: "array.array[int]", count: int) -> "array.array[int]":
    """The digests of `count` chunks from those of as many or more; both numbers are powers of two."""
    if count == len(digests):
        return digests
    return array.array("Q", (sum(digests[number::count]) % MODULUS for number in range(count)))


class StateDigest:
    """The digest of a map that changes. It keeps one number per key."""

    __slots__ = ("_pairs", "_total")

    def __init__(self) -> None:
        self._pairs: dict[str, int] = {}
        self._total = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def put(self, key: str, value: bytes) -> None:
        """Sets the value of a key."""
        digest = pair_digest(key.encode(), value)
        self._total += digest - self._pairs.get(key, 0)
        self._pairs[key] = digest

    def discard(self, key: str) -> None:
        """Removes a key, if it is there."""
        self._total -= self._pairs.pop(key, 0)

    @property
    def value(self) -> int:
        """The digest of the current map, 0 <= value < 2^64."""
        return self._total % MODULUS
