"""The position of one client: all states of a delivery, and all transitions between them. Pure.

    HANDSHAKE ──> HELD ──> SNAPSHOT ──> FOLLOWING <──> CATCHING_UP
        │          │ ^_________│____________│______________/ │
        └──────────┴───────────┴──────> CLOSING <────────────┘

A client that resumes goes from HELD to FOLLOWING or CATCHING_UP at once.

HANDSHAKE     The client has not said yet what it wants.
HELD          Accepted. Waits for its turn, or for data that can be served. Meanwhile it gets pings.
SNAPSHOT      At `position` of a snapshot file, or of the `pieces` of one that the client gets.
FOLLOWING     At `offset` of the log.
CATCHING_UP   The log no longer holds the client's offset. First the client gets its `tail`: the rest of the frame in
              which it stood, and of the data that TLS has sealed. Then, from `sequence` on, it gets one block after
              another until one leads back to the log. It waits while there is no block. If blocks are not available or
              too expensive, it becomes HELD, and a new snapshot replaces its whole map.
CLOSING       Refused, or disconnected with a goodbye. Nothing more is sent. `reason` says why.

What is sent next changes (to another file, a ping, a goodbye) only at the end of a frame. `at_boundary` checks that,
and `become_catching_up` ensures it by taking the tail along. The rules for blocks ensure that no key goes back: each
block begins where the last one ended, and its cut is no older than the client's data from the log and from earlier
blocks. A client may leave a block at the end of any of its frames, as if the block ended there.
"""

import enum

from cache.state import files, log
from protocol import reasons


class CursorState(enum.Enum):
    """See the module's docstring."""

    HANDSHAKE = "handshake"
    HELD = "held"
    SNAPSHOT = "snapshot"
    FOLLOWING = "following"
    CATCHING_UP = "catching-up"
    CLOSING = "closing"


_LEGAL: dict[CursorState, frozenset[CursorState]] = {
    CursorState.HANDSHAKE: frozenset({CursorState.HELD, CursorState.CLOSING}),
    CursorState.HELD: frozenset(
        {CursorState.SNAPSHOT, CursorState.FOLLOWING, CursorState.CATCHING_UP, CursorState.CLOSING}
    ),
    CursorState.SNAPSHOT: frozenset({CursorState.FOLLOWING, CursorState.CLOSING}),
    CursorState.FOLLOWING: frozenset({CursorState.CATCHING_UP, CursorState.CLOSING}),
    CursorState.CATCHING_UP: frozenset({CursorState.FOLLOWING, CursorState.HELD, CursorState.CLOSING}),
    CursorState.CLOSING: frozenset(),
}


class IllegalTransition(AssertionError):
    """A bug: the code requested a transition that does not exist."""


class Cursor:
    """The position of one client. Only its methods write the fields; a live set writes the offset of its members."""

    __slots__ = (
        "_offset",
        "block",
        "needed_sequence",
        "pieces",
        "position",
        "reason",
        "sequence",
        "snapshot",
        "state",
        "tail",
    )

    def __init__(self) -> None:
        self.state = CursorState.HANDSHAKE
        self._offset = 0
        self.position = 0
        """Next byte of `pieces`, `snapshot` or `block` to send."""
        self.sequence = 0
        """CATCHING_UP: the client has everything up to this sequence, and needs the block that begins here. FOLLOWING:
        the sequence at which it came (back) to the log."""
        self.needed_sequence = 0
        """CATCHING_UP: no block with an older cut may be sent, because it would take keys back."""
        self.block: files.BlockFile | None = None
        """Set only if the state is CATCHING_UP."""
        self.snapshot: files.SnapshotFile | None = None
        """Set if and only if the state is SNAPSHOT."""
        self.pieces: files.Pieces | None = None
        """Set only if the state is SNAPSHOT, and the client gets these instead of the whole file."""
        self.tail: memoryview | None = None
        """Data to send before anything else. CATCHING_UP: the rest of the current frame. FOLLOWING: a status for this
        client alone, at a frame end of the log. Any state: a ping that TLS has sealed but that is not sent yet."""
        self.reason: reasons.DisconnectReason | None = None
        """Set if and only if the state is CLOSING. The first reason stays."""

    def __repr__(self) -> str:
        return f"<Cursor {self.state.value} offset={self.offset} position={self.position} reason={self.reason}>"

    @property
    def offset(self) -> int:
        """FOLLOWING: next byte of the log to send. CATCHING_UP: offset after `tail` when it left the log."""
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
        """Wait for a snapshot: after the handshake, or when blocks cannot continue a catch-up."""
        if self.tail or self.block:
            raise IllegalTransition(f"{self!r} is inside a frame or block")
        self._enter(CursorState.HELD)
        self.tail = None

    @property
    def read_length(self) -> int:
        """Bytes of the snapshot, its pieces or the block that the client reads; 0 if it reads none."""
        read = self.pieces or self.snapshot or self.block
        return 0 if read is None else read.length

    def become_snapshot(self, snapshot: files.SnapshotFile, pieces: files.Pieces | None = None) -> None:
        """Begin a snapshot at its first byte, or at that of its pieces."""
        self._enter(CursorState.SNAPSHOT)
        self.snapshot = snapshot
        self.pieces = pieces
        self.position = 0
        snapshot.readers += 1

    def become_resumed(self, offset: int, sequence: int) -> None:
        """HELD: follow the log from the offset up to which the client has everything; `sequence` is the one there."""
        if self.state is not CursorState.HELD:
            raise IllegalTransition(f"{self!r} cannot resume")
        self._enter(CursorState.FOLLOWING)
        self.offset = offset
        self.sequence = sequence

    def become_returning(self, sequence: int, *, needed_sequence: int, offset: int) -> None:
        """HELD: catch up from a sequence up to which the client has everything.

        Args:
            sequence: the start point of the first block.
            needed_sequence: the first block's cut may be no older; the newest sequence that is published.
            offset: where the log ends now.
        """
        if self.state is not CursorState.HELD or needed_sequence < sequence:
            raise IllegalTransition(f"{self!r} cannot return from {sequence} to {needed_sequence}")
        self._enter(CursorState.CATCHING_UP)
        self.offset = offset
        self.sequence = sequence
        self.needed_sequence = needed_sequence

    def become_following(self) -> None:
        """Continue in the log after a snapshot, or after a block that leads to the log. It must be sent completely."""
        read = self.snapshot or self.block
        if read is None or self.position != self.read_length or not (self.snapshot or self.leads_to_log()):
            raise IllegalTransition(f"{self!r} is not at the end of a file that leads to the log")
        self._enter(CursorState.FOLLOWING)
        self.offset = read.log_offset
        self.sequence = read.sequence if isinstance(read, files.SnapshotFile) else read.cut_sequence
        self._leave_files()

    def become_catching_up(self, reader: log.LogReader, *, owed_bytes: int = 0) -> None:
        """Leave the log before its segment is dropped. Inside a frame, take the rest of the frame along as `tail`.

        `sequence` becomes the sequence at the base of the segment. All clients in the segment share it: one block
        serves them all, and each receives again some of what it has. A client whose offset is already outside the log
        keeps the sequence that it came to the log with.

        Args:
            reader: the log that the client leaves.
            owed_bytes: number of bytes after the last sent byte that TLS has sealed. They are taken along, too, up to a
                frame end.
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
        """CATCHING_UP: require that the cut of the next blocks is no older than this sequence."""
        self.needed_sequence = max(self.needed_sequence, sequence)

    def owe(self, data: bytes | memoryview) -> None:
        """Add a small message for this client alone. It is sent at the end of the current frame."""
        self.tail = memoryview(bytes(self.tail) + data) if self.tail else memoryview(data)

    def awaits_block(self) -> bool:
        """Return whether the client is catching up and has nothing to send."""
        return self.state is CursorState.CATCHING_UP and not self.tail and self.block is None

    def become_reading(self, block: files.BlockFile) -> None:
        """CATCHING_UP: begin the block that the client waited for."""
        fits = block.from_sequence == self.sequence and block.cut_sequence >= self.needed_sequence
        if not self.awaits_block() or not fits:
            raise IllegalTransition(f"{self!r} cannot read {block!r}")
        self.block = block
        self.position = 0
        block.readers += 1

    def leads_to_log(self) -> bool:
        """Return whether the client reads a block after which it continues in the log."""
        return self.block is not None and self.block.is_final

    def become_waiting(self) -> None:
        """CATCHING_UP: the block is sent completely; wait for the next one."""
        block = self.block
        if block is None or self.position != block.length:
            raise IllegalTransition(f"{self!r} is not at the end of a block")
        self.sequence = block.to_sequence
        self.need(block.cut_sequence)
        self._leave_files()

    def leave_block(self, sequence: int, rest: memoryview) -> None:
        """CATCHING_UP: end the block with the current frame, and wait for the next block.

        Args:
            sequence: the sequence reached at the end of the frame.
            rest: the rest of the frame and of the data that TLS has sealed. It becomes the tail.
        """
        block = self.block
        if block is None or self.tail or self.position + len(rest) > block.length:
            raise IllegalTransition(f"{self!r} cannot leave {block!r} with {len(rest)} bytes")
        self.tail = rest or None
        self.sequence = sequence
        self.need(block.cut_sequence)
        self._leave_files()

    def become_closing(self, reason: reasons.DisconnectReason) -> None:
        """End the delivery. Drop what was still to be sent."""
        self._enter(CursorState.CLOSING)
        self.reason = reason
        self.tail = None
        self._leave_files()

    def is_closing(self) -> bool:
        """Return whether nothing more is sent."""
        return self.state is CursorState.CLOSING

    def at_boundary(self, reader: log.LogReader) -> bool:
        """Return whether the last sent byte ended a frame, so that a ping or goodbye may follow.

        Inside a snapshot or block only the two ends are known to be boundaries.
        """
        if self.tail:
            return False
        if self.state is CursorState.FOLLOWING:
            return self.offset >= reader.end or reader.frame_at(self.offset)[0] == self.offset
        return (self.snapshot is None and self.block is None) or self.position in (0, self.read_length)

    def _leave_files(self) -> None:
        for read in (self.snapshot, self.block):
            if read is not None:
                read.readers -= 1
        self.snapshot = self.block = self.pieces = None
