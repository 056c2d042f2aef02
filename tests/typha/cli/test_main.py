"""The command line as a process: exit codes, one line per error, and the imports of each command."""

import contextlib
import http.client
import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.harness.repository import ROOT

pytestmark = pytest.mark.slow

QUIET = {"TYPHA_LOGFILEPATH": "none", "TYPHA_LOGSEVERITYSYS": "none"}


SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def script(name: str) -> tuple[str, ...]:
    """What the installed command of this name does."""
    module, _, function = SCRIPTS[name].partition(":")
    return (sys.executable, "-c", f"from {module} import {function}; {function}()")


COMMAND = script("typha")


def environment(variables: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("TYPHA_")}
    return {**inherited, **QUIET, **variables}


def typha(*arguments: str, command: tuple[str, ...] = COMMAND, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments],
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def rejected(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error of configuration or usage."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("typha: error: ")
    return line.removeprefix("typha: error: ")


def test_an_unknown_flag_is_rejected() -> None:
    assert "--no-such-flag" in rejected(typha("serve", "--no-such-flag", "1"))


def test_an_unknown_command_is_rejected() -> None:
    assert "sever" in rejected(typha("sever"))


def test_a_missing_configuration_file_is_rejected(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "missing.cfg")
    assert rejected(typha("serve", "-c", path)) == f"{path}: no such file"
    assert rejected(typha("component", "typha", "--config-file", path)) == f"{path}: no such file"


def test_an_unknown_key_in_the_feeds_file_is_rejected(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "feeds.yaml"
    path.write_text("feeds:\n  web:\n    resource: []\n")
    line = rejected(typha("serve", TYPHA_FEEDSFILE=str(path)))
    assert line == f"{path}: feeds.web: unknown key resource, expected resources"


def test_incomplete_tls_settings_are_rejected() -> None:
    line = rejected(typha("serve", TYPHA_CLIENTCN="calico-node"))
    assert line.startswith("ClientCN: incomplete TLS settings: TLS also needs ServerKeyFile, ServerCertFile, CAFile")


def test_an_invalid_value_of_an_additional_setting_is_rejected() -> None:
    assert rejected(typha("serve", "--workers", "many")).startswith("Workers: expected an integer, not 'many'")
    assert rejected(typha("serve", TYPHA_SEGMENTBYTES="1")).startswith("SegmentBytes: expected an integer from 65536")


def test_strict_rejects_invalid_values_and_unknown_variables() -> None:
    assert rejected(typha("serve", "--strict", TYPHA_SERVERPORT="x")).startswith("ServerPort: expected an integer")
    assert rejected(typha("serve", "--strict", TYPHA_PORT="tcp://x:1")).startswith("TYPHA_PORT: unknown setting")


def test_a_log_file_that_cannot_be_opened_is_rejected() -> None:
    line = rejected(typha("serve", TYPHA_LOGFILEPATH="/proc/nowhere/typha.log"))
    assert line.startswith("LogFilePath: /proc/nowhere/typha.log cannot be opened")


@contextlib.contextmanager
def serving(
    *arguments: str, command: tuple[str, ...] = COMMAND, open_files: int = 0, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A service without an API server, and its log up to the line with the port of /metrics."""
    ports = {"TYPHA_SERVERPORT": "-1", "TYPHA_PROMETHEUSMETRICSPORT": "0", "TYPHA_PROMETHEUSMETRICSHOST": "127.0.0.1"}
    variables = {"KUBECONFIG": "/nowhere", "TYPHA_PROMETHEUSMETRICSENABLED": "true", **ports, **variables}
    shell = ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh"] if open_files else []
    process = subprocess.Popen(
        [*shell, *command, *arguments],
        env=environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
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
        process.communicate(timeout=180)


def metric(line: str, name: str) -> float:
    """The value of a metric, from the port in a log line."""
    port = re.search(r"port=(\d+)", line)
    assert port is not None
    for _ in range(10):  # beside a thousand idle connections, a slow machine may lose its own to the limit
        with (
            contextlib.suppress(ConnectionError, http.client.HTTPException, urllib.error.URLError),
            urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=180) as response,
        ):
            text = response.read().decode()
            break
    return float(text.partition(f"\n{name} ")[2].split()[0])


def test_idle_connections_to_the_metrics_port_use_up_no_descriptors() -> None:
    with serving("serve", open_files=256) as (process, lines):
        port = re.search(r"port=(\d+)", lines[-1])
        assert port is not None
        with contextlib.ExitStack() as idle:
            for _ in range(1000):
                peer = idle.enter_context(socket.socket())
                peer.setblocking(False)
                peer.connect_ex(("127.0.0.1", int(port[1])))
            assert metric(lines[-1], "typha_open_files_limit") == 256
            assert metric(lines[-1], 'typha_http_refused_total{server="metrics",reason="too-many-connections"}') > 0
            assert len(os.listdir(f"/proc/{process.pid}/fd")) < 100
        process.terminate()
        text, _ = process.communicate(timeout=180)
        assert "Traceback" not in text
        assert process.returncode == 0


def test_a_full_disk_of_the_log_changes_nothing_but_the_log() -> None:
    with serving("serve", TYPHA_LOGFILEPATH="/dev/full") as (process, lines):
        assert metric(lines[-1], "typha_log_errors") > 0
        process.terminate()
        text, _ = process.communicate(timeout=180)
        assert "Traceback" not in text
        assert process.returncode == 0


@pytest.mark.parametrize("arguments", [("serve",), ("component", "typha")])
def test_the_service_runs_with_invalid_values_of_the_originals_settings_and_exits_with_0(
    arguments: tuple[str, ...],
) -> None:
    with serving(*arguments, TYPHA_SERVERPONGTIMEOUTSECS="x", TYPHA_PORT="tcp://10.0.0.1:5473") as (process, lines):
        [warning] = [line for line in lines if "[WARNING]" in line and "ServerPongTimeoutSecs" in line]
        assert "Invalid value of setting, using its default" in warning
        [info] = [line for line in lines if "TYPHA_PORT" in line]
        assert "[INFO]" in info
        assert "10.0.0.1" not in info
        assert metric(lines[-1], "typha_config_invalid_values") == 1
        process.terminate()
        process.communicate(timeout=180)
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("calico", ("component", "typha")),  # the operator from 1.44 on, and 1.43 for some variants
        ("calico-typha", ()),  # the images of 3.29 to 3.32: what they start without arguments
        ("calico-typha", ("-c", "/dev/null")),
        ("calico-typha", ("--config-file=/dev/null",)),
        ("typha", ("component", "typha")),  # manifests of 3.33, as arguments of the image
        ("typha", ("/usr/bin/calico-typha",)),  # a whole command line, as arguments of the image
        ("typha", ("/usr/bin/calico", "component", "typha", "--config-file", "/dev/null")),
    ],
)
def test_the_originals_command_lines_start_the_service(program: str, arguments: tuple[str, ...]) -> None:
    with serving(*arguments, command=script(program)) as (process, lines):
        assert any(": Listening " in line for line in lines)
        process.terminate()
        process.communicate(timeout=180)
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("typha", ("version",)),
        ("typha", ("component", "typha", "version")),
        ("typha", ("calico", "version")),
        ("calico", ("version",)),
        ("calico", ("component", "typha", "version")),
        ("calico-typha", ("version",)),
        ("calico-typha", ("--version",)),
    ],
)
def test_version_prints_version_and_build(program: str, arguments: tuple[str, ...]) -> None:
    result = typha(*arguments, command=script(program), GIT_COMMIT="abc123")
    assert result.returncode == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["Version", "Build date", "Git commit"]
    assert "abc123" in result.stdout


def test_the_first_line_has_version_and_settings(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "typha.log"
    with serving("serve", "--max-held-refusals", "7", TYPHA_LOGFILEPATH=str(log), GIT_COMMIT="abc123") as (_, lines):
        first = lines[0]
    form = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[INFO\]\[\d+\] (\S+\.py) (\d+): (Starting) (.*)\n"
    assert re.fullmatch(form, first)
    for part in (
        f'LogFilePath="{log} (environment)"',
        'MaxHeldRefusals="7 (command line)"',
        'PrometheusMetricsEnabled="true (environment)"',
        'commit="abc123"',
        f'logs_to="screen, {log}"',
        " cpus=",
        " cpu_quota=",
        " memory_limit=",
        ' version="v',
    ):
        assert part in first
    assert "ServerPingIntervalSecs" not in first


def test_errors_name_the_program() -> None:
    result = typha("serve", command=script("calico"))
    assert (result.returncode, result.stderr.split(":")[:2]) == (2, ["calico", " error"])


def test_help_names_every_setting() -> None:
    result = typha("serve", "-h")
    assert result.returncode == 0
    for flag in ("--server-port", "--workers", "--feeds-file", "--prometheus-metrics-enabled", "-c, --config-file"):
        assert flag in result.stdout


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("version", ("structlog", "aiohttp", "yaml", "clients", "prometheus_client", "asyncio")),
        ("health", ("structlog", "aiohttp", "yaml", "clients", "prometheus_client", "asyncio", "typha.settings")),
        ("serve", ("clients", "kubernetes_asyncio")),
        ("watch", ("structlog", "kubernetes_asyncio", "prometheus_client", "typha.settings")),
    ],
)
def test_a_command_imports_only_what_it_needs(command: str, unwanted: tuple[str, ...]) -> None:
    program = f"import sys; from typha.cli import main; main.run(['{command}', '-h']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    modules = set(result.stdout.splitlines()[-1].split())
    assert not modules.intersection(unwanted)


@pytest.mark.parametrize("arguments", [("version",), ("config",), ("convert", "--feed", "felix")])
def test_a_full_disk_is_one_line(arguments: tuple[str, ...]) -> None:
    with pathlib.Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*COMMAND, *arguments],
            env=environment({}),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=180,
            check=False,
        )
    assert (result.returncode, result.stderr) == (1, "typha: error: [Errno 28] No space left on device\n")


def test_closed_standard_streams_are_open_on_nothing() -> None:
    # Without that, whatever is opened next gets their numbers, and what is printed.
    closing = f"exec {shlex.join((*COMMAND, 'convert', '--feed', 'felix'))} <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", closing], env=environment({}), timeout=180, check=False)
    assert done.returncode == 0
