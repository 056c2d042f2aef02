"""Go clients of all four syncer types of a `typha serve` process. Their maps equal `typha convert` of the lists."""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache.feeds.calico import syncers
from loadtest.apiserver import resources as simulated
from tests.harness import go_client, served, worker_stand

pytestmark = [pytest.mark.go, pytest.mark.slow]

CONVERT = (
    sys.executable,
    "-c",
    "from typha.cli import main; main.main()",
    "convert",
    "--api-group",
    "projectcalico.org/v3",
)
NAMESPACED = ("NetworkPolicy", "NetworkSet", "StagedNetworkPolicy", "StagedKubernetesNetworkPolicy")
NODE_STATUS = {"updatePeriodSeconds": 10, "classes": ["Agent", "BGP"]}
CALICO = {
    source.kind: simulated.Resource(
        source.type.group,
        source.type.version,
        source.type.resource,
        source.kind,
        source.kind in NAMESPACED,
        custom=True,
    )
    for spec in syncers.specs(syncers.Group.V3)
    for source in spec.sources
    if source.type.group == syncers.Group.V3.group
}
VARIANTS = {"snappy": (), "plain": ("-no-restart",)}


class CalicoCluster(served.Cluster):
    """A simulated API server with objects of Calico's kinds, and of the Kubernetes kinds in Calico's feeds."""

    async def __aenter__(self) -> "CalicoCluster":
        for resource in CALICO.values():
            self.simulator.store.install(resource)
        await super().__aenter__()
        self.write(simulated.NAMESPACES, "default", labels={"team": "a"})
        self.write(CALICO["CalicoNodeStatus"], "node-0", spec={"node": "node-0", **NODE_STATUS})
        self.write(CALICO["BGPPeer"], "peer", spec={"peerIP": "10.1.2.3", "asNumber": 64512})
        for number in range(3):
            self.write(CALICO["IPPool"], f"pool-{number}", spec={"cidr": f"10.{number}.0.0/16"})
            annotations = {"projectcalico.org/IPv4Address": f"192.168.0.{number + 1}/24"}
            self.write(simulated.NODES, f"node-{number}", annotations=annotations)
        return self

    def write(
        self, resource: simulated.Resource, name: str, *, spec: dict[str, Any] | None = None, **metadata: Any
    ) -> None:
        """Create an object, or replace an existing one."""
        store = self.simulator.store
        namespace = "default" if resource.namespaced else ""
        if resource.namespaced:
            metadata["namespace"] = namespace
        is_known = resource.key(namespace, name) in store.objects(resource)
        content: dict[str, Any] = {"metadata": {"name": name, **metadata}}
        if spec is not None:
            content["spec"] = spec
        (store.replace if is_known else store.create)(resource, content)

    def churn(self, number: int) -> None:
        """Make every kind of change in every feed."""
        store = self.simulator.store
        self.write(simulated.PODS, f"p{number % 7}", spec={"nodeName": "node-0"}, labels={"round": str(number)})
        self.write(CALICO["NetworkSet"], f"set-{number % 5}", spec={"nets": [f"10.9.{number}.0/24"]})
        self.write(CALICO["IPPool"], "pool-0", spec={"cidr": "10.0.0.0/16", "disabled": number % 2 == 0})
        self.write(simulated.NODES, "node-1", annotations={"projectcalico.org/IPv4Address": f"192.168.1.{number}/24"})
        self.write(CALICO["CalicoNodeStatus"], f"node-{number}", spec={"node": "node-1", **NODE_STATUS})
        if number % 2:
            store.delete(CALICO["CalicoNodeStatus"], "", f"node-{number}")
            store.delete(CALICO["NetworkSet"], "default", f"set-{number % 5}")

    async def converted(self, feed: str) -> dict[str, bytes]:
        """The output of `typha convert` for all lists."""
        items = [
            json.loads(item) | {"apiVersion": resource.api_version, "kind": resource.kind}
            for resource in self.simulator.store.resources()
            for item in self.simulator.store.objects(resource).values()
        ]
        path = self.folder / f"list-{time.monotonic_ns()}.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        async with go_client.running(*CONVERT, "--feed", feed, str(path)) as convert:
            output, _ = await convert.communicate()
        lines = [json.loads(line) for line in output.splitlines()]
        return {line["key"]: line["value"].encode() for line in lines if line["value"] is not None}


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> AsyncIterator[CalicoCluster]:
    """A running cluster with a few objects for each feed."""
    async with CalicoCluster(tmp_path) as opened:
        yield opened


@contextlib.asynccontextmanager
async def go_clients(gobpeer: str, address: str, *more: str) -> AsyncIterator[list[go_client.GoClient]]:
    """A Go client of each syncer type and variant, with additional flags."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(go_client.following(gobpeer, address, syncer, *flags, *more))
            for syncer in syncers.NAMES
            for flags in VARIANTS.values()
        ]


async def have_the_map(cluster: CalicoCluster, clients: list[go_client.GoClient]) -> None:
    """Wait until each client has the converted lists of its feed, and the status in-sync."""
    await worker_stand.eventually(
        lambda: all(client.statuses[-1:] == [2] for client in clients), seconds=served.TIMEOUT_SECONDS
    )
    wanted = {syncer: await cluster.converted(syncer) for syncer in syncers.NAMES}
    assert all(wanted.values())
    deadline = time.monotonic() + served.TIMEOUT_SECONDS
    for client in clients:
        while client.entries != wanted[client.syncer]:
            assert time.monotonic() < deadline, f"{client.syncer}: {_difference(client.entries, wanted[client.syncer])}"
            await asyncio.sleep(0.01)


def _difference(got: dict[str, bytes], wanted: dict[str, bytes]) -> list[tuple[str, bytes | None, bytes | None]]:
    keys = sorted(got.keys() | wanted.keys())
    return [(key, got.get(key), wanted.get(key)) for key in keys if got.get(key) != wanted.get(key)][:5]


async def test_every_syncer_type_survives_churn_and_the_death_of_workers(gobpeer: str, cluster: CalicoCluster) -> None:
    async with (
        served.serving(cluster, "--workers", "1", TYPHA_CALICOFEEDS="true") as service,
        contextlib.AsyncExitStack() as stack,
    ):
        address = await service.address()
        clients = await stack.enter_async_context(go_clients(gobpeer, address))
        await have_the_map(cluster, clients)
        for number in range(40):
            cluster.churn(number)
            await asyncio.sleep(0)
        await have_the_map(cluster, clients)
        os.kill(service.workers()[0], signal.SIGKILL)
        await worker_stand.eventually(lambda: all(client.seen[-1:] == ["error"] for client in clients))
        cluster.churn(41)
        again = await stack.enter_async_context(go_clients(gobpeer, address))
        await have_the_map(cluster, again)
        assert len(service.workers()) == 2
    assert "Traceback" not in service.text


async def test_every_syncer_type_survives_a_restart_of_the_service(gobpeer: str, cluster: CalicoCluster) -> None:
    for _ in range(2):
        async with (
            served.serving(cluster, "--workers", "0", TYPHA_CALICOFEEDS="true") as service,
            go_clients(gobpeer, await service.address()) as clients,
        ):
            await have_the_map(cluster, clients)
            cluster.churn(1)
            cluster.churn(2)
            await have_the_map(cluster, clients)
        cluster.churn(3)
        assert "Traceback" not in service.text
