"""Recorded states of what the original calculates, as what a node must have."""

from collections.abc import Mapping, Sequence
from typing import Any

from clients.agents.node import desired

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv6": 58, "udplite": 136}
ACTIONS = {"allow": desired.Action.ALLOW, "deny": desired.Action.DENY, "log": desired.Action.LOG}

Json = Mapping[str, Any]


def state(recorded: Json) -> desired.State:
    """Reads one recorded state; sections that the data plane does not use are left out."""
    return desired.State(
        endpoints={key: _endpoint(value) for key, value in recorded.get("endpoints", {}).items()},
        policies={key: _policy(value) for key, value in recorded.get("policies", {}).items()},
        profiles={
            key: desired.Profile(_rules(value["inbound_rules"]), _rules(value["outbound_rules"]))
            for key, value in recorded.get("profiles", {}).items()
        },
        sets={key: _set(value) for key, value in recorded.get("sets", {}).items()},
        settings=desired.Settings(ready=True),
    )


def difference(before: desired.State, after: desired.State) -> desired.Update:
    """The update that leads from one state to another."""
    sections = {name: _changes(getattr(before, name), getattr(after, name)) for name in desired.SECTIONS}
    members = {
        key: desired.MemberChange(
            frozenset(described.members - before.sets[key].members),
            frozenset(before.sets[key].members - described.members),
        )
        for key, described in sections["sets"].set.items()
        if key in before.sets and before.sets[key].type == described.type
    }
    new_sets = {key: described for key, described in sections["sets"].set.items() if key not in members}
    sections["sets"] = desired.Changes(new_sets, sections["sets"].removed)
    settings = after.settings if after.settings != before.settings else None
    return desired.Update(**sections, members=members, settings=settings)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> desired.Changes[Any]:
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return desired.Changes(changed, frozenset(before.keys() - after.keys()))


def protocol_number(name: str) -> int:
    """The number of a protocol, by name or number."""
    return PROTOCOLS[name] if name in PROTOCOLS else int(name)


def _endpoint(value: Json) -> desired.Endpoint:
    return desired.Endpoint(
        value["name"],
        (*value.get("ipv4_nets", ()), *value.get("ipv6_nets", ())),
        tuple(value.get("profile_ids", ())),
        tuple(
            desired.Tier(
                tier["name"],
                desired.Action.PASS if tier.get("default_action") == "Pass" else desired.Action.DENY,
                tuple(tier.get("ingress", ())),
                tuple(tier.get("egress", ())),
            )
            for tier in value.get("tiers", ())
        ),
    )


def _policy(value: Json) -> desired.Policy:
    return desired.Policy(
        value.get("tier", ""),
        value.get("namespace", ""),
        _rules(value["inbound_rules"]),
        _rules(value["outbound_rules"]),
        value.get("original_selector", ""),
        value.get("untracked", False),
        value.get("pre_dnat", False),
    )


def _rules(rules: Sequence[Json]) -> tuple[desired.Rule, ...]:
    return tuple(map(_rule, rules))


def _rule(value: Json) -> desired.Rule:
    version = value.get("ip_version")
    versions: tuple[int, ...] = (desired.IPV4, desired.IPV6)
    if version is not None:
        versions = (desired.IPV4,) if version == "IPV4" else (desired.IPV6,)
    for part in ("src_net", "dst_net", "not_src_net", "not_dst_net"):
        if value.get(part):
            versions = tuple(v for v in versions if any((":" in net) is (v == desired.IPV6) for net in value[part]))
    return desired.Rule(
        ACTIONS.get(value["action"], desired.Action.PASS),
        versions,
        _protocol(value.get("protocol")),
        _protocol(value.get("not_protocol")),
        _icmp(value, ""),
        _icmp(value, "not_"),
        _peer(value, "src", ""),
        _peer(value, "dst", ""),
        _peer(value, "src", "not_"),
        _peer(value, "dst", "not_"),
    )


def _protocol(value: Json | None) -> int | None:
    return None if value is None else protocol_number(str(value.get("name", value.get("number"))))


def _icmp(value: Json, negation: str) -> desired.Icmp | None:
    both = value.get(f"{negation}icmp_type_code")
    if both is not None:
        return desired.Icmp(both.get("type", 0), both.get("code", 0))
    only = value.get(f"{negation}icmp_type")
    return None if only is None else desired.Icmp(only, None)


def _peer(value: Json, side: str, negation: str) -> desired.Peer:
    return desired.Peer(
        tuple(value.get(f"{negation}{side}_net", ())),
        tuple(value.get(f"{negation}{side}_ip_set_ids", ())),
        tuple(desired.PortRange(port["first"], port["last"]) for port in value.get(f"{negation}{side}_ports", ())),
        tuple(value.get(f"{negation}{side}_named_port_ip_set_ids", ())),
        tuple(value.get(f"{negation}{side}_ip_port_set_ids", ())),
    )


def _set(value: Json) -> desired.AddressSet:
    if value["type"] == "NET":
        return desired.AddressSet(desired.SetType.NET, set(value.get("members", ())))
    members: set[desired.Member] = set()
    for member in value.get("members", ()):
        address, _, rest = member.partition(",")
        protocol, _, port = rest.partition(":")
        members.add(desired.AddressPort(address, protocol_number(protocol), int(port)))
    return desired.AddressSet(desired.SetType.IP_AND_PORT, members)
