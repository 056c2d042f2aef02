"""Answers a recording's questions in its own form: states step by step, and verdicts of flows.

The recordings say what Calico's Felix calculates from the same objects (tests/golden/felix).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from clients.agents.node import desired, objects, verdict
from clients.agents.node.calculation import Calculation
from clients.agents.node.nets import Net, parse_address

_HOST_PREFIX = "host:"
_ACTION_NAMES = {desired.Action.DENY: "Deny", desired.Action.PASS: "Pass"}


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """Answers one question: `node`, `objects` or `steps`, and perhaps `flows` and `addresses`.

    Raises:
        ConversionFailed: the objects cannot be converted.
    """
    return answer_feed(question, feed_of(question))


Convert = Callable[[list[Any], list[Any]], Mapping[int, list[objects.KeyValue]]]
"""Turns objects, and watch events after them, into changes of the feed, numbered by event; the objects are number 0."""


def feed_of(question: Mapping[str, Any], convert: Convert = objects.convert_steps) -> Iterator[list[objects.KeyValue]]:
    """The changes of the feed in each step of a question."""
    steps = question["steps"] if "steps" in question else [{"apply": question["objects"]}]
    known: dict[str, dict[str, Any]] = {}
    events: list[dict[str, Any]] = []
    ends = []
    for step in steps:
        for applied in step.get("apply") or ():
            events.append({"type": "MODIFIED" if _place(applied) in known else "ADDED", "object": applied})
            known[_place(applied)] = applied
        events.extend({"type": "DELETED", "object": known.pop(place)} for place in step.get("delete") or ())
        ends.append(len(events))
    first = [event["object"] for event in events[: ends[0]]]
    changes = convert(first, events[ends[0] :])
    yield changes.get(0, [])
    for begin, end in itertools.pairwise(ends):
        numbers = range(begin - ends[0] + 1, end - ends[0] + 1)
        yield [change for number in numbers for change in changes.get(number, ())]


def answer_feed(question: Mapping[str, Any], steps: Iterable[list[objects.KeyValue]]) -> dict[str, Any]:
    """Answers a question whose changes of the feed are known."""
    calculation = Calculation(question["node"])
    state = desired.State()
    states = []
    for changes in steps:
        for key, value in changes:
            calculation.update(key, value)
        update, _ = calculation.take()
        state.apply(update)
        states.append(recorded_form(state))
    result: dict[str, Any] = {"states": states}
    if "flows" in question:
        result["verdicts"] = verdicts(state, question["flows"], question["addresses"])
    return result


def recorded_form(state: desired.State) -> dict[str, Any]:
    """What recordings hold of a state: tiers and profiles of endpoints, routes, VTEPs."""
    return {
        "endpoints": {
            key: {"tiers": _tiers(endpoint.tiers), "profile_ids": list(endpoint.profiles)}
            for key, endpoint in state.endpoints.items()
        },
        "host_endpoints": {
            key: {
                "tiers": _tiers(endpoint.tiers),
                "untracked_tiers": _tiers(endpoint.untracked_tiers),
                "pre_dnat_tiers": _tiers(endpoint.pre_dnat_tiers),
                "forward_tiers": _tiers(endpoint.forward_tiers),
                "profile_ids": list(endpoint.profiles),
            }
            for key, endpoint in state.host_endpoints.items()
        },
        "routes": {
            destination: _without_defaults(
                types=list(route.types),
                ip_pool_type=route.pool_type.value,
                dst_node_name=route.node,
                dst_node_ip=route.node_address,
                same_subnet=route.same_subnet,
                nat_outgoing=route.nat_outgoing,
                local_workload=route.local_workload,
                borrowed=route.borrowed,
                tunnel_type=dict.fromkeys(route.tunnels, True),
            )
            for destination, route in state.routes.items()
        },
        "vteps": {
            node: _without_defaults(
                ipv4_addr=vtep.ipv4_address,
                mac=vtep.mac,
                parent_device_ip=vtep.parent_ipv4_address,
                ipv6_addr=vtep.ipv6_address,
                mac_v6=vtep.mac_v6,
                parent_device_ipv6=vtep.parent_ipv6_address,
            )
            for node, vtep in state.vteps.items()
        },
    }


def verdicts(state: desired.State, flows: Iterable[str], addresses: Mapping[str, str]) -> dict[str, Any]:
    """A letter for each flow between each local endpoint and each address: A allowed, D denied, - no such flow."""
    parsed_flows = [verdict.parse_flow(flow) for flow in flows]
    peers = {name: parse_address(address) for name, address in addresses.items()}
    judge = verdict.Judge(state, ignore_unsupported=True)
    endpoints: list[tuple[str, desired.Endpoint | desired.HostEndpoint, tuple[str, ...]]] = [
        *((key, endpoint, endpoint.nets) for key, endpoint in state.endpoints.items()),
        *((_HOST_PREFIX + name, endpoint, endpoint.addresses) for name, endpoint in state.host_endpoints.items()),
    ]
    result: dict[str, Any] = {"ingress": {}, "egress": {}}
    for key, endpoint, texts in endpoints:
        own = [parse_address(text) for text in texts]
        for direction in desired.Direction:
            rows: dict[str, str] = {}
            for peer, peer_address in peers.items():
                for own_address in own:
                    letters = "".join(
                        _letter(judge, endpoint, direction, flow, own_address, peer_address) for flow in parsed_flows
                    )
                    if len(own) == 1:
                        rows[peer] = letters
                    else:
                        names = (name for name, address in peers.items() if address == own_address)
                        rows.update({f"{peer} > {name}": letters for name in names})
            result[direction.value][key] = rows
    return result


def _letter(
    judge: verdict.Judge,
    endpoint: desired.Endpoint | desired.HostEndpoint,
    direction: desired.Direction,
    flow: verdict.Flow,
    own: Net,
    peer: Net,
) -> str:
    source, destination = (peer, own) if direction is desired.Direction.INGRESS else (own, peer)
    packet = verdict.Packet(source, destination, flow)
    if not packet.exists:
        return "-"
    return "A" if judge.verdict(endpoint.tiers, endpoint.profiles, direction, packet).allowed else "D"


def _tiers(tiers: tuple[desired.Tier, ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": tier.name,
            "default_action": _ACTION_NAMES[tier.default_action],
            "ingress": list(tier.ingress),
            "egress": list(tier.egress),
        }
        for tier in tiers
    ]


def _without_defaults(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _place(applied: Mapping[str, Any]) -> str:
    """How recordings name an object to delete."""
    metadata = applied["metadata"]
    group = applied["apiVersion"].partition("/")[0]
    return f"{applied['kind']}/{group}/{metadata.get('namespace') or ''}/{metadata['name']}"
