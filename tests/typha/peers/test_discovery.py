"""Addresses of replicas, from EndpointSlices and from a setting."""

import json
from typing import Any

import pytest

from typha.peers import discovery


def body(*slices: dict[str, Any]) -> bytes:
    return json.dumps({"kind": "EndpointSliceList", "items": slices}).encode()


def a_slice(*addresses: str, port: object = 5473, name: str | None = "calico-typha", **more: object) -> dict[str, Any]:
    endpoints = [{"addresses": [address], "conditions": {"ready": False}} for address in addresses]
    return {"endpoints": endpoints, "ports": [{"name": name, "port": port}, {"name": "other", "port": 9}], **more}


def test_every_address_counts_once_ready_or_not() -> None:
    found = discovery.addresses(
        body(a_slice("10.0.0.2", "10.0.0.1"), a_slice("10.0.0.1", "fd00::7"), {"endpoints": None, "ports": None}),
        port_name="calico-typha",
    )
    assert found == ["10.0.0.1:5473", "10.0.0.2:5473", "[fd00::7]:5473"]
    assert discovery.addresses(body(a_slice("10.0.0.1", name=None)), port_name="") == ["10.0.0.1:5473"]
    assert discovery.addresses(body(a_slice("10.0.0.1", port=None)), port_name="calico-typha") == []


def test_what_is_no_address_is_left_out() -> None:
    odd = a_slice("evil.example.org", "", "10.0.0.1 ", "10.0.0.3")
    found = discovery.addresses(body(odd), port_name="calico-typha")
    assert found == ["10.0.0.3:5473"]


def test_there_are_not_more_than_a_hundred() -> None:
    slices = [a_slice(*(f"10.0.{third}.{last}" for last in range(200))) for third in range(5)]
    assert len(discovery.addresses(body(*slices), port_name="calico-typha")) == discovery.PEERS_MAX
    assert len(discovery.listed(",".join(map(str, range(1000))))) == discovery.PEERS_MAX


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"items": 5}',
        b"\xff",
        b"[" * 100_000,
        body(a_slice("10.0.0.1", port=0)),
        body({"endpoints": [{}]}),
    ],
)
def test_answers_that_are_no_list(answer: bytes) -> None:
    with pytest.raises(discovery.Unreadable):
        discovery.addresses(answer, port_name="calico-typha")


def test_the_setting() -> None:
    assert discovery.listed("") == []
    assert discovery.listed(" a:1 , b:2,,") == ["a:1", "b:2"]
