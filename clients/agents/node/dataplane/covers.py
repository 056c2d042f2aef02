"""Nets of a set that may lie within one another, as the disjoint nets that the kernel accepts. Pure."""

import socket
from collections.abc import Iterable

ADDRESS_BITS = 32


class Cover:
    """The members of a set that no other member contains.

    nftables refuses elements that overlap. A change of one address looks at one net for each length in use; a change of
    a larger net looks at all members.
    """

    def __init__(self) -> None:
        self._members: dict[int, set[int]] = {}
        """Length of a net to its addresses, shifted right so that only the net's own bits remain."""
        self._wide = 0
        """Number of members that are not single addresses."""

    def __bool__(self) -> bool:
        return any(self._members.values())

    @property
    def has_nets(self) -> bool:
        """Whether a member is more than a single address."""
        return self._wide > 0

    def elements(self) -> set[str]:
        """All nets that the kernel's set must have."""
        return {
            _text(bits, length)
            for length, nets in self._members.items()
            for bits in nets
            if not self._covered(bits, length)
        }

    def change(self, *, added: Iterable[str], removed: Iterable[str]) -> tuple[set[str], set[str]]:
        """Changes the members. Returns which elements come and which go."""
        came: set[str] = set()
        went: set[str] = set()
        for bits, length in map(_parse, removed):
            for element in self._remove(bits, length):
                _toggle(element, came, went)
            if not self._covered(bits, length):
                _toggle(_text(bits, length), went, came)
        for bits, length in map(_parse, added):
            if not self._covered(bits, length):
                _toggle(_text(bits, length), came, went)
            for element in self._add(bits, length):
                _toggle(element, went, came)
        return came, went

    def _covered(self, bits: int, length: int) -> bool:
        """Whether a shorter net contains this one."""
        return any(shorter < length and bits >> (length - shorter) in nets for shorter, nets in self._members.items())

    def _within(self, bits: int, length: int) -> list[str]:
        """Members inside of this net that no other member contains."""
        return [
            _text(inner, longer)
            for longer, nets in self._members.items()
            if longer > length
            for inner in nets
            if inner >> (longer - length) == bits and not self._covered(inner, longer)
        ]

    def _add(self, bits: int, length: int) -> list[str]:
        """Adds a member. Returns the elements that it makes superfluous."""
        hidden = [] if length == ADDRESS_BITS or self._covered(bits, length) else self._within(bits, length)
        self._members.setdefault(length, set()).add(bits)
        self._wide += length < ADDRESS_BITS
        return hidden

    def _remove(self, bits: int, length: int) -> list[str]:
        """Removes a member. Returns the elements that it stood for."""
        nets = self._members[length]
        nets.remove(bits)
        if not nets:
            del self._members[length]
        self._wide -= length < ADDRESS_BITS
        return [] if length == ADDRESS_BITS or self._covered(bits, length) else self._within(bits, length)


def _parse(cidr: str) -> tuple[int, int]:
    address, _, length = cidr.partition("/")
    bits = int(length or ADDRESS_BITS)
    return int.from_bytes(socket.inet_aton(address)) >> (ADDRESS_BITS - bits), bits


def _text(bits: int, length: int) -> str:
    return f"{socket.inet_ntoa((bits << (ADDRESS_BITS - length)).to_bytes(4))}/{length}"


def _toggle(element: str, into: set[str], out_of: set[str]) -> None:
    """Adds an element to one side of a difference, unless the other side has it: then nothing changes in all."""
    if element in out_of:
        out_of.remove(element)
    else:
        into.add(element)
