"""Samples of swarm, service and API server once a second while a load test runs."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from loadtest.reporting import measure
from loadtest.swarm import histogram, supervisor

INTERVAL_SECONDS: Final = 1.0

ApiCounters = Callable[[], Awaitable[measure.Metrics | None]]
"""Reads the API server's own metrics; None if it does not give any."""


class Service(Protocol):
    """What is asked of a service, or of several replicas together."""

    def hubs(self) -> list[int]:
        """The hubs' process ids."""

    def pids(self) -> list[int]:
        """All process ids."""

    def cpu(self) -> measure.Cpu:
        """CPU time since the first start."""

    async def counters(self) -> measure.Metrics:
        """Its metrics; empty while it does not answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One second of a load test. Rates and latencies cover the time since the last sample; None means unknown."""

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
    hub_private_bytes: int
    workers_private_bytes: int
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
    totals: supervisor.Totals
    latency: histogram.Histogram
    cpu: measure.Cpu
    counters: measure.Metrics

    @property
    def updates(self) -> float:
        return self.counters.total("typha_updates_total") - self.counters.total("typha_updates_skipped")


class Monitor:
    """Takes samples until it is cancelled, and keeps them in `samples`."""

    def __init__(
        self,
        swarm: supervisor.Swarm,
        service: Service,
        *,
        api_counters: ApiCounters | None = None,
        on_sample: Callable[[Sample], None],
    ) -> None:
        self.samples: list[Sample] = []
        self._swarm = swarm
        self._service = service
        self._api_counters = api_counters
        self._on_sample = on_sample
        self._begin = time.monotonic()

    async def run(self) -> None:
        """Never returns. Raises SwarmError, ProcessError."""
        before = await self._read()
        due = time.monotonic()
        while True:
            due = max(due + INTERVAL_SECONDS, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            after = await self._read()
            self.samples.append(await self._sample(before, after))
            self._on_sample(self.samples[-1])
            before = after

    async def _read(self) -> _Reading:
        counters = await self._service.counters()
        totals, latency = self._swarm.totals(), self._swarm.latency.copy()
        return _Reading(time.monotonic(), totals, latency, self._service.cpu(), counters)

    async def _sample(self, before: _Reading, after: _Reading) -> Sample:
        elapsed = after.at - before.at
        totals = after.totals
        deliveries = totals.updates - before.totals.updates
        reported = totals.at_seconds - before.totals.at_seconds
        latency = after.latency.since(before.latency)
        pids = self._service.pids()
        memory = await asyncio.to_thread(measure.memory, pids)
        hub = await asyncio.to_thread(measure.memory, self._service.hubs())
        api = await self._api_counters() if self._api_counters is not None else None
        cpu = measure.Cpu(after.cpu.hub - before.cpu.hub, after.cpu.workers - before.cpu.workers)
        return Sample(
            seconds=after.at - self._begin,
            agents=totals.agents,
            connected=totals.connected,
            in_sync=totals.in_sync,
            updates_per_second=max(0.0, after.updates - before.updates) / elapsed,
            deliveries_per_second=max(0, deliveries) / reported if reported > 0 else 0.0,
            latency_p50_seconds=latency.quantile(0.5),
            latency_p99_seconds=latency.quantile(0.99),
            slowest_lag_seconds=totals.slowest_lag_seconds,
            service_memory_bytes=memory.total_bytes,
            hub_private_bytes=hub.private_bytes,
            workers_private_bytes=max(0, memory.private_bytes - hub.private_bytes),
            service_memfd_bytes=memory.memfd_bytes,
            kernel_socket_bytes=measure.kernel_socket_bytes(),
            hub_cores=cpu.hub / elapsed,
            workers_cores=cpu.workers / elapsed,
            cpu_seconds_per_delivery=sum(cpu) / deliveries if deliveries > 0 else None,
            keys=after.counters.total("typha_cache_size") or None,
            snapshot_bytes=after.counters.total("typha_snapshot_compressed_bytes") or None,
            api_requests=None if api is None else api.total("apiserver_request_total"),
            api_watches=None if api is None else api.total("apiserver_longrunning_requests", verb="WATCH"),
        )
