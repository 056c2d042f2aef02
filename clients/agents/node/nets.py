"""Networks as numbers, and sets of networks of which none lies within another. Pure."""

import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {4: 32, 6: 128}
"""How CIDRs of single addresses end. (An IPv6 network of 32 bits also does, which costs time and nothing else.)"""


class Net(NamedTuple):
    """A network or an address. In order, a network comes just before those within it."""

    version: int
    address: int
    length: int

    def __str__(self) -> str:
        kind = ipaddress.IPv4Address if self.version == 4 else ipaddress.IPv6Address
        return f"{kind(self.address)}/{self.length}"

    @property
    def host(self) -> str:
        """The address without a length."""
        return str(self).rpartition("/")[0]

    def widened(self, length: int) -> "Net":
        """The network of a shorter length that this one lies in."""
        shift = _BITS[self.version] - length
        return Net(self.version, self.address >> shift << shift, length)

    def contains(self, other: "Net") -> bool:
        """Whether another network lies within this one, or is the same."""
        return self.version == other.version and other.length >= self.length and other.widened(self.length) == self

    def after(self) -> "Net":
        """The first network in order that lies behind all of those within this one."""
        return Net(self.version, self.address + (1 << _BITS[self.version] - self.length), 0)


def parse_net(text: str) -> Net:
    """Parses a CIDR or an address. Bits beyond the length are cut off.

    Raises:
        ValueError: it is neither.
    """
    interface = ipaddress.ip_interface(_without_zone(text))
    return Net(interface.version, int(interface.ip), _BITS[interface.version]).widened(interface.network.prefixlen)


def parse_address(text: str) -> Net:
    """Parses an address, also with a length, which is ignored.

    Raises:
        ValueError: it is none.
    """
    address = ipaddress.ip_address(_without_zone(text.partition("/")[0]))
    return Net(address.version, int(address), _BITS[address.version])


def host_net(text: str) -> str:
    """Returns an address as a CIDR of full length; a length is ignored.

    Raises:
        ValueError: it is no address.
    """
    bare = text.partition("/")[0]
    if ":" in _without_zone(bare):
        return f"{ipaddress.IPv6Address(bare)}/128"
    return f"{ipaddress.IPv4Address(bare)}/32"


def _without_zone(text: str) -> str:
    """Refuses zones (fe80::1%eth0): they mean something on one machine only, and can hold any characters."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    return text


def is_host_net(text: str) -> bool:
    """Whether a CIDR is a single address."""
    return text.endswith("/128") or (text.endswith("/32") and ":" not in text)


class Cover:
    """Networks as texts, and those of them that lie within no other: the visible ones.

    As long as there are addresses only, which is the usual case, nothing is compared.
    """

    def __init__(self) -> None:
        self.visible: set[str] = set()
        self._hidden: set[str] = set()
        self._wide: dict[tuple[int, int], set[Net]] = {}
        """The networks that can contain others, by version and length."""

    def add(self, text: str) -> tuple[set[str], set[str]]:
        """Adds a network that is not there. Returns what becomes visible, and what ceases to be."""
        if not self._wide and is_host_net(text):
            self.visible.add(text)
            return {text}, set()
        net = parse_net(text)
        covered = self._is_covered(net)
        hidden: set[str] = set()
        if net.length < _BITS[net.version]:
            self._wide.setdefault(net[::2], set()).add(net)
            if not covered:
                hidden = {other for other in self.visible if net.contains(parse_net(other))}
        if covered:
            self._hidden.add(text)
            return set(), set()
        self.visible -= hidden
        self._hidden |= hidden
        self.visible.add(text)
        return {text}, hidden

    def remove(self, text: str) -> tuple[set[str], set[str]]:
        """Removes a network that is there. Returns what becomes visible, and what ceases to be."""
        if not self._wide:
            self.visible.remove(text)
            return set(), {text}
        net = parse_net(text)
        if net.length < _BITS[net.version]:
            same = self._wide[net[::2]]
            same.remove(net)
            if not same:
                del self._wide[net[::2]]
        if text in self._hidden:
            self._hidden.remove(text)
            return set(), set()
        self.visible.remove(text)
        shown = set(self._uncovered(net))
        self._hidden -= shown
        self.visible |= shown
        return shown, {text}

    def _uncovered(self, gone: Net) -> Iterator[str]:
        for other in self._hidden:
            net = parse_net(other)
            if gone.contains(net) and not self._is_covered(net):
                yield other

    def _is_covered(self, net: Net) -> bool:
        return any(
            version == net.version and length < net.length and net.widened(length) in nets
            for (version, length), nets in self._wide.items()
        )
