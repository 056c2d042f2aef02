"""Internal: turns the messages of successive connections into real changes, and verifies the data. Pure.

The receiver's map is always one that the server had. Deltas apply as they arrive; a snapshot applies as its difference
to the known map. A snapshot may be older than a map known from an earlier connection. So it replaces that map only at
the first status after it other than catching-up, together with the updates in between (docs/protocol.md, section 4).
An incomplete snapshot has no effect.

Between a status catching-up and the next status, batches carry newest values. Each key only moves forward, but the map
as a whole is one that the server had only at that next status.

A new connection resumes: its hello says what the map is, by the position that it has in the history of a server, and by
the digests of its chunks. The position is lost while the map is a mixture. After data that contradicts itself on such a
connection, the next one asks for everything.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from protocol import digest, errors, messages
from protocol.native import codec

_KEYS_PER_DIGEST = 128
"""The map may have grown since the last snapshot. A server splits chunks of more than some hundred keys; to tell more
digests than it has chunks costs 9 bytes each."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that belong together. After each batch the receiver's map is one that the server had.

    The exception: after a status catching-up this holds again from the next status on.
    """

    updates: tuple[messages.Update, ...]
    """Real changes, in order. `update_type` says new, updated or deleted from this receiver's point of view."""
    refreshed: tuple[messages.Update, ...] = ()
    """Keys with a new revision and an unchanged value, as of the end of `updates`."""
    from_snapshot: bool = False
    """Whether `updates` is the difference between the known map and a complete snapshot, which replaces it."""


class _Known(NamedTuple):
    digest: int
    revision: str


class _Snapshot:
    """A snapshot that is being received, kept apart from the live map."""

    __slots__ = (
        "_kept",
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

    def __init__(self, begin: messages.SnapshotBegin | messages.SnapshotResume, live: dict[str, _Known]) -> None:
        self.begin = begin
        self._kept = begin if isinstance(begin, messages.SnapshotResume) else None
        self.known: dict[str, _Known] = {}
        self.total = 0
        if self._kept is not None:
            keeps = [self._kept.keeps(number) for number in range(begin.chunks)]
            self.known = {key: known for key, known in live.items() if keeps[digest.chunk_number(key, begin.chunks)]}
            self.total = sum(known.digest for known in self.known.values())
        self.changed: dict[str, messages.Update] = {}
        """Keys whose value differs from the live map."""
        self.refreshed: dict[str, messages.Update] = {}
        """Keys that differ from the live map in the revision only."""
        self.ended = False
        self.chunk_index = -1
        self.chunk_open = False
        self.chunk_digest = 0

    def enter_chunk(self, chunk: messages.SnapshotChunk) -> None:
        """Checks the order: indexes grow from chunk to chunk, and the frames of a chunk are consecutive."""
        if self.chunk_open:
            if chunk.index != self.chunk_index:
                raise errors.RemoteProtocolError(f"chunk {chunk.index} inside of chunk {self.chunk_index}")
            return
        if not self.chunk_index < chunk.index < self.begin.chunks:
            raise errors.RemoteProtocolError(
                f"chunk {chunk.index} after {self.chunk_index} in a snapshot of {self.begin.chunks} chunks"
            )
        if self._kept is not None and self._kept.keeps(chunk.index):
            raise errors.RemoteProtocolError(f"chunk {chunk.index} was to be kept")
        self.chunk_index = chunk.index
        self.chunk_digest = 0

    def leave_chunk(self, chunk: messages.SnapshotChunk) -> None:
        """Checks the digest if this was the chunk's last frame."""
        self.chunk_open = chunk.more
        if not chunk.more and self.chunk_digest % digest.MODULUS != chunk.digest:
            raise errors.RemoteProtocolError(f"chunk {chunk.index} does not have its digest")
        if len(self.known) > self.begin.keys:
            raise errors.RemoteProtocolError(f"snapshot has more than its {self.begin.keys} keys")

    def put(self, update: messages.Update, value: bytes, before: _Known | None) -> int:
        """Sets a key; `before` is its entry in the live map. Returns the digest of key and value."""
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
        """Removes a key, if it is there."""
        known = self.known.pop(key, None)
        if known is not None:
            self.total -= known.digest
        self.changed.pop(key, None)
        self.refreshed.pop(key, None)

    def verify_end(self, end: messages.SnapshotEnd) -> None:
        """Checks that the snapshot is complete."""
        if self.chunk_open:
            raise errors.RemoteProtocolError(f"snapshot ends inside of chunk {self.chunk_index}")
        if not len(self.known) == self.begin.keys == end.keys:
            raise errors.RemoteProtocolError(
                f"snapshot of {self.begin.keys} keys ends with {len(self.known)}, and speaks of {end.keys}"
            )
        if self.total % digest.MODULUS != end.digest:
            raise errors.RemoteProtocolError("snapshot does not have its digest")


class Differ:
    """Keeps a digest and the revision of each key, but no values: about 250 bytes per key."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._total = 0
        self._snapshot: _Snapshot | None = None
        self._incarnation = b""
        """Of the connection's server."""
        self._wants_part = False
        """The hello had a subscription."""
        self._has_position = True
        """A map of the whole feed that comes in place of a subscription has no position: the next server may select."""
        self.position: messages.ResumePosition | None = None
        """That of the map; None while it is a mixture of several moments."""
        self.chunks = 0
        """Into how many chunks a server split the last snapshot; 0 before there is a map."""
        self._is_trusted = True

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"<Differ keys={len(self._known)} digest={self.digest:016x} snapshot={self._snapshot is not None}>"

    @property
    def digest(self) -> int:
        """State digest of the map that all batches so far add up to (docs/protocol.md, section 5)."""
        return self._total % digest.MODULUS

    @property
    def is_in_snapshot(self) -> bool:
        """Whether a snapshot has begun that has not replaced the map yet."""
        return self._snapshot is not None

    def restore(
        self, updates: Iterable[messages.Update], *, position: messages.ResumePosition | None, chunks: int
    ) -> None:
        """Begins with a map that an earlier process had, before the first connection. Each update has a value."""
        for update in updates:
            known = _Known(digest.pair_digest(update.key.encode(), update.value or b""), update.revision)
            self._known[update.key] = known
            self._total += known.digest
        self.position, self.chunks = position, chunks

    def restore_known(self, known: Iterable[tuple[str, int, str]], *, chunks: int) -> None:
        """The same for a caller that has the digests: key, digest of key and value, revision."""
        self._known = {key: _Known(pair, revision) for key, pair, revision in known}
        self._total = sum(one.digest for one in self._known.values())
        self.chunks = chunks

    def begin_connection(self) -> None:
        """Prepares for a new connection: drops the snapshot that was in progress on the last one."""
        self._snapshot = None

    @property
    def is_trusted(self) -> bool:
        """Whether there is a map, and nothing has contradicted it."""
        return bool(self.chunks) and self._is_trusted

    def resuming(self, hello: messages.ClientHello) -> messages.ClientHello:
        """The hello with what the client has, if the hello offers these features."""
        self._wants_part = hello.subscription is not None
        if not self.is_trusted:
            return hello
        return msgspec.structs.replace(
            hello,
            resume=self.position if messages.Feature.RESUME in hello.features else None,
            chunk_digests=self._chunk_digests() if messages.Feature.CHUNK_DIGESTS in hello.features else None,
        )

    def _chunk_digests(self) -> tuple[int, ...]:
        """Those of the chunks; for each key it takes 0.3 us."""
        wanted = max(self.chunks, len(self._known) // _KEYS_PER_DIGEST)
        count = min(1 << (wanted - 1).bit_length(), codec.MAX_CHUNK_DIGESTS)
        sums = [0] * count
        for key, known in self._known.items():
            sums[digest.chunk_number(key, count)] += known.digest
        return tuple([total % digest.MODULUS for total in sums])

    def distrust(self) -> None:
        """A server's data contradicts itself, or what we have: until the next whole snapshot, say nothing of it."""
        self._is_trusted = False

    def receive(self, message: messages.Message) -> Batch | None:
        """Takes the connection's next message. Returns a batch if the map changes.

        Raises:
            RemoteProtocolError: the data contradicts itself (digest, number of keys, order). The map is unchanged.
        """
        match message:
            case messages.ServerHello():
                self._incarnation = message.incarnation
                self._has_position = not self._wants_part or messages.Feature.SUBSCRIPTIONS in message.features
            case messages.Updates() if self._snapshot is not None:
                self._receive_late_updates(self._snapshot, message.updates)
            case messages.Updates():
                if self.position is not None:
                    self.position = self._position_at(message.sequence)
                return self._receive_updates(message.updates)
            case messages.Status(status=messages.SyncStatus.CATCHING_UP):
                # A complete snapshot keeps waiting: it is older than the newest values that follow.
                if self._snapshot is None:
                    self.position = None
            case messages.Status():
                self.position = self._position_at(message.sequence)
                if self._snapshot is not None and self._snapshot.ended:
                    return self._swap(self._snapshot)
            case messages.SnapshotBegin() | messages.SnapshotResume():
                self._snapshot = _Snapshot(message, self._known)
            case messages.SnapshotChunk() if self._snapshot is not None:
                self._receive_chunk(self._snapshot, message)
            case messages.SnapshotEnd() if self._snapshot is not None:
                self._snapshot.verify_end(message)
                self._snapshot.ended = True
        return None

    def _position_at(self, sequence: int) -> messages.ResumePosition | None:
        return messages.ResumePosition(self._incarnation, sequence) if self._has_position else None

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
        """Applies updates to a complete snapshot that has not replaced the live map yet."""
        for update in updates:
            if update.value is None:
                snapshot.discard(update.key)
            else:
                snapshot.put(update, update.value, self._known.get(update.key))

    def _swap(self, snapshot: _Snapshot) -> Batch:
        """Replaces the live map by the snapshot."""
        self.chunks = max(1, snapshot.begin.chunks)
        self._is_trusted = True
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
