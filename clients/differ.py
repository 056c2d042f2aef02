"""From the messages of successive connections to real differences: pure, and the one place that verifies data.

What has been given out is always a map that the server had: deltas as they come, snapshots as the difference to what
was known. A snapshot may be older than what was known from an earlier connection, so it takes the place of the known
map only at the first status behind it (other than catching-up), together with the updates in between
(docs/protocol.md, section 4). One that is broken off before leaves no trace. Behind a status catching-up, and up to the
next status, batches bring newest values: each key only ever moves forward, but the map is one that the server had only
at that next status.
"""

from dataclasses import dataclass
from typing import NamedTuple

from protocol import digest, errors, messages


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that belong together; after each batch the receiver's map is one that the server had, unless the last
    status was catching-up: then it is again at the next status."""

    updates: tuple[messages.Update, ...]
    """Real differences, in order; `update_type` says new, updated or deleted as seen by this receiver."""
    refreshed: tuple[messages.Update, ...] = ()
    """Keys whose value, after `updates`, is the one known, under another revision; a map of revisions wants them."""
    from_snapshot: bool = False
    """The difference between what was known and a whole snapshot: after this, nothing else is left of the past."""


class _Known(NamedTuple):
    digest: int
    revision: str


class _Snapshot:
    """One snapshot in progress, beside the live map."""

    __slots__ = (
        "begin",
        "changed",
        "chunk_digest",
        "chunk_index",
        "chunk_open",
        "ended",
        "known",
        "refreshed",
        "total",
    )

    def __init__(self, begin: messages.SnapshotBegin) -> None:
        self.begin = begin
        self.known: dict[str, _Known] = {}
        self.total = 0
        self.changed: dict[str, messages.Update] = {}
        """What differs in value from the map that is known outside."""
        self.refreshed: dict[str, messages.Update] = {}
        """What differs from it in the revision only."""
        self.ended = False
        self.chunk_index = -1
        self.chunk_open = False
        self.chunk_digest = 0

    def enter_chunk(self, chunk: messages.SnapshotChunk) -> None:
        """Checks the order: chunks come with growing indexes, each in one or several frames in a row."""
        if self.chunk_open:
            if chunk.index != self.chunk_index:
                raise errors.RemoteProtocolError(f"chunk {chunk.index} inside of chunk {self.chunk_index}")
            return
        if not self.chunk_index < chunk.index < self.begin.chunks:
            raise errors.RemoteProtocolError(
                f"chunk {chunk.index} after {self.chunk_index} in a snapshot of {self.begin.chunks} chunks"
            )
        self.chunk_index = chunk.index
        self.chunk_digest = 0

    def leave_chunk(self, chunk: messages.SnapshotChunk) -> None:
        """Checks the digest, if this was the chunk's last frame."""
        self.chunk_open = chunk.more
        if not chunk.more and self.chunk_digest % digest.MODULUS != chunk.digest:
            raise errors.RemoteProtocolError(f"chunk {chunk.index} does not have its digest")
        if len(self.known) > self.begin.keys:
            raise errors.RemoteProtocolError(f"snapshot has more than its {self.begin.keys} keys")

    def put(self, update: messages.Update, value: bytes, before: _Known | None) -> int:
        """The key has this value; `before` is what is known outside. Returns the pair's digest."""
        key = update.key
        now = _Known(digest.pair_digest(key.encode(), value), update.revision)
        self.discard(key)
        self.known[key] = now
        self.total += now.digest
        if before is None:
            self.changed[key] = _typed(update, messages.UpdateType.NEW)
        elif before.digest != now.digest:
            self.changed[key] = _typed(update, messages.UpdateType.UPDATED)
        elif before.revision != now.revision:
            self.refreshed[key] = update
        return now.digest

    def discard(self, key: str) -> None:
        """The key is gone, or about to be put anew."""
        known = self.known.pop(key, None)
        if known is not None:
            self.total -= known.digest
        self.changed.pop(key, None)
        self.refreshed.pop(key, None)

    def verify_end(self, end: messages.SnapshotEnd) -> None:
        """Checks that the snapshot is whole."""
        if self.chunk_open:
            raise errors.RemoteProtocolError(f"snapshot ends inside of chunk {self.chunk_index}")
        if not len(self.known) == self.begin.keys == end.keys:
            raise errors.RemoteProtocolError(
                f"snapshot of {self.begin.keys} keys ends with {len(self.known)}, and speaks of {end.keys}"
            )
        if self.total % digest.MODULUS != end.digest:
            raise errors.RemoteProtocolError("snapshot does not have its digest")


class Differ:
    """Keeps a fingerprint and the revision of each key, no values: some 250 bytes a key."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._total = 0
        self._snapshot: _Snapshot | None = None

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"<Differ keys={len(self._known)} digest={self.digest:016x} snapshot={self._snapshot is not None}>"

    @property
    def digest(self) -> int:
        """State digest of everything given out so far (docs/protocol.md, section 5)."""
        return self._total % digest.MODULUS

    def begin_connection(self) -> None:
        """A new connection begins: a snapshot that was in progress on the last one is forgotten."""
        self._snapshot = None

    def receive(self, message: messages.Message) -> Batch | None:
        """Takes a connection's next message; gives a batch if that makes a difference.

        Raises:
            RemoteProtocolError: the data contradicts itself (digest, number of keys, order); nothing was taken.
        """
        match message:
            case messages.Updates() if self._snapshot is not None:
                self._receive_late_updates(self._snapshot, message.updates)
            case messages.Updates():
                return self._receive_updates(message.updates)
            case messages.Status(status=messages.SyncStatus.CATCHING_UP):
                pass  # a snapshot that waits to take its place waits on: the present is further away
            case messages.Status() if self._snapshot is not None and self._snapshot.ended:
                return self._swap(self._snapshot)
            case messages.SnapshotBegin():
                self._snapshot = _Snapshot(message)
            case messages.SnapshotChunk() if self._snapshot is not None:
                self._receive_chunk(self._snapshot, message)
            case messages.SnapshotEnd() if self._snapshot is not None:
                self._snapshot.verify_end(message)
                self._snapshot.ended = True
        return None

    def _receive_updates(self, updates: tuple[messages.Update, ...]) -> Batch | None:
        known = self._known
        changed: list[messages.Update] = []
        refreshed: dict[str, messages.Update] = {}
        for update in updates:
            key = update.key
            before = known.get(key)
            if refreshed:
                refreshed.pop(key, None)
            if update.value is None:
                if before is not None:
                    del known[key]
                    self._total -= before.digest
                    changed.append(_typed(update, messages.UpdateType.DELETED))
                continue
            now = _Known(digest.pair_digest(key.encode(), update.value), update.revision)
            known[key] = now
            if before is None:
                self._total += now.digest
                changed.append(_typed(update, messages.UpdateType.NEW))
            elif before.digest != now.digest:
                self._total += now.digest - before.digest
                changed.append(_typed(update, messages.UpdateType.UPDATED))
            elif before.revision != now.revision:
                refreshed[key] = update
        return Batch(tuple(changed), tuple(refreshed.values())) if changed or refreshed else None

    def _receive_chunk(self, snapshot: _Snapshot, chunk: messages.SnapshotChunk) -> None:
        snapshot.enter_chunk(chunk)
        for update in chunk.updates:
            key = update.key
            if update.value is None or key in snapshot.known:
                problem = "deletion" if update.value is None else "second value"
                raise errors.RemoteProtocolError(f"{problem} of key {key!r} in a snapshot")
            snapshot.chunk_digest += snapshot.put(update, update.value, self._known.get(key))
        snapshot.leave_chunk(chunk)

    def _receive_late_updates(self, snapshot: _Snapshot, updates: tuple[messages.Update, ...]) -> None:
        """Updates behind a snapshot that has not taken its place yet."""
        for update in updates:
            if update.value is None:
                snapshot.discard(update.key)
            else:
                snapshot.put(update, update.value, self._known.get(update.key))

    def _swap(self, snapshot: _Snapshot) -> Batch:
        """The snapshot takes the place of what was known."""
        deletions = [
            messages.Update(key, None, before.revision, messages.UpdateType.DELETED)
            for key, before in self._known.items()
            if key not in snapshot.known
        ]
        self._known, self._total, self._snapshot = snapshot.known, snapshot.total, None
        changed = (*deletions, *snapshot.changed.values())
        return Batch(changed, tuple(snapshot.refreshed.values()), from_snapshot=True)


def _typed(update: messages.Update, update_type: messages.UpdateType) -> messages.Update:
    if update.update_type == update_type:
        return update
    return update._replace(update_type=int(update_type))
