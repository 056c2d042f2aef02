"""Maps of agents, shared by all agents that hold the same. Pure.

5,000 maps of 20,000 keys do not fit into memory, and need not: agents that received the same frames hold the same map.
A `State` is an immutable map with its digest. What a frame makes of a state is computed once and remembered with the
state (`State.next`), so each further agent in that state that receives that frame takes one dictionary lookup. Its own
bytes decide which frame, and its own history decided which state: every agent's map is proved, none is assumed.

States with equal (number of keys, digest) are one object however they came about, which joins agents again that
connected at different times. The digest is what is compared in the end, so this takes nothing from the proof.

Memory is bounded: a state lives as long as an agent is in it or a remembered step leads to it; only the latest steps
are remembered, an older one is computed again when a slow agent needs it.
"""

import collections
import weakref
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from loadtest.swarm import frames
from protocol import digest, errors, messages

REMEMBERED_CHANGES: Final = 200_000
"""Steps are remembered up to this many changed keys in all; a changed key takes some 0.5 to 2 kB."""
MAX_DELETIONS: Final = 1_000_000

_BITS: Final = 6
_WIDTH: Final = 1 << _BITS
_MASK: Final = _WIDTH - 1

Leaf: TypeAlias = dict[str, frames.Entry]
Buckets: TypeAlias = tuple[tuple[Leaf, ...], ...]

_NO_KEYS: Final[Leaf] = {}
_NO_BUCKETS: Final[Buckets] = ((_NO_KEYS,) * _WIDTH,) * _WIDTH


class Step(NamedTuple):
    """What a frame, or a finished snapshot, makes of a state."""

    state: "State"
    gone: tuple[tuple[str, str], ...]
    """(key, uid) of the objects that were live before and are not any more."""


class State:
    """One map: its digest, its number of keys, and its entries in 4,096 buckets that states share."""

    __slots__ = ("__weakref__", "buckets", "digest", "keys", "next")

    def __init__(self, *, keys: int, digest: int, buckets: Buckets) -> None:
        self.keys = keys
        self.digest = digest
        self.buckets = buckets
        self.next: dict[frames.Content | State, Step] = {}

    def entry(self, key: str) -> frames.Entry | None:
        """What is kept of a live key."""
        place = hash(key)
        return self.buckets[place >> _BITS & _MASK][place & _MASK].get(key)

    def without(self, keys: Iterable[str]) -> tuple[int, int]:
        """Digest and number of keys of the map, some keys left out."""
        left_out = [entry.digest for entry in map(self.entry, set(keys)) if entry is not None]
        return (self.digest - sum(left_out)) % digest.MODULUS, self.keys - len(left_out)


class Partial:
    """A snapshot that has begun: the frames so far, checked one by one."""

    __slots__ = ("begin", "chunk_digest", "chunk_index", "digest", "expected", "frame", "keys", "next", "parent")

    def __init__(self, begin: messages.SnapshotBegin) -> None:
        self.begin = begin
        self.parent: Partial | None = None
        self.frame: frames.Frame | None = None
        self.chunk_index = -1
        self.chunk_digest: int | None = None
        """Sum of the pairs of a chunk that goes on; None between chunks."""
        self.keys = 0
        self.digest = 0
        self.next: dict[frames.Frame, Partial | State] = {}
        self.expected: frames.Frame | None = None
        """The chunk frame that followed last time."""


class StateTable:
    """All states of a process, and the record of every deletion that any of its agents saw.

    `deletions` maps (key, uid) to when the first agent saw the object deleted, in nanoseconds since 1970: by a
    deletion, by a snapshot without it, or by an update that has the key but another uid.
    """

    def __init__(self) -> None:
        self.empty = State(keys=0, digest=0, buckets=_NO_BUCKETS)
        self.deletions: dict[tuple[str, str], int] = {}
        self.deletions_lost = 0
        """Deletions that did not fit into `deletions`; a run with any proves nothing about deletions."""
        self._known: weakref.WeakValueDictionary[tuple[int, int], State] = weakref.WeakValueDictionary()
        self._known[0, 0] = self.empty
        self._remembered: collections.deque[tuple[State | Partial, int]] = collections.deque()
        self._remembered_changes = 0
        self._begun: dict[frames.Frame, Partial] = {}

    def __len__(self) -> int:
        return len(self._known)

    def update(self, state: State, frame: frames.Content) -> Step:
        """What the updates of a frame make of a state."""
        step = state.next.get(frame)
        if step is None:
            step = state.next[frame] = self._apply(state, frame)
            self._remember(state, changes=len(frame.changes))
        return step

    def begin(self, frame: frames.Frame) -> Partial:
        """The snapshot that `frame`, a snapshot-begin, opens."""
        partial = self._begun.get(frame)
        if partial is None:
            assert isinstance(frame.message, messages.SnapshotBegin)
            partial = Partial(frame.message)
            while len(self._begun) >= 64:
                del self._begun[next(iter(self._begun))]
            self._begun[frame] = partial
        return partial

    def chunk(self, partial: Partial, frame: frames.Frame) -> Partial:
        """The snapshot with one more chunk frame. Raises RemoteProtocolError."""
        following = partial.next.get(frame)
        if following is None:
            following = partial.next[frame] = _with_chunk(partial, frame)
            partial.expected = frame
            self._remember(partial, changes=len(frame.changes))
        assert isinstance(following, Partial)
        return following

    def end(self, partial: Partial, frame: frames.Frame) -> State:
        """The state that a complete snapshot holds. Raises RemoteProtocolError."""
        state = partial.next.get(frame)
        if state is None:
            assert isinstance(frame.message, messages.SnapshotEnd)
            state = partial.next[frame] = self._build(partial, frame.message)
            self._remember(partial, changes=state.keys)
        assert isinstance(state, State)
        return state

    def replace(self, old: State, new: State) -> Step:
        """A snapshot takes an agent from `old` to `new`."""
        step = old.next.get(new)
        if step is None:
            step = old.next[new] = Step(new, _gone(old, new))
            self._remember(old, changes=0)
        return step

    def _apply(self, state: State, frame: frames.Content) -> Step:
        outer = list(state.buckets)
        keys, total = state.keys, state.digest
        gone: list[tuple[str, str]] = []
        for key, entry in frame.changes:
            place = hash(key)
            high, low = place >> _BITS & _MASK, place & _MASK
            inner = list(outer[high])
            leaf = dict(inner[low])
            before = leaf.pop(key, None)
            if before is not None:
                keys -= 1
                total -= before.digest
                if entry is None or entry.uid != before.uid:
                    gone.append((key, before.uid))
            if entry is not None:
                keys += 1
                total += entry.digest
                leaf[key] = entry
            inner[low] = leaf
            outer[high] = tuple(inner)
        return Step(self._intern(keys, total % digest.MODULUS, tuple(outer)), tuple(gone))

    def _build(self, partial: Partial, end: messages.SnapshotEnd) -> State:
        begin = partial.begin
        if end.sequence != begin.sequence or end.keys != begin.keys:
            raise errors.RemoteProtocolError(f"{end} does not end {begin}")
        if partial.chunk_digest is not None:
            raise errors.RemoteProtocolError(f"snapshot ends inside chunk {partial.chunk_index}")
        outer: list[list[Leaf]] = [[{} for _ in range(_WIDTH)] for _ in range(_WIDTH)]
        keys = 0
        node: Partial | None = partial
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

    def _intern(self, keys: int, total: int, buckets: Buckets) -> State:
        state = self._known.get((keys, total))
        if state is None:
            state = self._known[keys, total] = State(keys=keys, digest=total, buckets=buckets)
        return state

    def record(self, gone: Iterable[tuple[str, str]], now_ns: int) -> None:
        """An agent saw these objects deleted, now."""
        for deletion in gone:
            if deletion in self.deletions:
                self.deletions[deletion] = min(now_ns, self.deletions[deletion])
            elif len(self.deletions) < MAX_DELETIONS:
                self.deletions[deletion] = now_ns
            else:
                self.deletions_lost += 1

    def _remember(self, holder: State | Partial, *, changes: int) -> None:
        """Accounts for a step that was just added to `holder`; forgets the oldest ones, and all of their holders'."""
        self._remembered.append((holder, changes + 1))
        self._remembered_changes += changes + 1
        while self._remembered_changes > REMEMBERED_CHANGES and len(self._remembered) > 1:
            oldest, count = self._remembered.popleft()
            self._remembered_changes -= count
            oldest.next.clear()


def _with_chunk(partial: Partial, frame: frames.Frame) -> Partial:
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
    following = Partial(partial.begin)
    following.parent = partial
    following.frame = frame
    following.chunk_index = chunk.index
    following.chunk_digest = sum_of_chunk if chunk.more else None
    following.keys = partial.keys + len(frame.changes)
    following.digest = (partial.digest + sum_of_frame) % digest.MODULUS
    if following.keys > partial.begin.keys:
        raise errors.RemoteProtocolError(f"snapshot of {partial.begin.keys} keys has more")
    return following


def _gone(old: State, new: State) -> tuple[tuple[str, str], ...]:
    """The objects of `old`, as (key, uid), that `new` does not have."""
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
