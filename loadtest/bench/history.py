"""The history of the bench: one line of JSON for each recorded run, and the page and plots made from it."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loadtest.bench import rows
from loadtest.reporting import report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE: Final = "history.jsonl"
PAGE: Final = Path("..") / "performance.md"
"""Relative to the folder of the history."""
BEGIN: Final = "<!-- begin results -->"
END: Final = "<!-- end results -->"

Entry = dict[str, Any]

PLOTS: Final[dict[str, tuple[str, str, bool]]] = {
    # file -> (title, unit of its figures, whether it shows ratios to the bare loop)
    "cpu": ("CPU, service to bare loop", "", True),
    "latency": ("Delivery p99", "ms", False),
    "memory": ("Memory", "MB", False),
}


def entry(
    results: Sequence[rows.Result], *, protocol: str, scale: float, rounds: int, seconds: float, load_before: float
) -> Entry:
    """The history's entry for a run."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": report.machine(),
        "load_before": round(load_before, 2),
        "protocol": protocol,
        "scale": scale,
        "rounds": rounds,
        "seconds": seconds,
        "figures": {
            result.figure.name: {
                "bare": _rounded(result.bare),
                "ours": _rounded(result.ours),
                "ratio": _rounded(result.ratio),
                "met": result.met,
            }
            for result in results
        },
    }


def record(folder: Path, made: Entry) -> None:
    """Add a run, and update page and plots."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a") as file:
        file.write(json.dumps(made, separators=(",", ":")) + "\n")
    write(folder)


def write(folder: Path) -> None:
    """Update the part of the page that the history determines, and the plots."""
    entries = load(folder)
    page = folder / PAGE
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{section(entries)}{END}{after}")
    for name in PLOTS:
        drawn = plot(entries, name)
        if drawn:
            (folder / f"{name}.svg").write_text(drawn)


def load(folder: Path) -> list[Entry]:
    """All recorded runs, the oldest first."""
    file = folder / FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def section(entries: Sequence[Entry]) -> str:
    """Tables of the newest full-size figures of each protocol, and the plots."""
    parts = []
    for protocol in sorted({one["protocol"] for one in entries}):
        full = [one for one in entries if one["protocol"] == protocol and one["scale"] >= 1]
        if full:
            parts.append(_protocol_table(protocol, full))
    if not parts:
        return "\nNo run at full size has been recorded yet.\n\n"
    shown = [f"![{title}](performance/{name}.svg)" for name, (title, *_) in PLOTS.items() if _series(entries, name)]
    return "\n" + "\n".join([*parts, *(f"{line}\n" for line in shown)]) + "\n"


def _protocol_table(protocol: str, full: Sequence[Entry]) -> str:
    lines = [
        f"### The {protocol} protocol",
        "",
        "| Row | Goal | Bare | Ours | Ratio | Met | Run |",
        "|---|---|---|---|---|---|---|",
    ]
    runs: dict[str, str] = {}
    for figure in (figure for row in rows.ROWS for figure in row.figures):
        newest = next((one for one in reversed(full) if figure.name in one["figures"]), None)
        if newest is None:
            continue
        found = newest["figures"][figure.name]
        run = f"{newest['date']}, {newest['commit']}"
        runs[run] = f"{run}: {newest['machine']}; {newest['rounds']} rounds, {newest['seconds']:g} s each"
        met = {True: "yes", False: "**no**", None: "-"}[found["met"]]
        values = cells(figure, bare=found["bare"], ours=found["ours"], ratio=found["ratio"])
        lines.append("| " + " | ".join([*values, met, run]) + " |")
    return "\n".join([*lines, "", *(f"- {text}" for text in runs.values()), ""])


def cells(figure: rows.Figure, *, bare: float | None, ours: float, ratio: float | None) -> tuple[str, ...]:
    """Title, goal, bare, ours and ratio as they appear in tables."""
    unit = f" {figure.unit}" if figure.unit else ""
    return (
        figure.title,
        "-" if figure.goal is None else f"{number(figure.goal)}{unit}",
        number(bare),
        f"{number(ours)}{unit}",
        "-" if ratio is None else f"{ratio:.2f}",
    )


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _series(entries: Sequence[Entry], name: str) -> dict[str, list[tuple[int, float]]]:
    """Title of a line -> (number of the run, value), of the plot with this name."""
    _, unit, as_ratio = PLOTS[name]
    full = [one for one in entries if one["scale"] >= 1]
    found: dict[str, list[tuple[int, float]]] = {}
    for figure in (figure for row in rows.ROWS for figure in row.figures):
        fits = figure.rule is rows.Rule.CPU if as_ratio else figure.unit == unit and figure.rule is not rows.Rule.SHOWN
        for place, one in enumerate(full) if fits else ():
            values = one["figures"].get(figure.name)
            value = None if values is None else values["ratio" if as_ratio else "ours"]
            if value is not None:
                label = figure.name if one["protocol"] == "native" else f"{figure.name}, {one['protocol']}"
                found.setdefault(label, []).append((place, value))
    return found


def plot(entries: Sequence[Entry], name: str) -> str:
    """An SVG with one line for each figure over the recorded runs; empty without figures."""
    series = _series(entries, name)
    if not series:
        return ""
    title, unit, as_ratio = PLOTS[name]
    commits = [one["commit"] for one in entries if one["scale"] >= 1]

    def add_lines(axes: "Axes") -> None:
        for label, points in series.items():
            axes.plot(*zip(*points, strict=True), marker=".", linewidth=1, label=label)
        if as_ratio:
            axes.axhline(rows.CPU_FACTOR, color="gray", linestyle=":")
        axes.set_xticks(range(len(commits)), commits, fontsize=7, rotation=45)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))

    return report.svg_plot(title, "ratio" if as_ratio else unit, add_lines, size=(8, 3))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return found.stdout.decode().strip()
