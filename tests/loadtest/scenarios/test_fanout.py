"""Tests of loadtest.scenarios.fanout."""

from pathlib import Path

import pytest

from tests.loadtest.scenarios import small

pytestmark = pytest.mark.slow


async def test_steady_over_mutual_tls_with_both_protocols(tmp_path: Path) -> None:
    made = await small.run("steady", tmp_path, protocols=small.BOTH, tls=True)
    assert made.facts["delivery latency, write to read"].startswith("p50 ")


async def test_a_storm_of_both_protocols_refuses_no_agent(tmp_path: Path) -> None:
    made = await small.run("storm", tmp_path, seconds=1.0, protocols=small.BOTH)
    assert made.facts["connection lost to in sync again"].endswith(" over 18 connections")
    refused = next(check for check in made.checks if check.name == "no agent is refused")
    assert refused.detail == "connections that did not come to be in sync: none; goodbyes: none"
