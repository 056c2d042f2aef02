"""Frames as the swarm needs them: what they change, decoded once for all agents of a process. Pure.

A dictionary finds the decoded frame by the frame's bytes, compared in full. So two agents share a decoded frame if and
only if they received the same bytes.
"""

import sys
from typing import Generic, NamedTuple, TypeVar

import msgspec

from loadtest import WRITTEN_AT
from protocol import digest, messages
from protocol.native import codec
from protocol.native import frames as native

T = TypeVar("T")

FRAME_CACHE_BYTES = 64 * 1024 * 1024
READ_CACHE_BYTES = 8 * 1024 * 1024
MAX_CACHED_READ_BYTES = 64 * 1024
"""Longer reads are parts of snapshots; they end inside a frame, at a different place for each agent."""


class Entry(NamedTuple):
    """What the swarm keeps of a live key: the digest of key and value, and the object's uid ("" without one)."""

    digest: int
    uid: str


class Change(NamedTuple):
    """The effect of one update on a map; without an entry it deletes the key."""

    key: str
    entry: Entry | None


class Content:
    """The effect on a map of a decoded frame, or of a message of Typha's protocol."""

    __slots__ = ("changes", "message", "written_at")

    message: object

    def __init__(self) -> None:
        self.changes: tuple[Change, ...] = ()
        self.written_at: tuple[int, ...] = ()
        """The writer's mark of each update that has one: nanoseconds since 1970."""

    def take(self, updates: tuple[messages.Update, ...]) -> None:
        """Set the changes."""
        changes: list[Change] = []
        written_at: list[int] = []
        for update in updates:
            key = sys.intern(update.key)
            if update.value is None:
                changes.append(Change(key, None))
                continue
            uid, written = metadata_of(update.value)
            changes.append(Change(key, Entry(digest.pair_digest(key.encode(), update.value), uid)))
            if written:
                written_at.append(written)
        self.changes = tuple(changes)
        self.written_at = tuple(written_at)


class Frame(Content):
    """A decoded frame. Equal only to itself, so that it can stand for its bytes as a dictionary's key."""

    __slots__ = ("body", "flags", "previous_sequence", "sequence", "size_bytes")

    def __init__(self, flags: int, body: bytes) -> None:
        """Decode. Raises RemoteProtocolError."""
        super().__init__()
        message = codec.decode(native.unpack_payload(flags, body))
        self.flags = flags
        self.body = body
        self.message = message
        """Without its updates, which are in `changes`."""
        self.size_bytes = len(body) + native.HEADER.size
        self.previous_sequence = -1
        """Of updates; -1 for other messages."""
        self.sequence = 0
        match message:
            case messages.Updates(previous_sequence=previous, sequence=sequence, updates=updates):
                self.take(updates)
                self.previous_sequence = previous
                self.sequence = sequence
                self.message = messages.Updates(previous, sequence, ())
            case messages.SnapshotChunk(index=index, digest=chunk_digest, more=more, updates=updates):
                self.take(updates)
                self.message = messages.SnapshotChunk(index, chunk_digest, more, ())


class _Metadata(msgspec.Struct, gc=False):
    uid: str = ""
    deletion: str = msgspec.field(name="deletionTimestamp", default="")
    annotations: dict[str, str] | None = None


class _Object(msgspec.Struct, gc=False):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    labels: dict[str, str] | None = None
    """Of Calico's workload endpoints, which carry the labels of their pod, and no annotations."""


_decode_object = msgspec.json.Decoder(_Object).decode


def metadata_of(value: bytes) -> tuple[str, int]:
    """(uid, written-at in nanoseconds) of a value; ("", 0) if it has none or is not a Kubernetes object."""
    try:
        found = _decode_object(value)
        metadata = found.metadata
        # A deletion starts with an update by the API server, which still has the annotation of an earlier write.
        written = 0 if metadata.deletion else int((metadata.annotations or found.labels or {}).get(WRITTEN_AT, 0))
    except ValueError:
        return "", 0
    return sys.intern(metadata.uid), written


class BoundedCache(Generic[T]):
    """Bytes -> T, limited by the size of the keys. Entries that were not used during half of the limit are dropped."""

    __slots__ = ("_half_bytes", "_old", "_young", "_young_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._half_bytes = limit_bytes // 2
        self._young: dict[bytes, T] = {}
        self._old: dict[bytes, T] = {}
        self._young_bytes = 0

    def get(self, key: bytes) -> T | None:
        """The value for these bytes, unless it was dropped."""
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: bytes, value: T) -> None:
        """Keep a value for these bytes."""
        self._young[key] = value
        self._young_bytes += len(key)
        if self._young_bytes > self._half_bytes:
            self._old = self._young
            self._young = {}
            self._young_bytes = 0


class FrameCache:
    """The distinct frames that a process received recently, decoded."""

    __slots__ = ("_compressed", "_plain", "distinct", "reads")

    def __init__(self) -> None:
        self._plain: BoundedCache[Frame] = BoundedCache(FRAME_CACHE_BYTES // 2)
        self._compressed: BoundedCache[Frame] = BoundedCache(FRAME_CACHE_BYTES // 2)
        self.reads: BoundedCache[tuple[Frame, ...]] = BoundedCache(READ_CACHE_BYTES)
        """Whole reads from a socket that were complete frames."""
        self.distinct = 0
        """Frames decoded so far."""

    def decode(self, flags: int, body: bytes) -> Frame:
        """The frame with this content. Raises RemoteProtocolError."""
        cache = self._compressed if flags else self._plain
        frame = cache.get(body)
        if frame is None:
            frame = Frame(flags, body)
            cache.put(body, frame)
            self.distinct += 1
        return frame
