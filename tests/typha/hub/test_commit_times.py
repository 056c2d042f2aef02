"""When sequences were published: exact for new ones, rough for old ones, and never of another time."""

import pytest

from typha.hub import commit_times


def test_times_of_commits() -> None:
    times = commit_times.CommitTimes()
    assert times.newest is None
    assert times.time_of(1) is None
    times.note(3, 10.0)
    times.note(5, 20.0)
    assert [times.time_of(sequence) for sequence in (1, 3, 4, 5, 6)] == [10.0, 10.0, 20.0, 20.0, None]
    assert times.newest == 20.0


def test_commits_of_one_moment_share_an_entry() -> None:
    times = commit_times.CommitTimes()
    for number in range(1, 1001):
        times.note(number, 50.0 + number * 0.0001)
    times.note(1001, 900.0)
    assert times.time_of(1) == times.time_of(1000) == pytest.approx(50.0001)
    assert times.time_of(1001) == 900.0


def test_a_storm_of_commits_is_bounded_and_keeps_rough_times() -> None:
    """Two days of a commit every 0.2 s: the last minutes are exact, the last day is known to a minute."""
    times = commit_times.CommitTimes()
    count = 2 * 86_400 * 5
    for number in range(1, count + 1):
        times.note(number, number * 0.2)
    for sequence in (count, count - 500):
        assert times.time_of(sequence) == pytest.approx(sequence * 0.2)
    hour_ago = count - 3600 * 5
    assert times.time_of(hour_ago) == pytest.approx(hour_ago * 0.2, abs=61.0)
    assert times.time_of(count - 20 * 3600 * 5) is not None
    assert times.time_of(1) is None
