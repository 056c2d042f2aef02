"""Worker processes that die, stop or cannot be started: their clients come back, and the counts stay right."""

import asyncio
import contextlib
import os
import pathlib
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from unittest import mock

import aiohttp
import pytest

from protocol import reasons
from tests.harness import worker_stand
from tests.harness.hub_stand import LIMITS
from tests.harness.repository import ROOT
from tests.harness.served import TIMEOUT_SECONDS, Cluster, Service, converged, mirrors, serving
from typha import clock, service, settings
from typha.hub import hub, supervisor, worker_link
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
    await asyncio.wait_for(task, 180)


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
        await asyncio.wait_for(task, 180)
    assert "a defect" in repr(failed.value)


async def test_a_defect_cancels_every_job_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that cleans up waits for something, and a second cancellation would end that."""
    one = make_service(cluster, monkeypatch, workers=0)
    cleaned_up = []

    async def cleans_up() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned_up.append(True)

    monkeypatch.setattr(one.hub, "run_conversions", cleans_up)
    monkeypatch.setattr(one.hub, "look_after_channels", mock.Mock(side_effect=ValueError("a defect")))
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await asyncio.wait_for(one.run(), 180)
    assert cleaned_up == [True]


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


async def test_a_worker_gets_no_secrets(cluster: Cluster) -> None:
    secrets = {
        "K8S_API_TOKEN": "secret-token",
        "TYPHA_ETCDPASSWORD": "secret-password",
        "CALICO_ETCD_KEY": "secret-key",
    }
    async with serving(cluster, "--workers", "1", **secrets, TLS_MIN_VERSION="1.3", MALLOC_ARENA_MAX="2") as running:
        await running.address()
        await worker_stand.eventually(running.workers)
        [worker] = running.workers()
        inherited = dict(
            line.split("=", 1) for line in pathlib.Path(f"/proc/{worker}/environ").read_text().split("\0") if line
        )
        assert "secret" not in str(inherited)
        assert not {name for name in inherited if name.startswith(("K8S_", "CALICO_", "TYPHA_", "KUBE"))}
        assert inherited["TLS_MIN_VERSION"] == "1.3"
        assert inherited["MALLOC_ARENA_MAX"] == "2"
        for pid in (running.process.pid, worker):
            assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] == 0


def test_a_worker_is_told_every_setting_that_it_uses() -> None:
    others = ROOT / "typha" / "observability" / "logs.py", ROOT / "typha" / "open_files.py"
    sources = [*(ROOT / "typha" / "worker").glob("*.py"), *others]
    used = {name for source in sources for name in re.findall(r"\bconfigured\.(\w+)", source.read_text())}
    assert used
    assert used == supervisor.WORKER_SETTINGS
    assert settings.to_dict(settings.Settings()).keys() >= supervisor.WORKER_SETTINGS


def test_time_without_a_cpu_is_no_silence() -> None:
    waited = [0.0]
    silence = supervisor.Silence(lambda: waited[0])
    assert silence.seconds(100.0, 101.0) == 1.0
    waited[0] = 30.0
    assert silence.seconds(100.0, 140.0) == 10.0  # ready to run for 30 of the 40 seconds
    assert silence.seconds(140.0, 141.0) == 1.0
    assert silence.seconds(140.0, 161.0) == 21.0  # it ran or slept all the time
    waited[0] = 0.0  # the kernel does not say any more
    assert silence.seconds(140.0, 162.0) == 22.0


def test_the_kernel_says_how_long_a_process_has_waited() -> None:
    assert supervisor.run_queue_seconds(os.getpid()) > 0.0
    assert supervisor.run_queue_seconds(2**30) == 0.0


class Process:
    """What the kernel says of a process, and what it does in a quarter of a second."""

    def __init__(self) -> None:
        self.cpu = 0
        self.state = "S"
        self.now = 100.0
        self.standstill = supervisor.Standstill(lambda: supervisor.Activity(self.cpu, self.state))

    def passes(self, seconds: float, *, cpu: int = 0, state: str = "S", step_seconds: float = 0.25) -> list[bool]:
        """What each look during this time says."""
        self.state = state
        looks = []
        end = self.now + seconds
        while self.now < end:
            self.now += step_seconds
            self.cpu += cpu
            looks.append(self.standstill.look(self.now))
        return looks


def test_a_stopped_process_stands_still_within_two_seconds_and_goes_on_at_once() -> None:
    for state in "TtSZ":
        process = Process()
        assert not any(process.passes(5, cpu=1000))
        looks = process.passes(1.75, state=state)
        assert looks[-1]
        assert all(process.passes(100, state=state))
        assert process.passes(0.25, cpu=1) == [False]


def test_load_is_no_standstill() -> None:
    process = Process()
    process.passes(1, cpu=1000)
    for _ in range(10):
        assert not any(process.passes(60, state="R"))  # waits for a CPU
        assert not any(process.passes(60, state="D"))  # waits for memory
        assert not any(process.passes(60, cpu=250_000_000, state="R"))
        assert not any(process.passes(1.0))  # a pause of a second
        assert not any(process.passes(1.0, cpu=1))
    assert not any(process.passes(3.0, step_seconds=3.0))  # the hub stood still, and looked once
    assert not any(supervisor.Standstill(lambda: None).look(now) for now in range(100))  # the kernel does not say


def test_the_kernel_says_what_a_process_does() -> None:
    seen = supervisor.read_activity(os.getpid())
    assert seen is not None
    assert (seen.cpu_nanoseconds > 0, seen.state) == (True, "R")
    assert supervisor.read_activity(2**30) is None


async def test_each_worker_is_told_of_the_clients_of_the_others_and_its_turn() -> None:
    sent: dict[int, messages.ToWorker] = {}

    class Link(worker_link.WorkerLink):
        def send(self, message: messages.ToWorker, *descriptors: int) -> None:
            sent[self.number] = message

    the_hub = hub.Hub([], LIMITS)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        for number, active in enumerate((10, 0, 30, 60)):
            ours, theirs = (stack.enter_context(end) for end in link.pair())
            the_hub.workers[number] = Link(number, ours, lambda _: None, lambda _: None)
            the_hub.workers[number].report = messages.Report(messages.WorkerCounts(), active=active)
            assert theirs.fileno() >= 0
        keeper = supervisor.Supervisor(
            the_hub, settings.Settings(workers=4), LIMITS, listener, serve_embedded=never_served
        )
        keeper.drain(seconds=300.0, interval_seconds_max=1.0)
    told = {number: (one.others, one.phase) for number, one in sent.items() if isinstance(one, messages.Drain)}
    assert told == {0: (90, 0.0), 1: (100, 0.25), 2: (70, 0.5), 3: (40, 0.75)}


async def never_served(_: messages.WorkerConfig, __: socket.socket, ___: socket.socket) -> None:
    raise AssertionError


async def readiness(running: Service) -> int:
    found = re.search(r'port=(\d+) server="health"', running.text)
    assert found is not None
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{found[1]}/readiness") as answer:
        return answer.status


HEALTH = {"TYPHA_HEALTHENABLED": "true", "TYPHA_HEALTHHOST": "127.0.0.1", "TYPHA_HEALTHPORT": "0"}


async def becomes(running: Service, status: int) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        seen = await readiness(running)
        while seen != status:
            await asyncio.sleep(0.05)
            seen = await readiness(running)


def go_on(worker: int) -> None:
    """Let a worker run again that was stopped, unless it has been replaced meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGCONT)


async def test_a_service_whose_workers_are_all_stopped_or_dead_is_not_ready(cluster: Cluster) -> None:
    async with serving(cluster, "--workers", "2", **HEALTH) as running, mirrors(await running.address(), 1):
        await becomes(running, 200)
        first, second = running.workers()
        os.kill(first, signal.SIGSTOP)
        await running.logged("Worker stands still")
        assert await readiness(running) == 200  # the other one accepts
        os.kill(second, signal.SIGSTOP)
        await becomes(running, 503)
        go_on(first)
        await becomes(running, 200)
        go_on(second)
    assert "Traceback" not in running.text


async def test_a_service_without_its_only_worker_is_not_ready_until_the_next_one_serves(cluster: Cluster) -> None:
    async with serving(cluster, "--workers", "1", **HEALTH) as running, mirrors(await running.address(), 1):
        await becomes(running, 200)
        os.kill(running.workers()[0], signal.SIGKILL)
        await becomes(running, 503)
        await becomes(running, 200)
        assert len(running.workers()) == 2


async def test_a_stopped_worker_does_not_keep_a_draining_service_from_ending(cluster: Cluster) -> None:
    timeout = {"TYPHA_SHUTDOWNTIMEOUTSECS": "1"}
    async with serving(cluster, "--workers", "2", **timeout) as running, mirrors(await running.address(), 4):
        os.kill(running.workers()[0], signal.SIGSTOP)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ends() == 0
    assert "Killing a worker that has not drained in time" in running.text


async def test_a_worker_that_starts_has_more_time_and_after_failed_starts_still_more() -> None:
    async def ends_before_it_is_ready(_: messages.WorkerConfig, __: socket.socket, ___: socket.socket) -> None:
        pass

    ours, theirs = link.pair()
    worker = worker_link.WorkerLink(0, ours, lambda _: None, lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as listener, ours, theirs:
        keeper = supervisor.Supervisor(
            hub.Hub([], LIMITS),
            settings.Settings(workers=0),
            LIMITS,
            listener,
            serve_embedded=ends_before_it_is_ready,
        )
        patience = [keeper.patience_seconds(worker)]
        for _ in range(5):
            await keeper.run()
            patience.append(keeper.patience_seconds(worker))
        start_seconds = LIMITS.worker_start_seconds_max
        assert patience == [start_seconds * factor for factor in (1, 2, 4, 8, 8, 8)]
        worker.ready = True
        assert keeper.patience_seconds(worker) == LIMITS.worker_silence_seconds_max < start_seconds


def test_a_worker_that_does_not_empty_its_link_is_noticed_unless_the_kernel_lacks_something() -> None:
    now = [1000.0]
    ours, theirs = link.pair()
    with clock.replaced(monotonic=lambda: now[0], time_ns=time.time_ns), ours, theirs:
        worker = worker_link.WorkerLink(1, ours, lambda _: None, lambda _: None)
        while not worker.link.wants_write:
            worker.send(messages.WithdrawFeeds(["x" * 10_000]))
        assert worker.blocked_seconds == 0.0
        now[0] += 50.0
        assert worker.blocked_seconds == 50.0
        worker.link.shortage = OSError("lacking")
        assert worker.blocked_seconds == 0.0
        worker.link.shortage = None
        assert worker.blocked_seconds == 0.0
        worker.link.close()
