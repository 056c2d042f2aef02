"""What is shown on a real API server: convergence through faults, and its load with few and with many agents."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from loadtest.environment import control_plane, kubeconfig, testbed
from loadtest.reporting import dashboard, measure, monitor, report
from loadtest.scenarios import apiload
from loadtest.scenarios.real import relay, writer
from loadtest.verification import expected_state

FAULT_TIMEOUT_SECONDS: Final = 90.0
AFTER_FAULTS_SECONDS: Final = 8.0
COUNTING_SECONDS: Final = 15.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes; the defaults are those of the acceptance run."""

    agents: int = 1000
    public_agents: int = 10
    pods: int = 2000
    namespaces: int = 20
    others: int = 200
    """Services, EndpointSlices and custom objects: so many of each."""
    seconds: float = 60.0
    writes_per_second: float = 40.0
    folder: Path = Path("report-acceptance")


@dataclasses.dataclass(frozen=True)
class Real:
    """A populated control plane, a relay in front of it, and its one writer."""

    settings: Settings
    screen: dashboard.View
    control: control_plane.ControlPlane
    relay: relay.Relay
    writer: writer.Writer
    kubeconfig: Path
    """Leads through the relay."""

    def plan(self, agents: int, public_agents: int) -> testbed.Plan:
        """A service and agents on it."""
        return testbed.Plan(
            folder=self.settings.folder,
            kubeconfig=self.kubeconfig,
            types=writer.TYPES,
            agents=agents,
            public_agents=public_agents,
        )

    async def counters(self) -> measure.Counters:
        """The API server's own."""
        return measure.Counters(await asyncio.to_thread(self.control.metrics))

    async def load(self) -> monitor.ApiLoad | None:
        """For the live view; nothing while the API server is down."""
        try:
            return monitor.api_load_of(await self.counters())
        except OSError:
            return None


@contextlib.asynccontextmanager
async def open_real(settings: Settings, screen: dashboard.View) -> AsyncIterator[Real]:
    """Starts and fills the control plane."""
    screen.say("starting a real kube-apiserver and etcd")
    control = control_plane.ControlPlane(settings.folder / "control-plane")
    await asyncio.to_thread(control.start)
    try:
        access = kubeconfig.load(control.kubeconfig)
        host, _, port = access.server.rpartition("/")[2].rpartition(":")
        async with (
            relay.Relay(host, int(port)) as between,
            writer.Writer(access, namespaces=settings.namespaces) as one,
        ):
            screen.say(
                f"filling it: {settings.pods:,} pods, {settings.namespaces} namespaces, {settings.others} others"
            )
            others = dict.fromkeys(("services", "endpointslices", "widgets"), settings.others)
            await one.populate({"pods": settings.pods, **others})
            relayed = settings.folder / "relayed.kubeconfig"
            _redirect(control.kubeconfig, relayed, f"https://127.0.0.1:{between.port}")
            yield Real(settings, screen, control, between, one, relayed)
    finally:
        await asyncio.to_thread(control.stop)


async def faults(real: Real) -> report.Report:
    """Churn through cut connections, an API server that is killed and whose history is gone, and a dead worker."""
    settings, screen, one = real.settings, real.screen, real.writer
    plan = real.plan(settings.agents, settings.public_agents)
    async with testbed.open_stage(plan, screen, api_load=real.load) as running:
        await running.in_sync()
        screen.say(
            f"{settings.agents:,} agents are in sync; {settings.writes_per_second:g} writes a second from now on"
        )
        churn = asyncio.create_task(
            one.churn(writes_per_second=settings.writes_per_second, seconds=settings.seconds), name="churn"
        )
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
        await one.churn(writes_per_second=settings.writes_per_second, seconds=AFTER_FAULTS_SECONDS)
        await running.in_sync()
        verdict = await running.prove(one.asked)
        totals = running.swarm.totals()
        made = report.Report(title="Faults on a real API server", command="python -m loadtest acceptance")
        made.samples = running.monitor.samples
        made.checks = [*_fault_checks(await running.service.counters()), *testbed.checks(verdict, totals)]
        made.facts = {
            "agents": testbed.proved_how(verdict),
            "writes": ", ".join(f"{count:,} {name}" for name, count in one.counts.items()),
            "delivery latency, write to read": testbed.quantiles_text(running.monitor.latency),
            "disconnects seen by agents": json.dumps(totals.disconnects),
        }
        made.data = testbed.data_of(verdict, totals)
        return made


async def api_load(real: Real) -> report.Report:
    """The API server's own counters while a service starts and runs, with few agents and with all."""
    settings = real.settings
    parts = []
    for agents in (apiload.FEW, settings.agents):
        before = await _settled(real)
        async with testbed.open_stage(real.plan(agents, 0), real.screen, api_load=real.load) as running:
            await running.in_sync()
            await running.sleep(COUNTING_SECONDS)
            names = {spec.type.resource for spec in running.specs}
            watches = apiload.watches(before, await real.counters(), names)
        # kube-apiserver counts a watch among the requests when it ends: the service has ended by now.
        parts.append((agents, apiload.requests(before, await _settled(real), names), watches))
    made = report.Report(title="Load of a real API server", command="python -m loadtest acceptance")
    made.checks = [apiload.check(parts[0], parts[1])]
    made.data["requests"] = [{" ".join(place): value for place, value in part[1].items()} for part in parts]
    made.data["watches"] = [{" ".join(place): value for place, value in part[2].items()} for part in parts]
    return made


async def _cut(real: Real, running: testbed.Stage) -> None:
    """Cuts all connections to the API server, until every kind's stream has been resumed."""
    count = real.relay.cut()
    real.screen.say(f"{count} connections to the API server were cut")
    await _until(running, "resumed streams", lambda now: _by_type(now, "typha_watch_resumes_total"), touch=real.writer)


async def _expire(real: Real, running: testbed.Stage) -> None:
    """Kills the API server, compacts its history away, starts it again; until every kind was listed anew."""
    real.screen.say("the API server is killed, its history compacted, and started again")
    await asyncio.to_thread(real.control.expire_history)
    real.screen.say("it is back")
    await _until(running, "lists after a 410", _relists)


async def _kill_worker(real: Real, running: testbed.Stage) -> None:
    """SIGKILL to a worker, until it is replaced and the agents are back."""
    real.screen.say(f"worker {running.service.kill_worker()} was killed")
    async with asyncio.timeout(FAULT_TIMEOUT_SECONDS):
        while not (await running.service.counters()).total("typha_worker_restarts_total"):
            await running.sleep(0.5)
    await running.in_sync()


def _relists(counters: measure.Counters) -> dict[str, float]:
    found = counters.by_labels("typha_watch_relists_total", "type", "reason")
    return {place[0]: value for place, value in found.items() if place[1] == "410"}


def _by_type(counters: measure.Counters, name: str) -> dict[str, float]:
    return counters.by_label(name, "type")


async def _until(
    running: testbed.Stage,
    what: str,
    read: Callable[[measure.Counters], dict[str, float]],
    *,
    touch: writer.Writer | None = None,
) -> None:
    """Until the service counted something for each type; at the timeout the checks will tell."""
    deadline = asyncio.get_running_loop().time() + FAULT_TIMEOUT_SECONDS
    types = {str(spec.type) for spec in running.specs}
    while asyncio.get_running_loop().time() < deadline:
        if touch is not None:
            await touch.touch_all()
        counted = {name for name, value in read(await running.service.counters()).items() if value}
        if types <= counted:
            running.screen.say(f"{what}: all of {len(types)} types")
            return
        await running.sleep(1.0)


def _fault_checks(counters: measure.Counters) -> list[report.Check]:
    resumes, relists = _by_type(counters, "typha_watch_resumes_total"), _relists(counters)
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


async def _settled(real: Real) -> measure.Counters:
    """The API server's counters, once the watches of an earlier service are gone from them."""
    before = await real.counters()
    for _ in range(30):
        await asyncio.sleep(1.0)
        after = await real.counters()
        name = "apiserver_longrunning_requests"
        if after.by_labels(name, "verb", "resource") == before.by_labels(name, "verb", "resource"):
            return after
        before = after
    raise control_plane.ControlPlaneError("the API server's watches do not come to rest")


def _redirect(source: Path, target: Path, server: str) -> None:
    config = json.loads(source.read_text())
    config["clusters"][0]["cluster"]["server"] = server
    target.write_text(json.dumps(config))
