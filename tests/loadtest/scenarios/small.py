"""Runs a scenario at a small size, with real processes and real sockets."""

import dataclasses
from pathlib import Path
from typing import Any

from loadtest.reporting import dashboard, report
from loadtest.scenarios import fixture, registry
from loadtest.swarm import control

BOTH = tuple(control.Protocol)
SMALL = fixture.Settings(
    agents=20, public_agents=2, seconds=2.0, updates_per_second=30.0, nodes=3, pods=60, feed="felix", judge_times=False
)


async def run(scenario: str | registry.Scenario, folder: Path, **settings: Any) -> report.Report:
    """The report of a scenario whose checks have all passed."""
    chosen = registry.SCENARIOS[scenario] if isinstance(scenario, str) else scenario
    with dashboard.Dashboard("test") as screen:
        made = await chosen(dataclasses.replace(SMALL, folder=folder, **settings), screen)
    assert [check.line() for check in made.checks if not check.passed] == []
    assert made.data["verdict"]["converged"] == SMALL.agents
    return made
