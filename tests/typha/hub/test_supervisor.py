"""Worker processes that die, stop or cannot be started: their clients come back, and the counts stay right."""

import asyncio
import os
import pathlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from unittest import mock

import pytest

from protocol import reasons
from tests.harness import worker_stand
from tests.harness.hub_stand import LIMITS
from tests.harness.served import Cluster, converged, mirrors, serving
from typha import service, settings
from typha.hub import hub, supervisor
from typha.ipc import link, messages

pytestmark = pytest.mark.slow


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> AsyncIterator[Cluster]:
    """An API server with a few pods."""
    async with Cluster(tmp_path) as opened:
        yield opened


async def test_a_killed_worker_is_replaced_and_its_clients_converge(cluster: Cluster) -> None:
    async with serving(cluster, "--workers", "2") as running, mirrors(await running.address(), 8) as clients:
        await running.metric_is("typha_connections_active", 8)
        first, second = running.workers()
        os.kill(first, signal.SIGKILL)
        cluster.put("p1", "new")
        await worker_stand.eventually(lambda: len(running.workers()) == 3)
        await converged(cluster, clients)
        moved = sum(client.last_disconnect is not None for client in clients)
        await running.metric_is("typha_worker_restarts_total", 1)
        await running.metric_is('typha_disconnects_total{reason="worker-died"}', moved)
        await running.metric_is("typha_connections_active", 8)
        await running.metric_is("typha_connections_accepted", 8 + moved)
        os.kill(second, signal.SIGKILL)
        await worker_stand.eventually(lambda: len(running.workers()) == 4)
        cluster.put("p2", "newer")
        await converged(cluster, clients)
        await running.metric_is("typha_worker_restarts_total", 2)


def make_service(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *, workers: int) -> service.Service:
    """A service in the test's process that watches the cluster."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    configured = settings.Settings(
        server_port=-1, server_host="127.0.0.1", feeds_file=str(cluster.feeds_file), workers=workers
    )
    return service.Service(configured, service.open_listener(configured))


@pytest.fixture
async def local(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[service.Service]:
    """A service whose hub runs in the test's loop, with a worker process. It drains when the test ends."""
    one = make_service(cluster, monkeypatch, workers=1)
    task = asyncio.create_task(one.run(), name="service")
    yield one
    one.stop("test")
    await asyncio.wait_for(task, 20)


def worker_process() -> int:
    """The only child process that is a worker."""
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    [pid] = [int(child) for child in children if "typha.worker" in pathlib.Path(f"/proc/{child}/cmdline").read_text()]
    return pid


async def test_a_stopped_worker_is_killed_and_replaced(local: service.Service, cluster: Cluster) -> None:
    address = f"127.0.0.1:{local.listener.getsockname()[1]}"
    async with mirrors(address, 3) as clients:
        await worker_stand.eventually(lambda: local.hub.workers[1].report.active == 3)
        stopped = worker_process()
        os.kill(stopped, signal.SIGSTOP)
        local.hub.workers[1].heard_at -= LIMITS.worker_silence_seconds_max - 1.5  # most of the silence is over
        cluster.put("p1", "new")
        await worker_stand.eventually(lambda: local.supervisor.restarts == 1)
        await converged(cluster, clients)
        assert worker_process() != stopped
        assert local.supervisor.totals().disconnects == {"worker-died": 3}


async def test_a_worker_whose_link_breaks_is_replaced(local: service.Service) -> None:
    await worker_stand.eventually(lambda: local.supervisor.all_ready)
    local.hub.workers[1].link.send(["nonsense"])
    await worker_stand.eventually(lambda: local.supervisor.restarts == 1)
    await worker_stand.eventually(lambda: local.supervisor.all_ready)


DEAF_WORKER = """#!{python}
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signal.sigwait([signal.SIGUSR1])
os.close(int(sys.argv[4]))
signal.pause()
"""


async def test_a_link_that_is_closed_before_its_worker_ends_costs_nothing(
    local: service.Service, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed link is readable and writable forever: the loop must not watch it any more."""
    await worker_stand.eventually(lambda: local.supervisor.all_ready)
    deaf = tmp_path / "deaf-worker"
    deaf.write_text(DEAF_WORKER.format(python=sys.executable))
    deaf.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(deaf))
        os.kill(worker_process(), signal.SIGKILL)
        await worker_stand.eventually(lambda: 1 in local.hub.workers and not local.supervisor.all_ready)
    handle = local.hub.workers[1]
    while not handle.link.wants_write:
        handle.send(messages.WithdrawFeeds(["x" * 100_000]))
    hear = mock.patch.object(handle.link, "receive", wraps=handle.link.receive)
    flush = mock.patch.object(handle.link, "flush", wraps=handle.link.flush)
    with hear as heard, flush as flushed:
        os.kill(worker_process(), signal.SIGUSR1)
        await worker_stand.eventually(lambda: local.supervisor.restarts == 2)
    assert 1 <= heard.call_count <= 2  # at the end of the link, and once more at the end of the worker
    assert flushed.call_count <= 10  # every second, by the supervisor
    await worker_stand.eventually(lambda: local.supervisor.all_ready)


async def test_an_embedded_worker_whose_link_breaks_ends_the_service(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_service(cluster, monkeypatch, workers=0)
    task = asyncio.create_task(one.run(), name="service")
    await worker_stand.eventually(lambda: one.supervisor.all_ready)
    with (
        mock.patch.object(one.hub.workers[0].link, "receive", side_effect=ValueError("a defect")),
        pytest.raises(ExceptionGroup) as failed,
    ):
        await asyncio.wait_for(task, 20)
    assert "a defect" in repr(failed.value)


async def test_a_worker_that_cannot_be_started_is_tried_again(
    local: service.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker_stand.eventually(lambda: local.supervisor.all_ready)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere/python")
        os.kill(worker_process(), signal.SIGKILL)
        await worker_stand.eventually(lambda: local.supervisor.restarts >= 3)
        assert local.hub.workers == {}
    await worker_stand.eventually(lambda: local.supervisor.all_ready)


async def test_a_worker_that_starts_while_the_service_drains_ends_too(local: service.Service, cluster: Cluster) -> None:
    await worker_stand.eventually(lambda: local.supervisor.all_ready)
    os.kill(worker_process(), signal.SIGKILL)
    await worker_stand.eventually(lambda: not local.hub.workers)
    await worker_stand.eventually(lambda: local.hub.workers)  # it is being started; the fixture drains now


async def test_the_totals_of_dead_workers_are_kept() -> None:
    turns = [0.5, 0.25]

    async def reports_and_ends(_: messages.WorkerConfig, __: socket.socket, end: socket.socket) -> None:
        counts = messages.WorkerCounts(
            accepted=3,
            disconnects={reasons.DisconnectReason.CLIENT_CLOSED: 2},
            feeds={"web": messages.FeedCounts(deliveries=5)},
        )
        report = messages.Report(counts, longest_turn_seconds_ever=turns.pop(0))
        link.Link(end, messages.FOR_WORKER).send(report)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = supervisor.Supervisor(
            hub.Hub([worker_stand.raw_feed()], LIMITS),
            settings.Settings(workers=0),
            LIMITS,
            listener,
            serve_embedded=reports_and_ends,
        )
        await workers.run()
        await workers.run()
    totals = workers.totals()
    assert totals.accepted == 6
    assert workers.longest_turn_seconds == 0.5
    assert totals.disconnects == {"client-closed": 4}
    assert totals.feeds == {"web": messages.FeedCounts(deliveries=10)}
