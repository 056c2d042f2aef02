"""Why a connection ended, as one enum for log field, metric label and goodbye message alike."""

import enum


class DisconnectReason(enum.StrEnum):
    """The one reason of a closed connection; it never changes (docs/architecture.md, rule 5)."""

    # The client's own doing.
    CLIENT_CLOSED = "client-closed"
    """The client closed its end, or its host reset the connection."""
    BAD_PREFACE = "bad-preface"
    """The first bytes belong to no protocol that is spoken here."""
    PROTOCOL_ERROR = "protocol-error"
    """A frame or message that breaks the protocol's rules, or came at the wrong time."""
    MESSAGE_TOO_LARGE = "message-too-large"
    """A frame announced more bytes than its limit; not one of them was awaited."""
    UNSUPPORTED_VERSION = "unsupported-version"
    """No protocol version in common."""
    UNSUPPORTED_PROTOCOL = "unsupported-protocol"
    """The first bytes are those of a protocol that is known, but not served here."""
    UNKNOWN_FEED = "unknown-feed"
    """The client asked for a feed that is not configured."""

    # Time ran out.
    HANDSHAKE_TIMEOUT = "handshake-timeout"
    """The hello was not complete within the handshake timeout."""
    TLS_FAILED = "tls-failed"
    """The TLS handshake failed, the certificate is not one that may connect, or later a record was broken."""
    PONG_TIMEOUT = "pong-timeout"
    """Pings were sent, and no pong came back within the pong timeout."""
    NO_PROGRESS = "no-progress"
    """Bytes wait for the client, and its host acknowledged none for the no-progress timeout."""
    NETWORK_ERROR = "network-error"
    """The kernel gave the connection up (timed out, unreachable)."""

    # The server's doing.
    TOO_MANY_CONNECTIONS = "too-many-connections"
    """The process is out of file descriptors, or over a limit on connections."""
    FELL_BEHIND = "fell-behind"
    """The client is older than anything it could be brought up to date from."""
    FEED_REMOVED = "feed-removed"
    """The feed or its wire format is gone."""
    REBALANCED = "rebalanced"
    """Moved to another replica."""
    SHUTTING_DOWN = "shutting-down"
    """The server is draining before it ends."""
    WORKER_DIED = "worker-died"
    """The process that held the connection died; counted by the hub from its last report."""
    SERVER_ERROR = "server-error"
    """A defect of ours on this connection; the log line has the traceback."""
