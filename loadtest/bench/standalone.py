"""The rows without a bare loop: first sync, pauses, stalled clients, requests to the API server, memory model."""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from cache.state import store
from loadtest.bench import comparisons, targets
from loadtest.environment import measurement, processes
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fixture, registry
from loadtest.swarm import supervisor

CALICO_PODS: Final = 20_000
PEAK_INTERVAL_SECONDS: Final = 0.1
SETTLED_SECONDS: Final = 4.0
"""From ready to the end of all work, for a service without clients."""
COLLECTION_SECONDS: Final = 65.0
"""The hub does a full garbage collection once a minute, when its loop has time."""
SCENARIO_SECONDS_MAX: Final = 10.0
FEW_PODS: Final = 500
MANY_PODS: Final = 20_000
DELETIONS: Final = 20_000
UPDATES_PER_SECOND: Final = 200.0
AT_REST_SECONDS: Final = 2.0

Figures = comparisons.Figures


Measurement = Callable[[comparisons.BenchSettings, dashboard.Dashboard], Awaitable[Figures]]


async def _scenario(name: str, settings: comparisons.BenchSettings, screen: dashboard.Dashboard) -> report.Report:
    """Run a scenario and print its checks."""
    sizes = settings.sizes
    chosen = fixture.Settings(
        agents=max(20, sizes.scaled(1000)),
        public_agents=2,
        rounds=settings.rounds,
        seconds=min(SCENARIO_SECONDS_MAX, sizes.seconds),
        pods=sizes.pods,
        protocols=(settings.protocol,),
        feed=targets.FEEDS[settings.protocol],
        folder=settings.folder,
        judge_times=settings.judged,
    )
    made = await registry.SCENARIOS[name](chosen, screen)
    for check in made.checks:
        screen.say(check.line())
    return made


async def first_sync(settings: comparisons.BenchSettings, screen: dashboard.Dashboard) -> Figures:
    """From exec to ready with all of Calico's feeds, then at rest."""
    pods = settings.sizes.scaled(CALICO_PODS)
    async with processes.SimulatorProcess(settings.folder, pods=pods, calico=True) as simulator:
        service = processes.ServiceProcess(settings.folder, kubeconfig=simulator.kubeconfig)
        async with (
            measurement.peak_memory(service.pids, interval_seconds=PEAK_INTERVAL_SECONDS) as peak,
            service,
        ):
            cpu = sum(measure.cpu_seconds(pid, ended_children=True) for pid in service.pids())
            await asyncio.sleep(SETTLED_SECONDS)
            memory = measure.memory(service.pids()).total_bytes
    return {"first-sync": cpu, "memory-no-clients": memory / 1e6, "memory-first-sync": max(peak) / 1e6}


async def pauses(settings: comparisons.BenchSettings, screen: dashboard.Dashboard) -> Figures:
    """The service's own figures after churn, a lost history, a burst, a storm and a full garbage collection."""
    sizes = settings.sizes
    async with comparisons.open_setup(settings) as setup:
        simulator = setup.simulator
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
    screen.say(f"relists: {counters.by_label('typha_watch_relists_total', 'reason')}")
    return {
        "pause-hub": counters.total("typha_hub_pause_seconds_worst") * 1e3,
        "pause-worker": counters.total("typha_worker_pause_seconds_worst") * 1e3,
    }


async def stalled(settings: comparisons.BenchSettings, screen: dashboard.Dashboard) -> Figures:
    """The number of failed checks of the scenario."""
    made = await _scenario("stalled", settings, screen)
    return {"stalled": float(sum(not check.passed for check in made.checks))}


async def api_requests(settings: comparisons.BenchSettings, screen: dashboard.Dashboard) -> Figures:
    """The number of requests in the scenario."""
    made = await _scenario("api-load", settings, screen)
    few, many = (sum(place.values()) for place in made.data["requests"])
    return {"api-requests": few, "api-requests-more": abs(many - few)}


class AtRest(NamedTuple):
    """A service at rest."""

    hub_bytes: int
    """Private memory, proportional."""
    total_bytes: int
    """Of all processes; files in memory count once."""
    keys: float
    value_bytes: float
    snapshot_bytes: float
    log_bytes: float


async def memory_model(settings: comparisons.BenchSettings, screen: dashboard.Dashboard) -> Figures:
    """Memory of a key, a channel, an update and a deletion. For a client, see the idle rows."""
    folder, sizes = settings.folder, settings.sizes
    figures = {"memory-deletion": _deletion_bytes()}
    for name, types in (("memory-key-raw", processes.SIMULATED_TYPES), ("memory-key-calico", ())):
        found = []
        for pods in (FEW_PODS, MANY_PODS):
            async with (
                processes.SimulatorProcess(folder, pods=sizes.scaled(pods), calico=not types) as simulator,
                processes.ServiceProcess(folder, kubeconfig=simulator.kubeconfig, types=types) as service,
            ):
                found.append(await _at_rest(service))
        few, many = found
        beyond = (many.hub_bytes - few.hub_bytes) - (many.value_bytes - few.value_bytes)
        figures[name] = beyond / (many.keys - few.keys)
    for name, compressed in (("memory-channel-zstd", True), ("memory-channel-plain", False)):
        base, opened, churned = await _channel(settings, compressed=compressed)
        figures[name] = (opened.total_bytes - base.total_bytes - opened.snapshot_bytes) / 1e6
        updates = round(UPDATES_PER_SECOND * sizes.seconds)
        figures[name.replace("channel", "update")] = (churned.log_bytes - opened.log_bytes) / updates
    return figures


async def _at_rest(service: processes.ServiceProcess) -> AtRest:
    await asyncio.sleep(AT_REST_SECONDS)
    counters = await service.counters()
    return AtRest(
        hub_bytes=measure.memory([service.pid]).private_bytes,
        total_bytes=measure.memory(service.pids()).total_bytes,
        keys=counters.total("typha_cache_size"),
        value_bytes=counters.total("typha_cache_bytes"),
        snapshot_bytes=counters.total("typha_snapshot_compressed_bytes"),
        log_bytes=counters.total("typha_log_bytes"),
    )


async def _channel(settings: comparisons.BenchSettings, *, compressed: bool) -> tuple[AtRest, AtRest, AtRest]:
    """Without clients, with a few of one format, and after updates that all of them have received."""
    plan = supervisor.SwarmPlan(feed=processes.FEED, agents=comparisons.FEW, compressed=compressed)
    async with comparisons.open_setup(settings) as setup, setup.service() as service:
        base = await _at_rest(service)
        async with supervisor.Swarm([service.address], plan) as swarm:
            await swarm.wait_in_sync(timeout_seconds=targets.IN_SYNC_TIMEOUT_SECONDS)
            opened = await _at_rest(service)
            await setup.simulator.update_pods(UPDATES_PER_SECOND, settings.sizes.seconds)
            await measurement.until_quiet(swarm)
            return base, opened, await _at_rest(service)


def _deletion_bytes() -> float:
    """What a store keeps of a deleted key, by Python's count of allocations."""
    tracemalloc.start()
    try:
        filled = store.Store()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(DELETIONS):
            key = f"/core/v1/pods/namespace-{number % 20:03}/application-{number:010x}-{number % 65536:05x}"
            filled.put(key, b"{}", str(1_000_000 + number))
        for entry in list(filled):
            filled.delete(entry.key, str(2_000_000 + entry.sequence))
        del entry
        return (tracemalloc.get_traced_memory()[0] - before) / DELETIONS
    finally:
        tracemalloc.stop()


STANDALONE: Final[Mapping[str, Measurement]] = {
    "memory-model": memory_model,
    "calico": first_sync,
    "pauses": pauses,
    "stalled": stalled,
    "api-requests": api_requests,
}
ONCE: Final = frozenset({"memory-model", "pauses", "stalled", "api-requests"})
"""Measurements that have their own rounds, or no median."""
