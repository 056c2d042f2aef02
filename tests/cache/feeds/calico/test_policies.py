"""Calico's policies and tiers."""

from typing import Any

import pytest

from cache.feeds.calico import model, policies
from tests.harness import builders


def convert(kind: str = policies.GLOBAL_NETWORK_POLICY, **spec: Any) -> list[model.Item]:
    namespace = "" if "Global" in kind else "n"
    return list(policies.convert_policy(builders.event("p", namespace, spec=spec), kind, builders.V1))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, ""),
        ({"selector": "has(a)"}, "has(a)"),
        ({"namespaceSelector": "t == 'x'"}, 'pcns.t == "x"'),
        (
            {"selector": "all()", "namespaceSelector": "all()"},
            "(has(projectcalico.org/namespace)) && has(projectcalico.org/namespace)",
        ),
        ({"selector": "all()", "namespaceSelector": "x ("}, "has(projectcalico.org/namespace)"),
        (
            {"selector": "all()", "serviceAccountSelector": "all()"},
            "(has(projectcalico.org/serviceaccount)) && has(projectcalico.org/serviceaccount)",
        ),
        (
            {"namespaceSelector": "all()", "serviceAccountSelector": "has(b)"},
            "(has(projectcalico.org/namespace)) && has(pcsa.b)",
        ),
    ],
)
def test_the_selector_of_a_global_policy(spec: dict[str, Any], expected: str) -> None:
    assert builders.value(convert(**spec))["selector"] == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "projectcalico.org/namespace == 'n'"),
        ({"selector": "a || b == 'c'"}, None),
        ({"selector": "has(a)"}, "(has(a)) && projectcalico.org/namespace == 'n'"),
        ({"serviceAccountSelector": "has(b)"}, "(projectcalico.org/namespace == 'n') && has(pcsa.b)"),
        ({"serviceAccountSelector": "b ("}, "projectcalico.org/namespace == 'n'"),
    ],
)
def test_the_selector_of_a_namespaced_policy(spec: dict[str, Any], expected: str | None) -> None:
    [item] = convert(policies.NETWORK_POLICY, **spec)
    if expected is None:
        assert item.invalid
        assert item.value is None
    else:
        assert builders.value([item])["selector"] == expected


def test_members_and_their_order() -> None:
    spec: dict[str, Any] = {
        "performanceHints": ["AssumeNeededOnEveryNode"],
        "types": ["Egress", "Ingress"],
        "applyOnForward": True,
        "preDNAT": True,
        "doNotTrack": True,
        "selector": "",
        "egress": [{"action": "Deny"}],
        "ingress": [{"action": "Allow"}],
        "order": 10.0,
    }
    assert builders.values(convert(**spec)) == {
        "/calico/v1/policy/GlobalNetworkPolicy//p": '{"tier":"default","order":10,"inbound_rules":[{"action":"allow"}],'
        '"outbound_rules":[{"action":"deny"}],"selector":"","untracked":true,"pre_dnat":true,"apply_on_forward":true,'
        '"types":["egress","ingress"],"performance_hints":["AssumeNeededOnEveryNode"]}'
    }
    namespaced = builders.value(convert(policies.NETWORK_POLICY, **spec))
    assert not {"untracked", "pre_dnat", "apply_on_forward"} & set(namespaced)
    assert list(namespaced)[:2] == ["namespace", "tier"]


@pytest.mark.parametrize(("order", "text"), [(0, "0"), (12.5, "12.5"), (1e21, "1e+21"), (1e-7, "1e-7"), (-3.0, "-3")])
def test_orders(order: float, text: str) -> None:
    [item] = convert(order=order)
    assert item.value is not None
    assert f'"order":{text},'.encode() in item.value


def test_staged_policies() -> None:
    staged = builders.value(convert(policies.STAGED_GLOBAL_NETWORK_POLICY, stagedAction="Set"))
    assert staged["staged_action"] == "Set"
    assert "staged_action" not in builders.value(convert(policies.STAGED_NETWORK_POLICY))
    assert "staged_action" not in builders.value(convert(policies.NETWORK_POLICY, stagedAction="Set"))
    deleted = convert(policies.STAGED_NETWORK_POLICY, stagedAction="Delete", selector="a ==")
    assert builders.values(deleted) == {"/calico/v1/policy/StagedNetworkPolicy/n/p": None}
    assert not deleted[0].invalid


@pytest.mark.parametrize(
    "spec",
    [{"selector": "a =="}, {"performanceHints": ["Other"]}, {"performanceHints": ["AssumeNeededOnEveryNode"] * 2}],
)
def test_invalid_members(spec: dict[str, Any]) -> None:
    [item] = convert(**spec)
    assert item.invalid
    assert (item.value, item.revision) == (None, "7")


@pytest.mark.parametrize("selector", ["namespaceSelector", "serviceAccountSelector"])
def test_a_selector_that_is_left_out_causes_a_warning(selector: str) -> None:
    [item] = convert(**{selector: "a =="})
    assert item.warning
    assert item.value is not None


def test_the_metadata_annotation_must_be_readable_in_group_v1() -> None:
    event = builders.event("p", metadata={"annotations": {"projectcalico.org/metadata": "{"}})
    with pytest.raises(model.ConversionError) as caught:
        policies.convert_policy(event, policies.GLOBAL_NETWORK_POLICY, builders.V1)
    assert caught.value.reason == "bad-metadata-annotation"
    assert policies.convert_policy(event, policies.GLOBAL_NETWORK_POLICY, builders.V3)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, '{"order":1000000,"defaultAction":"Deny"}'),
        ({"order": 1.5, "defaultAction": "Pass"}, '{"order":1.5,"defaultAction":"Pass"}'),
        ({"order": 0, "defaultAction": "Allow"}, '{"order":0,"defaultAction":"Deny"}'),
    ],
)
def test_tiers(spec: dict[str, Any], expected: str) -> None:
    items = policies.convert_tier(builders.event("t", spec=spec), builders.V1)
    assert builders.values(items) == {"/calico/v1/policy/tier/t/metadata": expected}
