"""Tests of loadtest.scenarios.protocols, small: real processes, real sockets."""

import dataclasses
import json
from pathlib import Path

import pytest

from loadtest.scenarios import fixture, protocols

NATIVE = protocols.Round(
    cpu_per_delivery=4e-6,
    memory_bytes_per_client=1000.0,
    socket_bytes_per_client=0.0,
    p50=0.001,
    p99=0.002,
    snapshot_bytes=1.0,
)


@pytest.mark.slow
async def test_compares_both_protocols(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "SETTLE_SECONDS", 0.2)
    settings = fixture.Settings(agents=20, seconds=1.0, rounds=1, nodes=3, pods=30, judge_times=False, folder=tmp_path)
    assert await protocols.run(settings)
    assert "PASS  CPU per delivery of Typha's protocol: " in capsys.readouterr().out
    document = json.loads((tmp_path / "report.json").read_text())
    for protocol in ("native", "typha"):
        assert document[protocol][0]["cpu_per_delivery"] > 0
        assert document[protocol][0]["p99"] > 0


@pytest.mark.parametrize(
    ("cpu", "memory", "passed"),
    [
        (4.4e-6, 1400.0, [True, True]),
        (4.6e-6, 1000.0, [False, True]),
        (3e-6, 1600.0, [True, False]),
    ],
)
def test_the_limit_is_a_share_or_a_slack_whichever_is_more(cpu: float, memory: float, passed: list[bool]) -> None:
    typha = dataclasses.replace(NATIVE, cpu_per_delivery=cpu, memory_bytes_per_client=memory)
    assert [check.passed for check in protocols.checks(NATIVE, typha, judged=True)] == passed
    assert all(check.passed for check in protocols.checks(NATIVE, typha, judged=False))


def test_a_share_of_much_is_more_than_the_slack() -> None:
    much = dataclasses.replace(NATIVE, cpu_per_delivery=20e-6)
    more = dataclasses.replace(much, cpu_per_delivery=21.9e-6)
    assert all(check.passed for check in protocols.checks(much, more, judged=True))


def test_the_median_of_each_figure() -> None:
    rounds = [dataclasses.replace(NATIVE, p99=p99, p50=1 - p99) for p99 in (0.3, 0.1, 0.2)]
    assert (protocols.median(rounds).p99, protocols.median(rounds).p50) == (0.2, 0.8)
