"""Runs the rows that are wanted, shows how far it is, prints the verdicts, and keeps them if it is told to."""

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from rich import console, table

from loadtest.bench import comparisons, history, rows, standalone, targets
from loadtest.environment import certificates, processes
from loadtest.reporting import dashboard, report
from loadtest.swarm import control

APART_ROUNDS_MAX: Final = 3
"""The rows without a bare loop vary less."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What is measured, how much of the full size, how often."""

    names: tuple[str, ...] = ()
    """Rows; none: all."""
    rounds: int = 5
    sizes: comparisons.Sizes = dataclasses.field(default_factory=comparisons.Sizes)
    protocol: control.Protocol = control.Protocol.NATIVE
    record: Path | None = None
    """The folder with the history, to which the results are added."""
    folder: Path = Path("report-bench")

    @property
    def judged(self) -> bool:
        """Below full size nothing is judged."""
        return self.sizes.scale >= 1


QUICK: Final = BenchSettings(rounds=1, sizes=comparisons.Sizes(scale=0.2, seconds=4.0, pods=2000))
"""Everything once, small: whether it runs, and where it stands roughly."""


class Table:
    """Values by figure, of the service and of the bare loop, one for each round."""

    def __init__(self) -> None:
        self.ours: dict[str, list[float]] = {}
        self.bare: dict[str, list[float]] = {}

    def add(self, ours: comparisons.Figures, bare: comparisons.Figures | None = None) -> None:
        """One round's."""
        for target, figures in ((self.ours, ours), (self.bare, bare or {})):
            for name, value in figures.items():
                target.setdefault(name, []).append(value)


class Progress:
    """How many steps are done, and how long the rest may take."""

    def __init__(self, screen: dashboard.View, steps: int) -> None:
        self._screen = screen
        self._steps = steps
        self._done = 0
        self._begin = time.monotonic()

    def step(self, name: str, figures: comparisons.Figures) -> None:
        """A step is done."""
        self._done += 1
        elapsed = time.monotonic() - self._begin
        left = elapsed / self._done * (self._steps - self._done)
        shown = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
        self._screen.say(f"[{self._done}/{self._steps}, {elapsed:.0f} s, about {left:.0f} s left] {name}: {shown}")


async def run(settings: BenchSettings) -> bool:
    """Runs, prints, reports; false if a row that is judged is not met. Raises ValueError for an unknown row."""
    wanted = rows.choose(settings.names)
    report.prepare_folder(settings.folder)
    load_before = os.getloadavg()[0]
    with dashboard.View("typha bench") as screen:
        measured = await measure(settings, wanted, screen)
        results = rows.results(wanted, measured.ours, measured.bare, judged=settings.judged)
        made = report.Report(title="The service beside a bare loop", command="make bench")
        made.facts = {result.figure.title: text(result) for result in results}
        made.data = {"service": measured.ours, "bare": measured.bare}
        made.write(settings.folder)
    console.Console(width=None if os.isatty(1) else 140).print(_table(settings, results))
    if settings.record is not None:
        entry = history.entry(
            results,
            protocol=settings.protocol.value,
            scale=settings.sizes.scale,
            rounds=settings.rounds,
            seconds=settings.sizes.seconds,
            load_before=load_before,
        )
        history.record(settings.record, entry)
        print(f"recorded in {settings.record}")
    return not any(result.met is False for result in results)


async def measure(settings: BenchSettings, wanted: Sequence[rows.Row], screen: dashboard.View) -> Table:
    """All rounds of the groups that the rows need."""
    names = frozenset(row.name for row in wanted)
    found = Table()
    needed = list(dict.fromkeys(row.group for row in wanted))
    apart_rounds = min(settings.rounds, APART_ROUNDS_MAX)
    steps = sum(
        settings.rounds if name in comparisons.GROUPS else 1 if name in standalone.ONCE else apart_rounds
        for name in needed
    )
    progress = Progress(screen, steps)
    for name in needed:
        if name in standalone.APART:
            for _ in range(1 if name in standalone.ONCE else apart_rounds):
                alone = await standalone.APART[name](
                    standalone.Around(settings.folder, settings.sizes, screen, settings.protocol, settings.rounds)
                )
                found.add(alone)
                progress.step(name, alone)
            continue
        group = comparisons.GROUPS[name].wants(names)
        async with open_ground(settings, tls=group.tls) as ground:
            for number in range(settings.rounds):
                ours, bare = await comparisons.rounds(
                    ground, group, settings.sizes, number=number, send="bare-send" in names and name == "1000"
                )
                found.add(ours, bare)
                progress.step(f"{name}, round {number + 1}", ours)
    return found


@contextlib.asynccontextmanager
async def open_ground(settings: BenchSettings, *, tls: bool) -> AsyncIterator[targets.Ground]:
    """A simulated API server, and nothing recorded yet."""
    await asyncio.to_thread(_forget_recordings, settings.folder)
    arguments = ["--pods", str(settings.sizes.pods)]
    if settings.protocol is control.Protocol.TYPHA:
        arguments.append("--calico")
    async with processes.Simulator(settings.folder, arguments=arguments) as simulator:
        made = certificates.make(settings.folder, host=processes.HOST) if tls else None
        yield targets.Ground(folder=settings.folder, simulator=simulator, protocol=settings.protocol, tls=made)


def _forget_recordings(folder: Path) -> None:
    for file in folder.glob("recording-*"):
        file.unlink()


def text(result: rows.Result) -> str:
    """One line for people."""
    unit = f" {result.figure.unit}" if result.figure.unit else ""
    beside = "" if result.bare is None else f", bare {history.number(result.bare)}{unit}, {result.ratio or 0:.2f} x"
    return f"{history.number(result.ours)}{unit}{beside}: {verdict(result)}"


def verdict(result: rows.Result) -> str:
    """Met, not met, or why neither."""
    if result.met is not None:
        return "met" if result.met else "NOT met"
    return "-" if result.figure.rule is rows.Rule.SHOWN else "not judged"


def _table(settings: BenchSettings, results: Sequence[rows.Result]) -> table.Table:
    size = "full size" if settings.judged else f"{settings.sizes.scale:g} of the size"
    grid = table.Table(title=f"{settings.protocol.value}, {size}, median of {settings.rounds} alternating rounds")
    for column in ("row", "goal", "bare", "ours", "ratio", "rule", ""):
        grid.add_column(column, justify="left" if column in ("row", "rule", "") else "right")
    for result in results:
        figure = result.figure
        unit = f" {figure.unit}" if figure.unit else ""
        grid.add_row(
            figure.title,
            "-" if figure.goal is None else f"{history.number(figure.goal)}{unit}",
            history.number(result.bare),
            f"{history.number(result.ours)}{unit}",
            "-" if result.ratio is None else f"{result.ratio:.2f}",
            figure.rule.value,
            verdict(result),
        )
    return grid
