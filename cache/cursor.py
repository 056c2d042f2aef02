"""Where one client is: every state and every change of state of a delivery. Pure.

    HANDSHAKE ──> HELD ──> SNAPSHOT ──> FOLLOWING ──> CATCHING_UP
        │          │ ^_________│____________│______________/ │
        └──────────┴───────────┴──────> CLOSING <────────────┘

HANDSHAKE     nothing is known of the client yet
HELD          accepted; waits for data that can be served, or for its turn, and gets pings meanwhile
SNAPSHOT      at `position` of a snapshot file
FOLLOWING     at `offset` of the log
CATCHING_UP   the log no longer holds its offset; the rest of the frame it stood in, `tail`, is still owed to it, and
              then a new snapshot, that replaces what it holds
CLOSING       refused or told goodbye; nothing is sent any more, `reason` says why

A change of what is sent next (to another file, to a ping, to a goodbye) happens only where a frame ends: that is what
`at_boundary` answers, and `become_catching_up` keeps by taking the tail along.
"""

import enum

from cache import log
from protocol import messages, reasons


class CursorState(enum.Enum):
    """See the module's text."""

    HANDSHAKE = "handshake"
    HELD = "held"
    SNAPSHOT = "snapshot"
    FOLLOWING = "following"
    CATCHING_UP = "catching-up"
    CLOSING = "closing"


_LEGAL: dict[CursorState, frozenset[CursorState]] = {
    CursorState.HANDSHAKE: frozenset({CursorState.HELD, CursorState.CLOSING}),
    CursorState.HELD: frozenset({CursorState.SNAPSHOT, CursorState.CLOSING}),
    CursorState.SNAPSHOT: frozenset({CursorState.FOLLOWING, CursorState.CLOSING}),
    CursorState.FOLLOWING: frozenset({CursorState.CATCHING_UP, CursorState.CLOSING}),
    CursorState.CATCHING_UP: frozenset({CursorState.HELD, CursorState.CLOSING}),
    CursorState.CLOSING: frozenset(),
}


class IllegalTransition(AssertionError):
    """A defect of ours: the change of state that was asked for does not exist."""


class SnapshotFile:
    """A snapshot as a worker knows it; it is closed when the last cursor that reads it has left."""

    __slots__ = ("descriptor", "length", "log_offset", "readers", "sequence", "status")

    def __init__(
        self, descriptor: int, *, length: int, log_offset: int, sequence: int, status: messages.SyncStatus
    ) -> None:
        self.descriptor = descriptor
        self.length = length
        self.log_offset = log_offset
        self.sequence = sequence
        self.status = status
        self.readers = 0

    def __repr__(self) -> str:
        return f"<SnapshotFile sequence={self.sequence} bytes={self.length} readers={self.readers}>"


class Cursor:
    """One client's place; the only writer of these fields is this class."""

    __slots__ = ("offset", "position", "reason", "snapshot", "state", "tail")

    def __init__(self) -> None:
        self.state = CursorState.HANDSHAKE
        self.offset = 0
        """FOLLOWING: next byte of the log to send."""
        self.position = 0
        """SNAPSHOT: next byte of `snapshot` to send."""
        self.snapshot: SnapshotFile | None = None
        """Set if and only if the state is SNAPSHOT."""
        self.tail: memoryview | None = None
        """Owed before anything else. CATCHING_UP: the rest of the frame that was being sent; FOLLOWING: a status that
        is told to this client alone, at a boundary of the log."""
        self.reason: reasons.DisconnectReason | None = None
        """Set if and only if the state is CLOSING; the first reason stays."""

    def __repr__(self) -> str:
        return f"<Cursor {self.state.value} offset={self.offset} position={self.position} reason={self.reason}>"

    def _enter(self, state: CursorState) -> None:
        if state not in _LEGAL[self.state]:
            raise IllegalTransition(f"{self!r} cannot become {state.value}")
        self.state = state

    def become_held(self) -> None:
        """Waits for a snapshot, from a handshake or when the tail of a catch-up is sent."""
        if self.tail:
            raise IllegalTransition(f"{self!r} still owes {len(self.tail)} bytes of a frame")
        self._enter(CursorState.HELD)
        self.tail = None

    def become_snapshot(self, snapshot: SnapshotFile) -> None:
        """Begins a snapshot at its first byte."""
        self._enter(CursorState.SNAPSHOT)
        self.snapshot = snapshot
        self.position = 0
        snapshot.readers += 1

    def become_following(self) -> None:
        """The snapshot is sent whole; goes on in the log behind it."""
        snapshot = self.snapshot
        if snapshot is None or self.position != snapshot.length:
            raise IllegalTransition(f"{self!r} is not at the end of a snapshot")
        self._enter(CursorState.FOLLOWING)
        self.offset = snapshot.log_offset
        self._leave_snapshot()

    def become_catching_up(self, reader: log.LogReader) -> None:
        """Leaves the log before its segment goes; whoever stands inside a frame takes the rest of it along."""
        self._enter(CursorState.CATCHING_UP)
        if self.tail or not reader.start <= self.offset < reader.end:
            return
        first, end, _ = reader.frame_at(self.offset)
        if first != self.offset:
            self.tail = memoryview(bytes(reader.view(self.offset)[: end - self.offset]))

    def become_closing(self, reason: reasons.DisconnectReason) -> None:
        """The end; whatever was owed is dropped."""
        self._enter(CursorState.CLOSING)
        self.reason = reason
        self.tail = None
        self._leave_snapshot()

    def is_closing(self) -> bool:
        """Whether nothing is sent any more."""
        return self.state is CursorState.CLOSING

    def at_boundary(self, reader: log.LogReader) -> bool:
        """Whether the last byte sent ended a frame, so that a ping or goodbye may follow.

        Inside a snapshot only its two ends are known to be boundaries.
        """
        if self.state is CursorState.FOLLOWING and not self.tail:
            return self.offset >= reader.end or reader.frame_at(self.offset)[0] == self.offset
        if self.state is CursorState.SNAPSHOT:
            return self.snapshot is not None and self.position in (0, self.snapshot.length)
        return not self.tail

    def _leave_snapshot(self) -> None:
        if self.snapshot is not None:
            self.snapshot.readers -= 1
            self.snapshot = None
