"""`typha status`: of one service, of several, of some that do not answer; and with a worker that stands still."""

import asyncio
import json
import os
import pathlib
import re
import signal
import sys
import time
from typing import Any

import pytest

from clients import mirror
from tests.harness import interrupts, served, worker_stand
from tests.harness.repository import ROOT
from tests.harness.served import Cluster, mirrors, serving
from typha.admin import answers, replicas
from typha.cli import status
from typha.hub import client_lists

COMMAND = (sys.executable, "-c", "from typha.cli import main; main.main()")
QUESTION = status.Question(sort="lag", limit=50, feed=None, node=None, state=None)


async def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Runs a command; returns exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )
    output, errors = await asyncio.wait_for(process.communicate(), served.TIMEOUT_SECONDS)
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def socket_of(service: served.Service) -> str:
    """The admin socket that the log names."""
    found = re.search(r'Admin socket is listening path="([^"]+)"', service.text)
    assert found is not None
    return found[1]


@pytest.mark.slow
async def test_of_one_service_and_of_two(tmp_path: pathlib.Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.sock", "b.sock")]
    async with (
        Cluster(tmp_path) as cluster,
        serving(cluster, "--workers", "2", "--admin-socket", paths[0]) as first,
        serving(cluster, "--workers", "0", TYPHA_ADMINSOCKET=paths[1]) as second,
        mirrors(await first.address(), 3) as some,
        mirrors(await second.address(), 1) as others,
    ):
        cluster.put("new")
        await served.converged(cluster, [*some, *others])
        await first.metric_is("typha_connections_active", 3)
        await second.metric_is("typha_connections_active", 1)
        await worker_stand.eventually(lambda: first.text.count("Ready for connections") == 2)

        code, output, errors = await run("status", "--server", paths[0], "--json", "--sort", "node")
        assert (code, errors) == (0, "")
        [one] = json.loads(output)["replicas"]
        assert [client["node"] for client in one["clients"]["clients"]] == ["agent-0", "agent-1", "agent-2"]
        assert one["clients"]["complete"]
        assert one["clients"]["states"] == {"following": 3}
        [feed] = one["status"]["feeds"]
        assert (feed["feed"], feed["status"], feed["keys"]) == ("web", "in-sync", len(cluster.content))
        assert {client["sequence"] for client in one["clients"]["clients"]} == {feed["sequence"]}

        servers = [part for path in paths for part in ("--server", path)]
        code, output, errors = await run("status", *servers)
        assert (code, errors) == (0, "")
        assert "All replicas agree." in output
        assert "3 (75%)" in output
        assert len(re.findall(r"^agent-", output, re.MULTILINE)) == 4

        code, output, _ = await run("status", *servers, "--node", "agent-0", "--limit", "1", "--feed", "web")
        assert code == 0
        assert len(re.findall(r"^agent-0", output, re.MULTILINE)) == 1
        assert "1 of 2 connections; --limit shows more" in output

        code, output, _ = await run("status", *servers, "--server", str(tmp_path / "c.sock"))
        assert code == status.EXIT_SOME_UNANSWERED
        assert "c.sock: no answer" in output

        victim = first.workers()[0]
        await asyncio.sleep(client_lists.AGE_SECONDS)  # until the list of before is forgotten
        os.kill(victim, signal.SIGSTOP)
        try:
            deadline = time.monotonic() + served.TIMEOUT_SECONDS
            complete = True
            while complete:  # the list of a moment ago answers for a second
                assert time.monotonic() < deadline
                code, output, _ = await run("status", "--server", paths[0], "--json")
                [one] = json.loads(output)["replicas"]
                complete = one["clients"]["complete"]
        finally:
            os.kill(victim, signal.SIGCONT)
        assert (code, one["clients"]["missing_workers"]) == (0, [1])

        second.process.kill()  # its socket stays, and says nothing
        await second.ends()
        code, output, _ = await run("status", "--server", paths[1])
        assert (code, "no answer" in output) == (status.EXIT_NO_ANSWER, True)
        async with serving(cluster, "--workers", "0", TYPHA_ADMINSOCKET=paths[1]) as third:
            await third.logged("Admin socket is listening")
            assert (await run("status", "--server", paths[1]))[0] == 0
    assert not any(os.path.lexists(path) for path in paths)


@pytest.mark.slow
async def test_watch_repeats_and_a_service_without_a_socket_serves(tmp_path: pathlib.Path) -> None:
    occupied = tmp_path / "file.sock"
    occupied.write_text("precious")
    async with Cluster(tmp_path) as cluster:
        async with serving(cluster, "--workers", "0", TYPHA_ADMINSOCKET="none") as off:
            await off.metric_is("typha_connections_active", 0)
            assert "dmin socket" not in off.text
        async with serving(cluster, "--workers", "0", TYPHA_ADMINSOCKET=str(occupied)) as blocked:
            await blocked.logged(r"\[WARNING\].*Cannot open the admin socket.*is no socket")
            async with mirrors(await blocked.address(), 1):
                assert occupied.read_text() == "precious"
                occupied.unlink()
                await blocked.logged("Admin socket is listening")
                assert (await run("status", "--server", str(occupied)))[0] == 0
        path = str(tmp_path / "a.sock")
        async with serving(cluster, "--workers", "0", TYPHA_ADMINSOCKET=path) as service:
            await service.logged("Admin socket is listening")
            process = await asyncio.create_subprocess_exec(
                *(*COMMAND, "status", "--server", path, "--watch", "--interval", "1", "--json"),
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                preexec_fn=interrupts.restore,
            )
            assert process.stdout is not None
            times = [
                json.loads(await process.stdout.readline())["replicas"][0]["status"]["service"]["now"] for _ in range(2)
            ]
            assert times[1] > times[0]
            process.send_signal(signal.SIGINT)
            await process.communicate()
            assert process.returncode == 130


def fleet(**of_client: Any) -> replicas.Fleet:
    """One replica with one client."""
    client = answers.Client(**{"node": "n1", "address": "10.0.0.1:5", "feed": "felix", **of_client})
    service = answers.Service(version="1", workers_wanted=1, now=100.0, started_at=40.0, open_connections=1)
    feed = answers.Feed(feed="felix", status="in-sync", keys=5, clients=2, held=1, changed_at=90.0)
    found = replicas.Replica(
        server="a",
        status=answers.Status(service=service, feeds=[feed], kinds=[]),
        clients=answers.Clients(
            clients=[client], total=7, complete=True, versions={"v3.33.1": 5, "": 2}, states={"following": 7}
        ),
    )
    return replicas.Fleet(replicas=[found], findings=[])


def test_the_text_says_what_there_is() -> None:
    lines = list(status.text(fleet(lag_seconds=3.25, lag_bytes=2048, bytes_sent=1 << 20, age_seconds=61.0), QUESTION))
    assert re.split(r" {3,}", lines[1]) == ["a", "1", "1m", "1", "0/1", "-", "serving"]
    row = next(line for line in lines if line.startswith("n1"))
    assert re.split(r" {3,}", row)[4:] == ["-", "3.2s", "2.0 KiB", "1.0 MiB", "1m1s", "0", "-", "10.0.0.1:5"]
    assert "2 (1 held)" in lines[4]
    assert "1 of 7 connections; --limit shows more" in lines
    assert "VERSIONS   v3.33.1 5, none 2" in lines
    assert "STATES   following 7" in lines
    assert lines[-1] == "Nothing is wrong."


def test_what_clients_say_cannot_act_on_a_terminal() -> None:
    lines = status.text(fleet(node="\x1b[2J", tls_name="a\nb", version="\u202e"), QUESTION)
    assert all(line.isprintable() for line in lines)


async def test_a_service_that_answers_something_else_has_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typha.admin.client.Service.get", lambda *_, **__: {"service": 5})
    [found] = await status.ask_servers(["/a"], QUESTION)
    assert found.status is None
    assert "service" in found.error


@pytest.mark.slow
async def test_who_has_applied_what(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "a.sock")
    async with (
        Cluster(tmp_path) as cluster,
        serving(cluster, "--workers", "1", "--admin-socket", path) as service,
        mirrors(await service.address(), 1) as [silent],
        mirror.Mirror(await service.address(), feed="web", agent="good", reports_applied=True) as good,
        mirror.Mirror(await service.address(), feed="web", agent="stuck", reports_applied=True) as stuck,
    ):
        await served.converged(cluster, [silent, good, stuck])
        good.applied()
        await service.metric_is('typha_clients_reporting{syncer="web"}', 2)
        cluster.put("new")
        await served.converged(cluster, [silent, good, stuck])
        good.applied()
        await service.metric_is('typha_clients_applied{syncer="web"}', 1)
        assert await service.metric('typha_applied_lag_seconds_max{syncer="web"}') > 0
        code, output, errors = await run("status", "--server", path, "--sort", "applied")
        assert (code, errors) == (0, "")
        assert "APPLIED   web: 1 of 2 clients have applied everything; 1 do not report it\n" in output
        assert re.search(r"^SLOWEST   stuck [0-9.]+s$", output, re.MULTILINE)
        rows = [line.split()[0] for line in output.splitlines() if line.startswith(("good ", "stuck ", "agent-0 "))]
        assert rows == ["stuck", "good", "agent-0"]
        code, output, errors = await run("explain", "pod", "new", "-n", "default", "--server", path)
        assert (code, errors) == (0, "")
        assert "sent to 3 of 3 clients, applied by 1 of the 2 that report it" in output
        stuck.applied()
        await service.metric_is('typha_clients_applied{syncer="web"}', 2)
        await service.metric_is('typha_applied_lag_seconds_max{syncer="web"}', 0)
        await service.metric_becomes(
            'typha_applied_everywhere_seconds_count{syncer="web"}', lambda seen: seen > 0, "rises"
        )
        code, output, _ = await run("status", "--server", path)
        assert "SLOWEST" not in output
