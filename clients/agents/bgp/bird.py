"""BIRD as a child process: its configuration is checked before it is used, and it is started again when it ends."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import Final

COMMAND_TIMEOUT_SECONDS: Final = 10.0
FIRST_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 30.0
HEALTHY_SECONDS: Final = 60.0
"""A BIRD that has run for this long is started at once when it ends; one that ends sooner, later and later."""
STOP_SECONDS: Final = 5.0
ENDING_SECONDS: Final = 1.0
"""A BIRD that has been asked to end takes milliseconds."""
LEFTOVER_POLL_SECONDS: Final = 0.05
_MAX_MESSAGE: Final = 500

_log = logging.getLogger(__name__)


class BadConfiguration(Exception):
    """BIRD refuses the configuration."""


class Bird:
    """One BIRD with its files in `folder`: bird.conf, bird.ctl (the socket of birdc), bird.pid."""

    def __init__(self, folder: Path, *, program: str = "bird", control: str = "birdc") -> None:
        self.folder = folder
        self.restarts = 0
        """How often BIRD has been started again."""
        self.applied = 0
        """How often a new configuration has been put to use."""
        self.rejected = 0
        """How often BIRD has refused a configuration."""
        self._program = program
        self._control = control
        self._text = ""
        self._process: asyncio.subprocess.Process | None = None
        self._configured = asyncio.Event()
        self._is_in_use = False
        """Whether BIRD is known to run with the present configuration."""

    @property
    def socket(self) -> Path:
        """For birdc -s."""
        return self.folder / "bird.ctl"

    async def apply(self, text: str) -> bool:
        """Use a configuration, now or when BIRD starts; returns whether anything changed.

        Raises BadConfiguration; BIRD then goes on with the former one.
        """
        if text == self._text:
            return False
        candidate = self.folder / "bird.conf.new"
        candidate.write_text(text)
        code, output = await self._run(self._program, "-p", "-c", str(candidate))
        if code:
            self.rejected += 1
            raise BadConfiguration(output)
        candidate.rename(self.folder / "bird.conf")
        self._text = text
        self.applied += 1
        self._configured.set()
        self._is_in_use = False
        await self.use()
        return True

    async def use(self) -> bool:
        """Make BIRD use the present configuration, if it is not known to; returns whether it does now."""
        process, text = self._process, self._text
        if process is None or process.returncode is not None:
            return False
        if not self._is_in_use:
            code, output = await self._run(self._control, "-s", str(self.socket), "configure")
            if code:
                # A BIRD that cannot be reached is about to end, or to start.
                _log.info("birdc configure: %s", output)
            self._is_in_use = code == 0 and text == self._text and process is self._process
        return self._is_in_use

    async def run(self) -> None:
        """Keep BIRD running from the first configuration on; at cancellation end it. Its routes stay in the kernel."""
        await asyncio.to_thread(_end_leftover, self.folder)
        await self._configured.wait()
        retry_seconds = FIRST_RETRY_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            reason = await self._live()
            lived_seconds = loop.time() - begin
            if lived_seconds >= HEALTHY_SECONDS:
                retry_seconds = FIRST_RETRY_SECONDS
            _log.warning("BIRD has ended (%s) after %.1f s; next start in %.1f s", reason, lived_seconds, retry_seconds)
            await asyncio.sleep(retry_seconds)
            retry_seconds = min(MAX_RETRY_SECONDS, 2 * retry_seconds)
            self.restarts += 1

    async def _live(self) -> str:
        """One life of BIRD; returns how it ended."""
        arguments = ["-f", "-R", "-c", "bird.conf", "-s", "bird.ctl", "-P", "bird.pid"]
        try:
            process = await asyncio.create_subprocess_exec(self._program, *arguments, cwd=self.folder)
        except OSError as error:
            return repr(error)
        self._process, self._is_in_use = process, False
        try:
            return f"code {await process.wait()}"
        finally:
            self._process = None
            if process.returncode is None:
                # SIGTERM would tell the neighbors to forget the routes; this tells them to wait for the next BIRD.
                await self._run(self._control, "-s", str(self.socket), "graceful", "restart")
            await _stop(process)

    async def _run(self, *command: str) -> tuple[int, str]:
        """Run a short command; returns its code and what it printed."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self.folder,
            )
        except OSError as error:
            return 1, repr(error)
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            return 1, f"{command[0]}: no end after {COMMAND_TIMEOUT_SECONDS:.0f} s"
        finally:
            await _stop(process)
        assert process.returncode is not None
        return process.returncode, output.decode(errors="replace").strip()[-_MAX_MESSAGE:]


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End a process that may be about to end; cancellation waits for that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ENDING_SECONDS):
            await process.wait()
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _end_leftover(folder: Path) -> None:
    """End the BIRD of an agent that was killed: it has the port and the socket."""
    try:
        number = int((folder / "bird.pid").read_text())
        process = Path(f"/proc/{number}")
        if (process / "cwd").readlink() != folder:
            return
        # Its neighbors keep the routes: it ends without a word, as when the machine restarts.
        os.kill(number, signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while process.exists() and time.monotonic() < deadline:
            time.sleep(LEFTOVER_POLL_SECONDS)
    except (OSError, ValueError):
        return  # there is none, or it has ended meanwhile
    _log.info("ended the BIRD of an earlier agent, process %d", number)
