"""The files that workers read beside the log: snapshots and catch-up blocks, as plain records that the hub sends.

Both are sealed shared memory. A record travels between processes beside its descriptor: the receiver replaces
`descriptor` by its own number. `readers` counts the cursors that stand in the file, in this process.
"""

import array
import bisect
import functools
import itertools
import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from cache.state import memfile
from protocol import digest as digests
from protocol import messages

INDEX_RECORD = struct.Struct("=QQ")
"""A record of a snapshot's index: the end of a chunk's frames in the file, and the chunk's digest. The first record has
the beginning of the first chunk, and the digest of the whole map."""


class SnapshotIndex:
    """Where the chunks of a snapshot file are, and their digests."""

    def __init__(self, packed: bytes) -> None:
        numbers = memoryview(packed).cast("Q")
        self._ends = array.array("Q", numbers[::2])
        self.digests = array.array("Q", numbers[3::2])
        """Of each chunk."""
        self.digest: int = numbers[1]
        """Of the whole map."""
        self._coarse: dict[int, array.array[int]] = {}

    def coarse(self, count: int) -> "array.array[int]":
        """The digests of `count` coarser chunks, a power of two that is not above the number of chunks."""
        found = self._coarse.get(count)
        if found is None:
            found = self._coarse[count] = digests.fold(self.digests, count)
        return found

    def range_of(self, first: int, after: int) -> tuple[int, int]:
        """Position and length of the frames of the chunks from `first` up to, without, `after`."""
        return self._ends[first], self._ends[after] - self._ends[first]

    @property
    def end(self) -> int:
        """Position after the last chunk, where snapshot-end begins."""
        return self._ends[-1]


class Piece(NamedTuple):
    """A part of what one client reads: `data` made for it, or, if that is None, a range of a shared file."""

    data: bytes | None
    position: int
    """Of the range in the file."""
    length: int


class Pieces:
    """What one client reads in place of a whole file: bytes made for it, and ranges of the file."""

    __slots__ = ("_begins", "_pieces", "length")

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = [piece for piece in pieces if piece.length]
        *self._begins, self.length = itertools.accumulate((piece.length for piece in self._pieces), initial=0)

    def __repr__(self) -> str:
        return f"<Pieces count={len(self._pieces)} bytes={self.length}>"

    def at(self, position: int) -> Piece:
        """The rest of the piece that a reader has reached after `position` (< length) bytes of all pieces."""
        number = bisect.bisect_right(self._begins, position) - 1
        piece = self._pieces[number]
        done = position - self._begins[number]
        data = None if piece.data is None else piece.data[done:]
        return Piece(data, piece.position + done, piece.length - done)


SECTION_RECORD = struct.Struct("=QQQQQ")
"""The tag of a node, the position and length of the frames of its section, and the section's keys and digest."""


class Section(NamedTuple):
    """The keys of one node in a snapshot file: the frames of chunk 0 for its clients."""

    position: int
    length: int
    keys: int
    digest: int


NO_SECTION = Section(0, 0, 0, 0)


class CommonPart(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What all clients get of a snapshot with sections: the first bytes of the file, chunks 1 to `chunks`."""

    length: int
    keys: int
    chunks: int
    digest: int
    sections: int
    """Number of records that follow the `length` bytes of the whole file."""


class SnapshotFile(msgspec.Struct, array_like=True, eq=False, forbid_unknown_fields=True, dict=True):
    """A snapshot as its readers know it. After it a client goes on in the log at `log_offset`."""

    descriptor: int
    length: int
    log_offset: int
    sequence: int
    status: messages.SyncStatus
    keys: int = 0
    chunks: int = 0
    """Chunks in the index, which follows the `length` bytes for clients in the file. 0 for a format without one."""
    common: CommonPart | None = None
    """Set if each client gets this and the section of its node, with frames made for it before and after."""
    readers: int = 0

    def __repr__(self) -> str:
        return f"<SnapshotFile sequence={self.sequence} bytes={self.length} readers={self.readers}>"

    @functools.cached_property
    def view(self) -> memoryview:
        """Its bytes, mapped once for all readers of this process. Raises OSError."""
        return memfile.map_readonly(self.descriptor, self.length) if self.length else memoryview(b"")

    @functools.cached_property
    def index(self) -> SnapshotIndex:
        """Its chunks, of which there are some. Raises OSError."""
        index_bytes = (self.chunks + 1) * INDEX_RECORD.size
        packed = os.pread(self.descriptor, index_bytes, self.length)
        if len(packed) != index_bytes:
            raise OSError(f"a snapshot's index has {len(packed)} bytes instead of {index_bytes}")
        return SnapshotIndex(packed)

    @functools.cached_property
    def sections(self) -> dict[int, Section]:
        """The sections by the tags of their nodes. Raises OSError."""
        table_bytes = (self.common.sections if self.common else 0) * SECTION_RECORD.size
        packed = os.pread(self.descriptor, table_bytes, self.length)
        if len(packed) != table_bytes:
            raise OSError(f"a snapshot's table of sections has {len(packed)} bytes instead of {table_bytes}")
        return {tag: Section(*place) for tag, *place in SECTION_RECORD.iter_unpack(packed)}

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
