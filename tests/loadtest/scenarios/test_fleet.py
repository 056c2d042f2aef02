"""Tests of loadtest.scenarios.fleet: the figures from paths, and a small run."""

import json
from pathlib import Path

import pytest

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


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_small_fleet_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "ASKED_SECONDS_MAX", 6.0)
    made = await small.run("fleet", tmp_path, seconds=2.0, replicas=2, protocols=small.BOTH)
    document = json.loads((tmp_path / "paths.json").read_text())
    assert [step["name"] for step in document["steps"]] == [
        "nothing happens",
        "typha-1 is replaced",
        "typha-2 is replaced",
        "a replica crashes",
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
