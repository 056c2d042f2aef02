"""Go clients of all four syncer types on a real API server. Their maps equal `typha convert` of its lists."""

import asyncio
import contextlib
import os
import pathlib
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache.feeds.calico import syncers
from loadtest.environment import control_plane
from tests.harness import calico_cluster, go_client, served, worker_stand

pytestmark = [pytest.mark.control_plane, pytest.mark.go, pytest.mark.slow, pytest.mark.timeout(240)]

V1 = syncers.Group.V1
VARIANTS = {"snappy": (), "plain": ("-no-restart",)}
RECONNECT_SECONDS = 0.2
ROUNDS = 3
CHECK_SECONDS = 5.0
"""Time for the clients to match the lists before the lists are read again."""


class Agent:
    """An agent like Felix: it ends with its connection, and starts again without any state."""

    def __init__(self, syncer: str, variant: str) -> None:
        self.syncer = syncer
        self.variant = variant
        self.client: go_client.GoClient | None = None
        self.lives = 0

    async def live(self, gobpeer: str, address: str) -> None:
        """Run the agent until the task is cancelled."""
        while True:
            async with go_client.following(gobpeer, address, self.syncer, *VARIANTS[self.variant]) as client:
                self.client = client
                self.lives += 1
                await client.process.wait()
            await asyncio.sleep(RECONNECT_SECONDS)

    @property
    def map(self) -> calico_cluster.Map | None:
        """The map of the agent while it is in sync, else None."""
        client = self.client
        if client is None or client.statuses[-1:] != [2] or client.seen[-1:] == ["error"]:
            return None
        return {key: (value.decode(), *client.versions[key]) for key, value in client.entries.items()}


@contextlib.asynccontextmanager
async def living(gobpeer: str, address: str) -> AsyncIterator[list[Agent]]:
    """Run an agent of each syncer type and variant."""
    agents = [Agent(syncer, variant) for syncer in syncers.NAMES for variant in VARIANTS]
    tasks = [asyncio.create_task(agent.live(gobpeer, address), name=f"agent {agent.syncer}") for agent in agents]
    try:
        yield agents
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results


async def have_the_map(cluster: calico_cluster.RealCluster, agents: list[Agent]) -> dict[str, calico_cluster.Map]:
    """Wait until each agent has the converted lists of its feed. Returns them by syncer type."""
    deadline = time.monotonic() + calico_cluster.PATIENCE_SECONDS
    while True:
        maps = await asyncio.gather(*(calico_cluster.converted(cluster, V1, syncer) for syncer in syncers.NAMES))
        wanted = {
            syncer: {key: line for key, line in found.items() if line[0] is not None}
            for syncer, found in zip(syncers.NAMES, maps, strict=True)
        }
        until = time.monotonic() + CHECK_SECONDS
        while time.monotonic() < until:
            if all(_has(agent, wanted[agent.syncer]) for agent in agents):
                for agent in agents:
                    calico_cluster.check_revisions(agent.map or {}, wanted[agent.syncer])
                return wanted
            await asyncio.sleep(0.05)
        assert time.monotonic() < deadline, [
            (agent.syncer, agent.variant, calico_cluster.difference(agent.map or {}, wanted[agent.syncer]))
            for agent in agents
        ]


def _has(agent: Agent, wanted: calico_cluster.Map) -> bool:
    held = agent.map
    return held is not None and calico_cluster.values(held) == calico_cluster.values(wanted)


def churn() -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The first objects, and three rounds of changes, for every feed. No recording has node statuses: add them."""
    first, later = calico_cluster.recorded_steps(V1)
    size = -(-len(later) // ROUNDS)
    first += [node_status("create", "kept", 10), node_status("create", "gone-0", 10)]
    rounds = [
        [
            *later[number * size : (number + 1) * size],
            node_status("update", "kept", 11 + number),
            node_status("create", f"gone-{number + 1}", 10),
            node_status("delete", f"gone-{number}", 10),
        ]
        for number in range(ROUNDS)
    ]
    return first, rounds


def node_status(operation: str, name: str, period_seconds: int) -> dict[str, Any]:
    spec = {"node": name, "updatePeriodSeconds": period_seconds, "classes": ["Agent", "BGP"]}
    item = {"apiVersion": V1.value, "kind": "CalicoNodeStatus", "metadata": {"name": name}, "spec": spec}
    return {"op": operation, "objects": [item]}


async def test_every_syncer_type_survives_churn_the_death_of_workers_and_a_restart(
    gobpeer: str, tmp_path: pathlib.Path
) -> None:
    first, rounds = churn()
    port = control_plane.free_port()
    variables = {"TYPHA_SERVERPORT": str(port)}
    with calico_cluster.opened(tmp_path) as cluster:
        await asyncio.to_thread(cluster.install, V1.value, *calico_cluster.OTHER_GROUPS)
        await asyncio.to_thread(cluster.play, first)
        async with living(gobpeer, f"127.0.0.1:{port}") as agents:
            async with served.serving(cluster, "--workers", "2", **variables) as service:
                found = await have_the_map(cluster, agents)
                assert len(found[syncers.FELIX]) > 250
                assert all(found.values())
                lives = sum(agent.lives for agent in agents)

                await asyncio.to_thread(cluster.play, rounds.pop(0))
                await have_the_map(cluster, agents)
                assert sum(agent.lives for agent in agents) == lives, "a client was disconnected"

                # All of these few clients may be connected to the same worker, so kill both.
                for worker in service.workers():
                    os.kill(worker, signal.SIGKILL)
                await asyncio.to_thread(cluster.play, rounds.pop(0))
                await have_the_map(cluster, agents)
                await worker_stand.eventually(lambda: len(service.workers()) == 4)
                assert sum(agent.lives for agent in agents) >= lives + len(agents), "a client outlived its worker"
            await asyncio.to_thread(cluster.play, rounds.pop(0))
            async with served.serving(cluster, "--workers", "1", **variables) as again:
                await have_the_map(cluster, agents)
        assert "Traceback" not in service.text + again.text
