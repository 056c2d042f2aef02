"""The memory model: what a key, a channel, an update and a deletion take. A client: see the rows on idle ones."""

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple

from cache.state import store
from loadtest import demo
from loadtest.bench import comparisons, measurement
from loadtest.environment import processes
from loadtest.reporting import measure
from loadtest.swarm import supervisor

FEW_PODS: Final = 500
MANY_PODS: Final = 20_000
DELETIONS: Final = 20_000
UPDATES_PER_SECOND: Final = 200.0
SETTLE_SECONDS: Final = 2.0


class State(NamedTuple):
    """A service at rest."""

    hub_bytes: int
    """Private, proportional."""
    total_bytes: int
    """All processes, files in memory once."""
    keys: float
    value_bytes: float
    snapshot_bytes: float
    log_bytes: float


async def model(folder: Path, sizes: comparisons.Sizes) -> comparisons.Figures:
    """All figures of the model. Raises ProcessError, SwarmError."""
    figures = {"memory-deletion": _deletion_bytes()}
    for name, calico in (("memory-key-raw", False), ("memory-key-calico", True)):
        few, many = [await _at_rest(folder, pods=sizes.scaled(pods), calico=calico) for pods in (FEW_PODS, MANY_PODS)]
        beyond = (many.hub_bytes - few.hub_bytes) - (many.value_bytes - few.value_bytes)
        figures[name] = beyond / (many.keys - few.keys)
    for name, compressed in (("memory-channel-zstd", True), ("memory-channel-plain", False)):
        base, open_, churned = await _channel(folder, sizes, compressed=compressed)
        figures[name] = (open_.total_bytes - base.total_bytes - open_.snapshot_bytes) / 1e6
        updates = round(UPDATES_PER_SECOND * sizes.seconds)
        figures[name.replace("channel", "update")] = (churned.log_bytes - open_.log_bytes) / updates
    return figures


@contextlib.asynccontextmanager
async def _running(
    folder: Path, *, pods: int, calico: bool
) -> AsyncIterator[tuple[processes.Simulator, processes.Service]]:
    arguments = ["--pods", str(pods), *(["--calico"] if calico else [])]
    async with processes.Simulator(folder, arguments=arguments) as simulator:
        types = () if calico else demo.SIMULATED_TYPES
        async with processes.Service(
            folder, kubeconfig_file=simulator.kubeconfig, types=types, calico=calico
        ) as service:
            yield simulator, service


async def _state(service: processes.Service) -> State:
    await asyncio.sleep(SETTLE_SECONDS)
    counters = await service.counters()
    return State(
        hub_bytes=measure.memory([service.hub_pid]).private_bytes,
        total_bytes=measure.memory(service.pids()).total_bytes,
        keys=counters.total("typha_cache_size"),
        value_bytes=counters.total("typha_snapshot_raw_bytes"),
        snapshot_bytes=counters.total("typha_snapshot_compressed_bytes"),
        log_bytes=counters.total("typha_log_bytes"),
    )


async def _at_rest(folder: Path, *, pods: int, calico: bool) -> State:
    async with _running(folder, pods=pods, calico=calico) as (_, service):
        return await _state(service)


async def _channel(folder: Path, sizes: comparisons.Sizes, *, compressed: bool) -> tuple[State, State, State]:
    """Without clients, with a few of one format, and after updates that all of them have."""
    async with _running(folder, pods=sizes.pods, calico=False) as (simulator, service):
        base = await _state(service)
        async with supervisor.Swarm(
            [service.address], feed=processes.FEED, agents=comparisons.FEW, compressed=compressed
        ) as swarm:
            await swarm.wait_in_sync(timeout_seconds=comparisons.IN_SYNC_TIMEOUT_SECONDS)
            opened = await _state(service)
            body = {"rate_per_second": UPDATES_PER_SECOND, "duration_seconds": sizes.seconds}
            await simulator.control("POST", "churn", {**body, "create": 0, "delete": 0, "types": {"pods": 1}})
            await asyncio.sleep(sizes.seconds)
            await measurement.until_quiet(swarm)
            return base, opened, await _state(service)


def _deletion_bytes() -> float:
    """What a store keeps of a deleted key, as Python allocates it."""
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
