"""Catch-up blocks, for clients whose position the log no longer holds. Pure.

A block is a file of whole frames in sealed shared memory. It contains the next keys that have changed after a sequence,
in the order of their last change, with their newest values, and deletions as deletions. It has a size limit, never
splits a sequence, and states the sequence that it leads to. A final block leads to its cut, the moment at which it was
made. After a final block a client continues in the log at `log_offset`. After any other block it needs the block that
begins where this one ends.

A client may read blocks of different cuts one after another. It ends with the server's map, and no key goes back, if
the cut of each block is no older than the client's data from the log, and no older than the cuts of earlier blocks
(`cache.state.cursor` ensures that; docs/decisions/slow-clients-are-caught-up.md gives the reason).
"""

import bisect
from collections.abc import Iterator

from cache.state import files, memfile, store
from protocol import encoding, messages

BLOCK_TARGET_BYTES = 256 * 1024
"""Size at which a block ends. A client at 1 Mbit/s reads it in 2 s. A worker holds one block for each start point that
its clients read from."""
BLOCK_RAW_BYTES_MAX = 2 * 1024 * 1024
"""A block also ends after this many bytes of keys and values, whatever their compressed size. That takes the hub about
20 ms."""


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
        self.block = files.BlockFile(
            memfile.create_empty("typha-catch-up"),
            from_sequence=difference.since_sequence,
            to_sequence=difference.since_sequence,
            cut_sequence=difference.sequence,
            log_offset=log_offset,
            status=difference.status,
        )

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
