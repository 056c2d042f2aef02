"""What the hub keeps of the workers' latest reports."""

import pytest

from protocol.reasons import DisconnectReason
from typha import clock
from typha.hub import recent
from typha.ipc import messages
from typha.observability import quantiles


def report(*seconds: float, ends: list[messages.End] | None = None) -> messages.ReportRecent:
    """A worker's report of deliveries that took so long, and of ends."""
    histogram = quantiles.Histogram()
    for value in seconds:
        histogram.record(value)
    return messages.ReportRecent(histogram.to_list(), ends or [])


def end(at: float, node: str = "n1") -> messages.End:
    """A connection that ended at this monotonic time."""
    return messages.End(at, node, "10.0.0.1:5", "felix", DisconnectReason.PONG_TIMEOUT, 60.0)


def test_latency_of_all_workers_is_added_up_and_taken_once() -> None:
    kept = recent.Recent()
    kept.take(1, report(0.001, 0.001, 0.001))
    kept.take(2, report(1.0))
    taken = kept.take_latency()
    assert taken.count == 4
    assert taken.quantile(0.5) == pytest.approx(0.001, rel=0.07)
    assert taken.quantile(0.99) == pytest.approx(1.0, rel=0.07)
    assert kept.take_latency().count == 0


def test_ends_have_a_time_that_has_been_and_only_the_newest_stay() -> None:
    kept = recent.Recent()
    with clock.replaced(monotonic=lambda: 100.0, time_ns=lambda: 5_000 * 10**9):
        kept.take(3, report(ends=[end(98.5)]))
        [first] = kept.ends
        assert (first.at, first.node, first.worker) == (98.5, "n1", 3)
        kept.take(3, report(ends=[end(1e9)]))
        assert kept.ends[-1].at == 100.0  # not in the future, whatever a worker says
        for number in range(recent.ENDS_MAX):
            kept.take(3, report(ends=[end(99.0, f"n{number}")]))
    assert len(kept.ends) == recent.ENDS_MAX
    assert kept.ends[0].node == "n0"
