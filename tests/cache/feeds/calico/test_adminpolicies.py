"""AdminNetworkPolicies and BaselineAdminNetworkPolicies. The recordings are replayed in test_projections."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import objects, resources
from cache.feeds.calico import adminpolicies, model
from tests.fuzz import cost
from tests.harness import builders

_POD = "projectcalico.org/orchestrator == 'k8s'"
_ANY: dict[str, Any] = {"namespaces": {}}
_ADMIN_KEY = "/calico/v1/policy/tier/adminnetworkpolicy/policy/kanp.adminnetworkpolicy."
_BASELINE_KEY = "/calico/v1/policy/tier/baselineadminnetworkpolicy/policy/kbanp.baselineadminnetworkpolicy."


def admin(**spec: Any) -> list[model.Item]:
    return list(adminpolicies.convert_admin(builders.event("p", spec={"priority": 5, "subject": _ANY, **spec})))


def baseline(**spec: Any) -> list[model.Item]:
    return list(adminpolicies.convert_baseline(builders.event("default", spec={"subject": _ANY, **spec})))


def egress(*rules: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = builders.value(admin(egress=list(rules))).get("outbound_rules", [])
    return found


def reason(spec: dict[str, Any], convert: Callable[..., object] = admin) -> str:
    with pytest.raises(model.ConversionError) as caught:
        convert(**spec)
    return caught.value.reason


def test_policies_without_rules() -> None:
    [item] = admin(priority=0)
    assert item.key == f"{_ADMIN_KEY}p"
    assert builders.value([item]) == {
        "tier": "adminnetworkpolicy",
        "order": 0,
        "selector": f"({_POD}) && has(projectcalico.org/namespace)",
    }
    [item] = baseline(priority=3)
    assert item.key == f"{_BASELINE_KEY}default"
    assert builders.value([item])["order"] == 1000


def test_subjects() -> None:
    pods = {"namespaceSelector": {"matchLabels": {"n": "m"}}, "podSelector": {"matchLabels": {"a": "b"}}}
    assert builders.value(admin(subject={"pods": pods}))["selector"] == f"({_POD} && a == 'b') && pcns.n == \"m\""
    assert reason({"subject": {}}) == "no-subject"
    assert reason({"subject": None}) == "no-subject"


def test_actions_names_and_types() -> None:
    ingress = [{"name": "one", "action": "Allow", "from": [_ANY]}, {"action": "Deny", "from": [_ANY]}]
    found = builders.value(admin(ingress=[*ingress, {"action": "Pass", "from": [_ANY]}]))
    assert [rule["action"] for rule in found["inbound_rules"]] == ["allow", "deny", "next-tier"]
    assert [rule.get("metadata") for rule in found["inbound_rules"]] == [{"annotations": {"name": "one"}}, None, None]
    assert found["types"] == ["ingress"]
    assert len(builders.value(baseline(ingress=ingress))["inbound_rules"]) == 2


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([], [(None, None)]),
        ([{}], [(None, None)]),
        ([{"portNumber": {"port": 80}}], [("tcp", [80])]),
        ([{"portNumber": {"port": 80, "protocol": ""}}], [("tcp", [80])]),
        ([{"portRange": {"start": 7, "end": 7, "protocol": "UDP"}}], [("udp", [7])]),
        ([{"portNumber": {"port": 9, "protocol": "132"}}], [(132, [9])]),
        (
            [{"portNumber": {"port": 80}}, {"portRange": {"start": 81, "end": 82}}, {"portNumber": {"port": 90}}],
            [("tcp", ["80:82", 90])],
        ),
        (
            [{"portNumber": {"port": 53, "protocol": "UDP"}}, {"portNumber": {"port": 1}}],
            [("tcp", [1]), ("udp", [53])],
        ),
        ([{"portNumber": {"port": 80}}, {"namedPort": "web"}, {"portRange": {"start": 9, "end": 1}}], [(None, None)]),
    ],
)
def test_ports(ports: list[dict[str, Any]], expected: list[tuple[Any, Any]]) -> None:
    found = egress({"action": "Allow", "to": [_ANY], "ports": ports})
    assert [(rule.get("protocol"), rule.get("dst_ports")) for rule in found] == expected


def test_rules_are_products_of_protocols_and_peers() -> None:
    peers = [{"networks": ["10.1.2.3/8", "fd00::/8"]}, {"pods": {"podSelector": {}, "namespaceSelector": {}}}]
    ports = [{"portNumber": {"port": 2, "protocol": "UDP"}}, {"portNumber": {"port": 1}}]
    found = egress({"action": "Deny", "to": peers, "ports": ports})
    assert [(rule["protocol"], rule.get("dst_nets"), rule.get("dst_selector")) for rule in found] == [
        (protocol, nets, selector)
        for protocol in ("tcp", "udp")
        for nets, selector in (
            (["10.0.0.0/8", "fd00::/8"], None),
            (None, f"(has(projectcalico.org/namespace)) && ({_POD})"),
        )
    ]


@pytest.mark.parametrize(
    "bad",
    [
        {"to": [{"nodes": {"matchLabels": {"a": "b"}}}]},
        {"to": [{}]},
        {"to": [{"networks": []}]},
        {"to": [_ANY, {"networks": ["1.2.3/8"]}]},
        {"to": [_ANY], "ports": [{"portRange": {"start": 9, "end": 1}}]},
        {"to": [_ANY], "action": "Accept"},
    ],
)
def test_a_bad_rule_rejects_the_policy(bad: dict[str, Any]) -> None:
    good = {"action": "Deny", "to": [_ANY]}
    for convert in (admin, baseline):
        assert convert(egress=[good])
        assert reason({"egress": [good, {"action": "Allow", **bad}]}, convert) == "bad-rule"


def test_a_peer_of_ingress_has_no_networks() -> None:
    assert reason({"ingress": [{"action": "Deny", "from": [{"networks": ["1.0.0.0/8"]}]}]}) == "bad-rule"


def test_a_baseline_policy_does_not_pass() -> None:
    assert reason({"egress": [{"action": "Pass", "to": [_ANY]}]}, baseline) == "bad-rule"


@pytest.mark.parametrize("port", [{"port": 0}, {"port": 1, "protocol": "ICMP"}, {"port": 1, "protocol": "other"}])
def test_ports_that_validation_refuses(port: dict[str, Any]) -> None:
    [item] = admin(egress=[{"action": "Allow", "to": [_ANY], "ports": [{"portNumber": port}]}])
    assert item.invalid
    assert item.value is None


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 10**400])
def test_numbers_that_the_original_cannot_read(number: int) -> None:
    assert reason({"priority": number}) == "invalid-object"
    rule = {"action": "Allow", "to": [_ANY], "ports": [{"portNumber": {"port": number}}]}
    assert reason({"egress": [rule]}) == "invalid-object"


@pytest.mark.parametrize(
    "rule",
    [
        {"to": [_ANY] * 60_000},
        {"to": [_ANY] * 200, "ports": [{"portNumber": {"port": 1, "protocol": f"p{i}"}} for i in range(300)]},
        {"to": [_ANY] * 100, "ports": [{"portNumber": {"port": port}} for port in range(1, 60_000, 2)]},
        {
            "to": [{"namespaces": {"matchLabels": {"a": "b" * 500_000}}}],
            "ports": [{"portNumber": {"port": 1, "protocol": f"p{i}"}} for i in range(50)],
        },
        {"name": "n" * 500_000, "to": [_ANY] * 50},
        {"to": [_ANY] * 50, "ports": [{"portNumber": {"port": 1, "protocol": "p" * 500_000}}]},
    ],
)
def test_products_are_limited_before_they_are_made(rule: dict[str, Any]) -> None:
    event = builders.event("p", spec={"subject": _ANY, "egress": [{"action": "Allow", **rule}]})

    def convert() -> None:
        with pytest.raises(model.ConversionError) as caught:
            adminpolicies.convert_admin(event)
        assert caught.value.reason == "too-large"

    assert cost.peak_bytes(convert) < 60_000_000


# Any JSON of the object's shape: mostly good values, so that many objects are converted, and some of any kind.

_Anything: TypeAlias = st.SearchStrategy[Any]
_numbers = st.integers(1, 5) | st.sampled_from([-1, 0, 65_535, 65_536, 2**31 - 1, -(2**31)])
_texts = st.sampled_from(["a", "b/c", "a'b", 'a"', ""]) | st.text(max_size=6)
_protocols = st.sampled_from(["TCP", "UDP", "tcp", "6", "999", "ICMP", ""])
_junk: _Anything = st.none() | st.booleans() | _texts | st.floats() | st.sampled_from([{}, [], [{}], 10**400, 2**31])


def _mostly(wanted: _Anything) -> _Anything:
    return st.integers(0, 99).flatmap(lambda number: _junk if number == 50 else wanted)


def _object(**members: _Anything) -> _Anything:
    return st.fixed_dictionaries({name: _mostly(member) for name, member in members.items()})


def _list(member: _Anything) -> _Anything:
    return st.lists(_mostly(member), max_size=3)


_selectors: _Anything = st.just({}) | _object(
    matchLabels=st.dictionaries(_texts, _mostly(_texts), max_size=2),
    matchExpressions=_list(
        _object(
            key=_texts,
            operator=st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Other"]),
            values=_list(_texts),
        )
    ),
)
_namespaces = _object(namespaces=_selectors)
_pods = _object(pods=_object(namespaceSelector=_selectors, podSelector=_selectors))
_networks = _object(networks=st.lists(_mostly(st.sampled_from(["10.0.0.0/8", "fd00::1/8"])), min_size=1, max_size=2))
_ports = _list(
    _object(portNumber=_object(protocol=_protocols, port=_numbers))
    | _object(portRange=_object(protocol=_protocols, start=_numbers, end=st.sampled_from([9, 2**31 - 1])))
    | _object(namedPort=_texts)
)


def _rules(peers: str, kinds: _Anything) -> _Anything:
    members = {"name": _texts, "action": st.sampled_from(["Allow", "Deny"]), "ports": _ports, peers: _list(kinds)}
    return _list(_object(**members))


_spec = _object(
    priority=_numbers,
    subject=_namespaces | _pods,
    ingress=_rules("from", _namespaces | _pods),
    egress=_rules("to", _namespaces | _pods | _networks),
)


def _outcome(convert: model.Converter, event: objects.ObjectEvent) -> Sequence[model.Item] | str:
    try:
        return convert(event)
    except model.ConversionError as error:
        return error.reason


@given(_object(spec=_spec))
def test_any_object_gives_one_item_or_a_conversion_error(whole: dict[str, Any]) -> None:
    type = resources.ResourceType("", "v1", "things")
    raw = json.dumps(whole).encode()
    event = objects.ObjectEvent(type, "", "p", "7", raw, "v1", "Thing", objects.Origin.LIST)
    for convert, key in ((adminpolicies.convert_admin, _ADMIN_KEY), (adminpolicies.convert_baseline, _BASELINE_KEY)):
        found = _outcome(convert, event)
        if isinstance(found, str):
            assert found in ("bad-rule", "no-subject", "invalid-object")
            continue
        [item] = found
        assert item.key == f"{key}p"
        assert (item.value is None) == bool(item.invalid)
        if item.value is not None:
            assert isinstance(json.loads(item.value)["order"], int)
