"""Our client in Go (clients/go): its own tests, the conformance kit, and the real service."""

import asyncio
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from clients.conformance import against_client, report
from protocol import state_digest
from tests.harness import served, worker_stand
from tests.harness.repository import ROOT

pytestmark = [pytest.mark.go, pytest.mark.slow, pytest.mark.timeout(900)]
MODULE = ROOT / "clients" / "go"
PATIENCE_SECONDS = 60.0


def go(*words: str, **variables: str) -> str:
    """Runs Go in the module; returns its output."""
    program = subprocess.run([ROOT / "tools" / "go.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    done = subprocess.run(
        [program, *words],
        cwd=MODULE,
        env={**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_it_is_formatted_and_vetted() -> None:
    formatter = pathlib.Path(go("env", "GOROOT").strip(), "bin", "gofmt")
    found = subprocess.run([formatter, "-l", "."], cwd=MODULE, stdout=subprocess.PIPE, text=True, check=True)
    assert found.stdout == ""
    go("vet", "./...")


def test_its_own_tests_pass_without_races() -> None:
    """With the seeds of its fuzz targets. The detector of races needs a C compiler."""
    race = ["-race"] if shutil.which("gcc") or shutil.which("cc") else []
    go("test", *race, "./...", CGO_ENABLED="1" if race else "0")


async def test_it_keeps_the_rules(typha_follow: str) -> None:
    command = f"{typha_follow} -address {{address}} -feed {{feed}}"
    options = against_client.Options(
        command,
        patience_seconds=PATIENCE_SECONDS,
        slack_seconds=PATIENCE_SECONDS,
        subscribing=f"{command} -node n1 -own-node -kinds core/v1/pods,core/v1/services",
        host="127.0.0.78",  # no other test's: a process that asks again and again would find the kit on its port
    )
    results = await against_client.run_checks(options)
    assert [line for line in report.as_lines(results) if not line.startswith("pass")] == [
        f"{len(results)} pass, 0 fail, 0 n/a"
    ]


async def test_it_follows_the_service(typha_follow: str, tmp_path: pathlib.Path, free_port: int) -> None:
    """Through changes, a restart of the service, and a loss of the API server."""
    output = tmp_path / "output"
    port = {"TYPHA_SERVERPORT": str(free_port)}
    async with served.Cluster(tmp_path) as cluster:

        def is_current(status: str) -> bool:
            content = cluster.content
            wanted = f"{len(content)} {state_digest(content.items()):016x}"
            return bool(re.search(rf"state {status} \d+ {wanted}\n\Z", output.read_text()))

        async def current(status: str = "in-sync") -> None:
            await worker_stand.eventually(lambda: is_current(status))

        async with served.serving(cluster, "--workers", "1", **port) as first:
            address = await first.address()
            with output.open("wb") as file:
                client = await asyncio.create_subprocess_exec(
                    typha_follow, "-address", address, "-feed", served.FEED, stdout=file, stderr=subprocess.DEVNULL
                )
            await current()
            cluster.put("while-it-runs")
            await worker_stand.eventually(lambda: "/while-it-runs\n" in output.read_text())
        try:
            cluster.put("while-it-is-down")
            async with served.serving(cluster, "--workers", "1", **port) as second:
                await second.address()
                await current()
                await cluster.simulator.stop()
                await current("waiting")
        finally:
            client.kill()
            await client.wait()
    assert "delete" not in output.read_text()
