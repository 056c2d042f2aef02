"""The rows that have no bare loop beside them: a first sync, pauses, stalled clients, requests to the API server."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from cache.feeds.calico import syncers
from loadtest.bench import comparisons, measurement, memory, targets
from loadtest.environment import processes
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fixture, registry
from loadtest.swarm import control, supervisor

CALICO_PODS: Final = 20_000
PEAK_INTERVAL_SECONDS: Final = 0.1
SETTLED_SECONDS: Final = 4.0
"""So long after it is ready a service without clients has done what there is to do."""
COLLECTION_SECONDS: Final = 65.0
"""A full collection of the hub comes once a minute, when its loop has time."""
SCENARIO_SECONDS_MAX: Final = 10.0

Figures = comparisons.Figures


@dataclasses.dataclass(frozen=True, slots=True)
class Around:
    """What they are measured with."""

    folder: Path
    sizes: comparisons.Sizes
    screen: dashboard.View
    protocol: control.Protocol
    rounds: int


Apart = Callable[[Around], Awaitable[Figures]]


async def first_sync(around: Around) -> Figures:
    """From exec to ready with all of Calico's feeds, then at rest."""
    pods = around.sizes.scaled(CALICO_PODS)
    async with processes.Simulator(around.folder, arguments=["--pods", str(pods), "--calico"]) as simulator:
        service = processes.Service(around.folder, kubeconfig_file=simulator.kubeconfig, types=(), calico=True)
        peak = 0

        async def look() -> None:
            nonlocal peak
            while True:
                peak = max(peak, await asyncio.to_thread(lambda: measure.memory(service.pids()).total_bytes))
                await asyncio.sleep(PEAK_INTERVAL_SECONDS)

        looking = asyncio.create_task(look(), name="peak memory")
        try:
            async with service:
                cpu = sum(measure.cpu_seconds(pid, ended_children=True) for pid in service.pids())
                await asyncio.sleep(SETTLED_SECONDS)
                memory = measure.memory(service.pids()).total_bytes
        finally:
            looking.cancel()
            await asyncio.wait([looking])
    return {"first-sync": cpu, "memory-no-clients": memory / 1e6, "memory-first-sync": peak / 1e6}


async def pauses(around: Around) -> Figures:
    """Churn, forgotten history, a burst, a storm, a full collection: what the service says of itself."""
    sizes = around.sizes
    agents = sizes.scaled(1000)
    calico = ["--calico"] if around.protocol is control.Protocol.TYPHA else []
    async with processes.Simulator(around.folder, arguments=["--pods", str(sizes.pods), *calico]) as simulator:
        ground = targets.Ground(folder=around.folder, simulator=simulator, protocol=around.protocol)
        async with targets.open_contender(targets.Side.SERVICE, ground) as contender:
            assert contender.service is not None
            async with supervisor.Swarm(
                [contender.address],
                feed=ground.feed,
                agents=agents,
                protocols=(ground.protocol,),
                ramp_per_second=comparisons.RAMP_PER_SECOND,
            ) as swarm:
                await swarm.wait_in_sync(timeout_seconds=comparisons.IN_SYNC_TIMEOUT_SECONDS)
                await simulator.control("POST", "churn", {"rate_per_second": 20.0, "label_times": ground.is_calico})
                await asyncio.sleep(sizes.seconds / 2)
                await simulator.control("POST", "faults", {"kind": "compact"})
                await asyncio.sleep(sizes.seconds / 2)
                await simulator.control("DELETE", "churn")
                await measurement.until_quiet(swarm)
                before = swarm.totals().updates
                await simulator.control("POST", "burst", {"count": comparisons.BURST_UPDATES})
                await measurement.until_more_than(before, swarm)
                await measurement.until_quiet(swarm)
                await swarm.reconnect()
                await asyncio.sleep(sizes.seconds / 2)
                if sizes.scale >= 1:
                    await asyncio.sleep(COLLECTION_SECONDS)
                counters = await contender.service.counters()
    around.screen.say(f"relists: {counters.by_label('typha_watch_relists_total', 'reason')}")
    return {
        "pause-hub": counters.total("typha_hub_pause_seconds_worst") * 1e3,
        "pause-worker": counters.total("typha_worker_pause_seconds_worst") * 1e3,
    }


async def stalled(around: Around) -> Figures:
    """The scenario, and how many of its checks fail."""
    made = await registry.SCENARIOS["stalled"](_setting(around), around.screen)
    return {"stalled": _failed(made, around.screen)}


async def api_requests(around: Around) -> Figures:
    """The scenario, and how many requests there were."""
    made = await registry.SCENARIOS["api-load"](_setting(around), around.screen)
    _failed(made, around.screen)
    few, many = (sum(place.values()) for place in made.data["requests"])
    return {"api-requests": few, "api-requests-more": abs(many - few)}


def _failed(made: report.Report, screen: dashboard.View) -> float:
    for check in made.checks:
        screen.say(check.line())
    return float(sum(not check.passed for check in made.checks))


def _setting(around: Around) -> fixture.Settings:
    sizes = around.sizes
    is_calico = around.protocol is control.Protocol.TYPHA
    return fixture.Settings(
        agents=max(20, sizes.scaled(1000)),
        public_agents=2,
        rounds=around.rounds,
        seconds=min(SCENARIO_SECONDS_MAX, sizes.seconds),
        pods=sizes.pods,
        protocols=(around.protocol,),
        feed=syncers.FELIX if is_calico else processes.FEED,
        folder=around.folder,
        judge_times=sizes.scale >= 1,
    )


async def memory_model(around: Around) -> Figures:
    """What keys, channels, updates and deletions take."""
    return await memory.model(around.folder, around.sizes)


APART: Final[Mapping[str, Apart]] = {
    "memory-model": memory_model,
    "calico": first_sync,
    "pauses": pauses,
    "stalled": stalled,
    "api-requests": api_requests,
}
ONCE: Final = frozenset({"memory-model", "pauses", "stalled", "api-requests"})
"""What has rounds of its own, or has nothing to take a median of."""
