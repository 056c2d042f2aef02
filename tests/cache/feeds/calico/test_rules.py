"""A policy's rules: combined selectors, order of members, validation."""

from typing import Any

import msgspec
import pytest

from cache.feeds.calico import model, rules


def entity(**members: Any) -> rules.Entity:
    return msgspec.convert(members, rules.Entity)


def convert(namespace: str = "", **members: Any) -> dict[str, Any]:
    [converted] = rules.convert([msgspec.convert(members, rules.Rule)], namespace, [])
    return converted


@pytest.mark.parametrize(
    ("members", "in_namespace", "global_one"),
    [
        ({}, "", ""),
        ({"selector": "a"}, "(projectcalico.org/namespace == 'n') && (a)", "a"),
        ({"notSelector": "a"}, "projectcalico.org/namespace == 'n'", ""),
        ({"namespaceSelector": "all()"}, "has(projectcalico.org/namespace)", "has(projectcalico.org/namespace)"),
        ({"namespaceSelector": "global()"}, "!has(projectcalico.org/namespace)", "!has(projectcalico.org/namespace)"),
        (
            {"namespaceSelector": "t == 'x'", "selector": "has(b)"},
            '(pcns.t == "x") && (has(b))',
            '(pcns.t == "x") && (has(b))',
        ),
        ({"namespaceSelector": "broken (", "selector": "has(b)"}, "has(b)", "has(b)"),
        (
            {"serviceAccounts": {"names": ["b", "a", "b"]}},
            '(projectcalico.org/namespace == \'n\') && (projectcalico.org/serviceaccount in {"a", "b"})',
            'projectcalico.org/serviceaccount in {"a", "b"}',
        ),
        (
            {"serviceAccounts": {"names": ["a"], "selector": "r == 's'"}, "selector": "has(q)"},
            (
                "(projectcalico.org/namespace == 'n') && "
                '(((pcsa.r == "s") && (projectcalico.org/serviceaccount in {"a"})) && (has(q)))'
            ),
            '((pcsa.r == "s") && (projectcalico.org/serviceaccount in {"a"})) && (has(q))',
        ),
        ({"serviceAccounts": {"selector": "broken ("}}, "", ""),
    ],
)
def test_the_selector_of_an_entity(members: dict[str, Any], in_namespace: str, global_one: str) -> None:
    assert rules.entity_selector(entity(**members), "n", []) == in_namespace
    assert rules.entity_selector(entity(**members), "", []) == global_one


def test_selectors_that_are_left_out_cause_warnings() -> None:
    warnings: list[str] = []
    rules.entity_selector(entity(namespaceSelector="x ("), "", warnings)
    rules.entity_selector(entity(serviceAccounts={"selector": "x ("}), "", warnings)
    rules.entity_selector(entity(serviceAccounts={"names": ["'"]}), "", warnings)
    assert len(warnings) == 3


def test_selectors_that_are_too_deep_raise() -> None:
    with pytest.raises(model.ConversionError) as caught:
        rules.entity_selector(entity(namespaceSelector="(" * 300 + "has(a)" + ")" * 300), "", [])
    assert caught.value.reason == "selector-too-deep"


def test_the_order_of_the_members() -> None:
    source = {"nets": ["1.2.3.4/8", "x"], "selector": "has(s)", "ports": [1], "notNets": ["::1"], "notPorts": ["a"]}
    converted = convert(
        metadata={"annotations": {"b": "1", "a": "2"}},
        http={"methods": ["GET"], "paths": [{"prefix": "/"}]},
        destination={**source, "services": {"name": "svc", "namespace": "other"}},
        source={**source, "services": {"name": "svc"}},
        notICMP={"type": 0},
        icmp={"type": 8, "code": 0},
        notProtocol=17,
        protocol="TCP",
        ipVersion=4,
        action="Pass",
    )
    assert list(converted) == [
        *("action", "ip_version", "protocol", "!protocol", "icmp_type", "icmp_code", "!icmp_type"),
        *("src_nets", "src_selector", "src_ports", "src_service", "dst_selector", "dst_nets", "dst_ports"),
        *("dst_service", "dst_service_ns", "!src_nets", "!src_ports", "!dst_nets", "!dst_ports"),
        *("orig_src_selector", "orig_dst_selector", "http", "metadata"),
    ]
    assert converted["action"] == "next-tier"
    assert converted["src_nets"] == ["1.0.0.0/8"]
    assert converted["!dst_nets"] == ["::1/128"]
    assert list(converted["metadata"]["annotations"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [("TCP", "tcp"), ("UDPLite", "udplite"), ("6", 6), ("006", 6), ("0" * 5_000 + "6", 6), (47, 47), ("256", "256")],
)
def test_protocols(protocol: int | str, expected: int | str) -> None:
    assert convert(protocol=protocol)["protocol"] == expected


@pytest.mark.parametrize("members", [{"protocol": 256}, {"notProtocol": -1}, {"source": {"ports": ["99999"]}}])
def test_members_that_cannot_be_decoded(members: dict[str, Any]) -> None:
    with pytest.raises(model.ConversionError) as caught:
        convert(**members)
    assert caught.value.reason == "undecodable"


def tcp(**destination: Any) -> dict[str, Any]:
    return {"protocol": "TCP", "destination": destination}


@pytest.mark.parametrize(
    "members",
    [
        {"ipVersion": 5},
        {"protocol": 0},
        {"notProtocol": "TCPX"},
        {"icmp": {"type": 255}},
        {"icmp": {"code": 256}},
        {"notICMP": {"type": -1}},
        {"source": {"selector": "a =="}},
        {"source": {"notSelector": "a =="}},
        {"source": {"namespaceSelector": "a =="}},
        {"destination": {"serviceAccounts": {"selector": "a =="}}},
        tcp(ports=[0]),
        tcp(ports=["0:80"]),
        tcp(ports=["HTTP"]),
        tcp(notPorts=["a_b"]),
        tcp(ports=["-1"]),
        tcp(ports=["a" * 16]),
        {"destination": {"ports": [80]}},
        {"protocol": "ICMP", "destination": {"ports": ["http"]}},
        {"protocol": 47, "source": {"notPorts": [5]}},
    ],
)
def test_invalid_members(members: dict[str, Any]) -> None:
    good = convert(**tcp(ports=[80, "http"]))
    assert rules.problem([good, convert(**members)], where="ingress").startswith("ingress[1]: ")


@pytest.mark.parametrize(
    "members",
    [
        {"icmp": {"type": 254, "code": 255}},
        {"destination": {"ports": ["http"]}},
        {"protocol": 132, "destination": {"ports": [7]}},
        tcp(ports=["1:65535", "a-1"]),
        {"destination": {"namespaceSelector": "global()"}},
    ],
)
def test_valid_members(members: dict[str, Any]) -> None:
    assert rules.problem([convert(**members)], where="ingress") == ""
