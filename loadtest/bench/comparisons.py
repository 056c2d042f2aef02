"""The rows that are measured beside a bare loop: agents connect once, then one load follows another."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from loadtest.bench import targets
from loadtest.environment import certificates, measurement, processes
from loadtest.reporting import measure
from loadtest.swarm import control, supervisor

FEW: Final = 10
WARM_UP_SECONDS: Final = 1.0
IDLE_SETTLE_SECONDS: Final = 3.0
BURST_UPDATES: Final = 2000
BURST_RATE_PER_SECOND: Final = 100_000.0
"""More than the simulator can write, so it writes as fast as it can."""

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Loads of the same agents. The names of rows and figures follow from the full-size numbers."""

    agents: int
    rates: tuple[int, ...]
    burst: bool = False
    storm: bool = False
    idle: bool = False
    tls: bool = False

    @property
    def prefix(self) -> str:
        """First part of the names."""
        return "mtls-" if self.tls else ""

    def part(self, wanted: frozenset[str]) -> "Comparison":
        """The loads that are needed for these rows."""
        everything = f"{self.prefix}peak-memory-{self.agents}" in wanted
        return dataclasses.replace(
            self,
            rates=tuple(rate for rate in self.rates if everything or f"{self.prefix}{self.agents}x{rate}" in wanted),
            burst=self.burst and "burst" in wanted,
            storm=self.storm and bool({f"{self.prefix}storm", f"{self.prefix}storm-go"} & wanted),
            idle=self.idle and f"{self.prefix}idle-memory" in wanted,
        )


COMPARISONS: Final = {
    "1000": Comparison(agents=1000, rates=(20,)),
    "2000": Comparison(agents=2000, rates=(50, 100), burst=True, storm=True),
    "5000": Comparison(agents=5000, rates=(20, 50, 100), idle=True),
    "mtls": Comparison(agents=1000, rates=(20,), storm=True, idle=True, tls=True),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Share of the full size, and duration of each load."""

    scale: float = 1.0
    seconds: float = 10.0
    pods: int = 5000

    def scaled(self, count: int) -> int:
        """A count at this scale, at least a few."""
        return max(FEW + 2, round(count * self.scale))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """Rows, share of the full size, and number of rounds."""

    names: tuple[str, ...] = ()
    """Names of rows; all if empty."""
    rounds: int = 5
    sizes: Sizes = dataclasses.field(default_factory=Sizes)
    protocol: control.Protocol = control.Protocol.NATIVE
    record: Path | None = None
    """Folder of the history to which the results are added."""
    folder: Path = Path("report-bench")

    @property
    def judged(self) -> bool:
        """Whether goals are judged: only at full size."""
        return self.sizes.scale >= 1


@contextlib.asynccontextmanager
async def open_setup(settings: BenchSettings, *, tls: bool = False) -> AsyncIterator[targets.Setup]:
    """A simulated API server, without recordings of an earlier one."""
    await asyncio.to_thread(_remove_recordings, settings.folder)
    calico = settings.protocol is control.Protocol.TYPHA
    async with processes.SimulatorProcess(settings.folder, pods=settings.sizes.pods, calico=calico) as simulator:
        made = certificates.make(settings.folder, host=processes.HOST) if tls else None
        yield targets.Setup(folder=settings.folder, simulator=simulator, protocol=settings.protocol, tls=made)


def _remove_recordings(folder: Path) -> None:
    for file in folder.glob("recording-*"):
        file.unlink()


class Turn:
    """All loads of a comparison on one side."""

    def __init__(self, setup: targets.Setup, comparison: Comparison, sizes: Sizes) -> None:
        self._setup = setup
        self._comparison = comparison
        self._sizes = sizes
        self._agents = sizes.scaled(comparison.agents)
        self._peak_bytes = 0
        self.figures: Figures = {}

    async def run(self, side: targets.Side) -> Figures:
        """Measure. Raises ProcessError, SwarmError, TimeoutError."""
        comparison = self._comparison
        async with targets.open_target(side, self._setup) as target:
            base = 0
            if comparison.idle:
                async with self._setup.open_swarm(target, FEW):
                    base = await self._idle_memory(target)
            async with self._setup.open_swarm(target, self._agents) as swarm:
                if comparison.idle:
                    each = (await self._idle_memory(target) - base) / (self._agents - FEW)
                    self._add("idle-memory", each / 1e3)
                if comparison.storm:
                    await self._storm(target, swarm)
                for rate in comparison.rates:
                    await self._steady(target, swarm, rate)
                if comparison.burst:
                    await self._burst(target, swarm)
        if side is targets.Side.SERVICE and comparison.rates and not comparison.tls:
            self._add(f"peak-memory-{comparison.agents}", self._peak_bytes / 1e6)
        return self.figures

    def _add(self, name: str, value: float) -> None:
        self.figures[f"{self._comparison.prefix}{name}"] = value

    @staticmethod
    async def _idle_memory(target: measurement.Target) -> int:
        await asyncio.sleep(IDLE_SETTLE_SECONDS)
        return measure.memory(target.pids()).total_bytes

    async def _storm(self, target: measurement.Target, swarm: supervisor.Swarm) -> None:
        window = await measurement.observe(
            target, swarm, lambda: swarm.storm(timeout_seconds=targets.IN_SYNC_TIMEOUT_SECONDS)
        )
        self._add("storm-cpu", window.cpu_seconds / self._agents * 1e3)
        self._add("storm-slowest", (window.in_sync_after.quantile(1.0) or 0.0) * 1e3)

    async def _steady(self, target: measurement.Target, swarm: supervisor.Swarm, rate: int) -> None:
        seconds = self._sizes.seconds
        schedule = target if isinstance(target, targets.BareProcess) and target.has_schedule else None
        if schedule is None:
            await self._setup.simulator.update_pods(rate, WARM_UP_SECONDS)
            await measurement.until_quiet(swarm)

        async def change() -> None:
            if schedule is None:
                await self._setup.simulator.update_pods(rate, seconds)
            else:
                await schedule.start_updates(rate, seconds)
                await asyncio.sleep(seconds)

        window = await measurement.observe(target, swarm, change)
        self._peak_bytes = max(self._peak_bytes, window.peak_bytes)
        name = f"{self._comparison.prefix}{self._comparison.agents}x{rate}"
        self.figures[f"cpu-{name}"] = window.cpu_per_delivery * 1e6
        self.figures[f"p99-{name}"] = window.latency_seconds(0.99) * 1e3

    async def _burst(self, target: measurement.Target, swarm: supervisor.Swarm) -> None:
        before = swarm.totals().updates

        async def change() -> None:
            seconds = BURST_UPDATES / BURST_RATE_PER_SECOND
            await self._setup.simulator.update_pods(BURST_RATE_PER_SECOND, seconds)
            await measurement.until_more_than(before, swarm)

        window = await measurement.observe(target, swarm, change)
        self.figures["burst-cpu"] = window.cpu_seconds
        self.figures["burst-slowest"] = window.latency_seconds(1.0) * 1e3


async def round_of(
    setup: targets.Setup, comparison: Comparison, sizes: Sizes, *, number: int, send: bool = False, go: bool = False
) -> tuple[Figures, Figures]:
    """One round: figures of the service and of the bare loop. The order alternates, so that both get a warm machine."""
    order = [targets.Side.BARE, targets.Side.SERVICE]
    figures = {side: await Turn(setup, comparison, sizes).run(side) for side in (order if number % 2 else order[::-1])}
    if send:
        alone = await Turn(setup, comparison, sizes).run(targets.Side.SEND)
        figures[targets.Side.SERVICE]["bare-send"] = alone[f"cpu-{comparison.agents}x{comparison.rates[0]}"]
    if go:
        alone = await Turn(setup, dataclasses.replace(comparison, rates=(), idle=False), sizes).run(targets.Side.GO)
        ours = figures[targets.Side.SERVICE]
        ours["mtls-storm-go"] = alone["mtls-storm-cpu"]
        ours["mtls-storm-go-ratio"] = ours["mtls-storm-cpu"] / alone["mtls-storm-cpu"]
        ours["mtls-storm-go-slowest"] = alone["mtls-storm-slowest"]
    return figures[targets.Side.SERVICE], figures[targets.Side.BARE]
