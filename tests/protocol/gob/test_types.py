"""Type definitions and the tables built from them."""

import pytest

from protocol import errors, reasons
from protocol.gob import scalars, types

ACK = bytes.fromhex("03 01 01 01 61 01 ff82 00 00 00")
"""A struct with the name a and no fields."""


def defined(tail: bytes) -> types.WireType:
    table, length = types.EMPTY.extend(64, tail)
    assert length == len(tail)
    return table.types[64]


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("03 01 01 01 61 01 ff82 00 00 00", types.WireType(types.Form.STRUCT, "a")),
        (
            "03 01 01 01 61 00 01 02 01 01 6b 01 0c 00 01 01 76 01 0a 00 00 00",
            types.WireType(types.Form.STRUCT, "a", (6, 5), ("k", "v")),
        ),
        ("02 02 0c 00 00", types.WireType(types.Form.SLICE, "", (6,))),
        ("01 02 04 01 06 00 00", types.WireType(types.Form.ARRAY, "", (2,), length=3)),
        ("04 02 0c 01 04 00 00", types.WireType(types.Form.MAP, "", (6, 2))),
        ("05 01 01 01 74 00 00 00", types.WireType(types.Form.GOB_ENCODER, "t")),
        ("06 00 00", types.WireType(types.Form.BINARY_MARSHALER)),
        ("07 00 00", types.WireType(types.Form.TEXT_MARSHALER)),
    ],
)
def test_every_form_is_decoded(definition: str, expected: types.WireType) -> None:
    assert defined(bytes.fromhex(definition)) == expected


def test_equal_definitions_share_a_table() -> None:
    first, _ = types.EMPTY.extend(64, ACK)
    again, _ = types.EMPTY.extend(64, ACK)
    assert first is again
    assert first.extend(65, ACK)[0] is again.extend(65, ACK)[0]
    assert types.EMPTY.extend(65, ACK)[0] is not first
    assert types.EMPTY.types == {}


@pytest.mark.parametrize("type_id", [0, 1, 63, 64])
def test_an_id_cannot_be_defined_twice_or_reserved(type_id: int) -> None:
    table, _ = types.EMPTY.extend(64, ACK)
    with pytest.raises(errors.RemoteProtocolError, match="defined twice or reserved"):
        table.extend(type_id, ACK)


@pytest.mark.parametrize("definition", ["", "00", "08 00", "03 05 00", "03 02 7f 00 00 00", "05 02 00 00"])
def test_invalid_definitions(definition: str) -> None:
    with pytest.raises(errors.RemoteProtocolError, match="gob: "):
        types.EMPTY.extend(64, bytes.fromhex(definition))


def test_the_number_of_types_and_fields_is_limited() -> None:
    table = types.EMPTY
    for type_id in range(64, 64 + types.MAX_PARTS):
        table, _ = table.extend(type_id, ACK)
    with pytest.raises(errors.RemoteProtocolError, match="more than 128 types and fields") as info:
        table.extend(5000, ACK)
    assert info.value.reason is reasons.DisconnectReason.MESSAGE_TOO_LARGE


@pytest.mark.parametrize("fields", [types.MAX_PARTS, types.MAX_PARTS + 1, 5000])
def test_the_fields_of_one_struct_are_limited(fields: int) -> None:
    definition = b"\x03\x02" + scalars.encode_uint(fields) + bytes(fields) + b"\0\0"
    with pytest.raises(errors.RemoteProtocolError, match="more than 128 types and fields"):
        types.EMPTY.extend(64, definition)


def test_the_bytes_of_definitions_are_limited() -> None:
    large = b"\x03\x01\x01" + scalars.encode_bytes(bytes(10_000)) + b"\x00\x00\x00"
    table, _ = types.EMPTY.extend(64, large)
    with pytest.raises(errors.RemoteProtocolError, match="bytes of definitions"):
        table.extend(65, large)


def test_bytes_after_a_definition_are_left() -> None:
    _, length = types.EMPTY.extend(64, ACK + b"more")
    assert length == len(ACK)
