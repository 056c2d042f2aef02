"""The sets of addresses that rules name, as sets of the table. Pure."""

from collections.abc import Collection, Mapping

from clients.agents.node import desired
from clients.agents.node.dataplane.names import name_of
from clients.agents.node.dataplane.table import Element, Kind, Table

_PREFIXES = {Kind.ADDRESSES: "a", Kind.NETS: "n", Kind.PORTS: "s"}


class AddressSets:
    """Keeps the table's sets equal to the calculation's.

    A set of single addresses becomes one of another kind, and so of another name, when its first larger net comes: the
    kernel changes sets without intervals several times faster, and most sets never need them.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.names: dict[str, str] = {}
        """Keys to names in the kernel."""
        self._wide: dict[str, int] = {}
        """Keys of the sets that have larger nets, and how many."""

    def apply(self, sets: desired.Changes[desired.AddressSet], members: Mapping[str, desired.MemberChange]) -> set[str]:
        """Applies the changes. Returns the keys whose names changed, came or went."""
        renamed: set[str] = set()
        for key in sets.removed:
            if self._drop(key):
                renamed.add(key)
        for key, described in sets.set.items():
            self._drop(key)
            self._put(key, described)
            renamed.add(key)
        for key, change in members.items():
            if key in self.names and self._change(key, _of_ipv4(change.added), _of_ipv4(change.removed)):
                renamed.add(key)
        return renamed

    def _put(self, key: str, described: desired.AddressSet) -> None:
        members = _of_ipv4(described.members)
        if described.type is desired.SetType.IP_AND_PORT:
            self._name(key, Kind.PORTS, members)
            return
        wide = sum(map(_is_wide, members))
        if wide:
            self._wide[key] = wide
        self._name(key, Kind.NETS if wide else Kind.ADDRESSES, members)

    def _name(self, key: str, kind: Kind, elements: Collection[Element]) -> None:
        self.names[key] = name_of(_PREFIXES[kind], key)
        self._table.put_set(self.names[key], kind, elements)

    def _drop(self, key: str) -> bool:
        name = self.names.pop(key, None)
        self._wide.pop(key, None)
        if name is not None:
            self._table.drop_set(name)
        return name is not None

    def _change(self, key: str, added: set[Element], removed: set[Element]) -> bool:
        """Changes the members. Returns whether the set has another name now."""
        name = self.names[key]
        there = self._table.elements[name]
        added, removed = added - there, removed & there
        wide_before = self._wide.get(key, 0)
        wide = wide_before + sum(map(_is_wide, added)) - sum(map(_is_wide, removed))
        if bool(wide) == bool(wide_before):
            self._table.change_elements(name, added=added, removed=removed)
        else:
            members = (there - removed) | added
            self._drop(key)
            self._name(key, Kind.NETS if wide else Kind.ADDRESSES, members)
        if wide:
            self._wide[key] = wide
        return bool(wide) != bool(wide_before)


def _of_ipv4(members: Collection[desired.Member]) -> set[Element]:
    return {member for member in members if ":" not in (member if isinstance(member, str) else member.address)}


def _is_wide(member: Element) -> bool:
    return isinstance(member, str) and not member.endswith("/32")
