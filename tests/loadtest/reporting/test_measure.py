"""Tests of loadtest.reporting.measure."""

import mmap
import os
import socket
import subprocess
import sys
import time

import pytest

from loadtest.reporting import measure

EXPOSITION = """# TYPE typha_disconnects_total counter
typha_disconnects_total{reason="client-closed"} 3.0
typha_disconnects_total{reason="bad-preface"} 2.0
# TYPE watches gauge
watches{type="a",verb="WATCH"} 1.0
watches{type="b",verb="WATCH"} 4.0
watches{type="b",verb="LIST"} 8.0
"""


def test_counters_are_summed_by_labels() -> None:
    counters = measure.Metrics(EXPOSITION)
    assert counters.total("typha_disconnects_total") == 5
    assert counters.total("typha_disconnects_total", reason="bad-preface") == 2
    assert counters.total("nothing") == 0
    assert counters.by_label("watches", "type") == {"a": 1, "b": 12}
    assert counters.by_labels("watches", "verb", "other") == {("WATCH", ""): 5, ("LIST", ""): 8}


def test_cpu_of_this_process_rises_with_work() -> None:
    meter = measure.CpuMeter()
    before = meter.sample([os.getpid()]).hub
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert 0.05 < meter.sample([os.getpid()]).hub - before < 5
    assert measure.cpu_seconds(2**22 + 1) == 0


def test_cpu_is_known_to_less_than_a_hundredth_of_a_second() -> None:
    """In a separate process, because threads of this one may have ended."""
    code = "import time\nwhile time.process_time() < 0.1: pass\nprint(time.process_time(), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    used = float(child.stdout.readline())
    assert measure.cpu_seconds(child.pid) == pytest.approx(used, abs=0.008)
    child.communicate(b"\n")


def test_a_meter_keeps_what_dead_processes_used() -> None:
    code = "import time\nwhile time.process_time() < 0.1: pass\nprint(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert measure.process_tree(os.getpid())[0] == os.getpid()
    assert child.pid in measure.process_tree(os.getpid())
    meter = measure.CpuMeter()
    hub, workers = meter.sample([os.getpid(), child.pid])
    child.communicate(b"\n")
    assert measure.process_tree(child.pid) == []
    assert meter.sample([os.getpid(), child.pid]).workers == workers > 0.05
    assert meter.sample([]).hub >= hub > 0


def test_memfd_pages_count_once() -> None:
    size = 8 * 1024 * 1024
    before = measure.memory([os.getpid()])
    file = os.memfd_create("test")
    os.ftruncate(file, size)
    try:
        with mmap.mmap(file, size) as mapped:
            mapped.write(bytes(size))
            after = measure.memory([os.getpid(), os.getpid()])
            assert after.memfd_bytes - before.memfd_bytes == size
        alone = measure.memory([os.getpid()])
        assert alone.memfd_bytes - before.memfd_bytes == size
        assert abs(alone.total_bytes - before.total_bytes - size) < size / 2
    finally:
        os.close(file)


def test_socket_memory_of_the_kernel() -> None:
    assert measure.kernel_socket_bytes() >= 0


def test_what_the_kernel_holds_of_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as server:
            assert measure.queued_bytes(port) == [0]
            server.sendall(b"x" * 1000)
            deadline = time.monotonic() + 10
            while measure.queued_bytes(port) != [1000] and time.monotonic() < deadline:
                time.sleep(0.001)  # until the acknowledgement arrives
            assert measure.queued_bytes(port) == [1000]
            client.recv(400)
            assert measure.queued_bytes(port) == [600]
