"""Internal: the errors that end a connection, as a client sees them.

ClientError                 has the `address` of the server it concerns
├── ConnectFailed           no connection: name resolution, network, TLS or the connect timeout
├── ConnectionLost          an established connection ended without a goodbye
│   └── ServerSilent        the server sent nothing, not even a ping
├── BadServer               the server violated the protocol, or sent data that does not match its digest
└── ServerGoodbye           the server ended the connection and gave a reason
    └── Refused             it did so instead of accepting the client's hello

`follow` and `Mirror` report them in a `Disconnected` event and reconnect. `stream` raises them.
"""

from protocol import reasons

_TRANSIENT_REASONS = frozenset(reason for reason, retry in reasons.GOODBYES.items() if retry is reasons.Retry.YES)


class ClientError(Exception):
    """A connection could not be established, or has ended."""

    def __init__(self, address: str, text: str) -> None:
        super().__init__(text)
        self.address = address
        self.text = text

    def __str__(self) -> str:
        return f"{self.address}: {self.text}"


class ConnectFailed(ClientError):
    """No connection could be established: name resolution, network or TLS failed, or the connect timeout expired."""


class ConnectionLost(ClientError):
    """The connection ended without a goodbye."""


class ServerSilent(ConnectionLost):
    """The server sent nothing within the timeout, not even a ping."""


class BadServer(ClientError):
    """The server violated the protocol, or sent data that does not match its digest. `__cause__` has the details."""


class ServerGoodbye(ClientError):
    """The server ended the connection and gave a reason.

    `reason` is a value of `protocol.DisconnectReason`, or one that a newer server has added. `retry_after_seconds` is 0
    if the server did not ask for a pause. `servers` are others that would accept the client.
    """

    def __init__(
        self, address: str, *, reason: str, text: str, retry_after_seconds: float, servers: tuple[str, ...] = ()
    ) -> None:
        super().__init__(address, text)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.servers = servers

    def __str__(self) -> str:
        return f"{self.address}: {self.reason}: {self.text}" if self.text else f"{self.address}: {self.reason}"

    @property
    def is_transient(self) -> bool:
        """Whether a retry may succeed: the reason is the server's state (draining, full) and not this client."""
        return self.reason in _TRANSIENT_REASONS


class Refused(ServerGoodbye):
    """The server said goodbye instead of accepting the hello: unknown feed, no common version, and so on."""
