"""Every message survives encoding and decoding. All other input raises RemoteProtocolError and nothing else."""

import contextlib
from collections.abc import Callable

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors, messages
from protocol.native import codec
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


@given(strategies.deltas, strategies.chunks)
def test_the_hot_path_gives_the_same_bytes(delta: messages.Updates, chunk: messages.SnapshotChunk) -> None:
    assert codec.encode_updates(delta.previous_sequence, delta.sequence, delta.updates) == codec.encode(delta)
    packed = codec.encode_chunk(chunk.index, chunk.digest, chunk.updates, more=chunk.more)
    assert packed == codec.encode(chunk)


@given(strategies.all_messages, st.lists(msgpack_values, max_size=3))
def test_additional_elements_are_ignored(message: messages.Message, more: list[object]) -> None:
    value = msgpack.unpackb(codec.encode(message), raw=False)
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
    value = msgpack.unpackb(codec.encode(message), raw=False)
    for length in range(1, len(value)):
        with pytest.raises(errors.RemoteProtocolError, match="too short"):
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


@given(st.integers(min_value=0, max_value=11), st.lists(msgpack_values, max_size=5))
def test_random_fields_are_a_message_or_refused(number: int, fields: list[object]) -> None:
    with contextlib.suppress(errors.RemoteProtocolError):
        codec.decode(pack([number, *fields]))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (7, "not an array"),
        ([], "not an array"),
        (["updates"], "not an array"),
        ([True, 1], "not an array"),
        ([0], "unknown message type 0"),
        ([11], "unknown message type 11"),
        ([1, []], "client hello is a tuple, not a dict"),
        ([1, {"versions": [1], "agent": "a"}], "feed is a NoneType"),
        ([1, {"versions": [], "feed": "f", "agent": "a"}], "versions has 0 entries"),
        ([1, {"versions": [1] * 65, "feed": "f", "agent": "a"}], "versions has 65 entries"),
        ([1, {"versions": [-1], "feed": "f", "agent": "a"}], "version is negative"),
        ([1, {"versions": [1], "feed": "f" * 1025, "agent": "a"}], "feed of 1025 characters"),
        ([1, {"versions": [1], "feed": "f", "agent": "a", "features": ["x"] * 65}], "features has 65 entries"),
        ([1, {"versions": [1], "feed": "f", "agent": "a", "resume": [b""]}], "too short"),
        ([2, {"version": 1, "feed": "f"}], "incarnation is a NoneType"),
        ([3, 1, -1, 1], "keys is negative"),
        ([4, 0, 0, 0, []], "more is a int, not a bool"),
        ([6, 1, True, []], "sequence is a bool"),
        ([6, 1, 2, {}], "updates is a dict"),
        ([6, 1, 2, ["k"]], "update is not an array"),
        ([6, 1, 2, [["k", b"v", "1"]]], "at least four elements"),
        ([6, 1, 2, [["k", "text", "1", 1]]], "wrong type"),
        ([6, 1, 2, [["k" * 4097, b"v", "1", 1]]], "key of 4097 characters"),
        ([7, 1, 9], "unknown status 9"),
        ([10, "reason", "t" * 1025, 0], "text of 1025 characters"),
    ],
)
def test_errors_name_the_wrong_field(value: object, problem: str) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        codec.decode(pack(value))


@pytest.mark.parametrize("head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdd\x00\x0f\xff\xff" * 500])
def test_announced_sizes_are_checked_before_allocation(head: bytes) -> None:
    with pytest.raises(errors.RemoteProtocolError, match="not msgpack"):
        codec.decode(head + bytes(4096))


def test_extension_types_and_deep_nesting_are_refused() -> None:
    for payload in (pack([6, msgpack.ExtType(5, b"x")]), pack([6, msgpack.Timestamp(1)]), b"\x91" * 100_000):
        with pytest.raises(errors.RemoteProtocolError, match="not msgpack"):
            codec.decode(payload)


def any_values(depth: int = 1) -> st.SearchStrategy[object]:
    """Values that a hostile or careless peer may send in any place."""
    simple = st.none() | st.booleans() | st.integers(-5, (1 << 64) - 1) | st.floats() | st.text() | st.binary()
    simple |= st.just("x" * (codec.MAX_NAME_CHARS + 1)) | st.just("x" * codec.MAX_NAME_CHARS)
    if not depth:
        return simple
    inner = any_values(depth - 1)
    return simple | st.lists(inner, max_size=70) | st.dictionaries(st.text() | st.binary(), inner, max_size=3)


hello_members = st.fixed_dictionaries(
    {"versions": st.just((1,)), "feed": st.just("pods"), "agent": st.just("a")},
    optional={
        name: any_values()
        for name in ("features", "software", "node", "subscription", "resume", "chunk_digests", "other")
    },
)


@given(
    hello_members,
    st.dictionaries(st.sampled_from(("versions", "feed", "agent", b"feed")), any_values(), max_size=1),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2),
    st.lists(any_values(), max_size=1),
)
def test_the_fast_path_for_hellos_gives_the_same_result(
    members: dict[str, object], odd: dict[str, object], changes: list[tuple[int, int]], more: list[object]
) -> None:
    payload = bytearray(pack((1, {**members, **odd}, *more)))
    for place, byte in changes:
        if place < len(payload):
            payload[place] = byte
    assert decoded(codec.decode, bytes(payload)) == decoded(codec.decode_any, bytes(payload))


def decoded(decode: Callable[[bytes], messages.Message], payload: bytes) -> object:
    try:
        return decode(payload)
    except errors.RemoteProtocolError as error:
        return str(error)


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
