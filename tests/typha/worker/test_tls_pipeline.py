"""`typha serve` with TLS, as processes: agents of both protocols, renewed files, dead workers, unusable files."""

import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import trustme

from clients import connection, mirror
from tests.harness import certificates, worker_stand
from tests.harness.served import COMMAND, FEED, Cluster, converged, serving
from tests.typha.conftest import OpenStage

pytestmark = pytest.mark.slow


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> AsyncIterator[Cluster]:
    """An API server with a few pods."""
    async with Cluster(tmp_path) as opened:
        yield opened


@pytest.fixture(params=certificates.ENGINES)
def files(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> certificates.Files:
    """A server's files, for each engine of TLS."""
    (tmp_path / "tls").mkdir()
    return certificates.make(tmp_path / "tls", request.param)


def variables(files: certificates.Files) -> dict[str, str]:
    """The environment of a service with TLS."""
    return {
        "TYPHA_SERVERKEYFILE": str(files.folder / "server.key"),
        "TYPHA_SERVERCERTFILE": str(files.folder / "server.pem"),
        "TYPHA_CAFILE": str(files.folder / "ca.pem"),
        "TYPHA_CLIENTCN": certificates.AGENT,
        "TYPHA_TLSENGINE": files.engine,
    }


@pytest.mark.parametrize("workers", ["0", "2"])
async def test_agents_stay_through_a_workers_death(cluster: Cluster, files: certificates.Files, workers: str) -> None:
    context = certificates.client_context(files.authority)
    async with serving(cluster, "--workers", workers, **variables(files)) as running:
        address = await running.address()
        async with (
            mirror.Mirror(address, feed=FEED, agent="a", tls=context) as first,
            mirror.Mirror(address, feed=FEED, agent="b", tls=context, server_name="localhost") as second,
        ):
            await converged(cluster, [first, second])
            cluster.put("p1", "new")
            await converged(cluster, [first, second])
            for pid in running.workers():
                os.kill(pid, signal.SIGKILL)
            cluster.put("p2", "newer")
            await converged(cluster, [first, second])


async def test_strangers_are_counted_and_renewed_files_are_used(cluster: Cluster, files: certificates.Files) -> None:
    async with serving(cluster, "--workers", "1", **variables(files)) as running:
        address = await running.address()
        host, _, port = address.partition(":")
        stranger = certificates.client_context(files.authority, cn="somebody")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=stranger, server_hostname="localhost")
        assert await reader.read() == b""
        writer.close()
        await running.logged(r"Connection ended.*somebody.*tls-failed")
        await running.metric_is('typha_disconnects_total{reason="tls-failed"}', 1)
        (files.folder / "server.pem").write_text("half a certif")
        await running.metric_is("typha_tls_reload_failures_total", 1)
        renewed = trustme.CA()
        files.write(renewed)
        await running.logged("TLS files have changed")
        context = certificates.client_context(renewed, issuer=files.authority)
        async with mirror.Mirror(address, feed=FEED, agent="a", tls=context) as one:
            await converged(cluster, [one])


@pytest.mark.parametrize("protocol", list(connection.Protocol))
async def test_typha_watch(open_stage: OpenStage, files: certificates.Files, protocol: connection.Protocol) -> None:
    agent = files.authority.issue_cert("agent.test", common_name=certificates.AGENT)
    agent.private_key_pem.write_to_path(files.folder / "agent.key")
    agent.cert_chain_pems[0].write_to_path(files.folder / "agent.pem")
    stage = await open_stage(client_tls=files.settings(), feed_name="felix")
    stage.put(*(worker_stand.pod(f"p{number}", "x" * 5_000) for number in range(30)))
    stage.in_sync()
    arguments = [
        *("--feed", "felix", "--protocol", protocol.value, "--until-in-sync", "--timeout", "20", "--json"),
        *("--ca-file", str(files.folder / "ca.pem"), "--cert-file", str(files.folder / "agent.pem")),
        *("--key-file", str(files.folder / "agent.key"), "--server-name", "localhost"),
        f"{stage.address[0]}:{stage.address[1]}",
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from typha.cli import watch; watch.watch()", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, problems = await asyncio.wait_for(process.communicate(), worker_stand.TIMEOUT_SECONDS)
    assert process.returncode == 0, problems
    assert [json.loads(line)["key"] for line in output.splitlines()] == sorted(stage.content)


def test_unusable_files_end_the_start(files: certificates.Files) -> None:
    (files.folder / "ca.pem").write_text("nonsense")
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("TYPHA_")}
    result = subprocess.run(
        [*COMMAND, "--workers", "0"],
        env=inherited | variables(files),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith(f"typha: error: CAFile {files.folder / 'ca.pem'}: ")
