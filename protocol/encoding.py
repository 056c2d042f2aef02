"""What a wire format must offer, so that one store, log and cursor serve them all.

An encoder turns data into whole frames, bytes that are the same for every client of the format. It holds no state of
any connection.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from protocol import messages


class EncodedFrame(NamedTuple):
    """One whole frame, and the sequence that a client has reached behind it."""

    data: bytes
    sequence: int
    status: messages.SyncStatus | None = None
    """The status that this frame tells; None for a frame of updates."""


class Encoder(Protocol):
    """A wire format; every method gives whole frames."""

    name: str
    """Label of the format in metrics and logs."""

    in_key_order: bool
    """Whether snapshots are in the byte order of their keys: what clients make of one may depend on its order."""

    def make_ping(self, unix_nanoseconds: int) -> bytes:
        """A ping frame as of now; one serves all clients that are pinged in the same moment."""
        ...

    def updates(self, previous_sequence: int, updates: Sequence[messages.Update]) -> list[EncodedFrame]:
        """Frames of consecutive updates, the first of which is `previous_sequence` + 1."""
        ...

    def changes(
        self, previous_sequence: int, changes: Iterable[tuple[int, messages.Update]], *, end_sequence: int
    ) -> Iterator[EncodedFrame]:
        """Frames of updates that leave sequences out, each with its sequence, in order, encoded as they are taken.

        The frame of the last change reaches `end_sequence`. Without changes there is a frame only if the format needs
        one to get there.
        """
        ...

    def status(self, sequence: int, status: messages.SyncStatus) -> EncodedFrame:
        """The frame of a status."""
        ...

    def snapshot_begin(self, sequence: int, *, keys: int, chunks: int) -> bytes:
        """What goes before the first chunk."""
        ...

    def snapshot_chunk(self, index: int, digest: int, updates: Iterable[messages.Update]) -> bytes:
        """The frames of one chunk; the same bytes whenever its content is the same."""
        ...

    def snapshot_end(self, sequence: int, *, keys: int, digest: int) -> bytes:
        """What goes behind the last chunk."""
        ...
