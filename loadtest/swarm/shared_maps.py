"""Maps that all agents with the same content share. Pure.

5,000 maps of 20,000 keys do not fit into memory. But agents that received the same frames hold the same map: a
`SharedMap`, immutable and with its digest. The effect of a frame on a map is computed once and remembered with the map
(`SharedMap.next`), so for each further agent it takes one dictionary lookup. An agent's own bytes decide which frame,
and its own history which map; so every agent's map is proved and none is assumed.

Maps with the same number of keys and the same digest are one object, however they came about. This joins agents that
connected at different times. It does not weaken the proof, which compares digests.

Memory is bounded: a map lives while an agent holds it or a remembered step leads to it. Only the latest steps are
remembered; an older one is computed again when a slow agent needs it.
"""

import collections
import weakref
from collections.abc import Iterable
from typing import Final, TypeAlias

from loadtest.swarm import frames
from protocol import digest, errors, messages

REMEMBERED_CHANGES: Final = 200_000
"""Total number of changed keys in remembered steps; a changed key takes 0.5 to 2 kB."""
MAX_DELETIONS: Final = 1_000_000

_BITS: Final = 6
_WIDTH: Final = 1 << _BITS
_MASK: Final = _WIDTH - 1

Leaf: TypeAlias = dict[str, frames.Entry]
Buckets: TypeAlias = tuple[tuple[Leaf, ...], ...]

_NO_KEYS: Final[Leaf] = {}
_NO_BUCKETS: Final[Buckets] = ((_NO_KEYS,) * _WIDTH,) * _WIDTH


class MapStep:
    """The effect of a frame, or of a finished snapshot, on a map."""

    __slots__ = ("gone", "is_recorded", "map")

    def __init__(self, after: "SharedMap", gone: tuple[tuple[str, str], ...]) -> None:
        self.map = after
        self.gone = gone
        """(key, uid) of the objects that are no longer in the map."""
        self.is_recorded = False
        """Whether an agent has seen them go. For each further agent of the process that is nothing new."""


class SharedMap:
    """A map: digest, number of keys, and its entries in 4,096 buckets that maps share."""

    __slots__ = ("__weakref__", "buckets", "digest", "keys", "next")

    def __init__(self, *, keys: int, digest: int, buckets: Buckets) -> None:
        self.keys = keys
        self.digest = digest
        self.buckets = buckets
        self.next: dict[frames.Content | SharedMap, MapStep] = {}

    def entry(self, key: str) -> frames.Entry | None:
        """The entry of a live key."""
        place = hash(key)
        return self.buckets[place >> _BITS & _MASK][place & _MASK].get(key)

    def without(self, keys: Iterable[str]) -> tuple[int, int]:
        """Digest and number of keys of the map without some keys."""
        left_out = [entry.digest for entry in map(self.entry, set(keys)) if entry is not None]
        return (self.digest - sum(left_out)) % digest.MODULUS, self.keys - len(left_out)


class PartialSnapshot:
    """A snapshot in progress: the frames so far, each checked."""

    __slots__ = ("begin", "chunk_digest", "chunk_index", "digest", "expected", "frame", "keys", "next", "parent")

    def __init__(self, begin: messages.SnapshotBegin) -> None:
        self.begin = begin
        self.parent: PartialSnapshot | None = None
        self.frame: frames.Frame | None = None
        self.chunk_index = -1
        self.chunk_digest: int | None = None
        """Sum of the pairs of an incomplete chunk; None between chunks."""
        self.keys = 0
        self.digest = 0
        self.next: dict[frames.Frame, PartialSnapshot | SharedMap] = {}
        self.expected: frames.Frame | None = None
        """The chunk frame that followed for the last agent."""


class MapTable:
    """All maps of a process, and every deletion that one of its agents saw.

    `deletions` maps (key, uid) to when the first agent saw the object deleted, in nanoseconds since 1970: by a
    deletion, by a snapshot without it, or by an update of the key with another uid.
    """

    def __init__(self) -> None:
        self.empty = SharedMap(keys=0, digest=0, buckets=_NO_BUCKETS)
        self.deletions: dict[tuple[str, str], int] = {}
        self.deletions_lost = 0
        """Deletions that did not fit into `deletions`. With any of them, a run proves nothing about deletions."""
        self._known: weakref.WeakValueDictionary[tuple[int, int], SharedMap] = weakref.WeakValueDictionary()
        self._known[0, 0] = self.empty
        self._remembered: collections.deque[tuple[SharedMap | PartialSnapshot, int]] = collections.deque()
        self._remembered_changes = 0
        self._begun: dict[frames.Frame, PartialSnapshot] = {}

    def __len__(self) -> int:
        return len(self._known)

    def update(self, before: SharedMap, frame: frames.Content) -> MapStep:
        """The effect of a frame's updates on a map."""
        step = before.next.get(frame)
        if step is None:
            step = before.next[frame] = self._apply(before, frame)
            self._remember(before, changes=len(frame.changes))
        return step

    def begin(self, frame: frames.Frame) -> PartialSnapshot:
        """The snapshot that a snapshot-begin frame opens."""
        partial = self._begun.get(frame)
        if partial is None:
            assert isinstance(frame.message, messages.SnapshotBegin)
            partial = PartialSnapshot(frame.message)
            while len(self._begun) >= 64:
                del self._begun[next(iter(self._begun))]
            self._begun[frame] = partial
        return partial

    def chunk(self, partial: PartialSnapshot, frame: frames.Frame) -> PartialSnapshot:
        """The snapshot with one more chunk frame. Raises RemoteProtocolError."""
        following = partial.next.get(frame)
        if following is None:
            following = partial.next[frame] = _with_chunk(partial, frame)
            partial.expected = frame
            self._remember(partial, changes=len(frame.changes))
        assert isinstance(following, PartialSnapshot)
        return following

    def end(self, partial: PartialSnapshot, frame: frames.Frame) -> SharedMap:
        """The map of a complete snapshot. Raises RemoteProtocolError."""
        whole = partial.next.get(frame)
        if whole is None:
            assert isinstance(frame.message, messages.SnapshotEnd)
            whole = partial.next[frame] = self._build(partial, frame.message)
            self._remember(partial, changes=whole.keys)
        assert isinstance(whole, SharedMap)
        return whole

    def replace(self, old: SharedMap, new: SharedMap) -> MapStep:
        """The effect of replacing `old` by `new`."""
        step = old.next.get(new)
        if step is None:
            step = old.next[new] = MapStep(new, _gone(old, new))
            self._remember(old, changes=0)
        return step

    def _apply(self, before: SharedMap, frame: frames.Content) -> MapStep:
        outer = list(before.buckets)
        keys, total = before.keys, before.digest
        gone: list[tuple[str, str]] = []
        for key, entry in frame.changes:
            place = hash(key)
            high, low = place >> _BITS & _MASK, place & _MASK
            inner = list(outer[high])
            leaf = dict(inner[low])
            old = leaf.pop(key, None)
            if old is not None:
                keys -= 1
                total -= old.digest
                if entry is None or entry.uid != old.uid:
                    gone.append((key, old.uid))
            if entry is not None:
                keys += 1
                total += entry.digest
                leaf[key] = entry
            inner[low] = leaf
            outer[high] = tuple(inner)
        return MapStep(self._intern(keys, total % digest.MODULUS, tuple(outer)), tuple(gone))

    def _build(self, partial: PartialSnapshot, end: messages.SnapshotEnd) -> SharedMap:
        begin = partial.begin
        if end.sequence != begin.sequence or end.keys != begin.keys:
            raise errors.RemoteProtocolError(f"{end} does not end {begin}")
        if partial.chunk_digest is not None:
            raise errors.RemoteProtocolError(f"snapshot ends inside chunk {partial.chunk_index}")
        outer: list[list[Leaf]] = [[{} for _ in range(_WIDTH)] for _ in range(_WIDTH)]
        keys = 0
        node: PartialSnapshot | None = partial
        while node is not None:
            if node.frame is not None:
                for key, entry in node.frame.changes:
                    assert entry is not None
                    place = hash(key)
                    outer[place >> _BITS & _MASK][place & _MASK][key] = entry
                keys += len(node.frame.changes)
            node = node.parent
        distinct = sum(len(leaf) for inner in outer for leaf in inner)
        if not keys == distinct == end.keys:
            raise errors.RemoteProtocolError(f"snapshot of {end.keys} keys has {keys}, of them {distinct} distinct")
        if partial.digest != end.digest:
            raise errors.RemoteProtocolError(f"snapshot has digest {partial.digest:016x}, announced {end.digest:016x}")
        return self._intern(keys, partial.digest, tuple(tuple(inner) for inner in outer))

    def _intern(self, keys: int, total: int, buckets: Buckets) -> SharedMap:
        known = self._known.get((keys, total))
        if known is None:
            known = self._known[keys, total] = SharedMap(keys=keys, digest=total, buckets=buckets)
        return known

    def record(self, step: MapStep, now_ns: int) -> None:
        """Record that an agent saw a step's objects deleted."""
        if step.is_recorded:
            return
        step.is_recorded = True
        for deletion in step.gone:
            if deletion in self.deletions:
                self.deletions[deletion] = min(now_ns, self.deletions[deletion])
            elif len(self.deletions) < MAX_DELETIONS:
                self.deletions[deletion] = now_ns
            else:
                self.deletions_lost += 1

    def _remember(self, holder: SharedMap | PartialSnapshot, *, changes: int) -> None:
        """Count a step that was just added to `holder`; forget the oldest steps, with all steps of their holders."""
        self._remembered.append((holder, changes + 1))
        self._remembered_changes += changes + 1
        while self._remembered_changes > REMEMBERED_CHANGES and len(self._remembered) > 1:
            oldest, count = self._remembered.popleft()
            self._remembered_changes -= count
            oldest.next.clear()


def _with_chunk(partial: PartialSnapshot, frame: frames.Frame) -> PartialSnapshot:
    chunk = frame.message
    assert isinstance(chunk, messages.SnapshotChunk)
    going_on = partial.chunk_digest is not None
    if going_on and chunk.index != partial.chunk_index:
        raise errors.RemoteProtocolError(f"chunk {chunk.index} begins inside chunk {partial.chunk_index}")
    if not going_on and not partial.chunk_index < chunk.index < partial.begin.chunks:
        raise errors.RemoteProtocolError(f"chunk {chunk.index} follows {partial.chunk_index} of {partial.begin.chunks}")
    sum_of_frame = 0
    for key, entry in frame.changes:
        if entry is None:
            raise errors.RemoteProtocolError(f"snapshot deletes {key}")
        sum_of_frame += entry.digest
    sum_of_chunk = ((partial.chunk_digest or 0) + sum_of_frame) % digest.MODULUS
    if not chunk.more and sum_of_chunk != chunk.digest:
        raise errors.RemoteProtocolError(
            f"chunk {chunk.index} has digest {sum_of_chunk:016x}, announced {chunk.digest:016x}"
        )
    following = PartialSnapshot(partial.begin)
    following.parent = partial
    following.frame = frame
    following.chunk_index = chunk.index
    following.chunk_digest = sum_of_chunk if chunk.more else None
    following.keys = partial.keys + len(frame.changes)
    following.digest = (partial.digest + sum_of_frame) % digest.MODULUS
    if following.keys > partial.begin.keys:
        raise errors.RemoteProtocolError(f"snapshot of {partial.begin.keys} keys has more")
    return following


def _gone(old: SharedMap, new: SharedMap) -> tuple[tuple[str, str], ...]:
    """(key, uid) of the objects that are in `old` and not in `new`."""
    gone: list[tuple[str, str]] = []
    for old_inner, new_inner in zip(old.buckets, new.buckets, strict=True):
        if old_inner is new_inner:
            continue
        for old_leaf, new_leaf in zip(old_inner, new_inner, strict=True):
            if old_leaf is new_leaf:
                continue
            for key, entry in old_leaf.items():
                after = new_leaf.get(key)
                if after is None or after.uid != entry.uid:
                    gone.append((key, entry.uid))
    return tuple(gone)
