"""Verdicts of the original, asked of packets: feed, calculation, rules in a real kernel, probes between namespaces."""

from collections.abc import Iterator

import pytest

from clients.agents.node import calculation, desired
from clients.agents.node.dataplane import compiler, table
from clients.agents.node.objects import KeyValue
from tests.harness import (
    felix_feeds,
    felix_recordings,
    felix_states,
    packet_cases,
    packet_lab,
    policy_tables,
    random_states,
)

pytestmark = [packet_lab.needed, pytest.mark.slow]

SCENARIOS = (
    "cnp-baseline",
    "gnp-after-knp",
    "knp-cross",
    "mix-everything",
    "np-icmp",
    "np-named-not",
    "np-nets",
    "np-not-icmp",
    "np-not-protocol",
    "np-protocol-numbers",
    "pod-dual-stack",
    "pod-named-ports",
    "prof-no-space",
    "set-overlap",
    "staged-order",
    "svc-slices",
    "tier-pass-to-profile",
    "tier-skips-rest",
)
"""One for each kind of condition and each way through the tiers."""

SERIES = ("sequences", 4), ("changes", 2), ("random", 4)
"""How many of each group, spread over it."""

RANDOM_STATES = 15
PROBES_OF_A_STATE = 300


def some(group: str, count: int) -> list[tuple[str, str]]:
    names = sorted(felix_recordings.load(group))
    return [(group, name) for name in names[:: len(names) // count][:count]]


CHOSEN = [("scenarios", name) for name in SCENARIOS] + [case for group, count in SERIES for case in some(group, count)]


@pytest.fixture(scope="module")
def testbed() -> Iterator[packet_lab.Lab]:
    with packet_lab.Lab() as opened:
        yield opened


@pytest.mark.parametrize(("group", "name"), CHOSEN)
async def test_packets_meet_the_recorded_verdicts(testbed: packet_lab.Lab, group: str, name: str) -> None:
    recording = felix_recordings.load(group)[name]
    steps = felix_recordings.steps_of(recording)
    for node, expected in recording["expect"].items():
        if not expected.get("verdicts"):
            continue
        state = await program(testbed, node, steps)
        testbed.set_workloads(packet_cases.Workloads(state).all())
        found = packet_cases.of(expected["verdicts"], node=node, state=state)
        arrived = testbed.probe([case.probe for case in found])
        wrong = [case for case, interface in zip(found, arrived, strict=True) if case.arrives != interface]
        assert not wrong
        assert len(found) > 0 or not state.endpoints


async def program(testbed: packet_lab.Lab, node: str, steps: list[list[KeyValue]]) -> desired.State:
    """Programs all steps, one transaction each. After each, the kernel has what a start from scratch makes."""
    calculated = calculation.Calculation(node)
    compiled = compiler.Compiler()
    compiled.table.compare(await testbed.nft.read())
    state = desired.State()
    for step in steps:
        for key, value in step:
            calculated.update(key, value)
        update, _ = calculated.take()
        state.apply(update)
        compiled.apply(update)
        if compiled.table:
            await testbed.nft.run(compiled.table.transaction())
            compiled.table.committed()
        assert_holds(await testbed.nft.read(), from_scratch(state))
    return state


def from_scratch(state: desired.State) -> table.Table:
    compiled = compiler.Compiler()
    compiled.apply(felix_states.difference(desired.State(), state))
    return compiled.table


def assert_holds(found: table.Found | None, wanted: table.Table) -> None:
    assert found is not None
    assert found.chains == {name: chain.identity for name, chain in wanted.chains.items()}
    assert found.sets == wanted.sets
    assert found.elements == wanted.elements


@pytest.mark.parametrize("first_seed", [0, 1000])
async def test_packets_meet_the_verdicts_of_the_calculation(testbed: packet_lab.Lab, first_seed: int) -> None:
    """Random rules with all conditions, in a table that goes from each state to the next."""
    compiled = compiler.Compiler()
    compiled.table.compare(await testbed.nft.read())
    state = desired.State()
    for seed in range(first_seed, first_seed + RANDOM_STATES):
        generator = random_states.Generator(seed)
        before, state = state, generator.state()
        compiled.apply(felix_states.difference(before, state))
        await testbed.nft.run(compiled.table.transaction())
        compiled.table.committed()
        if seed == first_seed:
            testbed.set_workloads(packet_cases.Workloads(state).all())
        found = generator.cases(state, PROBES_OF_A_STATE)
        arrived = testbed.probe([case.probe for case in found])
        wrong = [case for case, interface in zip(found, arrived, strict=True) if case.arrives != interface]
        assert not wrong
        assert_holds(await testbed.nft.read(), from_scratch(state))


COMBINATIONS_STEP = 9
"""Every so many of the 196 combinations; the tables are asked whole."""

TABLES = {
    "netpol": policy_tables.NETPOL,
    "cluster-policies": policy_tables.CLUSTER_POLICIES,
    "combinations": tuple(policy_tables.combinations())[::COMBINATIONS_STEP],
}


@pytest.mark.parametrize("name", TABLES)
async def test_packets_meet_the_tables_of_kubernetes(testbed: packet_lab.Lab, name: str) -> None:
    compiled = compiler.Compiler()
    compiled.table.compare(await testbed.nft.read())
    calculated = calculation.Calculation(felix_feeds.NODE)
    state = desired.State()
    content: dict[str, bytes] = {}
    for case in TABLES[name]:
        before, content = content, case.content()
        for key, value in felix_feeds.changes(before, content):
            assert calculated.update(key, value) is None
        update, refusals = calculated.take()
        assert not refusals
        state.apply(update)
        compiled.apply(update)
        if compiled.table:
            await testbed.nft.run(compiled.table.transaction())
            compiled.table.committed()
        workloads = packet_cases.Workloads(state)
        testbed.set_workloads(workloads.all())
        interfaces = {address: state.endpoints[key].interface for address, key in workloads.by_address().items()} | {
            policy_tables.OUTSIDE_ADDRESS: packet_lab.UPLINK
        }
        assert len(interfaces) == len(policy_tables.PODS) + 1
        arrived = testbed.probe([_probe(connection, interfaces) for connection in policy_tables.ALL])
        wrong = [
            (case.name, connection)
            for connection, interface in zip(policy_tables.ALL, arrived, strict=True)
            if (interface == interfaces[policy_tables.address(connection.destination)]) is not case.expected(connection)
        ]
        assert not wrong


def _probe(connection: policy_tables.Connection, interfaces: dict[str, str]) -> packet_lab.Probe:
    source = policy_tables.address(connection.source)
    return packet_lab.Probe(interfaces[source], source, policy_tables.address(connection.destination), connection.flow)
