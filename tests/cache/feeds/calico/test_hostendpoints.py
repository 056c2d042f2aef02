"""Host endpoints."""

from typing import Any

import pytest

from cache.feeds.calico import hostendpoints, model
from tests.harness import builders


def convert(metadata: dict[str, Any] | None = None, **spec: Any) -> list[model.Item]:
    event = builders.event("h", metadata=metadata, spec={"node": "w", **spec})
    return list(hostendpoints.convert(event, builders.V1))


def test_all_members() -> None:
    metadata = {"labels": {"b": "2", "a": "1"}, "annotations": {"qos.projectcalico.org/dscp": "ef"}}
    spec = {
        "interfaceName": "eth0",
        "expectedIPs": ["FD00::1", "1.2.3.4", "junk", None],
        "profiles": ["p.1"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
    }
    assert builders.values(convert(metadata, **spec)) == {
        "/calico/v1/host/w/endpoint/h": '{"name":"eth0","expected_ipv4_addrs":["1.2.3.4"],'
        '"expected_ipv6_addrs":["fd00::1"],"labels":{"a":"1","b":"2"},"profile_ids":["p.1"],'
        '"ports":[{"name":"http","protocol":"tcp","port":80}],"qosControls":{"dscp":"EF"}}'
    }
    assert builders.value(convert()) == {"labels": None}


def test_the_node_is_not_escaped_in_the_key() -> None:
    assert list(builders.values(convert(node="bad/node"))) == ["/calico/v1/host/bad/node/endpoint/h"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"node": ""}, "no-node"),
        ({"ports": [{"name": "p", "port": 65536, "protocol": "TCP"}]}, "undecodable"),
        ({"ports": [{"name": "p", "port": 1, "protocol": 256}]}, "undecodable"),
    ],
)
def test_rejected_endpoints(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(model.ConversionError) as caught:
        convert(**spec)
    assert caught.value.reason == reason


def port(**members: Any) -> dict[str, Any]:
    return {"ports": [{"name": "p", "protocol": "TCP", "port": 1, **members}]}


@pytest.mark.parametrize(
    ("spec", "is_invalid"),
    [
        ({"interfaceName": "*"}, False),
        ({"interfaceName": "e" * 16}, True),
        ({"profiles": ["not a name"]}, True),
        (port(), False),
        (port(name="not good"), True),
        (port(name=""), True),
        (port(port=0), True),
        (port(protocol="ICMP"), True),
        (port(protocol=132), True),
        (port(protocol="6"), True),
        (port(protocol="sctp"), False),
    ],
)
def test_validation(spec: dict[str, Any], is_invalid: bool) -> None:
    [item] = convert(**spec)
    assert bool(item.invalid) is is_invalid
