"""Catch-up blocks, for clients whose position the log no longer holds. Pure.

A block is a file of whole frames in sealed shared memory. It contains the next keys that have changed after a sequence,
in the order of their last change, with their newest values, and deletions as deletions. It has a size limit, never
splits a sequence, and states the sequence that it leads to. A final block leads to its cut, the moment at which it was
made. After a final block a client continues in the log at `log_offset`. After any other block it needs the block that
begins where this one ends.

A client may read blocks of different cuts one after another. It ends with the server's map, and no key goes back, if
the cut of each block is no older than the client's data from the log, and no older than the cuts of earlier blocks
(`cache.state.cursor` ensures that; DESIGN.md, "Slow clients", gives the reason).
"""

import bisect
import os
from collections.abc import Iterator

from cache.state import memfile, store
from protocol import encoding, messages

BLOCK_TARGET_BYTES = 256 * 1024
"""Size at which a block ends. A client at 1 Mbit/s reads it in 2 s. A worker holds one block for each start point that
its clients read from."""
BLOCK_RAW_BYTES_MAX = 2 * 1024 * 1024
"""A block also ends after this many bytes of keys and values, whatever their compressed size. That takes the hub about
20 ms."""


class Block:
    """A finished block file. It owns `descriptor` until `close`."""

    __slots__ = (
        "cut_sequence",
        "descriptor",
        "frames",
        "from_sequence",
        "is_final",
        "length",
        "log_offset",
        "status",
        "to_sequence",
        "updates",
    )

    def __init__(self, descriptor: int, difference: store.Difference, *, log_offset: int) -> None:
        self.descriptor = descriptor
        self.from_sequence = difference.since_sequence
        self.to_sequence = difference.since_sequence
        """Sequence that a client has reached at the end of the block."""
        self.cut_sequence = difference.sequence
        self.status = difference.status
        """Status at the cut."""
        self.log_offset = log_offset
        """End of the log at the cut."""
        self.length = 0
        self.updates = 0
        self.is_final = False
        """Whether the block leads to the cut."""
        self.frames: list[tuple[int, int, int]] = []
        """For each frame: position of its end, sequence reached there, number of updates up to there."""

    def __repr__(self) -> str:
        reach = f"{self.from_sequence}..{self.to_sequence} of {self.cut_sequence}"
        return f"<Block {reach} updates={self.updates} bytes={self.length} final={self.is_final}>"

    def close(self) -> None:
        """Close the file. Readers in other processes keep it until they have finished."""
        os.close(self.descriptor)


class BlockBuilder:
    """Writes a block step by step. Run `steps` to the end, then use `block`; or call `abandon`.

    The difference must be made between two batches, when the log ends at `log_offset`.
    """

    def __init__(
        self,
        encoder: encoding.Encoder,
        difference: store.Difference,
        *,
        log_offset: int,
        target_bytes: int | None = None,
    ) -> None:
        self._encoder = encoder
        self._target_bytes = BLOCK_TARGET_BYTES if target_bytes is None else target_bytes
        self._difference = difference
        self._raw_bytes = 0
        self.block = Block(memfile.create_empty("typha-catch-up"), difference, log_offset=log_offset)

    def steps(self) -> Iterator[None]:
        """Write the file. Yield after each frame. The file is sealed at the end."""
        block = self.block
        taken: list[int] = []
        ends: list[tuple[int, int]] = []
        frames = self._encoder.changes(block.from_sequence, self._weighed(taken), end_sequence=block.cut_sequence)
        block.is_final = True
        for frame in frames:
            self._write(frame.data)
            block.to_sequence = frame.sequence
            ends.append((block.length, frame.sequence))
            if self._is_full():
                block.is_final = frame.sequence == block.cut_sequence
                break
            yield
        if block.is_final:
            block.to_sequence = block.cut_sequence
        # The encoder reads one update more than it puts into a frame, so count updates by their sequences.
        block.frames = [(end, reached, bisect.bisect_right(taken, reached)) for end, reached in ends]
        block.updates = bisect.bisect_right(taken, block.to_sequence)
        memfile.seal(block.descriptor)

    def _is_full(self) -> bool:
        return self.block.length >= self._target_bytes or self._raw_bytes >= BLOCK_RAW_BYTES_MAX

    def _weighed(self, taken: list[int]) -> Iterator[tuple[int, messages.Update]]:
        for sequence, update in self._difference.changes():
            self._raw_bytes += len(update.key) + len(update.value or b"")
            taken.append(sequence)
            yield sequence, update

    def abandon(self) -> None:
        """Discard an unfinished file."""
        self.block.close()

    def _write(self, data: bytes) -> None:
        memfile.write_all(self.block.descriptor, data)
        self.block.length += len(data)
