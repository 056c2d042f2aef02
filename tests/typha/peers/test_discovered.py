"""Addresses of replicas, from the endpoints of a Service and from a setting."""

from cache.kube.endpoints import Endpoint
from typha.peers import discovered

PORTS = {"calico-typha": 5473, "other": 9}


def test_every_address_counts_once() -> None:
    listed = [
        Endpoint(("10.0.0.2", "10.0.0.1"), "a", PORTS),
        Endpoint(("10.0.0.1", "fd00::7"), "b", PORTS),
        Endpoint(("10.0.0.9",), "c", {"other": 9}),
    ]
    found = discovered.addresses(listed, port_name="calico-typha")
    assert found == ["10.0.0.1:5473", "10.0.0.2:5473", "[fd00::7]:5473"]
    assert discovered.addresses([Endpoint(("10.0.0.1",), "", {"": 5473})], port_name="") == ["10.0.0.1:5473"]


def test_what_is_no_address_is_left_out() -> None:
    odd = Endpoint(("evil.example.org", "", "10.0.0.1 ", "10.0.0.3"), "", PORTS)
    assert discovered.addresses([odd], port_name="calico-typha") == ["10.0.0.3:5473"]
    for port in (0, -1, 65536):
        assert discovered.addresses([Endpoint(("10.0.0.1",), "", {"x": port})], port_name="x") == []


def test_there_are_not_more_than_a_hundred() -> None:
    listed = [Endpoint(tuple(f"10.0.{third}.{last}" for last in range(200)), "", PORTS) for third in range(5)]
    assert len(discovered.addresses(listed, port_name="calico-typha")) == discovered.PEERS_MAX
    assert len(discovered.listed(",".join(map(str, range(1000))))) == discovered.PEERS_MAX


def test_the_setting() -> None:
    assert discovered.listed("") == []
    assert discovered.listed(" a:1 , b:2,,") == ["a:1", "b:2"]
