"""Seeds of the fleet's model, and defects that it finds."""

from collections.abc import Iterator
from unittest import mock

import pytest

from tests.simulation import fleet
from tests.simulation import world as worlds
from typha.hub import rebalancing
from typha.peers import freshness

BATCHES, BATCH = 5, 20
SEEDS_MAX = 200


@pytest.mark.parametrize("batch", range(BATCHES))
def test_clients_are_moved_for_a_reason_and_the_fleet_comes_to_rest(batch: int) -> None:
    moves = sum(len(fleet.run(seed).moves) for seed in range(batch * BATCH, (batch + 1) * BATCH))
    assert moves, "a batch in which nobody is moved checks little"


def never_settled(self: freshness.HandOverPolicy) -> float:
    return 0.0


def without_a_second_round(self: freshness.HandOverPolicy) -> float:
    return self.again_seconds


MUTATIONS: dict[str, tuple[object, str, object]] = {
    "the first that finds the API server again gets all": (
        freshness.HandOverPolicy,
        "settled_seconds",
        property(never_settled),
    ),
    "those that come back early stay": (
        freshness.HandOverPolicy,
        "second_round_seconds",
        property(without_a_second_round),
    ),
    "one that lost contact at the same time is fresh": (freshness, "FRESHER_SECONDS_MIN", -1e9),
    "one that was confirmed long ago is fresh": (freshness, "CONFIRMED_SECONDS_MAX", 1e9),
    "answers stay good": (freshness, "ANSWER_SECONDS_MAX", 1e9),
    "a replica may have less than its share": (rebalancing, "_HEADROOM_PERCENT", 60),
}


def failures(seeds: Iterator[int]) -> Iterator[worlds.Violation]:
    for seed in seeds:
        try:
            fleet.run(seed)
        except worlds.Violation as violation:
            yield violation


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_model_finds_a_defect(name: str) -> None:
    place, attribute, mutant = MUTATIONS[name]
    with mock.patch.object(place, attribute, mutant):
        assert next(failures(iter(range(SEEDS_MAX))), None) is not None
