"""When clients are told to go."""

import itertools

import pytest

from typha.ipc import messages as ipc
from typha.worker import departures


@pytest.mark.parametrize(
    ("seconds", "interval_seconds_max", "counts", "whole_seconds"),
    [
        (300, 1, [1000], 285),
        (300, 1, [100], 100),
        (300, 1, [5], 5),
        (4, 10, [3], 3.8),
        (300, 1, [67] * 10 + [66] * 5, 285),
        (300, 1, [7] * 10 + [6] * 5, 100),
        (300, 1, [1000] + [0] * 13 + [500], 285),
        (300, 1, [1] * 5 + [0] * 10, 5),
        (300, 1, [667] * 15, 285),
        (30, 1, [2500] * 4, 28.5),
    ],
)
def test_all_workers_together_drain_as_the_original_does(
    seconds: float, interval_seconds_max: float, counts: list[int], whole_seconds: float
) -> None:
    """The times are those of docs/reference/typha-behaviour.md, section 8, for one process."""
    clients = sum(counts)
    times: list[float] = []
    for place, count in enumerate(counts):
        drain = ipc.Drain(seconds, interval_seconds_max, clients - count, phase=place / len(counts))
        times += itertools.islice(departures.farewell_times(drain, count), count)
    times.sort()
    assert times[-1] == pytest.approx(whole_seconds, rel=0.1)
    assert times[-1] < seconds
    interval_seconds = whole_seconds / clients
    if clients > 20:
        # Never much faster than the original, nor several workers at a time.
        ten_later = zip(times, times[10:], strict=False)
        assert min(later - sooner for sooner, later in ten_later) > interval_seconds * 4


def test_leavers_are_spread_over_the_time() -> None:
    clients = [object() for _ in range(100)]
    found = departures.leavers(clients, 50.0, 1000.0)
    assert {one for _, one in found} == set(clients)
    assert [one for _, one in found] != clients
    assert all(1000.0 + place / 2 <= at <= 1000.5 + place / 2 for place, (at, _) in enumerate(found))
    assert not departures.leavers([], 50.0, 1000.0)
