"""Tests of loadtest.scenarios.slow."""

from pathlib import Path

import pytest

from loadtest.scenarios import slow
from tests.loadtest.scenarios import small

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["stalled", "slow-readers"])
async def test_agents_that_are_slow_converge(tmp_path: Path, name: str) -> None:
    made = await small.run(name, tmp_path, seconds=1.0, rounds=1, protocols=small.BOTH)
    assert "memory stays within what it was when idle, the log's budget and 20 %" in {
        check.name for check in made.checks
    }


async def test_the_lag_of_an_agent_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "LAG_SEEN_WITHIN_SECONDS", 0.5)
    made = await small.run("lag", tmp_path, seconds=1.0)
    assert "kB/s for each agent" in made.checks[0].detail
