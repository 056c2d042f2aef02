"""Durations, read and printed as Go does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.feeds.calico.codecs import durations


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("24h", "24h0m0s"),
        ("0" * 5_000 + "1h", "1h0m0s"),
        ("90s", "1m30s"),
        ("1500ms", "1.5s"),
        ("100ms", "100ms"),
        ("1500us", "1.5ms"),
        ("1µs", "1µs"),
        ("1μs", "1µs"),
        ("12ns", "12ns"),
        ("0", "0s"),
        ("-0", "0s"),
        ("1.5h", "1h30m0s"),
        (".5m", "30s"),
        ("+1.s", "1s"),
        ("-1m0.5s", "-1m0.5s"),
        ("1h2m3s4ms", "1h2m3.004s"),
        ("0.3333333333333333333333h", "20m0s"),
        ("9223372036854775807ns", "2562047h47m16.854775807s"),
        ("-9223372036854775808ns", "-2562047h47m16.854775808s"),
    ],
)
def test_durations_are_reprinted_as_go_does(text: str, printed: str) -> None:
    assert durations.text(durations.parse(text)) == printed


@pytest.mark.parametrize(
    "text",
    ["", "+", "1", "s", ".s", "1d", "1 s", "1s ", "1h-5m", "1e3s", "--1s", "9223372036854775808ns", "1" * 30 + "h"],
)
def test_invalid_durations(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        durations.parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", "90"),
        ("1500ms", "1.5"),
        ("24h", "86400"),
        ("999999s", "999999"),
        ("1000000s", "1e+06"),
        ("999999h", "3.5999964e+09"),
        ("100us", "0.0001"),
        ("10us", "1e-05"),
        ("0s", "0"),
        ("-1.5s", "-1.5"),
        ("1h2m3s4ms", "3723.004"),
    ],
)
def test_seconds_are_printed_as_a_float(text: str, seconds: str) -> None:
    assert durations.seconds_text(durations.parse(text)) == seconds


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("50ms", "50"), ("1.5ms", "1.5"), ("1000s", "1e+06"), ("1ns", "1e-06")]
)
def test_milliseconds_are_printed_as_a_float(text: str, milliseconds: str) -> None:
    assert durations.milliseconds_text(durations.parse(text)) == milliseconds


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_every_duration_reads_back_to_the_second(nanoseconds: int) -> None:
    # Not to the nanosecond: Go itself reads fractions in floating point.
    assert abs(durations.parse(durations.text(nanoseconds)) - nanoseconds) <= 1


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_reads_back(value: float) -> None:
    assert float(durations.float_text(value)) == value
