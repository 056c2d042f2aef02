"""Addresses of peers: how they are written, and which count as one where connections are counted. Pure."""

import socket

_PREFIX_BYTES = 8
"""A network of IPv6 has 64 bits, and each of its hosts may take any address in it."""
_MAPPED = bytes(10) + b"\xff\xff"
"""Before an address of IPv4, where a socket of IPv6 serves both."""


_MAPPED_TEXT = "::ffff:"


def plain(address: str) -> str:
    """The address as an operator knows it: of IPv4, without what a socket of IPv6 puts before it."""
    mapped = address[len(_MAPPED_TEXT) :]
    is_mapped = "." in mapped and ":" not in mapped and address.lower().startswith(_MAPPED_TEXT)
    return mapped if is_mapped else address


def with_port(address: str, port: int) -> str:
    """The address as an operator knows it, and the port."""
    address = plain(address)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def network_of(address: str) -> str:
    """The /64 of an IPv6 address; an IPv4 address is its own network, and so is what is no address."""
    if ":" not in address:
        return address
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    if packed.startswith(_MAPPED):
        return socket.inet_ntoa(packed[len(_MAPPED) :])
    return socket.inet_ntop(socket.AF_INET6, packed[:_PREFIX_BYTES] + bytes(_PREFIX_BYTES)) + "/64"
