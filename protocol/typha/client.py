"""Internal: a client of Typha's protocol that produces native messages. `protocol` exports it.

Typha's protocol has no snapshots, sequences or digests. A connection begins with all keys as new, and the first "in
sync" says that the data is complete. This client translates that into an empty snapshot after the server's hello,
followed by numbered updates. It withholds statuses before the first "in sync". A native client replaces its map at the
first status after a snapshot, so it then finds the keys that were deleted while it was disconnected.
"""

import re
from collections import deque
from typing import Final

from protocol import errors, messages
from protocol.native import connection as native
from protocol.typha import connection
from protocol.typha import messages as typha_messages

_NO_INCARNATION = bytes(16)
_MAX_KNOWN_STATUS = messages.SyncStatus.IN_SYNC


NEWEST_VERSION: Final = "v3.33.0"
"""What a client says that is no agent of an older release: a server chooses its data by the version."""
_LEGACY_VERSIONS: Final = re.compile(r"v?3\.(?:[0-9]|[12][0-9]|3[01])(?![0-9])")
"""Of agents that do not know the current policy keys."""


class ClientConnection:
    """A client's end of a connection in Typha's protocol, with the methods of `protocol.Connection`."""

    __slots__ = ("_connection", "_events", "_has_been_in_sync", "sequence")

    def __init__(self) -> None:
        self._connection = connection.Connection(connection.Role.CLIENT)
        self._events: deque[messages.Message] = deque()
        self._has_been_in_sync = False
        self.sequence = 0
        """Number of updates received so far."""

    def __repr__(self) -> str:
        return f"<ClientConnection {self._connection!r} sequence={self.sequence}>"

    @property
    def pending_bytes(self) -> int:
        """Number of buffered bytes of an incomplete message."""
        return self._connection.pending_bytes

    def send(self, message: messages.Message) -> None:
        """Queues the hello. The feed is the syncer type, the software the version; the features have no equivalent.

        Raises:
            LocalProtocolError: the message is not a hello. Acks and pongs are sent automatically.
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
                supports_modern_policy_keys=_LEGACY_VERSIONS.match(message.software) is None,
            )
        )

    def data_to_send(self) -> bytes:
        """Returns the queued bytes and empties the queue."""
        return self._connection.data_to_send()

    def receive_data(self, data: bytes) -> None:
        """Accepts bytes from the server."""
        self._connection.receive_data(data)

    def receive_eof(self) -> None:
        """Records that the server has closed its end.

        Raises:
            RemoteProtocolError: the stream ended inside a message.
        """
        self._connection.receive_eof()

    def next_event(self) -> messages.Message | None:
        """Returns the next message, or None if more bytes are needed or the connection has ended.

        Raises:
            RemoteProtocolError: the server violated the protocol, or serves another syncer type.
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
        """Passes on statuses from the first "in sync" on, because the data is incomplete before. Drops unknown ones."""
        if number > _MAX_KNOWN_STATUS:
            return
        status = messages.SyncStatus(number)
        self._has_been_in_sync = self._has_been_in_sync or status is messages.SyncStatus.IN_SYNC
        if self._has_been_in_sync:
            self._events.append(messages.Status(self.sequence, status))
