"""The subprocesses of a load test: start, first answer, check, end."""

import abc
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

START_TIMEOUT_SECONDS: Final = 60.0
STOP_TIMEOUT_SECONDS: Final = 15.0
LOG_TAIL_LINES: Final = 10
TOOLS: Final = Path(__file__).resolve().parents[2] / "tools"


class ProcessError(Exception):
    """A process did not start, or ended by itself; the message has the end of its log."""


async def build_go_program(name: str) -> str:
    """Build a program of tools/ if no cache has it; returns its path. Raises ProcessError."""
    script = TOOLS / name / "build.sh"
    build = await asyncio.create_subprocess_exec(script, stdout=asyncio.subprocess.PIPE)
    output, _ = await build.communicate()
    if build.returncode:
        raise ProcessError(f"{script} failed")
    return output.decode().strip()


class Child(abc.ABC):
    """A subprocess; an async context manager. Its stderr goes to the file `log`, or without one to the terminal."""

    def __init__(self, name: str, log: Path | None) -> None:
        self.name = name
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process. Raises ProcessError if it was not started, or was stopped."""
        if self._process is None:
            raise ProcessError(f"{self.name} does not run")
        return self._process

    @property
    def pid(self) -> int:
        """Its process id. Raises ProcessError if it was not started, or was stopped."""
        return self.process.pid

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @abc.abstractmethod
    async def start(self) -> object:
        """Start it, and return when it is ready."""

    async def _spawn(self, command: Sequence[str], **options: Any) -> None:
        """Create the process. `options` are those of `create_subprocess_exec`; by default there is no input."""
        if self.log is None:
            self._process = await asyncio.create_subprocess_exec(*command, **options)
            return
        with self.log.open("ab") as log:
            defaults = {"stdin": asyncio.subprocess.DEVNULL, "stdout": log, "stderr": log}
            # In a session of its own: Ctrl-C reaches only the load test, which then ends its processes. Linux schedules
            # sessions as groups (sched(7), autogroup), so all processes that are compared have one.
            options = {**defaults, "start_new_session": True, **options}
            self._process = await asyncio.create_subprocess_exec(*command, **options)

    async def _read_ready_line(self) -> dict[str, Any]:
        """The JSON object that it prints when it is ready. Raises ProcessError, TimeoutError."""
        assert self.process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            line = await self.process.stdout.readline()
            if not line:
                await self.process.wait()
                self.check()
        ready: dict[str, Any] = json.loads(line)
        return ready

    async def write(self, line: bytes) -> None:
        """Write to its standard input, which must be a pipe. Raises ConnectionError, ProcessError."""
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        await self.process.stdin.drain()

    def check(self) -> None:
        """Raises ProcessError if it does not run."""
        if self._process is None or self._process.returncode is not None:
            status = None if self._process is None else self._process.returncode
            lines = self.log.read_text(errors="replace").splitlines() if self.log is not None else []
            tail = "\n".join(lines[-LOG_TAIL_LINES:])
            raise ProcessError(f"{self.name} ended with status {status}; the end of {self.log}:\n{tail}")

    async def stop(self) -> None:
        """End it: close its input if that is a pipe, else SIGTERM; SIGKILL after a while."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        elif process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def kill(self) -> None:
        """SIGKILL."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
