"""Kubernetes' network policies, enforced and staged."""

from typing import Any

import pytest

from cache.feeds.calico import kubepolicies, model
from tests.harness import builders

_POD = "projectcalico.org/orchestrator == 'k8s'"


def convert(**spec: Any) -> list[model.Item]:
    return list(kubepolicies.convert_policy(builders.event("p", "n", spec={"podSelector": {}, **spec})))


def inbound(*rules: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = builders.value(convert(ingress=list(rules)))["inbound_rules"]
    return found


def test_an_empty_policy() -> None:
    assert builders.values(convert()) == {
        "/calico/v1/policy/KubernetesNetworkPolicy/n/p": '{"namespace":"n","tier":"default","order":1000,'
        f'"selector":"({_POD}) \\u0026\\u0026 projectcalico.org/namespace == \'n\'","types":["ingress"]}}'
    }


def test_pod_selectors() -> None:
    selector = {
        "matchLabels": {"b": "2", "a": "1"},
        "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["x", "y"]},
            {"key": "d", "operator": "NotIn", "values": ["z"]},
            {"key": "e", "operator": "Exists"},
            {"key": "f", "operator": "DoesNotExist"},
        ],
    }
    text = builders.value(convert(podSelector=selector))["selector"]
    expected = f"{_POD} && a == '1' && b == '2' && c in {{ 'x', 'y' }} && d not in {{ 'z' }} && has(e) && ! has(f)"
    assert text == f"({expected}) && projectcalico.org/namespace == 'n'"


@pytest.mark.parametrize(
    ("given", "types"),
    [
        (None, ["ingress"]),
        ([], ["ingress"]),
        (["Egress"], ["egress"]),
        (["Egress", "Ingress"], ["ingress", "egress"]),
        (["Other"], ["ingress"]),
    ],
)
def test_types(given: list[str] | None, types: list[str]) -> None:
    assert builders.value(convert(policyTypes=given))["types"] == types


def test_peers() -> None:
    rules = inbound(
        {
            "from": [
                {"podSelector": {"matchLabels": {"a": "1"}}},
                {"namespaceSelector": {}},
                {"namespaceSelector": {"matchLabels": {"t": "x"}}},
                {"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.1.0.0/16"]}},
            ]
        }
    )
    in_namespace = "projectcalico.org/namespace == 'n'"
    assert [rule.get("src_selector") for rule in rules] == [
        f"({in_namespace}) && ({_POD} && a == '1')",
        f"(has(projectcalico.org/namespace)) && ({_POD})",
        f'(pcns.t == "x") && ({_POD})',
        None,
    ]
    assert rules[3] == {"action": "allow", "src_nets": ["10.0.0.0/8"], "!src_nets": ["10.1.0.0/16"]}


def ports_of(*ports: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(rule.get("protocol"), rule.get("dst_ports")) for rule in inbound({"ports": list(ports)})]


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([], [(None, None)]),
        ([{}], [("tcp", None)]),
        ([{"port": 80}], [("tcp", [80])]),
        ([{"port": "http"}, {"port": 80}], [("tcp", ["http", 80])]),
        ([{"port": 80}, {"port": "http"}], [("tcp", [80, "http"])]),
        ([{"port": 81}, {"port": "http"}, {"port": 80}], [("tcp", ["http", "80:81"])]),
        ([{"port": 90}, {"port": 80, "endPort": 88}, {"port": 85, "endPort": 89}], [("tcp", ["80:90"])]),
        ([{"port": 9}, {"port": 9}], [("tcp", [9])]),
        ([{"port": 53, "protocol": "UDP"}, {"port": 1}], [("tcp", [1]), ("udp", [53])]),
        ([{"port": 1}, {"protocol": "TCP"}, {"port": 2}], [("tcp", None)]),
        ([{"port": 7, "endPort": 7}], [("tcp", [7])]),
    ],
)
def test_ports(ports: list[dict[str, Any]], expected: list[tuple[Any, Any]]) -> None:
    assert ports_of(*ports) == expected


def test_rules_are_products_in_the_order_of_protocols_and_peers() -> None:
    rules = inbound(
        {
            "from": [{"ipBlock": {"cidr": "1.0.0.0/8"}}, {"ipBlock": {"cidr": "2.0.0.0/8"}}],
            "ports": [{"port": 1, "protocol": "UDP"}, {"port": 2}],
        }
    )
    assert [(rule["protocol"], rule["src_nets"]) for rule in rules] == [
        ("tcp", ["1.0.0.0/8"]),
        ("tcp", ["2.0.0.0/8"]),
        ("udp", ["1.0.0.0/8"]),
        ("udp", ["2.0.0.0/8"]),
    ]


def test_egress_uses_only_the_destination() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "1.0.0.0/8"}}], "ports": [{"port": 2}]}
    converted = builders.value(convert(egress=[rule], policyTypes=["Egress"]))
    assert converted["outbound_rules"] == [
        {"action": "allow", "protocol": "tcp", "dst_nets": ["1.0.0.0/8"], "dst_ports": [2]}
    ]


PROTOCOLS = [{"protocol": str(number)} for number in range(200)]
BAD_RULE = {"ports": [{"port": "http", "endPort": 80}]}


def test_a_rule_that_cannot_be_converted_is_left_out() -> None:
    [item] = convert(ingress=[BAD_RULE, {"ports": [{"port": 1}]}])
    assert item.warning
    assert len(builders.value([item])["inbound_rules"]) == 1


def test_an_invalid_block_widens_its_rule_with_a_warning() -> None:
    [item] = convert(ingress=[{"from": [{"ipBlock": {"cidr": "junk"}}]}])
    assert "junk" in item.warning
    assert builders.value([item])["inbound_rules"] == [{"action": "allow"}]


def test_staged_policies() -> None:
    def staged(**spec: Any) -> list[model.Item]:
        return list(kubepolicies.convert_staged_policy(builders.event("p", "n", spec=spec), builders.V1))

    assert builders.value(staged(stagedAction="Learn"))["staged_action"] == "Learn"
    assert builders.values(staged(stagedAction="Delete")) == {
        "/calico/v1/policy/StagedKubernetesNetworkPolicy/n/p": None
    }
    with pytest.raises(model.ConversionError) as caught:
        staged(ingress=[BAD_RULE])
    assert caught.value.reason == "bad-rule"


@pytest.mark.parametrize(
    "rule",
    [
        {"from": [{}] * 60_000},
        {"from": [{}] * 100, "ports": [{"port": port} for port in range(1, 60_000, 2)]},
        {"from": [{"ipBlock": {"cidr": "1.0.0.0/8", "except": ["1.2.0.0/16"] * 9_000}}], "ports": PROTOCOLS},
        {"from": [{"podSelector": {"matchLabels": {"a": "b" * 100_000}}}], "ports": PROTOCOLS},
        {"from": [{}] * 100, "ports": [{"port": "p" * 128, "protocol": str(i)} for i in range(2_000)]},
    ],
)
def test_products_are_limited(rule: dict[str, Any]) -> None:
    with pytest.raises(model.ConversionError) as caught:
        convert(ingress=[rule])
    assert caught.value.reason == "too-large"
