"""Explains to people why a connection is allowed or denied: which tier, policy and rule decides at either end. Pure.

Both ends are judged, each as its own node does: egress where the connection begins, ingress where it ends.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from clients.agents.node import desired, feed, verdict
from clients.agents.node.calculation import Calculation
from clients.agents.node.desired import Action, Direction
from clients.agents.node.nets import Net, parse_address
from clients.agents.node.rules import PROTOCOLS

_DEFAULT_NAMESPACE = "default"
_DECIDED = {Action.ALLOW: "allowed", Action.DENY: "denied", Action.PASS: "passed", Action.LOG: "logged"}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_SHOWN_MEMBERS = 3
_TO_HOST_SETTING, _TO_HOST_DEFAULT = "DefaultEndpointToHostAction", "Drop"
_TO_HOST_OPEN = frozenset({"accept", "return"})


class NotThere(LookupError):
    """The feed has no such pod, or no addresses that can talk to each other. The message says what is missing."""


class End(NamedTuple):
    """One end of a connection."""

    name: str
    """NAMESPACE/POD, or the address itself."""
    addresses: tuple[Net, ...]
    node: str = ""
    """The node of a pod; empty for other addresses, which have no policy of their own here."""
    key: str = ""
    """The key of a pod's endpoint."""


class Side(NamedTuple):
    """The decision at one end."""

    end: End
    direction: Direction
    endpoint: desired.Endpoint
    state: desired.State
    verdict: verdict.Verdict
    of_own_node: bool
    """Whether the other end is the pod's own node, for which there are other rules."""

    @property
    def allowed(self) -> bool:
        """Whether this end allows the connection. Between a pod and its own node more counts than policies do."""
        if not self.of_own_node:
            return self.verdict.allowed
        if self.direction is Direction.INGRESS:
            return True
        return self.verdict.allowed and self.action_to_host.lower() in _TO_HOST_OPEN

    @property
    def action_to_host(self) -> str:
        """What the settings do with packets from a pod to its own node."""
        values = {name.lower(): value for name, value in self.state.settings.values.items()}
        return values.get(_TO_HOST_SETTING.lower(), _TO_HOST_DEFAULT)


class Explanation(NamedTuple):
    """The decisions at the ends that have policies."""

    source: End
    destination: End
    packet: verdict.Packet
    sides: tuple[Side, ...]

    @property
    def allowed(self) -> bool:
        """Whether both ends allow the connection."""
        return all(side.allowed for side in self.sides)


def explain(values: Mapping[str, bytes], source: str, destination: str, flow: verdict.Flow) -> Explanation:
    """Judges a connection by the feed's map.

    Raises:
        NotThere: an end is not there, or the ends have no addresses of the same IP version.
    """
    pods = dict(_pods(values))
    ends = _find(pods, source), _find(pods, destination)
    packet = next(
        (
            packet
            for own in ends[0].addresses
            for peer in ends[1].addresses
            if (packet := verdict.Packet(own, peer, flow)).exists
        ),
        None,
    )
    if packet is None:
        raise NotThere(f"{source} and {destination} have no addresses between which there is such a connection")
    states = {node: _state(values, node) for node in {end.node for end in ends if end.node}}
    sides = tuple(
        _side(end, direction, states[end.node], packet)
        for end, direction in zip(ends, (Direction.EGRESS, Direction.INGRESS), strict=True)
        if end.node
    )
    return Explanation(*ends, packet, sides)


def render(explanation: Explanation) -> str:
    """Writes an explanation for people."""
    source, destination, packet, sides = explanation
    ends = f"{_end(source, packet.source)} -> {_end(destination, packet.destination)}"
    lines = [f"{ends}, {_flow(packet.flow)}: {'ALLOWED' if explanation.allowed else 'DENIED'}"]
    for side in sides:
        allowed = "allowed" if side.allowed else "denied"
        lines += ["", f"{side.direction.value.capitalize()} of {side.end.name}, on node {side.end.node}: {allowed}"]
        lines += [f"  {line}" for line in _steps(side)]
    if not sides:
        lines += ["", "Neither end is a pod: no policy of a workload applies."]
    return "\n".join(lines) + "\n"


# Ends


def _pods(values: Mapping[str, bytes]) -> Iterator[tuple[str, End]]:
    for text in values:
        key = feed.parse_key(text)
        if key is None or key.kind is not feed.Kind.WORKLOAD:
            continue
        try:
            endpoint = feed.decode_workload(values[text])
            nets = (*(endpoint.ipv4_nets or ()), *(endpoint.ipv6_nets or ()))
            addresses = tuple(parse_address(net) for net in nets)
        except ValueError:
            continue
        name = "/".join(key.name.split("/")[1:-1])
        yield name, End(name, addresses, key.node, key.name)


def _find(pods: Mapping[str, End], text: str) -> End:
    """A pod by name, or by its address; any other address."""
    try:
        address = parse_address(str(ipaddress.ip_address(text)))
    except ValueError:
        found = pods.get(text if "/" in text else f"{_DEFAULT_NAMESPACE}/{text}")
        if found is None:
            raise NotThere(f"no pod {text} in the feed (host network, finished, or without an address?)") from None
        return found
    return next((end for end in pods.values() if address in end.addresses), End(text, (address,)))


def _state(values: Mapping[str, bytes], node: str) -> desired.State:
    calculation, state = Calculation(node), desired.State()
    for key, value in values.items():
        calculation.update(key, value)
    update, _ = calculation.take()
    state.apply(update)
    return state


def _side(end: End, direction: Direction, state: desired.State, packet: verdict.Packet) -> Side:
    endpoint = state.endpoints.get(end.key)
    if endpoint is None:
        raise NotThere(f"{end.name} is no valid endpoint of node {end.node}")
    decided = verdict.Judge(state).verdict(endpoint.tiers, endpoint.profiles, direction, packet)
    node = state.nodes.get(end.node, desired.Node())
    own_node = [parse_address(net) for net in (node.ipv4_net, node.ipv6_net) if net]
    other = packet.source if direction is Direction.INGRESS else packet.destination
    return Side(end, direction, endpoint, state, decided, of_own_node=other in own_node)


# Text


def _end(end: End, address: Net) -> str:
    return f"{end.name} ({address.host})" if end.node else end.name


def _flow(flow: verdict.Flow) -> str:
    name = _PROTOCOL_NAMES.get(flow.protocol, str(flow.protocol))
    if flow.icmp is not None:
        return f"{name} type {flow.icmp.type} code {flow.icmp.code}"
    return f"{name} port {flow.destination_port}" if flow.destination_port else name


def _steps(side: Side) -> Iterator[str]:
    if side.of_own_node and side.direction is Direction.INGRESS:
        yield "a node always reaches its own pods, whatever their policies say"
        return
    for tier in side.endpoint.tiers:
        staged = [_policy_name(key) for key in tier.policies(side.direction) if desired.is_staged(key)]
        if staged:
            yield f"tier {tier.name}: not enforced: {', '.join(staged)}"
    steps = side.verdict.steps
    if not steps or steps[0].tier == "":
        yield f"no enforced policy selects it for {side.direction.value}: its profiles decide"
    for step in steps:
        if not step.tier:
            yield f"profile {step.name}: {_DECIDED[step.action]} by rule {step.rule + 1}: {_rule(side, step)}"
        elif step.name:
            name = _policy_name(step.name)
            yield f"tier {step.tier}: {_DECIDED[step.action]} by {name}, rule {step.rule + 1}: {_rule(side, step)}"
        else:
            yield f"tier {step.tier}: {_DECIDED[step.action]} by its default action: {_asked(side, step.tier)}"
    if not steps or steps[-1].action is Action.PASS:
        yield f"denied at the end: no rule of its profiles matches ({', '.join(side.endpoint.profiles) or 'none'})"
    if side.of_own_node and side.verdict.allowed:
        yield f"to its own node: {_TO_HOST_SETTING} is {side.action_to_host}"


def _asked(side: Side, tier_name: str) -> str:
    tier = next(tier for tier in side.endpoint.tiers if tier.name == tier_name)
    names = [_policy_name(key) for key in tier.enforced(side.direction)]
    return f"no rule matches of {', '.join(names)}"


def _rule(side: Side, step: verdict.Step) -> str:
    rules: desired.Policy | desired.Profile
    rules = side.state.policies[step.name] if step.tier else side.state.profiles[step.name]
    chosen = rules.ingress if side.direction is Direction.INGRESS else rules.egress
    return describe(chosen[step.rule], side.state)


def _policy_name(key: str) -> str:
    kind, _, name = key.partition("/")
    return f"{kind} {name}"


def describe(rule: desired.Rule, state: desired.State) -> str:
    """A rule in words."""
    words: list[str] = [rule.action.value]
    if len(rule.versions) == 1:
        words.append(f"IPv{rule.versions[0]}")
    if rule.protocol is not None:
        words.append(_PROTOCOL_NAMES.get(rule.protocol, f"protocol {rule.protocol}"))
    if rule.not_protocol is not None:
        words.append(f"not {_PROTOCOL_NAMES.get(rule.not_protocol, f'protocol {rule.not_protocol}')}")
    words += [f"{sign}{_icmp(icmp)}" for sign, icmp in (("", rule.icmp), ("not ", rule.not_icmp)) if icmp is not None]
    for sign, preposition, peer in (
        ("", "from", rule.source),
        ("not ", "from", rule.not_source),
        ("", "to", rule.destination),
        ("not ", "to", rule.not_destination),
    ):
        words += [f"{sign}{preposition} {part}" for part in _peer(peer, state)]
    if len(words) == 1:
        words.append("everything")
    if rule.unsupported:
        words.append(f"(with a condition that no packet filter can check: {rule.unsupported})")
    return " ".join(words)


def _icmp(icmp: desired.Icmp) -> str:
    return f"type {icmp.type}" if icmp.code is None else f"type {icmp.type} code {icmp.code}"


def _peer(peer: desired.Peer, state: desired.State) -> Iterator[str]:
    if peer.nets:
        yield ", ".join(peer.nets)
    for name in peer.sets:
        yield f"{_set(name)} ({_members(state.sets[name].members)})"
    ports = [str(first) if first == last else f"{first}-{last}" for first, last in peer.ports]
    if ports:
        yield f"port {', '.join(ports)}"
    for name in peer.port_sets:
        yield f"{'or ' if ports else ''}{_set(name)} ({_members(state.sets[name].members)})"
    for name in peer.service_sets:
        yield f"{_set(name)} ({_members(state.sets[name].members)})"


def _set(name: str) -> str:
    """The name of a set in words (see `rules`)."""
    match name.split(":"):
        case ["selector", *text]:
            return ":".join(text)
        case ["port", protocol, port, *text]:
            return f"{protocol} port {port} of {':'.join(text)}"
        case ["service" | "service-ports", service]:
            return f"service {service}"
    return name


def _members(members: Iterable[desired.Member]) -> str:
    texts = sorted(member if isinstance(member, str) else f"{member.address} port {member.port}" for member in members)
    if not texts:
        return "no address"
    more = f" and {len(texts) - _SHOWN_MEMBERS} more" if len(texts) > _SHOWN_MEMBERS else ""
    return ", ".join(text.removesuffix("/32").removesuffix("/128") for text in texts[:_SHOWN_MEMBERS]) + more
