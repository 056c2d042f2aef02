"""Clients of both protocols on one endpoint: the same map for all, and what each costs alone and beside the other."""

import dataclasses

from loadtest.environment import measurement
from loadtest.reporting import dashboard, report
from loadtest.scenarios import fixture


async def mixed(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """With more than one round: each half of the agents alone, for the cost of its protocol. Then both at once."""
    facts: dict[str, str] = {}
    for protocol in fixture.BOTH if settings.rounds > 1 else ():
        alone = dataclasses.replace(settings, protocols=(protocol,), public_agents=0)
        async with fixture.open_scene(alone, screen, agents=settings.agents // 2) as scene:
            window = await _measured(scene)
            for name in ("CPU per delivery", "delivery latency, write to read"):
                facts[f"{protocol.value} alone, {name}"] = window.facts().get(name, "-")
    settings = dataclasses.replace(settings, protocols=fixture.BOTH)
    async with fixture.open_scene(settings, screen) as scene:
        window = await _measured(scene)
        checks = []
        for protocol in fixture.BOTH:
            latency = window.latency_of[protocol]
            facts[f"{protocol.value} beside the other, delivery latency"] = latency.quantiles_text("deliveries")
            totals = scene.testbed.swarm.totals(protocol)
            checks.append(
                report.Check(
                    f"all agents of the {protocol.value} protocol are in sync, and got changes",
                    totals.in_sync == totals.agents and latency.total > 0,
                    f"{totals.in_sync} of {totals.agents}, {latency.total:,} timed deliveries",
                )
            )
        return await scene.finish("Both protocols at once", {**facts, **window.facts()}, checks)


async def _measured(scene: fixture.Scene) -> measurement.Window:
    await scene.start_churn()
    window = await scene.testbed.window(scene.settings.seconds)
    await scene.simulator.stop_churn()
    return window
