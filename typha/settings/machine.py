"""What the service may use of its machine: CPUs by affinity, and CPU quota and memory limit by cgroups, v1 and v2.

A limit of any cgroup above the process's own counts, as far as it is visible. What is missing or makes no sense is no
limit: nothing here raises.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

WORKERS_MAX = 3
"""Most workers that are started without being asked for. One serves thousands of clients, so further ones would only
take memory on a large machine; the hub needs a CPU, too."""
LOG_SHARE = 4
"""The delta logs take at most one part in so many of the memory limit: stores and snapshots need the rest."""

_FILE_BYTES_MAX = 1024 * 1024
_NUMBER_DIGITS_MAX = 20
_UNLIMITED_BYTES = 1 << 60
"""From here on a memory limit is none. Version 1 writes the largest number of pages for that."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the service may use."""

    cpus: int = 2
    """CPUs on which the process may run."""
    cpu_quota: float | None = None
    """CPUs' time that it may take; None for no limit."""
    memory_limit_bytes: int | None = None
    """None for no limit."""

    @property
    def workers(self) -> int:
        """Workers by default, beside the hub. A part of a CPU counts as none: a used-up quota stops all processes."""
        usable = self.cpus if self.cpu_quota is None else min(self.cpus, math.floor(self.cpu_quota))
        return max(1, min(usable - 1, WORKERS_MAX))

    def log_budget_bytes(self, wanted_bytes: int, *, segment_bytes: int) -> int:
        """The budget for delta logs: what is wanted, or less under a memory limit, but at least two segments."""
        if self.memory_limit_bytes is None:
            return wanted_bytes
        return min(wanted_bytes, max(self.memory_limit_bytes // LOG_SHARE, 2 * segment_bytes))


class _Mount(NamedTuple):
    """Where cgroups of some controllers are visible."""

    controllers: frozenset[str]
    """Empty for version 2."""
    root: str
    """The cgroup at the mount point."""
    point: str


def read(root: str = "") -> Machine:
    """The machine that the process runs on. `root` is in place of the root folder."""
    quotas: list[float] = []
    limits: list[int] = []
    for controllers, folder in _folders(root):
        if not controllers:
            quotas += _quota(_words(f"{folder}/cpu.max"))
            limits += [*_numbers(f"{folder}/memory.max"), *_numbers(f"{folder}/memory.high")]
        if "cpu" in controllers:
            quotas += _quota([*_words(f"{folder}/cpu.cfs_quota_us"), *_words(f"{folder}/cpu.cfs_period_us")])
        if "memory" in controllers:
            limits += _numbers(f"{folder}/memory.limit_in_bytes")
            limits += _hierarchical_limit(f"{folder}/memory.stat")
    return Machine(
        cpus=_cpus(),
        cpu_quota=min(quotas, default=None),
        memory_limit_bytes=min((limit for limit in limits if 0 < limit < _UNLIMITED_BYTES), default=None),
    )


def _cpus() -> int:
    with contextlib.suppress(OSError):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _folders(root: str) -> Iterator[tuple[frozenset[str], str]]:
    """The folders of the process's cgroups and of those above, each with its controllers."""
    mounts = list(_mounts(_text(f"{root}/proc/self/mountinfo")))
    for line in _text(f"{root}/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        controllers = frozenset(filter(None, names.split(",")))
        for mount in mounts:
            if mount.controllers & controllers or not (mount.controllers or controllers):
                folder = root + mount.point
                yield mount.controllers, folder
                for part in _below(mount.root, path):
                    folder = f"{folder}/{part}"
                    yield mount.controllers, folder


def _below(root: str, path: str) -> list[str]:
    """The parts of a cgroup's path below the cgroup `root`; none if it is elsewhere, which the mount does not show."""
    parts, above = ([part for part in one.split("/") if part] for one in (path, root))
    return parts[len(above) :] if parts[: len(above)] == above and ".." not in parts else []


def _mounts(text: str) -> Iterator[_Mount]:
    for line in text.splitlines():
        place, _, source = line.partition(" - ")
        places, sources = place.split(" "), source.split(" ")
        if len(places) < 5 or len(sources) < 3 or sources[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(sources[2].split(",")) & {"cpu", "memory"}
        if sources[0] == "cgroup2" or controllers:
            yield _Mount(controllers if sources[0] == "cgroup" else frozenset(), _plain(places[3]), _plain(places[4]))


def _plain(path: str) -> str:
    r"""A path of /proc/self/mountinfo, which writes a space as `\040`."""
    for escaped, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escaped, char)
    return path


def _quota(words: list[str]) -> list[float]:
    """CPUs from a quota and a period."""
    numbers = [number for word in words[:2] for number in _number(word)]
    if len(numbers) != 2 or min(numbers) <= 0:
        return []
    return [numbers[0] / numbers[1]]


def _hierarchical_limit(path: str) -> list[int]:
    """The least memory limit of the cgroup and those above, which a container does not see in version 1."""
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == "hierarchical_memory_limit":
            return _number(value)
    return []


def _numbers(path: str) -> list[int]:
    return [number for word in _words(path)[:1] for number in _number(word)]


def _number(word: str) -> list[int]:
    """The number, or nothing."""
    is_number = word.isascii() and word.isdigit() and len(word) <= _NUMBER_DIGITS_MAX
    return [int(word)] if is_number else []


def _words(path: str) -> list[str]:
    return _text(path).split()


def _text(path: str) -> str:
    """The first megabyte of a file; empty if it cannot be read. Does not wait where the file is a pipe."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return (file.read(_FILE_BYTES_MAX) or b"").decode(errors="replace")
    except (OSError, ValueError):
        return ""
