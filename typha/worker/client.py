"""One connection of a worker: a socket, a cursor, and what is needed to judge whether the client is alive."""

from typing import TYPE_CHECKING

from cache.state import cursor
from protocol import messages
from typha.worker import protocol_adapters, transport

if TYPE_CHECKING:
    from typha.worker.channel import WorkerChannel


class Client(cursor.Cursor):
    """A connection; fields only, its worker's `Server` acts on it. Times are the loop's clock, in seconds."""

    __slots__ = (
        "_sent_at",
        "acked_bytes",
        "adapter",
        "address",
        "asked_at",
        "behind_since",
        "blocked_offset",
        "channel",
        "charged_from",
        "close_at",
        "connected_at",
        "fd",
        "greet_offset",
        "greet_sequence",
        "greeting",
        "greeting_status",
        "held_up_seconds",
        "index",
        "number",
        "overdue_acked",
        "overdue_since",
        "pinged_at",
        "probed_at",
        "probed_offset",
        "progress_at",
        "queued_at",
        "shaking",
        "slot",
        "snapshot_at",
        "socket",
        "told_offset",
        "told_status",
        "waiting",
        "watching_write",
        "widest_window",
    )

    def __init__(self, connection: transport.Connection, address: str, *, number: int, slot: int, now: float) -> None:
        super().__init__()
        self.socket = connection
        self.fd = connection.fileno()
        self.address = address
        self.number = number
        self.slot = slot
        self.channel: WorkerChannel | None = None
        self.adapter: protocol_adapters.ProtocolAdapter | None = None
        """What it speaks; None before its first bytes have told."""
        self.index = -1
        """Place among its channel's followers; -1 elsewhere."""
        self.shaking = False
        """Its TLS handshake is not done."""
        self.waiting = False
        """The socket is full; the poller says when it takes bytes again."""
        self.watching_write = False
        """The poller's: it has been asked to say so."""
        self.connected_at = now
        self.charged_from = now
        """Before its hello is complete: from when its time runs; later than its coming by all that it waited for us."""
        self.queued_at = 0.0
        """Since when what it has said waits for its turn with us; 0.0 while it is the peer that is waited for."""
        self._sent_at = now
        self.pinged_at = 0.0
        """When the oldest unanswered ping was sent; 0.0 for none."""
        self.overdue_since = 0.0
        """Since when its pong is waited for without a sign that it reads, if that is after `pinged_at`."""
        self.overdue_acked = 0
        """Bytes that its host had acknowledged at the last look."""
        self.asked_at = now
        """When the last ping was sent, or the last look showed that it reads."""
        self.probed_at = 0.0
        """When the oldest unanswered ping was sent that came with data behind and before it; 0.0 for none."""
        self.probed_offset = 0
        """Where in the log that was."""
        self.widest_window = 0
        """The most bytes that its host has had room for, as seen now and then."""
        self.acked_bytes = 0
        self.progress_at = now
        """When the peer's host last acknowledged something that it was owed."""
        self.blocked_offset = 0
        """Offset at which it left the pass, or its snapshot."""
        self.behind_since = 0.0
        """CATCHING_UP: when the first thing that it lacks was published."""
        self.held_up_seconds = 0.0
        """How long it could have been sent something, since it left the pass, and waited for its turn as a laggard."""
        self.greet_offset = 0
        self.greet_sequence = 0
        self.greeting: memoryview | None = None
        """The status that it is still to be told, once it stands at `greet_offset` of the log."""
        self.greeting_status = messages.SyncStatus.WAITING
        self.told_offset = 0
        self.told_status: messages.SyncStatus | None = None
        """The last status that it was told apart from the log's, at that offset; one in the log behind it is newer."""
        self.snapshot_at = 0.0
        """When its last snapshot began."""
        self.close_at = 0.0
        """CLOSING: when the connection is closed at the latest."""

    @property
    def offset(self) -> int:
        """See `Cursor`; among the followers it is written there."""
        channel = self.channel
        return self._offset if self.index < 0 or channel is None else channel.live.offsets[self.index]

    @offset.setter
    def offset(self, offset: int) -> None:
        channel = self.channel
        if self.index < 0 or channel is None:
            self._offset = offset
        else:
            channel.live.offsets[self.index] = offset

    @property
    def sent_at(self) -> float:
        """When it was last sent something; among the followers it is written there."""
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
        """Whether a ping or goodbye may be sent now: the last byte sent ended a frame, and none behind it is sealed."""
        if self.waiting or bytes_through.owed(self.fd):
            return False
        return self.channel is None or self.at_boundary(self.channel.log)

    def begin_queueing(self, now: float) -> None:
        """It has said something on the way to its hello, and waits for us; saying more changes nothing."""
        self.queued_at = self.queued_at or now

    def end_queueing(self, now: float) -> None:
        """What it said has been heard, and its time runs again: what it waited for us is not its own."""
        if self.queued_at:
            self.charged_from += now - self.queued_at
            self.queued_at = 0.0

    def own_seconds(self, now: float) -> float:
        """How long its peer has been waited for since it came, without the time in which it waited for us."""
        return (self.queued_at or now) - self.charged_from

    def start_anew(self, now: float) -> None:
        """All its time is before it again."""
        self.charged_from = now
        self.queued_at = now if self.queued_at else 0.0

    def begin_waiting(self, now: float) -> bool:
        """The socket takes nothing more; True if that is news, and the poller is to be told."""
        if self.waiting:
            return False
        self.waiting = True
        self.progress_at = now
        return True

    def note_progress(self, acked: int, now: float) -> None:
        """So many bytes the peer's host has acknowledged by now."""
        if acked != self.acked_bytes:
            self.acked_bytes = acked
            self.progress_at = now
