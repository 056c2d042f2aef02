"""A process whose wall clock is set while it runs."""

import asyncio
import pathlib
import sys
import time

import pytest

from loadtest.environment import wall_clock

PROGRAM = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"
LIBRARY = wall_clock.library()


@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed: make packages")
async def test_only_the_wall_clock_jumps(tmp_path: pathlib.Path) -> None:
    assert LIBRARY is not None
    clock = wall_clock.WallClock(tmp_path / "clock", LIBRARY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM),
        env=clock.environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def ask() -> tuple[float, float]:
        """How far its clocks are from the machine's, in seconds."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"?\n")
        wall, monotonic = map(float, (await process.stdout.readline()).split())
        return wall - time.time(), monotonic - time.monotonic()

    async def jumped(seconds: int) -> None:
        """Wait until the process sees the new time; the monotonic clock is the machine's all the while."""
        while True:
            wall, monotonic = await ask()
            assert abs(monotonic) < 1800
            if abs(wall - seconds) < 1800:
                return
            await asyncio.sleep(0.1)

    await jumped(0)
    for seconds in (3600, -3600, 315_360_000, 0):
        clock.set(seconds)
        await jumped(seconds)
    process.stdin.close()
    assert await process.wait() == 0
