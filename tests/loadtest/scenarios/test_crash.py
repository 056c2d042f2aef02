"""Tests of loadtest.scenarios.crash."""

from pathlib import Path

import pytest

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
