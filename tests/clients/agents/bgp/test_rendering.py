"""BIRD's configuration, and that BIRD accepts whatever the feed says."""

import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from clients.agents.bgp import rendering
from clients.agents.bgp.resources import State
from tests.harness.bgp_feed import RESOURCES, opinion, put_block, put_node, put_pool, put_resource

GOLDEN = Path(__file__).with_name("golden")


def mesh() -> State:
    """Three nodes in two subnets, with a pool that crosses subnets by VXLAN."""
    state = State()
    for number, subnet in ((1, 1), (2, 2), (3, 1)):
        put_node(state, number, subnet=subnet)
        put_block(state, f"node-{number}", f"10.65.{number}.0/26")
    put_pool(state, "10.65.0.0/16")
    put_pool(state, "10.66.0.0/16", vxlan_mode="crosssubnet")
    put_pool(state, "10.67.0.0/16", disableBGPExport=True)
    put_block(state, "node-1", "10.66.0.0/26")
    put_block(state, "node-1", "10.66.9.0/26", is_confirmed=False)
    put_block(state, "node-1", "10.65.200.1/32")
    return state


def reflectors() -> State:
    """Node 1 reflects; it has a neighbor outside, with filters and communities."""
    state = mesh()
    put_node(state, 1, routeReflectorClusterID="244.0.0.1", labels={"reflector": ""})
    put_resource(
        state,
        "bgpconfigurations",
        "default",
        nodeToNodeMeshEnabled=False,
        bindMode="NodeIP",
        listenPort=1790,
        logSeverityScreen="Warning",
        ignoredInterfaces=["docker*"],
        communities=[{"name": "pods", "value": "64512:1"}],
        prefixAdvertisements=[{"cidr": "10.65.0.0/16", "communities": ["pods", "64512:2:3"]}],
    )
    put_resource(state, "bgppeers", "inside", nodeSelector="!has(reflector)", peerSelector="has(reflector)")
    put_resource(
        state,
        "bgppeers",
        "rack",
        peerIP="172.30.1.1",
        asNumber=64513,
        ttlSecurity=1,
        filters=["few"],
        reachableBy="172.30.1.2",
    )
    put_resource(
        state,
        "bgpfilters",
        "few",
        importV4=[{"action": "Reject", "matchOperator": "In", "cidr": "10.0.0.0/8"}],
        exportV4=[
            {
                "action": "Accept",
                "matchOperator": "In",
                "cidr": "10.65.0.0/16",
                "prefixLength": {"min": 26, "max": 28},
                "source": "RemotePeers",
                "communities": {"values": ["64512:1"]},
                "operations": [{"addCommunity": {"value": "64512:9"}}, {"prependASPath": {"prefix": [64512, 64600]}}],
            },
            {"action": "Reject", "peerType": "iBGP"},
            {"action": "Reject", "interface": "eth*", "asPathPrefix": [64513]},
        ],
    )
    return state


@pytest.mark.parametrize(("name", "state"), [("mesh", mesh()), ("reflectors", reflectors())])
def test_golden(name: str, state: State, tmp_path: Path) -> None:
    rendered = rendering.render(state, "node-1")
    assert rendered.problems == {}
    assert rendered.text == (GOLDEN / f"{name}.conf").read_text()
    assert opinion(rendered.text, tmp_path) == ""


def test_a_node_without_an_address_is_unknown() -> None:
    state = mesh()
    state.apply(f"{RESOURCES}nodes/node-1", b'{"metadata":{"name":"node-1"},"spec":{}}')
    with pytest.raises(rendering.UnknownNode):
        rendering.render(state, "node-1")


def test_a_deleted_object_is_gone() -> None:
    state, without = mesh(), State()
    put_node(without, 1)
    for number in (2, 3):
        state.apply(f"{RESOURCES}nodes/node-{number}", None)
        state.apply(f"/calico/ipam/v2/host/node-{number}/ipv4/block/10.65.{number}.0-26", None)
    for key in ("10.65.1.0-26", "10.66.0.0-26", "10.65.200.1-32"):
        state.apply(f"/calico/ipam/v2/host/node-1/ipv4/block/{key}", None)
    for key in ("10.65.0.0-16", "10.66.0.0-16", "10.67.0.0-16"):
        state.apply(f"/calico/v1/ipam/v4/pool/{key}", None)
    assert rendering.render(state, "node-1").text == rendering.render(without, "node-1").text


def test_what_is_not_supported_is_named() -> None:
    state = mesh()
    put_pool(state, "10.68.0.0/16", ipip_mode="always")
    put_resource(state, "bgpconfigurations", "default", serviceClusterIPs=[{"cidr": "10.96.0.0/12"}])
    put_resource(state, "bgppeers", "p", peerIP="172.30.1.1", filters=["missing", "odd"])
    put_resource(
        state, "bgpfilters", "odd", exportV4=[{"action": "Accept", "priority": 5}, {"action": "Accept", "cidr": 7}]
    )
    rendered = rendering.render(state, "node-1")
    assert set(rendered.problems) == {
        "IPPool 10.68.0.0/16",
        "serviceClusterIPs",
        "BGPFilter missing",
        "BGPFilter odd exportV4[0]",
        "BGPFilter odd exportV4[1]",
    }
    assert "if true then { reject; }" in rendered.text  # the malformed rule; the one not understood accepts nothing
    assert "net ~ 10.68.0.0/16 then reject" in rendered.text


texts = strategies.one_of(
    strategies.sampled_from(
        ["", "10.0.0.0/8", "64512", '"; } protocol static x {', "eth*", "1:2", "1:2:3", "\n", "In", "Equal"]
    ),
    strategies.text(max_size=8),
)
scalars = strategies.one_of(texts, strategies.integers(-2, 70_000), strategies.booleans(), strategies.none())
filter_members = (
    "action",
    "cidr",
    "matchOperator",
    "source",
    "interface",
    "peerType",
    "asPathPrefix",
    "communities",
    "operations",
)
rules = strategies.dictionaries(
    strategies.sampled_from(filter_members),
    strategies.one_of(
        scalars, strategies.lists(scalars, max_size=2), strategies.dictionaries(texts, scalars, max_size=2)
    ),
    max_size=5,
).map(lambda rule: {"action": "Accept", "matchOperator": "In", **rule})
peer_members = (
    "peerIP",
    "asNumber",
    "nextHopMode",
    "sourceAddress",
    "maxRestartTime",
    "ttlSecurity",
    "reachableBy",
    "localASNumber",
)
peers = strategies.dictionaries(strategies.sampled_from(peer_members), scalars, max_size=4).map(
    lambda spec: {"peerIP": "172.30.1.1", "asNumber": 64513, "filters": ["f"], **spec}
)
configuration_members = (
    "asNumber",
    "listenPort",
    "logSeverityScreen",
    "bindMode",
    "ignoredInterfaces",
    "nodeMeshMaxRestartTime",
)
configurations = strategies.dictionaries(
    strategies.sampled_from(configuration_members),
    strategies.one_of(scalars, strategies.lists(texts, max_size=2)),
    max_size=3,
)


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(rule=rules, peer=peers, configuration=configurations, cidr=texts)
@hypothesis.example(rule={"action": "Accept", "cidr": True}, peer={}, configuration={}, cidr="")
def test_bird_accepts_whatever_the_feed_says(
    tmp_path: Path, rule: dict[str, Any], peer: dict[str, Any], configuration: dict[str, Any], cidr: str
) -> None:
    """Hostile values are left out and named; they neither break the configuration nor add to it."""
    state = mesh()
    put_resource(state, "bgpfilters", "f", importV4=[rule], exportV4=[rule])
    put_resource(state, "bgppeers", "p", **peer)
    put_resource(state, "bgpconfigurations", "default", **configuration)
    put_pool(state, cidr)
    state.apply(f"/calico/ipam/v2/host/node-1/ipv4/block/{cidr}", json.dumps({"state": "confirmed"}).encode())
    rendered = rendering.render(state, "node-1")
    assert opinion(rendered.text, tmp_path) == ""
    assert rendered.text.count("protocol static") <= 2
