"""Whom a node talks BGP with."""

import pytest

from clients.agents.bgp import sessions
from clients.agents.bgp.resources import State
from clients.agents.bgp.sessions import Session
from tests.harness.bgp_feed import put_node, put_resource


@pytest.fixture
def state() -> State:
    """Nodes 1 and 3 in rack 1, node 2 in rack 2."""
    state = State()
    for number, rack in ((1, "r1"), (2, "r2"), (3, "r1")):
        put_node(state, number, labels={"rack": rack})
    return state


def planned(state: State, node: str = "node-1") -> dict[str, Session]:
    """The sessions of a node by the last number of the neighbor's address."""
    plan = sessions.plan(state, state.nodes[node])
    assert plan.problems == {}
    return {str(one.address).rpartition(".")[2]: one for one in plan.sessions}


def problems(state: State, node: str = "node-1") -> dict[str, str]:
    return sessions.plan(state, state.nodes[node]).problems


def test_the_mesh_joins_all_nodes_and_one_end_calls(state: State) -> None:
    assert set(planned(state)) == {"12", "13"}
    for one, other in (("node-1", "12"), ("node-2", "11")):
        assert planned(state, one)[other].is_passive is (one == "node-1")
    assert all(one.as_number == one.local_as_number == 64512 for one in planned(state).values())


def test_the_mesh_can_be_off(state: State) -> None:
    put_resource(state, "bgpconfigurations", "default", nodeToNodeMeshEnabled=False)
    assert planned(state) == {}


def test_as_numbers_and_ports_of_cluster_and_node(state: State) -> None:
    put_resource(state, "bgpconfigurations", "default", asNumber="65000.10", listenPort=1790)
    put_resource(state, "bgpconfigurations", "node.node-2", listenPort=1791)
    put_node(state, 3, asNumber=65003)
    found = planned(state)
    assert (found["12"].port, found["12"].as_number) == (1791, 65000 * 65536 + 10)
    assert (found["13"].port, found["13"].as_number, found["13"].is_internal) == (1790, 65003, False)


def test_reflectors_leave_the_mesh_and_peer_by_selectors(state: State) -> None:
    put_node(state, 3, labels={"rack": "r1", "reflector": ""}, routeReflectorClusterID="244.0.0.1")
    put_resource(state, "bgppeers", "to-reflectors", nodeSelector="all()", peerSelector="has(reflector)")
    assert {name: one.name for name, one in planned(state).items()} == {
        "12": "mesh_172_30_1_12",
        "13": "node_172_30_1_13",
    }
    reflector = planned(state, "node-3")
    assert set(reflector) == {"11", "12"}
    assert all(one.is_reflector_client for one in reflector.values())
    assert not planned(state)["13"].is_reflector_client


def test_reflectors_of_one_cluster_are_no_clients_of_each_other(state: State) -> None:
    for number, cluster in ((1, "1.0.0.1"), (2, "1.0.0.1"), (3, "1.0.0.2")):
        put_node(state, number, labels={"reflector": ""}, routeReflectorClusterID=cluster)
    put_resource(state, "bgppeers", "all", nodeSelector="has(reflector)", peerSelector="has(reflector)")
    assert {name: one.is_reflector_client for name, one in planned(state).items()} == {"12": False, "13": True}


def test_a_peering_by_selectors_works_from_both_ends_unless_it_is_manual(state: State) -> None:
    put_resource(state, "bgpconfigurations", "default", nodeToNodeMeshEnabled=False)
    put_resource(state, "bgppeers", "p", node="node-1", peerSelector="rack == 'r2'")
    assert set(planned(state)) == {"12"}
    assert set(planned(state, "node-2")) == {"11"}
    assert planned(state, "node-3") == {}
    put_resource(state, "bgppeers", "p", node="node-1", peerSelector="rack == 'r2'", reversePeering="Manual")
    assert planned(state, "node-2") == {}


def test_peers_outside_of_the_cluster(state: State) -> None:
    put_resource(
        state,
        "bgppeers",
        "rack",
        nodeSelector="rack == 'r1'",
        peerIP="172.30.1.1:1179",
        asNumber=64513,
        nextHopMode="Self",
        maxRestartTime="1m30s",
        keepaliveTime="500ms".replace("500ms", "0.5s"),
        ttlSecurity=2,
        numAllowedLocalASNumbers=1,
        sourceAddress="None",
        reachableBy="172.30.1.9",
        localASNumber=64999,
        filters=["a", "b"],
    )
    one = planned(state)["1"]
    assert (one.name, one.port, one.as_number, one.local_as_number) == (
        "global_172_30_1_1_port_1179",
        1179,
        64513,
        64999,
    )
    assert (one.next_hop, one.restart_seconds, one.keepalive_seconds) == ("self", 90, 1)
    assert (one.ttl_hops, one.allowed_local_as, one.uses_node_address) == (2, 1, False)
    assert (str(one.reachable_by), one.filters) == ("172.30.1.9", ("a", "b"))
    assert "1" not in planned(state, "node-2")


def test_the_peering_that_names_the_node_counts(state: State) -> None:
    put_resource(state, "bgppeers", "z-global", peerIP="172.30.1.12", asNumber=1)
    put_resource(state, "bgppeers", "a-node", node="node-1", peerIP="172.30.1.12", asNumber=2)
    assert (planned(state)["12"].name, planned(state)["12"].as_number) == ("node_172_30_1_12", 2)
    assert planned(state, "node-3")["12"].name == "global_172_30_1_12"


@pytest.mark.parametrize(
    "spec",
    [
        {"peerIP": "fd00::1", "asNumber": 1},
        {"peerIP": "10.0.0.1", "asNumber": 0},
        {"peerIP": "10.0.0.1;", "asNumber": 1},
        {"peerIP": "10.0.0.1:70000"},
        {"peerSelector": "rack == "},
        {"peerIP": "10.0.0.1", "ttlSecurity": 999},
        {"peerIP": "10.0.0.1", "nextHopMode": "Nowhere"},
        {"peerIP": "10.0.0.1", "maxRestartTime": "soon"},
        {"peerIP": "10.0.0.1", "localWorkloadSelector": "all()"},
        {"peerIP": "10.0.0.1", "password": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {},
    ],
)
def test_what_is_malformed_or_not_supported_is_named_and_stops_nothing_else(
    state: State, spec: dict[str, object]
) -> None:
    put_resource(state, "bgppeers", "odd", **spec)
    assert list(problems(state)) == ["BGPPeer odd"]
    assert len(sessions.plan(state, state.nodes["node-1"]).sessions) == 2


def test_a_mesh_with_a_password_has_no_sessions(state: State) -> None:
    put_resource(state, "bgpconfigurations", "default", nodeMeshPassword={"secretKeyRef": {"name": "s", "key": "k"}})
    assert list(problems(state)) == ["nodeMeshPassword"]
    assert sessions.plan(state, state.nodes["node-1"]).sessions == ()


def test_the_empty_reference_that_api_servers_fill_in_is_no_password(state: State) -> None:
    put_resource(state, "bgpconfigurations", "default", nodeMeshPassword={"secretKeyRef": {"name": ""}})
    assert set(planned(state)) == {"12", "13"}
