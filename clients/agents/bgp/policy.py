"""Which routes are sent, accepted and put into the kernel, as BIRD's expressions. Pure.

The expressions are made of parsed values only: addresses, numbers, and names of interfaces of a narrow alphabet.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

from clients.agents.bgp import resources, sessions
from clients.agents.bgp.resources import Community, JsonObject, Network, Node, State

_KNOWN_MEMBERS: Final = frozenset(
    {"action", "cidr", "matchOperator", "prefixLength", "source", "interface", "peerType"}
    | {"communities", "asPathPrefix", "operations"}
)
_INTERFACE = re.compile(r"[A-Za-z0-9_.\-*?]{1,15}")
_COMPARISONS: Final = {"Equal": "net = {0}", "NotEqual": "net != {0}", "In": "net ~ {0}", "NotIn": "net !~ {0}"}


@dataclass(frozen=True)
class Step:
    """If the condition holds, do the operations, and then decide."""

    condition: str
    operations: tuple[str, ...]
    verdict: str
    """accept or reject."""


@dataclass(frozen=True)
class Marking:
    """Communities that routes of a network are sent with."""

    network: Network
    operations: tuple[str, ...]


def markings(state: State, node: Node) -> tuple[list[Marking], dict[str, str]]:
    """The communities of BGPConfiguration, and what is wrong with them."""
    made, problems = [], {}
    for configuration in resources.configured(state, node.name):
        for advertised in configuration.prefix_advertisements:
            try:
                named = {one["name"]: one["value"] for one in configuration.communities}
                values = [resources.community(str(named.get(one, one))) for one in advertised["communities"]]
                made.append(Marking(resources.network(advertised["cidr"]), tuple(map(_add, values))))
            except (ValueError, TypeError, LookupError) as error:
                problems[f"prefixAdvertisements {str(advertised)[:60]}"] = f"malformed: {error!r}"[:200]
    return made, problems


def steps(state: State, session: sessions.Session, direction: str) -> tuple[list[Step], dict[str, str]]:
    """The rules of a session's BGPFilters in one direction, `import` or `export`, and what is wrong with them.

    A rule that is not understood accepts nothing; if it rejects, it rejects also what its unknown part would spare.
    """
    made: list[Step] = []
    problems: dict[str, str] = {}
    for name in session.filters:
        if name not in state.filters:
            problems[f"BGPFilter {name}"] = "does not exist: it restricts nothing"
            continue
        for number, rule in enumerate(state.filters[name].get(f"{direction}V4") or ()):
            if unknown := sorted(rule.keys() - _KNOWN_MEMBERS):
                problems[f"BGPFilter {name} {direction}V4[{number}]"] = f"not supported: {', '.join(unknown)}"
                if rule.get("action") == "Accept":
                    continue
            try:
                step = _step(rule, session)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                problems[f"BGPFilter {name} {direction}V4[{number}]"] = f"malformed, rejects all: {error!r}"[:200]
                step = Step("true", (), "reject")
            if step is not None:
                made.append(step)
    return made, problems


def _step(rule: JsonObject, session: sessions.Session) -> Step | None:
    """A rule, or None if it is for another type of peer."""
    if rule.get("peerType") and rule["peerType"] != ("iBGP" if session.is_internal else "eBGP"):
        return None
    verdict = {"Accept": "accept", "Reject": "reject"}[rule["action"]]
    operations = [_operation(one) for one in rule.get("operations") or ()]
    return Step(" && ".join(_conditions(rule)) or "true", tuple(operations), verdict)


def _conditions(rule: JsonObject) -> list[str]:
    conditions = []
    if rule.get("cidr"):
        network = resources.network(rule["cidr"])
        shown = str(network)
        if length := rule.get("prefixLength"):
            least = int(length.get("min", network.prefixlen))
            most = int(length.get("max", network.max_prefixlen))
            if not 0 <= least <= most <= network.max_prefixlen:
                raise ValueError(f"prefixLength {least} to {most}")
            shown = f"[ {network}{{{least},{most}}} ]"
        conditions.append(_COMPARISONS[rule["matchOperator"]].format(shown))
    if rule.get("source"):
        if rule["source"] != "RemotePeers":
            raise ValueError(f"source {rule['source'][:40]!r}")
        conditions.append("source = RTS_BGP")
    if rule.get("interface"):
        if not _INTERFACE.fullmatch(rule["interface"]):
            raise ValueError(f"interface {rule['interface'][:40]!r}")
        conditions.append(f'defined(ifname) && ifname ~ "{rule["interface"]}"')
    for value in (rule.get("communities") or {}).get("values") or ():
        wanted = resources.community(value)
        conditions.append(f"{_attribute(wanted)} ~ [ {_shown(wanted)} ]")
    if rule.get("asPathPrefix"):
        numbers = " ".join(str(_number(one)) for one in rule["asPathPrefix"])
        conditions.append(f"bgp_path ~ [= {numbers} * =]")
    return conditions


def _operation(operation: JsonObject) -> str:
    if value := (operation.get("addCommunity") or {}).get("value"):
        return _add(resources.community(value))
    if prefix := (operation.get("prependASPath") or {}).get("prefix"):
        return " ".join(f"bgp_path.prepend({_number(one)});" for one in reversed(prefix))
    raise ValueError(f"operation {', '.join(operation)[:40]!r}")


def _number(value: Any) -> int:
    number = resources.as_number(value)
    if number is None:
        raise ValueError("an AS number is missing")
    return number


def _attribute(value: Community) -> str:
    return "bgp_community" if len(value.numbers) == 2 else "bgp_large_community"


def _shown(value: Community) -> str:
    return f"({', '.join(map(str, value.numbers))})"


def _add(value: Community) -> str:
    return f"{_attribute(value)}.add({_shown(value)});"
