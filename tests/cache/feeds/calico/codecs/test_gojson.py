"""JSON as Go's encoding/json writes it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.feeds.calico.codecs import gojson

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('quote " backslash \\ slash /', r'"quote \" backslash \\ slash /"'),
        ("\n\r\t\b\f", r'"\n\r\t\b\f"'),
        ("\x00\x01\x1f\x7f", '"\\u0000\\u0001\\u001f\x7f"'),
        ("<a> & <b>", r'"\u003ca\u003e \u0026 \u003cb\u003e"'),
        ("line\u2028and\u2029paragraph, not \u2027", '"line\\u2028and\\u2029paragraph, not \u2027"'),
        ("é 😀 \ufffd", '"é 😀 \ufffd"'),
    ],
)
def test_strings_are_escaped_as_go_does(text: str, written: str) -> None:
    assert gojson.encode(text).decode() == written


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "0"),
        (-0.0, "-0"),
        (100, "100"),
        (1.0, "1"),
        (10.5, "10.5"),
        (-5.25, "-5.25"),
        (0.1, "0.1"),
        (1e-6, "0.000001"),
        (1.5e-7, "1.5e-7"),
        (1e-7, "1e-7"),
        (1e-10, "1e-10"),
        (1e20, "100000000000000000000"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e21, "1e+21"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (5e-324, "5e-324"),
        ((1 << 53) + 1, "9007199254740992"),
    ],
)
def test_floats_are_written_as_go_does(number: float, written: str) -> None:
    assert gojson.float_text(number) == written
    assert gojson.encode({"order": gojson.number(number)}) == f'{{"order":{written}}}'.encode()


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 10**400])
def test_floats_without_json_text_raise(number: float) -> None:
    with pytest.raises(ValueError, match="not a"):
        gojson.number(number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_written_float_reads_back(number: float) -> None:
    assert float(gojson.float_text(number)) == number


@given(JSON_VALUES)
def test_encoding_keeps_the_meaning(value: object) -> None:
    written = gojson.encode(value)
    assert json.loads(written) == value
    assert not set(b"<>&") & set(written)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers()))
def test_maps_are_sorted_by_the_bytes_of_their_keys(members: dict[str, int]) -> None:
    assert list(gojson.sorted_map(members)) == sorted(members, key=str.encode)


def test_omission_keeps_what_is_not_empty() -> None:
    members: dict[str, object] = {
        "none": None,
        "no": False,
        "zero": 0,
        "text": "",
        "list": [],
        "map": {},
        "raw": gojson.Raw(b""),
        "x": "y",
    }
    assert list(gojson.omit_empty(members)) == ["raw", "x"]


def test_compacting_removes_only_white_space() -> None:
    kept = gojson.compact(b'{ "b" : "a b\\u003c<" ,\n "a": 1.0 }')
    assert gojson.encode({"fields": kept}) == b'{"fields":{"b":"a b\\u003c\\u003c","a":1.0}}'


def test_a_megabyte_of_markup_is_escaped_quickly() -> None:
    assert len(gojson.encode("<&>" * 350_000)) == 6 * 3 * 350_000 + 2


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r'"\ud83d\uDE00"', "😀"),
        (r'"a\ud800b"', "a\ufffdb"),
        (r'"\uDC00"', "\ufffd"),
        (r'"\ud800\ud83d\ude00"', "\ufffd😀"),
        (r'"\ud800\u0041"', "\ufffdA"),
        (r'"\\ud800"', r"\ud800"),
        (r'"\\\ud800\n"', "\\\ufffd\n"),
    ],
)
def test_lone_surrogates_are_read_as_in_go(text: str, read: str) -> None:
    assert json.loads(gojson.without_lone_surrogates(text)) == read


@given(st.text(st.characters() | st.sampled_from("\ud800\udbff\udc00\udfff\\u")))
def test_text_without_lone_surrogates_can_be_encoded(text: str) -> None:
    read = json.loads(gojson.without_lone_surrogates(json.dumps(text)))
    assert read == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
