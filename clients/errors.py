"""What can end a connection, as a client sees it.

ClientError                 each has the `address` it is about
├── ConnectFailed           no connection: name, network, TLS, or no answer within the connect timeout
├── ConnectionLost          it was there, and ended without a goodbye
│   └── ServerSilent        nothing came, not even a ping
├── BadServer               the server broke the protocol, or sent data whose digest is wrong
└── ServerGoodbye           the server ended it and said why
    └── Refused             it did so instead of accepting the client's hello

`follow` and `Mirror` put them into their `Disconnected` event and connect again; `stream` raises them.
"""

from protocol import reasons

_PASSING_REASONS = frozenset(
    {
        reasons.DisconnectReason.SHUTTING_DOWN,
        reasons.DisconnectReason.REBALANCED,
        reasons.DisconnectReason.TOO_MANY_CONNECTIONS,
    }
)


class ClientError(Exception):
    """A connection could not be made, or has ended."""

    def __init__(self, address: str, text: str) -> None:
        super().__init__(text)
        self.address = address
        self.text = text

    def __str__(self) -> str:
        return f"{self.address}: {self.text}"


class ConnectFailed(ClientError):
    """There is no connection: the name, the network, TLS, or time ran out."""


class ConnectionLost(ClientError):
    """The connection ended without a goodbye."""


class ServerSilent(ConnectionLost):
    """The connection stands, and nothing came for the agreed time, not even a ping."""


class BadServer(ClientError):
    """What the server sent is not the protocol, or fails a digest; the cause says where."""


class ServerGoodbye(ClientError):
    """The server ended the connection and said why.

    `reason` is a value of `protocol.reasons.DisconnectReason`, or a newer one; `retry_after_seconds` is 0 for
    no wish.
    """

    def __init__(self, address: str, *, reason: str, text: str, retry_after_seconds: float) -> None:
        super().__init__(address, text)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.address}: {self.reason}: {self.text}" if self.text else f"{self.address}: {self.reason}"

    @property
    def is_passing(self) -> bool:
        """It is about the server's moment (draining, full), not about this client: another try may well succeed."""
        return self.reason in _PASSING_REASONS


class Refused(ServerGoodbye):
    """The server said goodbye instead of accepting the hello (unknown feed, no version in common ...)."""
