"""The service, a swarm of agents and a monitor on some API server: what every scenario plays on."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from cache.feeds import raw
from loadtest.environment import certificates, kubeconfig, processes
from loadtest.reporting import dashboard, measure, monitor, report
from loadtest.swarm import control, histogram, supervisor
from loadtest.verification import calico_expected_state, convergence, expected_state, proof

IN_SYNC_TIMEOUT_SECONDS: Final = 120.0
QUIET_TIMEOUT_SECONDS: Final = 60.0

ApiLoad = Callable[[], Awaitable[monitor.ApiLoad | None]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is set up."""

    folder: Path
    kubeconfig: Path
    types: Sequence[str]
    agents: int
    feed: str = processes.FEED
    """The raw feed of `types`, or one of Calico's, which has no use for `types`."""
    protocols: Sequence[control.Protocol] = (control.Protocol.NATIVE,)
    compressed: bool = True
    tls: bool = False
    """The agents come over mutual TLS, with certificates that are made for the run."""
    agents_at_first: int | None = None
    """So many connect at first, the others with the first `reconnect`; None for all."""
    public_agents: int = 0
    ramp_per_second: float = 1000.0
    small_buffers: int = 0
    small_buffer_bytes: int = 1
    apart: bool = False
    """The agents with small buffers are in processes of their own, see `control.Start`."""
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment of the service."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """What a span of time cost."""

    seconds: float
    """All of it, with the moment that is left for the last deliveries to be reported."""
    work_seconds: float
    """How long the work took that the span was for."""
    deliveries: int
    hub_cpu_seconds: float
    workers_cpu_seconds: float
    swarm_cpu_seconds: float
    latency: histogram.Histogram
    memory_bytes: int
    """The service's, at its peak within the span."""
    latency_of: Mapping[control.Protocol, histogram.Histogram]
    """By protocol, of the behaving agents."""

    @property
    def cpu_seconds(self) -> float:
        """Of the whole service."""
        return self.hub_cpu_seconds + self.workers_cpu_seconds

    def facts(self) -> dict[str, str]:
        """For people."""
        facts = {
            "deliveries": f"{self.deliveries:,} in {self.seconds:.1f} s ({self.deliveries / self.seconds:,.0f}/s)",
            "CPU of hub, workers, swarm": (
                f"{self.hub_cpu_seconds:.2f}, {self.workers_cpu_seconds:.2f}, {self.swarm_cpu_seconds:.2f} s"
            ),
            "memory of the service at its peak": f"{self.memory_bytes / 1e6:.1f} MB",
        }
        if self.deliveries:
            each = [seconds / self.deliveries * 1e6 for seconds in (self.hub_cpu_seconds, self.workers_cpu_seconds)]
            facts["CPU per delivery"] = f"{sum(each):.2f} µs (hub {each[0]:.2f}, workers {each[1]:.2f})"
        if self.latency.total:
            facts["delivery latency, write to read"] = quantiles_text(self.latency)
        return facts


@dataclasses.dataclass(frozen=True)
class Stage:
    """What runs."""

    plan: Plan
    screen: dashboard.View
    service: processes.Service
    swarm: supervisor.Swarm
    monitor: monitor.Monitor
    client: expected_state.ApiClient
    specs: Sequence[raw.ResourceSpec]
    monitoring: asyncio.Task[None]

    async def sleep(self, seconds: float) -> None:
        """Lets time pass. Raises what ended the monitor, if it ends."""
        done, _ = await asyncio.wait([self.monitoring], timeout=seconds)
        if done:
            self.monitoring.result()

    async def in_sync(self, *, timeout_seconds: float = IN_SYNC_TIMEOUT_SECONDS) -> float:
        """Waits until all agents are in sync; returns how long that took."""
        return await self.swarm.wait_in_sync(timeout_seconds=timeout_seconds)

    async def window(self, seconds: float, work: Callable[[], Awaitable[None]] | None = None) -> Window:
        """Measures a span of time: while `work` is done and at least so long."""
        before, latency, samples = self._reading(), list(self.monitor.latency.counts), len(self.monitor.samples)
        latency_of = {protocol: list(one.counts) for protocol, one in self.swarm.latency_of.items()}
        begin = time.monotonic()
        if work is not None:
            await work()
        work_seconds = time.monotonic() - begin
        await self.sleep(max(0.0, begin + seconds - time.monotonic()))
        # Reports and samples come every half second and every second; what happened last is in the next.
        await self.sleep(monitor.INTERVAL_SECONDS + 0.6)
        after = self._reading()
        peak = max((sample.service_memory_bytes for sample in self.monitor.samples[samples:]), default=0)
        return Window(
            seconds=time.monotonic() - begin,
            work_seconds=work_seconds,
            deliveries=int(after[0] - before[0]),
            hub_cpu_seconds=after[1] - before[1],
            workers_cpu_seconds=after[2] - before[2],
            swarm_cpu_seconds=after[3] - before[3],
            latency=self.monitor.latency.since(latency),
            memory_bytes=peak,
            latency_of={protocol: one.since(latency_of[protocol]) for protocol, one in self.swarm.latency_of.items()},
        )

    async def prove(self, asked: Mapping[tuple[str, str], int] | None = None) -> convergence.Verdict:
        """The verdict, once nobody writes any more."""
        return await proof.when_quiet(
            self.swarm, self._truth, timeout_seconds=QUIET_TIMEOUT_SECONDS, deletions_asked=asked
        )

    async def _truth(self) -> expected_state.Truth:
        if self.plan.feed == processes.FEED:
            return await self.client.truth(self.specs)
        return await calico_expected_state.read(self.client, self.plan.feed)

    def _reading(self) -> tuple[float, float, float, float]:
        """Deliveries; CPU of hub, workers and swarm."""
        pids = self.service.pids()
        total = self.monitor.cpu.sample(pids)
        hub = self.monitor.cpu.by_pid().get(pids[0], 0.0) if pids else 0.0
        totals = self.swarm.totals()
        return totals.updates, hub, total - hub, totals.cpu_seconds


@contextlib.asynccontextmanager
async def open_stage(plan: Plan, screen: dashboard.View, *, api_load: ApiLoad | None = None) -> AsyncIterator[Stage]:
    """Starts service, swarm and monitor, and ends them. Agents connect at once, and need not be in sync yet."""
    is_raw = plan.feed == processes.FEED
    specs = expected_state.specs(plan.types if is_raw else ())
    made = certificates.make(plan.folder, host=processes.HOST) if plan.tls else None
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(expected_state.ApiClient(kubeconfig.load(plan.kubeconfig)))
        service = await stack.enter_async_context(
            processes.Service(
                plan.folder,
                kubeconfig_file=plan.kubeconfig,
                types=plan.types if is_raw else (),
                calico=not is_raw,
                settings={**(made.environment if made else {}), **plan.settings},
            )
        )
        swarm = await stack.enter_async_context(
            supervisor.Swarm(
                [service.address],
                feed=plan.feed,
                agents=plan.agents,
                protocols=plan.protocols,
                compressed=plan.compressed,
                tls=made.agents if made else None,
                agents_at_first=plan.agents_at_first,
                public_agents=min(plan.public_agents, plan.agents - 1),
                ramp_per_second=plan.ramp_per_second,
                small_buffers=plan.small_buffers,
                small_buffer_bytes=plan.small_buffer_bytes,
                apart=plan.apart,
            )
        )
        watcher = monitor.Monitor(swarm, service, api_load=api_load, on_sample=screen.show)
        monitoring = asyncio.create_task(watcher.run(), name="monitor")
        stack.push_async_callback(_cancel, monitoring)
        yield Stage(plan, screen, service, swarm, watcher, client, specs, monitoring)


def checks(verdict: convergence.Verdict, totals: supervisor.Totals) -> list[report.Check]:
    """What every load test ends with."""
    return [
        report.Check(
            "every agent holds the API server's state",
            verdict.converged == verdict.agents,
            "; ".join([verdict.line(), *verdict.differing]),
        ),
        report.Check(
            "no agent saw the deletion of a live object",
            not verdict.phantom_deletions and not verdict.deletions_lost,
            "; ".join([f"{verdict.deletions_seen} objects were seen deleted", *verdict.phantom_deletions[:5]]),
        ),
        report.Check(
            "no agent saw the protocol broken",
            not totals.protocol_errors,
            "; ".join(totals.protocol_errors[:5]) or f"{totals.frames:,} frames checked",
        ),
    ]


def proved_how(verdict: convergence.Verdict) -> str:
    """Says which agents proved what."""
    return (
        f"{verdict.agents - verdict.public_agents} raw ones (each checks its own frame sequence and keeps its own "
        "digest; those of one process decode each distinct frame once) and "
        f"{verdict.public_agents} that decode everything through the public client"
    )


def data_of(verdict: convergence.Verdict, totals: supervisor.Totals) -> dict[str, object]:
    """For the JSON report."""
    found = dataclasses.asdict(verdict)
    found["digest"] = f"{verdict.digest:016x}"  # a 64-bit number is more than JSON's readers can be trusted with
    return {"verdict": found, "swarm": dataclasses.asdict(totals)}


def simulator_load(simulator: processes.Simulator) -> ApiLoad:
    """What a simulated API server has seen."""

    async def load() -> monitor.ApiLoad:
        return monitor.api_load_of(measure.Counters(await simulator.metrics()))

    return load


def quantiles_text(latency: histogram.Histogram) -> str:
    """p50 and p99 for people."""
    quantiles = [(name, latency.quantile(fraction)) for name, fraction in (("p50", 0.5), ("p99", 0.99))]
    text = ", ".join("-" if value is None else f"{name} {value * 1e3:.1f} ms" for name, value in quantiles)
    return f"{text} over {latency.total:,} deliveries"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
