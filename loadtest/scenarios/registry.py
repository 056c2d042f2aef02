"""All scenarios by name."""

from collections.abc import Awaitable, Callable
from typing import Final

from loadtest.reporting import dashboard, report
from loadtest.scenarios import apiload, crash, fanout, fixture, fleet, hostile, mixed, slow, subscriptions
from loadtest.scenarios.real import direct

Scenario = Callable[[fixture.Settings, dashboard.Dashboard], Awaitable[report.Report]]

SCENARIOS: Final[dict[str, Scenario]] = {
    "steady": fanout.steady,
    "idle": fanout.idle,
    "storm": fanout.storm,
    "burst": fanout.burst,
    "stalled": slow.stalled,
    "slow-readers": slow.slow_readers,
    "lag": slow.lag,
    "mixed": mixed.mixed,
    "hostile-peers": hostile.hostile_peers,
    "hostile-api": hostile.hostile_api,
    "starved": hostile.starved,
    "api-load": apiload.api_load,
    "kill": crash.kill,
    "worker-kill": crash.worker_kill,
    "hub-stop": crash.hub_stop,
    "own-node": subscriptions.own_node,
    "direct": direct.run,
    "fleet": fleet.run,
}

OF_BOTH_PROTOCOLS: Final[frozenset[str]] = frozenset({"mixed", "hostile-peers", "hostile-api", "starved", "fleet"})
"""Scenarios that always use both protocols, and so need one of Calico's feeds."""


async def run(name: str, settings: fixture.Settings) -> bool:
    """Run a scenario and publish its report; returns whether all checks passed."""
    report.prepare_folder(settings.folder)
    with dashboard.Dashboard(f"typha load test: {name}") as screen:
        made = await SCENARIOS[name](settings, screen)
        made.command = f"python -m loadtest run --scenario {name} --agents {settings.agents}"
        return made.publish(settings.folder, screen)
