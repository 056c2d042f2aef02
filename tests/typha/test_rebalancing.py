"""Two replicas of the service share their clients out, as processes on one simulated API server."""

import pathlib

import pytest

from clients import mirror
from loadtest.apiserver import resources as simulated
from tests.harness import worker_stand
from tests.harness.served import Cluster, mirrors, serving

SERVICE, PORT = "calico-typha", "calico-typha"
IMPATIENT = {
    "TYPHA_CONNECTIONREBALANCINGMODE": "kubernetes",
    "TYPHA_CONNECTIONDROPINTERVALSECS": "0.05",
    "TYPHA_K8SSERVICEPOLLINTERVALSECS": "0.3",
    "TYPHA_MAXCONNECTIONSLOWERLIMIT": "5",
    "TYPHA_CALICOFEEDS": "true",
}


def slices(cluster: Cluster, *addresses: str) -> None:
    """Replace the addresses of the replicas' Service."""
    store = cluster.simulator.store
    labels = {"kubernetes.io/service-name": SERVICE}
    value = {
        "metadata": {"name": f"{SERVICE}-x", "namespace": "kube-system", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"name": PORT, "port": 5473}],
    }
    known = f"kube-system/{SERVICE}-x" in store.objects(simulated.ENDPOINT_SLICES)
    (store.replace if known else store.create)(simulated.ENDPOINT_SLICES, value)


@pytest.mark.slow
async def test_clients_move_to_a_replica_that_joins_and_stay_there(tmp_path: pathlib.Path) -> None:
    async with Cluster(tmp_path) as cluster:
        cluster.simulator.store.create(simulated.NODES, {"metadata": {"name": "n1"}})
        slices(cluster, "10.0.0.1")
        async with (
            serving(cluster, "--workers", "2", **IMPATIENT) as first,
            serving(cluster, "--workers", "1", **IMPATIENT) as second,
        ):
            await first.metric_is("typha_connections_limit", 10_000)
            replicas = [await first.address(), await second.address()]
            async with mirrors(replicas[0], 12, others=replicas[1:]) as clients:
                await first.metric_is("typha_connections_active", 12)
                slices(cluster, "10.0.0.1", "10.0.0.2")  # four connections for one node, and a fifth more: 8
                await first.metric_is("typha_connections_limit", 8)
                await first.metric_is("typha_connections_active", 8)
                await second.metric_is("typha_connections_active", 4)
                await first.metric_is("typha_connections_dropped", 4)
                assert sorted(_end(client) for client in clients) == ["", *[""] * 7, *["rebalanced"] * 4]
                cluster.put("p1", "new")
                await worker_stand.eventually(lambda: all(dict(client) == cluster.content for client in clients))
                await first.metric_is("typha_connections_dropped", 4)
                await second.metric_is("typha_connections_dropped", 0)
                cluster.simulator.store.delete(simulated.ENDPOINT_SLICES, "kube-system", f"{SERVICE}-x")
                await first.metric_is("typha_connections_limit", 10_000)
    assert "Connection limit" in first.text


def _end(client: mirror.Mirror) -> str:
    return client.last_disconnect.reason if client.last_disconnect is not None else ""
