"""Numbers and strings, with the examples from Go's documentation of the package."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors
from protocol.gob import scalars


@pytest.mark.parametrize(
    ("number", "encoded"),
    [(0, "00"), (7, "07"), (127, "7f"), (128, "ff80"), (256, "fe0100"), (4095, "fe0fff"), (4096, "fe1000")],
)
def test_unsigned_numbers(number: int, encoded: str) -> None:
    assert scalars.encode_uint(number).hex() == encoded


@pytest.mark.parametrize(
    ("number", "encoded"), [(0, "00"), (2, "04"), (-1, "01"), (-65, "ff81"), (64, "ff80"), (-129, "fe0101")]
)
def test_signed_numbers(number: int, encoded: str) -> None:
    assert scalars.encode_int(number).hex() == encoded


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_unsigned_round_trip(number: int) -> None:
    data = scalars.encode_uint(number)
    assert scalars.Scanner(data).uint() == number
    assert scalars.split_uint(b"x" + data, 1) == (number, 1 + len(data))
    assert [scalars.split_uint(data[:length], 0) for length in range(len(data))] == [None] * len(data)


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_signed_round_trip(number: int) -> None:
    assert scalars.Scanner(scalars.encode_int(number)).signed() == number


@given(st.text())
def test_string_round_trip(text: str) -> None:
    assert scalars.Scanner(scalars.encode_text(text)).text() == text


def test_integers_may_be_longer_than_necessary() -> None:
    assert scalars.Scanner(bytes.fromhex("fe0002")).uint() == 2


def test_floats_have_reversed_bytes() -> None:
    assert scalars.Scanner(bytes.fromhex("fe3140")).double() == 17.0


def test_invalid_utf_8_is_replaced() -> None:
    assert scalars.Scanner(b"\x02a\xff").text() == "a�"


@pytest.mark.parametrize("data", ["", "ff", "fe01", "f7" + "00" * 9, "80" + "00" * 200])
def test_invalid_integers(data: str) -> None:
    with pytest.raises(errors.RemoteProtocolError, match="gob: "):
        scalars.Scanner(bytes.fromhex(data)).uint()


def test_a_length_past_the_end() -> None:
    for read in (scalars.Scanner.raw, scalars.Scanner.text, scalars.Scanner.skip_bytes):
        with pytest.raises(errors.RemoteProtocolError, match="3 bytes announced, 2 left"):
            read(scalars.Scanner(b"\x03ab"))


def test_a_length_of_nine_bytes_is_refused_immediately() -> None:
    with pytest.raises(errors.RemoteProtocolError, match="9 bytes"):
        scalars.split_uint(b"\xf7", 0)
