"""The native protocol and Typha's protocol: both ends of the wire, without I/O.

Bytes go in, messages come out, and the reverse. The caller owns the socket, so that a tool can use asyncio, trio,
threads or a recorded file. This example prints what a server sends::

    import socket

    from protocol import Connection, Role, messages

    with socket.create_connection(("localhost", 5473)) as server:
        connection = Connection(Role.CLIENT)
        connection.send(messages.ClientHello(feed="workloads", agent="my-tool"))
        server.sendall(connection.data_to_send())
        while data := server.recv(65536):
            connection.receive_data(data)
            while (message := connection.next_event()) is not None:
                print(message)
            server.sendall(connection.data_to_send())  # pongs
        connection.receive_eof()

Public names:

- `Connection`: one end of a connection in the native protocol. `Role` says which end.
- `TyphaClientConnection`: the client's end in the protocol of Calico's Typha, with the same methods and messages as
  `Connection`.
- `messages`: the module with all messages, statuses and update types.
- `StateDigest`, `state_digest`: the digest that verifies a map of keys and values.
- `DisconnectReason`: why a connection ended.
- `ProtocolError`: base class of the errors. `LocalProtocolError`: the caller did what the protocol does not allow.
  `RemoteProtocolError`: the peer did; it has a `reason`.

All other modules of this package are internal to this project. docs/protocol.md specifies the native protocol byte by
byte. `clients` is a complete client on top of this package.

The package does no I/O, and imports nothing else of this project.
"""

from typing import TYPE_CHECKING

from protocol import messages
from protocol.digest import StateDigest, state_digest
from protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.reasons import DisconnectReason

if TYPE_CHECKING:
    from protocol.native.connection import Connection, Role
    from protocol.typha.client import ClientConnection as TyphaClientConnection
else:

    def __getattr__(name: str) -> object:
        """Imports connections on first use: programs that need only messages load no compression libraries."""
        match name:
            case "Connection" | "Role":
                from protocol.native import connection

                return getattr(connection, name)
            case "TyphaClientConnection":
                from protocol.typha import client

                return client.ClientConnection
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Connection",
    "DisconnectReason",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "Role",
    "StateDigest",
    "TyphaClientConnection",
    "messages",
    "state_digest",
]
