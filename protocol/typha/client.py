"""A client of Typha's protocol in the native protocol's words: what follows one kind of server can follow the other.

Typha's protocol has no snapshots, sequences or digests. A connection begins with every key as new, and the first "in
sync" says that these were all. So behind the server's hello stands an empty snapshot, and what comes are updates to it,
numbered here. The first status given out is that "in sync": with it, native clients take the snapshot and the updates
behind it for the whole truth, and not before, so that a key that went while they were away is found to be gone.
"""

from collections import deque

from protocol import errors, messages
from protocol.native import connection as native
from protocol.typha import connection
from protocol.typha import messages as typha_messages

_NO_INCARNATION = bytes(16)
_MAX_KNOWN_STATUS = messages.SyncStatus.IN_SYNC


class ClientConnection:
    """Takes the place of a client's `protocol.native.connection.Connection`; see there."""

    __slots__ = ("_connection", "_events", "_has_been_in_sync", "sequence")

    def __init__(self) -> None:
        self._connection = connection.Connection(connection.Role.CLIENT)
        self._events: deque[messages.Message] = deque()
        self._has_been_in_sync = False
        self.sequence = 0
        """Updates received so far."""

    def __repr__(self) -> str:
        return f"<ClientConnection {self._connection!r} sequence={self.sequence}>"

    @property
    def pending_bytes(self) -> int:
        """Bytes of what is not complete."""
        return self._connection.pending_bytes

    def send(self, message: messages.Message) -> None:
        """Queues the hello; the feed is the syncer type, and features and the rest have no equivalent.

        Raises:
            LocalProtocolError: it is no hello: nothing else is said but by the protocol itself.
        """
        if not isinstance(message, messages.ClientHello):
            raise errors.LocalProtocolError(f"{type(message).__name__} has no equivalent in Typha's protocol")
        self._connection.send_hello(
            typha_messages.ClientHello(
                hostname=message.node,
                info=message.agent,
                version=message.software,
                syncer_type=message.feed,
                supports_decoder_restart=True,
                supported_compression_algorithms=(typha_messages.SNAPPY,),
                supports_modern_policy_keys=True,
            )
        )

    def data_to_send(self) -> bytes:
        """Everything queued, once."""
        return self._connection.data_to_send()

    def receive_data(self, data: bytes) -> None:
        """Takes bytes from the server."""
        self._connection.receive_data(data)

    def receive_eof(self) -> None:
        """The server sends no more.

        Raises:
            RemoteProtocolError: it ended inside a message.
        """
        self._connection.receive_eof()

    def next_event(self) -> messages.Message | None:
        """The next message, or None for "not yet".

        Raises:
            RemoteProtocolError: what came is not the protocol, or the server is the wrong one.
        """
        while not self._events:
            message = self._connection.next_event()
            if message is None:
                return None
            self._translate(message)
        return self._events.popleft()

    def _translate(self, message: typha_messages.Message) -> None:
        match message:
            case typha_messages.ServerHello():
                self._events.append(
                    messages.ServerHello(
                        version=native.VERSION,
                        feed=message.syncer_type or typha_messages.FELIX,
                        incarnation=_NO_INCARNATION,
                        software=message.version,
                        connection_id=message.server_connection_id,
                    )
                )
                self._events.append(messages.SnapshotBegin(0, 0, 0))
                self._events.append(messages.SnapshotEnd(0, 0, 0))
            case typha_messages.KeyValues():
                previous = self.sequence
                self.sequence += len(message.updates)
                self._events.append(messages.Updates(previous, self.sequence, message.updates))
            case typha_messages.SyncStatus():
                self._receive_status(message.status)
            case typha_messages.Ping():
                self._events.append(messages.Ping())

    def _receive_status(self, number: int) -> None:
        """Before the first "in sync" the data is incomplete, whatever else is said; unknown numbers say nothing."""
        if number > _MAX_KNOWN_STATUS:
            return
        status = messages.SyncStatus(number)
        self._has_been_in_sync = self._has_been_in_sync or status is messages.SyncStatus.IN_SYNC
        if self._has_been_in_sync:
            self._events.append(messages.Status(self.sequence, status))
