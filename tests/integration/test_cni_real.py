"""IPAM's requests beside a real API server: conflicts, preconditions, label selectors and status are those meant."""

import concurrent.futures
import time
from collections.abc import Iterator
from typing import Any

import pytest

from clients.agents.cni import apiserver, ipam, kubeconfig, leaks, plugin, records
from loadtest.environment import calico_crds
from tests.harness import calico_cluster
from tests.harness.calico_cluster import RealCluster

pytestmark = [pytest.mark.control_plane, pytest.mark.slow, pytest.mark.timeout(600)]

CALICO = f"/apis/{calico_crds.V1}"
NETWORK = "k8s-pod-network"
ATTACHMENTS = 24
NODES = ("node-1", "node-2", "node-3")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with calico_cluster.opened(tmp_path_factory.mktemp("cni-real")) as running:
        running.install(calico_crds.V1)
        pool = {"cidr": "10.65.0.0/24", "blockSize": 29}
        running.plane.create(f"{CALICO}/ippools", _object("IPPool", "pool", spec=pool))
        yield running


def _object(kind: str, name: str, **members: Any) -> dict[str, Any]:
    return {"apiVersion": calico_crds.V1, "kind": kind, "metadata": {"name": name}, **members}


def add(node: str, handle: str) -> ipam.Steps[str]:
    now_seconds = time.time()
    attributes = records.pod_attributes(handle, node=node, namespace="default", pod=handle, now_seconds=now_seconds)
    limits = yield from ipam.read_limits()
    pools = yield from ipam.read_pools()
    return (yield from ipam.assign(ipam.Node(node, now_seconds), attributes, pools, limits))


def test_three_nodes_at_once(cluster: RealCluster) -> None:
    access = kubeconfig.load(str(cluster.kubeconfig))

    def run(steps: ipam.Steps[Any]) -> Any:
        server = apiserver.ApiServer(access)
        try:
            return server.run(steps)
        finally:
            server.close()

    def items(resource: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cluster.plane.request("GET", f"{CALICO}/{resource}").json()["items"]
        return found

    handles = [f"{NETWORK}.c{number}" for number in range(ATTACHMENTS)]
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        given = list(pool.map(lambda pair: run(add(NODES[pair[0] % 3], pair[1])), enumerate(handles)))
    assert len(set(given)) == ATTACHMENTS
    owners = {spec["cidr"]: spec["node"] for spec in (one["spec"] for one in items("blockaffinities"))}
    assert {one["spec"]["cidr"]: one["spec"]["affinity"].removeprefix("host:") for one in items("ipamblocks")} == owners
    assert {one["spec"]["state"] for one in items("blockaffinities")} == {"confirmed"}
    with pytest.raises(ipam.AlreadyAttached):
        run(add("node-1", handles[0]))

    found = run(leaks.read(time.time() + 2 * leaks.YOUNG_SECONDS, []))
    assert {leak.handle for leak in found} == set(handles)

    run(ipam.collect(ipam.Node("node-1", time.time()), NETWORK, frozenset(handles[:6])))
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda handle: run(ipam.release(handle)), handles))
    assert items("ipamhandles") == []
    blocks = [records.Block.parse(value) for value in items("ipamblocks")]
    assert all(block.is_empty for block in blocks)
    for block in blocks:
        assert run(ipam.release_block(block.cidr, block.node, sequence=block.sequence))
    assert (items("ipamblocks"), items("blockaffinities")) == ([], [])


def test_a_stale_deletion_deletes_nothing(cluster: RealCluster) -> None:
    server = apiserver.ApiServer(kubeconfig.load(str(cluster.kubeconfig)))
    server.run(add("node-1", f"{NETWORK}.one"))

    def read() -> ipam.Steps[Any]:
        return (yield ipam.List("ipamblocks", {}))

    def write(request: ipam.Request) -> ipam.Steps[Any]:
        return (yield request)

    (stale,) = server.run(read())
    server.run(add("node-1", f"{NETWORK}.two"))
    with pytest.raises(ipam.Conflict):
        server.run(write(ipam.Delete("ipamblocks", stale)))
    with pytest.raises(ipam.Conflict):
        server.run(write(ipam.Replace("ipamblocks", stale)))
    with pytest.raises(ipam.Exists):
        server.run(write(ipam.Create("ipamblocks", {**stale, "metadata": {"name": stale["metadata"]["name"]}})))
    with pytest.raises(ipam.Missing):
        server.run(write(ipam.Get("ipamblocks", "none")))
    server.close()


def test_a_pod_is_annotated_by_way_of_its_status(cluster: RealCluster) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "none"}]},
    }
    created = cluster.plane.create("/api/v1/namespaces/default/pods", pod)
    server = apiserver.ApiServer(kubeconfig.load(str(cluster.kubeconfig)))
    annotations = {plugin.POD_IPS: "10.65.0.1/32"}
    found = server.annotate_pod("default", "one", uid=created["metadata"]["uid"], annotations=annotations)
    assert found["metadata"]["annotations"] == annotations
    with pytest.raises(ipam.Conflict):
        server.annotate_pod("default", "one", uid="another", annotations={})
    server.close()
