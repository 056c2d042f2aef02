"""IP addresses, networks and MAC addresses, read and printed as Go does."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.feeds.calico.codecs import addresses


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("255.255.255.255", "255.255.255.255"),
        ("FD00::00AB", "fd00::ab"),
        ("1:0:0:2:0:0:0:3", "1:0:0:2::3"),
        ("1:0:2:0:3:0:4:0", "1:0:2:0:3:0:4:0"),
        ("::", "::"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::FFFF:0102:0304", "1.2.3.4"),
        ("::1.2.3.4", "::102:304"),
    ],
)
def test_addresses_are_printed_as_go_does(text: str, printed: str) -> None:
    assert str(addresses.parse_ip(text)) == printed


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1.2.3.4",
        "1.2.3.4 ",
        "01.2.3.4",
        "1.2.3",
        "1.2.3.256",
        "fe80::1%eth0",
        "1::2::3",
        ":1",
        "1.2.3.4/32",
        "１.2.3.4",
    ],
)
def test_invalid_addresses(text: str) -> None:
    assert addresses.parse_ip(text) is None


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.1.2.3/0", "0.0.0.0/0"),
        ("10.1.2.3/024", "10.1.2.0/24"),
        ("FD00::1/64", "fd00::/64"),
        ("::ffff:1.2.3.4/120", "1.2.3.0/24"),
        ("::ffff:1.2.3.4/96", "0.0.0.0/0"),
        ("::ffff:1.2.3.4/64", "::/64"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("fd00::1", "fd00::1/128"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("", "<nil>"),
    ],
)
def test_networks_are_masked_and_addresses_widened(text: str, printed: str) -> None:
    assert addresses.network_text(text) == printed


@pytest.mark.parametrize("text", ["10.0.0.0/33", "fd00::/129", "10.0.0.0/", "10.0.0.0/-1", "/8", "10.0.0.0/8/8", "a/8"])
def test_invalid_networks(text: str) -> None:
    assert addresses.network_text(text) is None
    assert addresses.parse_cidr(text) is None


def test_an_address_without_mask_is_not_a_cidr() -> None:
    assert addresses.parse_cidr("10.0.0.1") is None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("10.0.0.1", 4),
        ("10.0.0.1/8", 4),
        ("::1", 6),
        ("fd00::1/64", 6),
        ("::ffff:10.0.0.1/96", 4),
        ("", 0),
        ("x", 0),
        ("10.0.0.1/", 0),
    ],
)
def test_the_version_of_an_address_or_cidr(text: str, version: int) -> None:
    assert addresses.version(text) == version


def test_an_interface_keeps_its_host_bits() -> None:
    parsed = addresses.parse_interface("10.1.2.3/8")
    assert parsed is not None
    assert (str(parsed[0]), str(parsed[1])) == ("10.1.2.3", "10.0.0.0/8")


@given(st.ip_addresses())
def test_every_address_reads_back(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    expected = mapped or address
    parsed = addresses.parse_ip(address.exploded)
    assert parsed == (expected.version, int(expected))
    assert str(parsed) == str(expected)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_ipv4_networks_agree_with_the_standard_library(address: ipaddress.IPv4Address, length: int) -> None:
    text = f"{address}/{length}"
    assert addresses.network_text(text) == str(ipaddress.ip_network(text, strict=False))


@given(st.ip_addresses(v=6), st.integers(0, 128))
def test_ipv6_networks_agree_with_the_standard_library(address: ipaddress.IPv6Address, length: int) -> None:
    text = f"{address.exploded}/{length}"
    network = addresses.parse_cidr(text)
    assert network is not None
    if network.version == 6:
        assert str(network) == str(ipaddress.ip_network(text, strict=False))


@given(st.text(alphabet="0123456789abcdef.:/%- ") | st.text())
def test_any_text_is_accepted_or_rejected(text: str) -> None:
    address = addresses.parse_ip(text)
    if address is not None:
        assert addresses.parse_ip(str(address)) == address
    network = addresses.network_text(text)
    if text and network is not None:
        assert addresses.network_text(network) == network
    addresses.is_mac(text)


@pytest.mark.parametrize(
    "text",
    [
        "00:11:22:aa:BB:cc",
        "00-11-22-aa-bb-cc",
        "0011.22aa.bbcc",
        "001122aabbcc",
        "00:11:22:aa:bb:cc:dd:ee",
        ":".join(["00"] * 20),
    ],
)
def test_valid_macs(text: str) -> None:
    assert addresses.is_mac(text)


@pytest.mark.parametrize(
    "text", ["", "00:11:22:aa:bb", "00:11:22:aa:bb-cc", "0:11:22:aa:bb:cc", "00:11:22:aa:bb:cg", "00:11:22:aa:bb:cc:dd"]
)
def test_invalid_macs(text: str) -> None:
    assert not addresses.is_mac(text)
