"""Starting a process so that nothing is left of it when its starter is cancelled."""

import asyncio
import contextlib
from typing import Any


async def start(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """As `asyncio.create_subprocess_exec`. Cancelled meanwhile, it kills what it has started.

    uvloop forgets a process whose start is cancelled: it lives on, without anybody who could end it.

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
