"""The files that workers read beside the log: snapshots and catch-up blocks, as plain records that the hub sends.

Both are sealed shared memory. A record travels between processes beside its descriptor: the receiver replaces
`descriptor` by its own number. `readers` counts the cursors that stand in the file, in this process.
"""

import bisect
import functools

import msgspec

from cache.state import memfile
from protocol import messages


class SnapshotFile(msgspec.Struct, array_like=True, eq=False, forbid_unknown_fields=True, dict=True):
    """A snapshot as its readers know it. After it a client goes on in the log at `log_offset`."""

    descriptor: int
    length: int
    log_offset: int
    sequence: int
    status: messages.SyncStatus
    readers: int = 0

    def __repr__(self) -> str:
        return f"<SnapshotFile sequence={self.sequence} bytes={self.length} readers={self.readers}>"

    @functools.cached_property
    def view(self) -> memoryview:
        """Its bytes, mapped once for all readers of this process. Raises OSError."""
        return memfile.map_readonly(self.descriptor, self.length) if self.length else memoryview(b"")

    def close(self) -> None:
        """Lets the file go; readers in other processes keep it until they are done."""
        memfile.close(self.descriptor)


class BlockFile(msgspec.Struct, array_like=True, eq=False, forbid_unknown_fields=True, dict=True):
    """A catch-up block: what changed after `from_sequence`, up to `to_sequence`. `cache.state.catchup` makes them."""

    descriptor: int
    from_sequence: int
    to_sequence: int
    """The sequence that a client has reached at the block's end."""
    cut_sequence: int
    """The sequence of the store when the block was cut."""
    log_offset: int
    """The end of the log at the cut: after a final block a client goes on there."""
    status: messages.SyncStatus
    """The feed's status at the cut."""
    length: int = 0
    updates: int = 0
    is_final: bool = False
    """Whether the block leads to its cut."""
    frames: list[tuple[int, int, int]] = []
    """For each frame: its end position, the sequence reached there, and the number of updates up to there."""
    readers: int = 0

    def __repr__(self) -> str:
        reach = f"{self.from_sequence}..{self.to_sequence} of {self.cut_sequence}"
        return f"<BlockFile {reach} bytes={self.length} final={self.is_final} readers={self.readers}>"

    @functools.cached_property
    def view(self) -> memoryview:
        """Its bytes, mapped once for all readers of this process. Raises OSError."""
        return memfile.map_readonly(self.descriptor, self.length) if self.length else memoryview(b"")

    def close(self) -> None:
        """Lets the file go; readers in other processes keep it until they are done."""
        memfile.close(self.descriptor)

    def boundary_at(self, position: int) -> tuple[int, int, int]:
        """The first frame end at or after `position`: its position, the sequence and the updates reached there."""
        if not position:
            return 0, self.from_sequence, 0
        return self.frames[bisect.bisect_left(self.frames, position, key=_end_of)]

    def boundary_before(self, position: int) -> int:
        """The last frame end at or before `position`; 0 for the beginning of the block."""
        index = bisect.bisect_right(self.frames, position, key=_end_of)
        return self.frames[index - 1][0] if index else 0


def _end_of(frame: tuple[int, int, int]) -> int:
    return frame[0]
