"""Tests of loadtest.reporting.measure."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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
    say = "print(time.process_time(), flush=True); input()"
    code = f"import time\nwhile time.process_time() < 0.1: pass\n{say}\n{say}"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdin is not None
    before = float(child.stdout.readline())
    measured = measure.cpu_seconds(child.pid)
    child.stdin.write(b"\n")
    child.stdin.flush()
    after = float(child.stdout.readline())
    assert before - 0.008 <= measured <= after + 0.008
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
    size = 32 * 1024 * 1024
    with processes_with_a_mapped_memfd(size) as pids:
        both = measure.memory(pids)
    assert both.memfd_bytes == size
    assert both.private_bytes < size  # two small interpreters, with no page of the file


@contextlib.contextmanager
def processes_with_a_mapped_memfd(size: int) -> Iterator[list[int]]:
    """Two processes that have one file of this size open and mapped. Their own memory does not change."""
    file = os.memfd_create("test")
    try:
        os.truncate(file, size)
        mapping = f"import mmap, sys; mapped = mmap.mmap({file}, {size}); mapped.write(bytes({size}))"
        script = f"{mapping}; print(flush=True); sys.stdin.read(1)"
        with contextlib.ExitStack() as running:
            children = [
                running.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-S", "-c", script],
                        pass_fds=[file],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
                for _ in range(2)
            ]
            for child in children:
                assert child.stdout is not None
                child.stdout.readline()
            yield [child.pid for child in children]
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
            deadline = time.monotonic() + 180
            while measure.queued_bytes(port) != [1000] and time.monotonic() < deadline:
                time.sleep(0.001)  # until the acknowledgement arrives
            assert measure.queued_bytes(port) == [1000]
            client.recv(400)
            assert measure.queued_bytes(port) == [600]


def test_a_clock_stands_still_while_processes_wait_for_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PROC", tmp_path)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    assert measure.undisturbed_seconds() == 1000.0, "the kernel does not tell"
    pressure = "some avg10=94.28 avg60=90.81 avg300=59.71 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    (tmp_path / "pressure").mkdir()
    for waited, expected in ((400_000_000, 600.0), (400_500_000, 599.5)):
        (tmp_path / "pressure" / "cpu").write_text(pressure.format(waited))
        assert measure.undisturbed_seconds() == expected
