"""IP and MAC addresses as Go's net package reads and prints them. Pure.

Parsing is strict: no zones, spaces or leading zeros in IPv4. IPv4-mapped IPv6 addresses count as IPv4
(`::ffff:1.2.3.4` is `1.2.3.4`).
"""

import ipaddress
import re
from typing import NamedTuple

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
_IPV6_CHARACTERS = re.compile(r"[0-9a-fA-F:.]{2,45}")
_PREFIX_LENGTH = re.compile(r"0*([0-9]{1,3})")
_HEX_PAIR = "[0-9a-fA-F]{2}"
_MAC = re.compile(
    rf"{_HEX_PAIR}(?:(?::{_HEX_PAIR})+|(?:-{_HEX_PAIR})+|(?:{_HEX_PAIR})+)|{_HEX_PAIR * 2}(?:\.{_HEX_PAIR * 2})+"
)
_MAC_BYTES = (6, 8, 20)
_MAPPED_PREFIX = 0xFFFF << 32
_MAPPED_BITS = 96
_IPV4_MASK = (1 << 32) - 1
_NIL = "<nil>"


class IP(NamedTuple):
    """An address: version 4 or 6, and its bits as a number."""

    version: int
    value: int

    def __str__(self) -> str:
        return ipv4_text(self.value) if self.version == 4 else ipv6_text(self.value)

    @property
    def bits(self) -> int:
        """The length of an address of this version."""
        return 32 if self.version == 4 else 128


class Network(NamedTuple):
    """A masked network. Version 0 stands for the empty text, where Go accepts it as an address: it prints `<nil>`."""

    version: int
    value: int
    prefix_length: int

    def __str__(self) -> str:
        if self.version == 0:
            return _NIL
        return f"{IP(self.version, self.value)}/{self.prefix_length}"

    @property
    def is_single_address(self) -> bool:
        """Whether the prefix is /32 of IPv4 or /128 of IPv6."""
        return self.prefix_length == (32 if self.version == 4 else 128)


_NIL_NETWORK = Network(0, 0, 128)


def parse_ip(text: str) -> IP | None:
    """Parse an address without mask or zone, as net.ParseIP does. None if it is invalid."""
    if _IPV4.fullmatch(text):
        return IP(4, _ipv4_value(text))
    value = _ipv6_value(text)
    if value is None:
        return None
    if value >> 32 == 0xFFFF:
        return IP(4, value & _IPV4_MASK)
    return IP(6, value)


def parse_cidr(text: str) -> Network | None:
    """Parse a CIDR to a masked network, as net.ParseCIDR does (host bits allowed). None if it is invalid."""
    parsed = parse_interface(text)
    return None if parsed is None else parsed[1]


def parse_interface(text: str) -> tuple[IP, Network] | None:
    """Parse a CIDR to its address with host bits, and its masked network. None if it is invalid."""
    address_text, slash, length_text = text.partition("/")
    matched = _PREFIX_LENGTH.fullmatch(length_text)
    if not slash or not matched:
        return None
    length = int(matched[1])
    if _IPV4.fullmatch(address_text):
        if length > 32:
            return None
        value = _ipv4_value(address_text)
        return IP(4, value), Network(4, _masked(value, length, 32), length)
    wide = _ipv6_value(address_text)
    if wide is None or length > 128:
        return None
    masked = _masked(wide, length, 128)
    mapped_address = wide >> 32 == 0xFFFF
    address = IP(4, wide & _IPV4_MASK) if mapped_address else IP(6, wide)
    if masked >> 32 == 0xFFFF:
        return address, Network(4, masked & _IPV4_MASK, length - _MAPPED_BITS)
    return address, Network(6, masked, length)


def parse_network(text: str) -> Network | None:
    """Parse a CIDR, or an address as /32 or /128. None if it is invalid. The empty text gives Go's nil network."""
    if "/" in text:
        return parse_cidr(text)
    if not text:
        return _NIL_NETWORK
    address = parse_ip(text)
    return None if address is None else Network(address.version, address.value, address.bits)


def version(text: str) -> int:
    """Return the version of an address, or of the address of a CIDR (host bits allowed). 0 if it is neither."""
    parsed = parse_interface(text)
    address = parse_ip(text) if parsed is None else parsed[0]
    return 0 if address is None else address.version


def network_text(text: str) -> str | None:
    """Print the result of `parse_network`, with a fast path. A printed IPv6 network always contains `:`."""
    if _IPV4.fullmatch(text):
        return text + "/32"
    network = parse_network(text)
    return None if network is None else str(network)


def is_mac(text: str) -> bool:
    """Return whether net.ParseMAC accepts it: 6, 8 or 20 bytes as pairs (`:`, `-` or no separator) or dotted fours."""
    return bool(_MAC.fullmatch(text)) and sum(character not in ":-." for character in text) // 2 in _MAC_BYTES


def ipv4_text(value: int) -> str:
    """Print an IPv4 address as dotted decimal."""
    return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"


def ipv6_text(value: int) -> str:
    """Print an IPv6 address by RFC 5952: lower case, the first longest run of two or more zero fields compressed."""
    return str(ipaddress.IPv6Address(value))


def _ipv4_value(text: str) -> int:
    first, second, third, fourth = text.split(".")
    return int(first) << 24 | int(second) << 16 | int(third) << 8 | int(fourth)


def _ipv6_value(text: str) -> int | None:
    if not _IPV6_CHARACTERS.fullmatch(text) or ":" not in text:
        return None
    try:
        return int(ipaddress.IPv6Address(text))
    except ValueError:
        return None


def _masked(value: int, length: int, bits: int) -> int:
    host_bits = bits - length
    return value >> host_bits << host_bits
