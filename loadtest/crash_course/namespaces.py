"""Network namespaces of one run: made, used, and removed whatever happens. Needs root.

All names begin with the run's prefix, which has the identifier of the process. So several runs do not touch each other,
and a run removes what a killed one has left.
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, TypeVar

FOLDER: Final = Path("/run/netns")
COMMAND_TIMEOUT_SECONDS: Final = 60.0
STOP_SECONDS: Final = 5.0
"""After this time a process that does not obey SIGTERM is killed; no longer is the end of a killed one waited for."""
_CLONE_NEWNET: Final = 0x40000000

Result = TypeVar("Result")


class CommandFailed(Exception):
    """A command in a namespace failed; the text has what it printed."""


class Namespaces:
    """The namespaces of one run and the processes in them; a context manager that removes both."""

    def __init__(self, kind: str = "cn") -> None:
        self.prefix = f"{kind}-{os.getpid()}-"
        self._kind = kind
        self._made: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        remove_leftovers(self._kind)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, the latest first, and remove the namespaces, whose interfaces go with them."""
        for process in reversed(self._processes):
            stop(process)
        self._processes.clear()
        for name in self._made:
            _remove(self.prefix + name)
        self._made.clear()

    def add(self, *names: str) -> None:
        """Make namespaces whose loopback interface is up. Raises CommandFailed."""
        for name in names:
            self._made.append(name)
            _run(["ip", "netns", "add", self.prefix + name])
            _run(["ip", "-n", self.prefix + name, "link", "set", "dev", "lo", "up"])

    def remove(self, name: str) -> None:
        """Remove a namespace, if it is there, and end what runs in it."""
        if name in self._made:
            self._made.remove(name)
            _remove(self.prefix + name)

    def path(self, name: str) -> str:
        """The file of a namespace."""
        return str(FOLDER / (self.prefix + name))

    def command(self, name: str, arguments: Sequence[str]) -> list[str]:
        """The command that runs another one in a namespace."""
        return ["nsenter", f"--net={self.path(name)}", *arguments]

    def run(self, name: str, *arguments: str, environment: dict[str, str] | None = None, text: str = "") -> str:
        """Run a command in a namespace; returns what it prints. Raises CommandFailed."""
        return _run(self.command(name, arguments), environment=environment, text=text)

    def ip(self, name: str, *commands: str) -> None:
        """Run `ip` commands in a namespace. Raises CommandFailed."""
        self.run(name, "ip", "-batch", "-", text="".join(command + "\n" for command in commands))

    def start(
        self, name: str, *arguments: str, output: IO[bytes], environment: dict[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a process in a namespace; it is ended with the others."""
        process = subprocess.Popen(
            self.command(name, arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if environment is None else {**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends the others in order
        )
        self._processes.append(process)
        return process

    def within(self, name: str, function: Callable[[], Result]) -> Result:
        """Call a function whose thread is in a namespace. Sockets that it makes stay there."""
        return _within(self.path(name), function)


def remove_leftovers(kind: str) -> None:
    """Remove the namespaces of runs whose process has ended, with the processes that a killed one has left in them."""
    if not FOLDER.is_dir():
        return
    for path in sorted(FOLDER.iterdir()):
        found = re.fullmatch(rf"{re.escape(kind)}-(\d+)-.+", path.name)
        if found and not Path("/proc", found[1]).exists():
            _remove(path.name)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its session."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _kill_inside(name: str) -> None:
    """Kill the processes in a namespace, and wait for their ends: a killed process still runs for a moment."""
    with contextlib.suppress(CommandFailed), contextlib.ExitStack() as closing:
        killed = []
        for number in _run(["ip", "netns", "pids", name]).split():
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(int(number))
                closing.callback(os.close, process)
                signal.pidfd_send_signal(process, signal.SIGKILL)
                killed.append(process)
        for process in killed:
            select.select([process], [], [], STOP_SECONDS)


def _remove(name: str) -> None:
    _kill_inside(name)
    with contextlib.suppress(CommandFailed):
        _run(["ip", "netns", "delete", name])


def _run(command: Sequence[str], *, environment: dict[str, str] | None = None, text: str = "") -> str:
    try:
        done = subprocess.run(
            command,
            check=False,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
            env=None if environment is None else {**os.environ, **environment},
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{' '.join(command)}: no end after {COMMAND_TIMEOUT_SECONDS:.0f} s") from error
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)} {text}: {done.stdout}{done.stderr}".strip())
    return done.stdout


def _within(path: str, function: Callable[[], Result]) -> Result:
    results: list[Result] = []
    errors: list[BaseException] = []

    def enter_and_call() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(descriptor, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter {path}")
            finally:
                os.close(descriptor)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter_and_call, name=f"in {path}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
