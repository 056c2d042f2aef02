"""What the desired state does to a packet: the same decision as the packet filter's, rule by rule. Pure."""

from typing import NamedTuple

from clients.agents.node import desired
from clients.agents.node.desired import Action, Direction
from clients.agents.node.nets import Net, parse_net
from clients.agents.node.rules import PROTOCOLS

_TCP, _UDP, _SCTP = PROTOCOLS["tcp"], PROTOCOLS["udp"], PROTOCOLS["sctp"]
_PORT_MAX = 0xFFFF
_PORT_DIGITS = 5
_PROTOCOLS_WITH_PORTS = frozenset({_TCP, _UDP, _SCTP, PROTOCOLS["udplite"]})
_ICMP_VERSIONS = {PROTOCOLS["icmp"]: desired.IPV4, PROTOCOLS["icmpv6"]: desired.IPV6}
SOURCE_PORT = 40000
"""The source port of packets that do not say: any that no policy is likely to name."""


class Flow(NamedTuple):
    """A kind of connection, without its ends."""

    protocol: int
    source_port: int = 0
    destination_port: int = 0
    icmp: desired.Icmp | None = None


class Packet(NamedTuple):
    """The first packet of a connection."""

    source: Net
    destination: Net
    flow: Flow

    @property
    def exists(self) -> bool:
        """Whether there is such a packet: ICMP belongs to one IP version."""
        version = self.source.version
        return self.destination.version == version == _ICMP_VERSIONS.get(self.flow.protocol, version)


class Step(NamedTuple):
    """What one tier, or one profile, said about a packet."""

    tier: str
    """Name of the tier; empty for profiles."""
    name: str
    """Key of the policy, or name of the profile; empty if the end of the tier decided."""
    rule: int
    """Number of the rule in its direction, from 0; -1 if none did."""
    action: Action


class Verdict(NamedTuple):
    """The decision about a packet at one endpoint in one direction."""

    allowed: bool
    steps: tuple[Step, ...]
    """What was passed on the way, and last what decided. Empty if nothing matched, which denies."""


class Judge:
    """Decides about packets by a desired state, which must not change meanwhile."""

    def __init__(self, state: desired.State, *, ignore_unsupported: bool = False) -> None:
        """With `ignore_unsupported` a condition that no packet filter can check counts as met."""
        self._state = state
        self._ignore_unsupported = ignore_unsupported
        self._nets: dict[str, Net] = {}
        self._net_sets: dict[str, dict[tuple[int, int], set[Net]]] = {}
        """The networks in sets, by version and length."""

    def verdict(
        self, tiers: tuple[desired.Tier, ...], profiles: tuple[str, ...], direction: Direction, packet: Packet
    ) -> Verdict:
        """The decision of an endpoint's tiers and profiles."""
        steps: list[Step] = []
        for tier in tiers:
            enforced = tier.enforced(direction)
            if not enforced:
                continue
            step = self._ask_policies(tier, enforced, direction, packet)
            steps.append(step)
            if step.action is not Action.PASS:
                return Verdict(step.action is Action.ALLOW, tuple(steps))
        for name in profiles:
            profile = self._state.profiles[name]
            rules = profile.ingress if direction is Direction.INGRESS else profile.egress
            found = self._first_match(rules, packet)
            if found >= 0:
                steps.append(Step("", name, found, rules[found].action))
                return Verdict(rules[found].action is Action.ALLOW, tuple(steps))
        return Verdict(False, tuple(steps))

    def _ask_policies(
        self, tier: desired.Tier, enforced: tuple[str, ...], direction: Direction, packet: Packet
    ) -> Step:
        for key in enforced:
            policy = self._state.policies[key]
            rules = policy.ingress if direction is Direction.INGRESS else policy.egress
            found = self._first_match(rules, packet)
            if found >= 0:
                return Step(tier.name, key, found, rules[found].action)
        return Step(tier.name, "", -1, tier.default_action)

    def _first_match(self, rules: tuple[desired.Rule, ...], packet: Packet) -> int:
        """Number of the first rule that decides; -1 if there is none."""
        for number, rule in enumerate(rules):
            if rule.action is not Action.LOG and self._may_decide(rule) and self.matches(rule, packet):
                return number
        return -1

    def _may_decide(self, rule: desired.Rule) -> bool:
        return not rule.unsupported or self._ignore_unsupported or rule.action is Action.DENY

    def matches(self, rule: desired.Rule, packet: Packet) -> bool:
        """Whether all conditions of a rule hold that a packet filter can check."""
        flow = packet.flow
        return (
            packet.source.version in rule.versions
            and rule.protocol in (None, flow.protocol)
            and (rule.not_protocol is None or rule.not_protocol != flow.protocol)
            and (rule.icmp is None or _is_icmp(rule.icmp, flow))
            and (rule.not_icmp is None or (flow.icmp is not None and not _is_icmp(rule.not_icmp, flow)))
            and self._holds(rule.source, flow.protocol, packet.source, flow.source_port)
            and self._holds(rule.destination, flow.protocol, packet.destination, flow.destination_port)
            and not self._touches(rule.not_source, flow.protocol, packet.source, flow.source_port)
            and not self._touches(rule.not_destination, flow.protocol, packet.destination, flow.destination_port)
        )

    def _holds(self, peer: desired.Peer, protocol: int, address: Net, port: int) -> bool:
        """Whether every part of some conditions holds."""
        if peer is desired.ANY:
            return True
        if peer.nets and not self._in_any_net(peer.nets, address):
            return False
        if not all(self._in_set(name, address) for name in peer.sets):
            return False
        if (peer.ports or peer.port_sets) and not self._has_port(peer, protocol, address, port):
            return False
        return all(self._in_port_set(name, protocol, address, port) for name in peer.service_sets)

    def _touches(self, peer: desired.Peer, protocol: int, address: Net, port: int) -> bool:
        """Whether any part of some negated conditions holds."""
        return peer is not desired.ANY and (
            self._in_any_net(peer.nets, address)
            or any(self._in_set(name, address) for name in peer.sets)
            or self._has_port(peer, protocol, address, port)
        )

    def _has_port(self, peer: desired.Peer, protocol: int, address: Net, port: int) -> bool:
        return protocol in _PROTOCOLS_WITH_PORTS and (
            any(first <= port <= last for first, last in peer.ports)
            or any(self._in_port_set(name, protocol, address, port) for name in peer.port_sets)
        )

    def _in_any_net(self, texts: tuple[str, ...], address: Net) -> bool:
        return any(self._net(text).contains(address) for text in texts)

    def _in_set(self, name: str, address: Net) -> bool:
        nets = self._net_sets.get(name)
        if nets is None:
            nets = self._net_sets[name] = {}
            for member in self._state.sets[name].members:
                if isinstance(member, str):
                    net = parse_net(member)
                    nets.setdefault(net[::2], set()).add(net)
        return any(
            version == address.version and address.widened(length) in found for (version, length), found in nets.items()
        )

    def _in_port_set(self, name: str, protocol: int, address: Net, port: int) -> bool:
        return desired.AddressPort(address.host, protocol, port) in self._state.sets[name].members

    def _net(self, text: str) -> Net:
        parsed = self._nets.get(text)
        if parsed is None:
            parsed = self._nets[text] = parse_net(text)
        return parsed


def _is_icmp(wanted: desired.Icmp, flow: Flow) -> bool:
    return flow.icmp is not None and flow.icmp.type == wanted.type and wanted.code in (None, flow.icmp.code)


def parse_flow(text: str) -> Flow:
    """Parses `tcp/80`, `udp/53 from 1000`, `icmp/8/0` or a bare protocol.

    Raises:
        ValueError: it is none of these.
    """
    flow, _, source_port = text.partition(" from ")
    name, *numbers = flow.split("/")
    protocol = PROTOCOLS.get(name.lower(), int(name) if name.isdecimal() else -1)
    if not 0 <= protocol <= 0xFF:
        raise ValueError(f"unknown protocol in {text!r}")
    values = [_number(number, text) for number in numbers]
    if protocol in _ICMP_VERSIONS and 1 <= len(values) <= 2:
        return Flow(protocol, icmp=desired.Icmp(values[0], values[1] if len(values) > 1 else 0))
    if len(values) > 1 or (not values and protocol in _PROTOCOLS_WITH_PORTS):
        raise ValueError(f"not a flow: {text!r} (such as tcp/80, udp/53 or icmp/8/0)")
    return Flow(protocol, _number(source_port, text) if source_port else SOURCE_PORT, values[0] if values else 0)


def _number(number: str, text: str) -> int:
    """A port, or a type or code of ICMP. Raises ValueError."""
    if not number.isascii() or not number.isdecimal() or len(number) > _PORT_DIGITS or int(number) > _PORT_MAX:
        raise ValueError(f"not a flow: {text!r}: {number!r} is no number from 0 to {_PORT_MAX}")
    return int(number)
