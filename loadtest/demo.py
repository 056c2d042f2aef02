"""`make demo`: a simulated API server, the service and a thousand agents, a live display, and a proof at the end."""

from collections.abc import Sequence
from pathlib import Path

from loadtest.environment import kubeconfig, processes, testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fixture
from loadtest.swarm import supervisor
from loadtest.verification import convergence, expected_state

TITLE, COMMAND = "typha demo", "make demo"


class DemoError(Exception):
    """The demo cannot run; the message says why."""


async def run(settings: fixture.Settings, *, own_cluster: Path | None = None) -> bool:
    """Run the demo on a simulated cluster, or on the one of a kubeconfig file, which is only read.

    Returns whether every agent converged. Raises DemoError and the errors of the parts.
    """
    report.prepare_folder(settings.folder)
    with dashboard.Dashboard(TITLE) as screen:
        if own_cluster is None:
            made = await _on_simulator(settings, screen)
        else:
            made = await _on_cluster(settings, screen, own_cluster)
        made.write(settings.folder)
        for check in made.checks:
            if not check.passed:
                screen.say(check.line())
        verdict = made.data["verdict"]
        screen.say(f"report: {settings.folder}/report.html and report.json")
        screen.say(
            f"{'converged' if made.passed else 'NOT converged'}: {verdict['converged']} of {verdict['agents']} agents "
            f"hold exactly the API server's state ({verdict['keys']:,} keys, digest {verdict['digest']})"
        )
    return made.passed


async def _on_simulator(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    screen.say(f"starting a simulated API server ({settings.nodes:,} nodes, {settings.pods:,} pods) and the service")
    async with fixture.open_scene(settings, screen) as scene:
        running = scene.testbed
        screen.say(f"{settings.agents:,} agents are in sync")
        await scene.simulator.start_churn(settings.updates_per_second)
        screen.say(f"the simulated API server writes {settings.updates_per_second:g} times a second")
        await running.sleep(settings.seconds)
        await scene.simulator.stop_churn()
        screen.say("the changes have stopped; waiting until everything has arrived")
        return await running.finish(TITLE, _facts(running), [], command=COMMAND)


async def _on_cluster(settings: fixture.Settings, screen: dashboard.Dashboard, file: Path) -> report.Report:
    access = await kubeconfig.load(file)
    screen.say(f"cluster {access.context} at {access.server}: it is only read (get, list, watch), nothing is written")
    async with expected_state.ApiClient(access) as client:
        types = await _readable(client, screen)
        if not types:
            raise DemoError(f"none of the types may be listed on {access.server}")

        async def api_counters() -> measure.Metrics | None:
            status, body = await client.get("/metrics")
            return measure.Metrics(body.decode()) if status == 200 else None

        readable_counters = api_counters if await api_counters() is not None else None
        screen.say("starting the service")
        agents = supervisor.SwarmPlan(feed=settings.feed, agents=settings.agents, public_agents=settings.public_agents)
        async with testbed.open_testbed(
            settings.folder, file, agents, screen, types=types, api_counters=readable_counters
        ) as running:
            await running.in_sync()
            screen.say(f"{settings.agents:,} agents are in sync")
            await running.sleep(settings.seconds)
            verdict = await convergence.while_changing(running.swarm, running.client, running.specs)
            return running.make_report(verdict, TITLE, _facts(running), [], command=COMMAND)


async def _readable(client: expected_state.ApiClient, screen: dashboard.Dashboard) -> Sequence[str]:
    """The types that may be listed."""
    found = []
    for name in processes.TYPES:
        [spec] = expected_state.specs([name])
        status, body = await client.get(spec.type.list_path, {"limit": "1"})
        if status == 200:
            found.append(name)
        else:
            screen.say(f"left out: {name} (status {status}: {body[:200].decode(errors='replace').strip()})")
    return found


def _facts(running: testbed.Testbed) -> dict[str, str]:
    totals = running.swarm.totals()
    return {
        "cluster": running.client.access.server,
        "types": ", ".join(running.types),
        "snapshots, frames, deliveries": f"{totals.snapshots:,}, {totals.frames:,}, {totals.updates:,}",
        "delivery latency, write to read": running.swarm.latency.quantiles_text("deliveries"),
    }
