"""Tests of loadtest.scenarios.mixed."""

from pathlib import Path

import pytest

from tests.loadtest.scenarios import small

pytestmark = pytest.mark.slow


async def test_both_protocols_hold_the_same_map(tmp_path: Path) -> None:
    made = await small.run("mixed", tmp_path, seconds=1.0, rounds=1, compressed=False)
    for protocol in ("native", "typha"):
        assert made.facts[f"{protocol} beside the other, delivery latency"].startswith("p50 ")
