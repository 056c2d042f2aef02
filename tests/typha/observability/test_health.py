"""Health: reporters, timeouts, the table, draining."""

import pytest

from typha.observability.health import SYNC_SERVER, HealthAggregator, cache_reporter


def aggregator() -> HealthAggregator:
    made = HealthAggregator()
    made.register(SYNC_SERVER, now_seconds=0)
    made.register(cache_reporter("web"), now_seconds=0, ready=True)
    return made


def healthy() -> HealthAggregator:
    made = aggregator()
    made.report(SYNC_SERVER, now_seconds=0)
    made.report("web-cache", now_seconds=0, ready=True)
    return made


def test_before_the_first_report_the_service_is_neither_live_nor_ready() -> None:
    assert aggregator().liveness(0).status == 503
    assert aggregator().readiness(0).status == 503


def test_a_service_is_live_and_ready() -> None:
    assert healthy().liveness(1).status == 200
    assert healthy().readiness(1).status == 200


def test_a_service_is_live_but_not_ready() -> None:
    made = healthy()
    assert made.report("web-cache", now_seconds=1, ready=False)
    assert made.liveness(1).status == 200
    assert made.readiness(1).status == 503


def test_report_tells_whether_anything_has_changed() -> None:
    made = healthy()
    assert not made.report("web-cache", now_seconds=1, ready=True)
    assert made.report("web-cache", now_seconds=1, live=False, ready=True)


def test_a_service_is_not_live() -> None:
    made = healthy()
    made.report("web-cache", now_seconds=1, live=False, ready=True)
    assert made.liveness(1).status == 503


def test_a_silent_reporter_is_overdue() -> None:
    made = healthy()
    assert made.is_live(20)
    assert not made.is_live(20.1)
    assert not made.is_ready(20.1)
    made.report(SYNC_SERVER, now_seconds=30)
    made.report("web-cache", now_seconds=30, ready=True)
    assert made.is_ready(30)


def test_readiness_ignores_reporters_of_liveness_only() -> None:
    made = healthy()
    made.report("web-cache", now_seconds=30, ready=True)
    assert made.is_ready(30)
    assert not made.is_live(30)


def test_a_draining_service_is_live_but_not_ready() -> None:
    made = healthy()
    made.drain()
    assert made.liveness(1).status == 200
    status, body = made.readiness(1)
    assert status == 503
    assert "draining" in body


def test_unregistered_reporters_are_ignored() -> None:
    made = healthy()
    made.register("dns-cache", now_seconds=0, ready=True)
    assert not made.is_ready(1)
    made.unregister("dns-cache")
    assert made.is_ready(1)
    with pytest.raises(KeyError):
        made.report("dns-cache", now_seconds=1)


def test_table() -> None:
    made = healthy()
    made.register("dns-cache", now_seconds=-100, ready=True, timeout_seconds=90)
    made.report("web-cache", now_seconds=0, ready=False, detail="waiting\nfor pods")
    assert made.table(1) == (
        "+------------+---------+----------------+---------------------+------------------+\n"
        "| COMPONENT  | TIMEOUT | LIVENESS       | READINESS           | DETAIL           |\n"
        "+------------+---------+----------------+---------------------+------------------+\n"
        "| SyncServer | 20s     | reporting live | -                   |                  |\n"
        "| dns-cache  | 90s     | timed out      | timed out           |                  |\n"
        "| web-cache  | 20s     | reporting live | reporting non-ready | waiting for pods |\n"
        "+------------+---------+----------------+---------------------+------------------+"
    )
