"""CPUs and memory that the service may use, from fixtures of /proc and /sys."""

import os
import pathlib
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from typha.settings import machine
from typha.settings.machine import Machine

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = (
    "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "33 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
)
UNLIMITED = "9223372036854771712"


def read(folder: pathlib.Path, files: dict[str, str]) -> Machine:
    """The machine with these files below its root folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return machine.read(str(folder))


def limits(found: Machine) -> tuple[float | None, int | None]:
    return found.cpu_quota, found.memory_limit_bytes


def test_version_2_in_a_container(tmp_path: pathlib.Path) -> None:
    """The container's own cgroup is the root of its cgroup namespace."""
    found = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": "268435456\n",
            "sys/fs/cgroup/memory.high": "max\n",
        },
    )
    assert limits(found) == (1.5, 1 << 28)


def test_version_2_takes_the_least_of_all_cgroups_above(tmp_path: pathlib.Path) -> None:
    top = "sys/fs/cgroup/kubepods.slice"
    found = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kubepods.slice/pod1/container\n",
            "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda rw\n" + V2,
            f"{top}/cpu.max": "200000 100000",
            f"{top}/pod1/cpu.max": "50000 100000",
            f"{top}/pod1/container/cpu.max": "max 100000",
            f"{top}/memory.max": "max",
            f"{top}/pod1/memory.max": "300",
            f"{top}/pod1/container/memory.max": "400",
            f"{top}/pod1/container/memory.high": "350",
            f"{top}/pod2/memory.max": "1",
        },
    )
    assert limits(found) == (0.5, 300)


def test_memory_high_counts(tmp_path: pathlib.Path) -> None:
    """Above it the kernel slows the process down and takes its pages."""
    files = {"sys/fs/cgroup/memory.max": "400", "sys/fs/cgroup/memory.high": "350"}
    found = read(tmp_path, {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2, **files})
    assert found.memory_limit_bytes == 350


def test_version_1(tmp_path: pathlib.Path) -> None:
    memory = "sys/fs/cgroup/memory/docker"
    found = read(
        tmp_path,
        {
            "proc/self/cgroup": "12:cpu,cpuacct:/docker/a\n11:memory:/docker/a\n1:name=systemd:/docker/a\n0::/\n",
            "proc/self/mountinfo": V1,
            "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000\n",
            f"{memory}/memory.limit_in_bytes": UNLIMITED,
            f"{memory}/a/memory.limit_in_bytes": "1000000",
        },
    )
    assert limits(found) == (2.5, 1000000)


def test_version_1_in_a_container_that_does_not_see_the_pods_limit(tmp_path: pathlib.Path) -> None:
    """The mount shows the container's cgroup only, and its path is the host's. The kernel tells the pod's limit."""
    mounts = V1.replace(" / /sys/fs/cgroup/memory", " /kubepods/pod1/c /sys/fs/cgroup/memory").replace(
        " / /sys/fs/cgroup/cpu", " /kubepods/pod1/c /sys/fs/cgroup/cpu"
    )
    found = read(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/kubepods/pod1/c\n3:cpu,cpuacct:/kubepods/pod1/c\n",
            "proc/self/mountinfo": mounts,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED,
            "sys/fs/cgroup/memory/memory.stat": f"cache 0\nhierarchical_memory_limit 5000\ntotal_cache {UNLIMITED}\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000",
        },
    )
    assert limits(found) == (2.0, 5000)


def test_both_versions(tmp_path: pathlib.Path) -> None:
    """As on a host with memory in version 1 and the CPU in version 2, at a mount point with a space."""
    found = read(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/a\n0::/b\n",
            "proc/self/mountinfo": V1 + V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/uni\\040fied "),
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "7000",
            "sys/fs/cgroup/uni fied/b/cpu.max": "400000 100000",
        },
    )
    assert limits(found) == (4.0, 7000)


@pytest.mark.parametrize("path", ["/../../elsewhere", "/elsewhere", "", "no path"])
def test_a_cgroup_that_the_mount_does_not_show(tmp_path: pathlib.Path, path: str) -> None:
    files = {"sys/fs/cgroup/cpu.max": "100000 100000", "sys/fs/cpu.max": "1 1000", "cpu.max": "1 1000"}
    found = read(
        tmp_path, {"proc/self/cgroup": f"0::{path}", "proc/self/mountinfo": V2.replace(" / ", " /x ", 1), **files}
    )
    assert found.cpu_quota == 1.0


GARBAGE = [
    "",
    "\n",
    "max",
    "-1",
    "0",
    "x",
    "²",
    "1.5",
    "NaN",
    "1 0",
    "0 1",
    "1 -1",
    "1 x",
    "9" * 5000,
    UNLIMITED,
    "\0\xff",
]


@pytest.mark.parametrize("text", GARBAGE)
def test_what_makes_no_sense_is_no_limit(tmp_path: pathlib.Path, text: str) -> None:
    two = {f"sys/fs/cgroup/{name}": text for name in ("cpu.max", "memory.max", "memory.high")}
    assert limits(read(tmp_path / "2", {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2, **two})) == (
        None,
        1 if text.startswith("1 ") else None,
    )
    one = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": text,
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": text,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": text,
        "sys/fs/cgroup/memory/memory.stat": f"hierarchical_memory_limit {text}\nx",
    }
    cgroups = "1:cpu,cpuacct:/\n2:memory:/"
    found = read(tmp_path / "1", {"proc/self/cgroup": cgroups, "proc/self/mountinfo": V1, **one})
    assert found.workers >= 1


@pytest.mark.parametrize("name", ["cpu.max", "memory.max"])
def test_files_that_are_none(tmp_path: pathlib.Path, name: str) -> None:
    base = {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2}
    path = tmp_path / "sys/fs/cgroup" / name
    assert limits(read(tmp_path, base)) == (None, None)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert limits(read(tmp_path, base)) == (None, None)
    writer = os.open(path, os.O_RDWR)  # a pipe that is open, and empty
    assert limits(read(tmp_path, base)) == (None, None)
    os.close(writer)
    path.unlink()
    path.mkdir()
    assert limits(read(tmp_path, base)) == (None, None)
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert limits(read(tmp_path, base)) == (None, None)


def test_nothing_at_all(tmp_path: pathlib.Path) -> None:
    found = machine.read(str(tmp_path / "missing"))
    assert limits(found) == (None, None)
    assert found.cpus >= 1


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=30))
def test_any_text_is_survived(tmp_path: pathlib.Path, groups: str, mounts: str, limit: str) -> None:
    def plain(text: str) -> str:
        return text.encode(errors="replace").decode()

    files = {"sys/fs/cgroup/cpu.max": plain(limit), "sys/fs/cgroup/memory.max": plain(limit)}
    found = read(
        tmp_path, {"proc/self/cgroup": f"0::/\n{plain(groups)}", "proc/self/mountinfo": V2 + plain(mounts), **files}
    )
    assert 1 <= found.workers <= machine.WORKERS_MAX


@pytest.mark.parametrize(
    ("cpus", "quota", "workers"),
    [
        (1, None, 1),
        (2, None, 1),
        (3, None, 2),
        (4, None, 3),
        (16, None, 3),
        (128, 64.0, 3),
        (16, 4.0, 3),
        (16, 3.9, 2),
        (16, 2.0, 1),
        (16, 1.0, 1),
        (16, 0.5, 1),
        (16, 1e-9, 1),
        (2, 8.0, 1),
    ],
)
def test_workers(cpus: int, quota: float | None, workers: int) -> None:
    assert Machine(cpus=cpus, cpu_quota=quota).workers == workers


def test_affinity_counts() -> None:
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    program += "from typha.settings import machine; print(machine.read().cpus)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    assert result.stdout == "1\n"
