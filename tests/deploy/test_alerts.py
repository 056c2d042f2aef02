"""The alert rules: each fires, each stays quiet, each has a section in the runbook and a reason for its threshold."""

import json
import pathlib
import re
import shutil
import subprocess
from typing import Any, NamedTuple

import pytest
import yaml

from tests.harness.repository import DOCS, ROOT
from typha.observability import metrics_table

RULES = ROOT / "deploy" / "chart" / "files" / "alerts.yaml"
GROUP = yaml.safe_load(RULES.read_text())["groups"][0]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}
SEVERITIES = {"critical", "warning", "info"}
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (make packages)")


class Case(NamedTuple):
    """Series by name and labels, in promtool's notation of one value a minute, and minutes after which to look."""

    firing: dict[str, str]
    quiet: dict[str, str]
    after: int = 30


def one(metric: str, firing: str, quiet: str, *, after: int = 30, labels: dict[str, str] | None = None) -> Case:
    """A case with one series."""
    named = series(metric, **labels or {})
    return Case({named: firing}, {named: quiet}, after)


def series(metric: str, **labels: str) -> str:
    shown = {"instance": "a", "job": "typha", **labels}
    return metric + "{" + ",".join(f'{name}="{value}"' for name, value in shown.items()) + "}"


def states(metric: str, value: str, other: str, other_value: str) -> dict[str, str]:
    return {series(metric): value, series(other): other_value}


DAY = 86_400
BUCKET = {"syncer": "felix"}
CASES = {
    "TyphaAbsent": Case({}, {series("typha_build_info"): "1x60"}),
    "TyphaNotReady": Case(
        states("typha_ready", "0x60", "typha_draining", "0x60"), states("typha_ready", "0x60", "typha_draining", "1x60")
    ),
    "TyphaWorkersMissing": Case(
        states("typha_workers_serving", "1x60", "typha_workers_wanted", "2x60"),
        states("typha_workers_serving", "2 2 1 1 2x60", "typha_workers_wanted", "2x60"),
        after=6,
    ),
    "TyphaWorkerRestarts": one("typha_worker_restarts_total", "0+1x60", "0 0 1 1 2x60"),
    "TyphaKindStale": one(
        "typha_watch_last_confirmed_seconds", "0+60x60", "0 300 599 30x60", labels={"type": "core/v1/pods"}
    ),
    "TyphaWatchForbidden": one(
        "typha_watch_errors_total", "0+2x60", "0 1 1x60", labels={"type": "core/v1/pods", "class": "forbidden"}
    ),
    "TyphaAgentsLag": one("typha_client_lag_seconds_max", "0+20x60", "0 59 58 600 5x60"),
    "TyphaAgentsHeld": one("typha_clients_held", "3x60", "900x8 0 900x8 0 5x8 0x60", after=28),
    "TyphaAgentsRefused": one(
        "typha_disconnects_total", "0+6x60", "0 8 8 8 9x60", labels={"reason": "unsupported-version"}
    ),
    "TyphaPropagationSlow": Case(
        {
            series("typha_propagation_seconds_bucket", le="1.0", **BUCKET): "0+90x60",
            series("typha_propagation_seconds_bucket", le="2.5", **BUCKET): "0+100x60",
            series("typha_propagation_seconds_bucket", le="+Inf", **BUCKET): "0+100x60",
        },
        {
            series("typha_propagation_seconds_bucket", le="1.0", **BUCKET): "0+100x60",
            series("typha_propagation_seconds_bucket", le="2.5", **BUCKET): "0+100x60",
            series("typha_propagation_seconds_bucket", le="+Inf", **BUCKET): "0+100x60",
        },
    ),
    "TyphaReplicasUnequal": Case(
        {series("typha_connections_active"): "1000x120", series("typha_connections_active", instance="b"): "0x120"},
        {series("typha_connections_active"): "1000x120", series("typha_connections_active", instance="b"): "600x120"},
        after=90,
    ),
    "TyphaCertificateExpiresSoon": one(
        "typha_certificate_expiry_timestamp_seconds",
        f"{10 * DAY}x120",
        f"{30 * DAY}x120",
        after=90,
        labels={"file": "CAFile"},
    ),
    "TyphaCertificateExpires": one(
        "typha_certificate_expiry_timestamp_seconds", f"{DAY}x120", f"{10 * DAY}x120", labels={"file": "CAFile"}
    ),
    "TyphaTlsReloadFailed": one("typha_tls_reload_failures_total", "0 0 1x60", "1x60"),
    "TyphaObjectsDropped": Case(
        {
            series("typha_updates_dropped_total", reason="other"): "0x60",
            series("typha_updates_dropped_total", reason="bad-ip"): "_x22 1x40",
        },  # the first one must count
        {
            series("typha_updates_dropped_total", reason="other"): "0x60",
            series("typha_updates_dropped_total", reason="doubtful"): "0+1x60",
        },
    ),
    "TyphaSubscriptionsDeclined": one("typha_subscriptions_declined_total", "0+5x60", "0 3 4x60"),
    "TyphaShortage": one("typha_shortages_total", "0+1x60", "0 1 1x60", labels={"lacking": "log"}),
    "TyphaWithoutSource": one("typha_source", "0 1x60", "1 1 1 0x60", labels={"mode": "searching"}, after=8),
    "TyphaMemoryNearLimit": Case(
        states("process_resident_memory_bytes", "950x60", "typha_memory_limit_bytes", "1000x60"),
        states("process_resident_memory_bytes", "950x60", "typha_memory_limit_bytes", "0x60"),
    ),
    "TyphaLogsLost": one("typha_log_errors", "0+1x60", "7x60"),
}


def pair_of(name: str, case: Case) -> list[dict[str, Any]]:
    """A test that expects the alert, and one that expects none."""
    return [
        {
            "name": f"{name} {'fires' if count else 'is quiet'}",
            "interval": "1m",
            "input_series": [{"series": named, "values": values} for named, values in given.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                    "eval_time": f"{case.after}m",
                    "exp_samples": [{"labels": "{}", "value": count}] if count else [],
                }
            ],
        }
        for given, count in ((case.firing, 1), (case.quiet, 0))
    ]


@promtool
def test_each_alert_fires_and_stays_quiet(tmp_path: pathlib.Path) -> None:
    assert CASES.keys() == ALERTS.keys()
    tests = [test for name, case in CASES.items() for test in pair_of(name, case)]
    file = tmp_path / "tests.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(file)]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_tells_what_to_do_and_why(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in SEVERITIES
    annotations = rule["annotations"]
    assert all(annotations[key].strip() for key in ("summary", "description", "threshold"))
    page, _, section = annotations["runbook_url"].partition("#")
    assert page == "docs/runbook.md"
    assert section == name.lower()
    headings = re.findall(r"^## (\w+)$", (DOCS / "runbook.md").read_text(), re.MULTILINE)
    assert name in headings


def test_the_runbook_has_no_section_without_an_alert() -> None:
    headings = re.findall(r"^## (Typha\w+)$", (DOCS / "runbook.md").read_text(), re.MULTILINE)
    assert headings == list(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_uses_metrics_that_exist(name: str) -> None:
    known = {metric.name for metric in metrics_table.METRICS} | {"process_resident_memory_bytes"}
    used = set(re.findall(r"\b(?:typha|process)_\w+", ALERTS[name]["expr"]))
    assert used
    assert {re.sub("_(bucket|sum|count)$", "", metric) for metric in used} <= known
