"""Runs a program of an unpacked image as a container runtime would, as far as the kernel is concerned. Needs root.

The program is process 1 of its PID namespace and has mounts of its own: the image's files, read-only, /proc, a small
/dev with shared memory, and one folder of the host as /run/test, read-only. It runs as the user that is asked for, with
no capability and no way to get one. The network is the host's. A program of its own, because it forks:

    container.py BUNDLE USER FOLDER ARGUMENT...

BUNDLE is what `umoci unpack` makes; the arguments replace those of the image's CMD, and an entry point that begins with
a slash replaces the image's. Variables of the environment that begin with TYPHA_, and KUBECONFIG, are passed on.
"""

import ctypes
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Final

FOLDER: Final = "/run/test"
"""Where the program finds the host's folder."""

_NEW_MOUNTS, _NEW_PIDS = 0x00020000, 0x20000000
_READ_ONLY, _NO_SETUID, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x1, 0x2, 0x20, 0x1000, 0x4000, 0x40000
_SET_DEATH_SIGNAL, _DROP_BOUNDING, _NO_NEW_PRIVILEGES = 1, 24, 38
_LAST_CAPABILITY = pathlib.Path("/proc/sys/kernel/cap_last_cap")
_DEVICES = ("null", "zero", "random", "urandom")
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: {arguments}")


def _mount(source: str, target: pathlib.Path, kind: str, flags: int, options: str = "") -> None:
    _call(_libc.mount, source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())


def _mount_all(root: pathlib.Path, folder: pathlib.Path) -> None:
    _mount("none", pathlib.Path("/"), "", _RECURSIVE | _PRIVATE)
    _mount(str(root), root, "", _BIND)
    _mount("proc", root / "proc", "proc", 0)
    _mount("tmpfs", root / "dev", "tmpfs", _NO_SETUID, "size=64k,mode=755")
    for name in _DEVICES:
        (root / "dev" / name).touch()
        _mount(f"/dev/{name}", root / "dev" / name, "", _BIND)
    (root / "dev/shm").mkdir()
    _mount("shm", root / "dev/shm", "tmpfs", _NO_SETUID, "size=64m,mode=1777")
    _mount("tmpfs", root / "run", "tmpfs", _NO_SETUID, "size=64k,mode=755")
    inside = root / FOLDER[1:]
    inside.mkdir()
    _mount(str(folder), inside, "", _BIND)
    for place in (inside, root / "run", root / "dev", root):
        _mount("none", place, "", _REMOUNT | _BIND | _READ_ONLY)


def _drop_privileges(user: int) -> None:
    for capability in range(int(_LAST_CAPABILITY.read_text()) + 1):
        _call(_libc.prctl, _DROP_BOUNDING, capability, 0, 0, 0)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    _call(_libc.prctl, _NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _start(bundle: pathlib.Path, user: int, folder: pathlib.Path, arguments: list[str]) -> None:
    process = json.loads((bundle / "config.json").read_text())["process"]
    entry_point = process["args"][:1]
    passed_on = {name: value for name, value in os.environ.items() if name.startswith("TYPHA_") or name == "KUBECONFIG"}
    environment = dict(line.split("=", 1) for line in process["env"]) | passed_on
    command = arguments if arguments[0].startswith("/") else [*entry_point, *arguments]
    _call(_libc.prctl, _SET_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    _mount_all(bundle / "rootfs", folder)
    os.chroot(bundle / "rootfs")
    os.chdir(process["cwd"])
    _drop_privileges(user)
    os.execve(command[0], command, environment)


def main() -> None:
    """Run, forward SIGTERM, and end with the program's exit code."""
    bundle, user, folder, *arguments = sys.argv[1:]
    _call(_libc.unshare, _NEW_MOUNTS | _NEW_PIDS)
    child = os.fork()
    if child == 0:
        _start(pathlib.Path(bundle), int(user), pathlib.Path(folder), arguments)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
