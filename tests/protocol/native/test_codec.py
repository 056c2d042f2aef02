"""Every message survives encoding and decoding. All other input raises RemoteProtocolError and nothing else."""

import contextlib
import dataclasses

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors, messages
from protocol.native import codec, frames
from tests.fuzz import cost
from tests.harness import strategies

msgpack_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


@given(strategies.all_messages)
def test_round_trip(message: messages.Message) -> None:
    assert codec.decode(codec.encode(message)) == message


@given(strategies.all_messages)
def test_a_server_reads_only_what_clients_send(message: messages.Message) -> None:
    payload = codec.encode(message)
    if isinstance(message, messages.ClientHello | messages.Pong | messages.Goodbye | messages.Applied):
        assert codec.decode_from_client(payload) == message
    else:
        with pytest.raises(errors.RemoteProtocolError, match="Invalid value"):
            codec.decode_from_client(payload)


@given(strategies.deltas, strategies.chunks)
def test_the_hot_path_gives_the_same_bytes(delta: messages.Updates, chunk: messages.SnapshotChunk) -> None:
    assert codec.encode_updates(delta.previous_sequence, delta.sequence, delta.updates) == codec.encode(delta)
    packed = codec.encode_chunk(chunk.index, chunk.digest, chunk.updates, more=chunk.more)
    assert packed == codec.encode(chunk)


@given(strategies.all_messages, st.lists(msgpack_values, max_size=3))
def test_additional_elements_are_ignored(message: messages.Message, more: list[object]) -> None:
    value = msgpack.unpackb(codec.encode(message), raw=False)
    if isinstance(message, messages.Goodbye) and not message.servers:
        value.append(None)  # servers may be left out, but not if more follows
    assert codec.decode(pack([*value, *more])) == message


@given(strategies.client_hellos | strategies.server_hellos, msgpack_values)
def test_unknown_members_of_a_hello_are_ignored(message: messages.Message, more: object) -> None:
    number, content = msgpack.unpackb(codec.encode(message), raw=False)
    assert codec.decode(pack([number, content | {"not yet invented": more}])) == message


def test_optional_elements_of_an_update() -> None:
    short = codec.decode(pack([6, 1, 2, [["/k", b"v", "7", 1]]]))
    long = codec.decode(pack([6, 1, 2, [["/k", b"v", "7", 1, "", 0, "from the future"]]]))
    assert short == long == messages.Updates(1, 2, (messages.Update("/k", b"v", "7", 1),))


@given(strategies.all_messages)
def test_a_message_with_missing_elements_is_refused(message: messages.Message) -> None:
    if isinstance(message, messages.Goodbye):
        message = dataclasses.replace(message, servers=())  # which may be left out
    value = msgpack.unpackb(codec.encode(message), raw=False)
    for length in range(1, len(value)):
        with pytest.raises(errors.RemoteProtocolError, match="of at least length"):
            codec.decode(pack(value[:length]))


@given(strategies.all_messages, st.data())
def test_a_truncated_payload_is_refused(message: messages.Message, data: st.DataObject) -> None:
    payload = codec.encode(message)
    cut = data.draw(st.integers(min_value=0, max_value=len(payload) - 1))
    with pytest.raises(errors.RemoteProtocolError):
        codec.decode(payload[:cut])


@given(strategies.all_messages, st.binary(min_size=1, max_size=8))
def test_bytes_after_a_message_are_refused(message: messages.Message, more: bytes) -> None:
    with pytest.raises(errors.RemoteProtocolError):
        codec.decode(codec.encode(message) + more)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_or_refused(payload: bytes) -> None:
    with contextlib.suppress(errors.RemoteProtocolError):
        codec.decode(payload)


@given(st.integers(min_value=0, max_value=12), st.lists(msgpack_values, max_size=5))
def test_random_fields_are_a_message_or_refused(number: int, fields: list[object]) -> None:
    with contextlib.suppress(errors.RemoteProtocolError):
        codec.decode(pack([number, *fields]))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (7, "Expected `array`, got `integer`"),
        ([], "of at least length 1, got 0"),
        (["updates"], r"Expected `integer`, got `text` - at `\$\[0\]`"),
        ([True, 1], r"Expected `integer`, got `boolean` - at `\$\[0\]`"),
        ([0], "Invalid value 0"),
        ([99], "Invalid value 99"),
        ([1, []], r"Expected `map`, got `array` - at `\$\[1\]`"),
        ([1, {"versions": [1], "agent": "a"}], "a member is missing: `feed`"),
        ([1, {"versions": [1], "feed": b"f", "agent": "a"}], r"got `bin` - at `\$\[1\].feed`"),
        ([1, {"versions": [], "feed": "f", "agent": "a"}], r"length >= 1 - at `\$\[1\].versions`"),
        ([1, {"versions": [1] * 65, "feed": "f", "agent": "a"}], r"length <= 64 - at `\$\[1\].versions`"),
        ([1, {"versions": [-1], "feed": "f", "agent": "a"}], r">= 0 - at `\$\[1\].versions"),
        ([1, {"versions": [1], "feed": "f" * 1025, "agent": "a"}], r"length <= 1024 - at `\$\[1\].feed`"),
        ([1, {"versions": [1], "feed": "f", "agent": "a", "features": ["x"] * 65}], r"at `\$\[1\].features`"),
        ([1, {"versions": [1], "feed": "f", "agent": "a", "resume": [b""]}], r"at `\$\[1\].resume`"),
        ([1, {"versions": [1], "feed": "f", "agent": "a", "subscription": []}], r"at `\$\[1\].subscription`"),
        ([1, {"versions": [1], "feed": "f", "agent": "a", "chunk_digests": [0] * 4097}], "length <= 4096"),
        ([2, {"version": 1, "feed": "f"}], "a member is missing: `incarnation`"),
        ([3, 1, -1, 1], r">= 0 - at `\$\[2\]`"),
        ([12, 1, 1, 3, b"\0"], "3 chunks, which is no power of two"),
        ([12, 1, 1, 0, b""], r">= 1 - at `\$\[3\]`"),
        ([12, 1, 1, 1 << 21, b""], r"<= 1048576 - at `\$\[3\]`"),
        ([12, 1, 1, 8, b""], "length 0, which is not that of 8 chunks"),
        ([12, 1, 1, 8, b"\0\0"], "length 2, which is not that of 8 chunks"),
        ([12, 1, 1, 8, "\0"], r"Expected `bin`, got `text` - at `\$\[4\]`"),
        ([4, 0, 0, 0, []], r"Expected `boolean`, got `integer` - at `\$\[3\]`"),
        ([6, 1, True, []], r"Expected `integer`, got `boolean` - at `\$\[2\]`"),
        ([6, 1, 2, {}], r"Expected `array`, got `map` - at `\$\[3\]`"),
        ([6, 1, 2, ["k"]], r"at `\$\[3\]\[0\]`"),
        ([6, 1, 2, [["k", b"v", "1"]]], "of at least length 4"),
        ([6, 1, 2, [["k", "text", "1", 1]]], r"at `\$\[3\]\[0\]\[1\]`"),
        ([6, 1, 2, [["k" * 4097, b"v", "1", 1]]], "length <= 4096"),
        ([7, 1, 9], "Invalid enum value 9"),
        ([10, "reason", "t" * 1025, 0], r"length <= 1024 - at `\$\[2\]`"),
    ],
)
def test_errors_name_the_wrong_field(value: object, problem: str) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        codec.decode(pack(value))


@pytest.mark.parametrize(
    "payload",
    [
        *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 60_000, b"\xc1"),
        *(pack([6, msgpack.ExtType(5, b"x")]), pack([6, msgpack.Timestamp(1)])),
        pack([6, 1, 2])[:-1] + b"\x02\xdd\x00\x0f\xff\xff",
        pack([1, {}])[:-1] + b"\x81\xa1x" + b"\xdd\x00\x10\x00\x00" * 1000,
        b"\x92\x01\x81\xa4feed\xa1\xff",
    ],
    ids=repr,
)
def test_other_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=r"a message is not valid: ."):
        codec.decode(payload)


@given(
    st.text(), st.text(), st.sampled_from((0, 1, (1 << 32) - 1, 1 << 32, (1 << 40) + 7, (1 << 64) - 1)), st.booleans()
)
def test_the_cached_server_hello_has_the_same_bytes(
    feed: str, software: str, connection_id: int, all_known: bool
) -> None:
    hello = messages.ServerHello(
        version=1,
        feed=feed,
        incarnation=b"\xff" * 16,
        features=frozenset({"zstd"}),
        not_supported=frozenset() if all_known else frozenset({"connection_id"}),
        software=software,
        max_frame_bytes=(1 << 64) - 1,
    )
    payload = codec.encode_server_hello(hello, connection_id)
    assert payload == codec.encode(msgspec.structs.replace(hello, connection_id=connection_id))


REQUIRED = b"\xa4feed\xa1x\xa5agent\xa1a\xa8versions\x91\x01"


def hello_with(member: bytes, *, times: int = 1) -> bytes:
    return b"\x92\x01\xde" + (3 + times).to_bytes(2, "big") + REQUIRED + member * times


COSTLY = {
    "arrays announced within arrays": hello_with(b"\xa1x" + b"\xdd\x00\x10\x00\x00" * 1000),
    "arrays of one within each other": hello_with(b"\xa1x" + b"\x91" * 60_000 + b"\xc0"),
    "maps announced within maps": hello_with(b"\xa1x" + b"\xde\xff\xff\xa0" * 1000),
    "empty maps": hello_with(b"\xa1x\xdc\xff\x00" + b"\x80" * 0xFF00),
    "a subscription of empty maps": hello_with(b"\xacsubscription\x81\xa1x\xdc\xfe\x00" + b"\x80" * 0xFE00),
    "unknown members": hello_with(b"\xa0\xc0", times=32_000),
    "one member again and again": hello_with(b"\xa8features\xdc\x00\x40" + b"\xa0" * 64, times=850),
    "all digests that fit": hello_with(b"\xadchunk_digests\xdc\x10\x00" + (b"\xcf" + b"\xff" * 8) * 0x1000),
    "more digests than are allowed": hello_with(b"\xadchunk_digests\xdc\xfe\x00" + b"\x01" * 0xFE00),
    "elements after the hello": b"\xdc\xfe\x00\x01\x83" + REQUIRED + b"\x90" * 0xFDFE,
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_hello_takes_no_more_memory_than_a_few_times_its_bytes(name: str) -> None:
    payload = COSTLY[name]
    assert len(payload) <= frames.MAX_HELLO_FRAME_BYTES

    def decode() -> None:
        with contextlib.suppress(errors.RemoteProtocolError):
            codec.decode_from_client(payload)

    assert cost.peak_bytes(decode) <= 8 * len(payload)
    assert cost.calls(decode) < 50
