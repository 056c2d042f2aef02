"""Tests of loadtest.scenarios.crash, small: real processes, real sockets."""

import dataclasses
from pathlib import Path

import pytest

from loadtest.reporting import dashboard
from loadtest.scenarios import crash, registry
from loadtest.swarm import control
from tests.loadtest.scenarios.test_fanout import SMALL

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["kill", "worker-kill"])
async def test_all_agents_come_back_after_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(crash, "BEFORE_SECONDS", 0.5)
    sizes = dataclasses.replace(SMALL, folder=tmp_path, seconds=1.0, protocols=tuple(control.Protocol))
    with dashboard.View("test") as screen:
        made = await registry.SCENARIOS[name](sizes, screen)
    assert [check.line() for check in made.checks if not check.passed] == []
    assert made.data["verdict"]["converged"] == 20
    assert made.facts["connection lost to in sync again"].endswith(" over 18 connections")
    if name == "worker-kill":
        assert made.facts["connections ended, as the service counts them"] == "20 worker-died"
    assert {"nobody is refused", "no agent is left in silence for longer than the ping interval"} <= {
        check.name for check in made.checks
    }
