"""The kit finds nothing wrong with our client, and finds each fault that is put in."""

import shlex
import sys

import pytest

from clients.conformance import against_client, report
from tests.harness import faulty_client
from tests.harness.repository import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PATIENCE_SECONDS = 60.0
"""Machines of tests are busy. A client that does what it must is not waited for."""
HOST = "127.0.0.77"
"""No other test's. A process that asks again and again for a server that is gone would find a kit on its port."""
SLACK_SECONDS = 20.0
"""For clients with a fault. More would hide one that speaks too often (rule P3)."""


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def command(module: str, *arguments: str, node: str = "") -> str:
    return shlex.join([sys.executable, "-m", module, *arguments, "{address}", "{feed}", *([node] if node else [])])


def failures(results: list[report.Result]) -> list[str]:
    return [line for line in report.as_lines(results) if line.startswith("fail")]


async def test_our_client_keeps_the_rules() -> None:
    options = against_client.Options(
        command("clients.conformance.python_client"),
        patience_seconds=PATIENCE_SECONDS,
        slack_seconds=PATIENCE_SECONDS,
        subscribing=command("clients.conformance.python_client", node="n1"),
        host=HOST,
    )
    results = await against_client.run_checks(options)
    assert failures(results) == []
    assert {result.outcome for result in results} == {report.Outcome.PASS}


@pytest.mark.parametrize("rule", faulty_client.FAULTS)
async def test_faults_are_found(rule: str) -> None:
    options = against_client.Options(
        command("tests.harness.faulty_client", rule),
        patience_seconds=4.0,
        slack_seconds=SLACK_SECONDS,
        subscribing=command("tests.harness.faulty_client", rule, node="n1"),
        host=HOST,
    )
    results = await against_client.run_checks(options, only=rule)
    assert rule in [result.rules[0] for result in results if result.outcome is report.Outcome.FAIL]


async def test_levels_leave_rules_out() -> None:
    options = against_client.Options(
        command("tests.harness.faulty_client", "V1"),
        is_verifying=False,
        is_observed=False,
        patience_seconds=5.0,
        host=HOST,
    )
    [result] = await against_client.run_checks(options, only="V1")
    assert result.outcome is report.Outcome.NOT_APPLICABLE


@pytest.mark.parametrize("program", ["true", "cat /dev/zero"])
async def test_a_program_that_is_no_client(program: str) -> None:
    with pytest.raises(report.Broken, match="H1"):
        await against_client.run_checks(against_client.Options(program, startup_seconds=0.5))


def test_a_program_is_not_waited_for_without_end() -> None:
    assert against_client.Options("true").startup_seconds == 30.0


async def test_a_program_that_does_not_exist() -> None:
    with pytest.raises(OSError, match="no-such-program"):
        await against_client.run_checks(against_client.Options("/no-such-program {address}"))
