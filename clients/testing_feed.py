"""What `clients.testing` serves: one feed's map, and the messages that carry it."""

import zlib
from collections.abc import Iterator, Mapping

from protocol import digest, messages


class Feed:
    """A map with a sequence number; each change gives the message that tells of it."""

    def __init__(
        self, content: Mapping[str, bytes], *, status: messages.SyncStatus, keys_per_frame: int, chunks: int
    ) -> None:
        self.status = status
        self.sequence = 1
        self._keys_per_frame = keys_per_frame
        self._chunks = chunks
        self._entries: dict[str, messages.Update] = {}
        self._revision = 0
        self.replace(content)

    @property
    def content(self) -> dict[str, bytes]:
        """The map, as a copy."""
        return {key: update.value for key, update in self._entries.items() if update.value is not None}

    @property
    def digest(self) -> int:
        """The map's state digest."""
        return digest.state_digest(self.content.items())

    def replace(self, content: Mapping[str, bytes]) -> None:
        """A new map at a new sequence; keys whose value stays keep their revision."""
        self.sequence += 1
        before = self._entries
        self._entries = {}
        for key, value in content.items():
            known = before.get(key)
            if known is not None and known.value == value:
                self._entries[key] = known
            else:
                self._entries[key] = self._make_update(key, value, messages.UpdateType.NEW)

    def put(self, key: str, value: bytes) -> messages.Updates:
        """Sets a key."""
        kind = messages.UpdateType.UPDATED if key in self._entries else messages.UpdateType.NEW
        self._entries[key] = self._make_update(key, value, kind)
        return self._make_delta(self._entries[key])

    def delete(self, key: str) -> messages.Updates:
        """Deletes a key."""
        del self._entries[key]
        return self._make_delta(self._make_update(key, None, messages.UpdateType.DELETED))

    def snapshot(self) -> Iterator[messages.Message]:
        """All of it, with the status at its end."""
        chunks: list[list[messages.Update]] = [[] for _ in range(self._chunks)]
        for update in self._entries.values():
            as_new = update._replace(update_type=int(messages.UpdateType.NEW))
            chunks[zlib.crc32(update.key.encode()) % self._chunks].append(as_new)
        keys = len(self._entries)
        yield messages.SnapshotBegin(self.sequence, keys, self._chunks)
        for index, updates in enumerate(chunks):
            yield from self._chunk(index, updates)
        yield messages.SnapshotEnd(self.sequence, keys, self.digest)
        yield messages.Status(self.sequence, self.status)

    def _chunk(self, index: int, updates: list[messages.Update]) -> Iterator[messages.Message]:
        total = digest.state_digest((update.key, update.value or b"") for update in updates)
        for start in range(0, max(len(updates), 1), self._keys_per_frame):
            end = start + self._keys_per_frame
            more = end < len(updates)
            yield messages.SnapshotChunk(index=index, digest=total, more=more, updates=tuple(updates[start:end]))

    def _make_update(self, key: str, value: bytes | None, kind: messages.UpdateType) -> messages.Update:
        self._revision += 1
        return messages.Update(key, value, str(self._revision), int(kind))

    def _make_delta(self, update: messages.Update) -> messages.Updates:
        self.sequence += 1
        return messages.Updates(self.sequence - 1, self.sequence, (update,))
