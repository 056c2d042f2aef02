"""Tests of loadtest.scenarios.hubstop."""

import functools
from pathlib import Path

import pytest

from loadtest.scenarios import hubstop
from tests.loadtest.scenarios import small

pytestmark = pytest.mark.slow


async def test_no_agent_is_lost_while_the_hub_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubstop, "AFTER_SECONDS", 1.0)
    scenario = functools.partial(hubstop.hub_stop, ping_interval_seconds=1.0)
    made = await small.run(scenario, tmp_path, seconds=3.0, protocols=small.BOTH)
    silence = next(check for check in made.checks if "silence" in check.name)
    assert 0.5 <= float(silence.detail.split()[0]) < 2.0, "pings come without the hub"
