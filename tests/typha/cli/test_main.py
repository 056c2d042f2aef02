"""The command line as a process: exit codes, one line per error, and what is imported for which command."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.slow

QUIET = {"TYPHA_LOGFILEPATH": "none", "TYPHA_LOGSEVERITYSYS": "none"}


COMMAND = (sys.executable, "-c", "from typha.cli import main; main.main()")


def environment(variables: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("TYPHA_")}
    return {**inherited, **QUIET, **variables}


def typha(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a start that was refused."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("typha: error: ")
    return line.removeprefix("typha: error: ")


def test_unknown_flag() -> None:
    assert "--no-such-flag" in refused(typha("serve", "--no-such-flag", "1"))


def test_unknown_command() -> None:
    assert "sever" in refused(typha("sever"))


def test_unreadable_configuration_file(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "missing.cfg")
    assert refused(typha("serve", "-c", path)) == f"{path}: no such file"
    assert refused(typha("component", "typha", "--config-file", path)) == f"{path}: no such file"


def test_unknown_key_in_the_feeds_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "feeds.yaml"
    path.write_text("feeds:\n  web:\n    resource: []\n")
    line = refused(typha("serve", TYPHA_FEEDSFILE=str(path)))
    assert line == f"{path}: feeds.web: unknown key resource, expected resources"


def test_contradictory_tls_settings() -> None:
    line = refused(typha("serve", TYPHA_CLIENTCN="calico-node"))
    assert line.startswith("ClientCN: contradictory TLS settings: TLS needs ServerKeyFile, ServerCertFile, CAFile")


def test_bad_value_of_a_setting_of_ours() -> None:
    assert refused(typha("serve", "--workers", "many")).startswith("Workers: expected an integer, not 'many'")
    assert refused(typha("serve", TYPHA_SEGMENTBYTES="1")).startswith("SegmentBytes: expected an integer from 65536")


def test_strict() -> None:
    assert refused(typha("serve", "--strict", TYPHA_SERVERPORT="x")).startswith("ServerPort: expected an integer")
    assert refused(typha("serve", "--strict", TYPHA_PORT="tcp://x:1")).startswith("TYPHA_PORT: unknown setting")


def test_log_file_that_cannot_be_opened() -> None:
    line = refused(typha("serve", TYPHA_LOGFILEPATH="/proc/nowhere/typha.log"))
    assert line.startswith("LogFilePath: /proc/nowhere/typha.log cannot be opened")


@contextlib.contextmanager
def serving(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A service without an API server, and its log up to the line that tells the port of /metrics."""
    ports = {"TYPHA_SERVERPORT": "-1", "TYPHA_PROMETHEUSMETRICSPORT": "0", "TYPHA_PROMETHEUSMETRICSHOST": "127.0.0.1"}
    variables = {"KUBECONFIG": "/nowhere", "TYPHA_PROMETHEUSMETRICSENABLED": "true", **ports, **variables}
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=environment(variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if 'server="metrics"' in line:
                break
        yield process, lines
    finally:
        process.terminate()
        process.communicate(timeout=60)


def metric(line: str, name: str) -> float:
    """A metric of the service that logged the line on its port."""
    port = re.search(r"port=(\d+)", line)
    assert port is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=30) as response:
        text = response.read().decode()
    return float(text.partition(f"\n{name} ")[2].split()[0])


@pytest.mark.parametrize("arguments", [("serve",), ("component", "typha")])
def test_serves_with_bad_values_of_the_originals_settings_and_ends_with_0(arguments: tuple[str, ...]) -> None:
    with serving(*arguments, TYPHA_SERVERPONGTIMEOUTSECS="x", TYPHA_PORT="tcp://10.0.0.1:5473") as (process, lines):
        [warning] = [line for line in lines if "[WARNING]" in line and "ServerPongTimeoutSecs" in line]
        assert "Invalid value of setting, using its default" in warning
        [info] = [line for line in lines if "TYPHA_PORT" in line]
        assert "[INFO]" in info
        assert "10.0.0.1" not in info
        assert metric(lines[-1], "typha_config_invalid_values") == 1
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.mark.parametrize("arguments", [("version",), ("component", "typha", "version")])
def test_version(arguments: tuple[str, ...]) -> None:
    result = typha(*arguments, GIT_COMMIT="abc123")
    assert result.returncode == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["Version", "Build date", "Git commit"]
    assert "abc123" in result.stdout


def test_help_names_every_setting() -> None:
    result = typha("serve", "-h")
    assert result.returncode == 0
    for flag in ("--server-port", "--workers", "--feeds-file", "--prometheus-metrics-enabled", "-c, --config-file"):
        assert flag in result.stdout


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("version", ("structlog", "aiohttp", "yaml", "clients", "prometheus_client")),
        ("serve", ("clients", "kubernetes_asyncio")),
        ("watch", ("structlog", "kubernetes_asyncio", "prometheus_client", "typha.settings")),
    ],
)
def test_a_command_imports_only_what_it_needs(command: str, unwanted: tuple[str, ...]) -> None:
    program = f"import sys; from typha.cli import main; main.run(['{command}', '-h']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = set(result.stdout.splitlines()[-1].split())
    assert not modules.intersection(unwanted)
