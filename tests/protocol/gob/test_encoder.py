"""Values of many shapes, encoded and decoded, with fields that the decoder knows or does not know."""

import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.gob import decoder, encoder, schema

TIME = schema.Opaque("Time", lambda data: None)
NAMES = schema.Slice("[]string", schema.STRING)
LIMITS = decoder.Limits(message_bytes=1 << 20, skipped_values=1 << 20)


def fields(*kinds: tuple[str, schema.Kind]) -> list[schema.Field]:
    return [schema.Field(name, kind, operator.itemgetter(name)) for name, kind in kinds]


def maker(*names: str) -> Any:
    return lambda *values: dict(zip(names, values, strict=True))


INNER = schema.Struct("Inner", fields(("A", schema.STRING), ("B", schema.INTERFACE)), maker("A", "B"))
INNERS = schema.Slice("[]Inner", INNER)
LISTS = schema.Slice("[][]string", NAMES)
SHAPES: dict[str, schema.Kind] = {
    "Flag": schema.BOOL,
    "Signed": schema.INT,
    "Unsigned": schema.UINT,
    "Small": schema.UINT8,
    "Text": schema.STRING,
    "Data": schema.BYTES,
    "When": TIME,
    "Any": schema.INTERFACE,
    "Names": NAMES,
    "Lists": LISTS,
    "Inners": INNERS,
}
ALL = schema.Struct("All", fields(*SHAPES.items()), maker(*SHAPES))
LITTLE = schema.Struct("Little", fields(("Unsigned", schema.UINT), ("New", schema.STRING)), maker("Unsigned", "New"))
KINDS: tuple[schema.Defined, ...] = (ALL, INNER, INNERS, NAMES, LISTS, TIME)
ENCODER = encoder.Encoder(KINDS, {})

texts = st.text(max_size=20)
inners = st.fixed_dictionaries({"A": texts, "B": st.none() | texts})
values = st.fixed_dictionaries(
    {
        "Flag": st.booleans(),
        "Signed": st.integers(min_value=-(2**63), max_value=2**63 - 1),
        "Unsigned": st.integers(min_value=0, max_value=2**64 - 1),
        "Small": st.integers(min_value=0, max_value=255),
        "Text": texts,
        "Data": st.binary(max_size=200),
        "When": st.binary(min_size=1, max_size=20),
        "Any": st.none() | texts,
        "Names": st.lists(texts, max_size=3),
        "Lists": st.lists(st.lists(texts, max_size=2), max_size=2),
        "Inners": st.lists(inners, max_size=3),
    }
)


def read(top: schema.Struct, data: bytes, *, step: int = 1 << 20) -> list[Any]:
    reader = decoder.Decoder(top, schema.REGISTERED, limits=LIMITS)
    found = []
    for start in range(0, len(data), step):
        reader.receive(data[start : start + step])
        while (value := reader.next_value()) is not decoder.NEED_DATA:
            found.append(value)
    assert not found or reader.pending_bytes == 0
    return found


def listed(value: dict[str, Any]) -> dict[str, Any]:
    """The decoded values: an empty slice in a field is not sent."""
    return {name: part or () if isinstance(part, list) else part for name, part in value.items()}


@given(st.lists(values, max_size=3), st.sampled_from([1, 7, 1 << 20]))
def test_round_trip(content: list[dict[str, Any]], step: int) -> None:
    data = ENCODER.definitions + b"".join(ENCODER.message(ALL, value) for value in content)
    assert read(ALL, data, step=step) == [listed(value) for value in content]


@given(st.lists(values, max_size=3), st.sampled_from([1, 7, 1 << 20]))
def test_unknown_fields_are_skipped(content: list[dict[str, Any]], step: int) -> None:
    data = ENCODER.definitions + b"".join(ENCODER.message(ALL, value) for value in content)
    expected = [{"Unsigned": value["Unsigned"], "New": ""} for value in content]
    assert read(LITTLE, data, step=step) == expected


def test_ids_can_be_chosen() -> None:
    assert encoder.Encoder(KINDS, {}).id_of(INNER) == 65
    assert encoder.Encoder(KINDS, {}, ids=range(1000, 1006)).id_of(INNER) == 1001
    with pytest.raises(ValueError, match="zip"):
        encoder.Encoder(KINDS, {}, ids=[1])


def test_some_kinds_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="cannot be encoded"):
        ENCODER.value(schema.FLOAT, 1.0)
