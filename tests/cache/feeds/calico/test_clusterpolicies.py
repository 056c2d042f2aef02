"""ClusterNetworkPolicies."""

from typing import Any

import pytest

from cache.feeds.calico import clusterpolicies, model
from tests.harness import builders

_POD = "projectcalico.org/orchestrator == 'k8s'"


def convert(**spec: Any) -> list[model.Item]:
    basis = {"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}}
    return list(clusterpolicies.convert(builders.event("p", spec={**basis, **spec})))


def egress(*rules: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = builders.value(convert(egress=list(rules))).get("outbound_rules", [])
    return found


def test_a_policy_without_rules() -> None:
    assert builders.values(convert()) == {
        "/calico/v1/policy/KubernetesClusterNetworkPolicy//p": '{"tier":"kube-admin","order":5,'
        f'"selector":"({_POD}) \\u0026\\u0026 has(projectcalico.org/namespace)"}}'
    }


def test_subjects_and_tiers() -> None:
    pods = {"podSelector": {"matchLabels": {"a": "b"}}}
    found = builders.value(convert(tier="Baseline", subject={"pods": pods}))
    assert found["tier"] == "kube-baseline"
    assert found["selector"] == f"({_POD} && a == 'b') && has(projectcalico.org/namespace)"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"tier": "Other"}, "bad-tier"),
        ({"subject": {}}, "no-subject"),
        ({"priority": 10**400}, "invalid-object"),
        ({"priority": 2**31}, "invalid-object"),
    ],
)
def test_rejected_policies(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(model.ConversionError) as caught:
        convert(**spec)
    assert caught.value.reason == reason


def test_actions_names_and_types() -> None:
    peers: list[dict[str, Any]] = [{"namespaces": {}}]
    found = builders.value(
        convert(
            ingress=[
                {"name": "one", "action": "Accept", "from": peers},
                {"action": "Deny", "from": peers},
                {"action": "Pass", "from": peers},
            ]
        )
    )
    assert [rule["action"] for rule in found["inbound_rules"]] == ["allow", "deny", "next-tier"]
    assert found["inbound_rules"][0]["metadata"] == {"annotations": {"name": "one"}}
    assert "metadata" not in found["inbound_rules"][1]
    assert found["types"] == ["ingress"]


def test_peers() -> None:
    found = egress(
        {
            "action": "Accept",
            "to": [
                {"namespaces": {"matchLabels": {"t": "x"}}},
                {"pods": {"podSelector": {}}},
                {"networks": ["10.1.2.3/8", "fd00::/8"]},
            ],
        }
    )
    assert [rule.get("dst_selector") for rule in found] == [
        'pcns.t == "x"',
        f"(has(projectcalico.org/namespace)) && ({_POD})",
        None,
    ]
    assert found[2]["dst_nets"] == ["10.0.0.0/8", "fd00::/8"]


def test_protocols() -> None:
    found = egress(
        {
            "action": "Accept",
            "to": [{"namespaces": {}}],
            "protocols": [
                {"udp": {"destinationPort": {"number": 53}}},
                {"tcp": {"destinationPort": {"range": {"start": 81, "end": 90}}}},
                {"tcp": {"destinationPort": {"number": 80}}},
                {"sctp": {}},
                {"destinationNamedPort": "web"},
            ],
        }
    )
    assert [(rule.get("protocol"), rule.get("dst_ports")) for rule in found] == [
        (None, ["web"]),
        ("sctp", None),
        ("tcp", ["80:90"]),
        ("udp", [53]),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        {"to": [{"namespaces": {}}], "protocols": [{"destinationNamedPort": "not a port!"}]},
        {"to": [{"networks": ["junk"]}]},
        {"to": [{}]},
        {"to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {"range": {"start": 9, "end": 1}}}}]},
    ],
)
def test_a_bad_rule_fails_closed(bad: dict[str, Any]) -> None:
    items = convert(egress=[{"action": action, **bad} for action in ("Accept", "Deny", "Pass", "Other")])
    assert builders.value(items)["outbound_rules"] == [{"action": "deny"}, {"action": "deny"}]
    assert items[0].warning


def test_an_invalid_port_name_makes_the_policy_invalid() -> None:
    rule = {"action": "Accept", "to": [{"namespaces": {}}], "protocols": [{"destinationNamedPort": "HTTP"}]}
    [item] = convert(egress=[rule])
    assert item.invalid
