"""Rules of the feed turned into rules of a packet filter, and the sets of addresses that they need. Pure."""

import dataclasses
from typing import NamedTuple

from clients.agents.node import desired, feed, nets
from protocol import selector

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "udplite": 136}
"""Numbers of the IP protocols that have names in the feed."""
_PROTOCOLS_WITH_PORT_NAMES = {17: "udp", 132: "sctp"}
"""All others count as TCP for named ports."""
ANY_PROTOCOL = "any"
"""Stands for all protocols in sets of named ports."""
_PROTOCOL_VERSIONS = {"icmp": 4, "icmpv6": 6}
_VERSIONS = (desired.IPV4, desired.IPV6)
_ACTIONS = {
    "allow": desired.Action.ALLOW,
    "deny": desired.Action.DENY,
    "next-tier": desired.Action.PASS,
    "pass": desired.Action.PASS,
    "log": desired.Action.LOG,
}
_PORT_MAX = 0xFFFF
_BYTE_MAX = 0xFF


class SelectorSource(NamedTuple):
    """A set of the addresses of everything that a selector selects, or of its ports of one name."""

    selector: selector.Selector
    port_name: str = ""
    protocol: str = ""
    """Of the named ports: a name, or `any`."""

    @property
    def type(self) -> desired.SetType:
        """What the members are."""
        return desired.SetType.IP_AND_PORT if self.port_name else desired.SetType.NET


class ServiceSource(NamedTuple):
    """A set of the endpoint addresses of a service, with or without its ports."""

    service: str
    """NAMESPACE/NAME."""
    with_ports: bool

    @property
    def type(self) -> desired.SetType:
        """What the members are."""
        return desired.SetType.IP_AND_PORT if self.with_ports else desired.SetType.NET


Source = SelectorSource | ServiceSource
Sources = dict[str, Source]
"""Definitions of sets by name."""


def convert_rules(rules: list[feed.Rule] | None, sources: Sources) -> tuple[desired.Rule, ...]:
    """Converts rules in order, and adds the sets that they need to `sources`.

    Raises:
        ValueError: a selector, net or port does not parse.
    """
    return tuple(_convert(rule, sources) for rule in rules or ())


def protocol_number(protocol: str | int | None) -> int | None:
    """The number of an IP protocol.

    Raises:
        ValueError: the name is unknown, or the number is none of a protocol.
    """
    if protocol is None:
        return None
    number = protocol if isinstance(protocol, int) else PROTOCOLS.get(protocol.lower(), -1)
    if not 0 <= number <= _BYTE_MAX:
        raise ValueError(f"unknown protocol {protocol!r}")
    return number


def _convert(rule: feed.Rule, sources: Sources) -> desired.Rule:
    protocol = protocol_number(rule.protocol)
    source, not_source = _sides(
        sources,
        protocol,
        (rule.src_nets, rule.src_selector, rule.src_ports),
        (rule.not_src_nets, rule.not_src_selector, rule.not_src_ports),
    )
    destination, not_destination = _sides(
        sources,
        protocol,
        (rule.dst_nets, rule.dst_selector, rule.dst_ports),
        (rule.not_dst_nets, rule.not_dst_selector, rule.not_dst_ports),
    )
    if rule.src_service:
        name = f"service:{rule.src_service_ns}/{rule.src_service}"
        sources[name] = ServiceSource(f"{rule.src_service_ns}/{rule.src_service}", with_ports=False)
        source = dataclasses.replace(source, sets=(*source.sets, name))
    if rule.dst_service:
        name = f"service-ports:{rule.dst_service_ns}/{rule.dst_service}"
        sources[name] = ServiceSource(f"{rule.dst_service_ns}/{rule.dst_service}", with_ports=True)
        destination = dataclasses.replace(destination, service_sets=(name,))
    action = _ACTIONS.get(rule.action.lower())
    return desired.Rule(
        action=desired.Action.DENY if action is None else action,
        versions=_versions(rule),
        protocol=protocol,
        not_protocol=protocol_number(rule.not_protocol),
        icmp=_icmp(rule.icmp_type, rule.icmp_code),
        not_icmp=_icmp(rule.not_icmp_type, rule.not_icmp_code),
        source=source,
        destination=destination,
        not_source=not_source,
        not_destination=not_destination,
        unsupported=_unsupported(rule, action),
    )


def _icmp(type: int | None, code: int | None) -> desired.Icmp | None:
    if type is None:
        return None
    if not 0 <= type <= _BYTE_MAX or not 0 <= (code or 0) <= _BYTE_MAX:
        raise ValueError(f"not a type and code of ICMP: {type}, {code}")
    return desired.Icmp(type, code)


_Side = tuple[list[str] | None, str, list[str | int] | None]
"""Nets, selector and ports of one side of a rule."""


def _sides(
    sources: Sources, protocol: int | None, positive: _Side, negative: _Side
) -> tuple[desired.Peer, desired.Peer]:
    """The conditions on one end of a packet, and the negated ones.

    A negated selector is folded into a positive one, and the positive one into named ports, also negated ones. So a
    rule needs fewer sets, and an address that two endpoints share counts as the original counts it.
    """
    nets, text, ports = positive
    not_nets, not_text, not_ports = negative
    if text and not_text:
        text, not_text = f"({text}) && (!({not_text}))", ""
    parsed = selector.parse(text) if text else None
    ranges, names = _split_ports(ports)
    not_ranges, not_names = _split_ports(not_ports)
    of_names = _named_ports(sources, names, parsed, protocol)
    of_not_names = _named_ports(sources, not_names, parsed, protocol)
    needs_set = parsed is not None and (ranges or not names)
    return (
        _peer(
            nets=_checked(nets),
            sets=_selector_set(sources, parsed) if parsed is not None and needs_set else (),
            ports=ranges,
            port_sets=of_names,
        ),
        _peer(
            nets=_checked(not_nets),
            sets=_selector_set(sources, selector.parse(not_text)) if not_text else (),
            ports=not_ranges,
            port_sets=of_not_names,
        ),
    )


def _peer(
    nets: tuple[str, ...],
    sets: tuple[str, ...],
    ports: tuple[desired.PortRange, ...],
    port_sets: tuple[str, ...],
) -> desired.Peer:
    """Conditions; most rules have none on most sides, and share one value."""
    return desired.Peer(nets, sets, ports, port_sets) if nets or sets or ports or port_sets else desired.ANY


def _selector_set(sources: Sources, parsed: selector.Selector) -> tuple[str]:
    name = f"selector:{parsed.text}"
    sources[name] = SelectorSource(parsed)
    return (name,)


def _named_ports(
    sources: Sources, names: list[str], parsed: selector.Selector | None, protocol: int | None
) -> tuple[str, ...]:
    if not names:
        return ()
    if parsed is None:
        parsed = selector.parse("all()")
    spoken = ANY_PROTOCOL if protocol is None else _PROTOCOLS_WITH_PORT_NAMES.get(protocol, "tcp")
    found = []
    for port_name in names:
        name = f"port:{spoken}:{port_name}:{parsed.text}"
        sources[name] = SelectorSource(parsed, port_name, spoken)
        found.append(name)
    return tuple(found)


def _split_ports(ports: list[str | int] | None) -> tuple[tuple[desired.PortRange, ...], list[str]]:
    ranges, names = [], []
    for port in ports or ():
        if isinstance(port, int):
            ranges.append(_port_range(port, port))
        elif ":" in port:
            first, _, last = port.partition(":")
            ranges.append(_port_range(int(first), int(last)))
        elif port.isdecimal():
            ranges.append(_port_range(int(port), int(port)))
        else:
            names.append(port)
    return tuple(ranges), names


def _port_range(first: int, last: int) -> desired.PortRange:
    check_port(first)
    check_port(last)
    if first > last:
        raise ValueError(f"not a range of ports: {first}:{last}")
    return desired.PortRange(first, last)


def check_port(port: int) -> None:
    """Checks the number of a port.

    Raises:
        ValueError: there is no such port.
    """
    if not 0 <= port <= _PORT_MAX:
        raise ValueError(f"not a port: {port}")


def _checked(texts: list[str] | None) -> tuple[str, ...]:
    return tuple(str(nets.parse_net(text)) for text in texts or ())


def _versions(rule: feed.Rule) -> tuple[int, ...]:
    only = rule.ip_version
    if only is None and isinstance(rule.protocol, str):
        only = _PROTOCOL_VERSIONS.get(rule.protocol.lower())
    return tuple(
        version
        for version in _VERSIONS
        if only in (None, version)
        and all(
            _has_version(texts, version)
            for texts in (rule.src_nets, rule.dst_nets, rule.not_src_nets, rule.not_dst_nets)
        )
    )


def _has_version(texts: list[str] | None, version: int) -> bool:
    """Whether a list of nets leaves anything to compare in an IP version."""
    return not texts or any((":" in text) == (version == desired.IPV6) for text in texts)


def _unsupported(rule: feed.Rule, action: desired.Action | None) -> str:
    if action is None:
        return f"action {rule.action!r}"
    return "http" if rule.http is not None else ""
