"""One rule of a policy as rules of nftables. Pure.

nftables ANDs the matches of a rule, and so does Calico. Where Calico has alternatives (several ports, named ports
beside numbers), the result is one rule for each combination: a rule with an anonymous set costs the kernel more than
ten rules, because it looks at all other sets to name that one.
"""

import ipaddress
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from clients.agents.node import desired
from clients.agents.node.dataplane import statements
from clients.agents.node.dataplane.statements import Expression, Statement

ALTERNATIVES_LIMIT = 4
"""Ports or nets of one part that become rules of their own; more become an anonymous set."""

COMBINATIONS_COMMON = 16
"""Rules that one rule may become before all numbers and nets become anonymous sets."""

COMBINATIONS_LIMIT = 256
"""Rules that one rule may become at all. Only dozens of named ports on both sides need more.

Policies come from outside: a rule beyond it counts as one with a condition that cannot be checked.
"""

ICMP = 1
PROTOCOLS_WITH_PORTS = (6, 17, 132, 136)
"""TCP, UDP, SCTP and UDP-Lite, whose packets have the ports at the same place."""
LAST_PORT = 65535

Match = tuple[Statement, ...]
"""Statements that must all hold."""


def render(
    rule: desired.Rule, *, set_names: Mapping[str, str], label: str, in_tier: bool = True
) -> list[statements.FilterRule]:
    """The rules of nftables that do what a rule says for IPv4; none if it can match no packet.

    A rule with a condition that cannot be checked allows nothing, and denies as if the condition held.

    Args:
        set_names: names of sets in the kernel. A set that is absent is a condition that cannot be checked.
        label: for the comments.
        in_tier: the rule is one of a tier's policy. In a profile there is no next tier, and the action pass denies.
    """
    protocol = rule.protocol
    if rule.icmp is not None or rule.not_icmp is not None:
        protocol = ICMP if protocol is None else protocol
    if desired.IPV4 not in rule.versions or _is_impossible(rule, protocol):
        return []
    unknown = bool(rule.unsupported) or not rule.set_names <= set_names.keys()
    if unknown and rule.action is not desired.Action.DENY:
        return []
    sides = (
        (_Side(protocol, set_names, statements.SOURCE, statements.SOURCE_PORT), rule.source, rule.not_source),
        (
            _Side(protocol, set_names, statements.DESTINATION, statements.DESTINATION_PORT),
            rule.destination,
            rule.not_destination,
        ),
    )
    required = _protocol(rule, protocol)
    for side, peer, not_peer in sides:
        required += side.positive(peer) + side.negative(not_peer)
    groups: list[list[Match]] = []
    for limit, combinations in ((ALTERNATIVES_LIMIT, COMBINATIONS_COMMON), (1, COMBINATIONS_LIMIT)):
        groups = _icmp(rule)
        for side, peer, not_peer in sides:
            groups += side.alternatives(peer, not_peer, limit=limit)
        if math.prod(map(len, groups)) <= combinations:
            break
    else:
        if rule.action is not desired.Action.DENY:
            return []
        groups = []
    verdict = VERDICTS[rule.action]
    if rule.action is desired.Action.PASS and not in_tier:
        verdict = (statements.DROP,)
    return [
        statements.rule(label, *required, *itertools.chain.from_iterable(combination), *verdict)
        for combination in itertools.product(*groups)
    ]


VERDICTS: Mapping[desired.Action, Match] = {
    desired.Action.ALLOW: (statements.ACCEPT,),
    desired.Action.DENY: (statements.DROP,),
    desired.Action.PASS: (statements.SET_PASS_MARK, statements.RETURN),
    desired.Action.LOG: statements.LOG,
}
"""Accepting ends the chain of one direction only: the other direction has a base chain of its own."""


class _Side:
    """Renders the conditions on source or destination."""

    def __init__(
        self, protocol: int | None, set_names: Mapping[str, str], address: Expression, port: Expression
    ) -> None:
        self._has_ports = protocol in PROTOCOLS_WITH_PORTS
        self._may_have_ports = protocol is None or self._has_ports
        self._set_names = set_names
        self._address = address
        self._port = port
        self._address_and_port = statements.joined(address, statements.PROTOCOL, port)

    def positive(self, peer: desired.Peer) -> list[Statement]:
        """Conditions of which each must hold."""
        return [
            *(statements.match(self._address, name) for name in self._known(peer.sets)),
            *(statements.match(self._address_and_port, name) for name in self._known(peer.service_sets)),
        ]

    def negative(self, peer: desired.Peer) -> list[Statement]:
        """Conditions of which none may hold. Those on ports never do for a protocol without them."""
        conditions = [
            *(statements.no_match(self._address, statements.net(net)) for net in _ipv4(peer.nets)),
            *(statements.no_match(self._address, name) for name in self._known(peer.sets)),
        ]
        if self._may_have_ports:
            names = self._known((*peer.port_sets, *peer.service_sets))
            conditions += [statements.no_match(self._address_and_port, name) for name in names]
        if self._has_ports:
            conditions += [statements.no_match(self._port, _port(ports)) for ports in _merged(peer.ports)]
        return conditions

    def alternatives(self, peer: desired.Peer, not_peer: desired.Peer, *, limit: int) -> Iterable[list[Match]]:
        """Groups of conditions; one of each group must hold."""
        if peer.nets:
            nets = [str(net) for net in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, _ipv4(peer.nets)))]
            yield _any(nets, lambda value: (statements.match(self._address, value),), statements.net, limit)
        if peer.ports or peer.port_sets:
            numeric = _any(_merged(peer.ports), self._ports, _port, limit)
            names = [(statements.match(self._address_and_port, name),) for name in self._known(peer.port_sets)]
            yield [*numeric, *names]
        if not_peer.ports and self._may_have_ports and not self._has_ports:
            other = statements.no_match(
                self._port, statements.any_of([_port(ports) for ports in _merged(not_peer.ports)])
            )
            yield [(other,), (statements.no_match(statements.PROTOCOL, statements.any_of(PROTOCOLS_WITH_PORTS)),)]

    def _ports(self, value: object) -> Match:
        """A condition on the bytes at the ports' place, which only some protocols have."""
        matched = statements.match(self._port, value)
        if self._has_ports:
            return (matched,)
        return statements.match(statements.PROTOCOL, statements.any_of(PROTOCOLS_WITH_PORTS)), matched

    def _known(self, keys: Iterable[str]) -> list[str]:
        return [statements.named(self._set_names[key]) for key in keys if key in self._set_names]


def _is_impossible(rule: desired.Rule, protocol: int | None) -> bool:
    """Whether no packet can meet the conditions. `nft` refuses such rules, or cannot list them once they are in."""
    if (rule.icmp is not None or rule.not_icmp is not None) and protocol != ICMP:
        return True
    needs_ports = any(peer.ports or peer.port_sets or peer.service_sets for peer in (rule.source, rule.destination))
    return needs_ports and protocol is not None and protocol not in PROTOCOLS_WITH_PORTS


def _protocol(rule: desired.Rule, protocol: int | None) -> list[Statement]:
    required: list[Statement] = []
    if protocol is not None:
        required.append(statements.match(statements.PROTOCOL, protocol))
    if rule.not_protocol is not None:
        required.append(statements.no_match(statements.PROTOCOL, rule.not_protocol))
    if rule.icmp is not None:
        required.append(statements.match(statements.ICMP_TYPE, rule.icmp.type))
        if rule.icmp.code is not None:
            required.append(statements.match(statements.ICMP_CODE, rule.icmp.code))
    return required


def _icmp(rule: desired.Rule) -> list[list[Match]]:
    """A negated type holds for other types and other codes of ICMP. Packets that are not ICMP have neither."""
    if rule.not_icmp is None:
        return []
    alternatives: list[Match] = [(statements.no_match(statements.ICMP_TYPE, rule.not_icmp.type),)]
    if rule.not_icmp.code is not None:
        alternatives.append((statements.no_match(statements.ICMP_CODE, rule.not_icmp.code),))
    return [alternatives]


def _any(
    values: Sequence[desired.PortRange] | Sequence[str],
    matched: Callable[[object], Match],
    right: Callable[..., object],
    limit: int,
) -> list[Match]:
    """Alternatives for disjoint values: one for each, or a single one with an anonymous set for many."""
    if len(values) > limit:
        return [matched(statements.any_of([right(value) for value in values]))]
    return [matched(right(value)) for value in values]


def _ipv4(nets: Iterable[str]) -> list[str]:
    return [net for net in nets if ":" not in net]


def _merged(ports: Iterable[desired.PortRange]) -> list[desired.PortRange]:
    """The same ports as ranges that do not overlap."""
    merged: list[desired.PortRange] = []
    for first, last in sorted(ports):
        if merged and first <= merged[-1].last + 1:
            merged[-1] = desired.PortRange(merged[-1].first, max(last, merged[-1].last))
        else:
            merged.append(desired.PortRange(first, last))
    return merged


def _port(ports: desired.PortRange) -> object:
    return ports.first if ports.first == ports.last else {"range": [ports.first, ports.last]}
