"""Two replicas of the service share their clients out, as processes on one simulated API server."""

import pathlib

import pytest

from loadtest.apiserver import resources as simulated
from loadtest.environment import control_plane
from tests.harness.served import Cluster, converged, mirrors, serving

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
        port = control_plane.free_port()
        async with serving(cluster, "--workers", "2", **IMPATIENT) as first:
            await first.metric_is("typha_connections_limit", 10_000)
            async with mirrors([await first.address(), f"127.0.0.1:{port}"], 12) as clients:
                await first.metric_is("typha_connections_active", 12)
                slices(cluster, "10.0.0.1", "10.0.0.2")  # four connections for one node, and a fifth more: 8
                async with serving(cluster, "--workers", "1", **IMPATIENT, TYPHA_SERVERPORT=str(port)) as second:
                    await first.metric_is("typha_connections_limit", 8)
                    await first.metric_is("typha_connections_active", 8)
                    await second.metric_is("typha_connections_active", 4)
                    cluster.put("p1", "new")
                    await converged(cluster, clients)
                    await first.metric_is("typha_connections_dropped", 4)
                    await second.metric_is("typha_connections_dropped", 0)
                    cluster.simulator.store.delete(simulated.ENDPOINT_SLICES, "kube-system", f"{SERVICE}-x")
                    await first.metric_is("typha_connections_limit", 10_000)
    assert "Connection limit" in first.text
