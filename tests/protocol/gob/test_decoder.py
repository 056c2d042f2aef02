"""Input that Go rarely sends, such as inline definitions and unknown types of every form; and the limits."""

import io
from typing import Any

import pytest

from protocol import errors, reasons
from protocol.gob import decoder, encoder, scalars, schema
from tests.fuzz import cost

TOP = schema.Struct(
    "Top",
    [
        schema.Field("Any", schema.INTERFACE, lambda value: value),
        schema.Field("End", schema.UINT, lambda value: value),
    ],
    lambda held, end: (held, end),
)
THING = schema.Struct("Thing", [schema.Field("Name", schema.STRING, lambda value: value)], lambda name: f"thing {name}")
NAMES: dict[bytes, schema.Kind] = {**schema.REGISTERED, b"main.Thing": THING}
message = encoder.frame


def definition(type_id: int, *fields: tuple[str, int]) -> bytes:
    """The definition of a struct without a name."""
    members = b"".join(
        b"\x01" + scalars.encode_text(name) + b"\x01" + scalars.encode_int(kind) + b"\0" for name, kind in fields
    )
    return scalars.encode_int(-type_id) + b"\x03\x02" + scalars.encode_uint(len(fields)) + members + b"\0\0"


def other(type_id: int, form: int, *numbers: int) -> bytes:
    """The definition of a type of another form."""
    own = b"".join((b"\x02" if not place else b"\x01") + scalars.encode_int(n) for place, n in enumerate(numbers))
    return scalars.encode_int(-type_id) + bytes([form]) + own + b"\0\0"


TOP_TYPE = message(definition(64, ("Any", 8), ("End", 3)))
THING_TYPE = definition(65, ("Name", 6))
ID_64, ID_65 = scalars.encode_int(64), scalars.encode_int(65)


def make(*, limits: decoder.Limits = decoder.HELLO_LIMITS) -> decoder.Decoder:
    return decoder.Decoder(TOP, NAMES, limits=limits)


def read_all(data: bytes, *, step: int = 1 << 20, limits: decoder.Limits = decoder.HELLO_LIMITS) -> list[Any]:
    reader = make(limits=limits)
    found = []
    for start in range(0, len(data), step):
        reader.receive(data[start : start + step])
        while (value := reader.next_value()) is not decoder.NEED_DATA:
            found.append(value)
    return found


VALUE = b"\x01\x01x\0"
"""A value of the type Thing."""
NAME = b"\x01\x0amain.Thing"


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize(
    "messages",
    [
        [ID_64 + NAME + THING_TYPE, ID_65 + b"\x04" + VALUE + b"\x01\x07\0"],
        [ID_64 + NAME, THING_TYPE, ID_65 + b"\x04" + VALUE + b"\x01\x07\0"],
        [ID_64 + NAME + THING_TYPE + b"\x09" + ID_65 + b"\x04" + VALUE + b"\x01\x07\0"],
        [ID_64 + NAME, THING_TYPE, other(66, 2, 6), other(67, 2, 66), ID_65 + b"\x04" + VALUE + b"\x01\x07\0"],
        [THING_TYPE, ID_64 + NAME + ID_65 + b"\x04" + VALUE + b"\x01\x07"],
    ],
    ids=["go", "alone", "in-one", "several", "before"],
)
def test_definitions_inside_a_value(messages: list[bytes], step: int) -> None:
    data = TOP_TYPE + b"".join(message(body) for body in messages)
    assert read_all(data, step=step) == [("thing x", 7)]
    again = message(ID_64 + NAME + ID_65 + b"\x04" + VALUE + b"\0")
    assert read_all(data + again, step=step) == [("thing x", 7), ("thing x", 0)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("int", "04 03 00 ff81", -65),
        ("int8", "04 03 00 ff81", -65),
        ("uint64", "06 03 00 ff80", 128),
        ("bool", "02 02 00 01", True),
        ("float64", "08 04 00 fe3140", 17.0),
        ("complex128", "0e 07 00 fe3140 fe3140", 17 + 17j),
        ("string", "0c 03 00 01 61", "a"),
        ("[]byte", "0a 03 00 01 61", b"a"),
    ],
)
def test_registered_basic_types(name: str, content: str, expected: object) -> None:
    body = ID_64 + b"\x01" + scalars.encode_text(name) + bytes.fromhex(content) + b"\0"
    assert read_all(TOP_TYPE + message(body)) == [(expected, 0)]


def test_a_registered_slice() -> None:
    body = ID_64 + b"\x01\x08[]string"
    rest = scalars.encode_int(70) + b"\x06\x00\x02\x01a\x01b" + b"\0"
    assert read_all(TOP_TYPE + message(body + other(70, 2, 6)) + message(rest)) == [(["a", "b"], 0)]


UNKNOWN: dict[str, tuple[list[bytes], str]] = {
    "array": ([other(70, 1, 2, 3)], "03 02 04 06"),
    "slice": ([other(70, 2, 6)], "02 01 61 00"),
    "map": ([other(70, 4, 6, 2)], "02 01 61 02 01 62 04"),
    "struct": ([definition(70, ("A", 1), ("B", 7))], "01 01 01 01 02 00"),
    "time": ([other(70, 5)], "03 01 02 03"),
    "binary": ([other(70, 6)], "00"),
    "text": ([other(70, 7)], "01 61"),
    "interfaces": ([other(70, 2, 8)], "03 00" + "06 737472696e67 0c 03 00 01 61" + "00"),
    "recursive": ([other(70, 2, 70)], "02 01 00 00"),
    "empty-structs": ([other(70, 2, 71), definition(71)], "03 00 00 00"),
}


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize("name", UNKNOWN)
def test_every_unknown_form_is_skipped(name: str, step: int) -> None:
    definitions, content = UNKNOWN[name]
    types = [definition(64, ("Odd", 70), ("Any", 8), ("End", 3)), *definitions]
    data = b"".join(message(body) for body in types) + message(ID_64 + b"\x01" + bytes.fromhex(content) + b"\x02\x07\0")
    assert read_all(data, step=step) == [(None, 7)]


def test_definitions_inside_a_skipped_value() -> None:
    types = message(definition(64, ("Odd", 8), ("End", 3)))
    parts = [ID_64 + NAME + THING_TYPE, ID_65 + b"\x04" + VALUE + b"\x01\x07\0", ID_64 + NAME + ID_65 + b"\x04" + VALUE]
    assert read_all(types + b"".join(message(part) for part in parts), step=1) == [(None, 7), (None, 0)]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "message of length 0"),
        (ID_65 + b"\0", "type 65 is not defined"),
        (b"\x0c\0\0", "type 6 is not defined"),
        (ID_64 + b"\x03", "field 2 of a struct with 2"),
        (ID_64 + b"\x01\x03abc", "'abc' is not registered"),
        (ID_64 + b"\x01" + scalars.encode_bytes(bytes(1025)), "name of 1025 bytes is over the limit of 1024"),
        (ID_64 + b"\x01\x06string\x0c\x02\x01\x00", "not preceded by 0"),
        (ID_64 + b"\x01\x06string\x04\x02\x00\x00", "not the registered type"),
        (ID_64 + b"\x01\x05uint8\x06\x04\x00\xfe\x01\x00", "256 does not fit 8 bits"),
        (ID_64 + b"\x01\x04int8\x04\x04\x00\xfe\x01\x00", "128 does not fit 8 bits"),
        (ID_64 + NAME + ID_64 + b"\x01\0", "no field in common"),
        (definition(64), "defined twice"),
        (THING_TYPE + b"\0", "bytes after a definition"),
    ],
)
def test_invalid_input_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        read_all(TOP_TYPE + message(body))


def test_a_field_without_a_name_is_refused() -> None:
    types = message(definition(64, ("", 3)))
    with pytest.raises(errors.RemoteProtocolError, match="a field without a name"):
        read_all(types + message(ID_64 + b"\0"))


@pytest.mark.parametrize("kind", [1, 2, 4, 5, 6, 7, 8, 70, 71])
def test_kinds_must_be_equal(kind: int) -> None:
    types = message(definition(64, ("End", kind))) + message(other(70, 2, 3)) + message(other(71, 6))
    with pytest.raises(errors.RemoteProtocolError, match="wrong type for Top"):
        read_all(types + message(ID_64 + b"\x01\x07\0"))


def test_an_unused_skipped_type_must_be_defined() -> None:
    types = message(definition(64, ("End", 3), ("Odd", 70))) + message(other(70, 2, 71))
    with pytest.raises(errors.RemoteProtocolError, match="type 71 is not defined"):
        read_all(types + message(ID_64 + b"\x01\x07\0"))


def test_a_large_message_is_refused_at_its_length() -> None:
    limits = decoder.Limits(message_bytes=100, skipped_values=100)
    for data in (b"\x65", TOP_TYPE + bytes([100 - len(TOP_TYPE)])):
        with pytest.raises(errors.RemoteProtocolError, match=r"over the limit of 100$") as info:
            read_all(data, limits=limits)
        assert info.value.reason is reasons.DisconnectReason.MESSAGE_TOO_LARGE
    value = message(ID_64 + b"\x02\x07\0")
    assert read_all(TOP_TYPE + value * 100, limits=limits) == [(None, 7)] * 100


LARGE: dict[str, tuple[list[bytes], bytes, str]] = {
    "count": ([other(70, 2, 71), definition(71)], scalars.encode_uint(2**62), "elements, over the limit"),
    "nothing": ([other(70, 2, 71), definition(71)], scalars.encode_uint(16_000), "elements in unknown fields"),
    "pairs": ([other(70, 4, 71, 71), definition(71)], scalars.encode_uint(16_000), "elements in unknown fields"),
    "depth": ([other(70, 2, 70)], b"\x01" * 15_000, "levels in unknown fields"),
    "structs": ([definition(70, ("A", 70))], b"\x01" * 15_000, "levels in unknown fields"),
    "empty": ([other(70, 2, 71), other(71, 2, 1)], scalars.encode_uint(15_000) + bytes(15_000), "elements in unknown"),
    "many": ([other(70, 2, 1)], scalars.encode_uint(15_000) + bytes(15_000), "elements in unknown fields"),
}
"""Definitions of type 70, a value of it, and why it is refused."""


def with_unknown_field(definitions: list[bytes], content: bytes) -> bytes:
    types = [definition(64, ("Odd", 70), ("End", 3)), *definitions]
    return b"".join(message(body) for body in types) + message(ID_64 + b"\x01" + content)


@pytest.mark.parametrize("name", LARGE)
def test_large_unknown_fields_are_refused_early(name: str) -> None:
    definitions, content, problem = LARGE[name]
    data = with_unknown_field(definitions, content)
    assert len(data) < decoder.HELLO_LIMITS.message_bytes

    def read() -> None:
        with pytest.raises(errors.RemoteProtocolError, match=problem):
            read_all(data)

    read()  # The definitions are now in the cache.
    assert cost.calls(read) < 10 * decoder.HELLO_LIMITS.skipped_values


def test_a_server_may_send_as_many_unknown_values_as_it_sends_bytes() -> None:
    limits = decoder.Limits(message_bytes=1 << 20, skipped_values=1 << 20)
    fits = scalars.encode_uint(50_000) + bytes(50_000) + b"\x01\x07\0"
    assert read_all(with_unknown_field([other(70, 2, 71), definition(71)], fits), limits=limits) == [(None, 7)]
    with pytest.raises(errors.RemoteProtocolError, match="elements in unknown fields"):
        read_all(with_unknown_field([other(70, 2, 71), definition(71)], scalars.encode_uint(50_000)), limits=limits)


def test_waiting_for_a_large_message_is_cheap() -> None:
    """The decoder looks at each byte once, however small the pieces are in which they come."""
    text = bytes(900_000)
    limits = decoder.Limits(message_bytes=1 << 20, skipped_values=0)
    data = TOP_TYPE + message(ID_64 + b"\x01\x06string\x0c\x01\x00" + scalars.encode_bytes(text) + b"\0")
    reader = make(limits=limits)
    for piece in (data[:900_000], data[900_000:900_009]):  # The buffer has grown, and has room for some more.
        reader.receive(piece)
        assert reader.next_value() is decoder.NEED_DATA

    rest = io.BytesIO(data[900_009:])

    def wait() -> None:
        reader.receive(rest.read(1))
        assert reader.next_value() is decoder.NEED_DATA

    assert min(cost.peak_bytes(wait) for _ in range(3)) < 1_000  # other threads need memory, too, but not each time
    assert cost.calls(wait) < 20
    reader.receive(rest.read())
    assert len(reader.next_value()[0]) == 900_000


def test_a_value_in_several_messages_is_held_and_counted() -> None:
    reader = make()
    parts = [TOP_TYPE, message(ID_64 + NAME + THING_TYPE), message(ID_65 + b"\x04" + VALUE + b"\0")]
    reader.receive(parts[0] + parts[1])
    assert reader.next_value() is decoder.NEED_DATA
    assert reader.pending_bytes == len(parts[0]) + len(parts[1])
    reader.receive(parts[2] + b"\x05")
    assert reader.next_value() == ("thing x", 0)
    assert reader.pending_bytes == 1


def test_bytes_after_a_value_can_be_taken() -> None:
    reader = make()
    value = message(ID_64 + b"\x02\x07\0")
    reader.receive(TOP_TYPE + value + b"another stream")
    assert reader.next_value() == (None, 7)
    assert reader.pending_bytes == 14
    assert reader.take_rest() == b"another stream"
    assert reader.pending_bytes == 0
    assert not reader.is_inside_value
