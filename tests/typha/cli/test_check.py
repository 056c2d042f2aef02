"""`typha check`: its table, its JSON and its exit codes."""

import json
import pathlib

import pytest

from loadtest.environment import kubeconfig
from typha.cli import check, main
from typha.preflight.findings import Finding, Status, worst


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """No settings of the machine, and an API server that refuses connections."""
    path = tmp_path / "kubeconfig"
    kubeconfig.write(path, "http://127.0.0.1:1")
    monkeypatch.setenv("KUBECONFIG", str(path))


def test_failures_give_exit_code_1_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["check", "--cluster-only"]) == 1
    out, err = capsys.readouterr()
    header, warning, failure, *_, counts = out.splitlines()
    assert header.split() == ["STATUS", "CHECK", "FOUND"]
    assert warning.startswith("warning  API server  the API server's address is plain http")
    assert failure == "failed   API server  http://127.0.0.1:1: 127.0.0.1:1: Connection refused"
    assert "-> check address, proxy, name service and network policies" in out
    assert (counts, err) == ("0 ok, 1 warning, 1 failed, 0 cannot tell", "")


def test_json_has_all_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["check", "--json", "--server-port", "0"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["result"] == "failed"
    assert {finding["check"] for finding in found["findings"]} >= {"API server", "ports", "certificates"}
    assert {frozenset(finding) for finding in found["findings"]} == {frozenset(("status", "check", "found", "advice"))}


def test_settings_without_effect_are_warnings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TYPHA_DEBUGPORT", "9095")
    main.run(["check", "--json", "--cluster-only"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    [finding] = [finding for finding in findings if finding["check"] == "settings"]
    assert finding["status"] == "warning"
    assert "DebugPort" in finding["found"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--service-account", "calico-typha"],
        ["--service-account", "/x"],
        ["--no-such-flag"],
        ["--feeds-file", "/no/file"],
    ],
)
def test_bad_arguments_give_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["check", *arguments]) == 2
    assert capsys.readouterr().err.startswith("typha: error: ")


def test_the_worst_finding_counts() -> None:
    def of(*statuses: Status) -> Status:
        return worst(Finding(status, "", "") for status in statuses)

    assert of() is Status.OK
    assert of(Status.OK, Status.UNKNOWN) is Status.UNKNOWN
    assert of(Status.UNKNOWN, Status.WARNING) is Status.WARNING
    assert of(Status.WARNING, Status.FAILED, Status.OK) is Status.FAILED


def test_long_lines_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = list(check.table([Finding(Status.FAILED, "permissions", "word " * 40, "do " * 40)]))
    assert max(map(len, lines)) <= 85
    assert len(lines) > 6
