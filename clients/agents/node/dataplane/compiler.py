"""Turns what the node must have into the agent's table, difference by difference. Pure."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from clients.agents.node import desired, nets
from clients.agents.node.dataplane import base, policies
from clients.agents.node.dataplane.policies import PolicyChains
from clients.agents.node.dataplane.sets import AddressSets
from clients.agents.node.dataplane.table import Element, Table

INTERFACE_NAME = re.compile(r"cali[A-Za-z0-9_.-]{1,11}")
"""What the base chains' defaults cover, within the kernel's limit of 15 characters."""


class _Endpoint(NamedTuple):
    """What an endpoint needs of the table."""

    interface: str
    ingress: policies.Sequence
    egress: policies.Sequence
    addresses: frozenset[str]


class Compiler:
    """Keeps a table equal to what all updates add up to.

    Where something cannot be programmed as it is meant, packets are dropped: an endpoint whose interface has an
    unexpected name, or the name of another endpoint's, stays without a program.
    """

    def __init__(self) -> None:
        self.table = Table()
        self._sets = AddressSets(self.table)
        self._policies = PolicyChains(self.table)
        self._endpoints: dict[str, _Endpoint] = {}
        self._claims: dict[str, set[str]] = {}
        """Interfaces to the keys of the endpoints that have them. More than one: none of them is programmed."""
        self._placed: dict[str, _Endpoint] = {}
        """Interfaces to the endpoints that the maps and sources show."""
        self._pools: dict[str, desired.Pool] = {}
        self._vteps: dict[str, desired.Vtep] = {}
        for name, kind in base.SETS.items():
            self.table.put_set(name, kind)
        self._put_base(base.Defaults())

    def apply(self, update: desired.Update) -> None:
        """Changes the table by an update of what the node must have."""
        if update.settings is not None:
            self._put_base(base.defaults(update.settings))
        renamed = self._sets.apply(update.sets, update.members)
        self._policies.apply(update, renamed_sets=renamed, set_names=self._sets.names)
        for key in update.endpoints.removed:
            self._replace_endpoint(key, None)
        for key, endpoint in update.endpoints.set.items():
            self._replace_endpoint(key, endpoint)
        if update.pools:
            self._pools = _changed(self._pools, update.pools)
            masked = [cidr for cidr, pool in self._pools.items() if pool.masquerade]
            self._set_elements(base.POOLS, _disjoint(self._pools))
            self._set_elements(base.MASQUERADED, _disjoint(masked))
        if update.vteps:
            self._vteps = _changed(self._vteps, update.vteps)
            peers = {f"{vtep.parent_ipv4_address}/32" for vtep in self._vteps.values() if vtep.parent_ipv4_address}
            self._set_elements(base.VXLAN_PEERS, peers)

    def refused(self) -> list[str]:
        """Keys of endpoints that have no program, because of their interfaces."""
        return sorted(key for key, endpoint in self._endpoints.items() if endpoint.interface not in self._placed)

    def has_interface(self, name: str) -> bool:
        """Whether a workload has this interface."""
        return name in self._claims

    def _put_base(self, defaults: base.Defaults) -> None:
        for name, chain in base.chains(defaults).items():
            if self.table.chains.get(name) != chain:
                self.table.put_chain(name, chain)

    def _replace_endpoint(self, key: str, endpoint: desired.Endpoint | None) -> None:
        before = self._endpoints.pop(key, None)
        if endpoint is not None:
            now = self._endpoints[key] = _Endpoint(
                endpoint.interface,
                policies.program(endpoint, desired.Direction.INGRESS),
                policies.program(endpoint, desired.Direction.EGRESS),
                frozenset(net.removesuffix("/32") for net in endpoint.nets if ":" not in net and net.endswith("/32")),
            )
            self._policies.hold(now.ingress)
            self._policies.hold(now.egress)
            self._claims.setdefault(now.interface, set()).add(key)
        if before is not None:
            if endpoint is None or endpoint.interface != before.interface:
                self._claims[before.interface].discard(key)
            self._place(before.interface)
        if endpoint is not None:
            self._place(endpoint.interface)
        if before is not None:
            self._policies.release(before.ingress)
            self._policies.release(before.egress)

    def _place(self, interface: str) -> None:
        """Makes maps and sources say what they must about an interface."""
        claims = self._claims[interface]
        if not claims:
            del self._claims[interface]
        alone = len(claims) == 1 and INTERFACE_NAME.fullmatch(interface) is not None
        now = self._endpoints[next(iter(claims))] if alone else None
        before = self._placed.pop(interface, None)
        if now is not None:
            self._placed[interface] = now
        for name, elements_before, elements_now in (
            (base.INGRESS_PROGRAMS, _ingress(before), _ingress(now)),
            (base.EGRESS_PROGRAMS, _egress(before), _egress(now)),
            (base.SOURCES, _sources(before), _sources(now)),
        ):
            self.table.change_elements(
                name, added=elements_now - elements_before, removed=elements_before - elements_now
            )

    def _set_elements(self, name: str, wanted: set[str]) -> None:
        there = self.table.elements[name]
        self.table.change_elements(name, added=wanted - there, removed=there - wanted)


def _ingress(endpoint: _Endpoint | None) -> set[Element]:
    return set() if endpoint is None else {(endpoint.interface, endpoint.ingress.name)}


def _egress(endpoint: _Endpoint | None) -> set[Element]:
    return set() if endpoint is None else {(endpoint.interface, endpoint.egress.name)}


def _sources(endpoint: _Endpoint | None) -> set[Element]:
    return set() if endpoint is None else {(endpoint.interface, address) for address in endpoint.addresses}


def _changed(before: dict[str, desired.Value], changes: desired.Changes[desired.Value]) -> dict[str, desired.Value]:
    kept = {key: value for key, value in before.items() if key not in changes.removed}
    return {**kept, **changes.set}


def _disjoint(cidrs: Iterable[str]) -> set[str]:
    cover = nets.Cover()
    for cidr in {cidr for cidr in cidrs if ":" not in cidr}:
        cover.add(cidr)
    return cover.visible
