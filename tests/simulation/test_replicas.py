"""Runs the simulation of several replicas. `python -m tests.simulation --replicas SEED -v` repeats a failure."""

import pytest

from tests.simulation import replicas

SEEDS = 24
SEEDS_PER_TEST = 4


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_the_invariants_hold_with_several_replicas(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        replicas.run(seed)
