"""What all processes of the service use together, as the kernel counts it: the `process_*` metrics.

The original is one process. Its dashboards and alerts would see a part of this service only, if the metrics described
the hub.
"""

import os
import resource
from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import registry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family

_KIBIBYTE = 1024
_SIZES = {"VmSize": "virtual", "RssAnon": "anonymous", "RssFile": "file", "RssShmem": "shared"}


class Usage(NamedTuple):
    """What one process uses: CPU time, memory by the kernel's kinds in bytes, and open files."""

    cpu_seconds: float = 0.0
    virtual: int = 0
    anonymous: int = 0
    file: int = 0
    shared: int = 0
    open_files: int = 0


def usage_of(pid: int) -> Usage | None:
    """What a process uses; None if it has ended, or the kernel does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        sizes = {}
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name in _SIZES:
                    sizes[_SIZES[name]] = int(value.split()[0]) * _KIBIBYTE
        return Usage(cpu_seconds=cpu_seconds, open_files=_open_files(pid), **sizes)
    except (OSError, ValueError, IndexError):
        return None


def _open_files(pid: int) -> int:
    folder = f"/proc/{pid}/fd"
    try:  # from Linux 6.2 on, without a list of tens of thousands of names
        return os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return 0


def _start_time_seconds() -> float:
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    with open("/proc/stat", "rb") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))
    return booted + ticks / os.sysconf("SC_CLK_TCK")


class ProcessCollector(registry.Collector):
    """The metrics of this process and of those that `others` names."""

    def __init__(self, others: Callable[[], Iterable[int]]) -> None:
        self._others = others
        self._cpu_seconds = 0.0
        try:
            self._started_at = _start_time_seconds()
        except (OSError, ValueError, IndexError, StopIteration):
            self._started_at = 0.0

    def collect(self) -> Iterable[Family]:
        """Read everything from the kernel."""
        found = [one for one in map(usage_of, [os.getpid(), *self._others()]) if one is not None]
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds = sum(one.cpu_seconds for one in found) + ended.ru_utime + ended.ru_stime
        self._cpu_seconds = max(self._cpu_seconds, cpu_seconds)  # a process may end between two of these looks
        # Pages of a file, such as the interpreter's, and of shared memory, such as the logs, are in memory once.
        resident = sum(one.anonymous for one in found)
        resident += max((one.file for one in found), default=0) + max((one.shared for one in found), default=0)
        files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield CounterMetricFamily(
            "process_cpu_seconds_total", "CPU time of all processes, ended ones included.", self._cpu_seconds
        )
        yield GaugeMetricFamily(
            "process_virtual_memory_bytes", "Virtual memory of all processes.", sum(one.virtual for one in found)
        )
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Resident memory of all processes; what they share counts once.",
            resident,
        )
        yield GaugeMetricFamily(
            "process_start_time_seconds", "Start of the hub, in seconds since 1970.", self._started_at
        )
        yield GaugeMetricFamily(
            "process_open_fds", "Open files of all processes.", sum(one.open_files for one in found)
        )
        yield GaugeMetricFamily(
            "process_max_fds", "Limits of open files, of all processes together.", files_max * len(found)
        )
