"""One connection of a worker: a socket, a cursor, and what decides whether the client is alive.

The record is grouped, and each group has one writer:

| group | writer | lives |
| --- | --- | --- |
| position: the fields of `Cursor` | `Cursor`; in a live set, `LiveSet` has offset and send time | always |
| `hello`: whose turn it is before the hello is complete | `PendingHello` | until the hello is complete |
| `liveness`: pings, pongs, acknowledged bytes | `Liveness` | always |
| `greeting`, `told`: the statuses sent to this client alone | `Delivery` and `CatchUp` | see each field |
| `applied`: what the client has applied | `Convergence` | while the client reports positions |
| `waiting`, `watching_write`: the socket is full | `Client.begin_waiting`, `Delivery`, the poller | always |
"""

from typing import TYPE_CHECKING, NamedTuple

from cache.state import cursor
from protocol import errors, messages, subscriptions
from typha import networks
from typha.worker import convergence, protocol_adapters, transport

if TYPE_CHECKING:
    from typha.worker.channel import WorkerChannel

_PONGS_SPARE = 4
"""Pongs that a client may send beyond its pings."""
_READS_BEFORE_HELLO = 128
"""Reads that a hello may take: one of 100 bytes may come byte by byte."""
_READS_PER_LOOK = 16
"""Reads without a whole message between two looks at a client. A pong takes one read, or two if its packet was cut."""


class StatusNotice(NamedTuple):
    """A status that one client is sent apart from the log: where in the log it is due, and its frame."""

    offset: int
    sequence: int
    status: messages.SyncStatus
    frame: memoryview


class PendingHello:
    """Before the hello is complete: how much of the time was the peer's own. Times are monotonic seconds.

    Only the peer's own time counts towards the handshake timeout. While bytes of the peer wait for their turn here, its
    clock stands still.
    """

    __slots__ = ("_charged_from", "host", "is_shaking", "queued_at")

    def __init__(self, now: float, host: str = "") -> None:
        self.host = host
        """The peer's address without its port."""
        self._charged_from = now
        """From when the peer's time runs: the time of arrival plus all that it waited for us."""
        self.queued_at = 0.0
        """Since when its bytes wait for their turn; 0.0 while the peer is waited for."""
        self.is_shaking = False
        """The TLS handshake is not done."""

    def begin_queueing(self, now: float) -> None:
        """Bytes of the peer wait for their turn; more bytes change nothing."""
        self.queued_at = self.queued_at or now

    def end_queueing(self, now: float) -> None:
        """The bytes have been read. The peer's time runs again; the wait is not charged to it."""
        if self.queued_at:
            self._charged_from += now - self.queued_at
            self.queued_at = 0.0

    def own_seconds(self, now: float) -> float:
        """How long the peer has been waited for, without the time in which it waited for us."""
        return (self.queued_at or now) - self._charged_from

    def restart(self, now: float) -> None:
        """The peer gets its whole time once more."""
        self._charged_from = now
        self.queued_at = now if self.queued_at else 0.0


class Liveness:
    """Signs that the client reads: pongs, bytes that its host acknowledges, room in its receive window.

    Times are monotonic seconds; 0.0 stands for never.
    """

    __slots__ = (
        "_acked_bytes",
        "_acked_since_ping",
        "_overdue_since",
        "_pongs_due",
        "_reads_left",
        "_widest_window",
        "asked_at",
        "pinged_at",
        "probed_at",
        "probed_offset",
        "progress_at",
    )

    def __init__(self, now: float) -> None:
        self.pinged_at = 0.0
        """When the oldest unanswered ping was sent. A pong is due within the pong timeout."""
        self.probed_at = 0.0
        """When the oldest unanswered probe was sent: a ping between data. It measures lag and closes no connection."""
        self.probed_offset = 0
        """Where in the log the client stood then."""
        self.asked_at = now
        """When the client last was pinged, or seen to read."""
        self.progress_at = now
        """When the peer's host last acknowledged bytes that it had been sent."""
        self._acked_bytes = 0
        self._acked_since_ping = 0
        self._overdue_since = 0.0
        """From when the pong is waited for without another sign of life, if that is later than `pinged_at`."""
        self._widest_window = 0
        """The most bytes that the peer's host has had room for."""
        self._pongs_due = _PONGS_SPARE
        """How many more pongs the client may send."""
        self._reads_left = _READS_BEFORE_HELLO
        """How many more times it may send bytes that complete no message."""

    def note_pinged(self) -> None:
        """A ping was sent, or will be as soon as the socket takes it. The client owes one pong more."""
        self._pongs_due += 1

    def await_pong(self, now: float) -> None:
        """A ping was sent, or an acknowledgement is due instead. An older unanswered ping is the one that counts."""
        self.pinged_at = self.pinged_at or now

    def await_probe(self, now: float, offset: int) -> None:
        """A probe was sent to a client that stands at this offset of the log."""
        self.probed_at, self.probed_offset = now, offset

    def has_unread_probe(self, now: float, unread_seconds: float) -> bool:
        """Whether the client has left a probe unanswered for so long that it does not read what its host takes."""
        return bool(self.probed_at) and now - self.probed_at > unread_seconds

    def excuse_pong(self) -> None:
        """No pong is waited for: another message answered."""
        self.pinged_at = 0.0

    def note_pong(self) -> float:
        """A pong has arrived; returns when the ping that it answers was sent, 0.0 for none.

        Raises:
            RemoteProtocolError: the client sends more pongs than it was sent pings.
        """
        self._pongs_due -= 1
        if self._pongs_due < 0:
            raise errors.RemoteProtocolError("more pongs than pings")
        asked_at = self.pinged_at or self.probed_at
        self.pinged_at = self.probed_at = 0.0
        return asked_at

    def note_asked(self, now: float) -> None:
        """The client was pinged, or has just been seen to read."""
        self.asked_at = now
        self._reads_left = _READS_PER_LOOK

    def note_greeted(self) -> None:
        """The hello is complete."""
        self._reads_left = _READS_PER_LOOK

    def note_incomplete_read(self) -> None:
        """The client has sent bytes that complete no message: reading them costs more than sending them.

        Raises:
            RemoteProtocolError: it has done so too often.
        """
        self._reads_left -= 1
        if self._reads_left < 0:
            raise errors.RemoteProtocolError("too many pieces of a message")

    def restart_progress(self, now: float) -> None:
        """From now on the peer's host is expected to acknowledge bytes."""
        self.progress_at = now

    def note_acked(self, acked_bytes: int, now: float) -> None:
        """The peer's host has acknowledged this many bytes since the connection began."""
        if acked_bytes != self._acked_bytes:
            self._acked_bytes = acked_bytes
            self.progress_at = now

    def overdue_seconds(self, acked_bytes: int, now: float, *, ignored_bytes: int) -> float:
        """How long an unanswered ping has gone without any sign of life.

        More than `ignored_bytes` acknowledged since the last call count as one: a slow reader has much to read before
        the ping.
        """
        if self._overdue_since < self.pinged_at:  # the first call for this ping; what came before says nothing
            self._overdue_since = self.pinged_at
        elif acked_bytes - self._acked_since_ping > ignored_bytes:
            self._overdue_since = now
        self._acked_since_ping = acked_bytes
        return now - self._overdue_since

    def is_window_wide(self, window_bytes: int, *, unread_bytes: int) -> bool:
        """Whether the peer's host has as much room as ever, give or take `unread_bytes`; 0 means unknown."""
        self._widest_window = max(self._widest_window, window_bytes)
        return window_bytes > 0 and window_bytes > self._widest_window - unread_bytes


class Client(cursor.Cursor):
    """A connection. Fields only; the parts of its worker act on it. Times are monotonic seconds."""

    __slots__ = (
        "_sent_at",
        "adapter",
        "address",
        "applied",
        "behind_since",
        "blocked_offset",
        "channel",
        "close_at",
        "connected_at",
        "fd",
        "greeting",
        "held_up_seconds",
        "hello",
        "index",
        "liveness",
        "number",
        "slot",
        "snapshot_at",
        "socket",
        "tag",
        "told",
        "waiting",
        "watching_write",
    )

    def __init__(self, connection: transport.Connection, address: str, *, number: int, slot: int, now: float) -> None:
        super().__init__()
        self.socket = connection
        self.fd = connection.fileno()
        self.address = address
        self.number = number
        self.slot = slot
        """Of `Keepalive`."""
        self.channel: WorkerChannel | None = None
        self.adapter: protocol_adapters.ProtocolAdapter | None = None
        """What it speaks; None before its first bytes."""
        self.tag = subscriptions.COMMON
        """Of the node whose frames it gets besides the common ones."""
        self.index = -1
        """Its place in the channel's live set; -1 elsewhere."""
        self.connected_at = now
        self.hello: PendingHello | None = PendingHello(now, self.host)
        """None once the hello is complete, or the connection is closing."""
        self.liveness = Liveness(now)
        self.applied: convergence.Position | None = None
        """None for a client that does not report what it has applied."""
        self.waiting = False
        """The socket is full; the poller says when it takes bytes again."""
        self.watching_write = False
        """The poller has been asked to say so. Written by the poller only."""
        self._sent_at = now
        self.greeting: StatusNotice | None = None
        """The first status, still to be sent once the client stands at its offset of the log."""
        self.told: StatusNotice | None = None
        """The last status that was sent apart from the log. A status of the log after its offset is newer."""
        self.blocked_offset = 0
        """Offset at which it left the live set, or finished its snapshot. Deliveries count from there."""
        self.behind_since = 0.0
        """CATCHING_UP: when the oldest update that it lacks was published."""
        self.held_up_seconds = 0.0
        """How long pacing of slow consumers has delayed it since it left the live set."""
        self.snapshot_at = 0.0
        """When its last snapshot began."""
        self.close_at = 0.0
        """CLOSING: when the connection is closed at the latest."""

    @property
    def host(self) -> str:
        """The peer's address without its port; of IPv6, its network."""
        return networks.network_of(self.address.rpartition(":")[0].strip("[]"))

    @property
    def offset(self) -> int:
        """See `Cursor`; in a live set the set holds it."""
        channel = self.channel
        return self._offset if self.index < 0 or channel is None else channel.live.offset_at(self.index)

    @offset.setter
    def offset(self, offset: int) -> None:
        channel = self.channel
        if self.index < 0 or channel is None:
            self._offset = offset
        else:
            channel.live.offsets[self.index] = offset

    @property
    def sent_at(self) -> float:
        """When it was last sent something; in a live set the set holds it."""
        channel = self.channel
        return self._sent_at if self.index < 0 or channel is None else channel.live.sent_at[self.index]

    @sent_at.setter
    def sent_at(self, sent_at: float) -> None:
        channel = self.channel
        if self.index < 0 or channel is None:
            self._sent_at = sent_at
        else:
            channel.live.sent_at[self.index] = sent_at

    def at_frame_end(self, bytes_through: transport.Transport) -> bool:
        """Whether a ping or goodbye may be sent now: the last byte sent ended a frame, and TLS owes none after it."""
        if self.waiting or bytes_through.owed(self.fd):
            return False
        return self.channel is None or self.at_boundary(self.channel.log)

    def begin_waiting(self, now: float) -> bool:
        """The socket takes nothing more; True if that is new, and the poller is to be asked."""
        if self.waiting:
            return False
        self.waiting = True
        self.liveness.restart_progress(now)
        return True
