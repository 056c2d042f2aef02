"""Tests of loadtest.scenarios.hostile: when an attack has done no harm. The scenarios run in test_acceptance.py."""

import dataclasses
from typing import Any

import pytest

from loadtest.scenarios import hostile

HARMLESS = hostile.Outcome(
    name="silent",
    p99_before=0.03,
    p99=0.09,
    worst=0.3,
    cut=0,
    deaths=0,
    back=True,
    hub_bytes=(50_000_000, 60_000_000),
    worker_bytes=(60_000_000, 200_000_000),
    counted={"handshake-timeout": 7},
    log_lines=3,
    log_bytes=900,
    attackers={"opened": 7},
    expected=(("handshake-timeout", "too-many-connections"),),
)


def failed(outcome: hostile.Outcome, *, judged: bool = True, processes: int = 2) -> list[str]:
    return [
        check.name.partition(": ")[2]
        for check in outcome.checks(judged=judged, processes=processes)
        if not check.passed
    ]


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        ({}, []),
        ({"cut": 1}, ["no innocent is cut, no process ends"]),
        ({"deaths": 1}, ["no innocent is cut, no process ends"]),
        ({"back": False}, ["no innocent is cut, no process ends"]),
        ({"p99": 0.11}, ["innocents are not delayed"]),
        ({"p99": 0.11, "p99_before": 0.06}, []),
        ({"counted": {"client-closed": 7}}, ["the service counts why it closes a connection"]),
        ({"hub_bytes": (50_000_000, 150_000_000)}, ["memory is bounded"]),
        ({"worker_bytes": (60_000_000, 260_000_000)}, ["memory is bounded"]),
    ],
)
def test_what_is_harm(harm: dict[str, Any], names: list[str]) -> None:
    assert failed(dataclasses.replace(HARMLESS, **harm)) == names


def test_times_of_a_small_run_are_not_judged() -> None:
    assert failed(dataclasses.replace(HARMLESS, p99=5.0), judged=False) == []


def test_each_attack_has_a_row() -> None:
    assert "p99 30 ms before, 90 ms during" in HARMLESS.line()
    assert "7 handshake-timeout" in HARMLESS.line()
