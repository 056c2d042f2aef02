"""Recorded verdicts as probes: which packets must arrive, and why."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clients.agents.node import desired
from tests.harness import packet_lab
from tests.harness.felix_states import Json

INGRESS, EGRESS = "ingress", "egress"


class Case(NamedTuple):
    """A probe, whether it must arrive, and the verdicts that say so."""

    probe: packet_lab.Probe
    arrives: str | None
    """The interface on which it must arrive; None: nowhere."""
    because: str


@dataclass(frozen=True)
class Workloads:
    """The local workloads of a state, for a lab and for lookups."""

    state: desired.State

    def all(self) -> list[packet_lab.Workload]:
        """What the lab must set up."""
        return [packet_lab.Workload(found.interface, ipv4(found)) for found in self.state.endpoints.values()]

    def by_address(self) -> Mapping[str, str]:
        """Addresses to the keys of endpoints."""
        return {address: key for key, found in self.state.endpoints.items() for address in ipv4(found)}


def ipv4(endpoint: desired.Endpoint) -> tuple[str, ...]:
    """An endpoint's addresses of IPv4."""
    return tuple(net.removesuffix("/32") for net in endpoint.nets if ":" not in net)


def of(verdicts: Json, *, node: str, state: desired.State) -> list[Case]:
    """Probes for all recorded verdicts about local workloads and IPv4.

    A packet between two local workloads needs both verdicts. Left out is what says nothing about forwarded packets: a
    packet from the node itself always arrives.
    """
    return list(_cases(verdicts, f"node {node}", state))


def _cases(verdicts: Json, own_node: str, state: desired.State) -> Iterator[Case]:
    addresses: Mapping[str, str] = verdicts["addresses"]
    names = {address: name for name, address in addresses.items()}
    local = Workloads(state).by_address()
    for direction, row in _rows(verdicts, state):
        key, peer, own = row.key, addresses.get(row.peer, ""), addresses.get(row.own, "") or row.own
        if peer.count(".") != 3 or own.count(".") != 3 or row.peer == own_node or local.get(peer) == key:
            continue
        peer_key = local.get(peer)
        reverse: Sequence[str] | None = None
        if peer_key is not None:
            reverse = _reverse(verdicts, direction, peer_key, names.get(own, own))
            if reverse is None:
                continue
        for position, (text, letter) in enumerate(zip(verdicts["flows"], row.letters, strict=True)):
            if letter == "-" or text.startswith("icmpv6"):
                continue
            other = "A" if reverse is None else reverse[position]
            sender = key if direction == EGRESS else peer_key
            via = packet_lab.UPLINK if sender is None else state.endpoints[sender].interface
            source, destination = (own, peer) if direction == EGRESS else (peer, own)
            receiver = key if direction == INGRESS else peer_key
            to = packet_lab.UPLINK if receiver is None else state.endpoints[receiver].interface
            yield Case(
                packet_lab.Probe(via, source, destination, packet_lab.flow(text)),
                to if letter in "Aa" and other in "Aa" else None,
                f"{direction} of {key}, peer {row.peer}, {text}: {letter}, other end {other}",
            )


class _Row(NamedTuple):
    key: str
    peer: str
    own: str
    letters: str


def _rows(verdicts: Json, state: desired.State) -> Iterator[tuple[str, _Row]]:
    for direction in (INGRESS, EGRESS):
        for key, rows in verdicts[direction].items():
            if key in state.endpoints:
                for text, letters in rows.items():
                    peer, _, own = text.partition(" > ")
                    addresses = ipv4(state.endpoints[key])
                    yield direction, _Row(key, peer, own or (addresses[0] if addresses else ""), letters)


def _reverse(verdicts: Json, direction: str, peer_key: str, own_name: str) -> str | None:
    """The verdicts at the other end, which is local too."""
    rows = verdicts[INGRESS if direction == EGRESS else EGRESS].get(peer_key, {})
    return next((letters for text, letters in rows.items() if text.partition(" > ")[0] == own_name), None)
