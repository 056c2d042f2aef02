"""The cursor's states: every legal transition, and no other."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from cache.state import cursor, files, log
from protocol import encoding, reasons
from protocol.messages import SyncStatus
from tests.harness import channel_harness

State = cursor.CursorState
REASON = reasons.DisconnectReason.NO_PROGRESS

# A copy of the table, so that a change of the rules needs a change in two places.
LEGAL = {
    (State.HANDSHAKE, State.HELD),
    (State.HELD, State.SNAPSHOT),
    (State.HELD, State.FOLLOWING),
    (State.HELD, State.CATCHING_UP),
    (State.SNAPSHOT, State.FOLLOWING),
    (State.FOLLOWING, State.CATCHING_UP),
    (State.CATCHING_UP, State.HELD),
    (State.CATCHING_UP, State.FOLLOWING),
    *((state, State.CLOSING) for state in State if state is not State.CLOSING),
}


@pytest.fixture
def reader() -> Iterator[log.LogReader]:
    """A log with the frames [0, 4), [4, 10) and, in the next segment, [10, 20)."""
    writer = log.LogWriter(segment_bytes=2 * log.FRAME_BYTES_FLOOR)
    writer.append([encoding.EncodedFrame(data, number) for number, data in enumerate([b"1234", b"abcdef", b"x" * 10])])
    made = log.LogReader()
    for segment in writer.segments:
        made.add_segment(segment.base, segment.size, os.dup(segment.descriptor), os.dup(segment.index_descriptor))
    made.publish(writer.end, writer.segments[-1].frames)
    writer.close()
    yield made
    made.close()


def snapshot_file(*, length: int = 100, log_offset: int = 4) -> files.SnapshotFile:
    return files.SnapshotFile(-1, length=length, log_offset=log_offset, sequence=1, status=SyncStatus.IN_SYNC)


def block_file(
    from_sequence: int, to_sequence: int, cut_sequence: int, *, length: int = 50, log_offset: int = 10
) -> files.BlockFile:
    return files.BlockFile(
        -1,
        length=length,
        from_sequence=from_sequence,
        to_sequence=to_sequence,
        cut_sequence=cut_sequence,
        is_final=to_sequence == cut_sequence,
        log_offset=log_offset,
        status=SyncStatus.IN_SYNC,
    )


def cursor_in(state: State, reader: log.LogReader) -> cursor.Cursor:
    made = cursor.Cursor()
    if state is State.HANDSHAKE:
        return made
    made.become_held()
    if state is State.HELD:
        return made
    snapshot = snapshot_file()
    made.become_snapshot(snapshot)
    made.position = snapshot.length
    if state is State.SNAPSHOT:
        return made
    made.become_following()
    if state is State.CATCHING_UP:
        made.become_catching_up(reader)
    if state is State.CLOSING:
        made.become_closing(REASON)
    return made


def become(made: cursor.Cursor, state: State, reader: log.LogReader) -> None:
    if (made.state, state) == (State.HELD, State.FOLLOWING):
        made.become_resumed(4, 1)
        return
    if (made.state, state) == (State.HELD, State.CATCHING_UP):
        made.become_returning(1, needed_sequence=2, offset=20)
        return
    if (made.state, state) == (State.CATCHING_UP, State.FOLLOWING):
        made.become_reading(block_file(made.sequence, 9, 9))
        made.position = 50
    changes: dict[State, Callable[[], None]] = {
        State.HELD: made.become_held,
        State.SNAPSHOT: lambda: made.become_snapshot(snapshot_file()),
        State.FOLLOWING: made.become_following,
        State.CATCHING_UP: lambda: made.become_catching_up(reader),
        State.CLOSING: lambda: made.become_closing(reasons.DisconnectReason.SERVER_ERROR),
    }
    changes[state]()


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, list(State)[1:])))
def test_every_transition(before: State, after: State, reader: log.LogReader) -> None:
    made = cursor_in(before, reader)
    assert made.state is before
    if (before, after) in LEGAL:
        become(made, after, reader)
        assert made.state is after
    else:
        with pytest.raises(cursor.IllegalTransition, match=before.value):
            become(made, after, reader)
        assert made.state is before
        if before is State.CLOSING:
            assert made.reason is REASON


@pytest.mark.parametrize("state", State)
def test_the_fields_that_each_state_sets(state: State, reader: log.LogReader) -> None:
    made = cursor_in(state, reader)
    assert (made.snapshot is not None) == (state is State.SNAPSHOT)
    assert (made.reason is not None) == made.is_closing() == (state is State.CLOSING)
    assert state.value in repr(made)


def test_readers_of_a_snapshot_are_counted() -> None:
    snapshot = snapshot_file(log_offset=7)
    made = [cursor.Cursor() for _ in range(3)]
    for one in made:
        one.become_held()
        one.become_snapshot(snapshot)
    assert snapshot.readers == 3
    made[0].position = snapshot.length
    made[0].become_following()
    assert made[0].offset == 7
    made[1].become_closing(REASON)
    assert snapshot.readers == 1
    made[0].become_closing(REASON)
    assert snapshot.readers == 1
    assert "readers=1" in repr(snapshot)


def test_pieces_of_a_snapshot_are_read_in_its_place() -> None:
    snapshot = snapshot_file(length=100, log_offset=7)
    made = cursor.Cursor()
    made.become_held()
    made.become_snapshot(snapshot, files.Pieces([files.Piece(b"head", 0, 4), files.Piece(None, 90, 10)]))
    assert made.read_length == 14
    made.note_sent(13)
    with pytest.raises(cursor.IllegalTransition):
        made.become_following()
    made.note_sent(1)
    made.become_following()
    assert (made.offset, made.pieces, made.read_length, snapshot.readers) == (7, None, 0, 0)


@pytest.mark.parametrize("position", [0, 1, 99])
def test_following_starts_only_at_the_end_of_the_snapshot(position: int) -> None:
    made = cursor.Cursor()
    made.become_held()
    snapshot = snapshot_file(length=100)
    made.become_snapshot(snapshot)
    made.position = position
    with pytest.raises(cursor.IllegalTransition):
        made.become_following()
    assert (made.state, snapshot.readers) == (State.SNAPSHOT, 1)


@pytest.mark.parametrize(
    ("offset", "tail"),
    [(0, None), (1, b"234"), (4, None), (5, b"bcdef"), (9, b"f"), (10, None), (11, b"x" * 9), (20, None)],
)
def test_the_rest_of_a_frame_becomes_the_tail(offset: int, tail: bytes | None, reader: log.LogReader) -> None:
    made = cursor_in(State.FOLLOWING, reader)
    made.offset = offset
    assert made.at_boundary(reader) == (tail is None)
    made.become_catching_up(reader)
    reader.drop(reader.end)
    assert (made.tail and bytes(made.tail)) == tail
    assert made.at_boundary(reader) == (tail is None)
    if tail is not None:
        with pytest.raises(cursor.IllegalTransition, match="inside"):
            made.become_held()
        assert made.state is State.CATCHING_UP
        assert made.tail is not None
        made.tail = made.tail[len(tail) :]
    made.become_held()
    assert (made.state, made.tail) == (State.HELD, None)


@pytest.mark.parametrize(
    ("offset", "needed", "sequence", "after"),
    [(0, 0, 0, 0), (1, 0, 0, 4), (4, 0, 0, 4), (5, 1, 1, 10), (10, 1, 1, 10), (11, 2, 1, 20), (20, 2, 1, 20)],
)
def test_catching_up_starts_at_the_base_of_the_segment(
    offset: int, needed: int, sequence: int, after: int, reader: log.LogReader
) -> None:
    made = cursor_in(State.FOLLOWING, reader)
    made.offset = offset
    made.become_catching_up(reader)
    assert (made.needed_sequence, made.sequence, made.offset) == (needed, sequence, after)


def catching_up(reader: log.LogReader, *, offset: int = 20) -> cursor.Cursor:
    made = cursor_in(State.FOLLOWING, reader)
    made.offset = offset
    made.become_catching_up(reader)
    return made


def test_block_by_block_back_to_the_log(reader: log.LogReader) -> None:
    made = catching_up(reader)
    first, second = block_file(1, 5, 9), block_file(5, 12, 12, log_offset=77)
    made.become_reading(first)
    assert (first.readers, made.leads_to_log()) == (1, False)
    made.position = 50
    with pytest.raises(cursor.IllegalTransition):
        made.become_following()
    made.become_waiting()
    assert (first.readers, made.sequence, made.needed_sequence, made.block) == (0, 5, 9, None)
    made.become_reading(second)
    assert made.leads_to_log()
    made.position = 50
    made.become_following()
    assert (second.readers, made.offset, made.sequence, made.state) == (0, 77, 12, State.FOLLOWING)
    assert "from" not in repr(second)
    reader.drop(20)
    made.offset = reader.start - 1  # the log no longer holds this offset
    made.become_catching_up(reader)
    assert (made.sequence, made.needed_sequence) == (12, 12)


@pytest.mark.parametrize("block", [block_file(0, 9, 9), block_file(2, 9, 9), block_file(1, 1, 1), block_file(1, 2, 2)])
def test_a_block_that_does_not_fit_raises(block: files.BlockFile, reader: log.LogReader) -> None:
    made = catching_up(reader)
    made.need(3)
    made.need(2)
    with pytest.raises(cursor.IllegalTransition, match="cannot read"):
        made.become_reading(block)
    assert block.readers == 0


def test_a_block_needs_an_empty_tail_and_no_other_block(reader: log.LogReader) -> None:
    made = catching_up(reader, offset=5)
    made.owe(b"+more")
    assert bytes(made.tail or b"") == b"bcdef+more"
    block = block_file(made.sequence, 9, 9)
    with pytest.raises(cursor.IllegalTransition):
        made.become_reading(block)
    made.tail = memoryview(b"")
    made.become_reading(block)
    changes: list[Callable[[], None]] = [
        functools.partial(made.become_reading, block),
        made.become_held,
        made.become_waiting,
        made.become_following,
    ]
    for change in changes:
        with pytest.raises(cursor.IllegalTransition):
            change()
    assert block.readers == 1
    made.become_closing(REASON)
    assert (block.readers, made.block) == (0, None)


def test_the_ends_of_a_block_are_boundaries(reader: log.LogReader) -> None:
    made = catching_up(reader)
    assert made.at_boundary(reader)
    made.become_reading(block_file(1, 9, 9))
    at = []
    for position in (0, 1, 49, 50):
        made.position = position
        at.append(made.at_boundary(reader))
    assert at == [True, False, False, True]


FRAMES = [(20, 4, 3), (30, 6, 5), (50, 9, 8)]


@pytest.mark.parametrize(
    ("position", "before", "after"),
    [(0, 0, (0, 1, 0)), (1, 0, FRAMES[0]), (20, 20, FRAMES[0]), (21, 20, FRAMES[1]), (49, 30, FRAMES[2])],
)
def test_a_block_finds_the_ends_of_its_frames(position: int, before: int, after: tuple[int, int, int]) -> None:
    block = block_file(1, 9, 9)
    block.frames = FRAMES
    assert (block.boundary_before(position), block.boundary_at(position)) == (before, after)


def test_leaving_a_block_ends_it_with_the_frame(reader: log.LogReader) -> None:
    made = catching_up(reader)
    block, following = block_file(1, 9, 12), block_file(4, 13, 13)
    made.become_reading(block)
    made.position = 15
    with pytest.raises(cursor.IllegalTransition, match="cannot leave"):
        made.leave_block(4, memoryview(bytes(36)))
    made.leave_block(4, memoryview(b"-rest"))
    assert (block.readers, made.block, made.sequence, made.needed_sequence) == (0, None, 4, 12)
    assert bytes(made.tail or b"") == b"-rest"
    assert not made.awaits_block()
    with pytest.raises(cursor.IllegalTransition, match="cannot leave"):
        made.leave_block(4, memoryview(b""))
    made.tail = memoryview(b"")
    made.become_reading(following)
    made.leave_block(4, memoryview(b""))
    assert (made.sequence, made.needed_sequence) == (4, 13)
    assert made.awaits_block(), "it stood where a frame begins"


def test_closing_drops_the_tail(reader: log.LogReader) -> None:
    made = cursor_in(State.FOLLOWING, reader)
    made.offset = 5
    made.become_catching_up(reader)
    made.become_closing(REASON)
    assert made.tail is None


def test_a_tail_does_not_hold_the_log(reader: log.LogReader) -> None:
    before = channel_harness.descriptors_before()
    made = cursor_in(State.FOLLOWING, reader)
    made.offset = 5
    made.become_catching_up(reader)
    reader.drop(10)
    assert channel_harness.open_descriptors() == before - 3  # the segment's file, and one for each of its two maps
    assert bytes(made.tail or b"") == b"bcdef"


def test_a_dropped_offset_keeps_the_sequence_of_the_snapshot(reader: log.LogReader) -> None:
    reader.drop(10)
    made = cursor_in(State.FOLLOWING, reader)
    assert made.offset < reader.start
    made.become_catching_up(reader)
    assert made.tail is None


def test_the_ends_of_a_snapshot_are_boundaries(reader: log.LogReader) -> None:
    made = cursor.Cursor()
    assert made.at_boundary(reader)
    made.become_held()
    assert made.at_boundary(reader)
    made.become_snapshot(snapshot_file(length=100))
    at = []
    for position in (0, 1, 50, 99, 100):
        made.position = position
        at.append(made.at_boundary(reader))
    assert at == [True, False, False, False, True]


def test_a_status_at_a_boundary_is_sent_first(reader: log.LogReader) -> None:
    made = cursor_in(State.FOLLOWING, reader)
    made.tail = memoryview(b"status")
    assert not made.at_boundary(reader)
    made.become_catching_up(reader)
    assert bytes(made.tail or b"") == b"status"
    made.tail = memoryview(b"")
    made.become_held()
    assert made.at_boundary(reader)
