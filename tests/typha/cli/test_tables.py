"""Durations, sizes and tables as people read them."""

import math

import pytest

from typha.cli import tables


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((None, "-"), (0.0, "0s"), (0.04, "0s"), (-1.0, "0s"), (0.05, "0.1s"), (0.31, "0.3s"), (9.94, "9.9s")),
        *((10.0, "10s"), (59.4, "59s"), (59.6, "1m"), (60.0, "1m"), (185.0, "3m5s"), (1800.0, "30m")),
        *((math.inf, "-"), (-math.inf, "-"), (math.nan, "-")),
        *((3600.0, "1h"), (7800.0, "2h10m"), (86_400.0, "1d"), (90_000.0, "1d1h"), (30 * 86_400.0, "30d")),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (10_240, "10 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert tables.size(count) == text


def test_a_table_is_aligned_and_cut_and_cannot_act_on_a_terminal() -> None:
    lines = tables.lines(("A", "NAME"), [("", "x" * 100), ("1\x1b[2J", "y")], width_max=10)
    assert lines == ["A          NAME", "-          " + "x" * 9 + "…", "1\\x1b[2J   y"]
