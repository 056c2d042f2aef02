"""Tests of loadtest.swarm.timeline."""

import pytest

from loadtest.swarm import timeline


def test_lag_is_the_age_of_the_first_missing_sequence() -> None:
    line = timeline.Timeline()
    line.reached(b"a", 1, 0)
    line.reached(b"a", 5, 10**9)
    line.reached(b"a", 5, 5 * 10**9)  # another agent, later
    line.reached(b"a", 9, 2 * 10**9)
    now = 4 * 10**9
    assert line.lag_seconds(b"a", 9, now) == 0
    assert line.lag_seconds(b"a", 5, now) == 2
    assert line.lag_seconds(b"a", 3, now) == 3
    assert line.lag_seconds(b"other", 3, now) == 0


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MAX_SEQUENCES", 10)
    line = timeline.Timeline()
    for sequence in range(100):
        line.reached(b"a", sequence, sequence)
    assert line.lag_seconds(b"a", 0, 10**9 + 90) >= 1
    for number in range(20):
        line.reached(bytes([number]), 1, 0)
    assert line.lag_seconds(b"a", 0, 10**9) == 0
