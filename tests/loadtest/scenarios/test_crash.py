"""Tests of loadtest.scenarios.crash."""

import functools
from pathlib import Path

import pytest

from loadtest.scenarios import crash
from tests.loadtest.scenarios import small

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["kill", "worker-kill"])
async def test_all_agents_come_back_after_a_kill(tmp_path: Path, name: str) -> None:
    made = await small.run(name, tmp_path, seconds=1.0, protocols=small.BOTH)
    assert made.facts["connection lost to in sync again"].endswith(" over 18 connections")
    if name == "worker-kill":
        assert made.facts["connections ended, as the service counts them"] == "20 worker-died"
    assert {"no agent is refused", "no agent is left in silence for longer than the ping interval"} <= {
        check.name for check in made.checks
    }


async def test_no_agent_is_lost_while_the_hub_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "AFTER_STOP_SECONDS", 1.0)
    scenario = functools.partial(crash.hub_stop, ping_interval_seconds=1.0)
    made = await small.run(scenario, tmp_path, seconds=12.0, protocols=small.BOTH)
    silence = next(check for check in made.checks if "silence" in check.name)
    # Far from both the interval and the time without the hub, because agents and workers may wait for a CPU.
    assert 0.5 <= float(silence.detail.split()[0]) < 9.0, "pings come without the hub"
