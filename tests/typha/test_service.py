"""The service as a process: it serves, breaks, ends and starts again, and leaves nothing."""

import asyncio
import contextlib
import os
import pathlib
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator

import pytest

from cache.watch import decoding
from clients import differ, mirror
from loadtest.apiserver import faults
from loadtest.apiserver.settings import SimulatorSettings
from protocol import messages, state_digest
from protocol.native import connection as native
from tests.harness import served, worker_stand
from tests.harness.served import Cluster, converged, mirrors, serving
from typha import service, settings

pytestmark = pytest.mark.slow


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> AsyncIterator[Cluster]:
    """An API server with a few pods."""
    async with Cluster(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("workers", ["0", "1", "2"])
async def test_serves_and_drains(cluster: Cluster, workers: str) -> None:
    async with serving(cluster, "--workers", workers) as running, mirrors(await running.address(), 4) as clients:
        cluster.put("p1", "new")
        await converged(cluster, clients)
        assert len(running.workers()) == int(workers)
        await running.metric_is("typha_connections_active", 4)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ends() == 0
        await worker_stand.eventually(lambda: all(client.last_disconnect for client in clients))
        assert not any(client.connected for client in clients)
    assert "Drained" in running.text
    assert "Traceback" not in running.text
    assert "[ERROR]" not in running.text


async def test_clients_and_newcomers_learn_that_the_api_server_is_lost(cluster: Cluster) -> None:
    """They keep their map, and no key of it is deleted."""
    async with (
        serving(cluster, "--workers", "1") as running,
        mirrors(await running.address(), 1) as [client],
    ):
        content = cluster.content
        await cluster.simulator.stop()
        await worker_stand.eventually(lambda: client.status is messages.SyncStatus.WAITING)
        assert not client.in_sync
        deleted: list[mirror.Change] = []
        async with mirror.Mirror(
            await running.address(),
            feed=served.FEED,
            agent="newcomer",
            on_change=lambda changes: deleted.extend(change for change in changes if change.new is None),
        ) as newcomer:
            await worker_stand.eventually(lambda: len(newcomer) == len(content))
            assert newcomer.status is messages.SyncStatus.WAITING
            assert not newcomer.in_sync
        assert deleted == []
        assert {key: entry.value for key, entry in client.items()} == content
        assert client.connected


@pytest.mark.parametrize("max_frame_bytes", [65_536, 100_000])
async def test_no_frame_exceeds_the_announced_limit(cluster: Cluster, max_frame_bytes: int) -> None:
    """A client that refuses larger frames gets a snapshot, updates and a catch-up; what is too large is named."""
    cluster.put(*(f"large{number}" for number in range(60)), padding="x" * 20_000)
    cluster.put("too-large", padding="x" * (max_frame_bytes - 30_000))
    async with serving(cluster, "--workers", "1", TYPHA_MAXFRAMEBYTES=str(max_frame_bytes)) as running:
        host, _, port = (await running.address()).partition(":")
        with socket.create_connection((host, int(port)), timeout=served.TIMEOUT_SECONDS) as end:
            peer = native.Connection(native.Role.CLIENT, max_frame_bytes=max_frame_bytes)
            peer.send(messages.ClientHello(feed=served.FEED, agent="small"))
            end.sendall(peer.data_to_send())
            follower = differ.Differ()

            def receive() -> None:
                peer.receive_data(end.recv(1 << 20))
                while (message := peer.next_event()) is not None:
                    if isinstance(message, messages.ServerHello):
                        assert message.max_frame_bytes == max_frame_bytes
                    follower.receive(message)
                end.sendall(peer.data_to_send())

            for padding in "xy":
                cluster.put(*(f"large{number}" for number in range(60)), padding=padding * 20_000)
                content = {key: value for key, value in cluster.content.items() if "too-large" not in key}
                while follower.digest != state_digest(content.items()):
                    await asyncio.to_thread(receive)
        assert "too-large" in running.text
        assert "value-too-large" in running.text


async def test_a_second_signal_changes_nothing(cluster: Cluster) -> None:
    drop = {"TYPHA_SHUTDOWNCONNECTIONDROPINTERVALMAXSECS": "0.3"}
    async with (
        serving(cluster, "--workers", "1", **drop) as running,
        mirrors(await running.address(), 3),
    ):
        running.process.send_signal(signal.SIGTERM)
        await running.logged("Draining")
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await connect_until_refused(await running.address())
        running.process.send_signal(signal.SIGINT)
        await running.logged("Already draining")
        assert await running.ends() == 0


async def test_no_signal_to_the_process_group_harms_hub_or_workers(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log" / "typha.log"
    async with serving(cluster, "--workers", "2", TYPHA_LOGFILEPATH=str(log)) as running:
        await running.logged(": Starting ")
        harmless = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        while "Listening" not in running.text or len(running.workers()) < 2:  # while workers are being started, too
            for number in harmless:
                os.killpg(running.process.pid, number)
            await asyncio.sleep(0.002)
        async with mirrors(await running.address(), 4) as clients:
            await running.metric_is("typha_connections_active", 4)
            await asyncio.sleep(1.1)  # a diagnosis a second
            os.killpg(running.process.pid, signal.SIGUSR1)
            await worker_stand.eventually(lambda: running.text.count("Diagnosis of a worker ") >= 2)
            await running.logged(f'Diagnosis of a feed .*feed="web" keys={len(cluster.content)} ')
            await running.logged(r'Diagnosis of a watch .*objects=20 .*type="core/v1/pods"')
            log.rename(tmp_path / "log" / "typha.log.1")
            os.killpg(running.process.pid, signal.SIGHUP)
            await worker_stand.eventually(log.exists)
            cluster.put("p1", "new")
            await converged(cluster, clients)
            assert {client.last_disconnect for client in clients} == {None}
        assert await running.metric("typha_worker_restarts_total") == 0
        with contextlib.suppress(ProcessLookupError):  # the first may be enough
            for _ in range(5):
                os.killpg(running.process.pid, signal.SIGTERM)
        assert await running.ends() == 0
    assert "Traceback" not in running.text


async def test_the_level_can_be_switched_while_the_service_runs(cluster: Cluster) -> None:
    async with serving(cluster, "--workers", "1", TYPHA_LOGSEVERITYSCREEN="warning") as running:
        await worker_stand.eventually(lambda: served.processes_of_session(running.process.pid)[1:])
        await asyncio.sleep(1.0)
        assert "[INFO]" not in running.text
        os.kill(running.process.pid, signal.SIGUSR2)
        pids = {f"[INFO][{pid}]" for pid in served.processes_of_session(running.process.pid)}
        await worker_stand.eventually(lambda: all(pid in running.text for pid in pids))
        hub = running.process.pid
        [worker] = set(served.processes_of_session(hub)) - {hub}
        os.kill(worker, signal.SIGKILL)  # the next one has the same level
        await worker_stand.eventually(
            lambda: len(set(re.findall(r"\[INFO\]\[(\d+)\]", running.text)) - {str(worker)}) > 1
        )
        assert f"[INFO][{hub}]" in running.text


async def connect_until_refused(address: str) -> None:
    """Connects again and again; raises OSError once no process listens."""
    host, _, port = address.partition(":")
    for _ in range(200):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        await asyncio.sleep(0.01)


async def test_workers_end_with_a_killed_hub_and_the_next_hub_starts_at_once(cluster: Cluster, free_port: int) -> None:
    port = {"TYPHA_SERVERPORT": str(free_port)}
    async with serving(cluster, "--workers", "2", **port) as first, mirrors(await first.address(), 6) as clients:
        first.process.kill()
        async with serving(cluster, "--workers", "2", **port) as second:
            await first.ends()
            cluster.put("p1", "new")
            await second.address()
            await converged(cluster, clients)
            await worker_stand.eventually(lambda: not served.processes_of_session(first.process.pid))
            assert all(client.last_disconnect is not None for client in clients)


async def test_a_busy_worker_ends_with_a_killed_hub(cluster: Cluster) -> None:
    async with serving(cluster, "--workers", "1") as running, mirrors(await running.address(), 1):
        [worker] = running.workers()
        os.kill(worker, signal.SIGSTOP)
        running.process.kill()
        await running.ends()
        assert served.processes_of_session(running.process.pid) == [worker]
        os.kill(worker, signal.SIGCONT)
        await worker_stand.eventually(lambda: not served.processes_of_session(running.process.pid))


async def test_an_api_server_that_goes_away_and_comes_back(cluster: Cluster) -> None:
    async with serving(cluster, "--workers", "1") as running, mirrors(await running.address(), 3) as clients:
        cluster.simulator.inject(faults.Fault(kind=faults.FaultKind.RESTART, duration_seconds=3.0))
        await running.logged("cannot list or watch a resource type")
        async with mirrors(await running.address(), 2) as late:
            cluster.put("p2", "later")
            await converged(cluster, [*clients, *late])
            assert {client.last_disconnect for client in (*clients, *late)} == {None}
        await running.metric_is('typha_watch_resumes_total{type="core/v1/pods"}', 1)


async def test_forbidden_types_that_are_not_installed_keep_no_replica_from_being_ready(tmp_path: pathlib.Path) -> None:
    """The operator's RBAC rules of a release are for its own types, not for those of every other release."""
    absent = (
        "policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
        "kubevirt.io/v1/virtualmachineinstancemigrations",
    )
    forbidden = frozenset(f"/apis/{type}" for type in absent)
    async with Cluster(tmp_path, SimulatorSettings(forbidden=forbidden)) as cluster:
        types = "".join(f"      - type: {type}\n" for type in absent)
        cluster.feeds_file.write_text(cluster.feeds_file.read_text() + types)
        async with serving(cluster, "--workers", "0") as running, mirrors(await running.address(), 1) as clients:
            await converged(cluster, clients)
            for type in absent:
                assert running.text.count(f'type="{type}"') == 1
                await running.metric_is(f'typha_watch_errors_total{{type="{type}",class="not-found"}}', 1)
    assert running.text.count("resource type is not installed") == 2
    assert "missing RBAC rule" not in running.text


@pytest.mark.parametrize("setting", ["SERVER", "HEALTH", "PROMETHEUSMETRICS"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
async def test_a_port_in_use_is_one_clear_line(cluster: Cluster, setting: str, host: str) -> None:
    """On a host network another process may have the port, and would answer clients and probes instead."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        variables = {"TYPHA_HEALTHENABLED": "true", "TYPHA_HEALTHHOST": "127.0.0.1", "TYPHA_HEALTHPORT": "0"}
        variables |= {f"TYPHA_{setting}PORT": str(port), f"TYPHA_{setting}HOST": host or "none"}
        async with serving(cluster, **variables) as running:
            assert await running.ends() == service.EXIT_CANNOT_SERVE
    [line] = [line for line in running.text.splitlines() if "[INFO]" not in line]
    what = {"SERVER": "clients", "HEALTH": "health", "PROMETHEUSMETRICS": "metrics"}[setting]
    assert f"cannot listen on {host or '*'}:{port} for {what}" in line
    assert "in use" in line


async def test_a_health_port_that_becomes_free_in_a_moment_is_waited_for(cluster: Cluster, free_port: int) -> None:
    taken = socket.create_server(("127.0.0.1", free_port))
    variables = {"TYPHA_HEALTHENABLED": "true", "TYPHA_HEALTHHOST": "127.0.0.1"}
    variables["TYPHA_HEALTHPORT"] = str(taken.getsockname()[1])
    asyncio.get_running_loop().call_later(1.5, taken.close)
    async with serving(cluster, "--workers", "0", **variables) as running:
        await running.logged("HTTP server is listening.*health")


async def test_bad_feeds_are_one_line_and_exit_2(cluster: Cluster) -> None:
    cluster.feeds_file.write_text("feeds:\n  Web:\n    resources: []\n")
    async with serving(cluster) as running:
        assert await running.ends() == 2
    [line] = running.text.splitlines()
    assert line.startswith("typha: error: ")
    assert "Web" in line


async def test_without_an_api_server_clients_are_held(cluster: Cluster) -> None:
    async with serving(cluster, "--workers", "1", KUBECONFIG="/nowhere") as running:
        host, _, port = (await running.address()).partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        await running.metric_is("typha_connections_active", 1)
        writer.close()
        await running.metric_is('typha_disconnects_total{reason="client-closed"}', 1)


def test_a_listener_without_a_host_accepts_both_families() -> None:
    with service.open_listener(settings.Settings(server_port=-1)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=180):
            pass
        if listener.family is socket.AF_INET6:
            with socket.create_connection(("::1", port), timeout=180):
                pass


def test_the_kernel_keeps_little_of_what_a_peer_sends_and_nobody_reads() -> None:
    configured = settings.Settings(server_port=-1, server_host="127.0.0.1")
    with (
        service.open_listener(configured) as listener,
        socket.create_connection(listener.getsockname()) as peer,
    ):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.setblocking(True)
        accepted, _ = listener.accept()
        peer.settimeout(0.2)
        sent = 0
        with accepted, contextlib.suppress(TimeoutError):
            while sent < 1 << 20:
                sent += peer.send(bytes(1000))
        assert sent < 64 * 1024


def test_a_listener_for_one_host() -> None:
    with service.open_listener(settings.Settings(server_port=-1, server_host="127.0.0.1")) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        assert not listener.getblocking()


def test_a_host_that_does_not_exist() -> None:
    before = worker_stand.descriptors_before()
    with pytest.raises(service.ServiceError, match=r"192\.0\.2\.1:"):
        service.open_listener(settings.Settings(server_port=-1, server_host="192.0.2.1"))
    assert worker_stand.open_descriptors() == before


async def test_the_service_waits_for_a_port_that_becomes_free_in_a_moment(free_port: int) -> None:
    taken = socket.create_server(("127.0.0.1", free_port))
    configured = settings.Settings(server_port=taken.getsockname()[1], server_host="127.0.0.1")
    begun = time.monotonic()
    asyncio.get_running_loop().call_later(0.3, taken.close)
    with await service._when_free(lambda: service.open_listener(configured)) as listener:
        assert listener.getsockname()[1] == configured.server_port
    assert time.monotonic() - begun >= 0.2


def test_json_as_deep_as_the_api_server_allows_is_decoded() -> None:
    before = sys.getrecursionlimit()
    try:
        service.allow_deep_json()
        deep = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
        line = b'{"type":"ADDED","object":{"metadata":{"name":"n","resourceVersion":"1"},"spec":' + deep + b"}}"
        assert decoding.decode_line(line).envelope.metadata.name == "n"
    finally:
        sys.setrecursionlimit(before)
