"""Looks at swarm, service and API server once a second while a load test runs, and keeps what it saw."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Final

from loadtest.environment import processes
from loadtest.reporting import measure
from loadtest.swarm import histogram, supervisor

INTERVAL_SECONDS: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class ApiLoad:
    """What the API server has seen since its start."""

    requests: float
    open_watches: float


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One second of a load test. Rates and latencies are of the time since the last sample; None is "not known"."""

    seconds: float
    agents: int
    connected: int
    in_sync: int
    updates_per_second: float | None
    deliveries_per_second: float
    latency_p50_seconds: float | None
    latency_p99_seconds: float | None
    slowest_lag_seconds: float
    service_memory_bytes: int
    service_memfd_bytes: int
    kernel_socket_bytes: int
    hub_cores: float
    workers_cores: float
    cpu_seconds_per_delivery: float | None
    keys: float | None
    snapshot_bytes: float | None
    api_requests: float | None
    api_watches: float | None


@dataclasses.dataclass(slots=True)
class _Reading:
    at: float
    swarm: supervisor.Totals
    updates: float
    hub_cpu: float
    workers_cpu: float


class Monitor:
    """Samples until it is cancelled; `samples` is what it saw, `latency` all latencies, `cpu` all processes' CPU."""

    def __init__(
        self,
        swarm: supervisor.Swarm,
        service: processes.Service,
        *,
        api_load: Callable[[], Awaitable[ApiLoad | None]] | None = None,
        on_sample: Callable[[Sample], None] | None = None,
    ) -> None:
        self.samples: list[Sample] = []
        self.latency = histogram.Histogram()
        self.cpu = measure.CpuMeter()
        self._swarm = swarm
        self._service = service
        self._api_load = api_load
        self._on_sample = on_sample
        self._begin = time.monotonic()

    async def run(self) -> None:
        """For ever."""
        before, _ = await self._read()
        due = time.monotonic()
        while True:
            due = max(due + INTERVAL_SECONDS, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            after, counters = await self._read()
            sample = await self._sample(before, after, counters)
            before = after
            self.samples.append(sample)
            if self._on_sample is not None:
                self._on_sample(sample)

    async def _read(self) -> tuple[_Reading, measure.Counters]:
        counters = await self._service.counters()
        pids = self._service.pids()
        self.cpu.sample(pids)
        used = self.cpu.by_pid()
        hub = used.get(pids[0], 0.0) if pids else 0.0
        updates = counters.total("typha_updates_total") - counters.total("typha_updates_skipped")
        reading = _Reading(time.monotonic(), self._swarm.totals(), updates, hub, sum(used.values()) - hub)
        return reading, counters

    async def _sample(self, before: _Reading, after: _Reading, counters: measure.Counters) -> Sample:
        elapsed = after.at - before.at
        swarm = after.swarm
        deliveries = swarm.updates - before.swarm.updates
        reported = swarm.at_seconds - before.swarm.at_seconds
        latency = self._swarm.take_latency()
        self.latency.merge(latency.sparse())
        pids = self._service.pids()
        memory = await asyncio.to_thread(measure.memory, pids)
        load = await self._api_load() if self._api_load is not None else None
        cores = (max(0.0, after.hub_cpu - before.hub_cpu), max(0.0, after.workers_cpu - before.workers_cpu))
        return Sample(
            seconds=after.at - self._begin,
            agents=swarm.agents,
            connected=swarm.connected,
            in_sync=swarm.in_sync,
            updates_per_second=max(0.0, after.updates - before.updates) / elapsed,
            deliveries_per_second=max(0, deliveries) / reported if reported > 0 else 0.0,
            latency_p50_seconds=latency.quantile(0.5),
            latency_p99_seconds=latency.quantile(0.99),
            slowest_lag_seconds=swarm.slowest_lag_seconds,
            service_memory_bytes=memory.total_bytes,
            service_memfd_bytes=memory.memfd_bytes,
            kernel_socket_bytes=measure.kernel_socket_bytes(),
            hub_cores=cores[0] / elapsed,
            workers_cores=cores[1] / elapsed,
            cpu_seconds_per_delivery=sum(cores) / deliveries if deliveries > 0 else None,
            keys=counters.total("typha_cache_size") or None,
            snapshot_bytes=counters.total("typha_snapshot_compressed_bytes") or None,
            api_requests=None if load is None else load.requests,
            api_watches=None if load is None else load.open_watches,
        )


def api_load_of(counters: measure.Counters) -> ApiLoad:
    """What kube-apiserver's own metrics say (or the simulator's, which has the same names)."""
    return ApiLoad(
        requests=counters.total("apiserver_request_total"),
        open_watches=counters.total("apiserver_longrunning_requests", verb="WATCH"),
    )
