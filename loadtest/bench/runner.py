"""Runs the chosen rows, shows progress, prints the results, and records them on request."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, Final

from rich import console, table

from loadtest.bench import comparisons, history, rows, standalone
from loadtest.reporting import dashboard, report
from loadtest.swarm import control

HISTORY: Final = Path("docs/performance")
STANDALONE_ROUNDS_MAX: Final = 3
"""The rows without a bare loop vary less."""


QUICK: Final = comparisons.BenchSettings(rounds=1, sizes=comparisons.Sizes(scale=0.2, seconds=4.0, pods=2000))
"""Everything once, at a small size: does it work, and where does it roughly stand?"""


def settings_of(
    *,
    names: str,
    rounds: int | None,
    quick: bool,
    protocol: control.Protocol,
    record: bool,
    folder: Path,
    **sizes: float | None,
) -> comparisons.BenchSettings:
    """Settings from the command line; options that are None are those of the full size, or of the quick pass.

    Raises ValueError for an unknown row.
    """
    base = QUICK if quick else comparisons.BenchSettings()
    chosen = tuple(name for name in names.split(",") if name)
    chosen = chosen or tuple(row.name for row in rows.ROWS if protocol is control.Protocol.NATIVE or row.both)
    rows.choose(chosen)
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    return dataclasses.replace(
        base,
        names=chosen,
        rounds=rounds or base.rounds,
        sizes=dataclasses.replace(base.sizes, **given),
        protocol=protocol,
        record=HISTORY if record else None,
        folder=folder,
    )


class Measured:
    """Values by figure, of the service and of the bare loop, one for each round; prints each step as it is added."""

    def __init__(self, settings: comparisons.BenchSettings, screen: dashboard.Dashboard, *, steps: int) -> None:
        self.ours: dict[str, list[float]] = {}
        self.bare: dict[str, list[float]] = {}
        self._settings = settings
        self._screen = screen
        self._steps = steps
        self._done = 0
        self._begin = time.monotonic()

    @property
    def results(self) -> list[rows.Result]:
        """The medians, in the order of the rows."""
        return rows.results(rows.choose(self._settings.names), self.ours, self.bare, judged=self._settings.judged)

    def add(self, name: str, ours: comparisons.Figures, bare: comparisons.Figures | None = None) -> None:
        """Add the figures of one step."""
        for values, figures in ((self.ours, ours), (self.bare, bare or {})):
            for figure, value in figures.items():
                values.setdefault(figure, []).append(value)
        self._done += 1
        elapsed = time.monotonic() - self._begin
        left = elapsed / self._done * (self._steps - self._done)
        shown = ", ".join(f"{figure} {value:,.4g}" for figure, value in ours.items())
        self._screen.say(f"[{self._done}/{self._steps}, {elapsed:.0f} s, about {left:.0f} s left] {name}: {shown}")


async def run(settings: comparisons.BenchSettings) -> bool:
    """Run and report; returns whether all judged goals are met. Raises ValueError for an unknown row."""
    report.prepare_folder(settings.folder)
    load_before = os.getloadavg()[0]
    with dashboard.Dashboard("typha bench") as screen:
        measured = await measure(settings, screen)
        results = measured.results
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


async def measure(settings: comparisons.BenchSettings, screen: dashboard.Dashboard) -> Measured:
    """All rounds of all measurements that the rows need. Raises ValueError for an unknown row."""
    wanted = rows.choose(settings.names)
    names = frozenset(row.name for row in wanted)
    rounds = {row.measurement: _rounds(settings, row.measurement) for row in wanted}
    measured = Measured(settings, screen, steps=sum(rounds.values()))
    for name, count in rounds.items():
        if name in standalone.STANDALONE:
            for _ in range(count):
                measured.add(name, await standalone.STANDALONE[name](settings, screen))
            continue
        comparison = comparisons.COMPARISONS[name].part(names)
        send = "bare-send" in names and name == "1000"
        go = "mtls-storm-go" in names and comparison.tls
        async with comparisons.open_setup(settings, tls=comparison.tls) as setup:
            for number in range(count):
                ours, bare = await comparisons.round_of(
                    setup, comparison, settings.sizes, number=number, send=send, go=go
                )
                measured.add(f"{name}, round {number + 1}", ours, bare)
    return measured


def _rounds(settings: comparisons.BenchSettings, measurement: str) -> int:
    if measurement in comparisons.COMPARISONS:
        return settings.rounds
    return 1 if measurement in standalone.ONCE else min(settings.rounds, STANDALONE_ROUNDS_MAX)


def text(result: rows.Result) -> str:
    """A result in one line."""
    unit = f" {result.figure.unit}" if result.figure.unit else ""
    beside = "" if result.bare is None else f", bare {history.number(result.bare)}{unit}, {result.ratio or 0:.2f} x"
    return f"{history.number(result.ours)}{unit}{beside}: {verdict(result)}"


def verdict(result: rows.Result) -> str:
    """Met, not met, or why neither."""
    if result.met is not None:
        return "met" if result.met else "NOT met"
    return "-" if result.figure.rule is rows.Rule.SHOWN else "not judged"


def _table(settings: comparisons.BenchSettings, results: list[rows.Result]) -> table.Table:
    size = "full size" if settings.judged else f"{settings.sizes.scale:g} of the size"
    grid = table.Table(title=f"{settings.protocol.value}, {size}, median of {settings.rounds} alternating rounds")
    for column in ("row", "goal", "bare", "ours", "ratio", "rule", ""):
        grid.add_column(column, justify="left" if column in ("row", "rule", "") else "right")
    for result in results:
        cells = history.cells(result.figure, bare=result.bare, ours=result.ours, ratio=result.ratio)
        grid.add_row(*cells, result.figure.rule.value, verdict(result))
    return grid
