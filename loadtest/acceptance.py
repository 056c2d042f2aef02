"""The acceptance runs, at full size by hand and at a tenth of it in CI."""

import dataclasses
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from loadtest.bench import comparisons, runner
from loadtest.reporting import dashboard, report
from loadtest.scenarios import fixture, registry
from loadtest.scenarios.real import scenarios as real

SHORTEST_CHURN_SECONDS: Final = 24.0
"""On the real API server, which needs some 10 s to come back; that must happen during the churn."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceSettings:
    """`scale` 1.0 is the full size. Below it, times are shown and not judged."""

    scale: float = 1.0
    only: tuple[str, ...] = ()
    folder: Path = Path("report-acceptance")

    def scaled(self, count: int, *, least: int = 1) -> int:
        """A count at this scale."""
        return max(least, round(count * self.scale))

    def part_folder(self, name: str) -> Path:
        """The folder of one part, empty of earlier logs."""
        report.prepare_folder(self.folder / name)
        return self.folder / name

    def scenario(self, name: str, *, agents: int, least: int = 20, pods: int = 5000) -> fixture.Settings:
        """Settings of a part's scenarios, with the full-size number of agents."""
        return fixture.Settings(
            agents=self.scaled(agents, least=least),
            public_agents=self.scaled(10, least=2),
            seconds=max(4.0, 12.0 * self.scale),
            rounds=self.scaled(5),
            nodes=self.scaled(500),
            pods=pods,
            attack_share=self.scale,
            folder=self.part_folder(name),
            judge_times=self.scale >= 1.0,
        )


Part = Callable[[AcceptanceSettings, dashboard.Dashboard], Awaitable[list[report.Report]]]


async def run(settings: AcceptanceSettings) -> bool:
    """Run all parts, or some; prints a line for each check. Returns whether all passed."""
    report.prepare_folder(settings.folder)
    made: list[report.Report] = []
    with dashboard.Dashboard("typha acceptance") as screen:
        for name, part in PARTS.items():
            if settings.only and name not in settings.only:
                continue
            screen.say(f"== {name}")
            for one in await part(settings, screen):
                one.command = f"python -m loadtest acceptance --scale {settings.scale:g}"
                one.publish(settings.folder / f"{name}-{len(made)}", screen)
                made.append(one)
        screen.say("== summary")
        for one in made:
            for check in one.checks:
                screen.say(f"{check.line()[:4]}  {one.title}: {check.name}")
    summary = [{"title": one.title, "checks": [dataclasses.asdict(check) for check in one.checks]} for one in made]
    (settings.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return all(one.passed for one in made)


async def _real(settings: AcceptanceSettings, screen: dashboard.Dashboard) -> list[report.Report]:
    sizes = dataclasses.replace(
        settings.scenario("real", agents=1000, pods=settings.scaled(2000)),
        updates_per_second=40.0,
        seconds=max(SHORTEST_CHURN_SECONDS, 60.0 * settings.scale),
    )
    shutil.rmtree(sizes.folder / "control-plane", ignore_errors=True)
    async with real.open_real(sizes, screen) as control:
        return [await real.faults(control), await real.api_load(control)]


async def _crowd(settings: AcceptanceSettings, screen: dashboard.Dashboard) -> list[report.Report]:
    """5,000 agents: memory per client, CPU per delivery by process, comparison with the bare loop."""
    sizes = settings.scenario("crowd", agents=5000, least=50, pods=settings.scaled(20_000))
    made = [await registry.SCENARIOS[name](sizes, screen) for name in ("idle", "steady")]
    bench = comparisons.BenchSettings(
        names=("5000x20",),
        rounds=settings.scaled(3),
        sizes=comparisons.Sizes(scale=settings.scale, seconds=max(5.0, 15.0 * settings.scale), pods=sizes.pods),
        folder=sizes.folder,
    )
    beside = report.Report(title=f"{sizes.agents:,} agents beside a bare loop", command="")
    for result in (await runner.measure(bench, screen)).results:
        text = runner.text(result)
        beside.facts[result.figure.title] = text
        beside.checks.append(report.Check(result.figure.title, result.met is not False, text))
    return [*made, beside]


def _one_scenario(name: str, agents: int) -> Part:
    async def part(settings: AcceptanceSettings, screen: dashboard.Dashboard) -> list[report.Report]:
        sizes = settings.scenario(name, agents=agents, pods=settings.scaled(5000))
        if name in registry.OF_BOTH_PROTOCOLS:
            sizes = dataclasses.replace(sizes, feed=fixture.FELIX, protocols=fixture.BOTH)
        return [await registry.SCENARIOS[name](sizes, screen)]

    return part


PARTS: Final[dict[str, Part]] = {
    "real": _real,
    "crowd": _crowd,
    "kill": _one_scenario("kill", agents=1000),
    **{name: _one_scenario(name, agents=200) for name in ("hostile-peers", "hostile-api", "starved")},
}
