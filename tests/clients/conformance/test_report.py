"""The kit's output."""

import json

from clients.conformance import report
from clients.conformance.report import Outcome, Result

RESULTS = [
    Result(("O11", "D1"), "updates", Outcome.FAIL, "a wrong sequence"),
    Result(("O2",), "pings", Outcome.PASS),
    Result(("F7",), "zstd", Outcome.NOT_APPLICABLE, "not offered"),
]


def test_lines_are_in_the_order_of_rules() -> None:
    assert report.as_lines(RESULTS) == [
        "n/a   F7            zstd: not offered",
        "pass  O2            pings",
        "fail  O11 D1        updates: a wrong sequence",
        "1 pass, 1 fail, 1 n/a",
    ]


def test_json_has_the_same() -> None:
    found = json.loads(report.as_json(RESULTS))
    assert found["passed"] is False
    assert found["checks"][2] == {
        "rules": ["O11", "D1"],
        "name": "updates",
        "outcome": "fail",
        "seen": "a wrong sequence",
    }
    assert not report.has_failed(RESULTS[1:])
