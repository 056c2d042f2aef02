"""Verdicts of the original, asked of packets: feed, calculation, rules in a real kernel, probes between namespaces."""

from collections.abc import Iterator

import pytest

from clients.agents.node import calculation, desired
from clients.agents.node.dataplane import compiler, table
from clients.agents.node.objects import KeyValue
from tests.harness import felix_recordings, felix_states, packet_cases, packet_lab

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
"""How many of each group, spread over it. `python -m tests.clients.agents.node.packets` runs all of them."""


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
