"""Tests of loadtest.scenarios.real.direct, on a real API server."""

import dataclasses
import json
import pathlib

import pytest

from loadtest.environment import direct as direct_agents
from loadtest.reporting import dashboard
from loadtest.scenarios.real import direct
from tests.loadtest.scenarios import small

KINDS = len(direct_agents.kinds())


@pytest.mark.control_plane
@pytest.mark.go
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_agents_cost_the_api_server_nothing_behind_the_service(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "SETTLE_SECONDS", 0.5)
    settings = dataclasses.replace(small.SMALL, folder=tmp_path, rounds=1)
    with dashboard.Dashboard("test") as screen:
        made = await direct.run(settings, screen)
    assert [check.line() for check in made.checks if not check.passed] == []
    rows = [direct.Row(**row) for row in made.data["rows"]]
    assert [(row.replicas, row.agents) for row in rows[:4]] == [(0, 0), (0, 5), (0, 10), (0, 20)]
    assert [(row.replicas, row.agents) for row in rows[4:]] == [(1, 10), (1, 20), (3, 20), (3, 20)]
    assert [row.way for row in rows[5:]] == ["proxy", "proxy", "tiers"]
    assert rows[7].watches == rows[5].watches < rows[6].watches
    assert rows[3].delivered == rows[3].expected == 20 * 60
    assert 0.0 < rows[3].p50_ms <= rows[3].p99_ms < 10_000
    assert rows[3].start_sent_mb > rows[1].start_sent_mb > 0.1
    assert rows[6].service_cores > rows[5].service_cores > 0.0
    assert {row["way"] for row in json.loads((tmp_path / "api-server-load.json").read_text())["rows"]} == {
        "direct",
        "proxy",
    }


def row(agents: int, replicas: int, watches: float, *, delivered: int = 7, way: str = "") -> direct.Row:
    return direct.Row(way, replicas, agents, watches=watches, delivered=delivered, expected=7)


def failed(*rows: direct.Row) -> list[str]:
    return [check.name.split()[-1] for check in direct.judge(list(rows)) if not check.passed]


def test_the_checks_fail_where_agents_cost_watches_or_lose_changes() -> None:
    good = [row(0, 0, 35), row(20, 0, 35 + 20 * KINDS), row(10, 1, 61), row(20, 3, 61, way="tiers"), row(20, 1, 61)]
    assert failed(*good) == []
    assert failed(*good[:4], row(20, 1, 62)) == ["watches", "watches"]
    assert failed(*good, row(20, 3, 62, way="tiers")) == ["watches"]
    assert failed(good[0], row(20, 0, 35), *good[2:]) == ["kind"]
    assert failed(*good, row(20, 3, 113, delivered=6)) == ["agent"]
