"""Worker processes that die, stop or cannot be started; their clients come back, and the counts stay right."""

import asyncio
import os
import pathlib
import signal
import sys
from collections.abc import AsyncIterator
from unittest import mock

import pytest

from tests.harness import support
from tests.harness.served import Cluster, converged, mirrors, serving
from typha import service, settings
from typha.hub import supervisor

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
        await support.eventually(lambda: len(running.workers()) == 3)
        await converged(cluster, clients)
        moved = sum(client.last_disconnect is not None for client in clients)
        await running.metric_is("typha_worker_restarts_total", 1)
        await running.metric_is('typha_disconnects_total{reason="worker-died"}', moved)
        await running.metric_is("typha_connections_active", 8)
        await running.metric_is("typha_connections_accepted", 8 + moved)
        os.kill(second, signal.SIGKILL)
        await support.eventually(lambda: len(running.workers()) == 4)
        cluster.put("p2", "newer")
        await converged(cluster, clients)
        await running.metric_is("typha_worker_restarts_total", 2)


@pytest.fixture
async def embedded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[service.Service]:
    """The hub in the test's loop with a worker process; drained at the end."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    configured = settings.Settings(
        server_port=-1, server_host="127.0.0.1", feeds_file=str(cluster.feeds_file), workers=1
    )
    hub = service.Service(configured, service.open_listener(configured))
    task = asyncio.create_task(hub.run(), name="service")
    yield hub
    hub.stop("test")
    await asyncio.wait_for(task, 20)


def worker_process() -> int:
    """The one child process of this process that is a worker."""
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    [pid] = [int(child) for child in children if "typha.worker" in pathlib.Path(f"/proc/{child}/cmdline").read_text()]
    return pid


async def test_a_stopped_worker_is_killed_and_replaced(
    embedded: service.Service, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{embedded.listener.getsockname()[1]}"
    async with mirrors(address, 3) as clients:
        await support.eventually(lambda: embedded.hub.workers[1].active == 3)
        monkeypatch.setattr(supervisor, "SILENCE_SECONDS_MAX", 1.5)
        stopped = worker_process()
        os.kill(stopped, signal.SIGSTOP)
        cluster.put("p1", "new")
        await support.eventually(lambda: embedded.workers.restarts == 1)
        await converged(cluster, clients)
        assert worker_process() != stopped
        assert embedded.workers.totals().disconnects == {"worker-died": 3}


async def test_a_worker_whose_link_breaks_is_replaced(embedded: service.Service) -> None:
    await support.eventually(lambda: embedded.workers.all_ready)
    embedded.hub.workers[1].tell(["nonsense"])
    await support.eventually(lambda: embedded.workers.restarts == 1)
    await support.eventually(lambda: embedded.workers.all_ready)


DEAF_WORKER = """#!{python}
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signal.sigwait([signal.SIGUSR1])
os.close(int(sys.argv[4]))
signal.pause()
"""


async def test_a_link_that_is_closed_before_its_worker_ends_costs_nothing(
    embedded: service.Service, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that nobody holds is readable, and writable, for ever: the loop must not be called for it again."""
    await support.eventually(lambda: embedded.workers.all_ready)
    deaf = tmp_path / "deaf-worker"
    deaf.write_text(DEAF_WORKER.format(python=sys.executable))
    deaf.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(deaf))
        os.kill(worker_process(), signal.SIGKILL)
        await support.eventually(lambda: 1 in embedded.hub.workers and not embedded.workers.all_ready)
    handle = embedded.hub.workers[1]
    while not handle.link.wants_write:
        handle.tell(["fill", "x" * 100_000])
    hear = mock.patch.object(handle.link, "receive", wraps=handle.link.receive)
    flush = mock.patch.object(handle.link, "flush", wraps=handle.link.flush)
    with hear as heard, flush as flushed:
        os.kill(worker_process(), signal.SIGUSR1)
        await support.eventually(lambda: embedded.workers.restarts == 2)
    assert 1 <= heard.call_count <= 2  # the end of the link, and once more when the worker has gone
    assert flushed.call_count <= 10  # by the keeper's own clock
    await support.eventually(lambda: embedded.workers.all_ready)


async def test_an_embedded_worker_whose_link_breaks_ends_the_service(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    configured = settings.Settings(
        server_port=-1, server_host="127.0.0.1", feeds_file=str(cluster.feeds_file), workers=0
    )
    hub = service.Service(configured, service.open_listener(configured))
    task = asyncio.create_task(hub.run(), name="service")
    await support.eventually(lambda: hub.workers.all_ready)
    with (
        mock.patch.object(hub.hub.workers[0].link, "receive", side_effect=ValueError("a defect")),
        pytest.raises(ExceptionGroup) as failed,
    ):
        await asyncio.wait_for(task, 20)
    assert "a defect" in repr(failed.value)


async def test_a_worker_that_cannot_be_started_is_tried_again(
    embedded: service.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await support.eventually(lambda: embedded.workers.all_ready)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere/python")
        os.kill(worker_process(), signal.SIGKILL)
        await support.eventually(lambda: embedded.workers.restarts >= 3)
        assert embedded.hub.workers == {}
    await support.eventually(lambda: embedded.workers.all_ready)


async def test_a_worker_that_starts_while_the_service_drains_ends_too(
    embedded: service.Service, cluster: Cluster
) -> None:
    await support.eventually(lambda: embedded.workers.all_ready)
    os.kill(worker_process(), signal.SIGKILL)
    await support.eventually(lambda: not embedded.hub.workers)
    await support.eventually(lambda: embedded.hub.workers)  # on its way up; the fixture drains right now


def test_the_totals_of_the_dead_are_kept() -> None:
    totals = supervisor.WorkerTotals()
    report = {
        "accepted": 3,
        "pause_seconds_worst": 0.5,
        "disconnects": {"client-closed": 2},
        "feeds": {"web": {"deliveries": 5}},
    }
    totals.add(report)
    totals.add({**report, "pause_seconds_worst": 0.25})
    assert totals.counters["accepted"] == 6
    assert totals.pause_seconds_worst == 0.5
    assert totals.disconnects == {"client-closed": 4}
    assert totals.feeds == {"web": {"deliveries": 10}}
