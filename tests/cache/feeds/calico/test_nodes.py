"""Nodes: the whole resource, host configuration, WireGuard, and the cost of a kubelet's update."""

import json
from typing import Any

import pytest

from cache.feeds.calico import model, nodes
from tests.harness import builders

WHOLE = "/calico/resources/v3/projectcalico.org/nodes/n"
KEY = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="


def convert(status: Any = None, **annotations: Any) -> list[model.Item]:
    found = {f"projectcalico.org/{name}": text for name, text in annotations.items()}
    event = builders.event("n", metadata={"annotations": found}, status=status or {})
    return list(nodes.NodeConverter().felix(event))


def whole(**annotations: str) -> dict[str, Any]:
    found: dict[str, Any] = builders.value(convert(**annotations), WHOLE)
    return found


def test_a_bare_node() -> None:
    values = builders.values(convert())
    assert list(values) == [
        "/calico/v1/host/n/bird_ip",
        *(
            f"/calico/v1/host/n/config/{name}"
            for name in (
                *("IpInIpTunnelAddr", "IPv4VXLANTunnelAddr", "VXLANTunnelMACAddr"),
                *("IPv6VXLANTunnelAddr", "VXLANTunnelMACAddrV6"),
            )
        ),
        WHOLE,
        "/calico/v1/host/n/wireguard",
    ]
    assert [key for key, value in values.items() if value is not None] == [WHOLE]
    assert values[WHOLE] == (
        '{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"n","annotations":'
        '{"projectcalico.org/kube-labels":"null"}},"spec":{"orchRefs":[{"nodeName":"n","orchestrator":"k8s"}]},'
        '"status":{}}'
    )


def test_other_feeds_have_only_the_whole_node() -> None:
    [item] = nodes.NodeConverter().whole(builders.event("n"))
    assert (item.key, item.v3_resource_version, item.revision) == (WHOLE, "7", "7")


def test_an_annotation_with_a_lone_surrogate_is_used() -> None:
    found = whole(annotations='{"a":"\\ud800"}', Interfaces='[{"name":"e\\udc00"}]')
    assert found["metadata"]["annotations"]["a"] == "\ufffd"
    assert found["spec"]["interfaces"] == [{"name": "e\ufffd"}]


def test_labels_and_annotations() -> None:
    found = {
        "projectcalico.org/labels": '{"a":"calico","b":null}',
        "projectcalico.org/annotations": '{"z":"1","projectcalico.org/kube-labels":"lie"}',
        "other": "not copied",
    }
    event = builders.event("n", metadata={"labels": {"c": "<", "a": "kube"}, "annotations": found})
    [item] = nodes.NodeConverter().whole(event)
    assert item.invalid  # "<" is not valid in a label value
    event = builders.event("n", metadata={"labels": {"c": "1", "a": "kube"}, "annotations": found})
    metadata = builders.value(nodes.NodeConverter().whole(event))["metadata"]
    assert list(metadata["labels"].items()) == [("a", "kube"), ("b", ""), ("c", "1")]
    assert metadata["annotations"] == {"projectcalico.org/kube-labels": '{"a":"kube","c":"1"}', "z": "1"}


@pytest.mark.parametrize("text", ["{", "[]", '{"a":1}', ""])
def test_unreadable_labels_are_ignored(text: str) -> None:
    assert "labels" not in whole(labels=text)["metadata"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("64512", 64512),
        ("0", 0),
        ("1.2", 65538),
        ("4294967295", 4294967295),
        ("4294967296", None),
        ("1.2.3", None),
        ("+1", None),
        ("65536.1", None),
        ("", None),
    ],
)
def test_as_numbers(text: str, number: int | None) -> None:
    assert whole(ASNumber=text)["spec"].get("bgp", {}).get("asNumber") == number


@pytest.mark.parametrize(
    ("annotation", "text", "is_taken"),
    [
        ("IPv4Address", "10.0.0.1/8", True),
        ("IPv4Address", "10.0.0.1", True),
        ("IPv4Address", "fd00::1", False),
        ("IPv6Address", "fd00::1/64", True),
        ("IPv6Address", "::ffff:1.2.3.4", False),
        ("IPv4IPIPTunnelAddr", "10.0.0.1/8", False),
        ("RouteReflectorClusterID", "x", False),
        ("IPv6VXLANTunnelAddr", "fd00::1", True),
        ("VXLANTunnelMACAddr", "66:a1:2b:3c:4d:5e", True),
        ("VXLANTunnelMACAddrV6", "66:a1", False),
    ],
)
def test_bad_annotations_are_ignored_individually(annotation: str, text: str, is_taken: bool) -> None:
    node = whole(**{annotation: text})
    assert (text in json.dumps(node["spec"])) is is_taken


def test_addresses() -> None:
    status = {
        "addresses": [
            {"type": "Hostname", "address": "n"},
            {"type": "ExternalIP", "address": "8.8.8.8"},
            {"type": "InternalIP", "address": "no address"},
        ]
    }
    found = builders.value(convert(status, IPv6Address="fd00::1/64", IPv4Address="10.0.0.1/8"), WHOLE)
    assert found["spec"]["addresses"] == [
        {"address": "10.0.0.1/8", "type": "CalicoNodeIP"},
        {"address": "fd00::1/64", "type": "CalicoNodeIP"},
        {"address": "8.8.8.8", "type": "ExternalIP"},
        {"address": "no address", "type": "InternalIP"},
    ]


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        (["1.1.1.1", "zz", "2.2.2.2"], ["1.1.1.1", "2.2.2.2"]),
        (["zz", "yy", "1.1.1.1"], ["yy", "1.1.1.1"]),  # the original skips the one after an invalid one
        (["1.1.1.1", "zz"], ["1.1.1.1"]),
        (["zz", "yy"], None),
        (["zz"], None),
        ([], None),
    ],
)
def test_interfaces(texts: list[str], left: list[str] | None) -> None:
    [interface] = whole(Interfaces=json.dumps([{"name": "e", "ADDRESSES": texts}]))["spec"]["interfaces"]
    assert interface == ({"name": "e"} if left is None else {"name": "e", "addresses": left})


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"name":1}]', '[{"addresses":"x"}]', "null", "[]"])
def test_unreadable_interfaces_are_ignored(text: str) -> None:
    assert "interfaces" not in whole(Interfaces=text)["spec"]


def test_host_configuration_and_wireguard() -> None:
    values = builders.values(
        convert(
            IPv4IPIPTunnelAddr="::ffff:10.0.0.1",
            IPv6VXLANTunnelAddr="FD00::1",
            VXLANTunnelMACAddr="66-A1-2b-3c-4d-5e",
            IPv4WireguardInterfaceAddr="10.0.0.2",
            WireguardPublicKeyV6=KEY,
        )
    )
    assert values["/calico/v1/host/n/config/IpInIpTunnelAddr"] == "10.0.0.1"
    assert values["/calico/v1/host/n/config/IPv6VXLANTunnelAddr"] == "fd00::1"
    assert values["/calico/v1/host/n/config/VXLANTunnelMACAddr"] == "66-A1-2b-3c-4d-5e"
    assert values["/calico/v1/host/n/wireguard"] == f'{{"interfaceIPv4Addr":"10.0.0.2","publicKeyV6":"{KEY}"}}'


@pytest.mark.parametrize(
    "annotations",
    [
        {"WireguardPublicKey": "short"},
        {"WireguardPublicKeyV6": "short"},
        {"IPv4IPIPTunnelAddr": "10.0.0.0/8"},
        {"IPv4VXLANTunnelAddr": "10.0.0.0/8"},
        {"IPv6VXLANTunnelAddr": "fd00::/64"},
        {"IPv4WireguardInterfaceAddr": "10.0.0.0/8"},
        {"RouteReflectorClusterID": "10.0.0.0/8"},
        {"labels": '{"not a key":""}'},
        {"annotations": '{"not a key":""}'},
    ],
)
def test_an_invalid_whole_node_keeps_its_other_items(annotations: dict[str, str]) -> None:
    items = convert(VXLANTunnelMACAddr="66:a1:2b:3c:4d:5e", **annotations)
    by_key = {item.key: item for item in items}
    assert by_key[WHOLE].invalid
    assert by_key["/calico/v1/host/n/config/VXLANTunnelMACAddr"].value == b"66:a1:2b:3c:4d:5e"
    assert by_key["/calico/v1/host/n/config/IpInIpTunnelAddr"].value is None


def test_a_kubelets_update_gives_the_identical_items() -> None:
    converter = nodes.NodeConverter()
    first = converter.felix(builders.event("n", status={"conditions": [{"lastHeartbeatTime": "1"}]}))
    again = converter.felix(builders.event("n", status={"conditions": [{"lastHeartbeatTime": "2"}], "images": []}))
    assert again is first
    changed = converter.felix(builders.event("n", spec={"podCIDRs": ["10.0.0.0/24"]}))
    assert builders.value(changed, WHOLE)["status"] == {"podCIDRs": ["10.0.0.0/24"]}


def test_an_invalid_node_is_converted_every_time() -> None:
    converter = nodes.NodeConverter()
    metadata: dict[str, Any] = {"annotations": {"projectcalico.org/WireguardPublicKey": "short"}}
    first = converter.felix(builders.event("n", metadata=metadata))
    assert converter.felix(builders.event("n", metadata=metadata)) is not first


def host_local(*, spec: dict[str, Any], **annotations: str) -> list[model.Item]:
    found = {f"projectcalico.org/{name}": text for name, text in annotations.items()}
    event = builders.event("n", metadata={"annotations": found}, spec=spec)
    return list(nodes.NodeConverter(use_pod_cidr=True).felix(event))


def test_pod_cidrs_are_blocks_with_host_local_ipam() -> None:
    items = host_local(spec={"podCIDR": "10.1.2.0/24", "podCIDRs": ["10.1.2.0/24", "bad", "fd00:1::/64"]})
    assert [(item.key, item.value) for item in items[-2:]] == [
        (
            "/calico/ipam/v2/assignment/ipv4/block/10.1.2.0-24",
            (
                b'{"cidr":"10.1.2.0/24","affinity":"host:n","allocations":null,"unallocated":null,"attributes":null,'
                b'"sequenceNumber":0,"sequenceNumberForAllocation":null,"deleted":false}'
            ),
        ),
        (
            "/calico/ipam/v2/assignment/ipv6/block/fd00:1::-64",
            (
                b'{"cidr":"fd00:1::/64","affinity":"host:n","allocations":null,"unallocated":null,"attributes":null,'
                b'"sequenceNumber":0,"sequenceNumberForAllocation":null,"deleted":false}'
            ),
        ),
    ]


@pytest.mark.parametrize(
    ("pod_cidr", "tunnel"),
    [
        ("10.1.2.0/24", "10.1.2.1"),
        ("10.1.2.9/24", "10.1.2.10"),
        ("10.1.2.255/24", "10.1.2.0"),
        ("fd00:1::/64", None),
    ],
)
def test_the_tunnel_address_follows_that_of_the_pod_cidr(pod_cidr: str, tunnel: str | None) -> None:
    # The annotations are those of Calico's IPAM: they do not count.
    items = host_local(
        spec={"podCIDR": pod_cidr},
        IPv4IPIPTunnelAddr="9.9.9.9",
        IPv4WireguardInterfaceAddr="9.9.9.9",
        IPv6WireguardInterfaceAddr="fd00::9",
        WireguardPublicKey=KEY,
    )
    assert builders.values(items)["/calico/v1/host/n/config/IpInIpTunnelAddr"] == tunnel
    wireguard = {"publicKey": KEY} if tunnel is None else {"interfaceIPv4Addr": tunnel, "publicKey": KEY}
    assert builders.value(items, "/calico/v1/host/n/wireguard") == wireguard
    spec = builders.value(items, WHOLE)["spec"]
    assert spec.get("bgp") == (None if tunnel is None else {"ipv4IPIPTunnelAddr": tunnel})
    assert spec.get("wireguard") == (None if tunnel is None else {"interfaceIPv4Address": tunnel})


def test_no_wireguard_address_without_a_public_key() -> None:
    items = host_local(spec={"podCIDR": "10.1.2.0/24"})
    assert builders.values(items)["/calico/v1/host/n/wireguard"] is None
    assert "wireguard" not in builders.value(items, WHOLE)["spec"]


def test_annotations_count_while_the_node_has_no_pod_cidr() -> None:
    items = host_local(spec={}, IPv4IPIPTunnelAddr="9.9.9.9")
    assert builders.values(items)["/calico/v1/host/n/config/IpInIpTunnelAddr"] == "9.9.9.9"


def test_a_node_with_a_bad_pod_cidr_is_refused() -> None:
    with pytest.raises(model.ConversionError, match=r"bad-cidr: spec\.podCIDR is not a CIDR: 'x'"):
        host_local(spec={"podCIDR": "x"})


def test_pod_cidrs_change_nothing_with_calicos_ipam() -> None:
    spec = {"podCIDR": "10.1.2.0/24", "podCIDRs": ["10.1.2.0/24"]}
    items = nodes.NodeConverter().felix(builders.event("n", spec=spec))
    assert not any("/ipam/" in item.key for item in items)
    assert builders.values(items)["/calico/v1/host/n/config/IpInIpTunnelAddr"] is None
