"""The newest value of every key of one feed, in chunks that know what they hold. Pure.

Keys fall into chunks by the CRC-32 of the key, modulo the number of chunks (a power of two). A chunk carries the
state digest of its (key, value) pairs, revisions left out, so equal contents give equal chunks on every replica, and
the sequence of its last change, so that a snapshot encodes again only what changed.

Entries are never changed in place: a `Cut` or `Difference` that holds them stays what it was, however long its
encoding takes. Live keys and deletions are kept in order of their last change, so what has changed since a sequence is
a look from the end. Deletions are remembered as tombstones, as many as the module's numbers allow.
"""

import itertools
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
TOMBSTONES_MIN = 200_000
"""So many deletions may be remembered however few keys there are; beyond it, two for each live key."""
_TOMBSTONES_DROPPED_SHARE = 16
"""The oldest sixteenth goes at once: taking the first of a dictionary one by one would scan the gap before it."""


class Forgotten(Exception):
    """What was deleted since then is not known any more."""


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

    def as_change(self) -> messages.Update:
        """What a catch-up says of it, whose receiver has an older value or none."""
        return messages.Update(
            self.key, self.value, self.revision, messages.UpdateType.UPDATED, self.v3_resource_version, self.ttl
        )


class Tombstone(msgspec.Struct, gc=False, frozen=True):
    """A key that is gone, and since when."""

    key: str
    revision: str
    v3_resource_version: str
    sequence: int

    def as_change(self) -> messages.Update:
        """What a catch-up says of it; the receiver may never have known the key."""
        return messages.Update(self.key, None, self.revision, messages.UpdateType.DELETED, self.v3_resource_version)


class Difference(NamedTuple):
    """What has changed behind `since_sequence`, as of one moment: the last change of each key."""

    since_sequence: int
    sequence: int
    """The store's at that moment."""
    status: messages.SyncStatus
    entries: list[Entry]
    """Newest first."""
    tombstones: list[Tombstone]
    """Newest first."""

    def changes(self) -> Iterator[tuple[int, messages.Update]]:
        """(sequence, update) in order of sequence; takes them out of the lists."""
        entries, tombstones = self.entries, self.tombstones
        while entries or tombstones:
            is_deletion = not entries or (bool(tombstones) and tombstones[-1].sequence < entries[-1].sequence)
            change: Entry | Tombstone = tombstones.pop() if is_deletion else entries.pop()
            yield change.sequence, change.as_change()


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
    """32-bit hash that decides a key's chunk (docs/protocol.md, section 3)."""
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
        self.tombstone_floor = 0
        """Deletions up to this sequence may be forgotten; all behind it are known."""
        self._entries: dict[str, Entry] = {}
        self._tombstones: dict[str, Tombstone] = {}
        """In order of sequence; no key is here and in `_entries`."""
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
    def tombstone_count(self) -> int:
        """Number of deletions that are remembered."""
        return len(self._tombstones)

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
        else:
            self._tombstones.pop(key, None)
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
        tombstone = Tombstone(old.key, revision, old.v3_resource_version, self.sequence)
        self._tombstones[old.key] = tombstone
        if len(self._tombstones) > max(TOMBSTONES_MIN, 2 * len(self._entries)):
            self._drop_tombstones(max(1, len(self._tombstones) // _TOMBSTONES_DROPPED_SHARE))
        return tombstone.as_change()

    def _drop_tombstones(self, count: int) -> None:
        for tombstone in list(itertools.islice(self._tombstones.values(), count)):
            del self._tombstones[tombstone.key]
            self.tombstone_floor = tombstone.sequence

    def forget_deletions(self, up_to_sequence: int) -> None:
        """Nobody will ask for a difference since an earlier sequence; does nothing while that would free little."""
        count = 0
        for tombstone in self._tombstones.values():
            if tombstone.sequence > up_to_sequence:
                break
            count += 1
        if count * _TOMBSTONES_DROPPED_SHARE > len(self._tombstones):
            self._drop_tombstones(count)

    def changes_since(self, sequence: int) -> Difference:
        """The last change of each key that has changed behind a sequence; takes some 20 ns for each.

        Raises:
            Forgotten: some of the deletions are not known any more.
        """
        if sequence < self.tombstone_floor:
            raise Forgotten(
                f"deletions up to {self.tombstone_floor} are forgotten, those since {sequence} were asked for"
            )
        entries = []
        for entry in reversed(self._entries.values()):
            if entry.sequence <= sequence:
                break
            entries.append(entry)
        tombstones = []
        for tombstone in reversed(self._tombstones.values()):
            if tombstone.sequence <= sequence:
                break
            tombstones.append(tombstone)
        return Difference(sequence, self.sequence, self.status, entries, tombstones)

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
