"""The agent with the service, real BIRD and routes: two nodes in different subnets, and a router between them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.crash_course import cluster as clusters
from loadtest.crash_course import topology
from loadtest.crash_course.cluster import CALICO_PATH, Cluster
from loadtest.crash_course.namespaces import CommandFailed, Namespaces

pytestmark = [pytest.mark.namespaces, pytest.mark.slow, pytest.mark.xdist_group("bgp agent")]

MEMBERS = (topology.ROUTER, "node-1", "node-2")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("bgp")
    with Namespaces("cn-bgp") as spaces:
        cluster = Cluster(spaces, folder, nodes=2)
        cluster.start()
        cluster.create_pool("default-pool", "10.65.0.0/16")
        cluster.create_rack_peers()
        cluster.start_rack()
        cluster.start_service()
        for node in cluster.nodes:
            cluster.start_bgp(node)
        cluster.wait(lambda: all(len(cluster.established(node.name)) == 2 for node in cluster.nodes), "sessions are up")
        for name, node in zip(("one", "two"), cluster.nodes, strict=True):
            cluster.run_pod(name, node)
        cluster.wait(lambda: all(len(routes(cluster, name)) == 2 for name in MEMBERS), "all have the blocks")
        yield cluster


def routes(cluster: Cluster, name: str) -> list[str]:
    """What BIRD has put into the kernel: destination and next hop."""
    shown = cluster.spaces.run(name, "ip", "route", "show", "proto", "bird")
    return sorted(line.partition(" dev ")[0] for line in shown.splitlines())


def has_block_routes(cluster: Cluster) -> bool:
    """Whether everybody has the routes of both blocks, and no other."""
    blocks = {block["spec"]["affinity"]: block["spec"]["cidr"] for block in cluster.blocks()}
    one, two = (blocks[f"host:{node.name}"] for node in cluster.nodes)
    found = {name: [route.strip() for route in routes(cluster, name)] for name in MEMBERS}
    return found == {
        "node-1": sorted([f"{two} via {topology.API_ADDRESS}", f"blackhole {one} metric 32"]),
        "node-2": sorted([f"{one} via 172.30.2.1", f"blackhole {two} metric 32"]),
        topology.ROUTER: sorted([f"{one} via 172.30.1.11", f"{two} via 172.30.2.12"]),
    }


def pings(cluster: Cluster, sandbox: str, address: str) -> bool:
    try:
        cluster.spaces.run(sandbox, "ping", "-c", "1", "-W", "1", address)
    except CommandFailed:
        return False
    return True


def bird_pid(cluster: Cluster, name: str) -> int:
    try:
        return int((cluster.bird_folder(name) / "bird.pid").read_text())
    except (OSError, ValueError):
        return 0


def is_recovered(cluster: Cluster, name: str) -> bool:
    """Whether the restart is over, also for the neighbors. One that follows too soon is not graceful."""
    is_up = len(cluster.established(name)) == 2
    return is_up and "recovery in progress" not in cluster.birdc(name, "show", "status")


def test_pods_talk_across_nodes_by_routes_of_bgp(cluster: Cluster) -> None:
    one, two = cluster.pods["one"], cluster.pods["two"]
    cluster.wait(lambda: pings(cluster, one.sandbox, two.address), "pods talk across nodes")
    blocks = {block["spec"]["affinity"]: block["spec"]["cidr"] for block in cluster.blocks()}
    # A node's own block is dropped where no pod has the address; the other node's is behind the router.
    # Until a new block has reached its node's agent, the pod's own route is announced in its place.
    wanted = [f"{blocks['host:node-2']} via {topology.API_ADDRESS}", f"blackhole {blocks['host:node-1']} metric 32"]
    cluster.wait(lambda: [route.strip() for route in routes(cluster, "node-1")] == wanted, "node-1 has both blocks")
    cluster.wait(
        lambda: f"{blocks['host:node-1']} via 172.30.1.11" in routes(cluster, topology.ROUTER),
        "the router has the block of node-1",
    )


def test_a_pool_that_is_not_to_be_advertised_is_withdrawn(cluster: Cluster) -> None:
    path = f"{CALICO_PATH}/ippools/default-pool"
    cluster.api.patch(path, {"spec": {"disableBGPExport": True}})
    cluster.wait(lambda: routes(cluster, topology.ROUTER) == [], "the routes are withdrawn")
    cluster.api.patch(path, {"spec": {"disableBGPExport": False}})
    cluster.wait(lambda: has_block_routes(cluster), "the routes are back")


def test_routes_outlive_the_agent_and_its_bird(cluster: Cluster) -> None:
    cluster.wait(lambda: has_block_routes(cluster), "all have the blocks' routes, and none of a pod")
    expected = routes(cluster, "node-1")
    first = bird_pid(cluster, "node-1")
    os.kill(first, signal.SIGKILL)
    assert routes(cluster, "node-1") == expected
    cluster.wait(lambda: bird_pid(cluster, "node-1") not in (0, first), "BIRD is started again")
    cluster.wait(lambda: is_recovered(cluster, "node-1"), "the neighbors have the routes again")

    others = {name: routes(cluster, name) for name in (topology.ROUTER, "node-2")}
    cluster.stop_process("bgp-node-1")
    assert routes(cluster, "node-1") == expected
    # The neighbors know that BIRD comes back, and go on sending to the node.
    assert {name: routes(cluster, name) for name in others} == others
    cluster.start_bgp(cluster.nodes[0])
    cluster.wait(lambda: is_recovered(cluster, "node-1"), "the neighbors have the routes again")
    assert routes(cluster, "node-1") == expected


def test_an_agent_that_starts_without_a_server_uses_what_it_had(cluster: Cluster) -> None:
    cluster.wait(lambda: has_block_routes(cluster), "all have the blocks' routes, and none of a pod")
    expected = routes(cluster, "node-1")
    cluster.stop_process("bgp-node-1")
    cluster.stop_process("typha")
    cluster.start_bgp(cluster.nodes[0])
    cluster.wait(lambda: is_recovered(cluster, "node-1"), "the neighbors have the routes again")
    assert routes(cluster, "node-1") == expected
    cluster.start_service()


def test_the_service_knows_what_bird_uses(cluster: Cluster) -> None:
    command = cluster.typha("explain ippool default-pool")

    def is_applied() -> bool:
        return "applied by 2 of the 2" in cluster.spaces.run(topology.ROUTER, "sh", "-c", command)

    cluster.wait(is_applied, "both agents have applied the pool")


def test_a_session_that_the_cluster_no_longer_wants_ends(cluster: Cluster) -> None:
    cluster.api.delete(f"{CALICO_PATH}/bgppeers/rack-1")
    cluster.wait(lambda: len(cluster.established("node-1")) == 1, "the session with the router ends")
    cluster.create_peer(
        "rack-1", nodeSelector="rack == 'rack-1'", peerIP="172.30.1.1", asNumber=clusters.RACK_AS_NUMBER
    )
    cluster.wait(lambda: len(cluster.established("node-1")) == 2, "the session with the router is up again")
