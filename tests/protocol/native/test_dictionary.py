"""Dictionaries: what is trained, and what a client accepts of a server that may lie."""

import dataclasses
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors, messages
from protocol.native import codec, connection, dictionary, encoder, frames
from tests.harness import dictionaries, strategies

ONE, TWO = dictionaries.trained(1), dictionaries.trained(2)
LIKE_ONE = dictionaries.update(1, 7)


def client(*features: str) -> connection.Connection:
    """A client that follows at sequence 7."""
    made = connection.Connection(connection.Role.CLIENT)
    hello = messages.ServerHello(1, "pods", bytes(16), features=frozenset(features))
    begin, end = messages.SnapshotBegin(7, 0, 0), messages.SnapshotEnd(7, 0, 0)
    made.receive_data(frames.PREFACE + b"".join(frames.pack_frame(codec.encode(one)) for one in (hello, begin, end)))
    while made.next_event() is not None:
        pass
    assert made.sequence == 7
    return made


def receive(receiver: connection.Connection, *packed: bytes) -> list[messages.Message]:
    receiver.receive_data(b"".join(packed))
    found = []
    while (message := receiver.next_event()) is not None:
        found.append(message)
    return found


def test_a_delta_like_the_samples_takes_a_fraction() -> None:
    payload = codec.encode(messages.Updates(7, 8, (LIKE_ONE,)))
    without = frames.pack_frame(payload, compressor=frames.make_compressor())
    assert len(ONE.pack_frame(payload)) < len(without) / 3
    assert len(ONE.message.data) <= dictionary.TRAINED_BYTES
    assert frames.raw_length(ONE.pack_frame(payload)) == len(payload) + 5


def test_nothing_is_trained_from_too_few_samples_or_noise() -> None:
    assert dictionary.train(dictionaries.payloads(1)[:99], 1) is None
    noise = random.Random(1)
    assert dictionary.train([noise.randbytes(300) for _ in range(300)], 1) is None
    assert dictionary.train([b"x"] * 300, 1) is None
    assert dictionary.train([], 1) is None


def test_training_is_deterministic() -> None:
    again = dictionary.train(dictionaries.payloads(1), 1)
    assert again is not None
    assert again.frame == ONE.frame


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(strategies.updates, max_size=4)), max_size=8))
def test_a_client_reads_what_was_compressed_with_the_newest_dictionary(
    history: list[tuple[int, list[messages.Update]]],
) -> None:
    made, receiver = encoder.NativeEncoder(zstd=True, takes_dictionary=True), client("zstd", "zstd-dictionary")
    sequence = 7
    for which, updates in history:
        if which:
            receive(receiver, made.use_dictionary((ONE, TWO)[which - 1], sequence).data)
        sent = made.updates(sequence, updates) if updates else []
        received = receive(receiver, *(frame.data for frame in sent))
        assert [one for message in received if isinstance(message, messages.Updates) for one in message.updates] == (
            updates
        )
        sequence += len(updates)
        assert receiver.sequence == sequence


def test_a_large_delta_and_what_is_not_in_the_log_go_without() -> None:
    made = encoder.NativeEncoder(zstd=True, takes_dictionary=True)
    made.use_dictionary(ONE, 0)
    value = (b"common words of a value " * 2000)[: dictionary.PAYLOAD_BYTES_MAX]
    large = messages.Update("/core/v1/pods/default/web-1", value, "1", 2)
    plain = frames.FrameSplitter()
    plain.receive(made.updates(0, [large])[0].data)
    plain.receive(made.snapshot_chunk(0, 0, [LIKE_ONE]))
    plain.receive(next(made.changes(0, [(1, LIKE_ONE)], end_sequence=1)).data)
    for _ in range(3):
        frame = plain.next_frame()
        assert frame is not None
        frames.unpack_payload(*frame)
    plain.receive(made.updates(0, [LIKE_ONE])[0].data)
    frame = plain.next_frame()
    assert frame is not None
    with pytest.raises(errors.RemoteProtocolError, match="Dictionary mismatch"):
        frames.unpack_payload(*frame)


def test_a_frame_needs_the_dictionary_that_it_names() -> None:
    packed = ONE.pack_frame(codec.encode(messages.Updates(7, 8, (LIKE_ONE,))))
    for others in ([], [TWO.frame], [ONE.frame, TWO.frame]):
        receiver = client("zstd", "zstd-dictionary")
        with pytest.raises(errors.RemoteProtocolError, match="Dictionary mismatch"):
            receive(receiver, *others, packed)
        assert receiver.state is connection.State.ERROR
    assert len(receive(client("zstd", "zstd-dictionary"), TWO.frame, ONE.frame, packed)) == 3


@pytest.mark.parametrize("features", [(), ("zstd",)])
def test_a_dictionary_that_was_not_agreed_on_is_rejected(features: tuple[str, ...]) -> None:
    with pytest.raises(errors.RemoteProtocolError, match="not in force"):
        receive(client(*features), ONE.frame)


@pytest.mark.parametrize(
    ("number", "data", "problem"),
    [
        (1, b"", "broken"),
        (1, bytes(1000), "broken"),
        (1, b"8 bytes.", "broken"),
        (1, ONE.message.data[:100], "broken"),
        (1, ONE.message.data[:8] + bytes(200), "broken"),
        (2, ONE.message.data, "has the number 1 inside"),
        (0, ONE.message.data, "has number 0"),
        (1 << 32, ONE.message.data, "has number 4294967296"),
        (1, ONE.message.data + bytes(dictionary.MAX_BYTES), "the limit is 65536"),
    ],
    ids=range(9),
)
def test_what_is_no_dictionary_is_rejected(number: int, data: bytes, problem: str) -> None:
    receiver = client("zstd", "zstd-dictionary")
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        receive(receiver, frames.pack_frame(codec.encode(messages.Dictionary(number, data))))


def test_the_limit_of_the_content_holds_with_a_dictionary() -> None:
    content = zstandard.ZstdCompressionDict(ONE.message.data, dict_type=zstandard.DICT_TYPE_FULLDICT)
    bomb = zstandard.ZstdCompressor(dict_data=content, write_content_size=True).compress(bytes(64 << 20))
    unsized = zstandard.ZstdCompressor(dict_data=content, write_content_size=False).compress(b"\x91\x08")
    assert len(bomb) < 8192
    for data, problem in ((bomb, "67108864 bytes of content"), (unsized, "does not state its content size")):
        receiver = client("zstd", "zstd-dictionary")
        receive(receiver, ONE.frame)
        with pytest.raises(errors.RemoteProtocolError, match=problem):
            receive(receiver, frames.HEADER.pack(len(data) + 1, 1) + data)


def test_any_change_of_a_byte_of_a_compressed_frame_is_survived() -> None:
    """The frame has no checksum: the change is noticed, or the message is another one. Nothing else happens."""
    packed = ONE.pack_frame(codec.encode(messages.Updates(7, 8, (LIKE_ONE,))))
    for place in range(frames.HEADER.size, len(packed)):
        receiver = client("zstd", "zstd-dictionary")
        receive(receiver, ONE.frame)
        broken = packed[:place] + bytes([packed[place] ^ 0x55]) + packed[place + 1 :]
        try:
            receive(receiver, broken)
        except errors.RemoteProtocolError:
            assert receiver.state is connection.State.ERROR


def test_a_message_shows_no_content() -> None:
    assert "data" not in repr(ONE.message)
    assert dataclasses.asdict(ONE.message)["number"] == 1
