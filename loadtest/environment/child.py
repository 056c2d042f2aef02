"""A subprocess of a load test: start, first answer, check, end."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

START_TIMEOUT_SECONDS: Final = 60.0
STOP_TIMEOUT_SECONDS: Final = 15.0
LOG_TAIL_LINES: Final = 10


class ProcessError(Exception):
    """A process did not start, or ended by itself; the message has the end of its log."""


class Child:
    """A subprocess. Its stderr goes to the file `log`, or without one to the terminal."""

    def __init__(self, name: str, log: Path | None = None) -> None:
        self.name = name
        self.log = log
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id. Raises ProcessError if the process was not started."""
        return self._running().pid

    @property
    def stdin(self) -> asyncio.StreamWriter:
        """Its standard input, if that is a pipe."""
        stdin = self._running().stdin
        assert stdin is not None
        return stdin

    @property
    def stdout(self) -> asyncio.StreamReader:
        """Its standard output, if that is a pipe."""
        stdout = self._running().stdout
        assert stdout is not None
        return stdout

    async def start(self, command: Sequence[str], **options: Any) -> None:
        """Start it. `options` are those of `create_subprocess_exec`; by default it has no input and logs its output."""
        if self.log is None:
            self.process = await asyncio.create_subprocess_exec(*command, **options)
            return
        with self.log.open("ab") as log:
            defaults = {"stdin": asyncio.subprocess.DEVNULL, "stdout": log, "stderr": log}
            # In a session of its own: Ctrl-C reaches only the load test, which then ends its processes. Linux schedules
            # sessions as groups (sched(7), autogroup), so all processes that are compared have one.
            options = {**defaults, "start_new_session": True, **options}
            self.process = await asyncio.create_subprocess_exec(*command, **options)

    async def read_ready_line(self) -> dict[str, Any]:
        """The JSON object that it prints when it is ready. Raises ProcessError, TimeoutError."""
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            line = await self.stdout.readline()
            if not line:
                await self._running().wait()
                self.check()
        ready: dict[str, Any] = json.loads(line)
        return ready

    def check(self) -> None:
        """Raises ProcessError if it does not run."""
        if self.process is None or self.process.returncode is not None:
            status = None if self.process is None else self.process.returncode
            lines = self.log.read_text(errors="replace").splitlines() if self.log is not None else []
            tail = "\n".join(lines[-LOG_TAIL_LINES:])
            raise ProcessError(f"{self.name} ended with status {status}; the end of {self.log}:\n{tail}")

    async def stop(self) -> None:
        """End it: close its input if that is a pipe, else SIGTERM; SIGKILL after a while."""
        process, self.process = self.process, None
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
        process, self.process = self.process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    def _running(self) -> asyncio.subprocess.Process:
        if self.process is None:
            raise ProcessError(f"{self.name} does not run")
        return self.process
