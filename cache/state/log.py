"""The log of one channel: frames in append-only segments of shared memory.

Offsets are 64-bit, count from the channel's first byte, and run on from one segment into the next, so a cursor is one
number. A segment is never rewritten or reused: the kernel may hold references to its pages until a peer has
acknowledged them. With each segment goes an index, two 64-bit integers for every frame: the offset behind it, and the
sequence that a client has reached there; a reader in another process needs it to know where frames end.

`LogWriter` is the hub's; `LogReader` is what a worker makes of the descriptors and ends that it is told.
"""

import bisect
import os
import struct
from collections import deque
from collections.abc import Iterable

from cache.state import memfile
from protocol import encoding

INDEX_RECORD = struct.Struct("=QQ")
FRAME_BYTES_FLOOR = 64
"""Mean frame size for which the index has room; a segment of smaller ones ends early."""


class Segment:
    """One file of the log, as its writer sees it."""

    __slots__ = (
        "_index_map",
        "_map",
        "base",
        "descriptor",
        "frames",
        "index_descriptor",
        "max_frames",
        "sequence",
        "size",
        "used",
    )

    def __init__(self, base: int, size_bytes: int) -> None:
        self.base = base
        self.size = size_bytes
        self.used = 0
        self.frames = 0
        self.sequence = 0
        """Sequence that a client has reached at its end."""
        self.max_frames = max(1, size_bytes // FRAME_BYTES_FLOOR)
        self.descriptor, self._map = memfile.create_growing("typha-log", size_bytes)
        self.index_descriptor, self._index_map = memfile.create_growing(
            "typha-log-index", self.max_frames * INDEX_RECORD.size
        )

    @property
    def end(self) -> int:
        """Offset behind its last frame."""
        return self.base + self.used

    def has_room(self, frame_bytes: int) -> bool:
        """Whether a frame of this size fits."""
        return self.used + frame_bytes <= self.size and self.frames < self.max_frames

    def append(self, frame: encoding.EncodedFrame) -> None:
        """Writes a frame that fits."""
        data = frame.data
        self._map[self.used : self.used + len(data)] = data
        self.used += len(data)
        INDEX_RECORD.pack_into(self._index_map, self.frames * INDEX_RECORD.size, self.end, frame.sequence)
        self.frames += 1
        self.sequence = frame.sequence

    def close(self) -> None:
        """Lets the memory go, as far as this process holds it."""
        self._map.close()
        self._index_map.close()
        os.close(self.descriptor)
        os.close(self.index_descriptor)


class LogWriter:
    """Appends frames and drops old segments."""

    def __init__(self, *, segment_bytes: int, sequence: int = 0) -> None:
        self.segments: deque[Segment] = deque()
        self.end = 0
        self.sequence = sequence
        self.start_sequence = sequence
        """Sequence that a client has reached at `start`."""
        self.status_offset = 0
        """Offset behind the last frame that told a status."""
        self._segment_bytes = segment_bytes

    def __repr__(self) -> str:
        return f"<LogWriter {self.start}..{self.end} segments={len(self.segments)} sequence={self.sequence}>"

    @property
    def start(self) -> int:
        """Offset of the oldest byte that is kept."""
        return self.segments[0].base if self.segments else self.end

    @property
    def used_bytes(self) -> int:
        """Bytes kept."""
        return self.end - self.start

    def append(self, frames: Iterable[encoding.EncodedFrame]) -> list[Segment]:
        """Appends, and returns the segments that had to be begun for it."""
        begun = []
        for frame in frames:
            if not self.segments or not self.segments[-1].has_room(len(frame.data)):
                segment = Segment(self.end, max(self._segment_bytes, len(frame.data)))
                self.segments.append(segment)
                begun.append(segment)
            self.segments[-1].append(frame)
            self.end += len(frame.data)
            self.sequence = frame.sequence
            if frame.status is not None:
                self.status_offset = self.end
        return begun

    def trim(self, before_offset: int) -> int:
        """Closes the segments that lie wholly before an offset, never the last; returns the new start offset."""
        while len(self.segments) > 1 and self.segments[0].end <= before_offset:
            self.start_sequence = self.segments[0].sequence
            self.segments.popleft().close()
        return self.start

    def close(self) -> None:
        """Closes all segments."""
        while self.segments:
            self.segments.popleft().close()


class _ReaderSegment:
    __slots__ = ("base", "data", "descriptor", "index")

    def __init__(self, base: int, descriptor: int, data: memoryview, index: memoryview) -> None:
        self.base = base
        self.descriptor = descriptor
        self.data = data
        self.index = index


class LogReader:
    """The same log in a worker: descriptors arrive, ends are published, old segments are dropped.

    Nothing behind the published end is ever looked at, though the file is longer.
    """

    def __init__(self, *, start: int = 0, start_sequence: int = 0) -> None:
        self.end = start
        self._start_sequence = start_sequence
        self.frames = 0
        """Frames published in the last segment."""
        self._segments: list[_ReaderSegment] = []
        self._bases: list[int] = []

    def __repr__(self) -> str:
        return f"<LogReader {self.start}..{self.end} segments={len(self._segments)}>"

    @property
    def start(self) -> int:
        """Offset of the oldest byte that can be read."""
        return self._bases[0] if self._bases else self.end

    def add_segment(self, base: int, size_bytes: int, descriptor: int, index_descriptor: int) -> None:
        """A new last segment; takes the descriptors over. All before its base is published by that."""
        data = memfile.map_readonly(descriptor, size_bytes)
        index_bytes = os.fstat(index_descriptor).st_size
        index = memfile.map_readonly(index_descriptor, index_bytes).cast("Q")
        os.close(index_descriptor)
        self._segments.append(_ReaderSegment(base, descriptor, data, index))
        self._bases.append(base)
        self.end = max(self.end, base)
        self.frames = 0

    def publish(self, end: int, frames: int) -> None:
        """All before `end` may be read now; the last segment has so many frames."""
        self.end = max(self.end, end)
        self.frames = frames

    def _segment_at(self, offset: int) -> int:
        return bisect.bisect_right(self._bases, offset) - 1

    def _segment_end(self, number: int) -> int:
        return self._bases[number + 1] if number + 1 < len(self._bases) else self.end

    def view(self, offset: int) -> memoryview:
        """The bytes from `offset` to the published end, or to the segment's end if that comes first."""
        number = self._segment_at(offset)
        segment = self._segments[number]
        return segment.data[offset - segment.base : self._segment_end(number) - segment.base]

    def file_range(self, offset: int) -> tuple[int, int, int]:
        """The same bytes for sendfile: (descriptor, position, count)."""
        number = self._segment_at(offset)
        segment = self._segments[number]
        return segment.descriptor, offset - segment.base, self._segment_end(number) - offset

    def frame_at(self, offset: int) -> tuple[int, int, int]:
        """The frame that holds the byte at `offset` (< end): (its first offset, the one behind it, sequence there)."""
        number = self._segment_at(offset)
        segment = self._segments[number]
        last = number + 1 == len(self._bases)
        frames = self.frames if last else _frame_count(segment.index, self._segment_end(number))
        position = bisect.bisect_right(_Ends(segment.index, frames), offset)
        first = segment.base if position == 0 else segment.index[2 * position - 2]
        return first, segment.index[2 * position], segment.index[2 * position + 1]

    def sequence_at(self, offset: int) -> int:
        """The sequence that a client has reached at the end of the frame before `offset` (start <= offset <= end)."""
        return self.frame_at(offset - 1)[2] if offset > self.start else self._start_sequence

    def base_sequence_at(self, offset: int) -> int:
        """The sequence at the base of the segment that holds `offset` (start <= offset <= end): never a later one."""
        return self.sequence_at(self._bases[self._segment_at(offset)]) if self._bases else self._start_sequence

    def drop(self, before_offset: int) -> list[int]:
        """Lets go of segments wholly before an offset; returns their bases."""
        dropped = []
        while len(self._bases) > 1 and self._bases[1] <= before_offset:
            self._start_sequence = self.sequence_at(self._bases[1])
            segment = self._segments.pop(0)
            dropped.append(self._bases.pop(0))
            os.close(segment.descriptor)
        return dropped

    def close(self) -> None:
        """Lets go of everything."""
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()
        self._bases.clear()


class _Ends:
    """The offsets behind each frame, as a sequence that can be bisected."""

    __slots__ = ("_frames", "_index")

    def __init__(self, index: memoryview, frames: int) -> None:
        self._index = index
        self._frames = frames

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, position: int) -> int:
        end: int = self._index[2 * position]
        return end


def _frame_count(index: memoryview, end: int) -> int:
    """Frames of a segment that is followed by another: those up to its end; records behind them are zero."""
    low, high = 0, len(index) // 2
    while low < high:
        middle = (low + high) // 2
        if 0 < index[2 * middle] <= end:
            low = middle + 1
        else:
            high = middle
    return low
