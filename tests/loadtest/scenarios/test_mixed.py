"""Tests of loadtest.scenarios.mixed, small: real processes, real sockets."""

import dataclasses
from pathlib import Path

import pytest

from loadtest.reporting import dashboard
from loadtest.scenarios import mixed
from tests.loadtest.scenarios.test_fanout import SMALL

pytestmark = pytest.mark.slow


async def test_both_protocols_hold_the_same_map(tmp_path: Path) -> None:
    with dashboard.View("test") as screen:
        made = await mixed.mixed(
            dataclasses.replace(SMALL, folder=tmp_path, seconds=1.0, rounds=1, compressed=False), screen
        )
    assert [check.line() for check in made.checks if not check.passed] == []
    assert made.data["verdict"]["converged"] == 20
    for protocol in ("native", "typha"):
        assert made.facts[f"{protocol} beside the other, delivery latency"].startswith("p50 ")
