"""Tests of loadtest.scenarios.slow, small: real processes, real sockets."""

import dataclasses
from pathlib import Path

import pytest

from loadtest.reporting import dashboard
from loadtest.scenarios import registry, slow
from loadtest.swarm import control
from tests.loadtest.scenarios.test_fanout import SMALL

pytestmark = pytest.mark.slow

BOTH = tuple(control.Protocol)


@pytest.mark.parametrize("name", ["stalled", "slow-readers"])
async def test_agents_that_are_slow_converge(tmp_path: Path, name: str) -> None:
    sizes = dataclasses.replace(SMALL, folder=tmp_path, seconds=1.0, rounds=1, protocols=BOTH)
    with dashboard.View("test") as screen:
        made = await registry.SCENARIOS[name](sizes, screen)
    assert [check.line() for check in made.checks if not check.passed] == []
    assert made.data["verdict"]["converged"] == 20
    assert "memory stays within what it was when idle, the log's budget and 20 %" in {
        check.name for check in made.checks
    }


async def test_an_agent_that_lags_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "LAG_SEEN_WITHIN_SECONDS", 0.5)
    with dashboard.View("test") as screen:
        made = await slow.lag(dataclasses.replace(SMALL, folder=tmp_path, seconds=1.0), screen)
    assert [check.line() for check in made.checks if not check.passed] == []
    assert "kB/s for each agent" in made.checks[0].detail
