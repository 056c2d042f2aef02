"""A client of the native protocol that keeps its map from one connection to the next, and resumes."""

from clients import differ
from protocol import digest, messages
from protocol.native import connection

FEATURES = frozenset({messages.Feature.RESUME.value, messages.Feature.CHUNK_DIGESTS.value})


class Returning:
    """Believes nothing: whatever it receives must continue what it has, and each batch must be a real change."""

    def __init__(self, feed: str, *, features: frozenset[str] = FEATURES) -> None:
        self.feed = feed
        self.features = features
        self.differ = differ.Differ()
        self.entries: dict[str, bytes] = {}
        self.status: messages.SyncStatus | None = None
        """The last one on this connection."""
        self.kinds: list[type[messages.Message]] = []
        """Of all messages on this connection."""
        self.batches: list[differ.Batch] = []
        """On this connection."""
        self.received_bytes = 0
        self.connection = connection.Connection(connection.Role.CLIENT)
        self._incarnation = b""
        self._newest: dict[str, int] = {}
        """The last revision of each key that a server of this incarnation has sent."""

    def connect(self) -> bytes:
        """Begins a connection; returns what the client says first."""
        self.differ.begin_connection()
        self.connection = connection.Connection(connection.Role.CLIENT)
        self.status, self.kinds, self.batches, self.received_bytes = None, [], [], 0
        hello = messages.ClientHello(self.feed, "returning", features=self.features)
        self.connection.send(self.differ.resuming(hello))
        return self.connection.data_to_send()

    def receive(self, data: bytes) -> None:
        """Takes bytes of the server."""
        self.received_bytes += len(data)
        self.connection.receive_data(data)
        while (message := self.connection.next_event()) is not None:
            self._take(message)

    def _take(self, message: messages.Message) -> None:
        self.kinds.append(type(message))
        if isinstance(message, messages.ServerHello) and message.incarnation != self._incarnation:
            self._incarnation = message.incarnation
            self._newest.clear()
        batch = self.differ.receive(message)
        if batch is not None:
            self.batches.append(batch)
            for update in batch.updates:
                assert self.entries.get(update.key) != update.value, "no change"
                if update.value is not None or not batch.from_snapshot:  # else the revision is one that we had
                    assert int(update.revision) >= self._newest.get(update.key, 0), f"{update.key} went back"
                    self._newest[update.key] = int(update.revision)
                if update.value is None:
                    del self.entries[update.key]
                else:
                    self.entries[update.key] = update.value
        if isinstance(message, messages.Status):
            self.status = message.status
            assert self.differ.digest == digest.state_digest(self.entries.items())
