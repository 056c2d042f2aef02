"""The newest value of every key of one feed, in chunks that track their digest and last change. Pure.

The CRC-32 of a key, modulo the number of chunks (a power of two), gives its chunk. A chunk holds the state digest of
its (key, value) pairs without revisions, so equal contents give equal chunks on every replica. It also holds the
sequence of its last change, so that a snapshot encodes only changed chunks again.

Entries are immutable. A `Cut` or `Difference` therefore stays correct while it is encoded, however long that takes.
Live keys and deletions are kept in the order of their last change, so the changes since a sequence are found from the
end. Deletions are kept as tombstones, up to the limits in this module.
"""

import itertools
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from protocol import digest as digests
from protocol import messages

_TOMBSTONES_DROPPED_SHARE = 16
"""Drop the oldest sixteenth at once. Removing the first item of a dictionary one by one would scan the growing gap."""
_TOMBSTONES_FORGOTTEN_MAX = 20_000
"""Forget at most this many deletions that no client needs in one call: 5 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """The sizes at which a store splits its chunks, and the number of deletions that it remembers."""

    chunk_target_bytes: int = 64 * 1024
    """Mean chunk size at which the number of chunks doubles. One change makes a snapshot encode about this much."""
    chunk_target_keys: int = 256
    """The same as a number of keys."""
    max_chunks: int = 1 << 15
    split_at_once_keys: int = 4096
    """With at most this many keys, all chunks split in one step of 2 ms. More keys move by and by: `advance_split`."""
    tombstones_min: int = 200_000
    """Minimum number of deletions to remember, even with few keys. Above it the limit is two for each live key."""


DEFAULT_LIMITS = StoreLimits()


class Forgotten(Exception):
    """The store no longer knows all deletions since the requested sequence."""


class Entry(msgspec.Struct, gc=False, frozen=True):
    """A live key. Excluded from garbage collection, because entries are many and cannot be part of a cycle."""

    key: str
    value: bytes
    revision: str
    v3_resource_version: str
    ttl: int
    sequence: int
    digest: int

    def as_update(self) -> messages.Update:
        """Return the update that a snapshot contains. In a snapshot every key is new."""
        return messages.Update(
            self.key, self.value, self.revision, messages.UpdateType.NEW, self.v3_resource_version, self.ttl
        )

    def as_change(self) -> messages.Update:
        """Return the update that a catch-up block contains. The receiver has an older value or none."""
        return messages.Update(
            self.key, self.value, self.revision, messages.UpdateType.UPDATED, self.v3_resource_version, self.ttl
        )


class Tombstone(msgspec.Struct, gc=False, frozen=True):
    """A deleted key, and the sequence of its deletion."""

    key: str
    revision: str
    v3_resource_version: str
    sequence: int

    def as_change(self) -> messages.Update:
        """Return the update that a catch-up block contains. The receiver may never have had the key."""
        return messages.Update(self.key, None, self.revision, messages.UpdateType.DELETED, self.v3_resource_version)


class Difference(NamedTuple):
    """The last change of each key that has changed after `since_sequence`, as of one moment."""

    since_sequence: int
    sequence: int
    """Sequence of the store at that moment."""
    status: messages.SyncStatus
    entries: list[Entry]
    """Newest first."""
    tombstones: list[Tombstone]
    """Newest first."""

    def changes(self) -> Iterator[tuple[int, messages.Update]]:
        """Yield (sequence, update) in the order of sequences, and remove them from the lists."""
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
        """Sequence of the last change, or of the split that created the chunk. 0 = never."""


class _Split:
    """Twice the chunks, while they are filled from the present ones. The store uses them once they are complete.

    `changed` must report every change of the present chunks meanwhile.
    """

    __slots__ = ("_begun", "_moving", "_old", "chunks")

    def __init__(self, old: list[Chunk]) -> None:
        self._old = old
        self._begun = 0
        """Number of present chunks whose entries are here, or are being moved."""
        self._moving: list[Entry] = []
        """The entries of the last of them that are not here yet, unless they have changed meanwhile."""
        self.chunks = [Chunk() for _ in range(2 * len(old))]

    def is_complete(self) -> bool:
        """Whether all keys are here."""
        return not self._moving and self._begun == len(self._old)

    def move(self, keys: int) -> None:
        """Move up to this many keys."""
        mask = len(self.chunks) - 1
        while keys > 0 and not self.is_complete():
            if not self._moving:
                self._moving = list(self._old[self._begun].entries.values())
                self._begun += 1
            present = self._old[self._begun - 1].entries
            for entry in self._moving[-keys:]:
                if present.get(entry.key) is entry:
                    chunk = self.chunks[chunk_hash(entry.key) & mask]
                    chunk.entries[entry.key] = entry
                    chunk.digest = (chunk.digest + entry.digest) % digests.MODULUS
            moved = min(keys, len(self._moving))
            del self._moving[-keys:]
            keys -= max(moved, 1)

    def changed(self, key: str, entry: Entry | None) -> None:
        """Repeat a change of the present chunks. `entry` None deletes the key."""
        key_hash = chunk_hash(key)
        if key_hash & (len(self._old) - 1) >= self._begun:
            return
        chunk = self.chunks[key_hash & (len(self.chunks) - 1)]
        old = chunk.entries.pop(key, None)
        change = (entry.digest if entry else 0) - (old.digest if old else 0)
        chunk.digest = (chunk.digest + change) % digests.MODULUS
        if entry is not None:
            chunk.entries[key] = entry


class ChunkCut(NamedTuple):
    """A chunk as it was at the cut. `entries` is None if it has not changed since the requested sequence."""

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
    """Return the 32-bit hash that determines a key's chunk (docs/protocol.md, section 3)."""
    return zlib.crc32(key.encode())


class Store:
    """The newest value of each key. The feed that owns the store is the only writer.

    `put` and `delete` return the update to send to clients, or None if nothing changes for them. Each update takes one
    sequence number.
    """

    def __init__(self, limits: StoreLimits | None = None) -> None:
        self.limits = limits = DEFAULT_LIMITS if limits is None else limits
        self._tombstones_min = limits.tombstones_min
        self.sequence = 0
        self.status = messages.SyncStatus.WAITING
        self.value_bytes = 0
        """Bytes of all keys and values."""
        self.digest = 0
        self.tombstone_floor = 0
        """Deletions up to this sequence may be forgotten. All later ones are known."""
        self._entries: dict[str, Entry] = {}
        self._tombstones: dict[str, Tombstone] = {}
        """In order of sequence. A key is never both here and in `_entries`."""
        self._chunks = [Chunk()]
        self._split: _Split | None = None
        self._max_keys = self._max_bytes = 0
        """The chunks split when the store has more keys or bytes than this."""
        self._set_split_sizes()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over live entries, in the order of their last change."""
        return iter(self._entries.values())

    def get(self, key: str) -> Entry | None:
        """Return the entry of a live key, or None."""
        return self._entries.get(key)

    @property
    def tombstone_count(self) -> int:
        """Number of remembered deletions."""
        return len(self._tombstones)

    @property
    def chunk_count(self) -> int:
        """Number of chunks, a power of two."""
        return len(self._chunks)

    def chunk_entries(self, number: int) -> list[Entry]:
        """Return the live entries of a chunk, 0 <= number < `chunk_count`. All chunks together have all of them."""
        return list(self._chunks[number].entries.values())

    @property
    def is_splitting(self) -> bool:
        """Whether `advance_split` has more to do."""
        return self._split is not None and not self._split.is_complete()

    def advance_split(self, keys: int) -> None:
        """Move up to this many keys to their new chunks, if the chunks are being split. Takes 1 us a key."""
        if self._split is not None:
            self._split.move(keys)

    def put(
        self, key: str, value: bytes, revision: str, *, v3_resource_version: str = "", ttl: int = 0
    ) -> messages.Update | None:
        """Set a key's value. Return None if value, V3 version and TTL are unchanged.

        An unchanged value keeps its stored revision, because clients hold the value with that revision.
        """
        old = self._entries.get(key)
        if old and old.value == value and old.v3_resource_version == v3_resource_version and old.ttl == ttl:
            return None
        pair = digests.pair_digest(key.encode(), value)
        self.adopt(Entry(key, value, revision, v3_resource_version, ttl, self.sequence + 1, pair))
        kind = messages.UpdateType.UPDATED if old else messages.UpdateType.NEW
        return messages.Update(key, value, revision, kind, v3_resource_version, ttl)

    def adopt(self, entry: Entry) -> None:
        """Set a key by an entry, perhaps of another store. Its sequence becomes the store's, and is never lower."""
        key = entry.key
        old = self._entries.pop(key, None)  # the new entry must be the last in the order
        if old is None:
            self._tombstones.pop(key, None)
        self.sequence = entry.sequence
        self._entries[key] = entry
        self._chunk_changed(entry, entry.digest - (old.digest if old else 0)).entries[key] = entry
        if self._split is not None:
            self._split.changed(key, entry)
        self.value_bytes += len(entry.value) - len(old.value) if old else len(key) + len(entry.value)
        self._maybe_split()

    def delete(self, key: str, revision: str) -> messages.Update | None:
        """Delete a key. Return None if it does not exist."""
        old = self._entries.pop(key, None)
        if old is None:
            return None
        self.sequence += 1
        del self._chunk_changed(old, -old.digest).entries[key]
        if self._split is not None:
            self._split.changed(key, None)
            self._maybe_split()
        self.value_bytes -= len(key) + len(old.value)
        tombstone = Tombstone(old.key, revision, old.v3_resource_version, self.sequence)
        self._tombstones[old.key] = tombstone
        excess = len(self._tombstones) - max(self._tombstones_min, 2 * len(self._entries))
        if excess > 0:
            self._drop_tombstones(max(excess, len(self._tombstones) // _TOMBSTONES_DROPPED_SHARE))
        return tombstone.as_change()

    def _drop_tombstones(self, count: int) -> None:
        for tombstone in list(itertools.islice(self._tombstones.values(), count)):
            del self._tombstones[tombstone.key]
            self.tombstone_floor = tombstone.sequence

    def forget_deletions(self, up_to_sequence: int, *, keep: int = 0) -> None:
        """Drop deletions up to a sequence that no client needs, but keep so many of the newest.

        Do nothing if that would free little memory.
        """
        count = 0
        droppable = min(_TOMBSTONES_FORGOTTEN_MAX, max(0, len(self._tombstones) - keep))
        for tombstone in itertools.islice(self._tombstones.values(), droppable):
            if tombstone.sequence > up_to_sequence:
                break
            count += 1
        if count == _TOMBSTONES_FORGOTTEN_MAX or count * _TOMBSTONES_DROPPED_SHARE > len(self._tombstones):
            self._drop_tombstones(count)

    def changes_since(self, sequence: int) -> Difference:
        """Return the last change of each key that has changed after a sequence. Takes about 20 ns for each key.

        Raises:
            Forgotten: some deletions after the sequence are not known any more.
        """
        if sequence < self.tombstone_floor:
            raise Forgotten(
                f"deletions up to {self.tombstone_floor} are forgotten, but those since {sequence} are needed"
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
        """Begin a split, or adopt a complete one. Call it after a change, which has a new sequence number."""
        if self._split is None:
            if len(self._entries) <= self._max_keys and self.value_bytes <= self._max_bytes:
                return
            self._split = _Split(self._chunks)
            if len(self._entries) <= self.limits.split_at_once_keys:
                self._split.move(len(self._entries) + len(self._chunks))
        if self._split.is_complete():
            self._chunks = self._split.chunks
            self._split = None
            for chunk in self._chunks:
                chunk.sequence = self.sequence  # in empty ones too: a snapshot that knows it knows another chunk
            self._set_split_sizes()

    def _set_split_sizes(self) -> None:
        count, limits = len(self._chunks), self.limits
        may_split = count < limits.max_chunks
        self._max_keys = count * limits.chunk_target_keys if may_split else sys.maxsize
        self._max_bytes = count * limits.chunk_target_bytes if may_split else sys.maxsize

    def cut(self, *, since_sequence: int = -1) -> Cut:
        """Return the whole store at this moment. Chunks unchanged after `since_sequence` come without their entries."""
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
