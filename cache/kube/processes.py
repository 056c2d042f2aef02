"""Starts processes so that none survives when the caller is cancelled."""

import asyncio
import contextlib
import errno
import os
import signal
from typing import Any


async def start(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a process, as `asyncio.create_subprocess_exec` does. If cancelled meanwhile, kill it.

    uvloop forgets a process whose start is cancelled: it continues to run, and nothing can end it. A process with a
    session of its own is killed with the whole session: it may have started others before its start is known here.

    Raises:
        OSError: the process cannot be started.
        MemoryError.
    """
    starting = asyncio.create_task(_start(*command, **options), name=f"start of {command[0]}")
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        while not starting.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            process = starting.result()
            with contextlib.suppress(ProcessLookupError):
                if options.get("start_new_session"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
            await wait_for_end(process)
        raise


async def _start(*command: str, **options: Any) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(*command, **options)
    except RuntimeError as error:  # asyncio has a thread wait for the process, and there is none left
        raise OSError(errno.EAGAIN, str(error)) from error


async def wait_for_end(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process that was killed. If cancelled meanwhile, wait all the same.

    Raises:
        CancelledError: the caller was cancelled meanwhile. The process has ended.
    """
    cancelled = None
    while True:
        try:
            await process.wait()
            break
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
