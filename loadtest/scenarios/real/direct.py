"""What agents cost a real API server: each for itself, as Felix does without Typha, and behind some replicas."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from loadtest.apiserver import population
from loadtest.environment import child, control_plane, direct, kubeconfig, processes
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fixture
from loadtest.scenarios.real import cluster
from loadtest.swarm import control, histogram, supervisor
from loadtest.verification import convergence, expected_state

FEW: Final = 10
DIRECT_MAX: Final = 200
"""Agents that connect directly. With 500 of them the API server fills two CPUs, and nothing else can be measured."""
REPLICAS: Final = 3
START_TIMEOUT_SECONDS: Final = 900.0
DELIVERED_TIMEOUT_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 3.0
QUIET_TIMEOUT_SECONDS: Final = 60.0
_FEED: Final = fixture.FELIX
_DIRECT, _PROXY, _TIERS = "direct", "proxy", "tiers"


class Reading(NamedTuple):
    """The API server's own figures at a moment; counters since its start."""

    at: float
    cpu_seconds: float
    sent_bytes: int
    """All that it has written, to etcd and its log, too."""
    read_cpu_seconds: float
    """CPU time for this reading: its page of metrics has 1.5 MB."""
    read_bytes: int
    refused: float
    watches: float
    live_bytes: float
    """Of its heap at the last collection: half of the size at which Go plans the next one."""
    pss_bytes: int

    def since(self, before: "Reading") -> tuple[float, float, float]:
        """Seconds, CPU seconds and megabytes between two readings, without what the first one cost."""
        return (
            self.at - before.at,
            self.cpu_seconds - before.cpu_seconds - before.read_cpu_seconds,
            (self.sent_bytes - before.sent_bytes - before.read_bytes) / 1e6,
        )


class Row(NamedTuple):
    """One step of a round."""

    way: str
    """`direct`, or `proxy` as in docs/pictures/api-server-load.json; `tiers` if all but one follow that one."""
    replicas: int
    agents: int
    start_seconds: float = 0.0
    """Until all agents watch everything, or are in sync."""
    start_cpu_seconds: float = 0.0
    start_sent_mb: float = 0.0
    refused: float = 0.0
    """Answers with 429, during the start."""
    watches: float = 0.0
    cores: float = 0.0
    """The API server's CPU while pods change."""
    sent_mb_per_second: float = 0.0
    live_mb: float = 0.0
    pss_mb: float = 0.0
    agents_cores: float = 0.0
    """Of the agents, which are on the same machine."""
    service_cores: float = 0.0
    """Of all replicas."""
    delivered: int = 0
    expected: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0

    @property
    def name(self) -> str:
        """For people."""
        behind = f"behind {self.replicas} replica{'s' * (self.replicas > 1)}" if self.replicas else "directly"
        return f"{self.agents:,} agents {behind}{' in tiers' * (self.way == _TIERS)}"


class Agents(NamedTuple):
    """Agents of one way. They connect with `start`."""

    start: Callable[[], Awaitable[None]]
    """Returns when all follow."""
    wait: Callable[[Callable[[], bool]], Awaitable[object]]
    """Waits until a condition holds that depends on their reports. Raises TimeoutError."""
    latency: Callable[[], histogram.Histogram]
    """Of each change that an agent has received."""
    cpu_seconds: Callable[[], float]
    service_cpu_seconds: Callable[[], float]
    finished: Callable[[], Awaitable[report.Check | None]]
    """What can be proved about them in the end."""


class Bench:
    """A populated control plane."""

    def __init__(
        self,
        settings: fixture.Settings,
        screen: dashboard.Dashboard,
        plane: control_plane.ControlPlane,
        client: expected_state.ApiClient,
        objects: cluster.Cluster,
    ) -> None:
        self.settings = settings
        self.screen = screen
        self.plane = plane
        self.client = client
        self.objects = objects
        self.rows: list[Row] = []
        self.checks: list[report.Check] = []

    async def step(self, agents: int, replicas: int, way: str) -> None:
        """Start agents, measure the start and then a span of changes, and end the agents and their watches."""
        alone = (await self._read()).watches
        opened = self._direct(agents) if way == _DIRECT else self._replicas(agents, replicas, in_tiers=way == _TIERS)
        async with opened as crowd:
            before = await self._read()
            began = time.monotonic()
            await crowd.start()
            start_seconds = time.monotonic() - began
            started = await self._read()
            _, cpu_seconds, sent_mb = started.since(before)
            row = await self._measure(crowd, agents, replicas, way)
            self.rows.append(
                row._replace(
                    start_seconds=start_seconds,
                    start_cpu_seconds=cpu_seconds,
                    start_sent_mb=sent_mb,
                    refused=started.refused - before.refused,
                )
            )
            self.screen.say(f"{self.rows[-1].name}: {_line(self.rows[-1])}")
            proof = await crowd.finished()
            if proof is not None:
                self.checks.append(proof)
        # The API server may see the ends later. If it has more watches of its own by now, that is for the checks.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_TIMEOUT_SECONDS):
                await self._has_at_most(alone)

    async def _has_at_most(self, watches: float) -> None:
        """Returns when the API server has no more watches than that."""
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            if (await self._read()).watches <= watches:
                return

    async def _measure(self, crowd: Agents, agents: int, replicas: int, way: str) -> Row:
        await asyncio.sleep(SETTLE_SECONDS)
        latency, changes = crowd.latency(), self.objects.changes
        used, served = crowd.cpu_seconds(), crowd.service_cpu_seconds()
        first = await self._read()
        rate = self.settings.updates_per_second
        await self.objects.change_pods(changes_per_second=rate, seconds=self.settings.seconds)
        last = await self._read()
        seconds, cpu_seconds, sent_mb = last.since(first)
        expected = agents * (self.objects.changes - changes)
        cores, agents_cores, service_cores = (
            value / seconds
            for value in (
                cpu_seconds,
                crowd.cpu_seconds() - used,
                crowd.service_cpu_seconds() - served,
            )
        )
        with contextlib.suppress(TimeoutError):
            await crowd.wait(lambda: crowd.latency().total - latency.total >= expected)
        spread = crowd.latency().since(latency)
        return Row(
            way=way,
            replicas=replicas,
            agents=agents,
            watches=last.watches,
            cores=cores,
            sent_mb_per_second=sent_mb / seconds,
            live_mb=last.live_bytes / 1e6,
            pss_mb=last.pss_bytes / 1e6,
            agents_cores=agents_cores,
            service_cores=service_cores,
            delivered=spread.total,
            expected=expected,
            p50_ms=1e3 * (spread.quantile(0.5) or 0.0),
            p99_ms=1e3 * (spread.quantile(0.99) or 0.0),
        )

    async def _read(self) -> Reading:
        pid = self.plane.api_server_pid
        at, cpu_seconds, sent_bytes = time.monotonic(), measure.cpu_seconds(pid), measure.written_bytes(pid)
        metrics = measure.Metrics(await asyncio.to_thread(self.plane.metrics))
        return Reading(
            at=at,
            cpu_seconds=cpu_seconds,
            sent_bytes=sent_bytes,
            read_cpu_seconds=measure.cpu_seconds(pid) - cpu_seconds,
            read_bytes=measure.written_bytes(pid) - sent_bytes,
            refused=metrics.total("apiserver_request_total", code="429"),
            watches=metrics.total("apiserver_longrunning_requests", verb="WATCH"),
            live_bytes=metrics.total("go_memstats_next_gc_bytes") / 2,
            pss_bytes=measure.memory([pid]).total_bytes,
        )

    @contextlib.asynccontextmanager
    async def _direct(self, agents: int) -> AsyncIterator[Agents]:
        async with contextlib.AsyncExitStack() as stack:
            crowd = direct.DirectAgents(self.settings.folder, self.plane, agents=agents)

            async def start() -> None:
                await stack.enter_async_context(crowd)
                await crowd.wait_watching(timeout_seconds=START_TIMEOUT_SECONDS)

            async def finished() -> None:
                return

            yield Agents(
                start=start,
                wait=lambda condition: crowd.wait_for(lambda _: condition(), timeout_seconds=DELIVERED_TIMEOUT_SECONDS),
                latency=lambda: crowd.latency,
                cpu_seconds=lambda: measure.cpu_seconds(crowd.pid),
                service_cpu_seconds=lambda: 0.0,
                finished=finished,
            )

    @contextlib.asynccontextmanager
    async def _replicas(self, agents: int, replicas: int, *, in_tiers: bool) -> AsyncIterator[Agents]:
        plan = supervisor.SwarmPlan(feed=_FEED, agents=agents, protocols=(control.Protocol.TYPHA,))
        async with contextlib.AsyncExitStack() as stack:
            services: list[processes.ServiceProcess] = []
            for number in range(replicas):
                folder = self.settings.folder / f"replica-{number}"
                report.prepare_folder(folder)
                upstream = {"TYPHA_UPSTREAM": "{}:{}".format(*services[0].address)} if in_tiers and services else None
                one = processes.ServiceProcess(folder, kubeconfig=self.plane.kubeconfig, settings=upstream)
                services.append(await stack.enter_async_context(one))
            swarm = supervisor.Swarm([one.address for one in services], plan)

            async def start() -> None:
                await stack.enter_async_context(swarm)
                await swarm.wait_in_sync(timeout_seconds=START_TIMEOUT_SECONDS)

            async def finished() -> report.Check:
                verdict = await convergence.when_quiet(
                    swarm, lambda: self.client.read_calico_state(_FEED), timeout_seconds=QUIET_TIMEOUT_SECONDS
                )
                name = f"{agents:,} agents behind {replicas}{' in tiers' * in_tiers} hold the API server's state"
                return report.Check(name, verdict.passed, "; ".join([verdict.line(), *verdict.differing]))

            yield Agents(
                start=start,
                wait=lambda condition: swarm.wait_for(lambda _: condition(), timeout_seconds=DELIVERED_TIMEOUT_SECONDS),
                latency=swarm.latency.copy,
                cpu_seconds=lambda: swarm.totals().cpu_seconds,
                service_cpu_seconds=lambda: sum(sum(one.cpu()) for one in services),
                finished=finished,
            )


async def run(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """All steps, `settings.rounds` times; a round begins with a new API server."""
    many = min(settings.agents, DIRECT_MAX)
    steps = [(agents, 0, _DIRECT) for agents in sorted({0, min(FEW, many), many // 4, many})]
    steps += [(min(FEW, settings.agents), 1, _PROXY), (settings.agents, 1, _PROXY)]
    steps += [(settings.agents, REPLICAS, way) for way in (_PROXY, _TIERS)]
    await child.build_go_program("direct")
    rows, checks = [], []
    for number in range(settings.rounds):
        async with _opened(settings, screen, settings.folder / f"control-plane-{number}") as bench:
            for agents, replicas, way in steps:
                await bench.step(agents, replicas, way)
        rows += bench.rows
        checks += bench.checks
    made = report.Report(title="Agents that watch for themselves, and agents behind the service", command="")
    made.facts = {f"{row.name}, {number}": _line(row) for number, row in enumerate(rows)}
    made.facts["one more agent directly"] = _each(rows)
    made.checks = [*judge(rows), *checks]
    made.data["rows"] = [row._asdict() for row in rows]
    write_figures(rows, settings.folder / "api-server-load.json")
    return made


@contextlib.asynccontextmanager
async def _opened(settings: fixture.Settings, screen: dashboard.Dashboard, folder: Path) -> AsyncIterator[Bench]:
    screen.say("starting a real kube-apiserver and etcd")
    plane = control_plane.ControlPlane(folder)
    await asyncio.to_thread(plane.start)
    try:
        async with expected_state.ApiClient(await kubeconfig.load(plane.kubeconfig)) as client:
            size = population.Population(
                nodes=settings.nodes, pods=settings.pods, widgets=0, calico=True, pod_bytes=settings.pod_bytes
            )
            screen.say(f"creating {settings.pods:,} pods on {settings.nodes:,} nodes")
            objects = cluster.Cluster(client, size)
            await objects.populate()
            yield Bench(settings, screen, plane, client, objects)
    finally:
        await asyncio.to_thread(plane.stop)


def write_figures(rows: list[Row], file: Path) -> None:
    """The form of docs/pictures/api-server-load.json, which tools/draw_api_server_load.py draws."""
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in rows:
        if row.replicas <= 1:
            values = found.setdefault((row.way, row.agents), {})
            for field in ("cores", "sent_mb_per_second", "live_mb"):
                values.setdefault(field, []).append(round(getattr(row, field), 3))
    listed = [{"agents": agents, "way": way, **values} for (way, agents), values in sorted(found.items())]
    file.write_text(json.dumps({"rows": listed}, indent=1) + "\n")


def judge(rows: list[Row]) -> list[report.Check]:
    """What must hold in every run."""
    behind_one = {row.watches for row in rows if row.replicas == 1}
    in_tiers = {row.watches for row in rows if row.way == _TIERS}
    direct_rows = [row for row in rows if not row.replicas]
    lost = [f"{row.name}: {row.delivered:,} of {row.expected:,}" for row in rows if row.delivered < row.expected]
    kinds = len(direct.kinds())
    few, many = (pick(direct_rows, key=lambda row: row.agents) for pick in (min, max))
    return [
        report.Check(
            "the number of agents behind a replica changes nothing in the API server's watches",
            len(behind_one) == 1,
            f"watches: {', '.join(f'{count:.0f}' for count in sorted(behind_one))}",
        ),
        report.Check(
            "replicas that follow another one have no watches",
            in_tiers == behind_one,
            f"watches: {', '.join(f'{count:.0f}' for count in sorted(in_tiers))}",
        ),
        report.Check(
            "each agent that connects directly has a watch for each kind",
            many.watches - few.watches == kinds * (many.agents - few.agents),
            f"{few.name}: {few.watches:.0f}; {many.name}: {many.watches:.0f}; {kinds} kinds",
        ),
        report.Check("every change arrived at every agent", not lost, "; ".join(lost) or "all"),
    ]


def _each(rows: list[Row]) -> str:
    """What one more agent costs, from the largest step and the smallest."""
    few, many = (pick((row for row in rows if not row.replicas), key=lambda row: row.agents) for pick in (min, max))
    more = max(1, many.agents - few.agents)
    return (
        f"{(many.cores - few.cores) / more * 1e3:.2f} ms of CPU and "
        f"{(many.sent_mb_per_second - few.sent_mb_per_second) / more * 1e3:.1f} kB each second, "
        f"{(many.live_mb - few.live_mb) / more:.2f} MB of live memory; at the start "
        f"{many.start_cpu_seconds / many.agents:.2f} s of CPU and {many.start_sent_mb / many.agents:.2f} MB"
    )


def _line(row: Row) -> str:
    return (
        f"start {row.start_seconds:.1f} s, {row.start_cpu_seconds:.2f} CPU s, {row.start_sent_mb:.1f} MB, "
        f"{row.refused:.0f} x 429; then API server {row.cores:.3f} cores, {row.sent_mb_per_second:.2f} MB/s, "
        f"{row.watches:.0f} watches, {row.live_mb:.0f} MB live, {row.pss_mb:.0f} MB PSS; "
        f"agents {row.agents_cores:.3f}, service {row.service_cores:.3f} cores; "
        f"p50 {row.p50_ms:.1f}, p99 {row.p99_ms:.1f} ms; "
        f"{row.delivered:,} of {row.expected:,} deliveries"
    )
