"""The rows that are measured beside a bare loop: agents connect once, then one load after the other."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from loadtest.bench import measurement, targets
from loadtest.swarm import supervisor

IN_SYNC_TIMEOUT_SECONDS: Final = 120.0
RAMP_PER_SECOND: Final = 2500.0
FEW: Final = 10
WARM_UP_SECONDS: Final = 1.0
IDLE_SETTLE_SECONDS: Final = 3.0
BURST_UPDATES: Final = 2000
BURST_RATE_PER_SECOND: Final = 100_000.0
"""More than the simulator can write: as fast as it does."""

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Loads of the same agents; names of rows and figures follow from it, whatever the scale."""

    agents: int
    rates: tuple[int, ...]
    burst: bool = False
    storm: bool = False
    idle: bool = False
    tls: bool = False

    def wants(self, wanted: frozenset[str]) -> "Group":
        """The part of it that makes figures of these rows."""
        prefix = "mtls-" if self.tls else ""
        everything = {f"{prefix}peak-memory-{self.agents}"} & wanted
        return dataclasses.replace(
            self,
            rates=tuple(rate for rate in self.rates if everything or f"{prefix}{self.agents}x{rate}" in wanted),
            burst=self.burst and "burst" in wanted,
            storm=self.storm and f"{prefix}storm" in wanted,
            idle=self.idle and f"{prefix}idle-memory" in wanted,
        )


GROUPS: Final = {
    "1000": Group(agents=1000, rates=(20,)),
    "2000": Group(agents=2000, rates=(50, 100), burst=True, storm=True),
    "5000": Group(agents=5000, rates=(20, 50, 100), idle=True),
    "mtls": Group(agents=1000, rates=(20,), storm=True, idle=True, tls=True),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """How much of the full size, and for how long each rate."""

    scale: float = 1.0
    seconds: float = 10.0
    pods: int = 5000

    def scaled(self, count: int) -> int:
        """At least a few."""
        return max(FEW + 2, round(count * self.scale))


class Play:
    """One side's turn: a contender with its agents."""

    def __init__(self, ground: targets.Ground, group: Group, sizes: Sizes) -> None:
        self._ground = ground
        self._group = group
        self._sizes = sizes
        self._agents = sizes.scaled(group.agents)
        self._prefix = "mtls-" if group.tls else ""
        self._peak_bytes = 0
        self.figures: Figures = {}

    async def run(self, side: targets.Side) -> Figures:
        """Everything of the group. Raises ProcessError, SwarmError, TimeoutError."""
        group = self._group
        async with targets.open_contender(side, self._ground) as contender:
            base = await self._with_few(contender) if group.idle else 0
            async with self._swarm(contender, self._agents) as swarm:
                if group.idle:
                    await asyncio.sleep(IDLE_SETTLE_SECONDS)
                    each = (contender.memory_bytes() - base) / (self._agents - FEW)
                    self.figures[f"{self._prefix}idle-memory"] = each / 1e3
                if group.storm:
                    await self._storm(contender, swarm)
                for rate in group.rates:
                    await self._steady(contender, swarm, rate)
                if group.burst:
                    await self._burst(contender, swarm)
        if side is targets.Side.SERVICE and group.rates and not group.tls:
            self.figures[f"peak-memory-{group.agents}"] = self._peak_bytes / 1e6
        return self.figures

    @asynccontextmanager
    async def _swarm(self, contender: targets.Contender, agents: int) -> AsyncIterator[supervisor.Swarm]:
        async with supervisor.Swarm(
            [contender.address],
            feed=self._ground.feed,
            agents=agents,
            protocols=(self._ground.protocol,),
            ramp_per_second=RAMP_PER_SECOND,
            tls=self._ground.tls.agents if self._ground.tls is not None else None,
        ) as swarm:
            await swarm.wait_in_sync(timeout_seconds=IN_SYNC_TIMEOUT_SECONDS)
            await measurement.until_quiet(swarm)
            yield swarm
            if errors := swarm.totals().protocol_errors:
                raise supervisor.SwarmError(f"{errors[0]} (agents of {contender.address})")

    async def _with_few(self, contender: targets.Contender) -> int:
        """Its memory with a few agents: what does not depend on their number."""
        async with self._swarm(contender, FEW):
            await asyncio.sleep(IDLE_SETTLE_SECONDS)
            return contender.memory_bytes()

    async def _storm(self, contender: targets.Contender, swarm: supervisor.Swarm) -> None:
        connects = swarm.totals().connects

        async def reconnect() -> None:
            await swarm.reconnect()
            await swarm.wait_for(
                lambda now: now.connects >= connects + self._agents and now.in_sync >= self._agents,
                timeout_seconds=IN_SYNC_TIMEOUT_SECONDS,
            )

        window = await measurement.observe(contender, swarm, reconnect)
        self.figures[f"{self._prefix}storm-cpu"] = window.cpu_seconds / self._agents * 1e3
        self.figures[f"{self._prefix}storm-slowest"] = (window.in_sync_after.quantile(1.0) or 0.0) * 1e3

    async def _steady(self, contender: targets.Contender, swarm: supervisor.Swarm, rate: int) -> None:
        if contender.begin is None:
            await self._churn(rate, WARM_UP_SECONDS)
            await measurement.until_quiet(swarm)

        async def change() -> None:
            if contender.begin is not None:
                contender.begin(rate, self._sizes.seconds)
                await asyncio.sleep(self._sizes.seconds)
            else:
                await self._churn(rate, self._sizes.seconds)

        window = await measurement.observe(contender, swarm, change)
        self._peak_bytes = max(self._peak_bytes, window.peak_bytes)
        name = f"{self._prefix}{self._group.agents}x{rate}"
        self.figures[f"cpu-{name}"] = window.cpu_microseconds_per_delivery
        self.figures[f"p99-{name}"] = window.latency_milliseconds(0.99)

    async def _burst(self, contender: targets.Contender, swarm: supervisor.Swarm) -> None:
        before = swarm.totals().updates

        async def change() -> None:
            await self._churn(BURST_RATE_PER_SECOND, BURST_UPDATES / BURST_RATE_PER_SECOND)
            await measurement.until_more_than(before, swarm)

        window = await measurement.observe(contender, swarm, change)
        self.figures["burst-cpu"] = window.cpu_seconds
        self.figures["burst-slowest"] = window.latency_milliseconds(1.0)

    async def _churn(self, rate: float, seconds: float) -> None:
        """Updates of pods alone, which is what the bare loop watches."""
        body = {
            "rate_per_second": rate,
            "duration_seconds": seconds,
            "create": 0,
            "delete": 0,
            "types": {"pods": 1},
            "label_times": self._ground.is_calico,
        }
        await self._ground.simulator.control("POST", "churn", body)
        await asyncio.sleep(seconds)


async def rounds(
    ground: targets.Ground, group: Group, sizes: Sizes, *, number: int, send: bool = False
) -> tuple[Figures, Figures]:
    """One round: (ours, bare), in alternating order so that neither always has the warmer machine."""
    order = [targets.Side.BARE, targets.Side.SERVICE]
    figures = {side: await Play(ground, group, sizes).run(side) for side in (order if number % 2 else order[::-1])}
    if send:
        alone = await Play(ground, group, sizes).run(targets.Side.SEND)
        figures[targets.Side.SERVICE]["bare-send"] = alone[f"cpu-{group.agents}x{group.rates[0]}"]
    return figures[targets.Side.SERVICE], figures[targets.Side.BARE]
