"""The sets of addresses that the rules in use name, and their members. Pure.

A set lasts as long as a policy or a profile uses it. Its members are counted, because endpoints can share an address.
Endpoints, host endpoints and network sets of all nodes are items of one label index.
"""

from collections.abc import Hashable, Iterable, Mapping, Set
from typing import NamedTuple

from clients.agents.node import desired, feed, nets
from clients.agents.node.labels import LabelIndex, Moved
from clients.agents.node.rules import ANY_PROTOCOL, PROTOCOLS, ServiceSource, Source, Sources


class Item(NamedTuple):
    """What an endpoint or network set brings into the sets that it belongs to."""

    nets: tuple[str, ...]
    """Addresses as CIDRs of full length; of network sets any CIDRs."""
    ports: tuple[feed.EndpointPort, ...] = ()


class _Set:
    """A set in use."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.users: set[Hashable] = set()
        self.counts: dict[desired.Member, int] = {}
        self._cover: nets.Cover | None = None
        """Which members lie within others. Needed once there is a network: addresses do not."""
        self._added: set[desired.Member] = set()
        self._removed: set[desired.Member] = set()
        self.is_new = True
        """Whether nobody knows of it yet."""

    @property
    def visible(self) -> Set[desired.Member]:
        """The members, without those that lie within another."""
        return self.counts.keys() if self._cover is None else self._cover.visible

    def add(self, member: desired.Member) -> None:
        count = self.counts.get(member, 0)
        self.counts[member] = count + 1
        if count:
            return
        if self._cover is None and isinstance(member, str) and not nets.is_host_net(member):
            self._cover = nets.Cover()
            for known in self.counts:
                if isinstance(known, str) and known != member:
                    self._cover.add(known)
        if self._cover is not None and isinstance(member, str):
            self._note(*self._cover.add(member))
        else:
            self._note((member,), ())

    def remove(self, member: desired.Member) -> None:
        count = self.counts[member] - 1
        if count:
            self.counts[member] = count
            return
        del self.counts[member]
        if self._cover is not None and isinstance(member, str):
            self._note(*self._cover.remove(member))
        else:
            self._note((), (member,))

    def _note(self, shown: Iterable[desired.Member], hidden: Iterable[desired.Member]) -> None:
        if self.is_new:
            return
        for member in shown:
            if member in self._removed:
                self._removed.remove(member)
            else:
                self._added.add(member)
        for member in hidden:
            if member in self._added:
                self._added.remove(member)
            else:
                self._removed.add(member)

    def take(self) -> desired.MemberChange:
        added, self._added = self._added, set()
        removed, self._removed = self._removed, set()
        return desired.MemberChange(frozenset(added), frozenset(removed))


class AddressSets:
    """All sets in use, and everything that can be a member."""

    def __init__(self) -> None:
        self._index: LabelIndex[str, str] = LabelIndex()
        self._items: dict[str, Item] = {}
        self._sets: dict[str, _Set] = {}
        self._uses: dict[Hashable, Set[str]] = {}
        """Names of the sets of each user."""
        self._touched: set[str] = set()
        self._unused: set[str] = set()
        """Sets that had no user at some time since the last `take`."""
        self._slices: dict[str, feed.Slice] = {}
        self._slices_of: dict[str, set[str]] = {}
        """Keys of the slices of each service."""
        self._sets_of: dict[str, set[str]] = {}
        """Names of the sets of each service."""

    def use(self, user: Hashable, sources: Sources) -> None:
        """Sets what a user needs. Sets that nobody needs any more are dropped by the next `take`."""
        before = self._uses.get(user, frozenset())
        for name, source in sources.items():
            if name not in self._sets:
                self._create(name, source)
            self._sets[name].users.add(user)
        for name in before - sources.keys():
            users = self._sets[name].users
            users.discard(user)
            if not users:
                self._unused.add(name)
        if sources:
            self._uses[user] = frozenset(sources)
        else:
            self._uses.pop(user, None)

    def set_item(self, key: str, item: Item, labels: Mapping[str, str], parents: tuple[str, ...]) -> None:
        """Adds an endpoint or a network set, or changes it."""
        old = self._items.get(key)
        before = self._index.matches(key)
        self._index.set_item(key, labels, parents)
        after = self._index.matches(key)
        self._items[key] = item
        if old == item:
            if before is after:
                return
            stays = before & after
            before, after = before - stays, after - stays
        for name in after:
            self._contribute(name, item)
        if old is not None:
            for name in before:
                self._withdraw(name, old)

    def remove_item(self, key: str) -> None:
        """Removes an endpoint or a network set, if it is there."""
        old = self._items.pop(key, None)
        if old is None:
            return
        for name in self._index.matches(key):
            self._withdraw(name, old)
        self._index.remove_item(key)

    def items(self) -> Iterable[tuple[str, Item]]:
        """All endpoints and network sets by key."""
        return self._items.items()

    def set_parent(self, profile: str, labels: Mapping[str, str]) -> None:
        """Sets the labels that a profile gives; none removes them."""
        self._move(self._index.set_parent(profile, labels))

    def set_slice(self, key: str, value: feed.Slice | None) -> None:
        """Sets an EndpointSlice; None removes it."""
        old = self._slices.pop(key, None)
        if old is not None:
            of_service = self._slices_of[_service(old)]
            of_service.discard(key)
            if not of_service:
                del self._slices_of[_service(old)]
        if value is not None:
            self._slices[key] = value
            self._slices_of.setdefault(_service(value), set()).add(key)
            for name in self._sets_of.get(_service(value), ()):
                self._add_members(name, _slice_members(value, self._sets[name].source))
        if old is not None:
            for name in self._sets_of.get(_service(old), ()):
                self._remove_members(name, _slice_members(old, self._sets[name].source))

    def take(self) -> tuple[desired.Changes[desired.AddressSet], dict[str, desired.MemberChange]]:
        """The differences since the last call: whole sets, and members of the others."""
        removed = set()
        for name in self._unused:
            if not self._sets[name].users and not self._drop(name).is_new:
                removed.add(name)
        self._unused.clear()
        touched, self._touched = self._touched, set()
        created: dict[str, desired.AddressSet] = {}
        members = {}
        for name in touched - removed:
            found = self._sets.get(name)
            if found is None:
                continue
            if found.is_new:
                found.is_new = False
                created[name] = desired.AddressSet(found.source.type, frozenset(found.visible))
                continue
            change = found.take()
            if change.added or change.removed:
                members[name] = change
        return desired.Changes(created, frozenset(removed)), members

    def _create(self, name: str, source: Source) -> None:
        created = self._sets[name] = _Set(source)
        self._touched.add(name)
        if isinstance(source, ServiceSource):
            self._sets_of.setdefault(source.service, set()).add(name)
            for key in self._slices_of.get(source.service, ()):
                self._add_members(name, _slice_members(self._slices[key], source))
            return
        for moved in self._index.set_selector(name, source.selector):
            for key in moved.items:
                for member in _members(self._items[key], source):
                    created.add(member)

    def _drop(self, name: str) -> _Set:
        dropped = self._sets.pop(name)
        source = dropped.source
        if isinstance(source, ServiceSource):
            names = self._sets_of[source.service]
            names.discard(name)
            if not names:
                del self._sets_of[source.service]
        else:
            self._index.remove_selector(name)
        return dropped

    def _move(self, moves: Iterable[Moved[str, str]]) -> None:
        for moved in moves:
            for key in moved.items:
                item = self._items[key]
                for name in moved.gained:
                    self._contribute(name, item)
                for name in moved.lost:
                    self._withdraw(name, item)

    def _contribute(self, name: str, item: Item) -> None:
        self._add_members(name, _members(item, self._sets[name].source))

    def _withdraw(self, name: str, item: Item) -> None:
        self._remove_members(name, _members(item, self._sets[name].source))

    def _add_members(self, name: str, members: Iterable[desired.Member]) -> None:
        self._touched.add(name)
        add = self._sets[name].add
        for member in members:
            add(member)

    def _remove_members(self, name: str, members: Iterable[desired.Member]) -> None:
        self._touched.add(name)
        remove = self._sets[name].remove
        for member in members:
            remove(member)


def _members(item: Item, source: Source) -> Iterable[desired.Member]:
    if isinstance(source, ServiceSource) or not source.port_name:
        return item.nets
    return [
        desired.AddressPort(net.partition("/")[0], number, port.port)
        for port in item.ports
        if port.name == source.port_name
        and (number := _number(port.protocol)) is not None
        and source.protocol in (ANY_PROTOCOL, _NAMES[number])
        for net in item.nets
    ]


_TCP = PROTOCOLS["tcp"]
_PROTOCOLS_WITH_PORTS = {name: PROTOCOLS[name] for name in ("tcp", "udp", "sctp")}
_NAMES = {number: name for name, number in _PROTOCOLS_WITH_PORTS.items()}


def _number(protocol: str | int) -> int | None:
    """The number of a protocol that has ports."""
    if isinstance(protocol, str):
        return _PROTOCOLS_WITH_PORTS.get(protocol.lower())
    return protocol if protocol in _NAMES else None


def _service(value: feed.Slice) -> str:
    labels = value.metadata.labels or {}
    return f"{value.metadata.namespace}/{labels.get('kubernetes.io/service-name', '')}"


def _slice_members(value: feed.Slice, source: Source) -> list[desired.Member]:
    """The members that a slice brings; addresses that are names of hosts are left out."""
    addresses = [
        net
        for endpoint in value.endpoints or ()
        for address in endpoint.addresses or ()
        if (net := _host_net_or_none(address)) is not None
    ]
    if isinstance(source, ServiceSource) and not source.with_ports:
        return list(addresses)
    return [
        desired.AddressPort(net.partition("/")[0], _number(port.protocol or "tcp") or _TCP, port.port)
        for port in value.ports or ()
        if port.port is not None
        for net in addresses
    ]


def _host_net_or_none(text: str) -> str | None:
    try:
        return nets.host_net(text)
    except ValueError:
        return None
