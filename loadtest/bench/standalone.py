"""The rows without a bare loop: first sync, pauses, stalled clients, requests to the API server, memory model."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from loadtest.bench import comparisons, memory, targets
from loadtest.environment import measurement, processes
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fixture, registry
from loadtest.swarm import control

CALICO_PODS: Final = 20_000
PEAK_INTERVAL_SECONDS: Final = 0.1
SETTLED_SECONDS: Final = 4.0
"""From ready to the end of all work, for a service without clients."""
COLLECTION_SECONDS: Final = 65.0
"""The hub does a full garbage collection once a minute, when its loop has time."""
SCENARIO_SECONDS_MAX: Final = 10.0

Figures = comparisons.Figures


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What these measurements need."""

    folder: Path
    sizes: comparisons.Sizes
    screen: dashboard.Dashboard
    protocol: control.Protocol
    rounds: int

    def simulator(self) -> processes.SimulatorProcess:
        """A simulated API server of the right size and kind."""
        return processes.SimulatorProcess(
            self.folder, pods=self.sizes.pods, calico=self.protocol is control.Protocol.TYPHA
        )

    async def scenario(self, name: str) -> report.Report:
        """Run a scenario and print its checks."""
        sizes = self.sizes
        settings = fixture.Settings(
            agents=max(20, sizes.scaled(1000)),
            public_agents=2,
            rounds=self.rounds,
            seconds=min(SCENARIO_SECONDS_MAX, sizes.seconds),
            pods=sizes.pods,
            protocols=(self.protocol,),
            feed=targets.FEEDS[self.protocol],
            folder=self.folder,
            judge_times=sizes.scale >= 1,
        )
        made = await registry.SCENARIOS[name](settings, self.screen)
        for check in made.checks:
            self.screen.say(check.line())
        return made


Measurement = Callable[[Context], Awaitable[Figures]]


async def first_sync(context: Context) -> Figures:
    """From exec to ready with all of Calico's feeds, then at rest."""
    pods = context.sizes.scaled(CALICO_PODS)
    async with processes.SimulatorProcess(context.folder, pods=pods, calico=True) as simulator:
        service = processes.ServiceProcess(context.folder, kubeconfig=simulator.kubeconfig)
        async with (
            measurement.peak_memory(service.pids, interval_seconds=PEAK_INTERVAL_SECONDS) as peak,
            service,
        ):
            cpu = sum(measure.cpu_seconds(pid, ended_children=True) for pid in service.pids())
            await asyncio.sleep(SETTLED_SECONDS)
            memory = measure.memory(service.pids()).total_bytes
    return {"first-sync": cpu, "memory-no-clients": memory / 1e6, "memory-first-sync": max(peak) / 1e6}


async def pauses(context: Context) -> Figures:
    """The service's own figures after churn, a lost history, a burst, a storm and a full garbage collection."""
    sizes = context.sizes
    async with context.simulator() as simulator:
        setup = targets.Setup(folder=context.folder, simulator=simulator, protocol=context.protocol)
        async with setup.service() as service, setup.open_swarm(service, sizes.scaled(1000)) as swarm:
            await simulator.start_churn(20.0)
            await asyncio.sleep(sizes.seconds / 2)
            await simulator.control("POST", "faults", {"kind": "compact"})
            await asyncio.sleep(sizes.seconds / 2)
            await simulator.stop_churn()
            await measurement.until_quiet(swarm)
            before = swarm.totals().updates
            await simulator.burst(comparisons.BURST_UPDATES)
            await measurement.until_more_than(before, swarm)
            await measurement.until_quiet(swarm)
            await swarm.reconnect()
            await asyncio.sleep(sizes.seconds / 2)
            if sizes.scale >= 1:
                await asyncio.sleep(COLLECTION_SECONDS)
            counters = await service.counters()
    context.screen.say(f"relists: {counters.by_label('typha_watch_relists_total', 'reason')}")
    return {
        "pause-hub": counters.total("typha_hub_pause_seconds_worst") * 1e3,
        "pause-worker": counters.total("typha_worker_pause_seconds_worst") * 1e3,
    }


async def stalled(context: Context) -> Figures:
    """The number of failed checks of the scenario."""
    made = await context.scenario("stalled")
    return {"stalled": float(sum(not check.passed for check in made.checks))}


async def api_requests(context: Context) -> Figures:
    """The number of requests in the scenario."""
    made = await context.scenario("api-load")
    few, many = (sum(place.values()) for place in made.data["requests"])
    return {"api-requests": few, "api-requests-more": abs(many - few)}


async def memory_model(context: Context) -> Figures:
    """Memory of keys, channels, updates and deletions."""
    return await memory.model(context.folder, context.sizes)


STANDALONE: Final[Mapping[str, Measurement]] = {
    "memory-model": memory_model,
    "calico": first_sync,
    "pauses": pauses,
    "stalled": stalled,
    "api-requests": api_requests,
}
ONCE: Final = frozenset({"memory-model", "pauses", "stalled", "api-requests"})
"""Measurements that have their own rounds, or no median."""
