"""Packets by VXLAN, on a real kernel: encapsulated on their way to another node, and let in only from known nodes."""

from collections.abc import Iterator

import pytest

from clients.agents.node import calculation, desired
from clients.agents.node.dataplane import conntrack, links, programmer
from tests.harness import felix_feeds, packet_lab

pytestmark = packet_lab.needed

WEB, REMOTE = "10.65.0.1", "10.65.1.5"
HERE, THERE, STRANGER = "172.20.0.11", "172.20.0.12", "172.20.0.99"
CALICO = "crd.projectcalico.org/v1"
PORT, VNI = 4789, 4096
HEADER_BYTES = 14 + 20 + 8 + 8
"""Ethernet, IPv4, UDP and VXLAN before the inner frame."""
ALLOW_80 = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80}]}]}


def node(name: str, address: str, tunnel: str) -> felix_feeds.Json:
    annotations = {
        "projectcalico.org/IPv4Address": f"{address}/24",
        "projectcalico.org/IPv4VXLANTunnelAddr": tunnel,
    }
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": annotations}}


def block(name: str, cidr: str) -> felix_feeds.Json:
    spec = {
        "cidr": cidr,
        "affinity": f"host:{name}",
        "allocations": [None] * 64,
        "attributes": [],
        "unallocated": list(range(64)),
        "strictAffinity": False,
    }
    metadata = {"name": cidr.replace(".", "-").replace("/", "-")}
    return {"apiVersion": CALICO, "kind": "IPAMBlock", "metadata": metadata, "spec": spec}


CLUSTER = felix_feeds.cluster(
    {
        "apiVersion": CALICO,
        "kind": "IPPool",
        "metadata": {"name": "pool"},
        "spec": {"cidr": "10.65.0.0/16", "ipipMode": "Never", "vxlanMode": "Always"},
    },
    node(felix_feeds.NODE, HERE, "10.65.0.0"),
    node("n2", THERE, "10.65.1.0"),
    block(felix_feeds.NODE, "10.65.0.0/26"),
    block("n2", "10.65.1.0/26"),
    felix_feeds.pod("web", WEB),
    felix_feeds.pod("there", REMOTE, node="n2"),
    felix_feeds.policy("only-80", ALLOW_80),
)


@pytest.fixture
def testbed() -> Iterator[packet_lab.Lab]:
    with packet_lab.Lab() as opened:
        yield opened


async def program(testbed: packet_lab.Lab) -> desired.State:
    """Programs the node and returns its state."""
    calculated = calculation.Calculation(felix_feeds.NODE)
    for key, value in CLUSTER.items():
        assert calculated.update(key, value) is None
    update, refused = calculated.take()
    assert refused == []
    interface = next(iter(update.endpoints.set.values())).interface
    testbed.set_workloads([packet_lab.Workload(interface, (WEB,))], host_addresses=[HERE])
    async with links.Links(testbed.node) as routes:
        programs = programmer.Programmer(
            felix_feeds.NODE,
            nft=testbed.nft,
            links=routes,
            conntrack=conntrack.Conntrack(("ip", "netns", "exec", testbed.node, "conntrack")),
            prepare_interface=lambda name: testbed.in_node(lambda: links.prepare_interface(name)),
        )
        await programs.start()
        programs.update(update)
        assert await programs.program()
        assert programs.pending == {}
    return programs.state


def mac(state: desired.State, name: str) -> bytes:
    return bytes.fromhex(state.vteps[name].mac.replace(":", ""))


def encapsulated(inner: bytes, *, by: str) -> bytes:
    header = bytes([8, 0, 0, 0]) + (VNI << 8).to_bytes(4)
    return packet_lab.frame(by, HERE, packet_lab.Flow(17, PORT), payload=header + inner)


async def test_packets_to_another_node_leave_in_packets_between_the_nodes(testbed: packet_lab.Lab) -> None:
    state = await program(testbed)
    [workload] = testbed.workloads
    flow = packet_lab.flow("tcp/80")
    [(interface, outer)] = testbed.frames_after(workload.interface, packet_lab.frame(WEB, REMOTE, flow))
    assert interface == packet_lab.UPLINK
    assert outer[26:34] == bytes(map(int, f"{HERE}.{THERE}".split(".")))
    assert (outer[23], int.from_bytes(outer[36:38])) == (17, PORT)
    inner = outer[HEADER_BYTES:]
    assert inner[:6] == mac(state, "n2")
    assert inner[26:34] == bytes(map(int, f"{WEB}.{REMOTE}".split(".")))


async def test_packets_of_known_nodes_meet_the_policy_and_those_of_strangers_end(testbed: packet_lab.Lab) -> None:
    state = await program(testbed)
    [workload] = testbed.workloads
    for by, port, arrives in ((THERE, 80, True), (THERE, 81, False), (STRANGER, 80, False)):
        inner = packet_lab.frame(REMOTE, WEB, packet_lab.Flow(6, port), to_mac=mac(state, felix_feeds.NODE))
        found = [interface for interface, _ in testbed.frames_after(packet_lab.UPLINK, encapsulated(inner, by=by))]
        assert found == ([workload.interface] if arrives else []), (by, port)
