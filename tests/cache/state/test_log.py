"""The writer and the reader of a log: the reader sees exactly what was published, and finds every frame."""

import contextlib
import errno
import os
import random
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache.state import log, memfile
from protocol import encoding
from tests.harness import channel_harness

frame_bytes = st.binary(min_size=1, max_size=300) | st.integers(1, 3).map(bytes)


class LogMachine(RuleBasedStateMachine):
    """A writer, and a reader that gets news late, as over a link: segments in order, ends coalesced."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors_before = channel_harness.descriptors_before()
        self.content = bytearray()
        self.frames: list[tuple[int, int, int]] = []
        """(first offset, end, sequence) of every frame written."""
        self.untold: list[log.Segment] = []
        self.trimmed = 0

    @initialize(segment_bytes=st.integers(1, 700), sequence=st.integers(0, 5))
    def begin(self, segment_bytes: int, sequence: int) -> None:
        self.first_sequence = self.sequence = sequence
        self.writer = log.LogWriter(segment_bytes=segment_bytes, sequence=sequence)
        self.reader = log.LogReader(start=self.writer.start, start_sequence=self.writer.start_sequence)

    @rule(batch=st.lists(st.tuples(frame_bytes, st.integers(0, 3)), max_size=6))
    def append(self, batch: list[tuple[bytes, int]]) -> None:
        encoded = []
        for data, updates in batch:
            self.sequence += updates
            start = len(self.content)
            self.content += data
            self.frames.append((start, len(self.content), self.sequence))
            encoded.append(encoding.EncodedFrame(data, self.sequence))
        for segment in self.writer.append(encoded):
            self._tell(segment)

    def _tell(self, segment: log.Segment) -> None:
        self.reader.add_segment(
            segment.base, segment.size, os.dup(segment.descriptor), os.dup(segment.index_descriptor)
        )

    @rule()
    def publish(self) -> None:
        frames = self.writer.segments[-1].frames if self.writer.segments else 0
        self.reader.publish(self.writer.end, frames)

    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        """Trim the writer. The reader learns of it only after everything before it."""
        before_offset = data.draw(st.integers(0, self.writer.end))
        start = self.writer.trim(before_offset)
        assert start <= max(before_offset, self.trimmed)
        self.trimmed = start
        self.publish()
        bases = [base for base, _, _ in self.frames if base < start]
        dropped = self.reader.drop(start)
        assert set(dropped) <= set(bases)
        assert self.reader.start == start

    @rule()
    def replace_reader(self) -> None:
        """Replace the reader, as after the end of a worker. The new one gets everything that exists."""
        self.reader.close()
        self.reader = log.LogReader(start=self.writer.start, start_sequence=self.writer.start_sequence)
        for segment in self.writer.segments:
            self._tell(segment)
        self.publish()

    def _sequence_before(self, offset: int) -> int:
        reached = [sequence for _, end, sequence in self.frames if end <= offset]
        return reached[-1] if reached else self.first_sequence

    @invariant()
    def writer_knows_its_ends(self) -> None:
        assert (self.writer.end, self.writer.sequence) == (len(self.content), self.sequence)
        assert self.writer.used_bytes == len(self.content) - self.trimmed
        assert self.writer.start_sequence == self._sequence_before(self.writer.start)
        assert len(self.writer.segments) == 0 or self.writer.segments[-1].end == self.writer.end

    @invariant()
    def reader_sees_what_was_published(self) -> None:
        reader = self.reader
        assert reader.end <= len(self.content)
        offset, seen, sent = reader.start, bytearray(), bytearray()
        while offset < reader.end:
            view = reader.view(offset)
            descriptor, position, count = reader.file_range(offset)
            assert 0 < count == len(view)
            seen += view
            sent += os.pread(descriptor, count, position)
            offset += count
        assert offset == reader.end
        assert seen == sent == self.content[reader.start : reader.end]

    @invariant()
    def reader_knows_every_frame(self) -> None:
        reader = self.reader
        published = [frame for frame in self.frames if reader.start <= frame[0] and frame[1] <= reader.end]
        for first, end, sequence in published:
            for offset in {first, end - 1, (first + end) // 2}:
                assert reader.frame_at(offset) == (first, end, sequence)
                assert bytes(reader.view(offset)[: end - offset]) == self.content[offset:end]
            assert reader.sequence_at(end) == sequence
        assert reader.sequence_at(reader.start) == self._sequence_before(reader.start)

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
            self.reader.close()
            assert channel_harness.open_descriptors() == self.descriptors_before


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def frames_of(*datas: bytes) -> list[encoding.EncodedFrame]:
    return [encoding.EncodedFrame(data, number) for number, data in enumerate(datas, start=1)]


def reader_of(writer: log.LogWriter) -> log.LogReader:
    reader = log.LogReader()
    for segment in writer.segments:
        reader.add_segment(segment.base, segment.size, os.dup(segment.descriptor), os.dup(segment.index_descriptor))
    return reader


@given(st.lists(frame_bytes, min_size=1, max_size=20), st.integers(1, 500), st.randoms(use_true_random=False))
def test_every_offset_of_every_frame(datas: list[bytes], segment_bytes: int, chance: random.Random) -> None:
    writer = log.LogWriter(segment_bytes=segment_bytes)
    writer.append(frames_of(*datas))
    reader = reader_of(writer)
    reader.publish(writer.end, writer.segments[-1].frames)
    offset = 0
    for number, data in enumerate(datas, start=1):
        for inside in range(offset, offset + len(data)):
            assert reader.frame_at(inside) == (offset, offset + len(data), number)
        offset += len(data)
    writer.close()
    reader.close()


def test_the_reader_stops_at_the_published_end() -> None:
    writer = log.LogWriter(segment_bytes=4096)
    writer.append(frames_of(b"one"))
    reader = reader_of(writer)
    reader.publish(writer.end, 1)
    writer.append([encoding.EncodedFrame(b"two", 2)])
    assert bytes(reader.view(0)) == b"one"
    assert reader.file_range(0)[1:] == (0, 3)
    assert bytes(reader.view(3)) == b""
    reader.publish(6, 2)
    assert bytes(reader.view(0)) == b"onetwo"
    writer.close()
    reader.close()


def test_the_last_sequences_before_an_offset() -> None:
    writer = log.LogWriter(segment_bytes=8)
    for data, sequence, tag in ((b"aaa", 1, 7), (b"bbb", 2, 0), (b"cc", 2, 0), (b"ddd", 3, 7), (b"eee", 4, 7)):
        writer.append([encoding.EncodedFrame(data, sequence, tag=tag)])
    reader = reader_of(writer)
    reader.publish(writer.end, 2)
    assert reader.last_sequences(writer.end, without=()) == {7: 4, 0: 2}
    assert reader.last_sequences(11, without=()) == {7: 3, 0: 2}
    assert reader.last_sequences(8, without=(6, 8)) == {7: 1}
    assert reader.last_sequences(0, without=()) == {}
    writer.close()
    reader.close()


def test_a_new_segment_publishes_everything_before_it() -> None:
    writer = log.LogWriter(segment_bytes=4)
    writer.append(frames_of(b"one", b"two"))
    reader = reader_of(writer)
    assert (reader.start, reader.end) == (0, 3)
    assert reader.frame_at(2) == (0, 3, 1)
    writer.close()
    reader.close()


def test_small_frames_end_a_segment_when_its_index_is_full() -> None:
    writer = log.LogWriter(segment_bytes=4 * log.FRAME_BYTES_FLOOR)
    writer.append(frames_of(*[b"x"] * 9))
    assert [segment.frames for segment in writer.segments] == [4, 4, 1]
    writer.close()


def test_a_frame_larger_than_a_segment_gets_one_of_its_own() -> None:
    writer = log.LogWriter(segment_bytes=10)
    begun = writer.append(frames_of(b"a" * 4, b"b" * 100, b"c"))
    assert [(segment.base, segment.size) for segment in begun] == [(0, 10), (4, 100), (104, 10)]
    writer.close()


def test_the_last_segment_is_never_trimmed() -> None:
    writer = log.LogWriter(segment_bytes=10)
    writer.append(frames_of(b"a" * 8, b"b" * 8))
    assert writer.trim(16) == 8
    assert (writer.start_sequence, writer.sequence, writer.used_bytes) == (1, 2, 8)
    writer.close()


def test_views_outlive_their_segment() -> None:
    """A worker's send pass may hold a view when the hub drops the segment."""
    writer = log.LogWriter(segment_bytes=4)
    writer.append(frames_of(b"one", b"two"))
    reader = reader_of(writer)
    view = reader.view(0)
    assert reader.drop(writer.trim(3)) == [0]
    assert bytes(view) == b"one"
    assert reader.sequence_at(3) == 1
    writer.close()
    reader.close()


@pytest.mark.parametrize("file", ["descriptor", "index_descriptor"])
def test_only_the_writer_changes_a_segment(file: str) -> None:
    writer = log.LogWriter(segment_bytes=8192)
    writer.append(frames_of(b"frame"))
    assert channel_harness.changes_another_process_can_make(getattr(writer.segments[0], file)) == []
    writer.append([encoding.EncodedFrame(b"goes on", 2)])
    assert os.pread(writer.segments[0].descriptor, 12, 0) == b"framegoes on"
    writer.close()


@pytest.mark.parametrize("failing_call", range(6))
def test_a_batch_for_which_no_segment_can_be_made_is_appended_later_as_a_whole(failing_call: int) -> None:
    before = channel_harness.descriptors_before()
    writer = log.LogWriter(segment_bytes=100)
    writer.append([encoding.EncodedFrame(b"first" * 10, 1)])
    batch = [encoding.EncodedFrame(bytes([number]) * 60, number) for number in range(2, 6)]
    create = memfile.create_empty
    calls = 0

    def creates(name: str) -> int:
        nonlocal calls
        calls += 1
        if calls == failing_call + 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return create(name)

    opened = channel_harness.open_descriptors()
    with mock.patch.object(memfile, "create_empty", creates), pytest.raises(OSError, match="Too many open files"):
        writer.append(batch)
    assert channel_harness.open_descriptors() == opened
    assert (writer.end, writer.sequence, len(writer.segments)) == (50, 1, 1)
    begun = writer.append(batch)
    assert [segment.base for segment in begun] == [50, 110, 170, 230]
    assert (writer.end, writer.sequence) == (290, 5)
    assert [os.pread(segment.descriptor, 100, 0)[: segment.used] for segment in begun] == [one.data for one in batch]
    writer.close()
    assert channel_harness.open_descriptors() == before


def test_a_segment_that_cannot_be_mapped_is_added_later() -> None:
    before = channel_harness.descriptors_before()
    writer = log.LogWriter(segment_bytes=100)
    [segment] = writer.append([encoding.EncodedFrame(b"frame", 1)])
    reader = log.LogReader()
    numbers = os.dup(segment.descriptor), os.dup(segment.index_descriptor)
    map_readonly = memfile.map_readonly

    def no_memory(*_: object) -> memoryview:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    for failing in range(2):
        results = [map_readonly] * failing + [no_memory]
        maps = mock.patch.object(memfile, "map_readonly", lambda *given, results=results: results.pop(0)(*given))
        with maps, contextlib.suppress(OSError):  # pytest.raises would keep the traceback, and with it the mapping
            reader.add_segment(segment.base, segment.size, *numbers)
        assert results == []
        assert repr(reader) == "<LogReader 0..0 segments=0>"
    reader.add_segment(segment.base, segment.size, *numbers)
    reader.publish(writer.end, 1)
    assert bytes(reader.view(0)) == b"frame"
    reader.close()
    writer.close()
    del reader
    assert channel_harness.open_descriptors() == before
