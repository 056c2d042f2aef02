"""Attacks from outside: innocent agents are not cut, and hardly delayed. What each attack cost is a row of the report.

At full size the attacks follow one another. Where times are not judged, all run at once.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from loadtest.environment import child, measurement, processes, testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import attackers, fixture

P99_FACTOR: Final = 2.0
P99_LIMIT_SECONDS: Final = 0.1
"""The innocents' p99 during an attack is at most this, or the factor times what it was before."""
GROWTH_LIMIT_BYTES: Final = 96_000_000
"""Of the hub and of each worker: the budget for what peers make a process hold, what is in flight, and allocators."""
CALM_SECONDS: Final = 1.5
CALM_TIMEOUT_SECONDS: Final = 90.0
NOTICED_SECONDS: Final = 25.0
"""For the timeouts that end an attack's connections, and for the agents to come back if they were cut."""
UNJUDGED_SECONDS: Final = 180.0
"""For the same, where times are not judged because other programs have the CPUs, too."""
CHURN_PER_SECOND: Final = 100.0
CHURNED_POD_BYTES: Final = 8000
SEGMENT_BYTES: Final = 1024 * 1024
"""With this churn the hub makes a segment of its log, which takes descriptors, every second or two."""
MORE_CONNECTIONS: Final = 100
"""Than there are descriptors."""
REQUESTS_PER_SECOND: Final = 5.0
"""To the API server, for each attacked type, apart from the pages of endless lists."""
ENDLESS_PAGES: Final = 100
"""A list without new objects is given up after so many pages, and tried again after 0.5 s, 1 s, 2 s and so on."""
API_SIZES: Final = {"deletions": 20_000, "rules": 22_000, "megabytes": 500}
LARGE_OBJECT: Final = "a policy of 1.2 MB, twice a second"
DELETIONS: Final = "20,000 deletions at once"
API_ATTACKS: Final[Mapping[str, tuple[Any, ...]]] = {
    # name: type, and the faults of its lists
    "a list that drips": ("endpointslices", {"kind": "drip", "delay_seconds": 0.5}),
    "an error's body that drips": ("services", {"kind": "error", "code": 500}, {"kind": "drip", "delay_seconds": 0.5}),
    "pages without end": ("nodes", {"kind": "endless-list"}),
    "two pages in turn": ("namespaces", {"kind": "alternating-list"}),
    "gzip that nobody asked for": ("ippools", {"kind": "compressed", "text": "gzip"}),
    "deflate that nobody asked for": ("tiers", {"kind": "compressed", "text": "deflate"}),
    "a lone surrogate": ("clusterinformations", {"kind": "bad-object", "text": "surrogate"}),
    "a NaN": ("felixconfigurations", {"kind": "bad-object", "text": "nan"}),
    "13,000 levels": ("globalnetworksets", {"kind": "bad-object", "text": "deep"}),
    LARGE_OBJECT: ("networkpolicies",),
    DELETIONS: ("networksets",),
}
HANDSHAKE_TIMEOUT: Final = {"TYPHA_SERVERHANDSHAKETIMEOUTSECS": "4"}
NO_PROGRESS_TIMEOUT: Final = {"TYPHA_NOPROGRESSTIMEOUTSECS": "5"}
"""Short, so that the ends of an attack's connections are seen in its span."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an attack cost."""

    name: str
    p99_before: float
    p99: float
    worst: float
    cut: int
    """Connections of innocents that were in sync and ended."""
    deaths: int
    """Worker processes that were replaced, and ends of the service."""
    back: bool
    """All innocents were in sync again soon after it."""
    hub_bytes: tuple[int, int]
    """Before, and at the peak."""
    worker_bytes: tuple[int, int]
    """Of all workers."""
    counted: Mapping[str, int]
    """Connections that ended, by the service's reason."""
    log_lines: int
    log_bytes: int
    attackers: Mapping[str, int]
    size: int = 0
    """Connections that the attack is to have at least."""
    expected: Sequence[tuple[str, ...]] = ()
    """One reason of each must be counted."""
    seconds: float = 0.0
    """How long it lasted."""

    def line(self) -> str:
        """The row of the report."""
        hub, workers = ([f"{value / 1e6:.0f}" for value in pair] for pair in (self.hub_bytes, self.worker_bytes))
        counted = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counted.items())) or "nothing"
        return (
            f"p99 {self.p99_before * 1e3:.0f} ms before, {self.p99 * 1e3:.0f} ms during, worst "
            f"{self.worst * 1e3:.0f} ms; {self.cut} cut, {self.deaths} deaths; hub {' to '.join(hub)} MB, workers "
            f"{' to '.join(workers)} MB; counted: {counted}; {self.log_lines} log lines, {self.log_bytes / 1e3:.0f} kB"
            f"; attackers: {', '.join(f'{count} {name}' for name, count in self.attackers.items())}"
        )

    def checks(self, *, judged: bool, processes: int) -> list[report.Check]:
        """Nobody is cut or delayed, nothing dies, memory is bounded."""
        limit = max(P99_LIMIT_SECONDS, self.p99_before * P99_FACTOR)
        growth = max(self.hub_bytes[1] - self.hub_bytes[0], (self.worker_bytes[1] - self.worker_bytes[0]) / processes)
        text = f"p99 {self.p99_before * 1e3:.1f} ms before, {self.p99 * 1e3:.1f} ms during"
        return [
            report.Check(
                f"{self.name}: no innocent is cut, no process ends",
                not self.cut and not self.deaths and self.back,
                f"{self.cut} cut, {self.deaths} deaths, all in sync afterwards: {self.back}",
            ),
            report.Check(f"{self.name}: innocents are not delayed", self.p99 <= limit or not judged, text),
            report.Check(
                f"{self.name}: the service counts why it closes a connection",
                all(self.counted.keys() & set(reasons) for reasons in self.expected),
                f"{dict(self.counted)}, expected {[' or '.join(one) for one in self.expected]}",
            ),
            report.Check(
                f"{self.name}: memory is bounded",
                growth <= GROWTH_LIMIT_BYTES,
                f"grew by {growth / 1e6:.0f} MB, limit {GROWTH_LIMIT_BYTES / 1e6:.0f} MB",
            ),
            report.Check(
                f"{self.name}: the attack took place",
                self.attackers.get("opened", 0) + self.attackers.get("refused", 0) >= self.size or not judged,
                f"{self.attackers.get('opened', 0)} connections, {self.size} or more expected",
            ),
        ]


Counts = Callable[[], Awaitable[Mapping[str, int]]]
"""What an attacker has done so far."""


class Siege:
    """The attacks on one scene, one after another."""

    def __init__(self, scene: fixture.Scene, p99_before: float) -> None:
        self.scene = scene
        self.outcomes: list[Outcome] = []
        self.checks: list[report.Check] = []
        self._p99_before = p99_before
        self._running = scene.testbed
        self.patience_seconds = NOTICED_SECONDS if scene.settings.judge_times else UNJUDGED_SECONDS

    def groups(self, attacks: Mapping[str, Any]) -> dict[str, list[str]]:
        """The chosen attacks: each alone, or all at once, by title."""
        chosen = [name for name in attacks if not self.scene.settings.attacks or name in self.scene.settings.attacks]
        if self.scene.settings.judge_times:
            return {name: [name] for name in chosen}
        return {f"{len(chosen)} attacks at once": chosen}

    async def attack(
        self,
        title: str,
        attack: contextlib.AbstractAsyncContextManager[Counts],
        *,
        size: int = 0,
        expected: Sequence[tuple[str, ...]] = (),
    ) -> Outcome:
        """Attack for a span, and on until one of each `expected` reasons is counted; wait until all is calm again."""
        running, service, swarm = self._running, self._running.service, self._running.swarm
        running.screen.say(f"attack: {title}")
        totals, latency, log_bytes = swarm.totals(), swarm.latency.copy(), service.log.stat().st_size
        before = await self._ended()
        workers = set(service.worker_pids())

        async def noticed() -> bool:
            counted = await self._ended() - before
            return not self._lives() or all(counted.keys() & set(reasons) for reasons in expected)

        async with (
            measurement.peak_memory(lambda: service.pids()[:1]) as hub_bytes,
            measurement.peak_memory(service.worker_pids) as worker_bytes,
        ):
            began = time.monotonic()
            async with attack as counts:
                await running.sleep(self.scene.settings.seconds + testbed.REPORTED_SECONDS)
                during = swarm.latency.since(latency)
                await self._wait_until(noticed)
                made = await counts()
                seconds = time.monotonic() - began
            deaths = len(workers - set(service.worker_pids()))
            if not self._lives():
                await service.kill()
                await service.start()
            back = await self._wait_until(self._all_in_sync)
        with service.log.open("rb") as log:
            log.seek(log_bytes)
            lines = log.read()
        outcome = Outcome(
            name=title,
            p99_before=self._p99_before,
            p99=during.quantile(0.99) or 0.0,
            worst=during.quantile(1.0) or 0.0,
            cut=swarm.totals().lost - totals.lost,
            deaths=deaths,
            back=back,
            hub_bytes=(hub_bytes[0], max(hub_bytes)),
            worker_bytes=(worker_bytes[0], max(worker_bytes)),
            counted=dict(await self._ended() - before),
            log_lines=lines.count(b"\n"),
            log_bytes=len(lines),
            attackers=dict(made),
            size=size,
            expected=expected,
            seconds=seconds,
        )
        running.screen.say(outcome.line())
        self.outcomes.append(outcome)
        self.checks += outcome.checks(judged=self.scene.settings.judge_times, processes=max(1, len(workers)))
        await self.calm()
        return outcome

    async def calm(self) -> None:
        """Wait until an attack is over for the innocents, too, so that the next one is not blamed for it."""
        if self.scene.settings.judge_times:
            await self._wait_until(self._is_calm, timeout_seconds=CALM_TIMEOUT_SECONDS)

    async def finish(self, title: str) -> report.Report:
        """The report of all attacks."""
        made = await self.scene.finish(title, {one.name: one.line() for one in self.outcomes}, self.checks)
        made.data["attacks"] = [dataclasses.asdict(one) for one in self.outcomes]
        return made

    async def _ended(self) -> Counter[str]:
        """Connections that have ended, by reason, once that can be read: an attack on the metrics may be in the way."""
        found = measure.Metrics("")

        async def read() -> bool:
            nonlocal found
            found = await self._running.service.counters()
            return bool(found) or not self._lives()

        await self._wait_until(read)
        ends = found.by_label("typha_disconnects_total", "reason")
        return Counter({reason: int(count) for reason, count in ends.items()})

    async def _all_in_sync(self) -> bool:
        totals = self._running.swarm.totals()
        return totals.in_sync >= totals.agents

    async def _is_calm(self) -> bool:
        latency = self._running.swarm.latency.copy()
        await self._running.sleep(CALM_SECONDS)
        p99 = self._running.swarm.latency.since(latency).quantile(0.99)
        return p99 is not None and p99 <= max(P99_LIMIT_SECONDS, self._p99_before * P99_FACTOR)

    async def _wait_until(
        self, condition: Callable[[], Awaitable[bool]], *, timeout_seconds: float | None = None
    ) -> bool:
        limit = self.patience_seconds if timeout_seconds is None else timeout_seconds
        waited = await self._running.wait_until(condition, timeout_seconds=limit, interval_seconds=0.5)
        return waited is not None

    def _lives(self) -> bool:
        with contextlib.suppress(child.ProcessError):
            self._running.service.check()
            return True
        return False


@contextlib.asynccontextmanager
async def open_siege(
    settings: fixture.Settings, screen: dashboard.Dashboard, *, churn: Mapping[str, Any], **options: Any
) -> AsyncIterator[Siege]:
    """A scene under churn, before the attacks. `options` are those of `fixture.open_scene`."""
    options["environment"] = {**HANDSHAKE_TIMEOUT, **options.get("environment", {})}
    async with fixture.open_scene(settings, screen, **options) as scene:
        await scene.start_churn(**churn)
        before = (await scene.testbed.window(settings.seconds)).latency_seconds(0.99) if settings.judge_times else 0.0
        yield Siege(scene, before)


@contextlib.asynccontextmanager
async def _attackers(siege: Siege, sizes: Mapping[str, int]) -> AsyncIterator[Counts]:
    """Attacks on the service's ports, each with its number of connections."""
    running = siege.scene.testbed
    service, agents = running.service, running.agents
    victim = attackers.Victim(*service.address, service.metrics_port, agents.feed, agents.tls)
    async with attackers.Attackers(victim, sizes, siege.scene.settings.folder) as made:
        yield made.counts


def _expected(names: Iterable[str]) -> list[tuple[str, ...]]:
    return [attackers.ATTACKS[name].reasons for name in names if attackers.ATTACKS[name].reasons]


async def hostile_peers(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """Every attack on the ports of clients and metrics, first without TLS, then on mutual TLS."""
    made = []
    for tls, attacks in ((False, attackers.PLAIN), (True, attackers.TLS)):
        sized = dataclasses.replace(settings, tls=tls)
        async with open_siege(sized, screen, churn={}, environment=NO_PROGRESS_TIMEOUT) as siege:
            for title, names in siege.groups(attacks).items():
                sizes = {name: max(1, round(attacks[name].size * settings.attack_share)) for name in names}
                reasons, size = _expected(names), sum(sizes.values())
                await siege.attack(title, _attackers(siege, sizes), size=size, expected=reasons)
            made.append(await siege.finish("Hostile peers"))
    return _joined(made)


class Shortage(NamedTuple):
    """What a service has little of."""

    descriptors: int = 1024
    megabytes: int = 0
    """Address space of each process; 0 for no limit."""
    tls: bool = False
    workers: int = 1

    def __str__(self) -> str:
        what = f"{self.megabytes} MB" if self.megabytes else f"{self.descriptors} descriptors"
        return f"{what}, {'mutual TLS' if self.tls else 'plain'}, Workers {self.workers}"

    @property
    def ulimit(self) -> str:
        """Arguments of the shell's ulimit."""
        return f"-n {self.descriptors}" + (f" -v {self.megabytes * 1000}" if self.megabytes else "")


SHORTAGES: Final = tuple(
    Shortage(*scarce, tls, workers)
    for scarce, tls, workers in itertools.product(((256, 0), (1024, 0), (1024, 450)), (False, True), (0, 1, 4))
)
SMALL_SHORTAGES: Final = (Shortage(256), Shortage(256, tls=True, workers=0))


async def starved(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """Few descriptors, or little memory: attacks that use up all of them take nothing that the service needs."""
    made = []
    chosen = [one for one in SHORTAGES if str(one) in settings.attacks]
    for shortage in chosen or (SHORTAGES if settings.judge_times else SMALL_SHORTAGES):
        agents = min(settings.agents, shortage.descriptors // 4)
        poor = dataclasses.replace(settings, tls=shortage.tls, agents=agents, pod_bytes=CHURNED_POD_BYTES)
        environment = {"TYPHA_WORKERS": str(shortage.workers), "TYPHA_SEGMENTBYTES": str(SEGMENT_BYTES)}
        churn = {"rate_per_second": CHURN_PER_SECOND}
        async with open_siege(poor, screen, churn=churn, environment=environment, ulimit=shortage.ulimit) as siege:
            names = ("1 MiB of gob held", "silent") if shortage.megabytes else ("silent", "metrics, idle")
            sizes = dict.fromkeys(names, shortage.descriptors + MORE_CONNECTIONS)
            size, reasons = sum(sizes.values()), _expected(names)
            await siege.attack(str(shortage), _attackers(siege, sizes), size=size, expected=reasons)
            swarm, served = siege.scene.testbed.swarm, True
            try:
                await swarm.storm(timeout_seconds=siege.patience_seconds)
            except TimeoutError:
                served = False
            detail = f"{swarm.totals().in_sync} of {agents} agents are in sync after they have connected again"
            siege.checks.append(report.Check(f"{shortage}: newcomers are served afterwards", served, detail))
            made.append(await siege.finish("Few resources"))
    return _joined(made)


def _joined(made: Sequence[report.Report]) -> report.Report:
    """One report of several scenes."""
    first, *others = made
    for other in others:
        first.checks += other.checks
        first.facts = {**first.facts, **other.facts}
        first.data["attacks"] += other.data["attacks"]
    return first


async def hostile_api(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """An API server whose answers to one type are endless, false or too much: other types go on, and all recover."""
    async with open_siege(settings, screen, churn={"types": processes.ONLY_PODS}, watch_list="off") as siege:
        sizes = {name: max(1, round(size * settings.attack_share)) for name, size in API_SIZES.items()}
        [deleted_type] = API_ATTACKS[DELETIONS]
        await siege.scene.simulator.control("POST", "objects", {"type": deleted_type, "count": sizes["deletions"]})
        await siege.calm()
        for title, names in siege.groups(API_ATTACKS).items():
            outcome = await siege.attack(title, _answers(siege.scene, names, sizes))
            tries = 1 + math.ceil(math.log2(1 + 2 * outcome.seconds))
            asked = outcome.attackers["requests"]
            most = REQUESTS_PER_SECOND * outcome.seconds * len(names) + ENDLESS_PAGES * tries
            rate = f"{asked} requests, limit {most:.0f}"
            siege.checks += [
                report.Check(f"{title}: the service asks at a bounded rate", asked <= most, rate),
                report.Check(f"{title}: the service says so", outcome.log_lines > 0, f"{outcome.log_lines} log lines"),
            ]
        return await siege.finish("Hostile API server")


@contextlib.asynccontextmanager
async def _answers(scene: fixture.Scene, names: Sequence[str], sizes: Mapping[str, int]) -> AsyncIterator[Counts]:
    """The API server's answers are hostile."""
    control, tasks = scene.simulator.control, []
    before = await scene.simulator.counters()

    async def requests() -> Mapping[str, int]:
        name = "apiserver_request_total"
        return {"requests": round((await scene.simulator.counters()).total(name) - before.total(name))}

    for name in names:
        type_name, *faults = API_ATTACKS[name]
        if name == LARGE_OBJECT:
            tasks.append(asyncio.create_task(_change_policy(scene, sizes["rules"]), name=name))
        elif name == DELETIONS:
            await control("DELETE", "objects", {"type": type_name})
        for fault in faults:
            size = {"megabytes": sizes["megabytes"]} if fault["kind"] == "compressed" else {}
            await control("POST", "faults", {**fault, **size, "resource": type_name, "verb": "LIST"})
        if faults:  # the history is forgotten, so the type is listed again
            await control("POST", "faults", {"kind": "compact", "resource": type_name})
    try:
        yield requests
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await control("DELETE", "faults")


async def _change_policy(scene: fixture.Scene, rules: int) -> None:
    """Write a NetworkPolicy with many rules, twice a second."""
    path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
    blocks = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32" for number in range(rules)]
    policy = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": block}}]} for block in blocks]}
    for number in itertools.count():
        value = {"metadata": {"name": "large", "namespace": "default", "labels": {"n": str(number)}}, "spec": policy}
        place = ("PUT", f"{path}/large") if number else ("POST", path)
        await scene.testbed.client.request(*place, data=msgspec.json.encode(value))
        await asyncio.sleep(0.5)
