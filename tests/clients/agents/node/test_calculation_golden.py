"""The calculation equals what Calico's Felix calculated from the same objects: states, sets, routes and verdicts."""

from typing import Any

import pytest

from clients.agents.node import desired, judge
from clients.agents.node.calculation import Calculation
from tests.harness import felix_recordings as recordings

# A third is enough to notice a mistake; the rest takes four times as long as all other tests of the agent.
PARTS = [pytest.param(part, marks=[pytest.mark.slow] if part else []) for part in range(3)]


def nodes_of(group: str, part: int) -> list[tuple[str, recordings.Recording]]:
    """A third of a group's recordings."""
    return [
        (name, recording)
        for number, (name, recording) in enumerate(recordings.load(group).items())
        if number % len(PARTS) == part
    ]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("group", recordings.GROUPS)
def test_recordings(group: str, part: int) -> None:
    problems = []
    for name, recording in nodes_of(group, part):
        steps = recordings.steps_of(recording)
        for node, expected in recording["expect"].items():
            problems += [f"{name} on {node}: {problem}" for problem in problems_of(name, node, steps, expected)]
    assert problems == []


def problems_of(name: str, node: str, steps: list[Any], expected: dict[str, Any]) -> list[str]:
    problems = []
    calculation, state = Calculation(node), desired.State()
    known: dict[str, bytes] = {}
    recorded_states = recordings.states_of(expected)
    loose: dict[str, list[Any]] = {}
    for step, (changes, recorded) in enumerate(zip(steps, recorded_states, strict=True)):
        for key, value in changes:
            assert calculation.update(key, value) is None
            known.pop(key, None)
            if value is not None:
                known[key] = value
        update, refusals = calculation.take()
        state.apply(update)
        loose = recordings.loose_entries(expected, step)
        problems += [
            *refusals,
            *recordings.differences(recorded, judge.recorded_form(state), loose),
            *other_differences(recorded, state, compare_sets=name not in recordings.SETS_WITH_NETS_IN_NETS),
        ]
        if from_scratch(node, known) != state:
            problems.append(f"step {step} differs from a calculation from scratch")
    verdicts = expected.get("verdicts")
    if verdicts:
        got = judge.verdicts(state, verdicts["flows"], verdicts["addresses"])
        problems += recordings.verdict_differences(verdicts, got, loose)
    return problems


def other_differences(recorded: dict[str, Any], state: desired.State, *, compare_sets: bool) -> list[str]:
    settings = state.settings
    wanted_and_got = {
        "sets": (recordings.recorded_sets(recorded), recordings.sets_of(state)) if compare_sets else (None, None),
        "policies": ({key for key in recorded["policies"] if not desired.is_staged(key)}, set(state.policies)),
        "profiles": (set(recorded["profiles"]), set(state.profiles)),
        "interfaces": (
            {key: endpoint["name"] for key, endpoint in recorded["endpoints"].items()},
            {key: endpoint.interface for key, endpoint in state.endpoints.items()},
        ),
        "pools": (
            {pool["cidr"]: pool.get("masquerade", False) for pool in recorded["pools"].values()},
            {key: pool.masquerade for key, pool in state.pools.items()},
        ),
        "hosts": (
            {name: (host.get("ipv4_addr", ""), host.get("ipv6_addr", "")) for name, host in recorded["hosts"].items()},
            {name: (node.ipv4_net, node.ipv6_net) for name, node in state.nodes.items()},
        ),
        "encapsulation": (
            {name for name, needed in recorded["encapsulation"].items() if needed},
            {
                name
                for name, needed in (
                    ("vxlan_enabled", settings.vxlan),
                    ("vxlan_enabled_v6", settings.vxlan_v6),
                    ("ipip_enabled", settings.ipip),
                    ("no_encap_enabled", settings.no_encapsulation),
                )
                if needed
            },
        ),
        "ready": (not recorded.get("datastore_not_ready", False), settings.ready),
    }
    return [f"{what}: recorded {wanted}, got {got}" for what, (wanted, got) in wanted_and_got.items() if wanted != got]


def from_scratch(node: str, known: dict[str, bytes]) -> desired.State:
    """The state of a new calculation that gets the map in another order."""
    calculation, state = Calculation(node), desired.State()
    for key, value in sorted(known.items(), reverse=True):
        calculation.update(key, value)
    update, _ = calculation.take()
    state.apply(update)
    return state
