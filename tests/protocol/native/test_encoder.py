"""The encoder: both formats give frames of limited size with the same messages."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import encoding, messages
from protocol.native import codec, encoder, frames
from tests.harness import strategies

BOTH = [encoder.NativeEncoder(), encoder.NativeEncoder(zstd=True)]
both = pytest.mark.parametrize("made", BOTH, ids=["plain", "zstd"])


def limited(target: int) -> list[encoder.NativeEncoder]:
    """Encoders whose frames end at this size."""
    max_frame_bytes = target + encoder.MESSAGE_OVERHEAD_BYTES
    return [encoder.NativeEncoder(zstd=zstd, max_frame_bytes=max_frame_bytes) for zstd in (False, True)]


def decoded(data: bytes, max_frame_bytes: int = frames.MAX_FRAME_BYTES) -> list[messages.Message]:
    splitter = frames.FrameSplitter(max_frame_bytes=max_frame_bytes)
    splitter.receive(data)
    found = []
    while (frame := splitter.next_frame()) is not None:
        found.append(codec.decode(frames.unpack_payload(*frame, max_payload_bytes=max_frame_bytes)))
    assert splitter.pending_bytes == 0
    return found


def updates_of(message: messages.Message) -> tuple[messages.Update, ...]:
    assert isinstance(message, messages.Updates | messages.SnapshotChunk)
    return message.updates


def put(number: int, value: bytes) -> messages.Update:
    return messages.Update(f"/core/v1/pods/default/web-{number}", value, "1", messages.UpdateType.NEW)


@given(st.integers(0, 2**63), st.lists(strategies.updates, min_size=1, max_size=30), st.integers(50, 500))
def test_updates_are_split_into_contiguous_frames(previous: int, updates: list[messages.Update], target: int) -> None:
    encoded = [made.updates(previous, updates) for made in limited(target)]
    messages_of = [[decoded(frame.data) for frame in frame_list] for frame_list in encoded]
    assert messages_of[0] == messages_of[1]
    rebuilt: list[messages.Update] = []
    sequence = previous
    for frame, [message] in zip(encoded[0], messages_of[0], strict=True):
        assert isinstance(message, messages.Updates)
        assert message.updates
        assert (message.previous_sequence, message.sequence) == (sequence, frame.sequence)
        assert message.sequence - sequence == len(message.updates)
        sequence = message.sequence
        rebuilt += message.updates
    assert rebuilt == updates


@given(st.integers(0, 2**60), st.lists(strategies.updates, max_size=30), st.integers(1, 9), st.integers(50, 500))
def test_changes_skip_sequences(previous: int, updates: list[messages.Update], step: int, target: int) -> None:
    changes = [(previous + step * (number + 1), update) for number, update in enumerate(updates)]
    end = previous + step * len(updates) + 3
    encoded = [list(made.changes(previous, iter(changes), end_sequence=end)) for made in limited(target)]
    assert [frame.sequence for frame in encoded[0]] == [frame.sequence for frame in encoded[1]]
    sequence = previous
    rebuilt: list[messages.Update] = []
    for frame in encoded[0]:
        [message] = decoded(frame.data)
        assert isinstance(message, messages.Updates)
        assert (message.previous_sequence, message.sequence) == (sequence, frame.sequence)
        rebuilt += message.updates
        sequence = message.sequence
        assert sequence in (end, previous + step * len(rebuilt))
    assert (sequence, rebuilt) == (end, updates)
    assert list(BOTH[0].changes(end, iter(()), end_sequence=end)) == []


@given(st.lists(strategies.updates, max_size=30), st.integers(0, 70_000), st.integers(0, 2**64 - 1))
def test_a_chunk_is_split_and_marks_its_last_frame(updates: list[messages.Update], index: int, digest: int) -> None:
    plain, small = (decoded(made.snapshot_chunk(index, digest, iter(updates))) for made in limited(300))
    assert plain == small
    chunks = [message for message in plain if isinstance(message, messages.SnapshotChunk)]
    assert len(chunks) == len(plain) > 0
    assert [chunk.more for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert {(chunk.index, chunk.digest) for chunk in chunks} == {(index, digest)}
    assert [update for chunk in chunks for update in chunk.updates] == updates
    assert len(chunks) == 1 or all(chunk.updates for chunk in chunks)


@both
def test_frames_are_near_the_target_size(made: encoder.NativeEncoder) -> None:
    updates = [put(number, bytes(10_000)) for number in range(100)]
    encoded = made.updates(0, updates)
    assert len(encoded) == 4
    assert max(len(frame.data) for frame in encoded) < encoder.FRAME_TARGET_BYTES + 1024


@both
def test_a_large_value_gets_its_own_frame(made: encoder.NativeEncoder) -> None:
    updates = [put(1, b"a"), put(2, b"b" * encoder.FRAME_TARGET_BYTES), put(3, b"c"), put(4, b"d")]
    sizes = []
    for frame in made.updates(0, updates):
        [message] = decoded(frame.data)
        assert isinstance(message, messages.Updates)
        sizes.append(len(message.updates))
    assert sizes == [1, 1, 2]


@both
def test_the_largest_value_with_the_longest_key_can_be_read(made: encoder.NativeEncoder) -> None:
    key = "\N{GRINNING FACE}" * codec.MAX_KEY_CHARS
    update = messages.Update(
        key,
        bytes(frames.MAX_FRAME_BYTES - encoder.VALUE_OVERHEAD_BYTES),
        "\N{GRINNING FACE}" * 128,
        messages.UpdateType.NEW,
        "2" * 128,
        2**63 - 1,
    )
    [frame] = made.updates(2**63, [put(0, b"x"), update])[1:]
    assert decoded(frame.data) == [messages.Updates(2**63 + 1, 2**63 + 2, (update,))]
    assert len(made.snapshot_chunk(0, 2**64 - 1, [update])) <= frames.MAX_FRAME_BYTES


@pytest.mark.parametrize("max_frame_bytes", [65_536, 100_000, 1 << 20])
@pytest.mark.parametrize("zstd", [False, True])
def test_no_frame_is_larger_than_the_limit(max_frame_bytes: int, zstd: bool) -> None:
    made = encoder.NativeEncoder(zstd=zstd, max_frame_bytes=max_frame_bytes)
    rng = random.Random(max_frame_bytes)
    largest = max_frame_bytes - encoder.VALUE_OVERHEAD_BYTES
    key = "\N{GRINNING FACE}" * (codec.MAX_KEY_CHARS - 4)
    updates = [put(number, rng.randbytes(rng.choice([0, 100, 20_000, largest]))) for number in range(100)]
    updates += [put(0, bytes(largest))._replace(key=f"{key}{number}") for number in range(5)]
    updates += [put(0, bytes(4000))._replace(key=f"{key}{number}") for number in range(5, 60)]
    data = [
        made.snapshot_chunk(2**64 - 1, 2**64 - 1, updates),
        *(frame.data for frame in made.updates(2**63, updates)),
        *(frame.data for frame in made.changes(2**63, enumerate(updates, 2**63 + 1), end_sequence=2**64 - 1)),
    ]
    found = [update for message in decoded(b"".join(data), max_frame_bytes) for update in updates_of(message)]
    assert found == updates * 3


@both
def test_the_other_messages(made: encoder.NativeEncoder) -> None:
    assert decoded(made.ping) == [messages.Ping()]
    assert decoded(made.snapshot_begin(7, keys=2, chunks=1)) == [messages.SnapshotBegin(7, 2, 1)]
    assert decoded(made.snapshot_end(7, keys=2, digest=9)) == [messages.SnapshotEnd(7, 2, 9)]
    for status in messages.SyncStatus:
        frame = made.status(7, status)
        assert isinstance(frame, encoding.EncodedFrame)
        assert (decoded(frame.data), frame.sequence) == ([messages.Status(7, status)], 7)


def test_names_and_compression() -> None:
    plain, small = BOTH
    assert (plain.name, small.name) == (encoder.PLAIN, encoder.ZSTD)
    updates = [put(number, b"much the same " * 10) for number in range(100)]
    assert len(small.updates(0, updates)[0].data) < len(plain.updates(0, updates)[0].data) / 5
    assert small.ping == plain.ping


@both
def test_equal_content_gives_equal_bytes(made: encoder.NativeEncoder) -> None:
    updates = [put(number, bytes(100)) for number in range(50)]
    other = encoder.NativeEncoder(zstd=made.name == encoder.ZSTD)
    other.updates(0, [put(1, b"something else before" * 100)])
    assert made.snapshot_chunk(1, 2, updates) == other.snapshot_chunk(1, 2, iter(updates))


def test_the_length_before_compression_is_known() -> None:
    plain, compressed = (made.snapshot_chunk(0, 0, [put(1, b"x"), put(2, bytes(100_000))]) for made in BOTH)
    assert len(compressed) < len(plain)
    assert [made.raw_length(data) for made, data in zip(BOTH, (plain, compressed), strict=True)] == [len(plain)] * 2
