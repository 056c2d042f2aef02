"""The data plane on a real kernel: closed at first, restarts that change nothing, repairs, addresses used again."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping

import pytest

from clients.agents.node import calculation
from clients.agents.node.dataplane import conntrack, links, nft, programmer, table
from tests.harness import felix_feeds, packet_lab

pytestmark = packet_lab.needed

WEB, CLIENT = "10.65.0.1", "10.65.0.2"
TCP80, TCP81 = packet_lab.flow("tcp/80"), packet_lab.flow("tcp/81")
OUTSIDE = "203.0.113.7"
ALLOW_80 = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80}]}]}
CLUSTER = felix_feeds.cluster(
    felix_feeds.pod("web", WEB), felix_feeds.pod("client", CLIENT), felix_feeds.policy("only-80", ALLOW_80)
)
CLOSED = felix_feeds.cluster(
    felix_feeds.pod("web", WEB), felix_feeds.policy("none", {"podSelector": {}, "policyTypes": ["Ingress"]})
)
INTERFACES = {
    value["ipv4_nets"][0].removesuffix("/32"): value["name"]
    for key, value in ((key, json.loads(text)) for key, text in CLUSTER.items() if "/endpoint/" in key)
}


class Node:
    """A data plane in a lab."""

    def __init__(self, testbed: packet_lab.Lab, routes: links.Links) -> None:
        self.testbed = testbed
        tracking = conntrack.Conntrack(("ip", "netns", "exec", testbed.node, "conntrack"))
        self.programmer = programmer.Programmer(
            felix_feeds.NODE,
            nft=testbed.nft,
            links=routes,
            conntrack=tracking,
            prepare_interface=lambda name: testbed.in_node(lambda: links.prepare_interface(name)),
        )
        self.calculation = calculation.Calculation(felix_feeds.NODE)
        self.content: Mapping[str, bytes] = {}

    async def program(self, content: Mapping[str, bytes]) -> bool:
        for key, value in felix_feeds.changes(self.content, content):
            assert self.calculation.update(key, value) is None
        self.content = content
        update, refusals = self.calculation.take()
        assert not refusals
        self.programmer.update(update)
        return await self.programmer.program()

    def arrives(self, source: str, destination: str, flow: packet_lab.Flow, *, via: str | None = None) -> bool:
        probe = packet_lab.Probe(via or INTERFACES.get(source, packet_lab.UPLINK), source, destination, flow)
        interface = next((w.interface for w in self.testbed.workloads if destination in w.addresses), packet_lab.UPLINK)
        return self.testbed.probe([probe])[0] == interface

    def nft(self, *commands: str) -> str:
        return self.testbed.run_in_node("nft", *commands)


@contextlib.asynccontextmanager
async def node_in(testbed: packet_lab.Lab) -> AsyncIterator[Node]:
    async with links.Links(testbed.node) as routes:
        yield Node(testbed, routes)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    with packet_lab.Lab() as testbed:
        testbed.set_workloads([packet_lab.Workload(name, (address,)) for address, name in INTERFACES.items()])
        async with node_in(testbed) as opened:
            yield opened


async def test_workloads_are_cut_off_before_the_first_program(node: Node) -> None:
    assert node.arrives(OUTSIDE, WEB, TCP80)
    await node.programmer.start()
    assert not node.arrives(OUTSIDE, WEB, TCP80)
    assert not node.arrives(CLIENT, WEB, TCP80)
    assert node.arrives(OUTSIDE, "203.0.113.8", TCP80)  # no workload is concerned
    assert await node.program(CLUSTER)
    assert node.arrives(OUTSIDE, WEB, TCP80)
    assert not node.arrives(OUTSIDE, WEB, TCP81)
    assert node.arrives(CLIENT, OUTSIDE, TCP81)


async def test_a_workload_cannot_use_another_address_or_reach_the_host(node: Node) -> None:
    await node.programmer.start()
    await node.program(CLUSTER)
    assert node.arrives(CLIENT, WEB, TCP80)
    assert not node.arrives(OUTSIDE, WEB, TCP80, via=INTERFACES[CLIENT])
    assert not node.arrives(WEB, OUTSIDE, TCP80, via=INTERFACES[CLIENT])


async def test_a_mark_of_another_program_passes_no_policy(node: Node) -> None:
    await node.programmer.start()
    await node.program(CLUSTER)
    chain = "chain c { type filter hook prerouting priority -350; meta mark set 0x10000;\n }"
    node.testbed.run_in_node("nft", "-f", "-", stdin=f"table ip marks {{\n {chain}\n}}\n")
    assert node.arrives(OUTSIDE, WEB, TCP80)
    assert not node.arrives(OUTSIDE, WEB, TCP81)


async def test_what_lacks_its_routes_or_its_rules_is_not_complete(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.programmer.start()

    async def refuse(*_: object) -> None:
        raise OSError("the kernel refuses")

    with monkeypatch.context() as broken:
        broken.setattr(links.Links, "make", refuse)
        assert not await node.program(CLUSTER)
        assert node.arrives(OUTSIDE, WEB, TCP80)  # the rules are there
    assert await node.programmer.program()
    with monkeypatch.context() as broken:
        broken.setattr(nft.Nft, "run", refuse)
        broken.setattr(nft.Nft, "read", refuse)
        assert not await node.program(CLOSED)
    assert await node.programmer.program()
    assert not node.arrives(OUTSIDE, WEB, TCP80)


async def test_a_restart_with_everything_right_commits_nothing(node: Node) -> None:
    await node.programmer.start()
    await node.program(CLUSTER)
    generation = node.testbed.nft.generation()
    async with node_in(node.testbed) as restarted:
        await restarted.programmer.start()
        assert await restarted.program(CLUSTER)
        await restarted.programmer.verify_rules()
        assert restarted.programmer.counters.transactions == 0
        assert restarted.programmer.counters.route_changes == 0
    assert node.testbed.nft.generation() == generation


async def test_a_restart_changes_only_what_has_changed_meanwhile(node: Node) -> None:
    await node.programmer.start()
    await node.program(CLUSTER)
    node.nft("add", "chain", "inet", table.NAME, "left-over")
    smaller = {key: value for key, value in CLUSTER.items() if "%2fclient" not in key}
    async with node_in(node.testbed) as restarted:
        await restarted.programmer.start()
        assert node.arrives(OUTSIDE, CLIENT, TCP80)  # nothing changes before the new state is known
        assert await restarted.program(smaller)
        assert restarted.programmer.counters.transactions == 1
    assert not node.arrives(OUTSIDE, CLIENT, TCP80)
    assert node.arrives(OUTSIDE, WEB, TCP80)
    assert "left-over" not in node.nft("list", "table", "inet", table.NAME)


@pytest.mark.parametrize(
    "command",
    [
        "flush chain inet typha-node raw",
        "flush ruleset",
        "flush map inet typha-node ingress-programs",
        "add rule inet typha-node raw accept",
        "insert rule inet typha-node forward-ingress accept",
        'add element inet typha-node workload-sources { "cali1" . 1.2.3.4 }',
        "add set inet typha-node more { type ipv4_addr; }",
        "add set inet typha-node more { type inet_service; }",
        "add counter inet typha-node more",
        "delete chain inet typha-node nat",
    ],
)
async def test_what_is_changed_by_hand_is_repaired(node: Node, command: str) -> None:
    await node.programmer.start()
    await node.program(CLUSTER)
    right = await node.testbed.nft.read()
    node.nft(command)
    assert await node.testbed.nft.read() != right
    await node.programmer.verify_rules()
    assert await node.testbed.nft.read() == right
    assert node.programmer.counters.repairs == 1
    assert node.programmer.counters.failed_transactions == 0


async def test_rules_of_other_programs_cost_no_listing_and_are_left_alone(node: Node) -> None:
    await node.programmer.start()
    await node.program(CLUSTER)
    listings = node.programmer.counters.listings
    node.nft("add", "table", "ip", "of-another-program")
    await node.programmer.verify_rules()
    assert node.programmer.counters.listings == listings
    # Notifications that got lost may have been about the agent's table.
    node.testbed.run_in_node("nft", "-f", "-", stdin="".join(f"add table ip t{n}\n" for n in range(3000)))
    for _ in range(3):
        await node.programmer.verify_rules()
    assert node.programmer.counters.listings == listings + 1
    assert node.programmer.counters.repairs == 0
    assert "of-another-program" in node.nft("list", "tables")


async def test_an_update_after_a_change_by_hand_repairs_it_too(node: Node) -> None:
    await node.programmer.start()
    await node.program(CLUSTER)
    node.nft("flush", "ruleset")
    smaller = {key: value for key, value in CLUSTER.items() if "%2fclient" not in key}
    assert await node.program(smaller)
    assert node.programmer.counters.failed_transactions == 1
    assert not node.arrives(OUTSIDE, CLIENT, TCP80)
    assert node.arrives(OUTSIDE, WEB, TCP80)
    assert not node.arrives(OUTSIDE, WEB, TCP81)


async def test_routes_come_back_and_routes_of_others_stay(node: Node) -> None:
    await node.programmer.start()
    node.testbed.ip(f"route del {WEB}/32", "route add 10.99.0.0/16 dev uplink proto bird")
    await node.program(CLUSTER)
    assert f"{WEB} dev {INTERFACES[WEB]} proto 80 scope link" in _routes(node)
    node.testbed.ip(f"route del {WEB}/32", "route add 10.98.0.0/16 dev uplink proto 80")
    await node.programmer.program_routes()
    assert f"{WEB} dev {INTERFACES[WEB]} proto 80 scope link" in _routes(node)
    assert "10.98.0.0/16" not in _routes(node)
    assert "10.99.0.0/16" in _routes(node)


async def test_a_route_waits_for_its_interface(node: Node) -> None:
    await node.programmer.start()
    node.testbed.set_workloads([])
    await node.program(CLUSTER)
    assert node.programmer.pending[f"{WEB}/32"] == f"no interface {INTERFACES[WEB]}"
    node.testbed.set_workloads([packet_lab.Workload(INTERFACES[WEB], ())])
    assert node.programmer.link_changed(INTERFACES[WEB])
    assert not node.programmer.link_changed("eth0")
    await node.programmer.program()
    assert f"{WEB} dev {INTERFACES[WEB]} proto 80 scope link" in _routes(node)


def _routes(node: Node) -> str:
    return packet_lab.run("ip", "-n", node.testbed.node, "route")


async def test_a_refused_transaction_changes_nothing_and_is_counted(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.programmer.start()
    await node.program(CLUSTER)
    right = await node.testbed.nft.read()

    async def refuse(_: bytes) -> None:
        raise nft.NftFailed("refused")

    with monkeypatch.context() as patch:
        patch.setattr(node.testbed.nft, "run", refuse)
        assert not await node.program(felix_feeds.cluster())
        assert await node.testbed.nft.read() == right
    assert node.programmer.counters.failures["nft"] == 3
    await node.programmer.verify_rules()
    assert not node.arrives(OUTSIDE, WEB, TCP80)


async def test_a_table_that_cannot_be_listed_is_replaced(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.programmer.start()
    await node.program(CLUSTER)
    right = await node.testbed.nft.read()
    node.nft("add", "chain", "inet", table.NAME, "left-over")

    async def fail() -> table.Found | None:
        raise nft.NftFailed("assertion failed")

    async with node_in(node.testbed) as restarted:
        with monkeypatch.context() as patch:
            patch.setattr(node.testbed.nft, "read", fail)
            await restarted.programmer.start()
            assert node.arrives(OUTSIDE, WEB, TCP80)
            assert await restarted.program(CLUSTER)
    assert await node.testbed.nft.read() == right


async def test_an_address_that_is_used_again_inherits_no_connection() -> None:
    with packet_lab.Lab(tracked=True) as testbed:
        testbed.set_workloads([packet_lab.Workload(name, (address,)) for address, name in INTERFACES.items()])
        async with node_in(testbed) as node:
            await node.programmer.start()
            await node.program(CLUSTER)
            # A connection from outside, established by an answer.
            answer = packet_lab.Flow(6, TCP80.source_port, TCP80.destination_port, flags=packet_lab.SYN_ACK)
            assert node.arrives(OUTSIDE, WEB, TCP80)
            assert node.arrives(WEB, OUTSIDE, answer)
            more = TCP80._replace(flags=packet_lab.ACK)
            assert node.arrives(OUTSIDE, WEB, more)
            renamed = felix_feeds.cluster(
                felix_feeds.pod("other", WEB), felix_feeds.policy("none", {"podSelector": {}})
            )
            await node.program({key: value for key, value in CLUSTER.items() if "%2fweb" not in key})
            assert node.programmer.counters.forgotten_addresses == 1
            await node.program(renamed)
            name = next(json.loads(value)["name"] for key, value in renamed.items() if "/endpoint/" in key)
            testbed.set_workloads([packet_lab.Workload(name, (WEB,))])
            assert not node.arrives(OUTSIDE, WEB, more)


async def test_answers_pass_and_what_belongs_to_no_connection_does_not() -> None:
    with packet_lab.Lab(tracked=True) as testbed:
        testbed.set_workloads([packet_lab.Workload(name, (address,)) for address, name in INTERFACES.items()])
        async with node_in(testbed) as node:
            await node.programmer.start()
            closed = felix_feeds.policy("closed", {"podSelector": {}, "policyTypes": ["Ingress"]})
            await node.program(felix_feeds.cluster(felix_feeds.pod("client", CLIENT), closed))
            testbed.set_workloads([packet_lab.Workload(INTERFACES[CLIENT], (CLIENT,))])
            answer = packet_lab.Flow(6, TCP80.source_port, TCP80.destination_port, flags=packet_lab.SYN_ACK)
            assert not node.arrives(OUTSIDE, CLIENT, answer)
            assert node.arrives(CLIENT, OUTSIDE, TCP80)
            assert node.arrives(OUTSIDE, CLIENT, answer)
            assert not node.arrives(OUTSIDE, CLIENT, TCP80)


async def test_packets_that_leave_the_pools_get_the_nodes_address() -> None:
    with packet_lab.Lab(tracked=True) as testbed:
        testbed.ip("addr add 172.20.0.11/24 dev uplink")
        testbed.set_workloads([packet_lab.Workload(INTERFACES[CLIENT], (CLIENT,))])
        async with node_in(testbed) as node:
            await node.programmer.start()
            pools = (_pool("masqueraded", "10.65.0.0/16", True), _pool("other", "10.66.0.0/16", False))
            await node.program(felix_feeds.cluster(felix_feeds.pod("client", CLIENT), *pools))
            destinations = (OUTSIDE, "10.66.0.1", "10.65.9.9")
            probes = [packet_lab.Probe(INTERFACES[CLIENT], CLIENT, to, TCP80) for to in destinations]
            assert testbed.probe(probes) == [packet_lab.UPLINK] * 3
            assert testbed.sources == {0: "172.20.0.11", 1: CLIENT, 2: CLIENT}


def _pool(name: str, cidr: str, masquerade: bool) -> felix_feeds.Json:
    return {
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "IPPool",
        "metadata": {"name": name},
        "spec": {"cidr": cidr, "natOutgoing": masquerade, "ipipMode": "Never", "vxlanMode": "Never"},
    }
