"""What processes cost: CPU, memory and sockets from /proc, counters from a /metrics page."""

import dataclasses
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import parser

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_BLOCK_BYTES: Final = 512
_PROC: Final = Path("/proc")
_ESTABLISHED: Final = "01"
"""In /proc/net/tcp."""


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Memory of some processes. The total counts every page once, even if several processes share it."""

    private_bytes: int
    """Sum of the proportional set sizes (PSS), without shared memory."""
    memfd_bytes: int
    """Pages of all memfd files that one of them has open, mapped or not; each file once."""

    @property
    def total_bytes(self) -> int:
        """Both together, without the kernel's socket buffers (`kernel_socket_bytes`)."""
        return self.private_bytes + self.memfd_bytes


def process_tree(pid: int) -> list[int]:
    """The process, then all its descendants that run now; empty if it has ended."""
    parents: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat_fields(int(entry.name))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [pid] if _stat_fields(pid) else []
    for known in tree:
        tree.extend(sorted(parents.get(known, [])))
    return tree


def cpu_seconds(pid: int, *, ended_children: bool = False) -> float:
    """User and system time of a process, and if asked of the children it has waited for; 0 if it has ended."""
    fields = _stat_fields(pid)
    if not fields:
        return 0.0
    own = sum(map(int, fields[11:13])) / _TICKS_PER_SECOND
    # The first figure is rounded down to hundredths; the second is exact, but lacks ended threads. The larger is right.
    own = max(own, _threads_nanoseconds(pid) / 1e9)
    return own + (sum(map(int, fields[13:15])) / _TICKS_PER_SECOND if ended_children else 0.0)


def undisturbed_seconds() -> float:
    """A clock that stands still while processes of this machine wait for a CPU, as far as the kernel tells.

    For limits of times that hold on a machine which has a CPU for everybody.
    """
    try:
        some = (_PROC / "pressure" / "cpu").read_text().splitlines()[0]
    except OSError:
        return time.monotonic()
    return time.monotonic() - int(some.rpartition("=")[2]) / 1e6


def written_bytes(pid: int) -> int:
    """All that a process has written so far, to files and sockets; 0 if it has ended."""
    try:
        lines = (_PROC / str(pid) / "io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("wchar:")), 0)


def memory(pids: Iterable[int]) -> Memory:
    """Memory of processes; one that has ended counts nothing."""
    private = 0
    files: dict[int, int] = {}
    for pid in pids:
        rollup = _rollup(pid)
        private += rollup.get("Pss", 0) - rollup.get("Pss_Shmem", 0)
        files.update(_memfd_files(pid))
    return Memory(private_bytes=private, memfd_bytes=sum(files.values()))


def kernel_socket_bytes() -> int:
    """Kernel memory of all TCP sockets in the network namespace; local connections count with both ends."""
    for line in (_PROC / "net" / "sockstat").read_text().splitlines():
        words = line.split()
        if words[0] == "TCP:":
            return int(words[words.index("mem") + 1]) * _PAGE_BYTES
    return 0


def queued_bytes(port: int) -> list[int]:
    """Bytes that the kernel holds between a server on this port and each local client, the largest first.

    For each established connection: the server's send queue and the client's receive queue.
    """
    held: dict[int, int] = {}
    for line in (_PROC / "net" / "tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        if state != _ESTABLISHED:
            continue
        local_port, remote_port = (int(address.partition(":")[2], 16) for address in (local, remote))
        to_send, to_read = (int(queue, 16) for queue in queues.split(":"))
        if local_port == port:
            held[remote_port] = held.get(remote_port, 0) + to_send
        elif remote_port == port:
            held[local_port] = held.get(local_port, 0) + to_read
    return sorted(held.values(), reverse=True)


class Cpu(NamedTuple):
    """CPU seconds of a service; a server with one process has no workers."""

    hub: float
    workers: float = 0.0


class CpuMeter:
    """CPU time of processes that come and go. The time of an ended process stays, as of the last `sample`."""

    def __init__(self) -> None:
        self._hubs: dict[int, float] = {}
        self._workers: dict[int, float] = {}

    def sample(self, pids: Sequence[int]) -> Cpu:
        """Time of all processes ever given. The first of `pids` is the hub."""
        for number, pid in enumerate(pids):
            used = self._workers if number else self._hubs
            used[pid] = max(used.get(pid, 0.0), cpu_seconds(pid))
        return Cpu(sum(self._hubs.values()), sum(self._workers.values()))


class Metrics:
    """The samples of a /metrics page in Prometheus' text format."""

    def __init__(self, text: str) -> None:
        self._samples = [
            (sample.name, sample.labels, sample.value)
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def __len__(self) -> int:
        """The number of samples; none of a page that could not be read."""
        return len(self._samples)

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples with this name and all these labels."""
        return sum(value for known, has, value in self._samples if known == name and labels.items() <= has.items())

    def named(self, pattern: re.Pattern[str]) -> list[tuple[str, dict[str, str], float]]:
        """All samples the names of which match: name, labels, value."""
        return [sample for sample in self._samples if pattern.search(sample[0])]

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Sums by the value of one label."""
        result: dict[str, float] = {}
        for known, has, value in self._samples:
            if known == name and label in has:
                result[has[label]] = result.get(has[label], 0.0) + value
        return result

    def by_labels(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sums by the values of several labels; the value of a missing label is ""."""
        result: dict[tuple[str, ...], float] = {}
        for known, has, value in self._samples:
            if known == name:
                place = tuple(has.get(label, "") for label in labels)
                result[place] = result.get(place, 0.0) + value
        return result


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty if the process has ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    return [] if fields[0] in ("Z", "X") else fields


def _threads_nanoseconds(pid: int) -> int:
    """CPU time of the threads that run now; 0 if the kernel does not count it."""
    total = 0
    try:
        for thread in (_PROC / str(pid) / "task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    except OSError:
        return total
    return total


def _rollup(pid: int) -> dict[str, int]:
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return {}
    sizes: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    return sizes


def _memfd_files(pid: int) -> dict[int, int]:
    """inode -> allocated bytes of each memfd that a process has open."""
    found: dict[int, int] = {}
    try:
        descriptors = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return found
    for descriptor in descriptors:
        try:
            if os.readlink(descriptor).startswith("/memfd:"):
                status = os.stat(descriptor)
                found[status.st_ino] = status.st_blocks * _BLOCK_BYTES
        except OSError:
            continue  # closed in the meantime
    return found
