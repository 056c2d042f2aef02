"""Tests of loadtest.scenarios.fleet: the figures from paths, and a small run."""

import json
from pathlib import Path

import pytest

from loadtest.environment import wall_clock
from loadtest.reporting import measure
from loadtest.scenarios import fleet
from loadtest.swarm import control
from tests.loadtest.scenarios import small

OLD, NEW = ("127.0.0.1", 1), ("127.0.0.1", 2)
SECOND = 10**9


def visit(address: tuple[str, int], **seconds: float) -> control.Visit:
    times = [int(seconds.get(name, 0.0) * SECOND) for name in ("waited", "connected", "in_sync", "ended")]
    return control.Visit(address, times[0], connected_ns=times[1], in_sync_ns=times[2], ended_ns=times[3])


def test_a_gap_is_from_the_end_of_one_server_to_the_hello_of_the_next() -> None:
    visits = [
        visit(OLD, connected=10.0, in_sync=10.5, ended=20.0),
        visit(OLD, waited=0.25, ended=20.25),
        visit(NEW, waited=0.5, connected=21.0, in_sync=21.5, ended=30.0),
        visit(OLD, waited=1.0),
    ]
    [gap] = fleet.gaps([control.AgentPath("a", visits)])
    assert (gap.seconds, gap.waited_seconds, gap.excess_seconds, gap.in_sync_seconds) == (1.0, 0.75, 0.25, 1.5)
    assert (gap.tries, gap.from_to, gap.ended_ns) == (2, (OLD, NEW), 20 * SECOND)


def test_snapshots_are_counted_by_replica_and_second() -> None:
    paths = [
        control.AgentPath("a", [visit(OLD, connected=1.0, in_sync=1.1), visit(NEW, connected=5.0, in_sync=5.9)]),
        control.AgentPath("b", [visit(OLD, connected=1.0, in_sync=1.9), visit(OLD)]),
    ]
    assert fleet.snapshots_per_second(paths) == {OLD: {1: 2}, NEW: {5: 1}}


def histogram(*counts: int) -> measure.Metrics:
    """A page on which so many values are below each of some bounds, in all."""
    bounds = ("0.01", "0.1", "1.0", "+Inf")
    lines = [
        f'typha_propagation_seconds_bucket{{syncer="felix",le="{le}"}} {n}'
        for le, n in zip(bounds, counts, strict=True)
    ]
    return measure.Metrics("\n".join(["# TYPE typha_propagation_seconds histogram", *lines, ""]))


def test_the_services_share_of_the_latency_is_that_of_a_span_and_of_the_same_process() -> None:
    before, after = histogram(1000, 1000, 1000, 1000), histogram(1090, 1100, 1100, 1100)
    assert fleet.service_p99_seconds([(before, after)]) == pytest.approx(0.01 + 0.09 * 0.9)
    assert fleet.service_p99_seconds([(before, after), (after, before)]) == pytest.approx(0.091), "a new process"
    assert fleet.service_p99_seconds([(before, histogram(1000, 1000, 1000, 1100))]) == 1.0, "at least"
    assert fleet.service_p99_seconds([(before, before)]) == 0.0
    assert fleet.service_p99_seconds([]) == 0.0


@pytest.mark.parametrize(
    ("text", "is_absurd"),
    [
        ("typha_stale_seconds 3.0", False),
        ("typha_stale_seconds -0.1", True),
        ("typha_stale_seconds 315360000", True),
        ("typha_client_lag_seconds_max 90000", True),
        ("typha_certificate_expiry_timestamp_seconds 2e9", False),
        ("process_start_time_seconds 1.8e9", False),
        ("typha_ping_latency_sum NaN\ntypha_ping_latency_count 0", False),
        ("typha_write_latency_secs_sum 1200\ntypha_write_latency_secs_count 3", False),
        ("typha_write_latency_secs_sum 3600\ntypha_write_latency_secs_count 1", True),
        ('a_seconds_sum{syncer="bgp"} 900\na_seconds_count{syncer="bgp"} 1\na_seconds_count{syncer="felix"} 9', True),
        ("typha_connections_active 100000", False),
    ],
)
def test_metrics_that_cannot_be_true(text: str, is_absurd: bool) -> None:
    assert bool(fleet.absurd(measure.Metrics(text + "\n"))) is is_absurd


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_small_fleet_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "ASKED_SECONDS_MAX", 6.0)
    monkeypatch.setattr(fleet, "SUSPENDED_SECONDS", 3.0)
    made = await small.run("fleet", tmp_path, seconds=2.0, replicas=2, protocols=small.BOTH)
    document = json.loads((tmp_path / "paths.json").read_text())
    assert [step["name"] for step in document["steps"]] == [
        "nothing happens",
        "typha-1 is replaced",
        "typha-2 is replaced",
        "a replica crashes",
        *(["the wall clock of a replica jumps"] if wall_clock.library() else []),
        "a replica stands still",
        "one replica loses the API server",
        "all replicas lose the API server",
    ]
    assert len(document["agents"]) == 18, "the two of the public client have no path"
    for path in document["agents"].values():
        assert path[0]["replica"] in ("typha-1", "typha-2")
        assert path[-1]["replica"] in ("typha-3", "typha-4")
        assert not path[-1]["ended"]
    stale = next(check for check in made.checks if "keep their clients" in check.name)
    assert "9 agents were told" in stale.detail, "those of the native protocol"
