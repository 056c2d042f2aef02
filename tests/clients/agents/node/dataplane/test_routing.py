"""Routes, tunnel and neighbours: what a node needs, and what a real kernel makes of it."""

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator

from clients.agents.node import desired
from clients.agents.node.dataplane import links, routing
from clients.agents.node.dataplane.routing import Network, Path, PathKind, Peer, Tunnel
from clients.agents.node.desired import PoolType, Route, RouteType
from tests.harness import packet_lab

REMOTE = (RouteType.REMOTE_WORKLOAD,)
LOCAL = (RouteType.LOCAL_WORKLOAD,)
STATE = desired.State(
    endpoints={"k8s/a/b/eth0": desired.Endpoint("cali1", ("10.65.0.9/32", "fd00::9/128"), (), ())},
    routes={
        "10.65.0.0/26": Route(LOCAL, PoolType.VXLAN, "n1", "172.20.0.11"),
        "10.65.0.9/32": Route(LOCAL, PoolType.VXLAN, "n1", "172.20.0.11", local_workload=True),
        "10.65.1.0/26": Route(REMOTE, PoolType.VXLAN, "n2", "172.20.0.12", same_subnet=True),
        "10.65.2.0/26": Route(REMOTE, PoolType.VXLAN, "n3", "172.20.9.13"),
        "10.65.3.0/26": Route(REMOTE, PoolType.VXLAN, "unknown"),
        "10.66.2.0/26": Route(REMOTE, PoolType.NO_ENCAPSULATION, "n3", "172.20.9.13"),
        "172.20.9.13/32": Route((RouteType.REMOTE_HOST,), node="n3"),
        "fd00::/64": Route(REMOTE, PoolType.VXLAN, "n3"),
    },
    vteps={
        "n1": desired.Vtep("10.65.0.1", "66:0A:00:00:00:11", "172.20.0.11"),
        "n3": desired.Vtep("10.65.2.1", "66:0A:00:00:00:13", "172.20.9.13"),
    },
    settings=desired.Settings(ready=True, vxlan=True, values={"VXLANVNI": "4097", "VXLANMTU": "1400"}),
)
PEER = Peer("10.65.2.1", "66:0a:00:00:00:13", "172.20.9.13")


def test_each_block_is_reached_as_its_pool_says() -> None:
    assert routing.network(STATE, node="n1") == Network(
        {
            "10.65.0.0/26": Path(PathKind.NOWHERE),
            "10.65.0.9/32": Path(PathKind.LINK, "cali1"),
            "10.65.1.0/26": Path(PathKind.VIA, "172.20.0.12"),
            "10.65.2.0/26": Path(PathKind.TUNNEL, "10.65.2.1"),
            # Without a tunnel's end, packets must not leave by the default route.
            "10.65.3.0/26": Path(PathKind.NOWHERE),
        },
        Tunnel(4097, 4789, "172.20.0.11", "66:0a:00:00:00:11", "10.65.0.1", 1400),
        frozenset({PEER}),
    )


def test_without_vxlan_only_local_workloads_have_routes() -> None:
    state = dataclasses.replace(STATE, settings=desired.Settings(ready=True))
    assert routing.network(state, node="n1") == Network({"10.65.0.9/32": Path(PathKind.LINK, "cali1")})


def test_blocks_without_encapsulation_have_routes_if_the_agent_programs_them() -> None:
    state = dataclasses.replace(STATE, settings=desired.Settings(ready=True, no_encapsulation=True))
    assert routing.network(state, node="n1").routes["10.66.2.0/26"] == Path(PathKind.VIA, "172.20.9.13")


@contextlib.asynccontextmanager
async def node() -> AsyncIterator[tuple[packet_lab.Lab, links.Links]]:
    with packet_lab.Lab() as testbed:
        testbed.ip("addr add 172.20.0.11/24 dev uplink")
        testbed.set_workloads([packet_lab.Workload("cali1", ())])
        async with links.Links(testbed.node) as opened:
            yield testbed, opened


def show(testbed: packet_lab.Lab, *what: str) -> str:
    return packet_lab.run("ip", "-n", testbed.node, *what)


@packet_lab.needed
async def test_the_kernel_gets_what_the_node_needs_and_loses_it_again() -> None:
    async with node() as (testbed, opened):
        testbed.ip("route add 10.99.0.0/16 dev uplink")
        wanted = routing.network(STATE, node="n1")
        assert await opened.make(wanted) == {}
        assert f"10.65.2.0/26 via {PEER.address} dev {routing.VXLAN_DEVICE} proto 80 onlink" in show(testbed, "route")
        assert "blackhole 10.65.0.0/26 proto 80" in show(testbed, "route")
        changes = opened.changes
        assert await opened.make(wanted) == {}
        assert opened.changes == changes
        assert await opened.make(Network()) == {}
        assert "proto 80" not in show(testbed, "route")
        assert "10.99.0.0/16" in show(testbed, "route")
        assert routing.VXLAN_DEVICE not in show(testbed, "link")


@packet_lab.needed
async def test_the_tunnel_is_repaired_and_follows_its_settings() -> None:
    async with node() as (testbed, opened):
        wanted = routing.network(STATE, node="n1")
        await opened.make(wanted)
        testbed.ip(
            f"neigh del {PEER.address} dev {routing.VXLAN_DEVICE}",
            f"neigh add 10.65.7.7 lladdr 66:0a:00:00:00:77 dev {routing.VXLAN_DEVICE} nud permanent",
            f"link set {routing.VXLAN_DEVICE} down mtu 1300",
        )
        packet_lab.run(
            "bridge", "-n", testbed.node, "fdb", "del", PEER.mac, "dst", PEER.parent, "dev", routing.VXLAN_DEVICE
        )
        assert await opened.make(wanted) == {}
        assert f"{PEER.address} dev {routing.VXLAN_DEVICE} lladdr {PEER.mac} PERMANENT" in show(testbed, "neigh")
        assert "10.65.7.7" not in show(testbed, "neigh")
        ends = packet_lab.run("bridge", "-n", testbed.node, "fdb", "show", "dev", routing.VXLAN_DEVICE)
        assert f"{PEER.mac} dst {PEER.parent} self permanent" in ends
        assert "10.65.2.0/26" in show(testbed, "route")
        assert wanted.tunnel is not None
        other = dataclasses.replace(wanted, tunnel=wanted.tunnel._replace(vni=5000, mtu=None, address="10.65.0.2"))
        assert await opened.make(other) == {}
        (device,) = json.loads(show(testbed, "-d", "-j", "addr", "show", "dev", routing.VXLAN_DEVICE))
        assert device["linkinfo"]["info_data"]["id"] == 5000
        assert device["mtu"] == 1450
        assert [entry["local"] for entry in device["addr_info"] if entry["family"] == "inet"] == ["10.65.0.2"]
        assert "10.65.2.0/26" in show(testbed, "route")


@packet_lab.needed
async def test_a_route_of_another_program_is_not_replaced() -> None:
    async with node() as (testbed, opened):
        testbed.ip("route add 10.65.0.0/26 dev uplink proto bird", "route add 10.65.0.9/32 dev uplink proto boot")
        failures = await opened.make(routing.network(STATE, node="n1"))
        assert failures.keys() == {"10.65.0.0/26"}
        assert "10.65.0.0/26 dev uplink proto bird" in show(testbed, "route")
        assert "10.65.0.9 dev cali1 proto 80 scope link" in show(testbed, "route")
