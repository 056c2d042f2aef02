"""Nets that may lie within one another, as disjoint nets."""

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st

from clients.agents.node.dataplane import covers

NETS = st.builds(
    lambda host, length: str(ipaddress.IPv4Network((0x0A000000 | host, length), strict=False)),
    st.sampled_from([0, 1, 2, 16, 31, 127, 128, 255, 256, 511, 1024, 1 << 20]),
    st.sampled_from([8, 22, 24, 25, 28, 31, 32]),
)
"""Few addresses, so that many lie within others."""


def maximal(members: set[str]) -> set[str]:
    nets = [ipaddress.IPv4Network(member) for member in members]
    return {str(net) for net in nets if not any(net != other and net.subnet_of(other) for other in nets)}


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sets(NETS, max_size=6), st.sets(NETS, max_size=6)), max_size=8))
def test_elements_are_the_members_that_no_other_contains(changes: list[tuple[set[str], set[str]]]) -> None:
    cover = covers.Cover()
    members: set[str] = set()
    elements: set[str] = set()
    for wanted, unwanted in changes:
        removed = members & unwanted
        added = wanted - (members - removed)
        came, went = cover.change(added=added, removed=removed)
        members = (members - removed) | added
        assert not came & went
        assert went <= elements
        assert not came & elements
        elements = (elements - went) | came
        assert elements == maximal(members) == cover.elements()
        assert cover.has_nets is any(not member.endswith("/32") for member in members)


def test_the_whole_address_space_contains_everything() -> None:
    cover = covers.Cover()
    cover.change(added=["10.0.0.1/32"], removed=())
    assert cover.change(added=["0.0.0.0/0"], removed=()) == ({"0.0.0.0/0"}, {"10.0.0.1/32"})
    assert cover.change(added=(), removed=["0.0.0.0/0"]) == ({"10.0.0.1/32"}, {"0.0.0.0/0"})
