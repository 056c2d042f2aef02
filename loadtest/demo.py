"""`make demo`: a simulated API server, the service and a thousand agents, shown while it runs and proved at its end."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from cache import raw
from loadtest import convergence, kubeconfig, measure, monitor, processes, proof, report, truth, view
from loadtest.swarm import supervisor

TYPES: Final = (
    "v1/namespaces",
    "v1/nodes",
    "v1/pods",
    "v1/services",
    "discovery.k8s.io/v1/endpointslices",
    "networking.k8s.io/v1/networkpolicies",
)
SIMULATED_TYPES: Final = (*TYPES, "loadtest.example.com/v1/widgets")
IN_SYNC_TIMEOUT_SECONDS: Final = 120.0
QUIET_TIMEOUT_SECONDS: Final = 60.0


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
    settings.folder.mkdir(parents=True, exist_ok=True)
    for log in settings.folder.glob("*.log"):
        log.unlink()
    with view.View("typha demo") as screen:
        if settings.kubeconfig is None:
            return await _simulated(settings, screen)
        return await _on_cluster(settings, screen, settings.kubeconfig)


async def _simulated(settings: DemoSettings, screen: view.View) -> bool:
    screen.say(f"starting a simulated API server: {settings.nodes:,} nodes, {settings.pods:,} pods")
    arguments = ["--nodes", str(settings.nodes), "--pods", str(settings.pods)]
    async with processes.Simulator(settings.folder, arguments=arguments) as simulator:

        async def api_load() -> monitor.ApiLoad:
            return monitor.api_load_of(measure.Counters(await simulator.metrics()))

        async def begin() -> None:
            await simulator.control("POST", "churn", {"rate_per_second": settings.updates_per_second})
            screen.say(f"the simulated API server writes {settings.updates_per_second:g} times a second")

        async def end() -> None:
            await simulator.control("DELETE", "churn")
            screen.say("the changes have stopped; waiting until everything has arrived")

        access = kubeconfig.load(simulator.kubeconfig)
        async with truth.ApiClient(access) as client:
            stage = _Stage(settings, screen, client, SIMULATED_TYPES, simulator.kubeconfig)
            return await stage.run(api_load=api_load, begin=begin, end=end)


async def _on_cluster(settings: DemoSettings, screen: view.View, file: Path) -> bool:
    access = kubeconfig.load(file)
    screen.say(f"cluster {access.context} at {access.server}: it is only read (get, list, watch), nothing is written")
    async with truth.ApiClient(access) as client:
        types = [name for name in TYPES if await _readable(client, name, screen)]
        if not types:
            raise DemoError(f"none of the types may be listed on {access.server}")

        async def api_load() -> monitor.ApiLoad | None:
            status, body = await client.get("/metrics")
            return monitor.api_load_of(measure.Counters(body.decode())) if status == 200 else None

        stage = _Stage(settings, screen, client, types, file)
        return await stage.run(api_load=api_load if await api_load() else None)


async def _readable(client: truth.ApiClient, name: str, screen: view.View) -> bool:
    [spec] = truth.specs([name])
    status, body = await client.get(spec.type.list_path, {"limit": "1"})
    if status != 200:
        screen.say(f"left out: {name} (status {status}: {body[:200].decode(errors='replace').strip()})")
    return status == 200


@dataclasses.dataclass(frozen=True, slots=True)
class _Stage:
    """The service and the agents on some API server."""

    settings: DemoSettings
    screen: view.View
    client: truth.ApiClient
    types: Sequence[str]
    kubeconfig: Path

    async def run(
        self,
        *,
        api_load: Callable[[], Awaitable[monitor.ApiLoad | None]] | None,
        begin: Callable[[], Awaitable[None]] | None = None,
        end: Callable[[], Awaitable[None]] | None = None,
    ) -> bool:
        """`begin` and `end` start and stop the changes; without them the cluster is somebody else's."""
        settings, screen = self.settings, self.screen
        specs: list[raw.ResourceSpec] = truth.specs(self.types)
        async with contextlib.AsyncExitStack() as stack:
            screen.say("starting the service")
            service = await stack.enter_async_context(
                processes.Service(settings.folder, kubeconfig_file=self.kubeconfig, types=self.types)
            )
            swarm = await stack.enter_async_context(
                supervisor.Swarm(
                    [service.address],
                    feed=processes.FEED,
                    agents=settings.agents,
                    public_agents=min(settings.public_agents, settings.agents),
                )
            )
            watcher = monitor.Monitor(swarm, service, api_load=api_load, on_sample=screen.show)
            watching = asyncio.create_task(watcher.run(), name="monitor")
            stack.push_async_callback(_cancel, watching)
            await swarm.wait_in_sync(timeout_seconds=IN_SYNC_TIMEOUT_SECONDS)
            screen.say(f"{settings.agents:,} agents are in sync")
            if begin is not None:
                await begin()
            done, _ = await asyncio.wait([watching], timeout=settings.duration_seconds)
            if done:
                watching.result()
            if end is not None:
                await end()
                verdict = await proof.when_quiet(swarm, self.client, specs, timeout_seconds=QUIET_TIMEOUT_SECONDS)
            else:
                verdict = await proof.while_changing(swarm, self.client, specs)
            return self._finish(verdict, watcher, swarm.totals())

    def _finish(self, verdict: convergence.Verdict, watcher: monitor.Monitor, totals: supervisor.Totals) -> bool:
        made = report.Report(title="typha demo", command="make demo", samples=watcher.samples)
        made.checks = checks(verdict, totals)
        made.facts = {
            "cluster": self.client.access.server,
            "types": ", ".join(self.types),
            "agents": proved_how(verdict),
            "snapshots, frames, deliveries": f"{totals.snapshots:,}, {totals.frames:,}, {totals.updates:,}",
            **latency_facts(watcher),
        }
        made.data = {"verdict": dataclasses.asdict(verdict), "swarm": dataclasses.asdict(totals)}
        made.write(self.settings.folder)
        for check in made.checks:
            if not check.passed:
                self.screen.say(check.line())
        self.screen.say(f"report: {self.settings.folder}/report.html and report.json")
        self.screen.say(
            f"{'converged' if made.passed else 'NOT converged'}: {verdict.converged} of {verdict.agents} agents hold "
            f"exactly the API server's state ({verdict.keys:,} keys, digest {verdict.digest:016x})"
        )
        return made.passed


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
        f"digest; those of one process decode each distinct frame once) and {verdict.public_agents} that decode everything "
        "through the public client"
    )


def latency_facts(watcher: monitor.Monitor) -> dict[str, str]:
    """The latencies of a run."""
    quantiles = [(name, watcher.latency.quantile(fraction)) for name, fraction in (("p50", 0.5), ("p99", 0.99))]
    text = ", ".join("-" if value is None else f"{name} {value * 1e3:.1f} ms" for name, value in quantiles)
    return {"delivery latency, write to read": f"{text} over {watcher.latency.total:,} deliveries"}


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
