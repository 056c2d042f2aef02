"""The agent's table: what it must hold, what the kernel holds, and the transaction between the two. Pure.

One function makes all transactions: those for an update, those of a start, where the kernel may hold everything
already, and those that repair. They differ only in what is known about the kernel.
"""

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from clients.agents.node import desired
from clients.agents.node.dataplane import statements

FAMILY = "inet"
NAME = "typha-node"
"""The agent touches this table and no other."""

_HERE = {"family": FAMILY, "table": NAME}


class Kind(enum.Enum):
    """What the elements of a set are. The values are nft's types of the key."""

    ADDRESSES = ("ipv4_addr",)
    """CIDRs of single addresses, such as 10.0.0.1/32."""
    NETS = ("ipv4_addr", "interval")
    """CIDRs that do not overlap. Slower to change than ADDRESSES."""
    PORTS = ("ipv4_addr", "inet_proto", "inet_service")
    """`desired.AddressPort` values."""
    SOURCES = ("ifname", "ipv4_addr")
    """Pairs of an interface and an address."""
    VERDICTS = ("ifname", "verdict")
    """A map: pairs of an interface and the chain that its packets go to."""


Element = str | desired.AddressPort | tuple[str, str]


class Hook(NamedTuple):
    """Where the kernel enters a base chain. Packets that no rule decides about are accepted by it."""

    type: str
    hook: str
    prio: int


class Chain(NamedTuple):
    """A chain of the table."""

    rules: tuple[statements.FilterRule, ...]
    hook: Hook | None = None

    @property
    def identity(self) -> "ChainIdentity":
        """What a listing of the kernel shows of it."""
        return self.hook, tuple(rule.comment for rule in self.rules)


ChainIdentity = tuple[Hook | None, tuple[str, ...]]


@dataclass(slots=True)
class Found:
    """What a listing of the kernel shows."""

    chains: dict[str, ChainIdentity] = field(default_factory=dict)
    sets: dict[str, Kind | None] = field(default_factory=dict)
    """None: a set that the agent did not make, or that has an element which it did not make."""
    elements: dict[str, set[Element]] = field(default_factory=dict)
    other_objects: int = 0
    """Counters, flow tables and the like, which the agent did not make."""


class Table:
    """What the table must hold, and how what the kernel holds differs from it."""

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Kind] = {}
        self.elements: dict[str, set[Element]] = {}
        self.foreign = False
        """Whether the kernel's table has something that only a new table gets rid of."""
        self._exists = False
        self._kernel_chains: dict[str, ChainIdentity] = {}
        self._kernel_sets: dict[str, Kind] = {}
        self._changed_chains: set[str] = set()
        self._changed_sets: set[str] = set()
        """Sets that only one side has."""
        self._changed_elements: dict[str, dict[Element, bool]] = {}
        """For sets that both have: elements that the kernel lacks (True) or must lose (False)."""
        self._retired: dict[str, set[Element]] = {}
        """What was wanted of sets that were dropped and that the kernel still has."""

    def __bool__(self) -> bool:
        """Whether the kernel must change."""
        changed = self._changed_chains or self._changed_sets or self._changed_elements
        return self.foreign or not self._exists or bool(changed)

    def __repr__(self) -> str:
        elements = sum(map(len, self.elements.values()))
        return f"<Table chains={len(self.chains)} sets={len(self.sets)} elements={elements} differs={bool(self)}>"

    def put_chain(self, name: str, chain: Chain) -> None:
        """Adds a chain or replaces its rules."""
        self.chains[name] = chain
        self._compare_chain(name)

    def drop_chain(self, name: str) -> None:
        """Removes a chain. By the next transaction nothing may lead to it."""
        del self.chains[name]
        self._compare_chain(name)

    def put_set(self, name: str, kind: Kind, elements: Iterable[Element] = ()) -> None:
        """Adds a set."""
        wanted = set(elements)
        self.sets[name] = kind
        self.elements[name] = self._retired.pop(name, wanted)
        self._compare_set(name)
        if self.elements[name] is not wanted:
            before = self.elements[name]
            self.change_elements(name, added=wanted - before, removed=before - wanted)

    def drop_set(self, name: str) -> None:
        """Removes a set. By the next transaction no rule may name it."""
        del self.sets[name]
        elements = self.elements.pop(name)
        if name in self._kernel_sets:
            self._retired[name] = elements
        self._compare_set(name)

    def change_elements(self, name: str, *, added: Collection[Element] = (), removed: Collection[Element] = ()) -> None:
        """Changes the elements of a set. What is removed is there, and what is added is not."""
        elements = self.elements[name]
        elements.difference_update(removed)
        elements.update(added)
        if name not in self._kernel_sets:
            return
        changed = self._changed_elements.setdefault(name, {})
        for group, wanted in ((removed, False), (added, True)):
            for element in group:
                if changed.get(element) is (not wanted):
                    del changed[element]
                else:
                    changed[element] = wanted
        if not changed:
            del self._changed_elements[name]

    def compare(self, found: Found | None) -> None:
        """Takes what the kernel has, None for no such table, and forgets what was assumed about it."""
        self._exists = found is not None
        found = found or Found()
        self.foreign = bool(found.other_objects) or any(
            kind is None or self.sets.get(name, kind) is not kind for name, kind in found.sets.items()
        )
        self.foreign |= any(
            hook != self.chains[name].hook for name, (hook, _) in found.chains.items() if name in self.chains
        )
        self._kernel_chains = found.chains
        self._kernel_sets = {name: kind for name, kind in found.sets.items() if kind is not None}
        self._retired = {name: found.elements[name] for name in self._kernel_sets if name not in self.sets}
        self._changed_chains.clear()
        self._changed_sets.clear()
        self._changed_elements.clear()
        for name in self._kernel_chains.keys() | self.chains.keys():
            self._compare_chain(name)
        for name in self._kernel_sets.keys() | self.sets.keys():
            self._compare_set(name)
        for name in self._kernel_sets.keys() & self.sets.keys():
            there, wanted = found.elements[name], self.elements[name]
            if there != wanted:
                missing, superfluous = wanted - there, there - wanted
                self._changed_elements[name] = dict.fromkeys(missing, True) | dict.fromkeys(superfluous, False)

    def transaction(self) -> bytes:
        """What `nft -j -f -` must run to make the kernel equal."""
        commands: list[Mapping[str, Any]] = []
        if self.foreign:
            commands += [{"add": _table()}, {"delete": _table()}]
            self.compare(None)
        commands.append({"add": _table()})
        commands += self._set_commands()
        commands += self._chain_commands()
        # Verdicts lead to chains, so they come after the new chains and before the old ones go.
        commands += self._verdict_commands()
        old_chains = sorted(self._changed_chains - self.chains.keys())
        commands += [{"flush": {"chain": {**_HERE, "name": name}}} for name in old_chains]
        commands += [{"delete": {"chain": {**_HERE, "name": name}}} for name in old_chains]
        old_sets = sorted(self._changed_sets - self.sets.keys())
        commands += [{"delete": _set(name, self._kernel_sets[name])} for name in old_sets]
        return msgspec.json.encode({"nftables": commands})

    def committed(self) -> None:
        """The kernel has run the last transaction."""
        for name in self._changed_chains:
            if name in self.chains:
                self._kernel_chains[name] = self.chains[name].identity
            else:
                del self._kernel_chains[name]
        for name in self._changed_sets:
            if name in self.sets:
                self._kernel_sets[name] = self.sets[name]
            else:
                del self._kernel_sets[name]
        self._exists = True
        self.foreign = False
        self._retired.clear()
        self._changed_chains.clear()
        self._changed_sets.clear()
        self._changed_elements.clear()

    def start_over(self) -> None:
        """Makes the next transaction replace the whole table, whatever it holds."""
        self.foreign = True

    def _compare_chain(self, name: str) -> None:
        chain = self.chains.get(name)
        if (None if chain is None else chain.identity) == self._kernel_chains.get(name):
            self._changed_chains.discard(name)
        else:
            self._changed_chains.add(name)

    def _compare_set(self, name: str) -> None:
        if (name in self.sets) == (name in self._kernel_sets):
            self._changed_sets.discard(name)
        else:
            self._changed_sets.add(name)
            self._changed_elements.pop(name, None)

    def _set_commands(self) -> Iterable[Mapping[str, Any]]:
        """New sets with their elements, and the changes of others, except that maps of verdicts stay empty."""
        for name in sorted(self._changed_sets & self.sets.keys()):
            kind, elements = self.sets[name], self.elements[name]
            yield {"add": _set(name, kind, () if kind is Kind.VERDICTS else elements)}
        yield from self._element_commands(verdicts=False)

    def _verdict_commands(self) -> Iterable[Mapping[str, Any]]:
        for name in sorted(self._changed_sets & self.sets.keys()):
            if self.sets[name] is Kind.VERDICTS and self.elements[name]:
                yield {"add": _elements(name, Kind.VERDICTS, self.elements[name])}
        yield from self._element_commands(verdicts=True)

    def _element_commands(self, *, verdicts: bool) -> Iterable[Mapping[str, Any]]:
        """Removals first: the kernel refuses an element that overlaps one that is still there."""
        for name, changed in sorted(self._changed_elements.items()):
            kind = self._kernel_sets[name]
            if (kind is Kind.VERDICTS) is verdicts:
                for verb, wanted in (("delete", False), ("add", True)):
                    elements = [element for element, is_wanted in changed.items() if is_wanted is wanted]
                    if elements:
                        yield {verb: _elements(name, kind, elements)}

    def _chain_commands(self) -> Iterable[Mapping[str, Any]]:
        """All chains before the first rule: rules lead from one to another."""
        names = sorted(self._changed_chains & self.chains.keys())
        for name in names:
            hook = self.chains[name].hook
            base = {} if hook is None else {**hook._asdict(), "policy": "accept"}
            yield {"add": {"chain": {**_HERE, "name": name, **base}}}
        for name in names:
            if name in self._kernel_chains:
                yield {"flush": {"chain": {**_HERE, "name": name}}}
            for rule in self.chains[name].rules:
                expr = {"expr": rule.statements, "comment": rule.comment}
                yield {"add": {"rule": {**_HERE, "chain": name, **expr}}}


def read_listing(listing: bytes) -> Found:
    """Reads what `nft -j -n list table` prints."""
    found = Found()
    hooks: dict[str, Hook | None] = {}
    comments: dict[str, list[str]] = {}
    for entry in msgspec.json.decode(listing)["nftables"]:
        match entry:
            case {"metainfo": _} | {"table": _}:
                pass
            case {"chain": chain}:
                hooks[chain["name"]] = _read_hook(chain)
                comments.setdefault(chain["name"], [])
            case {"rule": rule}:
                comments.setdefault(rule["chain"], []).append(rule.get("comment", ""))
            case {"set": described} | {"map": described}:
                name, kind = described["name"], _read_kind(described)
                elements = {_read(kind, value) for value in described.get("elem", ())}
                found.sets[name] = None if None in elements else kind
                found.elements[name] = {element for element in elements if element is not None}
            case _:
                found.other_objects += 1
    found.chains = {name: (hook, tuple(comments[name])) for name, hook in hooks.items()}
    return found


def _table() -> Mapping[str, Any]:
    return {"table": {"family": FAMILY, "name": NAME}}


def _set(name: str, kind: Kind, elements: Iterable[Element] = ()) -> Mapping[str, Any]:
    described: dict[str, Any] = {**_HERE, "name": name}
    values = [_write(kind, element) for element in elements]
    if values:
        described["elem"] = values
    if kind is Kind.VERDICTS:
        return {"map": {**described, "type": "ifname", "map": "verdict"}}
    if kind is Kind.NETS:
        return {"set": {**described, "type": "ipv4_addr", "flags": ["interval"]}}
    return {"set": {**described, "type": kind.value[0] if len(kind.value) == 1 else list(kind.value)}}


def _elements(name: str, kind: Kind, elements: Iterable[Element]) -> Mapping[str, Any]:
    return {"element": {**_HERE, "name": name, "elem": [_write(kind, element) for element in elements]}}


def _write(kind: Kind, element: Element) -> object:
    if isinstance(element, str):
        return statements.net(element)
    if kind is Kind.VERDICTS:
        return [element[0], {"goto": {"target": element[1]}}]
    return {"concat": list(element)}


def _read(kind: Kind | None, value: Any) -> Element | None:
    """Reads an element. None: the agent cannot have made it."""
    match kind, value:
        case ((Kind.ADDRESSES | Kind.NETS), str(address)):
            return f"{address}/32"
        case Kind.NETS, {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case Kind.PORTS, {"concat": [str(address), int(protocol), int(port)]}:
            return desired.AddressPort(address, protocol, port)
        case Kind.SOURCES, {"concat": [str(interface), str(address)]}:
            return interface, address
        case Kind.VERDICTS, [str(interface), {"goto": {"target": str(chain)}}]:
            return interface, chain
        case _:
            return None


def _read_hook(chain: Mapping[str, Any]) -> Hook | None:
    if "hook" not in chain:
        return None
    policy = "" if chain.get("policy") == "accept" else f" {chain.get('policy')}"
    return Hook(chain["type"], chain["hook"] + policy, chain["prio"])


def _read_kind(described: Mapping[str, Any]) -> Kind | None:
    key = described["type"] if isinstance(described["type"], list) else [described["type"]]
    flags = described.get("flags", [])
    parts = (*key, *([described["map"]] if "map" in described else []), *flags)
    return next((kind for kind in Kind if kind.value == parts), None)
