"""Runs the simulation with many seeds. `python -m tests.simulation SEED -v` repeats a failure."""

import os
import subprocess
import sys

import pytest

from tests.harness.repository import ROOT
from tests.simulation import simulation

SEEDS = 2000
SEEDS_PER_TEST = 50
FIRST_SEEDS = range(0, SEEDS, SEEDS_PER_TEST)
HAVE_FOUND = {
    7096: "a worker that had just started moved a subscribed client back to the end of its log",
    8103: "with all connections open, one more was not counted among what those without a hello take",
}
"""Seeds beyond the others that have found a defect."""


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST_SEEDS)
def test_the_invariants_hold_at_every_step(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        simulation.run(seed)


@pytest.mark.parametrize("seed", HAVE_FOUND)
def test_what_a_seed_has_found_stays_mended(seed: int) -> None:
    simulation.run(seed)


def test_there_are_thousands_of_seeds() -> None:
    assert len(FIRST_SEEDS) * SEEDS_PER_TEST == SEEDS >= 2000


@pytest.mark.slow
def test_a_seed_replays_exactly() -> None:
    """Processes with different hashes and addresses produce the same history."""
    printed = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "77", "-v"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        history, _, _ = done.stdout.rpartition("\n1 seeds")
        assert "receives status in-sync" in history
        printed.add(history)
    assert len(printed) == 1
