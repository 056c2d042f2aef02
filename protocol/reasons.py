"""Internal: why a connection ended; `protocol` exports it. Logs, metrics and goodbyes use the same values."""

import enum
from collections.abc import Mapping
from typing import Final


class DisconnectReason(enum.StrEnum):
    """Why a connection ended: exactly one reason, which never changes (docs/architecture.md, rule 5)."""

    # Caused by the client.
    CLIENT_CLOSED = "client-closed"
    """The client closed its end, or its host reset the connection."""
    BAD_PREFACE = "bad-preface"
    """The first bytes are not those of a protocol that the server knows."""
    PROTOCOL_ERROR = "protocol-error"
    """The client sent a malformed or unexpected frame or message."""
    MESSAGE_TOO_LARGE = "message-too-large"
    """A frame announced more bytes than the limit. The server did not wait for them."""
    UNSUPPORTED_VERSION = "unsupported-version"
    """Client and server have no protocol version in common."""
    UNSUPPORTED_PROTOCOL = "unsupported-protocol"
    """The first bytes are those of a known protocol that this server does not serve."""
    UNKNOWN_FEED = "unknown-feed"
    """The client asked for a feed that is not configured."""

    # Timeouts and the network.
    HANDSHAKE_TIMEOUT = "handshake-timeout"
    """The hello was not complete within the handshake timeout."""
    TLS_FAILED = "tls-failed"
    """The TLS handshake failed, the client's certificate is not allowed, or a later TLS record was invalid."""
    PONG_TIMEOUT = "pong-timeout"
    """The client did not answer pings within the pong timeout."""
    NO_PROGRESS = "no-progress"
    """The client's host acknowledged no bytes within the no-progress timeout, although some were waiting."""
    NETWORK_ERROR = "network-error"
    """The kernel reported the connection as dead (timed out, unreachable)."""

    # Caused by the server.
    TOO_MANY_CONNECTIONS = "too-many-connections"
    """There is no place for the connection, or no memory for its unfinished message. Others need them more."""
    FELL_BEHIND = "fell-behind"
    """The client fell so far behind that it cannot catch up on this connection."""
    FEED_REMOVED = "feed-removed"
    """The feed or its wire format no longer exists."""
    REBALANCED = "rebalanced"
    """The server asked the client to move to another replica."""
    SHUTTING_DOWN = "shutting-down"
    """The server is draining before it stops."""
    WORKER_DIED = "worker-died"
    """The worker process with the connection died. The hub counts these from the worker's last report."""
    SERVER_ERROR = "server-error"
    """An internal error of the server on this connection. The log line has the traceback."""


class Retry(enum.StrEnum):
    """Whether another attempt may succeed after a goodbye."""

    YES = "yes"
    """The reason is the server's state, and another server may have a better one."""
    AFTER_A_CHANGE = "after a change"
    """The client, the server or their settings must change. The client keeps trying, with its back-off."""


GOODBYES: Final[Mapping[DisconnectReason, Retry]] = {
    DisconnectReason.PROTOCOL_ERROR: Retry.AFTER_A_CHANGE,
    DisconnectReason.MESSAGE_TOO_LARGE: Retry.AFTER_A_CHANGE,
    DisconnectReason.UNSUPPORTED_VERSION: Retry.AFTER_A_CHANGE,
    DisconnectReason.UNKNOWN_FEED: Retry.AFTER_A_CHANGE,
    DisconnectReason.TOO_MANY_CONNECTIONS: Retry.YES,
    DisconnectReason.FEED_REMOVED: Retry.YES,
    DisconnectReason.REBALANCED: Retry.YES,
    DisconnectReason.SHUTTING_DOWN: Retry.YES,
}
"""The reasons that a server sends in a goodbye. All others describe a connection that cannot carry one any more."""
