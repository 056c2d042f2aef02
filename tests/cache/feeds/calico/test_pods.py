"""Pods to workload endpoints, one test for each rule."""

from typing import Any

import pytest

from cache.feeds.calico import model, pods
from tests.harness import builders

KEY = "/calico/v1/host/w/workload/k8s/n%2fp/endpoint/eth0"


def convert(
    *, status: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, **metadata: Any
) -> list[model.Item]:
    shown = {"podIP": "10.0.0.1"} if status is None else status
    event = builders.event("p", "n", metadata=metadata, spec={"nodeName": "w", **(spec or {})}, status=shown)
    return list(pods.convert(event))


def annotations(**found: str) -> dict[str, str]:
    return {f"cni.projectcalico.org/{name}": text for name, text in found.items()}


def test_a_plain_pod() -> None:
    assert builders.values(convert()) == {
        KEY: '{"state":"active","name":"calif5eabdd6c90","active_instance_id":"","mac":null,"profile_ids":["kns.n"],'
        '"ipv4_nets":["10.0.0.1/32"],"ipv6_nets":null,"labels":{"projectcalico.org/namespace":"n",'
        '"projectcalico.org/orchestrator":"k8s"}}'
    }


@pytest.mark.parametrize("spec", [{"nodeName": ""}, {"hostNetwork": True}])
def test_pods_without_items(spec: dict[str, Any]) -> None:
    assert convert(spec=spec) == []


@pytest.mark.parametrize(
    "status", [{}, {"podIP": "10.0.0.1", "phase": "Failed"}, {"podIP": "1.1.1.1", "phase": "Completed"}]
)
def test_without_ips_the_endpoint_is_absent(status: dict[str, Any]) -> None:
    assert builders.values(convert(status=status)) == {KEY: None}


@pytest.mark.parametrize(
    ("metadata", "is_there"),
    [
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, True),
        ({"annotations": annotations(podIP="")}, True),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations(podIP="")}, False),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": {"vpc.amazonaws.com/pod-ips": ""}}, False),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations(podIPs="")}, True),
    ],
)
def test_a_terminating_pod_keeps_its_ips_until_they_are_freed(metadata: dict[str, Any], is_there: bool) -> None:
    assert (builders.values(convert(**metadata))[KEY] is not None) is is_there


@pytest.mark.parametrize(
    ("status", "found", "expected"),
    [
        (
            {"podIPs": [{"ip": "1.1.1.1"}, {"ip": "FD00::0:1"}], "podIP": "2.2.2.2"},
            {},
            (["1.1.1.1/32"], ["fd00::1/128"]),
        ),
        ({"podIP": "2.2.2.2"}, annotations(podIPs="3.3.3.3"), (["2.2.2.2/32"], None)),
        ({}, annotations(podIPs="3.3.3.3/31,::1", podIP="4.4.4.4"), (["3.3.3.2/31"], ["::1/128"])),
        ({}, annotations(podIP="4.4.4.4/32"), (["4.4.4.4/32"], None)),
        ({}, {"vpc.amazonaws.com/pod-ips": "::ffff:5.5.5.5"}, (["5.5.5.5/32"], None)),
    ],
)
def test_the_sources_of_ips(status: dict[str, Any], found: dict[str, str], expected: tuple[Any, Any]) -> None:
    endpoint = builders.value(convert(status=status, annotations=found))
    assert (endpoint["ipv4_nets"], endpoint["ipv6_nets"]) == expected


@pytest.mark.parametrize(
    ("status", "found", "reason"),
    [
        ({"podIP": "nonsense"}, {}, "bad-ip"),
        ({"podIP": "nonsense", "phase": "Failed"}, {}, "bad-ip"),
        ({}, annotations(podIPs="1.1.1.1, 2.2.2.2"), "bad-ip"),
        ({"podIP": "01.1.1.1"}, {}, "bad-ip"),
        ({"podIP": "1.1.1.1"}, annotations(floatingIPs="{}"), "bad-annotation"),
        ({"podIP": "1.1.1.1"}, annotations(floatingIPs=""), "bad-annotation"),
        ({}, annotations(podIP="1.1.1.0/24", floatingIPs="[]"), "bad-ip"),
        ({}, annotations(allowedSourcePrefixes='["1.1.1.1"]'), "bad-annotation"),
        ({}, annotations(allowedSourcePrefixes="x"), "bad-annotation"),
    ],
)
def test_rejected_pods(status: dict[str, Any], found: dict[str, str], reason: str) -> None:
    with pytest.raises(model.ConversionError) as caught:
        convert(status=status, annotations=found)
    assert caught.value.reason == reason


def test_floating_ips_count_only_with_an_ip() -> None:
    assert builders.values(convert(status={}, annotations=annotations(floatingIPs="x"))) == {KEY: None}


def test_floating_ips_go_with_the_last_ip_of_their_family() -> None:
    endpoint = builders.value(
        convert(
            status={"podIPs": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.2"}, {"ip": "fd00::1"}]},
            annotations=annotations(floatingIPs='["9.9.9.9", "x", "FD00::9", null]'),
        )
    )
    assert endpoint["ipv4_nat"] == [{"int_ip": "1.1.1.2", "ext_ip": "9.9.9.9"}]
    assert endpoint["ipv6_nat"] == [{"int_ip": "fd00::1", "ext_ip": "fd00::9"}]
    only_ipv4 = builders.value(convert(annotations=annotations(floatingIPs='["fd00::9"]')))
    assert not {"ipv4_nat", "ipv6_nat"} & set(only_ipv4)


def test_source_prefixes_are_masked() -> None:
    found = annotations(allowedSourcePrefixes='["10.1.2.3/8", "fd00::1/64"]')
    assert builders.value(convert(annotations=found))["allow_spoofed_source_ips"] == ["10.0.0.0/8", "fd00::/64"]
    for empty in ("", "[]", "null"):
        endpoint = builders.value(convert(annotations=annotations(allowedSourcePrefixes=empty)))
        assert "allow_spoofed_source_ips" not in endpoint


def test_labels() -> None:
    pod_labels = {
        "pcns.x": "1",
        "pcsa.y": "2",
        "a": "<",
        "projectcalico.org/namespace": "lie",
        "projectcalico.org/serviceaccount": "lie",
    }
    without_account = builders.value(convert(labels=pod_labels))
    assert without_account["labels"] == {
        "a": "<",
        "projectcalico.org/namespace": "n",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "lie",
    }
    with_account = builders.value(convert(labels=pod_labels, spec={"serviceAccountName": "s"}))
    assert with_account["labels"]["projectcalico.org/serviceaccount"] == "s"
    assert with_account["profile_ids"] == ["kns.n", "ksa.n.s"]


def test_ports() -> None:
    def container(*ports: dict[str, Any]) -> dict[str, Any]:
        return {"name": "c", "ports": list(ports)}

    spec = {
        "initContainers": [container({"name": "init", "containerPort": 1})],
        "containers": [
            container(
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"containerPort": 80},
                {"name": "none", "containerPort": 0},
                {"name": "odd", "containerPort": 5, "protocol": "ICMP"},
                {"hostPort": 90, "containerPort": 90},
            ),
            {"name": "without"},
        ],
    }
    newest, older = convert(spec=spec)
    dns, init = {"name": "dns", "protocol": "udp", "port": 53}, {"name": "init", "protocol": "tcp", "port": 1}
    assert builders.value([newest])["ports"] == [dns, init]
    assert builders.value([older])["ports"] == [dns]
    assert older == model.Item(newest.key, older.value, newest.revision, is_older=True)


def test_the_network_status_is_sent_unchanged() -> None:
    found = {"k8s.v1.cni.cncf.io/network-status": '[{"name":"a&b"}]', "other": "x"}
    [item] = convert(annotations=found, generateName="p-")
    assert item.value is not None
    assert (
        b'"generate_name":"p-","annotations":{"k8s.v1.cni.cncf.io/network-status":"[{\\"name\\":\\"a\\u0026b\\"}]"}'
        in item.value
    )


def test_the_name_of_the_interface() -> None:
    assert pods.interface_name("pod-a", "upd") == "cali3234325a349"


def test_only_included_fields_change_a_value() -> None:
    one = convert(uid="a", annotations={"note": "1"})
    other = convert(uid="b", annotations={"cni.projectcalico.org/containerID": "2"})
    assert builders.values(one) == builders.values(other)
