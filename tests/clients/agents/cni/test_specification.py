"""Configuration and arguments of the plugin: what is refused, and with which code."""

import json
from typing import Any

import pytest

from clients.agents.cni import specification
from clients.agents.cni.specification import CniError

GOOD: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "k8s-pod-network",
    "type": "calico",
    "kubernetes": {"kubeconfig": "/etc/kubeconfig"},
    "ipam": {"type": "calico-ipam", "ipv4_pools": ["a"]},
}
VARIABLES = {
    "CNI_CONTAINERID": "Container-1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=",
}


def code_of_network(**changes: Any) -> int:
    with pytest.raises(CniError) as caught:
        specification.parse_network(json.dumps({**GOOD, **changes}).encode(), node="n")
    return caught.value.code


def code_of_attachment(**changes: str) -> int:
    with pytest.raises(CniError) as caught:
        specification.parse_attachment({**VARIABLES, **changes}, needs_namespace=True)
    return caught.value.code


def test_a_good_configuration() -> None:
    network = specification.parse_network(json.dumps(GOOD).encode(), node="host")
    assert (network.name, network.node, network.pools) == ("k8s-pod-network", "host", ("a",))
    assert (network.mtu, network.previous, network.valid) == (specification.DEFAULT_MTU, None, None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cniVersion": "2.0.0"}, specification.INCOMPATIBLE_VERSION),
        ({"cniVersion": 1}, specification.INVALID_CONFIGURATION),
        ({"name": "a/b"}, specification.INVALID_CONFIGURATION),
        ({"name": ""}, specification.INVALID_CONFIGURATION),
        ({"kubernetes": {}}, specification.INVALID_CONFIGURATION),
        ({"kubernetes": []}, specification.INVALID_CONFIGURATION),
        ({"ipam": {"type": "host-local"}}, specification.UNSUPPORTED_FIELD),
        ({"ipam": {"assign_ipv6": "true"}}, specification.UNSUPPORTED_FIELD),
        ({"ipam": {"ipv4_pools": "a"}}, specification.INVALID_CONFIGURATION),
        ({"mtu": True}, specification.INVALID_CONFIGURATION),
        ({"mtu": 70_000}, specification.INVALID_CONFIGURATION),
        ({"cni.dev/valid-attachments": [1]}, specification.INVALID_CONFIGURATION),
    ],
)
def test_bad_configurations(changes: dict[str, Any], code: int) -> None:
    assert code_of_network(**changes) == code


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000, b" " * (specification.MAX_CONFIGURATION_BYTES + 1)])
def test_what_is_no_object(text: bytes) -> None:
    with pytest.raises(CniError) as caught:
        specification.parse_network(text, node="n")
    assert caught.value.code == specification.UNDECODABLE


@pytest.mark.parametrize(
    "changes",
    [
        {"CNI_CONTAINERID": ""},
        {"CNI_CONTAINERID": "../x"},
        {"CNI_CONTAINERID": "a_b"},  # Kubernetes has no name with an underscore
        {"CNI_NETNS": ""},
        {"CNI_NETNS": "relative"},
        {"CNI_IFNAME": ""},
        {"CNI_IFNAME": ".."},
        {"CNI_IFNAME": "a b"},
        {"CNI_IFNAME": "x" * 16},
        {"CNI_ARGS": ""},
        {"CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=../secrets"},
    ],
)
def test_bad_variables(changes: dict[str, str]) -> None:
    assert code_of_attachment(**changes) == specification.INVALID_ENVIRONMENT


def test_del_may_come_without_a_network_namespace() -> None:
    attachment = specification.parse_attachment({**VARIABLES, "CNI_NETNS": ""}, needs_namespace=False)
    assert attachment.handle("net") == "net.Container-1"
    assert (attachment.kubernetes_namespace, attachment.pod) == ("default", "web-0")


def test_results_fit_their_version() -> None:
    attachment = specification.parse_attachment(VARIABLES, needs_namespace=True)

    def result(version: str) -> dict[str, Any]:
        return specification.result(
            version, address="10.0.0.1", host_interface="cali1", attachment=attachment, mac="a", host_mac="b", mtu=1450
        )

    assert result("1.1.0")["interfaces"][1] == {"name": "eth0", "mac": "a", "sandbox": "/run/netns/x", "mtu": 1450}
    assert "mtu" not in result("1.0.0")["interfaces"][1]
    assert result("0.4.0")["ips"] == [{"address": "10.0.0.1/32", "interface": 1, "version": "4"}]
    assert "version" not in result("1.0.0")["ips"][0]
