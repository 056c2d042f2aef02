"""The newest value of every key of one feed, in chunks that know what they hold. Pure.

Keys fall into chunks by the CRC-32 of the key, modulo the number of chunks (a power of two). A chunk carries the
state digest of its (key, value) pairs, revisions left out, so equal contents give equal chunks on every replica, and
the sequence of its last change, so that a snapshot encodes again only what changed.

Entries are never changed in place: a `Cut` that holds them stays what it was, however long its encoding takes.
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from protocol import digest as digests
from protocol import messages

CHUNK_TARGET_BYTES = 64 * 1024
"""Mean size at which the number of chunks doubles: one change then costs a snapshot at most so much to encode again."""
CHUNK_TARGET_KEYS = 256
MAX_CHUNKS = 1 << 15


class Entry(msgspec.Struct, gc=False, frozen=True):
    """A live key. Not tracked by the garbage collector: there are many, and none can be part of a cycle."""

    key: str
    value: bytes
    revision: str
    v3_resource_version: str
    ttl: int
    sequence: int
    digest: int

    def as_update(self) -> messages.Update:
        """What a snapshot says of it: everything there is new."""
        return messages.Update(
            self.key, self.value, self.revision, messages.UpdateType.NEW, self.v3_resource_version, self.ttl
        )


class Chunk:
    """The keys of one hash range."""

    __slots__ = ("digest", "entries", "sequence")

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.digest = 0
        self.sequence = 0
        """Sequence of the last change, or of the split that made the chunk; 0 for never."""


class ChunkCut(NamedTuple):
    """A chunk as it was at the cut; `entries` is None if it has not changed since the sequence asked about."""

    number: int
    sequence: int
    digest: int
    entries: tuple[Entry, ...] | None


class Cut(NamedTuple):
    """The whole store at one sequence."""

    sequence: int
    status: messages.SyncStatus
    keys: int
    digest: int
    chunks: tuple[ChunkCut, ...]


def chunk_hash(key: str) -> int:
    """32-bit hash that decides a key's chunk (docs/protocol.md, "Chunks")."""
    return zlib.crc32(key.encode())


class Store:
    """Key to newest value; the one writer is the feed that owns it.

    `put` and `delete` give the update that clients must be sent, or None if nothing changed for them. Each update
    takes one sequence number.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.status = messages.SyncStatus.WAITING
        self.value_bytes = 0
        """Bytes of all keys and values."""
        self.digest = 0
        self._entries: dict[str, Entry] = {}
        self._chunks = [Chunk()]

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Entry]:
        """Live entries, in order of last change."""
        return iter(self._entries.values())

    def get(self, key: str) -> Entry | None:
        """The entry of a live key."""
        return self._entries.get(key)

    @property
    def chunk_count(self) -> int:
        """Number of chunks, a power of two."""
        return len(self._chunks)

    def put(
        self, key: str, value: bytes, revision: str, *, v3_resource_version: str = "", ttl: int = 0
    ) -> messages.Update | None:
        """The key has this value now; None if value, V3 version and TTL are what they were.

        A suppressed no-op leaves the stored revision as it is: it is the revision of the value that clients hold.
        """
        old = self._entries.get(key)
        if old is not None:
            if old.value == value and old.v3_resource_version == v3_resource_version and old.ttl == ttl:
                return None
            del self._entries[key]  # so that it comes back as the last one changed
        self.sequence += 1
        pair = digests.pair_digest(key.encode(), value)
        entry = Entry(key, value, revision, v3_resource_version, ttl, self.sequence, pair)
        self._entries[key] = entry
        self._chunk_changed(entry, pair - (old.digest if old else 0)).entries[key] = entry
        self.value_bytes += len(value) - len(old.value) if old else len(key) + len(value)
        self._maybe_split()
        kind = messages.UpdateType.UPDATED if old else messages.UpdateType.NEW
        return messages.Update(key, value, revision, kind, v3_resource_version, ttl)

    def delete(self, key: str, revision: str) -> messages.Update | None:
        """The key is gone; None if it was not there."""
        old = self._entries.pop(key, None)
        if old is None:
            return None
        self.sequence += 1
        del self._chunk_changed(old, -old.digest).entries[key]
        self.value_bytes -= len(key) + len(old.value)
        return messages.Update(key, None, revision, messages.UpdateType.DELETED, old.v3_resource_version)

    def _chunk_changed(self, entry: Entry, digest_change: int) -> Chunk:
        chunk = self._chunks[chunk_hash(entry.key) & (len(self._chunks) - 1)]
        chunk.digest = (chunk.digest + digest_change) % digests.MODULUS
        chunk.sequence = self.sequence
        self.digest = (self.digest + digest_change) % digests.MODULUS
        return chunk

    def _maybe_split(self) -> None:
        count = len(self._chunks)
        if count >= MAX_CHUNKS or (
            len(self._entries) <= count * CHUNK_TARGET_KEYS and self.value_bytes <= count * CHUNK_TARGET_BYTES
        ):
            return
        # All chunks at once: it happens a dozen times in a cluster's growth, and takes some 0.5 us a key.
        self._chunks = [Chunk() for _ in range(count * 2)]
        for chunk in self._chunks:
            chunk.sequence = self.sequence  # the empty ones too: whoever remembers this number means another chunk
        for entry in self._entries.values():
            chunk = self._chunks[chunk_hash(entry.key) & (count * 2 - 1)]
            chunk.entries[entry.key] = entry
            chunk.digest = (chunk.digest + entry.digest) % digests.MODULUS

    def cut(self, *, since_sequence: int = -1) -> Cut:
        """Everything at this moment; chunks without a change after `since_sequence` come without their entries."""
        return Cut(
            self.sequence,
            self.status,
            len(self._entries),
            self.digest,
            tuple(
                ChunkCut(
                    number,
                    chunk.sequence,
                    chunk.digest,
                    tuple(chunk.entries.values()) if chunk.sequence > since_sequence else None,
                )
                for number, chunk in enumerate(self._chunks)
            ),
        )
