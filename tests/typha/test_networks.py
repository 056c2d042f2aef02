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


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("10.0.0.1", "10.0.0.1:7"),
        ("::ffff:10.0.0.1", "10.0.0.1:7"),
        ("::FFFF:10.0.0.1", "10.0.0.1:7"),
        ("::1", "[::1]:7"),
        ("2001:db8::9", "[2001:db8::9]:7"),
        ("fe80::1%eth0", "[fe80::1%eth0]:7"),
        ("::ffff:0:10.0.0.1", "[::ffff:0:10.0.0.1]:7"),
        ("64:ff9b::10.0.0.1", "[64:ff9b::10.0.0.1]:7"),
    ],
)
def test_addresses_are_written_as_operators_know_them(address: str, shown: str) -> None:
    assert networks.with_port(address, 7) == shown


def test_the_clients_of_a_network_have_one_host() -> None:
    with socket.socket() as end:
        hosts = [
            client.Client(end, f"{host}:4711", number=1, slot=0, now=0.0).host
            for host in ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1")
        ]
    assert hosts == ["2001:db8::/64", "2001:db8::/64", "2001:db8:0:1::/64"]
