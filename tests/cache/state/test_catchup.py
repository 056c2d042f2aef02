"""Catch-up blocks: their contents, their limits, and that any permitted mixture of them leads to the current map."""

import os
from collections.abc import Iterator
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.state import catchup, cursor, files, log, store
from protocol import digest, encoding, formats, messages
from protocol.native import codec, encoder, frames
from protocol.typha import encoder as typha_encoder
from tests.harness import channel_harness

KEYS = st.sampled_from([f"/{name}" for name in "abcdef"])
CHANGES = st.lists(st.tuples(KEYS, st.booleans()), min_size=1, max_size=40)
NATIVE = formats.make_encoder(encoder.PLAIN)


def replayed(history: list[tuple[str, bool]], count: int) -> store.Store:
    """Return the store after `count` changes of a history. Each changes something; its value is its sequence."""
    made = store.Store()
    for key, is_deletion in history:
        if made.sequence == count:
            break
        revision = str(made.sequence + 1)
        if not is_deletion or made.delete(key, revision) is None:
            made.put(key, revision.encode(), revision)
    return made


def content(of: store.Store) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in of}


def built(
    of: store.Store,
    from_sequence: int,
    *,
    by: encoding.Encoder = NATIVE,
    log_offset: int = 0,
    target_bytes: int | None = None,
) -> tuple[files.BlockFile, bytes]:
    difference = of.changes_since(from_sequence)
    builder = catchup.BlockBuilder(by, difference, log_offset=log_offset, target_bytes=target_bytes)
    for _ in builder.steps():
        pass
    block = builder.block
    data = os.pread(block.descriptor, block.length + 1, 0)
    assert len(data) == block.length
    block.close()
    return block, data


def read(data: bytes) -> Iterator[messages.Updates]:
    splitter = frames.FrameSplitter()
    splitter.receive(data)
    while (frame := splitter.next_frame()) is not None:
        message = codec.decode(frames.unpack_payload(*frame))
        assert isinstance(message, messages.Updates)
        yield message
    assert splitter.pending_bytes == 0


class Reader:
    """A client that is catching up, and the server's cursor for it."""

    def __init__(self, of: store.Store, *, epoch: int) -> None:
        self.map = {entry.key: entry.sequence for entry in of}
        self.seen = dict(self.map)
        """The newest change of each key that the client knows, deletions included."""
        self.cursor = cursor.Cursor()
        self.cursor.state = cursor.CursorState.CATCHING_UP
        self.cursor.sequence = epoch
        self.cursor.needed_sequence = of.sequence

    def take(self, block: files.BlockFile, data: bytes, *, leaves_at: int | None = None) -> None:
        """Read a whole block, or leave it at a byte and read only the rest of the frame."""
        file = msgspec.structs.replace(block, descriptor=-1)
        self.cursor.become_reading(file)
        if leaves_at is not None:
            end, reached, _ = file.boundary_at(leaves_at)
            self.cursor.position = leaves_at
            self.cursor.leave_block(reached, memoryview(data)[leaves_at:end])
            assert len(self.cursor.tail or b"") == end - leaves_at
            self.cursor.tail = None
            assert file.boundary_before(leaves_at) <= leaves_at <= end
            assert self.read(block, data[:end]) == self.cursor.sequence
            return
        assert self.read(block, data) == block.to_sequence
        self.cursor.position = block.length
        self.cursor.become_waiting()

    def read(self, block: files.BlockFile, data: bytes) -> int:
        """Apply the updates of whole frames. Return the sequence reached."""
        reached = block.from_sequence
        for message in read(data):
            assert message.previous_sequence == reached
            reached = message.sequence
            for update in message.updates:
                self.apply(update)
        return reached

    def apply(self, update: messages.Update) -> None:
        """Apply a change. It must not be older than what the client knows."""
        sequence = int(update.revision)
        assert sequence >= self.seen.get(update.key, 0), f"{update.key} went back"
        self.seen[update.key] = sequence
        if update.value is None:
            assert update.update_type == messages.UpdateType.DELETED
            self.map.pop(update.key, None)
        else:
            assert update.update_type == messages.UpdateType.UPDATED
            self.map[update.key] = int(update.value)


@given(st.data(), CHANGES)
def test_blocks_of_any_cuts_lead_to_a_current_map(data: st.DataObject, history: list[tuple[str, bool]]) -> None:
    last = replayed(history, len(history)).sequence
    begun = data.draw(st.integers(0, last), label="what the client has")
    epoch = data.draw(st.integers(0, begun), label="where its segment begins")
    reader = Reader(replayed(history, begun), epoch=epoch)
    for _ in range(3 * len(history)):
        # Any cut that the rules allow: another client may have caused a block at any moment since.
        at = replayed(history, data.draw(st.integers(reader.cursor.needed_sequence, last), label="cut"))
        target_bytes = data.draw(st.integers(1, 100), label="target")
        with mock.patch.object(encoder, "FRAME_TARGET_BYTES", 100):
            block, frames_of_it = built(at, reader.cursor.sequence, target_bytes=target_bytes)
        assert block.cut_sequence == at.sequence
        leaves_at = data.draw(st.none() | st.integers(1, block.length), label="leaves at") if block.length else None
        reader.take(block, frames_of_it, leaves_at=leaves_at)
        if leaves_at is not None:
            assert reader.cursor.sequence > block.from_sequence
            continue
        if block.is_final:
            assert block.to_sequence == at.sequence
            assert reader.map == {entry.key: entry.sequence for entry in at}
            break
        assert at.sequence > block.to_sequence > block.from_sequence
    else:
        pytest.fail("no end")


@pytest.mark.parametrize("wire_format", formats.NAMES)
def test_every_format_contains_the_same_updates(wire_format: str) -> None:
    of = store.Store()
    for number in range(250):
        of.put(f"/{number}", b"v" * 10, str(number))
    for number in range(0, 250, 2):
        of.delete(f"/{number}", "gone")
    block, data = built(of, 100, by=formats.make_encoder(wire_format), log_offset=77)
    assert (block.from_sequence, block.to_sequence, block.cut_sequence) == (100, 375, 375)
    assert (block.is_final, block.log_offset, block.status) == (True, 77, messages.SyncStatus.WAITING)
    assert block.updates == 75 + 125
    model = channel_harness.LooseReader(wire_format)
    updates = model.updates(data, after=100)
    assert len(updates) == block.updates
    expected = {f"/{number}": b"v" * 10 for number in range(101, 250, 2)}
    assert {update.key: update.value for update in updates if update.value is not None} == expected
    deleted = [update for update in updates if update.value is None]
    assert {update.key for update in deleted} == {f"/{number}" for number in range(0, 250, 2)}
    assert {(update.update_type, update.revision) for update in deleted} == {(messages.UpdateType.DELETED, "gone")}


@pytest.mark.parametrize("wire_format", formats.NAMES)
def test_a_block_without_changes_leads_to_its_cut(wire_format: str) -> None:
    of = store.Store()
    of.put("/a", b"x", "1")
    of.sequence += 2  # updates that changed no value
    block, data = built(of, 1, by=formats.make_encoder(wire_format))
    assert (block.to_sequence, block.is_final, block.updates) == (3, True, 0)
    is_native = formats.replaces_by_snapshot(wire_format)
    assert bool(data) == is_native  # only native clients count sequences, and need a frame for them
    block, data = built(of, 3, by=formats.make_encoder(wire_format))
    assert (block.to_sequence, block.is_final, data) == (3, True, b"")


@pytest.mark.parametrize("wire_format", [encoder.PLAIN, typha_encoder.PLAIN])
def test_blocks_are_limited_in_bytes(wire_format: str) -> None:
    of = store.Store()
    for number in range(40):
        of.put(f"/{number}", bytes([number]) * 100_000, "1")
    reached, blocks = 0, 0
    while reached < 40:
        block, _ = built(of, reached, by=formats.make_encoder(wire_format))
        assert block.length <= catchup.BLOCK_TARGET_BYTES + 2 * 100_000 + 1000
        assert block.is_final == (block.to_sequence == 40)
        assert block.updates == block.to_sequence - reached
        reached, blocks = block.to_sequence, blocks + 1
    assert blocks in range(8, 21)
    of.put("/large", bytes(3_000_000), "1")
    block, _ = built(of, 39, by=formats.make_encoder(wire_format))
    assert 40 <= block.to_sequence <= 41


def test_compressed_blocks_are_limited_in_raw_bytes() -> None:
    of = store.Store()
    for number in range(60):
        of.put(f"/{number}", b"x" * 100_000, "1")
    block, _ = built(of, 0, by=formats.make_encoder(encoder.ZSTD))
    assert not block.is_final
    assert block.updates * 100_000 <= catchup.BLOCK_RAW_BYTES_MAX + 3 * 100_000


def test_another_process_cannot_change_a_block() -> None:
    of = replayed([("/a", False)], 1)
    builder = catchup.BlockBuilder(NATIVE, of.changes_since(0), log_offset=0)
    assert list(builder.steps())
    assert channel_harness.changes_another_process_can_make(builder.block.descriptor) == []
    builder.block.close()


def test_an_abandoned_block_leaves_nothing() -> None:
    of = replayed([("/a", False)], 1)
    before = channel_harness.descriptors_before()
    builder = catchup.BlockBuilder(NATIVE, of.changes_since(0), log_offset=0)
    next(builder.steps())
    builder.abandon()
    assert channel_harness.open_descriptors() == before


def test_later_changes_do_not_change_a_block() -> None:
    of = replayed([("/a", False), ("/b", False)], 2)
    builder = catchup.BlockBuilder(NATIVE, of.changes_since(0), log_offset=5)
    of.put("/a", b"later", "9")
    of.delete("/b", "9")
    list(builder.steps())
    [message] = read(os.pread(builder.block.descriptor, builder.block.length, 0))
    assert [update.value for update in message.updates] == [b"1", b"2"]
    assert (builder.block.cut_sequence, builder.block.log_offset) == (2, 5)
    assert "final=True" in repr(builder.block)
    builder.block.close()


def test_the_log_gives_the_sequence_at_the_base_of_a_segment() -> None:
    """The sequence that all clients in a segment start their catch-up from."""
    writer = log.LogWriter(segment_bytes=2 * log.FRAME_BYTES_FLOOR, sequence=7)
    writer.append([encoding.EncodedFrame(bytes(50), sequence) for sequence in (8, 10, 11, 15, 16)])
    reader = log.LogReader(start=0, start_sequence=7)
    assert reader.base_sequence_at(0) == 7
    for segment in writer.segments:
        reader.add_segment(segment.base, segment.size, os.dup(segment.descriptor), os.dup(segment.index_descriptor))
    reader.publish(writer.end, writer.segments[-1].frames)
    assert [reader.base_sequence_at(offset) for offset in (0, 99, 100, 150, 199, 200, 250)] == [
        7,
        7,
        10,
        10,
        10,
        15,
        15,
    ]
    reader.drop(100)
    assert [reader.base_sequence_at(offset) for offset in (100, 199, 200)] == [10, 10, 15]
    writer.close()
    reader.close()


def test_the_state_digest_after_a_catch_up() -> None:
    history = [("/a", False), ("/b", False), ("/a", True), ("/c", False), ("/b", False)]
    at = replayed(history, 5)
    reader = Reader(replayed(history, 2), epoch=1)
    reader.take(*built(at, 1))
    pairs = [(key, str(sequence).encode()) for key, sequence in reader.map.items()]
    assert digest.state_digest(pairs) == at.digest == digest.state_digest(content(at).items())
