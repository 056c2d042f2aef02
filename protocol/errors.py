"""Errors of the wire.

ProtocolError
├── LocalProtocolError    we, or the code that uses us, did what the protocol does not allow
└── RemoteProtocolError   the peer did; carries the DisconnectReason that belongs to it
"""

from protocol import reasons


class ProtocolError(Exception):
    """Anything that ends a connection because of what was, or was to be, sent on it."""


class LocalProtocolError(ProtocolError):
    """The caller asked for something that the connection's state does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the connection is of no more use."""

    def __init__(
        self, message: str, *, reason: reasons.DisconnectReason = reasons.DisconnectReason.PROTOCOL_ERROR
    ) -> None:
        super().__init__(message)
        self.reason = reason
