"""The measurement of latency: its percentiles, and a small run of all of it."""

import re
import subprocess
import sys

import pytest

from loadtest.crash_course.latency import Figure
from tests.harness.repository import ROOT


def test_percentiles_are_times_that_were_seen() -> None:
    figure = Figure("x", [number / 100 for number in range(1, 101)])
    assert (figure.percentile(0.5), figure.percentile(0.99), figure.percentile(1.0)) == (0.5, 0.99, 1.0)
    assert Figure("x", [0.25]).percentile(0.5) == 0.25


@pytest.mark.namespaces
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_everything_is_measured() -> None:
    command = [sys.executable, "-m", "loadtest.crash_course.latency", "--policies", "2", "--pods", "1", "--pools", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # The exit code says whether the goal is reached, which a busy machine need not.
    assert "Traceback" not in done.stderr, done.stderr
    assert len(re.findall(r"^(?:policy|pod|CNI ADD|pool) .* \d+ +\d+ +\d+ +\d+$", done.stdout, re.MULTILINE)) == 6, done
