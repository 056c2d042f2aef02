"""`make demo`: a simulated API server, the service and a thousand agents, shown while it runs and proved at its end."""

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from loadtest.environment import kubeconfig, processes, testbed
from loadtest.reporting import dashboard, measure, monitor, report
from loadtest.verification import convergence, expected_state, proof

TYPES: Final = (
    "v1/namespaces",
    "v1/nodes",
    "v1/pods",
    "v1/services",
    "discovery.k8s.io/v1/endpointslices",
    "networking.k8s.io/v1/networkpolicies",
)
SIMULATED_TYPES: Final = (*TYPES, "loadtest.example.com/v1/widgets")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What the demo runs with."""

    duration_seconds: float = 30.0
    agents: int = 1000
    public_agents: int = 10
    updates_per_second: float = 50.0
    nodes: int = 500
    pods: int = 5000
    folder: Path = Path("report-demo")
    kubeconfig: Path | None = None
    """A cluster of one's own; it is only read."""


class DemoError(Exception):
    """The demo cannot run; the message says why."""


async def run(settings: DemoSettings) -> bool:
    """Runs the demo; whether every agent converged. Raises DemoError and the errors of its parts."""
    report.prepare_folder(settings.folder)
    with dashboard.View("typha demo") as screen:
        if settings.kubeconfig is None:
            return await _simulated(settings, screen)
        return await _on_cluster(settings, screen, settings.kubeconfig)


async def _simulated(settings: DemoSettings, screen: dashboard.View) -> bool:
    screen.say(f"starting a simulated API server: {settings.nodes:,} nodes, {settings.pods:,} pods")
    arguments = ["--nodes", str(settings.nodes), "--pods", str(settings.pods)]
    async with processes.Simulator(settings.folder, arguments=arguments) as simulator:

        async def begin() -> None:
            await simulator.control("POST", "churn", {"rate_per_second": settings.updates_per_second})
            screen.say(f"the simulated API server writes {settings.updates_per_second:g} times a second")

        async def end() -> None:
            await simulator.control("DELETE", "churn")
            screen.say("the changes have stopped; waiting until everything has arrived")

        plan = _plan(settings, simulator.kubeconfig, SIMULATED_TYPES)
        screen.say("starting the service")
        async with testbed.open_stage(plan, screen, api_load=testbed.simulator_load(simulator)) as running:
            return await _play(settings, running, begin=begin, end=end)


async def _on_cluster(settings: DemoSettings, screen: dashboard.View, file: Path) -> bool:
    access = kubeconfig.load(file)
    screen.say(f"cluster {access.context} at {access.server}: it is only read (get, list, watch), nothing is written")
    async with expected_state.ApiClient(access) as client:
        types = [name for name in TYPES if await _readable(client, name, screen)]
        if not types:
            raise DemoError(f"none of the types may be listed on {access.server}")

        async def api_load() -> monitor.ApiLoad | None:
            status, body = await client.get("/metrics")
            return monitor.api_load_of(measure.Counters(body.decode())) if status == 200 else None

        load = api_load if await api_load() is not None else None
        screen.say("starting the service")
        async with testbed.open_stage(_plan(settings, file, types), screen, api_load=load) as running:
            return await _play(settings, running)


def _plan(settings: DemoSettings, file: Path, types: Sequence[str]) -> testbed.Plan:
    return testbed.Plan(
        folder=settings.folder,
        kubeconfig=file,
        types=types,
        agents=settings.agents,
        public_agents=settings.public_agents,
    )


async def _readable(client: expected_state.ApiClient, name: str, screen: dashboard.View) -> bool:
    [spec] = expected_state.specs([name])
    status, body = await client.get(spec.type.list_path, {"limit": "1"})
    if status != 200:
        screen.say(f"left out: {name} (status {status}: {body[:200].decode(errors='replace').strip()})")
    return status == 200


async def _play(
    settings: DemoSettings,
    running: testbed.Stage,
    *,
    begin: Callable[[], Awaitable[None]] | None = None,
    end: Callable[[], Awaitable[None]] | None = None,
) -> bool:
    """`begin` and `end` start and stop the changes; without them the cluster is somebody else's."""
    await running.in_sync()
    running.screen.say(f"{settings.agents:,} agents are in sync")
    if begin is not None:
        await begin()
    await running.sleep(settings.duration_seconds)
    if end is not None:
        await end()
        verdict = await running.prove()
    else:
        verdict = await proof.while_changing(running.swarm, running.client, running.specs)
    return _finish(settings, running, verdict)


def _finish(settings: DemoSettings, running: testbed.Stage, verdict: convergence.Verdict) -> bool:
    totals, screen = running.swarm.totals(), running.screen
    made = report.Report(title="typha demo", command="make demo", samples=running.monitor.samples)
    made.checks = testbed.checks(verdict, totals)
    made.facts = {
        "cluster": running.client.access.server,
        "types": ", ".join(running.plan.types),
        "agents": testbed.proved_how(verdict),
        "snapshots, frames, deliveries": f"{totals.snapshots:,}, {totals.frames:,}, {totals.updates:,}",
        "delivery latency, write to read": testbed.quantiles_text(running.monitor.latency),
    }
    made.data = testbed.data_of(verdict, totals)
    made.write(settings.folder)
    for check in made.checks:
        if not check.passed:
            screen.say(check.line())
    screen.say(f"report: {settings.folder}/report.html and report.json")
    screen.say(
        f"{'converged' if made.passed else 'NOT converged'}: {verdict.converged} of {verdict.agents} agents hold "
        f"exactly the API server's state ({verdict.keys:,} keys, digest {verdict.digest:016x})"
    )
    return made.passed
