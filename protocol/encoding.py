"""Internal: the interface of a wire format. One store, log and cursor serve all formats through it.

An encoder turns data into complete frames. The bytes of a frame are the same for every client of the format, so an
encoder has no state per connection.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from protocol import messages, subscriptions


class EncodedFrame(NamedTuple):
    """A complete frame, and the sequence that a client has reached after it."""

    data: bytes
    sequence: int
    status: messages.SyncStatus | None = None
    """The status in this frame; None for a frame of updates."""
    updates: int = 0
    """Number of updates in it."""
    tag: int = subscriptions.COMMON
    """The node whose clients get it, see `subscriptions.tag_of`."""


class Encoder(Protocol):
    """A wire format. Every method returns complete frames."""

    name: str
    """Name of the format, as in metrics and logs."""

    in_key_order: bool
    """Whether snapshots are sorted by the bytes of their keys, because clients depend on the order."""

    def make_ping(self, unix_nanoseconds: int) -> bytes:
        """A ping frame for this time. One frame serves all clients that are due at the same time."""
        ...

    def updates(self, previous_sequence: int, updates: Sequence[messages.Update]) -> list[EncodedFrame]:
        """Frames of consecutive updates. The first update has the sequence `previous_sequence` + 1."""
        ...

    def selected(
        self, previous_sequence: int, sequence: int, parts: Sequence[tuple[int, Sequence[messages.Update]]]
    ) -> list[EncodedFrame]:
        """Frames of a batch by (tag of the node, updates), of which a client gets those of its node and the common
        ones. What is common comes last.

        A client reaches `sequence` with the last frame that it gets of the batch, and stays at `previous_sequence`
        before that, so what it has reached is complete.
        """
        ...

    def changes(
        self, previous_sequence: int, changes: Iterable[tuple[int, messages.Update]], *, end_sequence: int
    ) -> Iterator[EncodedFrame]:
        """Frames of updates that skip sequences, in order. Each change is (sequence, update); encoding is lazy.

        The last frame reaches `end_sequence`. Without changes there is a frame only if the format needs one for that.
        """
        ...

    def status(self, sequence: int, status: messages.SyncStatus) -> EncodedFrame:
        """The frame of a status."""
        ...

    def snapshot_begin(self, sequence: int, *, keys: int, chunks: int) -> bytes:
        """The bytes before the first chunk."""
        ...

    def snapshot_chunk(self, index: int, digest: int, updates: Iterable[messages.Update]) -> bytes:
        """The frames of one chunk. Equal content gives equal bytes."""
        ...

    def raw_length(self, data: bytes) -> int:
        """The length of complete frames of this format before their compression."""
        ...

    def snapshot_end(self, sequence: int, *, keys: int, digest: int) -> bytes:
        """The bytes after the last chunk."""
        ...
