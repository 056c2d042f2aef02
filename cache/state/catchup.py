"""Catch-up blocks: what a client that has fallen out of the log gets instead of it. Pure.

A block is a file in sealed shared memory, of whole frames: the next keys that have changed behind a sequence, in order
of their last change, with their newest values, deletions as deletions. It is limited in bytes, never splits a
sequence, and says how far it leads. Behind a final one, which leads to the moment at which it was cut, a client goes
on in the log at `log_offset`; behind another one it needs the block that begins where this one ended.

A client may read blocks of different cuts one after another. It ends with the server's map, and no key goes back, as
long as each block's cut is no older than what the client has from the log, and than the cuts of the blocks that it has
read before (`cache.state.cursor` keeps to that; docs/decisions/slow-clients-are-caught-up.md says why).
"""

import bisect
from collections.abc import Iterator

from cache.state import files, memfile, store
from protocol import encoding, messages

BLOCK_TARGET_BYTES = 256 * 1024
"""A block is closed at this size: what a client at 1 Mbit/s takes in 2 s, and what a worker holds for each start point
that its clients read from."""
BLOCK_RAW_BYTES_MAX = 2 * 1024 * 1024
"""Or when so many bytes of keys and values are in it, however well they compress: some 20 ms of the hub's time."""


class BlockBuilder:
    """Writes a block step by step. Run `steps` to its end, then take `block`; or `abandon`.

    Take the difference between two batches, when the log's end is `log_offset`.
    """

    def __init__(self, encoder: encoding.Encoder, difference: store.Difference, *, log_offset: int) -> None:
        self._encoder = encoder
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
        """Yields after each frame; the file is sealed when it ends."""
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
        # The encoder takes an update more than it has put into a frame, so they are counted by their sequences.
        block.frames = [(end, reached, bisect.bisect_right(taken, reached)) for end, reached in ends]
        block.updates = bisect.bisect_right(taken, block.to_sequence)
        memfile.seal(block.descriptor)

    def _is_full(self) -> bool:
        return self.block.length >= BLOCK_TARGET_BYTES or self._raw_bytes >= BLOCK_RAW_BYTES_MAX

    def _weighed(self, taken: list[int]) -> Iterator[tuple[int, messages.Update]]:
        for sequence, update in self._difference.changes():
            self._raw_bytes += len(update.key) + len(update.value or b"")
            taken.append(sequence)
            yield sequence, update

    def abandon(self) -> None:
        """Gives an unfinished file up."""
        self.block.close()

    def _write(self, data: bytes) -> None:
        memfile.write_all(self.block.descriptor, data)
        self.block.length += len(data)
