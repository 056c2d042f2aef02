"""Several replicas under changes: a roll-out, a crash, clocks that jump, and replicas that lose the API server."""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from loadtest.environment import certificates, kubeconfig, processes, testbed
from loadtest.reporting import dashboard, measure, monitor, report
from loadtest.scenarios import fixture, replicas
from loadtest.swarm import control, engine, histogram, supervisor
from loadtest.verification import convergence, expected_state

PRE_STOP_SECONDS: Final = 2.0
"""Longer than two probes: the other replicas and the agents know that the pod is going before it closes its port."""
STALE_AFTER_SECONDS: Final = 3.0
"""StaleHandOverAfterSecs of the run, if it is not in tiers. The default is 30 s; in tiers a replica is stale while
another one is elected, for some 15 s, and must not hand its clients over meanwhile."""
ASKED_SECONDS_MAX: Final = 10.0
"""After that a stale replica knows that another one is fresh: the latter must have been confirmed 5 s later, and the
questions are up to 6 s apart."""
SECOND_ROUND_SECONDS: Final = 30.0
"""Between the end of a hand-over and the second one, for clients that came back before they knew better
(docs/decisions/freshness.md)."""
SUCCESSION_SECONDS: Final = 20.0
"""Of ShutdownTimeoutSecs in tiers, beyond the span: half of it all is for the replica that watches to be succeeded."""
DRAIN_SLACK_SECONDS: Final = 15.0
"""Of a drain beyond ShutdownTimeoutSecs, before the run fails."""
EXCESS_SECONDS_MAX: Final = 1.0
"""How much longer than its own back-off an agent may be without a server: time to connect and for a hello."""
P99_SECONDS_MAX: Final = 0.1
P99_FACTOR: Final = 2.0
"""The same bounds as of attacks. They are for the replicas' share of the latency: the agents, which share the CPUs with
the replicas, are late themselves when hundreds of them connect again (docs/load-test.md#fleet)."""
CLOCK_JUMPS: Final = {"+1 h": 3_600, "-1 h": -3_600, "+10 years": 315_360_000, "back": 0}
"""Where a wall clock is set, one after the other, in seconds from the machine's."""
SUSPENDED_SECONDS: Final = 25.0
"""How long a replica stands still: longer than a Lease (10 s), than an answer to a replica's question counts (15 s),
and than the hub waits for the report of a worker that runs (20 s)."""
WATCHING_SECONDS_MAX: Final = 75.0
"""How long two replicas of an elected fleet may watch the API server: one that has lost the Lease follows after 30 to
60 s (docs/decisions/tiers.md), and some seconds for questions."""
FOLLOWS_SECONDS_MAX: Final = 60.0
"""After that a replica that watched, and has lost the API server, follows another one: the Lease lasts 10 s, the other
one lists, and both are asked."""
GAUGE_SECONDS_MAX: Final = 86_400.0
"""No time that a replica reports is longer than a day, if its clocks are not compared with those of others."""
MEAN_SECONDS_MAX: Final = 600.0
"""Of a histogram or a summary of times: the service leaves out writes that seem older."""
TIMEOUT_SECONDS: Final = 120.0
RESTART_SECONDS: Final = 1.0
"""Between the end of a container and its next start, at the first crash."""


_PROPAGATION: Final = "typha_propagation_seconds_bucket"
_MODE: Final = "typha_source"
_LEASES: Final = {"group": "coordination.k8s.io", "version": "v1", "name": "leases", "kind": "Lease"}
_LEASE: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/calico-typha-source"
_TIMES: Final = re.compile(r"_sec(ond)?s?(_|$)|latency")
_NO_TIMES: Final = re.compile(r"_timestamp_|_start_time_|_bucket$|_count$")


class Gap(NamedTuple):
    """A time without a server, of one agent."""

    agent: str
    ended_ns: int
    seconds: float
    """Until the next server's hello."""
    waited_seconds: float
    """Of it: the agent's own back-off."""
    in_sync_seconds: float | None
    """Until it was in sync again; None if it was not, on that connection."""
    tries: int
    from_to: tuple[tuple[str, int], tuple[str, int]]

    @property
    def excess_seconds(self) -> float:
        """Beyond the back-off."""
        return self.seconds - self.waited_seconds


@dataclasses.dataclass
class Step:
    """An event of the script, and what came of it."""

    name: str
    began_ns: int
    ended_ns: int = 0
    latency: histogram.Histogram = dataclasses.field(default_factory=histogram.Histogram)
    """Of agents that kept their connection."""
    notes: list[str] = dataclasses.field(default_factory=list)
    told_stale: int = 0
    """Agents that were told at the same time, at most."""
    service_p99_seconds: float = 0.0
    """From the decoded watch event to the write to a client, of replicas that ran all the time. The rest of the agents'
    latency is in the API server, the network and the agents."""
    judges_latency: bool = True
    """False while nothing can be delivered."""

    @property
    def p99_seconds(self) -> float:
        """0 if nothing was delivered."""
        return self.latency.quantile(0.99) or 0.0


def gaps(paths: Sequence[control.AgentPath]) -> list[Gap]:
    """The times without a server of all agents. One that was never served again has none at the end."""
    found = []
    for path in paths:
        served: control.Visit | None = None
        tries, waited_ns = 0, 0
        for visit in path.visits:
            tries += 1
            waited_ns += visit.waited_ns
            if not visit.connected_ns:
                continue
            if served is not None:
                back_ns = visit.in_sync_ns
                found.append(
                    Gap(
                        path.name,
                        served.ended_ns,
                        (visit.connected_ns - served.ended_ns) / 1e9,
                        waited_ns / 1e9,
                        (back_ns - served.ended_ns) / 1e9 if back_ns else None,
                        tries,
                        (served.address, visit.address),
                    )
                )
            served, tries, waited_ns = visit, 0, 0
    return found


def snapshots_per_second(paths: Sequence[control.AgentPath]) -> dict[tuple[str, int], Counter[int]]:
    """How many agents came to be in sync at each replica, by second since 1970: as many snapshots."""
    found: dict[tuple[str, int], Counter[int]] = {}
    for visit in itertools.chain.from_iterable(path.visits for path in paths):
        if visit.in_sync_ns:
            found.setdefault(visit.address, Counter())[visit.in_sync_ns // 10**9] += 1
    return found


class _Observed(NamedTuple):
    """What a disturbance that nobody may notice must not change."""

    ended: int
    """Connections."""
    sources: tuple[float, ...]
    """How often each replica has changed the source of its data."""
    lease: tuple[str, int]
    """Its holder, and how often that has changed."""


def service_p99_seconds(spans: Iterable[tuple[measure.Metrics, measure.Metrics]]) -> float:
    """By the services' own histograms before and after, interpolated in a bucket as Prometheus does; 0 without any."""
    counts: Counter[float] = Counter()
    for before, after in spans:
        first, last = (page.by_label(_PROPAGATION, "le") for page in (before, after))
        if first.get("+Inf", 0.0) <= last.get("+Inf", 0.0):  # else it is another process
            counts.update({float(bound): number - first.get(bound, 0.0) for bound, number in last.items()})
    wanted, lower, below = 0.99 * counts[math.inf], 0.0, 0.0
    for bound, number in sorted(counts.items()):
        if number >= wanted > below:
            return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / (number - below)
        lower, below = bound, number
    return 0.0


def absurd(page: measure.Metrics) -> list[str]:
    """The metrics of a replica that cannot be true, whatever its wall clock says. Empty summaries are NaN."""
    found = []
    samples = page.named(_TIMES)
    counts = {(name, *sorted(labels.items())): value for name, labels, value in samples if name.endswith("_count")}
    for name, labels, value in samples:
        if _NO_TIMES.search(name) or math.isnan(value):
            continue
        most = GAUGE_SECONDS_MAX
        if name.endswith("_sum"):
            most = MEAN_SECONDS_MAX * counts.get((f"{name.removesuffix('_sum')}_count", *sorted(labels.items())), 0.0)
        if not 0.0 <= value <= most:
            found.append(f"{name} {labels or ''} {value:g}")
    return found


class Script:
    """The run: takes the steps, and measures each."""

    def __init__(
        self,
        settings: fixture.Settings,
        screen: dashboard.Dashboard,
        simulator: processes.SimulatorProcess,
        client: expected_state.ApiClient,
        deployment: replicas.Deployment,
        swarm: supervisor.Swarm,
    ) -> None:
        self.settings = settings
        self.screen = screen
        self.simulator = simulator
        self.client = client
        self.deployment = deployment
        self.swarm = swarm
        self.steps: list[Step] = []
        self.checks: list[report.Check] = []

    async def take(self, name: str, work: Callable[[Step], Awaitable[None]], *, judges_latency: bool = True) -> None:
        """One step: `work`, until all agents are in sync and have reported it. Raises SwarmError, TimeoutError."""
        self.screen.say(f"{name} ...")
        await self.swarm.set_moved_apart()
        await asyncio.sleep(testbed.REPORTED_SECONDS)
        latency, pages = self.swarm.latency.copy(), await self._pages()
        step = Step(name, time.time_ns(), judges_latency=judges_latency)
        await work(step)
        await self.swarm.wait_in_sync(timeout_seconds=TIMEOUT_SECONDS)
        step.ended_ns = time.time_ns()
        await asyncio.sleep(testbed.REPORTED_SECONDS)
        step.latency = self.swarm.latency.since(latency)
        later = await self._pages()
        step.service_p99_seconds = service_p99_seconds(
            (page, later[one]) for one, page in pages.items() if one in later
        )
        self.steps.append(step)

    async def _pages(self) -> dict[str, measure.Metrics]:
        return {one.name: await one.service.counters() for one in self.deployment.replicas}

    # Steps

    async def nothing(self, _: Step) -> None:
        """What the others are compared with."""
        await asyncio.sleep(self.settings.seconds)

    async def replace(self, old: replicas.Replica, step: Step) -> None:
        """Roll out: a new replica, and when it is ready the old one goes."""
        [new] = await self.deployment.add()
        step.notes.append(f"{new.name} ready after {new.service.start_seconds:.1f} s")
        seconds = await self.deployment.remove(
            old,
            pre_stop_seconds=PRE_STOP_SECONDS,
            timeout_seconds=_shutdown_seconds(self.settings) + DRAIN_SLACK_SECONDS,
        )
        step.notes.append(f"{old.name} drained in {seconds:.1f} s")

    async def crash(self, step: Step) -> None:
        """SIGKILL to a hub; its container is started again."""
        one = await self._chosen()
        workers = one.service.worker_pids()
        await one.service.kill()
        await one.service.left_over(workers)
        await asyncio.sleep(RESTART_SECONDS)
        await one.service.start()
        step.notes.append(f"{one.name} ready again after {one.service.start_seconds:.1f} s")

    async def set_clock(self, step: Step) -> None:
        """The wall clock of one replica jumps, and nobody notices."""
        one = await self._chosen()
        assert one.clock is not None
        for name, seconds in CLOCK_JUMPS.items():
            async with self._unnoticed(f"the wall clock of {one.name} jumps: {name}") as problems:
                one.clock.set(seconds)
                await self._stays_fresh(self.settings.seconds / 2, problems)
                problems += absurd(await one.service.counters())
        step.notes.append(f"the clock of {one.name}: {', '.join(CLOCK_JUMPS)}")

    async def suspend(self, step: Step) -> None:
        """One replica stands still and wakes: as if its monotonic clock jumped, too. It keeps its clients."""
        one = await self._chosen()
        before = await self._observe()
        with one.suspended():
            await asyncio.sleep(SUSPENDED_SECONDS)
        awake = time.monotonic()
        fresh = await self._wait(step, lambda: self._all_fresh(self.deployment.replicas))
        await self.swarm.wait_in_sync(timeout_seconds=TIMEOUT_SECONDS)
        await self._wait(step, self._all_ready)
        step.notes.append(
            f"{one.name} stood still for {SUSPENDED_SECONDS:.0f} s, and all were fresh {fresh:.1f} s later"
        )
        if self.settings.tiers:
            await self._wait(step, self._one_watches)
            alone = time.monotonic() - awake
            self._judge(
                f"a replica that wakes follows the one that was elected meanwhile within {WATCHING_SECONDS_MAX:.0f} s",
                alone <= WATCHING_SECONDS_MAX,
                f"one replica watches {alone:.1f} s later",
            )
        after, found = await self._observe(), absurd(await one.service.counters())
        self.checks.append(
            report.Check(
                f"{one.name} stands still and wakes: no connection ends, no metric is absurd",
                after.ended == before.ended and not found,
                "; ".join([f"{after.ended - before.ended} connections ended", *found]),
            )
        )

    async def part_watching(self, step: Step) -> None:
        """The replica that watches loses the API server: another one is elected, and it follows that one."""
        one = await self._chosen()
        before = self._ended()
        one.way.shut()
        others = [other for other in self.deployment.replicas if other is not one]
        elected = await self._wait(step, lambda: self._watches(others))
        step.notes.append(f"another one watches instead of {one.name} after {elected:.1f} s")
        follows = elected + await self._wait(step, lambda: self._is_settled(self.deployment.replicas))
        ended = self._ended() - before
        self._judge(
            f"a replica that watched and lost the API server follows another one within {FOLLOWS_SECONDS_MAX:.0f} s",
            follows <= FOLLOWS_SECONDS_MAX,
            f"after {follows:.1f} s",
        )
        self.checks.append(
            report.Check(
                "nobody is disconnected when another replica is elected", not ended, f"{ended} connections ended"
            )
        )
        await one.way.open()

    async def part_one(self, step: Step) -> None:
        """One replica loses the API server, all its clients move, and it finds the API server again."""
        one = await self._chosen()
        began = time.monotonic()
        one.way.shut()
        moved = await self._wait(step, lambda: self._has_no_clients(one))
        rounds = 2 * self.settings.seconds + SECOND_ROUND_SECONDS
        limit = STALE_AFTER_SECONDS + ASKED_SECONDS_MAX + rounds + engine.MAX_BACK_OFF_SECONDS
        step.notes.append(f"{one.name} had no clients after {moved:.1f} s")
        self._judge(
            f"the clients of a replica that alone is stale are elsewhere within {limit:.0f} s",
            moved <= limit,
            f"after {moved:.1f} s",
        )
        await self.swarm.wait_in_sync(timeout_seconds=TIMEOUT_SECONDS)
        step.notes.append(f"all in sync after {time.monotonic() - began:.1f} s")
        await one.way.open()
        fresh = await self._wait(step, lambda: self._all_fresh([one]))
        step.notes.append(f"{one.name} fresh again after {fresh:.1f} s")

    async def part_all(self, step: Step) -> None:
        """All replicas lose the API server. They keep their clients, and say that they are stale."""
        before = self._ended()
        for one in self.deployment.replicas:
            one.way.shut()
        told = await self._wait(step, self._all_stale)
        step.notes.append(f"all replicas and their clients know it after {told:.1f} s")
        await asyncio.sleep(self.settings.seconds + ASKED_SECONDS_MAX)  # they ask each other, and nothing comes of it
        now = self.swarm.totals()
        step.told_stale = max(step.told_stale, now.told_stale)
        ended = self._ended() - before
        ready = len(self.deployment.ready)
        self.checks.append(
            report.Check(
                "all replicas that are stale keep their clients, stay ready and say so",
                not ended and now.connected == now.agents and ready == len(self.deployment.replicas),
                f"{now.connected} of {now.agents} agents connected, {ended} connections ended, {ready} replicas ready, "
                f"{now.told_stale} agents were told",
            )
        )
        for one in self.deployment.replicas:
            await one.way.open()
        fresh = await self._wait(step, lambda: self._all_fresh(self.deployment.replicas))
        step.notes.append(f"all fresh again after {fresh:.1f} s")

    @contextlib.asynccontextmanager
    async def _unnoticed(self, name: str) -> AsyncIterator[list[str]]:
        """A check: nothing changes in the block. It may add problems."""
        problems: list[str] = []
        before = await self._observe()
        yield problems
        after = await self._observe()
        if after.ended != before.ended:
            problems.append(f"{after.ended - before.ended} connections ended")
        if after.sources != before.sources:
            problems.append(f"sources of the data changed: {before.sources} and {after.sources}")
        if after.lease != before.lease:
            problems.append(f"the Lease changed: {before.lease} and {after.lease}")
        detail = (
            "; ".join(problems) or "no connection ended, nobody was told stale, no source changed, no metric absurd"
        )
        self.checks.append(report.Check(f"{name}: nobody notices", not problems, detail))

    async def _observe(self) -> _Observed:
        pages = [await one.service.counters() for one in self.deployment.replicas]
        sources = tuple(page.total("typha_source_changes_total") for page in pages)
        return _Observed(self._ended(), sources, await self._lease())

    def _ended(self) -> int:
        return sum(self.swarm.totals().disconnects.values())

    async def _lease(self) -> tuple[str, int]:
        if not self.settings.tiers:
            return "", 0
        status, body = await self.client.request("GET", _LEASE)
        spec = msgspec.json.decode(body)["spec"] if status == 200 else {}
        return spec.get("holderIdentity", ""), spec.get("leaseTransitions", 0)

    async def _stays_fresh(self, seconds: float, problems: list[str]) -> None:
        """Look for this long, and note what is wrong."""
        end, found = time.monotonic() + seconds, set[str]()
        while time.monotonic() < end:
            pages = [await one.service.counters() for one in self.deployment.replicas]
            if not all(len(page) for page in pages):
                found.add("a replica does not answer")
            if any(page.total("typha_stale_seconds") for page in pages):
                found.add("a replica says that it is stale")
            if self.swarm.totals().told_stale:
                found.add("agents were told that the data is stale")
            if len(self.deployment.ready) < len(self.deployment.replicas):
                found.add("a replica is not ready")
            await asyncio.sleep(0.2)
        problems += sorted(found)

    async def _chosen(self) -> replicas.Replica:
        """The replica that is disturbed: the one that watches for all, or the one with the most clients."""
        if self.settings.tiers:
            for one in self.deployment.replicas:
                if await self._watches([one]):
                    return one
        counts = [
            ((await one.service.counters()).total("typha_connections_active"), number)
            for number, one in enumerate(self.deployment.replicas)
        ]
        return self.deployment.replicas[max(counts)[1]]

    # Conditions

    async def _wait(self, step: Step, condition: Callable[[], Awaitable[bool]]) -> float:
        """Wait until it holds; returns how long that took. Raises TimeoutError."""
        began = time.monotonic()
        async with asyncio.timeout(TIMEOUT_SECONDS + self.settings.seconds):
            while not await condition():
                step.told_stale = max(step.told_stale, self.swarm.totals().told_stale)
                await asyncio.sleep(0.2)
        return time.monotonic() - began

    async def _all_ready(self) -> bool:
        return len(self.deployment.ready) == len(self.deployment.replicas)

    @staticmethod
    async def _watches(chosen: Sequence[replicas.Replica]) -> bool:
        """Whether one of them watches the API server."""
        pages = [await one.service.counters() for one in chosen]
        return any(page.total(_MODE, mode="watching") for page in pages)

    async def _one_watches(self) -> bool:
        """Of an elected fleet exactly one, and the others follow."""
        pages = [await one.service.counters() for one in self.deployment.replicas]
        modes = sorted((page.total(_MODE, mode="watching"), page.total(_MODE, mode="following")) for page in pages)
        return modes == [(0.0, 1.0)] * (len(pages) - 1) + [(1.0, 0.0)]

    async def _is_settled(self, chosen: Sequence[replicas.Replica]) -> bool:
        return await self._one_watches() and await self._all_fresh(chosen)

    @staticmethod
    async def _has_no_clients(one: replicas.Replica) -> bool:
        counters = await one.service.counters()
        return len(counters) > 0 and not counters.total("typha_connections_active")

    @staticmethod
    async def _all_fresh(chosen: Sequence[replicas.Replica]) -> bool:
        pages = [await one.service.counters() for one in chosen]
        return all(len(page) and not page.total("typha_stale_seconds") for page in pages)

    async def _all_stale(self) -> bool:
        pages = [await one.service.counters() for one in self.deployment.replicas]
        told = self.swarm.totals(control.Protocol.NATIVE)
        natives = sum(
            process.order.agents
            for process in self.swarm.processes
            if process.module == control.WORKER_MODULE and process.order.protocol is control.Protocol.NATIVE
        )
        return all(page.total("typha_stale_seconds") for page in pages) and told.told_stale >= natives

    def _judge(self, name: str, passed: bool, detail: str) -> None:
        judged = self.settings.judge_times
        self.checks.append(report.Check(name, passed or not judged, detail if judged else f"{detail} (not judged)"))


async def run(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """All steps, and then the proof of every agent's map."""
    async with _opened(settings, screen) as (script, watcher):
        deployment, swarm = script.deployment, script.swarm
        await script.take("nothing happens", script.nothing)
        for old in list(deployment.replicas):
            replace = functools.partial(script.replace, old)
            await script.take(f"{old.name} is replaced", replace, judges_latency=not settings.tiers)
        # While nobody watches the API server, nobody gets anything, so in tiers the others' latency is not judged.
        take = functools.partial(script.take, judges_latency=not settings.tiers)
        await take("a replica crashes", script.crash)
        if all(one.clock is not None for one in deployment.replicas):
            await script.take("the wall clock of a replica jumps", script.set_clock)
        await script.take("a replica stands still", script.suspend, judges_latency=False)
        if settings.tiers:
            await take("the replica that watches loses the API server", script.part_watching)
        else:
            await take("one replica loses the API server", script.part_one)
        await script.take("all replicas lose the API server", script.part_all, judges_latency=False)
        await script.simulator.stop_churn()
        verdict = await convergence.when_quiet(
            swarm, lambda: script.client.read_calico_state(settings.feed), timeout_seconds=testbed.QUIET_TIMEOUT_SECONDS
        )
        paths, totals = await swarm.paths(), swarm.totals()
        return _report(script, watcher, verdict, paths, totals)


@contextlib.asynccontextmanager
async def _opened(
    settings: fixture.Settings, screen: dashboard.Dashboard
) -> AsyncIterator[tuple[Script, monitor.Monitor]]:
    hosts = [replicas.host_of(number) for number in range(1, 2 * settings.replicas + 1)]
    made = certificates.make(settings.folder, host=processes.HOST, more_hosts=hosts) if settings.tls else None
    environment = {**(made.environment if made else {}), **_environment(settings)}
    async with contextlib.AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(
            processes.SimulatorProcess(
                settings.folder,
                nodes=settings.nodes,
                pods=settings.pods,
                pod_bytes=settings.pod_bytes,
                calico=True,
            )
        )
        client = await stack.enter_async_context(expected_state.ApiClient(await kubeconfig.load(simulator.kubeconfig)))
        swarms: list[supervisor.Swarm] = []

        async def tell(addresses: replicas.Addresses) -> None:
            for one in swarms:
                await one.choose_from(addresses)

        await simulator.control("POST", "types", _LEASES)
        deployment = await stack.enter_async_context(
            replicas.Deployment(settings.folder, simulator.url, client, environment, tell=tell)
        )
        await deployment.add(settings.replicas)
        plan = supervisor.SwarmPlan(
            feed=settings.feed,
            agents=settings.agents,
            public_agents=settings.public_agents,
            public_addresses=[("127.0.0.1", deployment.address.port)],
            protocols=settings.protocols,
            compressed=settings.compressed,
            tls=made.agents if made else None,
        )
        swarm = await stack.enter_async_context(supervisor.Swarm(deployment.ready, plan))
        swarms.append(swarm)
        watcher = monitor.Monitor(swarm, deployment, api_counters=simulator.counters, on_sample=screen.show)
        watching = asyncio.create_task(watcher.run(), name="monitor")
        try:
            await swarm.wait_in_sync(timeout_seconds=testbed.IN_SYNC_TIMEOUT_SECONDS)
            await simulator.start_churn(settings.updates_per_second, types=processes.ONLY_PODS)
            await asyncio.sleep(min(fixture.WARM_UP_SECONDS, settings.seconds))
            yield Script(settings, screen, simulator, client, deployment, swarm), watcher
        finally:
            watching.cancel()
            await asyncio.wait([watching])


def _shutdown_seconds(settings: fixture.Settings) -> float:
    return settings.seconds + (SUCCESSION_SECONDS if settings.tiers else 0.0)


def _environment(settings: fixture.Settings) -> Mapping[str, str]:
    """Of each replica: it finds the others by the Service; the drain and the hand-over take one span each."""
    return {
        "TYPHA_CONNECTIONREBALANCINGMODE": "kubernetes",
        "TYPHA_K8SSERVICEPOLLINTERVALSECS": "2",
        **({} if settings.tiers else {"TYPHA_STALEHANDOVERAFTERSECS": str(STALE_AFTER_SECONDS)}),
        "TYPHA_STALEHANDOVERSPREADSECS": str(settings.seconds),
        "TYPHA_SHUTDOWNTIMEOUTSECS": str(_shutdown_seconds(settings)),
        "TYPHA_WORKERS": "1",
        **({"TYPHA_UPSTREAM": "elected"} if settings.tiers else {}),
    }


def _report(
    script: Script,
    watcher: monitor.Monitor,
    verdict: convergence.Verdict,
    paths: Sequence[control.AgentPath],
    totals: supervisor.Totals,
) -> report.Report:
    settings, deployment = script.settings, script.deployment
    found, rates = gaps(paths), snapshots_per_second(paths)
    before = script.steps[0].service_p99_seconds
    facts = {step.name: _line(step, found, rates, deployment) for step in script.steps}
    facts["paths"] = _paths_line(paths, deployment)
    checks = [*script.checks, *(_judged(step, found, before, judged=settings.judge_times) for step in script.steps[1:])]
    checks.append(
        report.Check(
            "every recorded path is complete",
            not sum(path.left_out for path in paths),
            f"{sum(len(path.visits) for path in paths):,} connections of {len(paths):,} agents",
        )
    )
    checks += testbed.proof_checks(verdict, totals)
    write_paths(paths, script)
    return report.Report(
        title=f"A fleet of {settings.replicas} replicas",
        command="",
        samples=watcher.samples,
        facts=facts,
        checks=checks,
        data={
            "verdict": {**dataclasses.asdict(verdict), "digest": f"{verdict.digest:016x}"},
            "swarm": dataclasses.asdict(totals),
        },
    )


def write_paths(paths: Sequence[control.AgentPath], script: Script) -> None:
    """Each agent's path over the replicas, in seconds since the first step: paths.json."""
    begin = script.steps[0].began_ns

    def seconds(at_ns: int) -> float | None:
        return round((at_ns - begin) / 1e9, 3) if at_ns else None

    document = {
        "steps": [
            {"name": one.name, "from": seconds(one.began_ns), "to": seconds(one.ended_ns)} for one in script.steps
        ],
        "agents": {
            path.name: [
                {
                    "replica": script.deployment.name_of(visit.address),
                    "waited": round(visit.waited_ns / 1e9, 3),
                    "connected": seconds(visit.connected_ns),
                    "in_sync": seconds(visit.in_sync_ns),
                    "ended": seconds(visit.ended_ns),
                    "end": visit.end,
                }
                for visit in path.visits
            ]
            for path in paths
        },
    }
    (script.settings.folder / "paths.json").write_text(json.dumps(document, indent=1) + "\n")


def _within(step: Step, found: Sequence[Gap]) -> list[Gap]:
    return [gap for gap in found if step.began_ns <= gap.ended_ns < step.ended_ns]


def _judged(step: Step, found: Sequence[Gap], before: float, *, judged: bool) -> report.Check:
    """Nobody without a server for longer than its back-off, and the replicas' share of the others' p99."""
    longest = max((gap.excess_seconds for gap in _within(step, found)), default=0.0)
    within = longest <= EXCESS_SECONDS_MAX
    swift = step.service_p99_seconds <= max(P99_SECONDS_MAX, P99_FACTOR * before) or not step.judges_latency
    detail = f"at most {longest:.2f} s without a server beyond the back-off"
    name = f"{step.name}: nobody waits for a server longer than its back-off"
    if step.judges_latency:
        detail += (
            f"; p99 in the replicas {step.service_p99_seconds * 1e3:.1f} ms, before {before * 1e3:.1f} ms, "
            f"at the others {step.p99_seconds * 1e3:.1f} ms"
        )
        name += ", and the replicas serve the others as fast as before"
    return report.Check(name, (within and swift) or not judged, detail if judged else f"{detail} (not judged)")


def _line(
    step: Step,
    found: Sequence[Gap],
    rates: Mapping[tuple[str, int], Counter[int]],
    deployment: replicas.Deployment,
) -> str:
    moved = _within(step, found)
    parts = [*step.notes, f"{len(moved):,} connections lost"]
    if moved:
        longest = max(moved, key=lambda gap: gap.seconds)
        back = max((gap.in_sync_seconds or 0.0 for gap in moved), default=0.0)
        parts.append(
            f"longest without a server {longest.seconds:.2f} s (back-off {longest.waited_seconds:.2f} s, "
            f"{longest.tries} tries), to in sync {back:.2f} s"
        )
    first, last = step.began_ns // 10**9, step.ended_ns // 10**9
    peaks = {
        deployment.name_of(address): max((n for at, n in counts.items() if first <= at <= last), default=0)
        for address, counts in rates.items()
    }
    parts.append("most snapshots in a second: " + (_text(peaks) or "none"))
    if step.told_stale:
        parts.append(f"{step.told_stale} agents were told that the data is stale")
    if step.judges_latency:
        parts.append(
            f"p99 of those that stayed {step.p99_seconds * 1e3:.1f} ms over {step.latency.total:,} deliveries, "
            f"of it in the replicas {step.service_p99_seconds * 1e3:.1f} ms"
        )
    return "; ".join(parts)


def _text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)


def _paths_line(paths: Sequence[control.AgentPath], deployment: replicas.Deployment) -> str:
    """How many connections the agents had, and the most usual paths."""
    served = [[deployment.name_of(one.address) for one in path.visits if one.in_sync_ns] for path in paths]
    lengths = sorted(len(one) for one in served)
    usual = Counter(" > ".join(one) for one in served).most_common(2)
    text = f"{lengths[0]} to {lengths[-1]} replicas for each agent, median {lengths[len(lengths) // 2]}"
    return f"{text}; most usual: " + ", ".join(f"{count} x {path}" for path, count in usual) + "; all in paths.json"
