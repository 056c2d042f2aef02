"""Addresses that count as one."""

import socket

import pytest

from typha import networks
from typha.worker import client


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::1", "::/64"),
        ("no: address", "no: address"),
        ("", ""),
    ],
)
def test_ipv6_addresses_count_by_their_network(address: str, network: str) -> None:
    assert networks.network_of(address) == network


def test_the_clients_of_a_network_have_one_host() -> None:
    with socket.socket() as end:
        hosts = [
            client.Client(end, f"{host}:4711", number=1, slot=0, now=0.0).host
            for host in ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1")
        ]
    assert hosts == ["2001:db8::/64", "2001:db8::/64", "2001:db8:0:1::/64"]
