"""What a span of time cost a contender, and what its agents saw of it; the same for all contenders."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from loadtest.bench import targets
from loadtest.swarm import histogram, supervisor

QUIET_TIMEOUT_SECONDS: Final = 60.0
MEMORY_INTERVAL_SECONDS: Final = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Deliveries, CPU seconds of the contender, latencies from write to read, its memory at its peak."""

    seconds: float
    deliveries: int
    cpu_seconds: float
    latency: histogram.Histogram
    in_sync_after: histogram.Histogram
    peak_bytes: int

    @property
    def cpu_microseconds_per_delivery(self) -> float:
        """Of the whole contender."""
        return self.cpu_seconds / max(1, self.deliveries) * 1e6

    def latency_milliseconds(self, fraction: float) -> float:
        """A quantile; 0 if nothing was delivered."""
        return (self.latency.quantile(fraction) or 0.0) * 1e3


async def observe(contender: targets.Contender, swarm: supervisor.Swarm, work: Callable[[], Awaitable[None]]) -> Window:
    """Does the work, waits until all is reported, and says what it cost. Raises ProcessError, SwarmError."""
    swarm.take_latency()
    swarm.take_in_sync_after()
    deliveries, cpu, begin = swarm.totals().updates, contender.cpu_seconds(), time.monotonic()
    async with _peak(contender) as peak:
        await work()
        await until_quiet(swarm)
    contender.check()
    return Window(
        seconds=time.monotonic() - begin,
        deliveries=swarm.totals().updates - deliveries,
        cpu_seconds=contender.cpu_seconds() - cpu,
        latency=swarm.take_latency(),
        in_sync_after=swarm.take_in_sync_after(),
        peak_bytes=max(peak),
    )


async def until_quiet(swarm: supervisor.Swarm) -> None:
    """Returns when every process of the swarm has reported twice that its agents have got nothing more.

    Not by the clock: a process that is busy with what it is sent may be late with its report. Raises SwarmError.
    """
    seen = -1
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(QUIET_TIMEOUT_SECONDS):
            while (now := (await _reported(swarm)).updates) != seen:
                seen = now


async def until_more_than(updates: int, swarm: supervisor.Swarm) -> None:
    """Returns when the agents have got more updates than so many. Raises SwarmError, TimeoutError."""
    await swarm.wait_for(lambda totals: totals.updates > updates, timeout_seconds=QUIET_TIMEOUT_SECONDS)


async def _reported(swarm: supervisor.Swarm) -> supervisor.Totals:
    """What all processes say from now on, at the next report of each."""
    asked = time.time()
    await swarm.wait_for(lambda totals: totals.all_reported_at_seconds > asked, timeout_seconds=QUIET_TIMEOUT_SECONDS)
    return swarm.totals()


@contextlib.asynccontextmanager
async def _peak(contender: targets.Contender) -> AsyncIterator[list[int]]:
    found = [await asyncio.to_thread(contender.memory_bytes)]

    async def look() -> None:
        while True:
            await asyncio.sleep(MEMORY_INTERVAL_SECONDS)
            found.append(await asyncio.to_thread(contender.memory_bytes))

    looking = asyncio.create_task(look(), name="peak memory")
    try:
        yield found
    finally:
        looking.cancel()
        await asyncio.wait([looking])
