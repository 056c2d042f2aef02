"""Kubernetes quantities as whole numbers, with the peculiar results of Go's arithmetic."""

import pytest

from cache.feeds.calico.codecs import quantity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("00", 0),
        ("100", 100),
        ("+2M", 2_000_000),
        ("-5", -5),
        ("1.5k", 1500),
        ("1500m", 2),
        ("0.5", 1),
        ("1n", 1),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1e-30", 1),
        ("1E", 10**18),
        ("1.Ki", 1024),
        (".5Gi", 1 << 29),
        ("-", 0),
        (".", 0),
        ("10E", 0),
        ("1e30", 0),
        ("1e99999999999", 0),
        ("100Ei", (1 << 63) - 1),
        ("9223372036854775807", (1 << 63) - 1),
        ("9223372036854775808", -(1 << 63)),
        ("12345678901234567890", 12345678901234567890 - (1 << 64)),
    ],
)
def test_quantities(text: str, expected: int) -> None:
    assert quantity.whole_value(text) == expected


@pytest.mark.parametrize("text", ["", " 1", "1 ", "5K", "5ki", "1e", "5e+", "1e1.5", "x", "1_0", "9" * 1000])
def test_invalid_quantities(text: str) -> None:
    assert quantity.whole_value(text) is None
