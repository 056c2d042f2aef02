"""Internal: the errors of the protocol; `protocol` exports them.

ProtocolError
├── LocalProtocolError    the caller did what the protocol does not allow
└── RemoteProtocolError   the peer did; carries the DisconnectReason for it
"""

from protocol import reasons


class ProtocolError(Exception):
    """Base class of everything that ends a connection because of its content."""


class LocalProtocolError(ProtocolError):
    """The caller asked for something that the state of the connection does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer violated the protocol. The connection cannot be used any more."""

    def __init__(
        self, message: str, *, reason: reasons.DisconnectReason = reasons.DisconnectReason.PROTOCOL_ERROR
    ) -> None:
        super().__init__(message)
        self.reason = reason
