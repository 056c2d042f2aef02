"""A service that is cancelled at any moment leaves no task, no descriptor and no process."""

import asyncio
import os
import pathlib
import random

import pytest
import uvloop

from protocol import messages
from protocol.native import connection
from tests.harness import worker_stand
from tests.harness.served import FEED, Cluster
from typha import service, settings

pytestmark = pytest.mark.slow

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
_END_SECONDS = 120.0


def children() -> set[str]:
    """Child processes of this one; earlier tests may have left some, which may end meanwhile."""
    return set(pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def life(configured: settings.Settings, turns: int, seconds: float) -> None:
    """Runs a service, and cancels it after this many turns of the loop and this many seconds."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    with service.open_listener(configured) as listener:
        task = loop.create_task(service.Service(configured, listener).run(), name="service under test")
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.sleep(seconds)
        assert not task.done()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=_END_SECONDS)
    assert done, "the service does not end"
    assert task.cancelled()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def say_hello_again_and_again(port: int) -> None:
    """A client that connects, stays until it is closed, and connects again."""
    end = connection.Connection(connection.Role.CLIENT)
    end.send(messages.ClientHello(feed=FEED, agent="test"))
    hello = end.data_to_send()
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
            continue
        try:
            writer.write(hello)
            while await reader.read(65536):
                pass
        except OSError:
            continue  # reset
        finally:
            writer.transport.abort()


def run(loop: str, folder: pathlib.Path, port: int, workers: int, moments: list[tuple[int, float]]) -> None:
    """Runs and cancels a service once for each moment, in one loop, while a client connects all the time."""

    others = children()

    async def all_lives() -> None:
        async with Cluster(folder) as cluster:
            os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
            configured = settings.Settings(
                server_host="127.0.0.1",
                server_port=port,
                feeds_file=str(cluster.feeds_file),
                workers=workers,
                prometheus_metrics_enabled=True,
                prometheus_metrics_host="127.0.0.1",
                prometheus_metrics_port=0,
            )
            await life(configured, 0, 1.0)  # what is made once in a process is made here
            client = asyncio.create_task(say_hello_again_and_again(port), name="client")
            baseline = descriptors_without_connections()
            for turns, seconds in moments:
                await life(configured, turns, seconds)
                assert children() <= others, f"a process is left after {turns} turns and {seconds} s"
                left = descriptors_without_connections() - baseline
                assert not left, f"left after {turns} turns and {seconds} s: {left}"
            client.cancel()
            await asyncio.wait([client])

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(all_lives())


def descriptors_without_connections() -> set[str]:
    """All descriptors except sockets: those of the simulator and the client come and go."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if "socket:" not in target and "/fd" not in target:
            found.add(f"{entry} {target}")
    return found


@pytest.fixture(autouse=True)
def _no_kubeconfig_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "")


@pytest.mark.parametrize("loop", LOOPS)
def test_without_worker_processes(loop: str, tmp_path: pathlib.Path, free_port: int) -> None:
    choose = random.Random(1)
    moments = [(turns, 0.0) for turns in range(40)] + [(0, choose.random() * 0.3) for _ in range(20)]
    run(loop, tmp_path, free_port, 0, moments)


@pytest.mark.parametrize("loop", LOOPS)
def test_with_a_worker_process(loop: str, tmp_path: pathlib.Path, free_port: int) -> None:
    choose = random.Random(2)
    moments = [(turns, 0.0) for turns in range(14)] + [(0, choose.random()) for _ in range(8)]
    run(loop, tmp_path, free_port, 1, moments)


@pytest.mark.parametrize("loop", LOOPS)
def test_while_it_drains(loop: str, tmp_path: pathlib.Path, free_port: int) -> None:
    others = children()

    async def drained_and_cancelled(workers: int) -> None:
        async with Cluster(tmp_path) as cluster:
            os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
            configured = settings.Settings(
                server_host="127.0.0.1", server_port=free_port, feeds_file=str(cluster.feeds_file), workers=workers
            )
            running = service.Service(configured, service.open_listener(configured))
            task = asyncio.create_task(running.run(), name="service under test")
            client = asyncio.create_task(say_hello_again_and_again(free_port), name="client")
            await worker_stand.eventually(lambda: any(worker.report.active for worker in running.hub.workers.values()))
            running.stop("test")
            await asyncio.sleep(0.1)
            for one in (task, client):
                one.cancel()
                await asyncio.wait([one], timeout=_END_SECONDS)
                assert one.done()
            assert children() <= others

    for workers in (0, 1):
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(drained_and_cancelled(workers))
