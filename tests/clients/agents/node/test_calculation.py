"""What the calculation refuses, and what an update costs."""

import json

import pytest

from clients.agents.node import desired
from clients.agents.node.calculation import Calculation

POD = "/calico/v1/host/n1/workload/k8s/default%2fweb/endpoint/eth0"


def pod(**fields: object) -> bytes:
    value = {"name": "cali123", "ipv4_nets": ["10.0.0.1/32"], "profile_ids": ["kns.default"], "labels": {"app": "web"}}
    return json.dumps({**value, **fields}).encode()


def policy(**fields: object) -> bytes:
    return json.dumps({"selector": "app == 'web'", "types": ["ingress"], **fields}).encode()


def state_of(calculation: Calculation) -> desired.State:
    state = desired.State()
    state.apply(calculation.take()[0])
    return state


@pytest.mark.parametrize("name", ["", "../x", ".", "..", "a" * 16, "cali 1", "cali1;x", "cali\n"])
def test_an_interface_with_a_dangerous_name_is_refused(name: str) -> None:
    """It would get into rules and into paths."""
    calculation = Calculation("n1")
    reason = calculation.update(POD, pod(name=name))
    assert reason is not None
    assert POD in reason
    assert state_of(calculation).endpoints == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"ipv4_nets": ["10.0.0.x"]},
        {"ipv6_nets": ["fe80::1%x}/128"]},
        {"labels": ["a"]},
        {"ports": [{"port": 1}]},
        {"ports": [{"name": "x", "port": 70000}]},
    ],
)
def test_a_pod_that_does_not_decode_counts_as_absent(fields: dict[str, object]) -> None:
    """Also if it was there before: nothing of the old value stays."""
    calculation = Calculation("n1")
    assert calculation.update(POD, pod()) is None
    assert state_of(calculation).endpoints.keys() == {"k8s/default/web/eth0"}
    assert calculation.update(POD, pod(**fields)) is not None
    assert calculation.take()[0].endpoints.removed == {"k8s/default/web/eth0"}


@pytest.mark.parametrize(
    "rule",
    [{"src_nets": ["x"]}, {"dst_ports": [70000]}, {"src_selector": "("}, {"protocol": "carrot"}, {"icmp_type": 256}],
)
def test_a_policy_whose_rules_do_not_convert_denies_everything(rule: dict[str, object]) -> None:
    calculation = Calculation("n1")
    calculation.update(POD, pod())
    rules = [{"action": "allow"}, {"action": "allow", **rule}]
    assert calculation.update("/calico/v1/policy/NetworkPolicy/default/bad", policy(inbound_rules=rules)) is None
    update, refusals = calculation.take()
    assert len(refusals) == 1
    assert "NetworkPolicy/default/bad" in refusals[0]
    [found] = update.policies.set.values()
    assert found.ingress == found.egress == (desired.Rule(desired.Action.DENY),)
    assert calculation.take() == (desired.Update(), [])


def test_tiers_that_do_not_exist_come_last() -> None:
    """Also after those without an order."""
    calculation = Calculation("n1")
    calculation.update(POD, pod())
    calculation.update("/calico/v1/policy/tier/z-known/metadata", b'{"defaultAction":"Pass"}')
    for tier in ("a-unknown", "z-known"):
        calculation.update(f"/calico/v1/policy/GlobalNetworkPolicy//{tier}", policy(tier=tier))
    [endpoint] = state_of(calculation).endpoints.values()
    assert [(tier.name, tier.default_action) for tier in endpoint.tiers] == [
        ("z-known", desired.Action.PASS),
        ("a-unknown", desired.Action.DENY),
    ]


def test_an_unknown_action_denies() -> None:
    calculation = Calculation("n1")
    calculation.update(POD, pod())
    calculation.update("/calico/v1/policy/NetworkPolicy/default/odd", policy(inbound_rules=[{"action": "teleport"}]))
    [found] = state_of(calculation).policies.values()
    assert found.ingress == (desired.Rule(desired.Action.DENY, unsupported="action 'teleport'"),)


def test_a_slice_with_a_port_that_there_is_not_is_refused() -> None:
    """One bad number in a set would make the kernel refuse a whole batch."""
    calculation = Calculation("n1")
    calculation.update(POD, pod())
    rules = [{"action": "allow", "dst_service": "web", "dst_service_ns": "default"}]
    calculation.update("/calico/v1/policy/NetworkPolicy/default/p", policy(outbound_rules=rules))
    key = "/calico/resources/v3/projectcalico.org/kubernetesendpointslices/default/web-1"

    def slice_of(port: int) -> bytes:
        labels = {"kubernetes.io/service-name": "web"}
        endpoints = [{"addresses": ["10.0.0.9", "web.example", "fe80::1%eth0"]}]
        ports = [{"port": port, "protocol": "UDP"}, {}]
        metadata = {"namespace": "default", "labels": labels}
        return json.dumps({"metadata": metadata, "endpoints": endpoints, "ports": ports}).encode()

    assert calculation.update(key, slice_of(53)) is None
    state = state_of(calculation)
    assert state.sets["service-ports:default/web"].members == {desired.AddressPort("10.0.0.9", 17, 53)}
    assert calculation.update(key, slice_of(70000)) is not None
    state.apply(calculation.take()[0])
    assert state.sets["service-ports:default/web"].members == set()


def test_a_tunnel_address_that_is_none_counts_as_not_set() -> None:
    calculation = Calculation("n1")
    node = {"spec": {"bgp": {"ipv4Address": "172.16.0.2/16"}}}
    calculation.update("/calico/v1/config/VXLANEnabled", b"true")
    calculation.update("/calico/resources/v3/projectcalico.org/nodes/n2", json.dumps(node).encode())
    calculation.update("/calico/v1/host/n2/config/VXLANTunnelMACAddr", b"66:00:00:00:00:0x; reboot")
    for text in (b"10.0.0.1; reboot", b"fd00::1"):
        assert calculation.update("/calico/v1/host/n2/config/IPv4VXLANTunnelAddr", text) is None
        assert state_of(calculation).vteps == {}
    calculation.update("/calico/v1/host/n2/config/IPv4VXLANTunnelAddr", b"10.0.0.1")
    [vtep] = state_of(calculation).vteps.values()
    assert (vtep.ipv4_address, vtep.parent_ipv4_address) == ("10.0.0.1", "172.16.0.2")
    assert vtep.mac.startswith("66:")
    assert ";" not in vtep.mac


def test_a_host_endpoint_cannot_take_the_place_of_a_workload() -> None:
    """Whatever its name is."""
    calculation = Calculation("n1")
    calculation.update(POD, pod())
    before = state_of(calculation)
    key = "/calico/v1/host/n1/endpoint/k8s%2fdefault%2fweb%2feth0"
    calculation.update(key, b'{"name":"*","labels":{"app":"other"}}')
    update, _ = calculation.take()
    assert update.endpoints == desired.Changes()
    assert update.host_endpoints.set.keys() == before.endpoints.keys()
    calculation.update(key, None)
    assert calculation.take()[0].endpoints == desired.Changes()


def test_a_missing_profile_denies() -> None:
    calculation = Calculation("n1")
    calculation.update(POD, pod())
    deny = (desired.Rule(desired.Action.DENY),)
    assert state_of(calculation).profiles == {"kns.default": desired.Profile(deny, deny)}


def test_keys_of_other_kinds_are_skipped() -> None:
    calculation = Calculation("n1")
    for key in ("", "/", "/calico/v1/policy/tier/x/policy/y", "/calico/resources/v3/projectcalico.org/bgppeers/x"):
        assert calculation.update(key, b"{") is None
    assert not calculation.take()[0]


@pytest.mark.parametrize("key", ["/calico/v1/ipam/v4/pool/x", "/calico/ipam/v2/assignment/ipv4/block/x"])
def test_a_bad_key_is_refused(key: str) -> None:
    calculation = Calculation("n1")
    assert calculation.update(key, b"{}") is not None
    assert not calculation.take()[0]


def test_a_change_concerns_only_the_sets_that_it_touches() -> None:
    """A remote pod in a cluster with many policies changes the members of one set, and evaluates few selectors."""
    calculation = Calculation("n1")
    for number in range(200):
        labels = {"app": f"app-{number}", "orchestrator": "k8s"}
        nets = [f"10.0.{number}.1/32"]
        calculation.update(
            f"/calico/v1/host/n1/workload/k8s/a%2fl{number}/endpoint/eth0", pod(labels=labels, ipv4_nets=nets)
        )
        rules = [{"action": "allow", "src_selector": f"orchestrator == 'k8s' && app == 'app-{number}'"}]
        value = policy(selector=f"app == 'app-{number}'", inbound_rules=rules)
        calculation.update(f"/calico/v1/policy/NetworkPolicy/a/p{number}", value)
    calculation.take()
    before = calculation._sets._index.evaluations
    remote = pod(labels={"app": "app-7", "orchestrator": "k8s", "new": "yes"}, ipv4_nets=["10.1.0.1/32"])
    calculation.update("/calico/v1/host/n2/workload/k8s/a%2fr/endpoint/eth0", remote)
    update, _ = calculation.take()
    name = 'selector:(orchestrator == "k8s" && app == "app-7")'
    assert update == desired.Update(members={name: desired.MemberChange(frozenset({"10.1.0.1/32"}), frozenset())})
    assert calculation._sets._index.evaluations - before < 10
