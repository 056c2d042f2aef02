"""Runs on a real API server: convergence through faults, and its load with few and with many agents."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from loadtest.environment import control_plane, kubeconfig, testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import apiload, fixture
from loadtest.scenarios.real import relay, writer
from loadtest.swarm import supervisor
from loadtest.verification import expected_state

FAULT_TIMEOUT_SECONDS: Final = 90.0
AFTER_FAULTS_SECONDS: Final = 8.0
COUNTING_SECONDS: Final = 15.0
SETTLE_TIMEOUT_SECONDS: Final = 30
COMMAND: Final = "python -m loadtest acceptance"


@dataclasses.dataclass(frozen=True)
class Real:
    """A populated control plane, a relay in front of it, and its one writer."""

    settings: fixture.Settings
    screen: dashboard.Dashboard
    control: control_plane.ControlPlane
    relay: relay.Relay
    writer: writer.Writer
    kubeconfig: Path
    """Leads through the relay."""

    @contextlib.asynccontextmanager
    async def open_testbed(self, agents: int, public_agents: int) -> AsyncIterator[testbed.Testbed]:
        """A service and agents that are in sync."""
        plan = supervisor.SwarmPlan(feed=self.settings.feed, agents=agents, public_agents=public_agents)

        async def api_counters() -> measure.Metrics | None:
            try:
                return await self.counters()
            except OSError:  # the API server is down
                return None

        async with testbed.open_testbed(
            self.settings.folder, self.kubeconfig, plan, self.screen, types=writer.TYPES, api_counters=api_counters
        ) as running:
            await running.in_sync()
            yield running

    async def counters(self) -> measure.Metrics:
        """The API server's own metrics. Raises OSError."""
        return measure.Metrics(await asyncio.to_thread(self.control.metrics))


@contextlib.asynccontextmanager
async def open_real(settings: fixture.Settings, screen: dashboard.Dashboard) -> AsyncIterator[Real]:
    """Start the control plane and create its objects: pods, and in proportion namespaces and other kinds."""
    screen.say("starting a real kube-apiserver and etcd")
    control = control_plane.ControlPlane(settings.folder / "control-plane")
    await asyncio.to_thread(control.start)
    try:
        access = await kubeconfig.load(control.kubeconfig)
        host, _, port = access.server.rpartition("/")[2].rpartition(":")
        async with (
            relay.Relay(host, int(port)) as between,
            expected_state.ApiClient(access) as client,
        ):
            namespaces, others = max(3, settings.pods // 100), max(10, settings.pods // 10)
            one = writer.Writer(client, namespaces=namespaces)
            screen.say(f"creating {settings.pods:,} pods, {namespaces} namespaces, {others} others")
            counts = dict.fromkeys(("services", "endpointslices", "widgets"), others)
            await one.populate({"pods": settings.pods, **counts})
            relayed = settings.folder / "relayed.kubeconfig"
            config = json.loads(control.kubeconfig.read_text())
            config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{between.port}"
            relayed.write_text(json.dumps(config))
            yield Real(settings, screen, control, between, one, relayed)
    finally:
        await asyncio.to_thread(control.stop)


async def faults(real: Real) -> report.Report:
    """Churn through cut connections, an API server that is killed and loses its history, and a killed worker."""
    settings, one = real.settings, real.writer
    async with real.open_testbed(settings.agents, settings.public_agents) as running:
        rate = settings.updates_per_second
        real.screen.say(f"{settings.agents:,} agents are in sync; {rate:g} writes a second from now on")
        churn = asyncio.create_task(one.churn(writes_per_second=rate, seconds=settings.seconds), name="churn")
        try:
            await running.sleep(settings.seconds / 6)
            await _cut(real, running)
            await running.sleep(settings.seconds / 12)
            await _expire(real, running)
            await running.sleep(settings.seconds / 12)
            await _kill_worker(real, running)
            await churn
        finally:
            churn.cancel()
            await asyncio.wait([churn])
        await one.churn(writes_per_second=rate, seconds=AFTER_FAULTS_SECONDS)
        await running.in_sync()
        facts = {
            "writes": ", ".join(f"{count:,} {name}" for name, count in {**one.counts, "retries": one.retries}.items()),
            "delivery latency, write to read": running.swarm.latency.quantiles_text("deliveries"),
            "disconnects seen by agents": json.dumps(running.swarm.totals().disconnects),
        }
        checks = _fault_checks(await running.service.counters())
        title = "Faults on a real API server"
        return await running.finish(title, facts, checks, command=COMMAND, deletions_asked=one.asked)


async def api_load(real: Real) -> report.Report:
    """The API server's own counters while a service starts and runs, with few agents and with all."""
    loads = []
    for agents in (apiload.FEW, real.settings.agents):
        before = await _settled(real)
        async with real.open_testbed(agents, 0) as running:
            await running.sleep(COUNTING_SECONDS)
            names = {spec.type.resource for spec in running.specs}
            watches = apiload.watches(before, await real.counters(), names)
        # kube-apiserver counts a watch as a request when it ends, so the service must have ended.
        requests = apiload.requests(before, await _settled(real), names)
        loads.append(apiload.Load(agents, requests, watches))
    made = report.Report(title="Load of a real API server", command=COMMAND)
    made.checks = [apiload.check(*loads)]
    made.data["requests"], made.data["watches"] = zip(*(load.data() for load in loads), strict=True)
    return made


async def _cut(real: Real, running: testbed.Testbed) -> None:
    """Cut all connections to the API server, and wait until the watch of every type was resumed."""
    count = real.relay.cut()
    real.screen.say(f"{count} connections to the API server were cut")
    await _wait_for_types(running, "resumed streams", _resumes, touch=real.writer)


async def _expire(real: Real, running: testbed.Testbed) -> None:
    """Kill the API server, compact its history and start it again; wait until every type was listed again."""
    real.screen.say("the API server is killed, its history compacted, and started again")
    await asyncio.to_thread(real.control.expire_history)
    real.screen.say("it is back")
    await _wait_for_types(running, "lists after a 410", _relists)


async def _kill_worker(real: Real, running: testbed.Testbed) -> None:
    """SIGKILL to a worker; wait until it is replaced and the agents are back. Raises TimeoutError."""
    real.screen.say(f"worker {running.service.kill_worker()} was killed")

    async def replaced() -> bool:
        return bool((await running.service.counters()).total("typha_worker_restarts_total"))

    if await running.wait_until(replaced, timeout_seconds=FAULT_TIMEOUT_SECONDS, interval_seconds=0.5) is None:
        raise TimeoutError(f"no new worker within {FAULT_TIMEOUT_SECONDS:.0f} s")
    await running.in_sync()


def _resumes(counters: measure.Metrics) -> dict[str, float]:
    return counters.by_label("typha_watch_resumes_total", "type")


def _relists(counters: measure.Metrics) -> dict[str, float]:
    found = counters.by_labels("typha_watch_relists_total", "type", "reason")
    return {place[0]: value for place, value in found.items() if place[1] == "410"}


async def _wait_for_types(
    running: testbed.Testbed,
    what: str,
    read: Callable[[measure.Metrics], dict[str, float]],
    *,
    touch: writer.Writer | None = None,
) -> None:
    """Wait until the service has counted something for each type. After a timeout the checks fail."""
    types = {str(spec.type) for spec in running.specs}

    async def all_counted() -> bool:
        if touch is not None:
            await touch.touch_all()
        return types <= {name for name, value in read(await running.service.counters()).items() if value}

    if await running.wait_until(all_counted, timeout_seconds=FAULT_TIMEOUT_SECONDS, interval_seconds=1.0) is not None:
        running.screen.say(f"{what}: all of {len(types)} types")


def _fault_checks(counters: measure.Metrics) -> list[report.Check]:
    resumes, relists = _resumes(counters), _relists(counters)
    types = {str(spec.type) for spec in expected_state.specs(writer.TYPES)}
    restarts = counters.total("typha_worker_restarts_total")
    return [
        report.Check(
            "a resumed stream for each watched kind",
            all(resumes.get(name) for name in types),
            "typha_watch_resumes_total: " + _text(resumes),
        ),
        report.Check(
            "a 410 relist for each watched kind",
            all(relists.get(name) for name in types),
            'typha_watch_relists_total{reason="410"}: ' + _text(relists),
        ),
        report.Check("one worker was replaced", restarts == 1, f"typha_worker_restarts_total: {restarts:.0f}"),
    ]


def _text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in sorted(values.items())) or "nothing"


async def _settled(real: Real) -> measure.Metrics:
    """The API server's counters once the watches of an earlier service have ended."""
    before = await real.counters()
    for _ in range(SETTLE_TIMEOUT_SECONDS):
        await asyncio.sleep(1.0)
        after = await real.counters()
        name = "apiserver_longrunning_requests"
        if after.by_labels(name, "verb", "resource") == before.by_labels(name, "verb", "resource"):
            return after
        before = after
    raise control_plane.ControlPlaneError("the number of watches at the API server keeps changing")
