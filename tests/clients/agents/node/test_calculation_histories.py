"""Random histories: the state depends on the map only, and an update holds real differences and nothing else."""

import copy
import functools
import random

import pytest

from clients.agents.node import desired
from clients.agents.node.calculation import Calculation
from tests.harness import felix_recordings as recordings

NODE = "n1"
SOURCES = (
    *(("random", name) for name in ("seed-000", "seed-001", "seed-003", "seed-004", "seed-006", "seed-007")),
    *(("routes", name) for name in ("routes-000", "routes-001", "routes-003", "routes-004", "routes-006")),
    *(("scenarios", name) for name in ("hep-tiers", "mix-everything", "svc-slices", "pod-dual-stack", "set-overlap")),
    *(("scenarios", name) for name in ("route-nested-pools", "route-borrowed", "pod-spoof-refused", "pod-extras")),
)
GARBAGE = (b"{", b"null", b"[]", b"\xff\xfe", b'{"selector": "("}', b'{"cidr": "x"}', b'{"name": "../x"}', b"true")
SETTINGS = {
    "/calico/v1/config/BPFEnabled": (b"true", b"false", b"perhaps"),
    "/calico/v1/config/VXLANEnabled": (b"true", b"false"),
    "/calico/v1/config/RouteSource": (b"WorkloadIPs", b"CalicoIPAM"),
    "/calico/v1/config/WorkloadSourceSpoofing": (b"Any", b"Disabled"),
    "/calico/v1/config/ProgramClusterRoutes": (b"Enabled", b"Disabled"),
    f"/calico/v1/host/{NODE}/config/IPv4VXLANTunnelAddr": (b"10.65.0.1", b"10.65.0.2"),
    "/calico/v1/Ready": (b"true", b"false"),
}
HISTORIES = 24
STEPS = 12


@functools.cache
def universe() -> dict[str, tuple[bytes, ...]]:
    """Keys of several clusters, with all values that they have there."""
    values: dict[str, set[bytes]] = {}
    for group, name in SOURCES:
        for changes in recordings.steps_of(recordings.load(group)[name]):
            for key, value in changes:
                if value is not None:
                    values.setdefault(key, set()).add(value)
    for key, settings in SETTINGS.items():
        values.setdefault(key, set()).update(settings)
    return {key: tuple(sorted(found)) for key, found in sorted(values.items())}


def from_scratch(known: dict[str, bytes], chance: random.Random) -> desired.State:
    calculation, state = Calculation(NODE), desired.State()
    items = list(known.items())
    chance.shuffle(items)
    for key, value in items:
        calculation.update(key, value)
    state.apply(calculation.take()[0])
    return state


def assert_real(before: desired.State, update: desired.Update, after: desired.State) -> None:
    """Every difference in an update is one, and every one is in it."""
    for section in desired.SECTIONS:
        old, new, changes = getattr(before, section), getattr(after, section), getattr(update, section)
        if section == "sets":
            assert changes.set.keys() == new.keys() - old.keys()
        else:
            assert changes.set == {key: value for key, value in new.items() if old.get(key) != value}
        assert changes.removed == old.keys() - new.keys()
    for name, change in update.members.items():
        old_members, new_members = set(before.sets[name].members), set(after.sets[name].members)
        assert change.added == frozenset(new_members - old_members)
        assert change.removed == frozenset(old_members - new_members)
    assert (update.settings is not None) == (before.settings != after.settings)
    assert bool(update) == (before != after)


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_random_histories(seed: int) -> None:
    chance = random.Random(seed)
    values = universe()
    keys = list(values)
    calculation, state = Calculation(NODE), desired.State()
    known: dict[str, bytes] = {}
    for step in range(STEPS):
        # A start with most of the keys, and then few changes at a time.
        for key in chance.sample(keys, len(keys) * 3 // 4 if step == 0 else chance.choice((1, 1, 3, 20))):
            value = chance.choice(values[key])
            match chance.randrange(4):
                case 0:
                    known.pop(key, None)
                    assert calculation.update(key, None) is None
                case 1 if step:
                    known.pop(key, None)
                    garbage = chance.choice(GARBAGE)
                    calculation.update(key, garbage)
                    known[key] = garbage
                case _:
                    known[key] = value
                    assert calculation.update(key, value) is None
        update, _ = calculation.take()
        before = copy.deepcopy(state)
        state.apply(update)
        assert_real(before, update, state)
        assert state == from_scratch(known, chance)
    for key in chance.sample(sorted(known), len(known)):
        calculation.update(key, None)
    update, _ = calculation.take()
    state.apply(update)
    assert state == desired.State()
    assert_nothing_is_left(calculation)


def assert_nothing_is_left(calculation: Calculation) -> None:
    """Nothing grows in an agent that runs for months: what has gone leaves no trace in any index."""
    owners = [calculation._sets, calculation._policies, calculation._routes, calculation]
    owners += [calculation._sets._index, calculation._policies._index]
    for owner in owners:
        for name, value in vars(owner).items():
            if isinstance(value, dict | set | list) and name != "_handlers":
                assert not value, f"{type(owner).__name__}.{name}: {value}"


def test_take_without_a_change_is_empty() -> None:
    calculation = Calculation(NODE)
    for key, values in universe().items():
        calculation.update(key, values[0])
    assert calculation.take()[0]
    for key, values in universe().items():
        calculation.update(key, values[-1])
        calculation.update(key, values[0])
    assert not calculation.take()[0]
