"""Tests of loadtest.reporting.report and loadtest.reporting.dashboard."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from loadtest.reporting import dashboard, monitor, report
from tests.harness import repository

SAMPLE = monitor.Sample(
    seconds=1.0,
    agents=1000,
    connected=999,
    in_sync=998,
    updates_per_second=50.0,
    deliveries_per_second=49_900.0,
    latency_p50_seconds=0.005,
    latency_p99_seconds=0.0125,
    slowest_lag_seconds=0.02,
    service_memory_bytes=82_000_000,
    hub_private_bytes=40_000_000,
    workers_private_bytes=30_000_000,
    service_memfd_bytes=5_000_000,
    kernel_socket_bytes=1_000_000,
    hub_cores=0.1,
    workers_cores=0.25,
    cpu_seconds_per_delivery=7e-6,
    keys=6020.0,
    snapshot_bytes=1_300_000.0,
    api_requests=7.0,
    api_watches=7.0,
)
UNKNOWN = dataclasses.replace(
    SAMPLE,
    seconds=2.0,
    latency_p50_seconds=None,
    latency_p99_seconds=None,
    cpu_seconds_per_delivery=None,
    keys=None,
    snapshot_bytes=None,
    api_requests=None,
    api_watches=None,
    updates_per_second=None,
)


@pytest.mark.slow
def test_a_report_is_json_and_one_page_with_plots(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    made = report.Report(title="A <test>", command="make demo", samples=[SAMPLE, UNKNOWN])
    made.checks = [report.Check("it converged", True, "1000 of 1000"), report.Check("it is fast", False, "3 < 2")]
    made.facts = {"agents": "1000 & more"}
    made.data = {"extra": {"number": 1}}
    made.write(folder)
    document = json.loads((folder / "report.json").read_text())
    assert document["passed"] is made.passed is False
    assert document["samples"][0]["connected"] == 999
    assert document["extra"] == {"number": 1}
    page = (folder / "report.html").read_text()
    assert "A &lt;test&gt;" in page
    assert "Failed: 1 of 2 checks" in page
    assert "✓ passed" in page
    assert "✕ failed" in page
    assert "1000 &amp; more" in page
    assert "3 &lt; 2" in page
    assert page.count("<svg") == 9
    assert 'src="http' not in page
    assert "<script" not in page
    assert not re.search(r"#0[1a]0[1a]0\w", page)  # every colour of a plot is one of the theme
    assert "stroke: var(--line-2)" in page
    assert (folder / ".gitignore").read_text() == "*\n"


def test_the_summary_says_what_came_of_the_run(tmp_path: Path) -> None:
    slow = dataclasses.replace(SAMPLE, latency_p50_seconds=0.007, latency_p99_seconds=0.5)
    made = report.Report(title="Good", command="", samples=[SAMPLE, slow, slow])
    made.checks = [report.Check("it converged", True, "1000 of 1000")]
    made.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Passed: 1 of 1 checks" in page
    assert "Of 1,000 agents, 998 were in sync at the end." in page
    assert "half of all updates reached their agents within 7.0 ms, and 99 % within 500.0 ms" in page
    assert "in the slowest second, 99 % within 500.0 ms" in page
    assert "<dt>Latency, p99</dt><dd>500 ms</dd><dd class='note'>median</dd>" in page


def test_the_look_is_that_of_the_status_page() -> None:
    looks = [repository.ROOT / folder / "look.css" for folder in ("loadtest/reporting", "typha/admin/page")]
    assert looks[0].read_bytes() == looks[1].read_bytes()


def test_a_report_without_samples_has_no_plots(tmp_path: Path) -> None:
    report.Report(title="Empty", command="").write(tmp_path)
    assert "<svg" not in (tmp_path / "report.html").read_text()


def test_a_line_has_the_most_important_values() -> None:
    text = dashboard.line(SAMPLE)
    for part in (
        "999/1000",
        "6,020 keys, 1.3 MB",
        "50/s updates",
        "49,900/s deliveries",
        "p99 12.5 ms",
        "lag 20.0 ms",
        "82.0 MB",
        "7 requests, 7 watches",
    ):
        assert part in text
    assert "p50 -" in dashboard.line(UNKNOWN)
    assert dict(dashboard.rows(UNKNOWN))["snapshot"] == "-"


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with dashboard.Dashboard("test") as screen:
        screen.say("it begins")
        for _ in range(4):
            screen.show(SAMPLE)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["it begins", dashboard.line(SAMPLE), dashboard.line(SAMPLE)]
