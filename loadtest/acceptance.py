"""The acceptance runs, at full size by hand and at a tenth of it in CI."""

import dataclasses
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from loadtest.bench import comparisons, rows, runner
from loadtest.reporting import dashboard, report
from loadtest.scenarios import badpeers, crash, fanout, fixture
from loadtest.scenarios.real import scenarios as real

SHORTEST_CHURN_SECONDS: Final = 24.0
"""Of the real API server: it needs some 10 s to come back, and that is to happen within the churn."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceSettings:
    """`scale` 1.0 is the full size. Below it, times are shown and not judged."""

    scale: float = 1.0
    only: tuple[str, ...] = ()
    folder: Path = Path("report-acceptance")

    def scaled(self, count: int, *, least: int = 1) -> int:
        """A number of things at this scale."""
        return max(least, round(count * self.scale))

    @property
    def judge_times(self) -> bool:
        """Whether latency, CPU and memory are checked."""
        return self.scale >= 1.0


Part = Callable[[AcceptanceSettings, dashboard.View], Awaitable[list[report.Report]]]


async def run(settings: AcceptanceSettings) -> bool:
    """All parts, or some; prints a line for each check; whether all passed."""
    report.prepare_folder(settings.folder)
    made: list[report.Report] = []
    with dashboard.View("typha acceptance") as screen:
        for name, part in PARTS.items():
            if settings.only and name not in settings.only:
                continue
            screen.say(f"== {name}")
            for one in await part(settings, screen):
                one.command = f"python -m loadtest acceptance --scale {settings.scale:g}"
                one.write(settings.folder / f"{name}-{len(made)}")
                made.append(one)
                for fact, text in one.facts.items():
                    screen.say(f"      {fact}: {text}")
                for check in one.checks:
                    screen.say(check.line())
        screen.say("== summary")
        for one in made:
            for check in one.checks:
                screen.say(f"{check.line()[:4]}  {one.title}: {check.name}")
    summary = [{"title": one.title, "checks": [dataclasses.asdict(check) for check in one.checks]} for one in made]
    (settings.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return all(one.passed for one in made)


async def _real(settings: AcceptanceSettings, screen: dashboard.View) -> list[report.Report]:
    folder = settings.folder / "real"
    report.prepare_folder(folder)
    shutil.rmtree(folder / "control-plane", ignore_errors=True)
    sizes = real.Settings(
        agents=settings.scaled(1000, least=20),
        public_agents=settings.scaled(10, least=2),
        pods=settings.scaled(2000),
        namespaces=settings.scaled(20, least=3),
        others=settings.scaled(200, least=10),
        seconds=max(SHORTEST_CHURN_SECONDS, 60.0 * settings.scale),
        folder=folder,
    )
    async with real.open_real(sizes, screen) as control:
        return [await real.faults(control), await real.api_load(control)]


async def _crowd(settings: AcceptanceSettings, screen: dashboard.View) -> list[report.Report]:
    """5,000 agents: memory per client, CPU per delivery by process, beside the bare loop."""
    sizes = _setting(settings, "crowd", agents=settings.scaled(5000, least=50), pods=settings.scaled(20_000))
    idle = await fanout.idle(sizes, screen)
    steady = await fanout.steady(sizes, screen)
    made = await _beside(settings, sizes, screen)
    return [idle, steady, made]


async def _beside(settings: AcceptanceSettings, sizes: fixture.Settings, screen: dashboard.View) -> report.Report:
    """The same agents and updates, in alternating rounds with the bare loop."""
    bench = runner.BenchSettings(
        names=("5000x20",),
        rounds=settings.scaled(3),
        sizes=comparisons.Sizes(scale=settings.scale, seconds=max(5.0, 15.0 * settings.scale), pods=sizes.pods),
        folder=sizes.folder,
    )
    wanted = rows.choose(bench.names)
    measured = await runner.measure(bench, wanted, screen)
    made = report.Report(title=f"{sizes.agents:,} agents beside a bare loop", command="")
    for result in rows.results(wanted, measured.ours, measured.bare, judged=settings.judge_times):
        made.facts[result.figure.title] = runner.text(result)
        made.checks.append(report.Check(result.figure.title, result.met is not False, runner.text(result)))
    return made


async def _kill(settings: AcceptanceSettings, screen: dashboard.View) -> list[report.Report]:
    return [await crash.kill(_setting(settings, "kill", agents=settings.scaled(1000, least=20)), screen)]


async def _bad_peers(settings: AcceptanceSettings, screen: dashboard.View) -> list[report.Report]:
    sizes = _setting(settings, "bad-peers", agents=settings.scaled(1000, least=20))
    return [await badpeers.bad_peers(sizes, screen)]


def _setting(settings: AcceptanceSettings, name: str, *, agents: int, pods: int = 5000) -> fixture.Settings:
    folder = settings.folder / name
    report.prepare_folder(folder)
    return fixture.Settings(
        agents=agents,
        public_agents=settings.scaled(10, least=2),
        seconds=max(4.0, 12.0 * settings.scale),
        rounds=settings.scaled(5),
        pods=pods,
        silent_connections=settings.scaled(2000),
        folder=folder,
        judge_times=settings.judge_times,
    )


PARTS: Final[dict[str, Part]] = {"real": _real, "crowd": _crowd, "kill": _kill, "bad-peers": _bad_peers}
