"""The recordings of Calico's Felix in tests/golden/felix: what it calculates on each node from a cluster's objects.

Each file has the recordings of one group: hand-made states (scenarios) and series of steps (sequences), random clusters
(random), series of random changes (changes), and random nodes, pools and blocks (routes).
"""

import functools
import json
import lzma
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cache import objects as api_objects
from cache.feeds.calico import syncers
from clients.agents.node import desired, judge
from clients.agents.node.objects import KeyValue
from clients.agents.node.rules import PROTOCOLS
from tests.harness import corpus, repository

GROUPS = ("changes", "random", "routes", "scenarios", "sequences")
ROUTE_FIELDS = (
    *("types", "ip_pool_type", "dst_node_name", "dst_node_ip", "same_subnet", "nat_outgoing"),
    *("local_workload", "borrowed", "tunnel_type"),
)
VTEP_FIELDS = ("ipv4_addr", "mac", "parent_device_ip", "ipv6_addr", "mac_v6", "parent_device_ipv6")
TIERS = ("tiers", "untracked_tiers", "pre_dnat_tiers", "forward_tiers")
SETS_WITH_NETS_IN_NETS = frozenset({"config-iptables"})
"""Recordings in which Felix keeps members that lie within others; elsewhere it leaves them out, as the agent does."""

_HALVES = {"0.0.0.0/0": ("0.0.0.0/1", "128.0.0.0/1"), "::/0": ("::/1", "8000::/1")}
"""What Felix writes instead of the networks that contain everything."""
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

Recording = dict[str, Any]


@functools.cache
def load(group: str) -> dict[str, Recording]:
    """The recordings of a group by name."""
    loaded: dict[str, Recording] = json.loads(
        lzma.decompress((repository.GOLDEN_FELIX / f"{group}.json.xz").read_bytes())
    )
    return loaded


def steps_of(recording: Recording) -> list[list[KeyValue]]:
    """The changes of the feed in each step."""
    return list(judge.feed_of(recording, convert_steps))


def convert_steps(objects: list[Any], events: list[Any]) -> dict[int, list[KeyValue]]:
    """What `typha convert --deltas` prints, without a process."""
    is_v3 = any(entry["apiVersion"] == syncers.Group.V3.value for entry in objects)
    replay = corpus.Replay(syncers.Group.V3 if is_v3 else syncers.Group.V1)
    steps: dict[int, list[KeyValue]] = {}

    def take(number: int) -> None:
        steps[number] = [
            KeyValue(item.key, None if item.value is None else item.value.encode())
            for item in replay.take(syncers.FELIX)
        ]

    for entry in objects:
        replay.apply(json.dumps(entry).encode(), api_objects.Origin.LIST)
    take(0)
    for number, event in enumerate(events, 1):
        raw = json.dumps(event["object"]).encode()
        if event["type"] == "DELETED":
            replay.delete(raw)
        else:
            replay.apply(raw, api_objects.Origin.EVENT)
        take(number)
    return steps


def states_of(expected: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The recorded states of a node, one for each step."""
    states: list[dict[str, Any]] = expected["states"] if "states" in expected else [expected["state"]]
    return states


def loose_entries(expected: Mapping[str, Any], step: int) -> dict[str, list[Any]]:
    """Entries, as `SECTION: KEY`, that Felix calculates differently by history, with all forms that were seen."""
    unstable = expected.get("unstable") or {}
    entries: dict[str, list[Any]] = unstable[step] if isinstance(unstable, list) else unstable
    return entries or {}


def differences(recorded: Mapping[str, Any], got: Mapping[str, Any], loose: Mapping[str, list[Any]]) -> Iterator[str]:
    """Where two states in the recorded form differ, but for loose entries that have a form that was seen."""
    for section, facet in _FACETS.items():
        wanted, found = recorded.get(section) or {}, got.get(section) or {}
        for key in sorted(wanted.keys() | found.keys()):
            forms = [wanted.get(key), *loose.get(f"{section}: {key}", ())]
            value = facet(found.get(key))
            if value not in [facet(form) for form in forms]:
                yield f"{section} {key}: recorded {facet(wanted.get(key))}, got {value}"


def verdict_differences(
    recorded: Mapping[str, Any], got: Mapping[str, Any], loose: Mapping[str, list[Any]]
) -> Iterator[str]:
    """Where two tables of verdicts differ; small letters mean the same as capitals."""
    for direction in ("ingress", "egress"):
        for endpoint, rows in recorded[direction].items():
            if f"endpoints: {endpoint}" in loose:
                continue
            for peer, letters in rows.items():
                found = got[direction].get(endpoint, {}).get(peer)
                if found is None or found != letters.upper():
                    yield f"{direction} {endpoint} {peer}: recorded {letters}, got {found}"


def recorded_sets(recorded: Mapping[str, Any]) -> dict[str, tuple[str, set[str]]]:
    """The sets that enforced policies name: type and members."""
    names = {
        name
        for key, policy in recorded["policies"].items()
        if not desired.is_staged(key)
        for rule in (*policy["inbound_rules"], *policy["outbound_rules"])
        for field, value in rule.items()
        if field.endswith("_set_ids")
        for name in value
    }
    found = {}
    for name in names:
        members = set(recorded["sets"][name]["members"])
        for whole, halves in _HALVES.items():
            if members.issuperset(halves):
                members = members.difference(halves) | {whole}
        found[name] = recorded["sets"][name]["type"], members
    return found


def sets_of(state: desired.State) -> dict[str, tuple[str, set[str]]]:
    """The sets of a state, with members as they are recorded."""
    return {name: (found.type.value, set(map(_member, found.members))) for name, found in state.sets.items()}


def _member(member: desired.Member) -> str:
    if isinstance(member, str):
        return member
    return f"{member.address},{_PROTOCOL_NAMES[member.protocol]}:{member.port}"


def _endpoint(value: dict[str, Any] | None) -> object:
    if value is None:
        return None
    tiers = {
        name: [
            (tier["name"], tier["default_action"] or "Deny", tier["ingress"], tier["egress"])
            for tier in value.get(name) or ()
        ]
        for name in TIERS
    }
    return tiers, list(value.get("profile_ids") or ())


def _fields(value: dict[str, Any] | None, names: tuple[str, ...]) -> object:
    return None if value is None else {name: value.get(name) or None for name in names}


_FACETS: dict[str, Callable[[dict[str, Any] | None], object]] = {
    "endpoints": _endpoint,
    "host_endpoints": _endpoint,
    "routes": lambda value: _fields(value, ROUTE_FIELDS),
    "vteps": lambda value: _fields(value, VTEP_FIELDS),
}
"""What is compared of an entry."""
