"""Where one client is: every state and every change of state of a delivery. Pure.

    HANDSHAKE ──> HELD ──> SNAPSHOT ──> FOLLOWING <──> CATCHING_UP
        │          │ ^_________│____________│______________/ │
        └──────────┴───────────┴──────> CLOSING <────────────┘

HANDSHAKE     nothing is known of the client yet
HELD          accepted; waits for data that can be served, or for its turn, and gets pings meanwhile
SNAPSHOT      at `position` of a snapshot file
FOLLOWING     at `offset` of the log
CATCHING_UP   the log no longer holds its offset; the rest of the frame it stood in, and of what TLS has sealed for
              it, its `tail`, is still owed to it, and then, from `sequence` on, one block after another until one leads
              back to the log; it waits while there is no block. If blocks are not to be had or too dear, it is HELD for
              a new snapshot, that replaces all
CLOSING       refused or told goodbye; nothing is sent any more, `reason` says why

A change of what is sent next (to another file, to a ping, to a goodbye) happens only where a frame ends: that is what
`at_boundary` answers, and `become_catching_up` keeps by taking the tail along. Blocks are read by rules that let no key
go back: each begins where the last one ended, and its cut is no older than what the client has from the log and from
blocks before. A block may be left where any of its frames ends, as if it had been made no longer.
"""

import enum

from cache.state import files, log
from protocol import reasons


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
    CursorState.CATCHING_UP: frozenset({CursorState.FOLLOWING, CursorState.HELD, CursorState.CLOSING}),
    CursorState.CLOSING: frozenset(),
}


class IllegalTransition(AssertionError):
    """A defect of ours: the change of state that was asked for does not exist."""


class Cursor:
    """One client's place; the only writer of these fields is this class."""

    __slots__ = ("_offset", "block", "needed_sequence", "position", "reason", "sequence", "snapshot", "state", "tail")

    def __init__(self) -> None:
        self.state = CursorState.HANDSHAKE
        self._offset = 0
        self.position = 0
        """Next byte of `snapshot` or `block` to send."""
        self.sequence = 0
        """CATCHING_UP: the client has everything up to here, and needs the block that begins here. FOLLOWING: the
        sequence at which it came (back) to the log."""
        self.needed_sequence = 0
        """CATCHING_UP: no block whose cut is older may be sent, for it would take keys back."""
        self.block: files.BlockFile | None = None
        """Set only if the state is CATCHING_UP."""
        self.snapshot: files.SnapshotFile | None = None
        """Set if and only if the state is SNAPSHOT."""
        self.tail: memoryview | None = None
        """Owed before anything else. CATCHING_UP: the rest of the frame that was being sent; FOLLOWING: a status that
        is told to this client alone, at a boundary of the log; any state: a ping that is sealed but not sent."""
        self.reason: reasons.DisconnectReason | None = None
        """Set if and only if the state is CLOSING; the first reason stays."""

    def __repr__(self) -> str:
        return f"<Cursor {self.state.value} offset={self.offset} position={self.position} reason={self.reason}>"

    @property
    def offset(self) -> int:
        """FOLLOWING: next byte of the log to send; CATCHING_UP: offset behind `tail` when the log went."""
        return self._offset

    @offset.setter
    def offset(self, offset: int) -> None:
        self._offset = offset

    def note_sent(self, sent: int) -> None:
        """The next `sent` bytes have gone out: of the tail if there is one, else of the file or log."""
        if self.tail:
            self.tail = self.tail[sent:] or None
        elif self.snapshot is not None or self.block is not None:
            self.position += sent
        else:
            self.offset += sent

    def _enter(self, state: CursorState) -> None:
        if state not in _LEGAL[self.state]:
            raise IllegalTransition(f"{self!r} cannot become {state.value}")
        self.state = state

    def become_held(self) -> None:
        """Waits for a snapshot, from a handshake or when a catch-up cannot go on by blocks."""
        if self.tail or self.block:
            raise IllegalTransition(f"{self!r} stands inside a frame or block")
        self._enter(CursorState.HELD)
        self.tail = None

    def become_snapshot(self, snapshot: files.SnapshotFile) -> None:
        """Begins a snapshot at its first byte."""
        self._enter(CursorState.SNAPSHOT)
        self.snapshot = snapshot
        self.position = 0
        snapshot.readers += 1

    def become_following(self) -> None:
        """The snapshot, or a block that leads to the log, is sent whole; goes on in the log behind it."""
        read = self.snapshot or self.block
        if read is None or self.position != read.length or not (self.snapshot or self.leads_to_log()):
            raise IllegalTransition(f"{self!r} is not at the end of what leads to the log")
        self._enter(CursorState.FOLLOWING)
        self.offset = read.log_offset
        self.sequence = read.sequence if isinstance(read, files.SnapshotFile) else read.cut_sequence
        self._leave_files()

    def become_catching_up(self, reader: log.LogReader, *, owed_bytes: int = 0) -> None:
        """Leaves the log before its segment goes; whoever stands inside a frame takes the rest of it along.

        `sequence` becomes that of the base of the segment, which all who stand in it have in common: they are sent
        some of what they have once more, and the same file serves them all. Whoever has come to the log only now, and
        finds its place gone, has the sequence of what brought it.

        Args:
            reader: the log that is left.
            owed_bytes: so much behind the last byte sent is sealed; it is taken along up to a frame's end, too.
        """
        self._enter(CursorState.CATCHING_UP)
        self.needed_sequence = self.sequence
        if not reader.start <= self.offset <= reader.end:
            return
        if not self.tail and self.offset < reader.end:
            first, end, _ = reader.frame_at(self.offset + max(0, owed_bytes - 1))
            if owed_bytes or first != self.offset:
                self.tail = memoryview(bytes(reader.view(self.offset)[: end - self.offset]))
                self.offset = end
        self.needed_sequence = reader.sequence_at(self.offset)
        self.sequence = reader.base_sequence_at(self.offset)

    def need(self, sequence: int) -> None:
        """CATCHING_UP: no block of an older cut will do from here on."""
        self.needed_sequence = max(self.needed_sequence, sequence)

    def owe(self, data: bytes | memoryview) -> None:
        """Something small for this client alone, to be sent where the frame that it stands in ends."""
        self.tail = memoryview(bytes(self.tail) + data) if self.tail else memoryview(data)

    def awaits_block(self) -> bool:
        """Whether it is in a catch-up, and has nothing to send."""
        return self.state is CursorState.CATCHING_UP and not self.tail and self.block is None

    def become_reading(self, block: files.BlockFile) -> None:
        """CATCHING_UP: begins the block that it waited for."""
        fits = block.from_sequence == self.sequence and block.cut_sequence >= self.needed_sequence
        if not self.awaits_block() or not fits:
            raise IllegalTransition(f"{self!r} cannot read {block!r}")
        self.block = block
        self.position = 0
        block.readers += 1

    def leads_to_log(self) -> bool:
        """Whether the client is in a block behind which it goes on in the log."""
        return self.block is not None and self.block.is_final

    def become_waiting(self) -> None:
        """CATCHING_UP: the block is sent whole, and another one must follow."""
        block = self.block
        if block is None or self.position != block.length:
            raise IllegalTransition(f"{self!r} is not at the end of a block")
        self.sequence = block.to_sequence
        self.need(block.cut_sequence)
        self._leave_files()

    def leave_block(self, sequence: int, rest: memoryview) -> None:
        """CATCHING_UP: the block is to end with the frame in which it stands; another one must follow.

        Args:
            sequence: that is reached where the frame ends.
            rest: of the frame, and of what is sealed: taken along.
        """
        block = self.block
        if block is None or self.tail or self.position + len(rest) > block.length:
            raise IllegalTransition(f"{self!r} cannot leave {block!r} with {len(rest)} bytes")
        self.tail = rest or None
        self.sequence = sequence
        self.need(block.cut_sequence)
        self._leave_files()

    def become_closing(self, reason: reasons.DisconnectReason) -> None:
        """The end; whatever was owed is dropped."""
        self._enter(CursorState.CLOSING)
        self.reason = reason
        self.tail = None
        self._leave_files()

    def is_closing(self) -> bool:
        """Whether nothing is sent any more."""
        return self.state is CursorState.CLOSING

    def at_boundary(self, reader: log.LogReader) -> bool:
        """Whether the last byte sent ended a frame, so that a ping or goodbye may follow.

        Inside a snapshot or block only its two ends are known to be boundaries.
        """
        if self.tail:
            return False
        if self.state is CursorState.FOLLOWING:
            return self.offset >= reader.end or reader.frame_at(self.offset)[0] == self.offset
        read = self.snapshot or self.block
        return read is None or self.position in (0, read.length)

    def _leave_files(self) -> None:
        for read in (self.snapshot, self.block):
            if read is not None:
                read.readers -= 1
        self.snapshot = self.block = None
