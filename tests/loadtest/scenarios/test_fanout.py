"""Tests of loadtest.scenarios.fanout, small: real processes, real sockets."""

import dataclasses
from pathlib import Path

import pytest

from loadtest.reporting import dashboard
from loadtest.scenarios import fanout, fixture
from loadtest.swarm import control

pytestmark = pytest.mark.slow

SMALL = fixture.Settings(
    agents=20, public_agents=2, seconds=2.0, updates_per_second=30.0, nodes=3, pods=60, feed="felix", judge_times=False
)


async def test_steady_over_mutual_tls_with_both_protocols(tmp_path: Path) -> None:
    sizes = dataclasses.replace(SMALL, folder=tmp_path, protocols=tuple(control.Protocol), tls=True)
    with dashboard.View("test") as screen:
        made = await fanout.steady(sizes, screen)
    assert [check.line() for check in made.checks if not check.passed] == []
    assert made.data["verdict"]["converged"] == 20
    assert made.facts["delivery latency, write to read"].startswith("p50 ")


async def test_a_storm_of_both_protocols_refuses_nobody(tmp_path: Path) -> None:
    sizes = dataclasses.replace(SMALL, folder=tmp_path, seconds=1.0, protocols=tuple(control.Protocol))
    with dashboard.View("test") as screen:
        made = await fanout.storm(sizes, screen)
    assert [check.line() for check in made.checks if not check.passed] == []
    assert made.data["verdict"]["converged"] == 20
    assert made.facts["connection lost to in sync again"].endswith(" over 18 connections")
    refused = next(check for check in made.checks if check.name == "nobody is refused")
    assert refused.detail == "connections that did not come to be in sync: none; goodbyes: none"
