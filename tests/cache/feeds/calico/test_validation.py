"""Validation of whole resources."""

import base64
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.feeds.calico import schema, validation
from cache.feeds.calico.codecs import addresses


def problem(type_name: str, **source: Any) -> str:
    return validation.problem(type_name, schema.read(type_name, source))


FELIX = "v3.FelixConfigurationSpec"
BGP = "v3.BGPConfigurationSpec"
PEER = "v3.BGPPeerSpec"
RULE_V4 = "v3.BGPFilterRuleV4"
RULE_V6 = "v3.BGPFilterRuleV6"
STATUS = "v3.CalicoNodeStatusSpec"


@pytest.mark.parametrize(
    ("type_name", "source"),
    [
        (PEER, {}),
        (PEER, {"node": "a.b-c", "nodeSelector": "", "peerSelector": " has(x) ", "filters": ["a", "b.c"]}),
        (PEER, {"peerIP": "192.0.2.1"}),
        (PEER, {"peerIP": "192.0.2.1:65535"}),
        (PEER, {"peerIP": "fd00::1"}),
        (PEER, {"peerIP": "[fd00::1]:179", "reachableBy": "fd00::2"}),
        (PEER, {"peerIP": "192.0.2.1", "reachableBy": "::ffff:192.0.2.2"}),
        (PEER, {"peerIP": "", "node": ""}),
        (BGP, {"communities": [{"name": "a", "value": "65535:0"}, {"name": "b", "value": "4294967295:1:2"}]}),
        (BGP, {"communities": [], "prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": []}]}),
        (
            BGP,
            {
                "communities": [{"name": "a", "value": "1:2"}],
                "prefixAdvertisements": [{"cidr": "1.1.1.1", "communities": ["a", "3:4"]}],
            },
        ),
        (BGP, {"listenPort": 0, "ignoredInterfaces": ["eth*", "a.b_c-d"], "ipv4NormalRoutePriority": 1}),
        (BGP, {"serviceClusterIPs": [{"cidr": "10.0.0.0/8"}, {"cidr": ""}, {"cidr": "fd00::/8"}]}),
        (BGP, {"localWorkloadPeeringIPV4": "::ffff:1.2.3.4", "localWorkloadPeeringIPV6": "fd00::1"}),
        (RULE_V4, {"cidr": "10.0.0.0/8", "prefixLength": {"min": 0, "max": 32}, "interface": "*", "action": "Accept"}),
        (
            RULE_V4,
            {"source": "RemotePeers", "peerType": "eBGP", "action": "x", "operations": [{"setPriority": {"value": 1}}]},
        ),
        (RULE_V6, {"cidr": "fd00::/8", "prefixLength": {"max": 128}, "action": "Accept"}),
        (STATUS, {"node": "n", "classes": ["Agent", "BGP"], "updatePeriodSeconds": 0}),
        (STATUS, {"node": "n", "classes": [], "updatePeriodSeconds": 86400}),
        (FELIX, {"featureDetectOverride": "a=b,,\tc=d=e,", "featureGates": "  "}),
        (FELIX, {"kubeNodePortRanges": ["1:2", 3], "natPortRange": "http", "bpfPSNATPorts": "1:65535"}),
        (FELIX, {"externalNodesList": ["10.0.0.1", "10.0.0.1/8", "::ffff:10.0.0.1"], "openstackRegion": "a" * 46}),
        (FELIX, {"natOutgoingAddress": "1.2.3.4", "deviceRouteSourceAddressIPv6": "fd00::1"}),
        (FELIX, {"routeTableRange": {"min": 1, "max": 250}, "routeTableRanges": [{"min": 1, "max": 65535}]}),
        (FELIX, {"routeTableRanges": [{"min": 4294967295, "max": 4294967295}]}),
        (FELIX, {"healthTimeoutOverrides": [{"name": "A b_c-1", "timeout": "0s"}]}),
        (FELIX, {"bpfLogFilters": {"eth0": "not checked \n"}, "bpfDSROptoutCIDRs": ["10.0.0.1/8", ""]}),
        (FELIX, {"failsafeInboundHostPorts": [{"protocol": "nonsense", "port": 0, "net": "bad"}]}),
        (
            FELIX,
            {"goGCThreshold": -1, "debugPort": 0, "wireguardInterfaceName": "*", "bpfForceTrackPacketsFromIfaces": []},
        ),
        (FELIX, {"iptablesNATOutgoingInterfaceFilter": "docker+", "prometheusMetricsHost": "fd00::1"}),
        (FELIX, {"mtuIfacePattern": r"^\pL+\z", "bpfDataIfacePattern": ""}),
    ],
)
def test_valid_resources(type_name: str, source: dict[str, Any]) -> None:
    assert problem(type_name, **source) == ""


VOID: list[tuple[str, dict[str, Any], str]] = [
    (PEER, {"node": "A"}, "node"),
    (PEER, {"node": "a..b"}, "node"),
    (PEER, {"nodeSelector": "(("}, "nodeSelector"),
    (PEER, {"filters": ["ok", "not ok"]}, "filters"),
    (PEER, {"filters": [""]}, "filters"),
    (PEER, {"peerIP": "192.0.2.1:0"}, "peerIP"),
    (PEER, {"peerIP": "192.0.2.1:65536"}, "peerIP"),
    (PEER, {"peerIP": "192.0.2.1/32"}, "peerIP"),
    (PEER, {"peerIP": "[192.0.2.1]"}, "peerIP"),
    (PEER, {"peerIP": "host:80"}, "peerIP"),
    (PEER, {"reachableBy": "fd00::1%eth0"}, "reachableBy"),
    (PEER, {"peerIP": "192.0.2.1:179", "reachableBy": "fd00::2"}, "reachableBy"),
    (BGP, {"communities": [{"name": "a", "value": "65536:0"}]}, "communities"),
    (BGP, {"communities": [{"name": "a", "value": "1:2:3:4"}]}, "communities"),
    (BGP, {"communities": [{"name": "", "value": "1:2"}]}, "communities.name"),
    (BGP, {"communities": [{"name": "a"}]}, "communities.value"),
    (BGP, {"prefixAdvertisements": [{"cidr": "10.0.0.1/8", "communities": []}]}, "prefixAdvertisements.cidr"),
    (BGP, {"prefixAdvertisements": [{"cidr": "10.0.0.0/8"}]}, "prefixAdvertisements.communities"),
    (
        BGP,
        {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["b"]}]},
        "prefixAdvertisements.communities",
    ),
    (BGP, {"ignoredInterfaces": ["*"]}, "ignoredInterfaces"),
    (BGP, {"ignoredInterfaces": ["a" * 16]}, "ignoredInterfaces"),
    (BGP, {"ipv4NormalRoutePriority": 0}, "ipv4NormalRoutePriority"),
    (BGP, {"ipv6NormalRoutePriority": 2147483647}, "ipv6NormalRoutePriority"),
    (BGP, {"serviceExternalIPs": [{"cidr": "10.0.0.1/8"}]}, "serviceExternalIPs.cidr"),
    (BGP, {"localWorkloadPeeringIPV6": "::ffff:1.2.3.4"}, "localWorkloadPeeringIPV6"),
    (RULE_V4, {}, "action"),
    (RULE_V4, {"action": "A", "cidr": "fd00::/8"}, "cidr"),
    (RULE_V4, {"action": "A", "prefixLength": {"max": 33}}, "prefixLength.max"),
    (RULE_V4, {"action": "A", "prefixLength": {"min": -1}}, "prefixLength.min"),
    (RULE_V4, {"action": "A", "peerType": "ebgp"}, "peerType"),
    (RULE_V4, {"action": "A", "communities": {}}, "communities.values"),
    (RULE_V4, {"action": "A", "operations": [{"setPriority": {"value": 0}}]}, "operations.setPriority.value"),
    (RULE_V4, {"action": "A", "operations": [{"addCommunity": {}}]}, "operations.addCommunity.value"),
    (RULE_V6, {"action": "A", "cidr": "::ffff:10.0.0.0/104"}, "cidr"),
    (STATUS, {"classes": [], "updatePeriodSeconds": 1}, "node"),
    (STATUS, {"node": "n", "updatePeriodSeconds": 1}, "classes"),
    (STATUS, {"node": "n", "classes": ["a", "a"], "updatePeriodSeconds": 1}, "classes"),
    (STATUS, {"node": "n", "classes": []}, "updatePeriodSeconds"),
    (STATUS, {"node": "n", "classes": [], "updatePeriodSeconds": 86401}, "updatePeriodSeconds"),
    (FELIX, {"featureDetectOverride": "a =b"}, "featureDetectOverride"),
    (FELIX, {"featureGates": "a=b,c"}, "featureGates"),
    (FELIX, {"logDebugFilenameRegex": "(["}, "logDebugFilenameRegex"),
    (FELIX, {"kubeNodePortRanges": [1, 2, 3, 4, 5, 6, 7, 8]}, "kubeNodePortRanges"),
    (FELIX, {"kubeNodePortRanges": ["http"]}, "kubeNodePortRanges"),
    (FELIX, {"kubeNodePortRanges": [0]}, "kubeNodePortRanges"),
    (FELIX, {"natPortRange": "HTTP"}, "natPortRange"),
    (FELIX, {"natPortRange": 0}, "natPortRange"),
    (FELIX, {"externalNodesList": ["fd00::1"]}, "externalNodesList"),
    (FELIX, {"externalNodesList": [""]}, "externalNodesList"),
    (FELIX, {"openstackRegion": "a" * 47}, "openstackRegion"),
    (FELIX, {"openstackRegion": "a.b"}, "openstackRegion"),
    (FELIX, {"natOutgoingAddress": "1.2.3.4/32"}, "natOutgoingAddress"),
    (FELIX, {"routeTableRange": {"min": 0, "max": 250}}, "routeTableRange"),
    (FELIX, {"routeTableRange": {"min": 1, "max": 251}}, "routeTableRange"),
    (FELIX, {"routeTableRanges": [{"min": 2, "max": 1}]}, "routeTableRanges"),
    (FELIX, {"routeTableRanges": [{"min": 1, "max": 4294967296}]}, "routeTableRanges"),
    (FELIX, {"routeTableRanges": [{"min": 1, "max": 40000}, {"min": 1, "max": 40000}]}, "routeTableRanges"),
    (FELIX, {"healthTimeoutOverrides": [{"name": "a/b", "timeout": "1s"}]}, "healthTimeoutOverrides.name"),
    (FELIX, {"healthTimeoutOverrides": [{"name": "a", "timeout": "-1s"}]}, "healthTimeoutOverrides.timeout"),
    (FELIX, {"bpfLogFilters": {"*": "x"}}, "bpfLogFilters"),
    (FELIX, {"bpfDSROptoutCIDRs": ["x"]}, "bpfDSROptoutCIDRs"),
    (FELIX, {"bpfForceTrackPacketsFromIfaces": ["ok", "not ok"]}, "bpfForceTrackPacketsFromIfaces"),
    (FELIX, {"debugPort": 65536}, "debugPort"),
    (FELIX, {"goMaxProcs": -2}, "goMaxProcs"),
    (FELIX, {"wireguardRoutingRulePriority": 32766}, "wireguardRoutingRulePriority"),
    (FELIX, {"wireguardInterfaceName": "a b"}, "wireguardInterfaceName"),
    (FELIX, {"prometheusMetricsHost": "a b"}, "prometheusMetricsHost"),
    (FELIX, {"bpfOverlayHostSourceIP": ""}, "bpfOverlayHostSourceIP"),
    ("internal.NodeSpec", {"bgp": {}}, "bgp"),
    ("internal.NodeStatus", {"wireguardPublicKey": base64.b64encode(b"k" * 31).decode()}, "wireguardPublicKey"),
]
"""Type, a member that makes it invalid, and the field that the problem names."""


@pytest.mark.parametrize(("type_name", "source", "field"), VOID)
def test_an_invalid_field_is_named(type_name: str, source: dict[str, Any], field: str) -> None:
    assert problem(type_name, **source).startswith(field)


def test_a_nodes_parts_are_checked() -> None:
    key = base64.b64encode(b"k" * 32).decode()
    assert problem("internal.NodeStatus", wireguardPublicKey=key) == ""
    assert problem("internal.NodeSpec", bgp={"asNumber": 0}, vxlanTunnelMACAddr="00:11:22:33:44:55") == ""
    assert problem("internal.NodeSpec", vxlanTunnelMACAddr="00:11").startswith("vxlanTunnelMACAddr")
    assert problem("internal.NodeSpec", ipv4VXLANTunnelAddr="1.2.3.4/24").startswith("ipv4VXLANTunnelAddr")
    # Elements of lists are checked only where the original checks them.
    assert problem("internal.NodeSpec", addresses=[{"address": "nonsense"}], interfaces=[{"name": "A b"}]) == ""


@pytest.mark.parametrize(
    "metadata",
    [
        {"name": "Upper"},
        {"name": "a" * 254},
        {"name": "a", "labels": {"a b": ""}},
        {"name": "a", "labels": {"a": "x" * 64}},
        {"name": "a", "annotations": {"a/b/c": ""}},
        {"name": "a", "annotations": {"a": "x" * (256 * 1024)}},
    ],
)
def test_metadata_is_checked_in_every_kind(metadata: dict[str, Any]) -> None:
    for type_name in ("v3.BGPPeer", "corev1.Service", "internal.LiveMigration"):
        assert problem(type_name, metadata=metadata).startswith("metadata.")


def test_annotation_keys_ignore_case_and_label_keys_do_not() -> None:
    assert problem("v3.BGPPeer", metadata={"name": "a", "annotations": {"Example.ORG/x": "<"}}) == ""
    assert problem("v3.BGPPeer", metadata={"name": "a", "labels": {"Example.ORG/x": ""}}) != ""


@given(st.sampled_from(["peerIP", "node", "nodeSelector", "reachableBy"]), st.text())
def test_any_text_is_valid_or_invalid(name: str, text: str) -> None:
    assert isinstance(problem(PEER, **{name: text}), str)


def test_every_tag_of_the_schema_is_known() -> None:
    for type_name, fields in schema.TYPES.items():
        for field in fields:
            if field.check and field.kind in ("string", "int", "uint32"):
                value: Any = "x" if field.kind == "string" else 1
                validation.problem(type_name, {field.name: value})


@pytest.mark.parametrize("text", ["0" * 10_000, "1." * 5_000, "1.2.3." + "4" * 10_000 + "!", "[" + "f" * 10_000])
def test_a_long_peer_address_is_refused_at_once(text: str) -> None:
    """With the original's expression, which Go matches in one pass, this would not end before the tests do."""
    assert validation.peer_address(text) is None


@given(
    st.text("0123456789.:[]fx", max_size=24) | st.from_regex(r"[0-9]{1,3}(.[0-9]{1,3}){3}:[0-9]{1,5}", fullmatch=True)
)
def test_dots_or_any_characters_in_a_peer_address_mean_the_same(text: str) -> None:
    original = re.fullmatch(r"([0-9]+.[0-9]+.[0-9]+.[0-9]+):([0-9]+)", text)
    if original and addresses.parse_ip(original[1]) is None:
        assert validation.peer_address(text) is None
