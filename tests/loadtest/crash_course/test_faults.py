"""The faults as a user causes them, on a small scale, and that a loss is not overlooked."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from loadtest.crash_course import topology
from loadtest.crash_course.cluster import Pod
from loadtest.crash_course.faults import Row, text_of
from loadtest.crash_course.namespaces import Namespaces
from loadtest.crash_course.stream import Stream
from tests.harness.repository import ROOT

FAULTS = ("node agent of the sender", "replica changed", "API server away", "nftables", "churned", "used again")
PACKETS = 200
LIMIT_SECONDS = 60.0


@pytest.mark.namespaces
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_faults_that_cost_nothing() -> None:
    command = [sys.executable, "-m", "loadtest.crash_course.faults", "--away", "2", "--pods", "3"]
    done = subprocess.run(
        [*command, *(word for name in FAULTS for word in ("--only", name))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("ok ")]
    assert len(rows) == len(FAULTS)
    assert "ADD answers 11" in done.stdout


def test_a_row_with_a_loss_or_a_failed_check_is_no_success() -> None:
    good = Row("fault", sent=10)
    assert text_of(good).startswith("ok ")
    assert text_of(replace(good, lost=1)).startswith("FAIL")
    assert text_of(replace(good, lost=1, may_lose=True)).startswith("ok ")
    good.check(True, "this held")
    assert text_of(good).startswith("ok ")
    good.check(False, "that did not hold")
    assert text_of(good).startswith("FAIL")
    assert "FAILED: that did not hold" in text_of(good)


@pytest.fixture
def pods() -> Iterator[tuple[Namespaces, Pod, Pod]]:
    """Two namespaces with a wire between them."""
    node = topology.nodes(1)[0]
    one, two = Pod("one", node), Pod("two", node)
    one.address, two.address = "10.0.0.1", "10.0.0.2"
    with Namespaces("cn-stream") as spaces:
        spaces.add(one.sandbox, two.sandbox)
        spaces.ip(one.sandbox, f"link add eth0 type veth peer name eth0 netns {spaces.path(two.sandbox)}")
        for pod in (one, two):
            spaces.ip(pod.sandbox, f"address add {pod.address}/24 dev eth0", "link set dev eth0 up")
        yield spaces, one, two


@pytest.mark.namespaces
@pytest.mark.slow
def test_a_stream_counts_what_is_lost(pods: tuple[Namespaces, Pod, Pod]) -> None:
    spaces, one, two = pods
    with Stream(spaces, one, two, port=9000) as stream:
        wait_for(stream, PACKETS)
    assert stream.lost == 0
    with Stream(spaces, one, two, port=9000) as stream:
        wait_for(stream, PACKETS)
        spaces.ip(one.sandbox, "link set dev eth0 down")
        wait_for(stream, stream.sent + PACKETS)
    assert stream.lost >= PACKETS


def wait_for(stream: Stream, packets: int) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while stream.sent < packets:
        assert time.monotonic() < deadline
        time.sleep(0.01)
