"""Go clients of all four syncer types on a real API server. Their maps equal `typha convert` of its lists."""

import asyncio
import os
import pathlib
import signal
from typing import Any

import pytest

from cache.feeds.calico import syncers
from loadtest.environment import control_plane
from tests.harness import calico_cluster, go_client, served, worker_stand

pytestmark = [pytest.mark.control_plane, pytest.mark.go, pytest.mark.slow, pytest.mark.timeout(600)]

V1 = syncers.Group.V1
VARIANTS = {"snappy": (), "plain": ("-no-restart",)}
ROUNDS = 3


def lives_of(agents: list[go_client.Agent]) -> int:
    return sum(len(agent.clients) for agent in agents)


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
        agents = [go_client.Agent(syncer, *flags) for syncer in syncers.NAMES for flags in VARIANTS.values()]
        async with go_client.living(gobpeer, f"127.0.0.1:{port}", *agents):
            async with served.serving(cluster, "--workers", "2", **variables) as service:
                maps = await calico_cluster.have_the_map(cluster, V1, agents)
                assert len(maps[syncers.FELIX, ""]) > 250
                assert all(maps.values())
                lives = lives_of(agents)

                await asyncio.to_thread(cluster.play, rounds.pop(0))
                await calico_cluster.have_the_map(cluster, V1, agents)
                assert lives_of(agents) == lives, "a client was disconnected"

                # All of these few clients may be connected to the same worker, so kill both.
                for worker in service.workers():
                    os.kill(worker, signal.SIGKILL)
                await asyncio.to_thread(cluster.play, rounds.pop(0))
                await calico_cluster.have_the_map(cluster, V1, agents)
                await worker_stand.eventually(lambda: len(service.workers()) == 4)
                assert lives_of(agents) >= lives + len(agents), "a client outlived its worker"
            await asyncio.to_thread(cluster.play, rounds.pop(0))
            async with served.serving(cluster, "--workers", "1", **variables) as again:
                await calico_cluster.have_the_map(cluster, V1, agents)
        assert "Traceback" not in service.text + again.text
