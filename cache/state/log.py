"""The log of one channel: frames in append-only segments of shared memory.

Offsets are 64-bit, count from the channel's first byte, and continue from one segment to the next. A position in the
log is therefore one number. A segment is never rewritten or reused, because the kernel may refer to its pages until a
peer has acknowledged them. Each segment has an index with four 64-bit integers for every frame: the offset of its end,
the sequence that a client has reached there, the number of updates in the log up to there, and the tag of the node
whose clients get the frame (`protocol.subscriptions`). Readers in other processes find the frame ends in it.

The hub uses `LogWriter`. A worker uses `LogReader`, with the descriptors and ends that the hub sends.
"""

import bisect
import os
import struct
from collections import deque
from collections.abc import Container, Sequence

from cache.state import memfile
from protocol import encoding, messages, subscriptions

INDEX_RECORD = struct.Struct("=QQQQ")
_FIELDS = INDEX_RECORD.size // 8
_END, _SEQUENCE, _UPDATES, _TAG = range(_FIELDS)
RUN_FRAMES_MAX = 4096
"""Frames of other nodes that a reader passes over in one step: some 100 us."""
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
        "updates",
        "used",
    )

    def __init__(self, base: int, size_bytes: int) -> None:
        self.base = base
        self.size = size_bytes
        self.used = 0
        self.frames = 0
        self.sequence = 0
        """Sequence that a client has reached at the end of the segment."""
        self.updates = 0
        """Number of updates in the log up to the end of the segment."""
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

    def append(self, frame: encoding.EncodedFrame, *, updates: int) -> None:
        """Write a frame, with which the log has so many updates. It must fit."""
        data = frame.data
        self._map[self.used : self.used + len(data)] = data
        self.used += len(data)
        position = self.frames * INDEX_RECORD.size
        INDEX_RECORD.pack_into(self._index_map, position, self.end, frame.sequence, updates, frame.tag)
        self.frames += 1
        self.sequence = frame.sequence
        self.updates = updates

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
        self.updates = self.start_updates = 0
        """Number of updates in the log up to its end, and up to `start`."""
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
            self.updates += frame.updates
            self.segments[-1].append(frame, updates=self.updates)
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
            self.start_sequence, self.start_updates = self.segments[0].sequence, self.segments[0].updates
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

    def __init__(self, *, start: int = 0, start_sequence: int = 0, start_updates: int = 0) -> None:
        self.end = start
        self._start_sequence = start_sequence
        self._start_updates = start_updates
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

    def _record_at(self, offset: int) -> tuple[_ReaderSegment, int, int]:
        """Return the segment with the byte at `offset` (< end), its frames, and the place of the byte's frame in its
        index."""
        number = self._segment_at(offset)
        segment, frames = self._segments[number], self._frames_of(number)
        return segment, frames, _FIELDS * bisect.bisect_right(_Column(segment.index, frames, _END), offset)

    def _frames_of(self, number: int) -> int:
        """Return the number of published frames in a segment."""
        is_last = number + 1 == len(self._bases)
        return self.frames if is_last else _frame_count(self._segments[number].index, self._segment_end(number))

    def frame_at(self, offset: int) -> tuple[int, int, int]:
        """Return the frame with the byte at `offset` (< end): (offset of its start, offset of its end, sequence)."""
        segment, _, record = self._record_at(offset)
        first = segment.index[record - _FIELDS + _END] if record else segment.base
        return first, segment.index[record + _END], segment.index[record + _SEQUENCE]

    def run_at(self, offset: int) -> tuple[int, int]:
        """Return the run of frames with one tag that the byte at `offset` (< end) is in: (offset of its end, tag).

        It ends with the segment at the latest, or after `RUN_FRAMES_MAX` frames.
        """
        segment, frames, record = self._record_at(offset)
        tags = _tags_from(segment, frames, record)
        length = next((place for place, other in enumerate(tags) if other != tags[0]), len(tags))
        return segment.index[record + _FIELDS * (length - 1) + _END], tags[0]

    def next_of(self, offset: int, tag: int, limit: int) -> int:
        """Return the start of the first frame from `offset` on that is common or has this tag; `limit` if none is.

        An offset inside a frame is returned as it is: a reader that has begun a frame needs the rest. The limit is the
        end of a frame.
        """
        while offset < limit:
            segment, frames, record = self._record_at(offset)
            first = segment.index[record - _FIELDS + _END] if record else segment.base
            tags = _tags_from(segment, frames, record)
            skipped = min(_place_of(subscriptions.COMMON, tags), _place_of(tag, tags))
            if first != offset or not skipped:
                return offset
            offset = segment.index[record + _FIELDS * (skipped - 1) + _END]
        return min(offset, limit)

    def end_of_own(self, offset: int, tag: int) -> int:
        """Return where the frames end that are common or have this tag, and follow the one at `offset` (< end).

        They end with the segment at the latest, or after `RUN_FRAMES_MAX` frames.
        """
        segment, frames, record = self._record_at(offset)
        wanted = (subscriptions.COMMON, tag)
        tags = _tags_from(segment, frames, record)
        length = next((place for place, other in enumerate(tags) if place and other not in wanted), len(tags))
        return segment.index[record + _FIELDS * (length - 1) + _END]

    def sequence_at(self, offset: int) -> int:
        """Return the sequence reached at the end of the frame before `offset` (start <= offset <= end)."""
        return self.frame_at(offset - 1)[2] if offset > self.start else self._start_sequence

    def updates_at(self, offset: int) -> int:
        """Return the number of updates in the log up to the end of the frame before `offset`, for any node."""
        if offset <= self.start:
            return self._start_updates
        segment, _, record = self._record_at(offset - 1)
        updates: int = segment.index[record + _UPDATES]
        return updates

    def offset_of(self, sequence: int) -> int | None:
        """Return the last offset at which a client has reached exactly this sequence. None if there is none."""
        for number in range(len(self._bases) - 1, -1, -1):
            index, frames = self._segments[number].index, self._frames_of(number)
            place = bisect.bisect_right(_Column(index, frames, _SEQUENCE), sequence)
            if place:
                record = _FIELDS * (place - 1)
                return index[record + _END] if index[record + _SEQUENCE] == sequence else None
        return self.start if sequence == self._start_sequence else None

    def offset_up_to(self, sequence: int) -> int | None:
        """Return the last offset at which a client has reached no more than this sequence. None before the log."""
        for number in range(len(self._bases) - 1, -1, -1):
            index, frames = self._segments[number].index, self._frames_of(number)
            place = bisect.bisect_right(_Column(index, frames, _SEQUENCE), sequence)
            if place:
                return index[_FIELDS * (place - 1) + _END]
        return self.start if sequence >= self._start_sequence else None

    def first_offset_of(self, sequence: int) -> int | None:
        """Return the first offset at which a client has reached exactly this sequence. None if there is none.

        Frames that do not move a client on may follow it.
        """
        if sequence == self._start_sequence:
            return self.start
        for number in range(len(self._bases)):
            index, frames = self._segments[number].index, self._frames_of(number)
            place = bisect.bisect_left(_Column(index, frames, _SEQUENCE), sequence)
            if place < frames:
                record = _FIELDS * place
                return index[record + _END] if index[record + _SEQUENCE] == sequence else None
        return None

    def base_sequence_at(self, offset: int) -> int:
        """Return the sequence at the base of the segment with `offset` (start <= offset <= end). Never a later one."""
        return self.sequence_at(self._bases[self._segment_at(offset)]) if self._bases else self._start_sequence

    def would_drop(self, before_offset: int) -> bool:
        """Return whether a segment ends before an offset."""
        return len(self._bases) > 1 and self._bases[1] <= before_offset

    def last_sequences(self, before_offset: int, *, without: Container[int]) -> dict[int, int]:
        """Return by tag the sequence of the last frame before an offset, but for frames that end at certain offsets."""
        found: dict[int, int] = {}
        for number, segment in enumerate(self._segments):
            if self._bases[number] >= before_offset:
                break
            records = segment.index[: _FIELDS * self._frames_of(number)].tolist()
            for end, sequence, tag in zip(
                records[_END::_FIELDS], records[_SEQUENCE::_FIELDS], records[_TAG::_FIELDS], strict=True
            ):
                if end <= before_offset and end not in without:
                    found[tag] = sequence
        return found

    def drop(self, before_offset: int) -> list[int]:
        """Drop the segments that end before an offset. Return their bases."""
        dropped = []
        while self.would_drop(before_offset):
            self._start_sequence, self._start_updates = (
                self.sequence_at(self._bases[1]),
                self.updates_at(self._bases[1]),
            )
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


def _tags_from(segment: _ReaderSegment, frames: int, record: int) -> list[int]:
    """Return the tags of the frames of a segment from a record on, `RUN_FRAMES_MAX` at most."""
    last = min(_FIELDS * frames, record + _FIELDS * RUN_FRAMES_MAX)
    tags: list[int] = segment.index[record + _TAG : last : _FIELDS].tolist()
    return tags


def _place_of(tag: int, tags: list[int]) -> int:
    return tags.index(tag) if tag in tags else len(tags)


class _Column:
    """One field of the records of all frames, as a sequence for bisect."""

    __slots__ = ("_field", "_frames", "_index")

    def __init__(self, index: memoryview, frames: int, field: int) -> None:
        self._index = index
        self._frames = frames
        self._field = field

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, position: int) -> int:
        found: int = self._index[_FIELDS * position + self._field]
        return found


def _frame_count(index: memoryview, end: int) -> int:
    """Return the number of frames in a segment that is not the last. Index records after its end are zero."""
    low, high = 0, len(index) // _FIELDS
    while low < high:
        middle = (low + high) // 2
        if 0 < index[_FIELDS * middle + _END] <= end:
            low = middle + 1
        else:
            high = middle
    return low
