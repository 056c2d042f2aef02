"""Scalar values, read as Go reads them."""

from typing import Any

import pytest

from cache.feeds.calico.codecs import scalars


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("2026-01-02T03:04:05,5Z", "2026-01-02T03:04:05Z"),
        ("2026-01-01T00:30:00+01:00", "2025-12-31T23:30:00Z"),
        ("0001-01-01T00:00:00Z", ""),
    ],
)
def test_times_are_printed_in_utc(text: str, printed: str) -> None:
    assert scalars.parse_time(text) == printed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-01-02",
        "2026-02-30T00:00:00Z",
        "2026-01-02T03:04:60Z",
        "2026-01-02t03:04:05z",
        "9999-12-31T23:59:59-01:00",
    ],
)
def test_invalid_times(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        scalars.parse_time(text)


@pytest.mark.parametrize(
    ("value", "port"),
    [
        (80, 80),
        ("80", 80),
        ("90:90", 90),
        ("1:2", "1:2"),
        ("00080", 80),
        ("http", "http"),
        ("a.b_c-D", "a.b_c-D"),
        (0, 0),
    ],
)
def test_ports_are_read_in_all_forms(value: Any, port: int | str) -> None:
    assert scalars.parse_port(value) == port


@pytest.mark.parametrize(
    "value", [65536, -1, "65536", "2:1", "1:65536", "", "not a port!", "a" * 129, True, 1.0, "9" * 5000]
)
def test_invalid_ports(value: Any) -> None:
    with pytest.raises(ValueError, match=r"not a|not in order"):
        scalars.parse_port(value)
