"""What the checks have found, and how it is shown."""

import enum
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Outcome(enum.StrEnum):
    """Of a check."""

    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "n/a"


class Result(NamedTuple):
    """One check: the rules that it is about, and what was seen if one of them does not hold."""

    rules: tuple[str, ...]
    name: str
    outcome: Outcome
    seen: str = ""


class Broken(Exception):
    """The peer breaks a rule."""

    def __init__(self, rule: str, seen: str) -> None:
        super().__init__(f"{rule}: {seen}")
        self.rule = rule
        self.seen = seen


class NotApplicable(Exception):
    """The peer's level does not include the rule, or it does not use the feature."""


def _by_rule(result: Result) -> tuple[str, int, str]:
    return result.rules[0][0], int(result.rules[0][1:]), result.name


def as_lines(results: Iterable[Result]) -> list[str]:
    """A line for each check, by rule, and one for all."""
    ordered = sorted(results, key=_by_rule)
    lines = []
    for one in ordered:
        seen = f": {one.seen}" if one.seen else ""
        lines.append(f"{one.outcome.value:4}  {' '.join(one.rules):12}  {one.name}{seen}")
    counts = ", ".join(f"{sum(one.outcome is outcome for one in ordered)} {outcome.value}" for outcome in Outcome)
    return [*lines, counts]


def as_json(results: Sequence[Result]) -> str:
    """The same for programs."""
    checks = [
        {"rules": one.rules, "name": one.name, "outcome": one.outcome.value, "seen": one.seen}
        for one in sorted(results, key=_by_rule)
    ]
    return json.dumps({"passed": not has_failed(results), "checks": checks}, indent=1)


def has_failed(results: Iterable[Result]) -> bool:
    """Whether a rule is broken."""
    return any(one.outcome is Outcome.FAIL for one in results)
