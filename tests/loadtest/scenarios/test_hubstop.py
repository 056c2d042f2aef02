"""Tests of loadtest.scenarios.hubstop, small: real processes, real sockets."""

import dataclasses
from pathlib import Path

import pytest

from loadtest.reporting import dashboard
from loadtest.scenarios import hubstop
from loadtest.swarm import control
from tests.loadtest.scenarios.test_fanout import SMALL

pytestmark = pytest.mark.slow


async def test_nobody_is_lost_while_the_hub_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubstop, "AFTER_SECONDS", 1.0)
    sizes = dataclasses.replace(SMALL, folder=tmp_path, seconds=3.0, protocols=tuple(control.Protocol))
    with dashboard.View("test") as screen:
        made = await hubstop.hub_stop(sizes, screen, ping_interval_seconds=1.0)
    assert [check.line() for check in made.checks if not check.passed] == []
    assert made.data["verdict"]["converged"] == 20
    silence = next(check for check in made.checks if "silence" in check.name)
    assert 0.5 <= float(silence.detail.split()[0]) < 2.0, "pings come without the hub"
