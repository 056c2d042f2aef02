"""Elected fleets of real replicas on a simulated API server."""

import asyncio
import contextlib
import pathlib
import signal

import pytest

from loadtest.apiserver import resources as simulated
from loadtest.environment import control_plane
from tests.harness import served
from tests.typha.upstream import test_source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LEASES = simulated.Resource("coordination.k8s.io", "v1", "leases", "Lease")
REPLICAS = 3
AGENTS = 8


async def test_nothing_is_seen_deleted_when_the_replica_that_watches_is_replaced(tmp_path: pathlib.Path) -> None:
    addresses = [f"127.0.0.1:{control_plane.free_port()}" for _ in range(REPLICAS)]
    async with served.Cluster(tmp_path) as cluster, contextlib.AsyncExitStack() as stack:
        cluster.simulator.store.install(LEASES)
        replicas = []
        for address in addresses:
            variables = {
                **test_source.variables("elected"),
                "TYPHA_PEERADDRESSES": ",".join(addresses),
                "TYPHA_SERVERPORT": address.rpartition(":")[2],
                "TYPHA_SHUTDOWNTIMEOUTSECS": "120",
            }
            replicas.append(await stack.enter_async_context(served.serving(cluster, "--workers", "1", **variables)))
            if len(replicas) == 1:
                await replicas[0].metric_is(test_source.WATCHES, 1)
        for one in replicas[1:]:
            await one.metric_is(test_source.FOLLOWS, 1)
        leader, others = replicas[0], addresses[1:]
        agents = [await stack.enter_async_context(test_source.watched([addresses[0], *others])) for _ in range(AGENTS)]
        leader.process.send_signal(signal.SIGTERM)
        for number in range(30):  # the others lack these until one of them watches
            cluster.put(f"new-{number}")
            await asyncio.sleep(0.05)
        assert await leader.ends() == 0
        await served.converged(cluster, [one for one, _ in agents])
        assert [deleted for _, deleted in agents] == [[]] * AGENTS
