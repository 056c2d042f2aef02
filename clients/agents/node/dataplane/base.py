"""The chains in which packets enter the table: defaults, spoof protection, dispatch by interface. Pure.

Egress policy of the source and ingress policy of the destination stand in base chains of their own, one after the
other. So `accept` in a policy ends its direction only, and no mark has to carry the decision to the other one.

Without a program for its interface a workload can neither send nor receive: these chains are all that a node has before
the first program is in. The host itself always reaches its workloads.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from clients.agents.node import desired
from clients.agents.node.dataplane import statements
from clients.agents.node.dataplane.statements import Statement, match
from clients.agents.node.dataplane.table import Chain, Hook, Kind

WORKLOADS = "cali*"
"""Names of the host's ends of workloads' interfaces."""

INGRESS_PROGRAMS = "ingress-programs"
EGRESS_PROGRAMS = "egress-programs"
SOURCES = "workload-sources"
MASQUERADED = "pools-masqueraded"
POOLS = "pools"
VXLAN_PEERS = "vxlan-peers"

SETS: Mapping[str, Kind] = {
    INGRESS_PROGRAMS: Kind.VERDICTS,
    EGRESS_PROGRAMS: Kind.VERDICTS,
    SOURCES: Kind.SOURCES,
    MASQUERADED: Kind.NETS,
    POOLS: Kind.NETS,
    VXLAN_PEERS: Kind.ADDRESSES,
}

FROM_WORKLOAD = match(statements.IN_INTERFACE, WORKLOADS)
TO_WORKLOAD = match(statements.OUT_INTERFACE, WORKLOADS)
IPV6: Statement = match({"meta": {"key": "nfproto"}}, "ipv6")
TO_THIS_HOST: Statement = match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")

RAW_PRIORITY = -300
"""Before connection tracking: refused packets make no entries."""
EGRESS_PRIORITY = -20
INGRESS_PRIORITY = -10
"""Before the filters of other programs, which use 0."""
NAT_PRIORITY = 100

UDP = 17
DEFAULT_VXLAN_PORT = 4789
LAST_PORT = 65535
NO = frozenset({"false", "0", "no", "n", "f", ""})

HOST_ACTIONS: Mapping[str, Statement] = {
    "drop": statements.DROP,
    "accept": statements.ACCEPT,
    # The filters of other programs decide.
    "return": statements.RETURN,
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """The settings that the base chains depend on."""

    endpoint_to_host_action: str = "drop"
    vxlan_port: int | None = None
    """The port on which encapsulated packets are accepted from other nodes only; None: no VXLAN."""
    encrypted: bool = False
    """Packets of workloads must be encrypted on their way to other nodes. The agent cannot, so they are dropped."""


def defaults(settings: desired.Settings) -> Defaults:
    """Reads the settings. What they do not say, or say wrongly, is closed."""
    values = {name.lower(): value.strip().lower() for name, value in settings.values.items()}
    action = values.get("defaultendpointtohostaction", "")
    return Defaults(
        action if action in HOST_ACTIONS else "drop",
        (number(values.get("vxlanport", ""), 1, LAST_PORT) or DEFAULT_VXLAN_PORT) if settings.vxlan else None,
        values.get("wireguardenabled", "false") not in NO,
    )


def number(text: str, low: int, high: int) -> int | None:
    """A number within limits, or None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high else None


def chains(wanted: Defaults) -> dict[str, Chain]:
    """All base chains."""
    rule = statements.rule
    established = rule("connection is known", statements.connection_state("established", "related"), statements.ACCEPT)
    spoofed = statements.no_match(
        statements.joined(statements.IN_INTERFACE, statements.SOURCE), statements.named(SOURCES)
    )
    raw = [
        rule("IPv6 is not supported", FROM_WORKLOAD, IPV6, statements.DROP),
        rule("source is not the workload's", FROM_WORKLOAD, spoofed, statements.DROP),
    ]
    if wanted.vxlan_port is not None:
        raw.append(
            rule(
                "encapsulated by a stranger",
                match(statements.PROTOCOL, UDP),
                match(statements.DESTINATION_PORT, wanted.vxlan_port),
                TO_THIS_HOST,
                statements.no_match(statements.SOURCE, statements.named(VXLAN_PEERS)),
                statements.DROP,
            )
        )
    # Others may use this bit of the mark, too; policies must not take it for their own. All packets come through here.
    unmarked = rule("mark of another program", statements.HAS_PASS_MARK, statements.CLEAR_PASS_MARK)
    clear = rule(
        "encryption is not supported",
        FROM_WORKLOAD,
        statements.no_match(statements.OUT_INTERFACE, WORKLOADS),
        match(statements.DESTINATION, statements.named(POOLS)),
        statements.DROP,
    )
    egress = (
        established,
        rule("no valid connection", FROM_WORKLOAD, statements.connection_state("invalid"), statements.DROP),
        unmarked,
        rule("egress policy", statements.dispatch(statements.IN_INTERFACE, EGRESS_PROGRAMS)),
        rule("workload without a program", FROM_WORKLOAD, statements.DROP),
    )
    ingress = (
        rule("IPv6 is not supported", TO_WORKLOAD, IPV6, statements.DROP),
        established,
        rule("no valid connection", TO_WORKLOAD, statements.connection_state("invalid"), statements.DROP),
        rule("ingress policy", statements.dispatch(statements.OUT_INTERFACE, INGRESS_PROGRAMS)),
        rule("workload without a program", TO_WORKLOAD, statements.DROP),
    )
    to_host = (
        established,
        rule("workload to host", FROM_WORKLOAD, HOST_ACTIONS[wanted.endpoint_to_host_action]),
    )
    masquerade = rule(
        "leaves the pools",
        match(statements.SOURCE, statements.named(MASQUERADED)),
        statements.no_match(statements.DESTINATION, statements.named(POOLS)),
        statements.MASQUERADE,
    )
    return {
        "raw": Chain(tuple(raw), Hook("filter", "prerouting", RAW_PRIORITY)),
        "forward-egress": Chain(
            (clear, *egress) if wanted.encrypted else egress, Hook("filter", "forward", EGRESS_PRIORITY)
        ),
        "forward-ingress": Chain(ingress, Hook("filter", "forward", INGRESS_PRIORITY)),
        "input-egress": Chain(egress, Hook("filter", "input", EGRESS_PRIORITY)),
        "input-host": Chain(to_host, Hook("filter", "input", INGRESS_PRIORITY)),
        "nat": Chain((masquerade,), Hook("nat", "postrouting", NAT_PRIORITY)),
    }
