"""The memory model: memory of a key, a channel, an update and a deletion. For a client, see the idle rows."""

import asyncio
import tracemalloc
from pathlib import Path
from typing import Final, NamedTuple

from cache.state import store
from loadtest.bench import comparisons, targets
from loadtest.environment import measurement, processes
from loadtest.reporting import measure
from loadtest.swarm import supervisor

FEW_PODS: Final = 500
MANY_PODS: Final = 20_000
DELETIONS: Final = 20_000
UPDATES_PER_SECOND: Final = 200.0
SETTLE_SECONDS: Final = 2.0


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


async def model(folder: Path, sizes: comparisons.Sizes) -> comparisons.Figures:
    """All figures of the model. Raises ProcessError, SwarmError."""
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
        base, opened, churned = await _channel(folder, sizes, compressed=compressed)
        figures[name] = (opened.total_bytes - base.total_bytes - opened.snapshot_bytes) / 1e6
        updates = round(UPDATES_PER_SECOND * sizes.seconds)
        figures[name.replace("channel", "update")] = (churned.log_bytes - opened.log_bytes) / updates
    return figures


async def _at_rest(service: processes.ServiceProcess) -> AtRest:
    await asyncio.sleep(SETTLE_SECONDS)
    counters = await service.counters()
    return AtRest(
        hub_bytes=measure.memory([service.pid]).private_bytes,
        total_bytes=measure.memory(service.pids()).total_bytes,
        keys=counters.total("typha_cache_size"),
        value_bytes=counters.total("typha_snapshot_raw_bytes"),
        snapshot_bytes=counters.total("typha_snapshot_compressed_bytes"),
        log_bytes=counters.total("typha_log_bytes"),
    )


async def _channel(folder: Path, sizes: comparisons.Sizes, *, compressed: bool) -> tuple[AtRest, AtRest, AtRest]:
    """Without clients, with a few of one format, and after updates that all of them have received."""
    plan = supervisor.SwarmPlan(feed=processes.FEED, agents=comparisons.FEW, compressed=compressed)
    async with processes.SimulatorProcess(folder, pods=sizes.pods) as simulator:
        setup = targets.Setup(folder=folder, simulator=simulator)
        async with setup.service() as service:
            base = await _at_rest(service)
            async with supervisor.Swarm([service.address], plan) as swarm:
                await swarm.wait_in_sync(timeout_seconds=targets.IN_SYNC_TIMEOUT_SECONDS)
                opened = await _at_rest(service)
                await simulator.update_pods(UPDATES_PER_SECOND, sizes.seconds)
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
