"""All scenarios by name."""

from collections.abc import Awaitable, Callable
from typing import Final

from loadtest.reporting import dashboard, report
from loadtest.scenarios import apiload, badpeers, crash, fanout, fixture, hubstop, mixed, slow

Scenario = Callable[[fixture.Settings, dashboard.View], Awaitable[report.Report]]

SCENARIOS: Final[dict[str, Scenario]] = {
    "steady": fanout.steady,
    "idle": fanout.idle,
    "storm": fanout.storm,
    "burst": fanout.burst,
    "stalled": slow.stalled,
    "slow-readers": slow.slow_readers,
    "lag": slow.lag,
    "mixed": mixed.mixed,
    "bad-peers": badpeers.bad_peers,
    "api-load": apiload.api_load,
    "kill": crash.kill,
    "worker-kill": crash.worker_kill,
    "hub-stop": hubstop.hub_stop,
}

OF_BOTH_PROTOCOLS: Final[frozenset[str]] = frozenset({"mixed"})
"""Scenarios that play with both protocols, whatever is chosen, and so need one of Calico's feeds."""


async def run(name: str, settings: fixture.Settings) -> bool:
    """Runs a scenario, shows its checks and facts, leaves the report in its folder; whether all checks passed."""
    report.prepare_folder(settings.folder)
    with dashboard.View(f"typha load test: {name}") as screen:
        made = await SCENARIOS[name](settings, screen)
        made.command = f"python -m loadtest run --scenario {name} --agents {settings.agents}"
        made.write(settings.folder)
        for fact, text in made.facts.items():
            screen.say(f"{fact}: {text}")
        for check in made.checks:
            screen.say(check.line())
        screen.say(f"report: {settings.folder}/report.html and report.json")
    return made.passed
