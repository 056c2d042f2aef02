"""An elected fleet on a real API server: one replica watches, agents of two releases at every replica have the map."""

import asyncio
import contextlib
import os
import pathlib
import signal
from collections.abc import Iterator

import pytest

from cache.feeds.calico import syncers
from loadtest.environment import calico_crds, control_plane
from tests.harness import calico_cluster, go_client, served, worker_stand

pytestmark = [pytest.mark.control_plane, pytest.mark.go, pytest.mark.slow, pytest.mark.timeout(600)]

V1 = syncers.Group.V1
REPLICAS = 3
WATCHES = 'typha_source{mode="watching"}'


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[calico_cluster.RealCluster]:
    with calico_cluster.opened(tmp_path) as running:
        yield running


def variables(addresses: list[str], number: int) -> dict[str, str]:
    return {
        "TYPHA_UPSTREAM": "elected",
        # On a busy machine the first election may take longer than the default.
        "TYPHA_UPSTREAMFALLBACKAFTERSECS": "600",
        "TYPHA_PEERADDRESSES": ",".join(addresses),
        "TYPHA_SERVERPORT": addresses[number].rpartition(":")[2],
    }


def open_watches(plane: control_plane.ControlPlane) -> float:
    return plane.metric_total("apiserver_longrunning_requests", verb="WATCH")


async def holder_of(replicas: list[served.Service]) -> int:
    """The number of the replica that watches, once there is one."""
    deadline = asyncio.get_running_loop().time() + served.TIMEOUT_SECONDS
    while True:
        watching = [number for number, one in enumerate(replicas) if await one.metric(WATCHES) == 1]
        if watching:
            assert len(watching) == 1
            return watching[0]
        assert asyncio.get_running_loop().time() < deadline, "no replica watches"
        await asyncio.sleep(0.2)


async def test_one_replica_of_an_elected_fleet_watches(gobpeer: str, cluster: calico_cluster.RealCluster) -> None:
    first, later = calico_cluster.recorded_steps(V1)
    await asyncio.to_thread(cluster.install, V1.value, *calico_cluster.OTHER_GROUPS, calico_crds.ADMIN_POLICIES)
    await asyncio.to_thread(cluster.play, first)
    before = await asyncio.to_thread(open_watches, cluster.plane)
    addresses = [f"127.0.0.1:{control_plane.free_port()}" for _ in range(REPLICAS)]
    async with contextlib.AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(served.serving(cluster, "--workers", "1", **variables(addresses, number)))
            for number in range(REPLICAS)
        ]
        holder = await holder_of(replicas)
        agents = {
            address: [go_client.Agent(syncers.FELIX), go_client.Agent(syncers.FELIX, release="v3.31.7")]
            for address in addresses
        }
        for address, of_replica in agents.items():
            await stack.enter_async_context(go_client.living(gobpeer, address, *of_replica))
        everyone = [one for of_replica in agents.values() for one in of_replica]
        newest, older = ([pair[release] for pair in agents.values()] for release in (0, 1))
        await calico_cluster.have_the_map(cluster, V1, newest)
        await calico_cluster.have_the_map(cluster, V1, older)
        alone = await asyncio.to_thread(open_watches, cluster.plane) - before
        assert 20 < alone < 40  # those of one replica

        await asyncio.to_thread(cluster.play, later[::2])
        await calico_cluster.have_the_map(cluster, V1, everyone)

        os.killpg(replicas[holder].process.pid, signal.SIGKILL)
        await asyncio.to_thread(cluster.play, later[1::2])
        left = [one for number, one in enumerate(replicas) if number != holder]
        await holder_of(left)
        served_on = [one for number, address in enumerate(addresses) if number != holder for one in agents[address]]
        await calico_cluster.have_the_map(cluster, V1, served_on)
        assert all(len(one.clients) == 1 for one in served_on), "a client was disconnected"
        await worker_stand.eventually(lambda: open_watches(cluster.plane) - before <= alone + 2, seconds=60)
