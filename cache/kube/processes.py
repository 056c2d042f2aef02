"""Starts processes so that none survives when the caller is cancelled."""

import asyncio
import contextlib
from typing import Any


async def start(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a process, as `asyncio.create_subprocess_exec` does. If cancelled meanwhile, kill it.

    uvloop forgets a process whose start is cancelled: it continues to run, and nothing can end it.

    Raises:
        OSError: the process cannot be started.
    """
    starting = asyncio.create_task(asyncio.create_subprocess_exec(*command, **options), name=f"start of {command[0]}")
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            process = await starting
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        raise
