"""The log of one channel: frames in append-only segments of shared memory.

Offsets are 64-bit, count from the channel's first byte, and continue from one segment to the next. A position in the
log is therefore one number. A segment is never rewritten or reused, because the kernel may refer to its pages until a
peer has acknowledged them. Each segment has an index with two 64-bit integers for every frame: the offset of its end,
and the sequence that a client has reached there. Readers in other processes find the frame ends in it.

The hub uses `LogWriter`. A worker uses `LogReader`, with the descriptors and ends that the hub sends.
"""

import bisect
import os
import struct
from collections import deque
from collections.abc import Sequence

from cache.state import memfile
from protocol import encoding, messages

INDEX_RECORD = struct.Struct("=QQ")
FRAME_BYTES_FLOOR = 64
"""Minimum mean frame size for which the index has room. A segment with smaller frames ends early."""


class Segment:
    """One file of the log, as the writer sees it."""

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
        """Sequence that a client has reached at the end of the segment."""
        self.max_frames = max(1, size_bytes // FRAME_BYTES_FLOOR)
        self.descriptor, self._map = memfile.create_growing("typha-log", size_bytes)
        try:
            self.index_descriptor, self._index_map = memfile.create_growing(
                "typha-log-index", self.max_frames * INDEX_RECORD.size
            )
        except BaseException:
            self._map.close()
            os.close(self.descriptor)
            raise

    @property
    def end(self) -> int:
        """Offset of the end of the last frame."""
        return self.base + self.used

    def has_room(self, frame_bytes: int) -> bool:
        """Return whether a frame of this size fits."""
        return self.used + frame_bytes <= self.size and self.frames < self.max_frames

    def append(self, frame: encoding.EncodedFrame) -> None:
        """Write a frame. It must fit."""
        data = frame.data
        self._map[self.used : self.used + len(data)] = data
        self.used += len(data)
        INDEX_RECORD.pack_into(self._index_map, self.frames * INDEX_RECORD.size, self.end, frame.sequence)
        self.frames += 1
        self.sequence = frame.sequence

    def close(self) -> None:
        """Release the memory in this process."""
        self._map.close()
        self._index_map.close()
        memfile.close(self.descriptor)
        memfile.close(self.index_descriptor)


class LogWriter:
    """Appends frames and drops old segments."""

    def __init__(self, *, segment_bytes: int, sequence: int = 0) -> None:
        self.segments: deque[Segment] = deque()
        self.end = 0
        self.sequence = sequence
        self.start_sequence = sequence
        """Sequence that a client has reached at `start`."""
        self.status_offset = 0
        """Offset of the end of the last status frame."""
        self.status = messages.SyncStatus.WAITING
        """The status in that frame."""
        self._segment_bytes = segment_bytes

    def __repr__(self) -> str:
        return f"<LogWriter {self.start}..{self.end} segments={len(self.segments)} sequence={self.sequence}>"

    @property
    def start(self) -> int:
        """Offset of the oldest byte in the log."""
        return self.segments[0].base if self.segments else self.end

    @property
    def used_bytes(self) -> int:
        """Number of bytes in the log."""
        return self.end - self.start

    def append(self, frames: Sequence[encoding.EncodedFrame]) -> list[Segment]:
        """Append frames. Return the segments that were started for them.

        Raises:
            OSError, MemoryError: a new segment cannot be created. Nothing is appended; try again later.
        """
        begun = self._begin_segments(frames)
        following = iter(begun)
        for frame in frames:
            if not self.segments or not self.segments[-1].has_room(len(frame.data)):
                self.segments.append(next(following))
            self.segments[-1].append(frame)
            self.end += len(frame.data)
            self.sequence = frame.sequence
            if frame.status is not None:
                self.status_offset, self.status = self.end, frame.status
        return begun

    def _begin_segments(self, frames: Sequence[encoding.EncodedFrame]) -> list[Segment]:
        """Create all segments that the frames need, or none."""
        begun: list[Segment] = []
        last = self.segments[-1] if self.segments else None
        room_bytes, room_frames = (last.size - last.used, last.max_frames - last.frames) if last else (0, 0)
        end = self.end
        try:
            for frame in frames:
                if len(frame.data) > room_bytes or not room_frames:
                    begun.append(Segment(end, max(self._segment_bytes, len(frame.data))))
                    room_bytes, room_frames = begun[-1].size, begun[-1].max_frames
                room_bytes -= len(frame.data)
                room_frames -= 1
                end += len(frame.data)
        except BaseException:
            for segment in begun:
                segment.close()
            raise
        return begun

    def trim(self, before_offset: int) -> int:
        """Close the segments that end before an offset, but never the last one. Return the new start offset."""
        while len(self.segments) > 1 and self.segments[0].end <= before_offset:
            self.start_sequence = self.segments[0].sequence
            self.segments.popleft().close()
        return self.start

    def close(self) -> None:
        """Close all segments."""
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
    """The same log in a worker: it receives descriptors and published ends, and drops old segments.

    It never reads after the published end, although the file is longer.
    """

    def __init__(self, *, start: int = 0, start_sequence: int = 0) -> None:
        self.end = start
        self._start_sequence = start_sequence
        self.frames = 0
        """Number of published frames in the last segment."""
        self._segments: list[_ReaderSegment] = []
        self._bases: list[int] = []

    def __repr__(self) -> str:
        return f"<LogReader {self.start}..{self.end} segments={len(self._segments)}>"

    @property
    def start(self) -> int:
        """Offset of the oldest byte that can be read."""
        return self._bases[0] if self._bases else self.end

    def add_segment(self, base: int, size_bytes: int, descriptor: int, index_descriptor: int) -> None:
        """Add a new last segment and take over its descriptors. This publishes everything before its base.

        Raises:
            OSError, MemoryError: the files cannot be mapped. Nothing has changed; the descriptors are the caller's.
        """
        data = memfile.map_readonly(descriptor, size_bytes)
        index_bytes = os.fstat(index_descriptor).st_size
        index = memfile.map_readonly(index_descriptor, index_bytes).cast("Q")
        os.close(index_descriptor)
        self._segments.append(_ReaderSegment(base, descriptor, data, index))
        self._bases.append(base)
        self.end = max(self.end, base)
        self.frames = 0

    def publish(self, end: int, frames: int) -> None:
        """Allow reading up to `end`. `frames` is the number of frames in the last segment."""
        self.end = max(self.end, end)
        self.frames = frames

    def _segment_at(self, offset: int) -> int:
        return bisect.bisect_right(self._bases, offset) - 1

    def _segment_end(self, number: int) -> int:
        return self._bases[number + 1] if number + 1 < len(self._bases) else self.end

    def view(self, offset: int) -> memoryview:
        """Return the bytes from `offset` to the published end or the end of the segment, whichever comes first."""
        number = self._segment_at(offset)
        segment = self._segments[number]
        return segment.data[offset - segment.base : self._segment_end(number) - segment.base]

    def file_range(self, offset: int) -> tuple[int, int, int]:
        """Return the same bytes for sendfile: (descriptor, position, count)."""
        number = self._segment_at(offset)
        segment = self._segments[number]
        return segment.descriptor, offset - segment.base, self._segment_end(number) - offset

    def frame_at(self, offset: int) -> tuple[int, int, int]:
        """Return the frame with the byte at `offset` (< end): (offset of its start, offset of its end, sequence)."""
        number = self._segment_at(offset)
        segment = self._segments[number]
        last = number + 1 == len(self._bases)
        frames = self.frames if last else _frame_count(segment.index, self._segment_end(number))
        position = bisect.bisect_right(_Ends(segment.index, frames), offset)
        first = segment.base if position == 0 else segment.index[2 * position - 2]
        return first, segment.index[2 * position], segment.index[2 * position + 1]

    def sequence_at(self, offset: int) -> int:
        """Return the sequence reached at the end of the frame before `offset` (start <= offset <= end)."""
        return self.frame_at(offset - 1)[2] if offset > self.start else self._start_sequence

    def offset_of(self, sequence: int) -> int | None:
        """Return the last offset at which a client has reached exactly this sequence. None if there is none."""
        for number in range(len(self._bases) - 1, -1, -1):
            index = self._segments[number].index
            is_last = number + 1 == len(self._bases)
            frames = self.frames if is_last else _frame_count(index, self._segment_end(number))
            place = bisect.bisect_right(_Sequences(index, frames), sequence)
            if place:
                return index[2 * place - 2] if index[2 * place - 1] == sequence else None
        return self.start if sequence == self._start_sequence else None

    def base_sequence_at(self, offset: int) -> int:
        """Return the sequence at the base of the segment with `offset` (start <= offset <= end). Never a later one."""
        return self.sequence_at(self._bases[self._segment_at(offset)]) if self._bases else self._start_sequence

    def drop(self, before_offset: int) -> list[int]:
        """Drop the segments that end before an offset. Return their bases."""
        dropped = []
        while len(self._bases) > 1 and self._bases[1] <= before_offset:
            self._start_sequence = self.sequence_at(self._bases[1])
            segment = self._segments.pop(0)
            dropped.append(self._bases.pop(0))
            os.close(segment.descriptor)
        return dropped

    def close(self) -> None:
        """Close all segments."""
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()
        self._bases.clear()


class _Sequences:
    """The sequences reached at all frame ends, as a sequence for bisect."""

    __slots__ = ("_frames", "_index")

    def __init__(self, index: memoryview, frames: int) -> None:
        self._index = index
        self._frames = frames

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, position: int) -> int:
        sequence: int = self._index[2 * position + 1]
        return sequence


class _Ends:
    """The offsets of all frame ends, as a sequence for bisect."""

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
    """Return the number of frames in a segment that is not the last. Index records after its end are zero."""
    low, high = 0, len(index) // 2
    while low < high:
        middle = (low + high) // 2
        if 0 < index[2 * middle] <= end:
            low = middle + 1
        else:
            high = middle
    return low
