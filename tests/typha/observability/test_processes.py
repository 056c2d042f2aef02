"""The metrics of all processes together, read from real processes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from typha.observability import processes

ALLOCATED_BYTES = 50_000_000
CHILD = f"""
import os, sys, time
held = b"x" * {ALLOCATED_BYTES}
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
begun = time.process_time()
while time.process_time() - begun < 0.3: pass
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with made:
        assert made.stdout is not None
        assert made.stdout.readline() == b"ready\n"
        yield made
        made.kill()


def values(collector: processes.ProcessCollector) -> dict[str, float]:
    return {sample.name: sample.value for family in collector.collect() for sample in family.samples}


def test_what_a_process_uses_is_added(child: subprocess.Popen[bytes]) -> None:
    alone = values(processes.ProcessCollector(list))
    both = values(processes.ProcessCollector(lambda: [child.pid]))
    assert both["process_cpu_seconds_total"] >= alone["process_cpu_seconds_total"] + 0.3
    assert both["process_open_fds"] >= alone["process_open_fds"] + 200
    assert both["process_max_fds"] == 2 * alone["process_max_fds"]
    more = both["process_resident_memory_bytes"] - alone["process_resident_memory_bytes"]
    assert ALLOCATED_BYTES <= more <= 2 * ALLOCATED_BYTES
    assert both["process_virtual_memory_bytes"] > alone["process_virtual_memory_bytes"] + ALLOCATED_BYTES
    assert 0 < both["process_start_time_seconds"] == alone["process_start_time_seconds"]


def test_cpu_time_stays_when_a_process_ends(child: subprocess.Popen[bytes]) -> None:
    pids = [child.pid]
    collector = processes.ProcessCollector(lambda: pids)
    alone = values(processes.ProcessCollector(list))["process_cpu_seconds_total"]
    before = values(collector)["process_cpu_seconds_total"]
    child.kill()
    child.wait()
    assert values(collector)["process_cpu_seconds_total"] >= before
    pids.clear()
    assert values(collector)["process_cpu_seconds_total"] >= before
    assert values(processes.ProcessCollector(list))["process_cpu_seconds_total"] >= alone + 0.3


def test_shared_pages_count_once() -> None:
    own = processes.usage_of(os.getpid())
    assert own is not None
    assert own.file > 0
    twice = values(processes.ProcessCollector(lambda: [os.getpid()]))
    once = values(processes.ProcessCollector(list))
    assert twice["process_resident_memory_bytes"] - once["process_resident_memory_bytes"] < own.anonymous + own.file / 2


async def test_a_process_that_has_ended_is_left_out() -> None:
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    assert processes.usage_of(ended.pid) is None
    assert values(processes.ProcessCollector(lambda: [ended.pid]))["process_open_fds"] > 0
