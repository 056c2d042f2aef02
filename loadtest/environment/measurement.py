"""What a span of time cost a server, and what its agents received in it; the same for the service and the bare loop."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol

from loadtest.reporting import measure
from loadtest.swarm import control, histogram, supervisor

QUIET_TIMEOUT_SECONDS: Final = 60.0
PEAK_INTERVAL_SECONDS: Final = 0.5


class Target(Protocol):
    """A server whose cost is measured."""

    @property
    def address(self) -> tuple[str, int]:
        """Where its agents connect."""

    def pids(self) -> list[int]:
        """All its processes."""

    def cpu(self) -> measure.Cpu:
        """CPU time so far."""

    def check(self) -> None:
        """Raises ProcessError if it has ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The cost of a span of time."""

    seconds: float
    """All of it, with the time that is left for the last deliveries to be reported."""
    work_seconds: float
    """Duration of the work that was measured."""
    deliveries: int
    cpu: measure.Cpu
    swarm_cpu_seconds: float
    peak_bytes: int
    """The target's memory at its peak."""
    latency: histogram.Histogram
    """From write to read, of the behaving agents."""
    latency_of: Mapping[control.Protocol, histogram.Histogram]
    in_sync_after: histogram.Histogram
    """From connect to in-sync."""

    @property
    def cpu_seconds(self) -> float:
        """Of all processes of the target."""
        return self.cpu.hub + self.cpu.workers

    @property
    def cpu_per_delivery(self) -> float:
        """In seconds, of all processes of the target."""
        return self.cpu_seconds / max(1, self.deliveries)

    def latency_seconds(self, fraction: float) -> float:
        """A quantile of the latency; 0 if there were no deliveries."""
        return self.latency.quantile(fraction) or 0.0

    def facts(self) -> dict[str, str]:
        """Lines for a report."""
        hub, workers = self.cpu
        facts = {
            "deliveries": f"{self.deliveries:,} in {self.seconds:.1f} s ({self.deliveries / self.seconds:,.0f}/s)",
            "CPU of hub, workers, swarm": f"{hub:.2f}, {workers:.2f}, {self.swarm_cpu_seconds:.2f} s",
            "memory of the service at its peak": f"{self.peak_bytes / 1e6:.1f} MB",
        }
        if self.deliveries:
            each = [seconds / self.deliveries * 1e6 for seconds in self.cpu]
            facts["CPU per delivery"] = f"{sum(each):.2f} µs (hub {each[0]:.2f}, workers {each[1]:.2f})"
        if self.latency.total:
            facts["delivery latency, write to read"] = self.latency.quantiles_text("deliveries")
        return facts


async def observe(
    target: Target,
    swarm: supervisor.Swarm,
    work: Callable[[], Awaitable[None]],
    *,
    settle: Callable[[], Awaitable[None]] | None = None,
) -> Window:
    """Measure `work`, and what follows until the agents have reported it.

    `settle` returns when they have; without it the swarm must become quiet. Raises ProcessError, SwarmError.
    """
    latency, in_sync_after = swarm.latency.copy(), swarm.in_sync_after.copy()
    latency_of = {protocol: one.copy() for protocol, one in swarm.latency_of.items()}
    totals, cpu, begin = swarm.totals(), target.cpu(), time.monotonic()
    async with peak_memory(target.pids) as peak:
        await work()
        work_seconds = time.monotonic() - begin
        await (until_quiet(swarm) if settle is None else settle())
    target.check()
    after, cpu_after = swarm.totals(), target.cpu()
    return Window(
        seconds=time.monotonic() - begin,
        work_seconds=work_seconds,
        deliveries=after.updates - totals.updates,
        cpu=measure.Cpu(cpu_after.hub - cpu.hub, cpu_after.workers - cpu.workers),
        swarm_cpu_seconds=after.cpu_seconds - totals.cpu_seconds,
        peak_bytes=max(peak),
        latency=swarm.latency.since(latency),
        latency_of={protocol: one.since(latency_of[protocol]) for protocol, one in swarm.latency_of.items()},
        in_sync_after=swarm.in_sync_after.since(in_sync_after),
    )


async def until_quiet(swarm: supervisor.Swarm) -> None:
    """Return when every process of the swarm has reported twice that its agents have received nothing more.

    A fixed wait would not do: a busy process may report late. Raises SwarmError.
    """
    seen = -1
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(QUIET_TIMEOUT_SECONDS):
            while (now := (await _next_reports(swarm)).updates) != seen:
                seen = now


async def until_more_than(updates: int, swarm: supervisor.Swarm) -> None:
    """Return when the agents have received more updates than this. Raises SwarmError, TimeoutError."""
    await swarm.wait_for(lambda totals: totals.updates > updates, timeout_seconds=QUIET_TIMEOUT_SECONDS)


async def _next_reports(swarm: supervisor.Swarm) -> supervisor.Totals:
    """The totals after one more report of every process."""
    asked = time.time()
    await swarm.wait_for(lambda totals: totals.all_reported_at_seconds > asked, timeout_seconds=QUIET_TIMEOUT_SECONDS)
    return swarm.totals()


@contextlib.asynccontextmanager
async def peak_memory(
    pids: Callable[[], list[int]], *, interval_seconds: float = PEAK_INTERVAL_SECONDS
) -> AsyncIterator[list[int]]:
    """Collect the memory of processes, in bytes, while the context is open."""

    def read() -> int:
        return measure.memory(pids()).total_bytes

    found = [await asyncio.to_thread(read)]

    async def look() -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            found.append(await asyncio.to_thread(read))

    looking = asyncio.create_task(look(), name="peak memory")
    try:
        yield found
    finally:
        looking.cancel()
        await asyncio.wait([looking])
