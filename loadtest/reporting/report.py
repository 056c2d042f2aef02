"""The report of a load test: JSON for programs, one HTML page with plots for people."""

import dataclasses
import html
import importlib.resources
import io
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loadtest.reporting import dashboard, monitor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEGABYTE: Final = 1e6


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """A check with its outcome."""

    name: str
    passed: bool
    detail: str

    def line(self) -> str:
        """The line for the terminal."""
        return f"{'PASS' if self.passed else 'FAIL'}  {self.name}: {self.detail}"


@dataclasses.dataclass
class Report:
    """The outcome of a run. `facts` keep their order; `data` appears only in the JSON file."""

    title: str
    command: str
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    checks: list[Check] = dataclasses.field(default_factory=list)
    samples: list[monitor.Sample] = dataclasses.field(default_factory=list)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.time)

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def publish(self, folder: Path, screen: dashboard.Dashboard) -> bool:
        """Write the report, print its facts and checks; returns whether all checks passed."""
        self.write(folder)
        for fact, text in self.facts.items():
            screen.say(f"{fact}: {text}")
        for check in self.checks:
            screen.say(check.line())
        screen.say(f"report: {folder}/report.html and report.json")
        return self.passed

    def write(self, folder: Path) -> None:
        """Write report.json and report.html into a folder."""
        prepare_folder(folder)
        (folder / "report.json").write_text(json.dumps(self._document(), indent=1) + "\n")
        (folder / "report.html").write_text(self._page())

    def _document(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "command": self.command,
            "started": _when(self.started),
            "machine": machine(),
            "passed": self.passed,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "facts": self.facts,
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
            **self.data,
        }

    def _page(self) -> str:
        facts = [*self.facts.items(), ("command", self.command), ("machine", machine())]
        drawn = [_plot(self.samples, *plot) for plot in _PLOTS] if len(self.samples) > 1 else []
        parts = [
            _section("Summary", _verdict(self.checks, self.samples) + _tiles(self.samples)),
            *(_section(plot.title, svg) for plot, svg in zip(_PLOTS, drawn, strict=False) if plot.is_wide),
            *(["<div class='columns'>"] if drawn else []),
            *(_section(plot.title, svg) for plot, svg in zip(_PLOTS, drawn, strict=False) if not plot.is_wide),
            *(["</div>"] if drawn else []),
            _section("Checks", _checks_table(self.checks)) if self.checks else "",
            _section("Facts", _table(("fact", "value"), facts)),
        ]
        return _PAGE.format(
            title=html.escape(self.title),
            style=_look(),
            started=_when(self.started),
            body="\n".join(parts),
        )


def prepare_folder(folder: Path) -> None:
    """Create the folder, hide it from git, and remove the logs of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    for log in folder.glob("*.log"):
        log.unlink()


_PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>
{style}
svg.plot text {{ font-family: system-ui, sans-serif !important; }}
</style></head><body>
<header class="top"><h1>{title} <span class="quiet">{started}</span></h1></header>
<main>
{body}
</main>
</body></html>
"""


def _look() -> str:
    """The look of the status page. It has a copy of the same file; a test compares them."""
    return importlib.resources.files("loadtest.reporting").joinpath("look.css").read_text()


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{content}</section>"


def _verdict(checks: Sequence[Check], samples: Sequence[monitor.Sample]) -> str:
    """What came of the run, in words."""
    failed = [check for check in checks if not check.passed]
    if failed:
        title = f"Failed: {len(failed)} of {len(checks)} checks"
    else:
        title = f"Passed: {len(checks)} of {len(checks)} checks" if checks else "Measured"
    lines = [f"{check.name}: {check.detail}" for check in failed] or [_sentence(samples)]
    level = "bad" if failed else "good" if checks else ""
    shown = [html.escape(line) for line in lines if line]
    text = f"<ul><li>{'</li><li>'.join(shown)}</li></ul>" if len(shown) > 1 else "".join(shown)
    return f"<div class='verdict {level}'><strong>{html.escape(title)}</strong>{text}</div>"


def _sentence(samples: Sequence[monitor.Sample]) -> str:
    p50, p99 = _known(samples, "latency_p50_seconds"), _known(samples, "latency_p99_seconds")
    if not samples or not p50 or not p99:
        return ""
    return (
        f"Of {samples[-1].agents:,} agents, {samples[-1].in_sync:,} were in sync at the end. In a typical second, half "
        f"of all updates reached their agents within {_duration(statistics.median(p50))}, and 99 % within "
        f"{_duration(statistics.median(p99))}; in the slowest second, 99 % within {_duration(max(p99))}."
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _known(samples: Sequence[monitor.Sample], name: str) -> list[float]:
    return [value for sample in samples if (value := getattr(sample, name)) is not None]


def _tiles(samples: Sequence[monitor.Sample]) -> str:
    """The numbers that matter most, each with what it is. Medians of all seconds, or the largest."""
    shown: list[tuple[str, str, str]] = []

    def add(title: str, name: str, factor: float, unit: str, of: str = "median") -> None:
        values = _known(samples, name)
        if values and any(values):
            value = (max(values) if of == "at most" else statistics.median(values)) * factor
            digits = 0 if value >= 100 else 1
            shown.append((title, f"{value:,.{digits}f} {unit}".strip(), of))

    if samples:
        shown.append(("Agents in sync", f"{samples[-1].in_sync:,}", f"of {samples[-1].agents:,}, at the end"))
    add("Latency, p50", "latency_p50_seconds", 1e3, "ms")
    add("Latency, p99", "latency_p99_seconds", 1e3, "ms")
    add("Deliveries", "deliveries_per_second", 1, "/s")
    add("Memory of the service", "service_memory_bytes", 1 / MEGABYTE, "MB", "at most")
    add("CPU for each delivery", "cpu_seconds_per_delivery", 1e6, "µs")
    cells = [
        f"<div><dt>{title}</dt><dd>{value}</dd><dd class='note'>{note}</dd></div>"
        for title, value, note in (map(html.escape, one) for one in shown)
    ]
    return f"<dl class='tiles'>{''.join(cells)}</dl>" if cells else ""


_Line = tuple[str, Callable[[monitor.Sample], float | None], float]
"""Label, value, and the factor that gives the plot's unit."""


class _Plot(NamedTuple):
    title: str
    unit: str
    lines: tuple[_Line, ...]
    is_wide: bool = False


_PLOTS: Final = (
    _Plot(
        "Delivery latency: from the write to the API server to the agent's read",
        "ms",
        (
            ("p50", lambda sample: sample.latency_p50_seconds, 1e3),
            ("p99", lambda sample: sample.latency_p99_seconds, 1e3),
        ),
        is_wide=True,
    ),
    _Plot("Deliveries", "deliveries/s", (("deliveries", lambda sample: sample.deliveries_per_second, 1),)),
    _Plot("Updates", "updates/s", (("updates", lambda sample: sample.updates_per_second, 1),)),
    _Plot(
        "Agents",
        "agents",
        (("connected", lambda sample: sample.connected, 1), ("in sync", lambda sample: sample.in_sync, 1)),
    ),
    _Plot("Lag of the slowest agent", "s", (("lag", lambda sample: sample.slowest_lag_seconds, 1),)),
    _Plot(
        "Memory of the service",
        "MB",
        (
            ("all, every page once", lambda sample: sample.service_memory_bytes, 1 / MEGABYTE),
            ("private to the hub", lambda sample: sample.hub_private_bytes, 1 / MEGABYTE),
            ("private to the workers", lambda sample: sample.workers_private_bytes, 1 / MEGABYTE),
            ("logs and snapshots", lambda sample: sample.service_memfd_bytes, 1 / MEGABYTE),
        ),
    ),
    _Plot(
        "Kernel memory of all sockets of the machine, both ends",
        "MB",
        (("TCP", lambda sample: sample.kernel_socket_bytes, 1 / MEGABYTE),),
    ),
    _Plot(
        "CPU of the service",
        "cores",
        (("hub", lambda sample: sample.hub_cores, 1), ("workers", lambda sample: sample.workers_cores, 1)),
    ),
    _Plot("CPU per delivery", "µs", (("hub and workers", lambda sample: sample.cpu_seconds_per_delivery, 1e6),)),
)
_DASHES: Final = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
"""Lines differ in more than their colour."""
_COLOURS: Final = {
    "#010101": "quiet",
    "#010102": "rule",
    **{f"#0a0a0{number}": f"line-{number}" for number in range(1, len(_DASHES) + 1)},
}
"""What Matplotlib draws with, and the colour of look.css that each becomes: the theme is the browser's choice."""


def _plot(samples: Sequence[monitor.Sample], title: str, unit: str, lines: Sequence[_Line], is_wide: bool) -> str:
    # Matplotlib takes half a second to import, and only the end of a run needs it.
    import matplotlib as mpl

    text, rule, *drawn = _COLOURS

    def add_lines(axes: "Axes") -> None:
        axes.set_prop_cycle(color=drawn[: len(_DASHES)], linestyle=_DASHES)
        for name, value_of, factor in lines:
            values = [value_of(sample) for sample in samples]
            axes.plot(
                [sample.seconds for sample in samples],
                [float("nan") if value is None else value * factor for value in values],
                label=name,
            )
        axes.set_xlabel("s")
        axes.grid()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.yaxis.set_major_formatter("{x:,.10g}")
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
            axes.margins(y=0.4)  # for the legend

    with mpl.rc_context(
        {
            "axes.edgecolor": rule,
            "axes.facecolor": "none",
            "axes.labelcolor": text,
            "axes.labelsize": 9,
            "figure.facecolor": "none",
            "grid.color": rule,
            "legend.labelcolor": text,
            "savefig.facecolor": "none",
            "text.color": text,
            "xtick.color": text,
            "xtick.labelsize": 9,
            "ytick.color": text,
            "ytick.labelsize": 9,
        }
    ):
        svg = svg_plot("", unit, add_lines, size=(11, 2.8) if is_wide else (5.4, 2.5), salt=title)
    for drawn_as, name in _COLOURS.items():
        svg = svg.replace(drawn_as, f"var(--{name})")
    return svg.replace("<svg", f"<svg class='plot' role='img' aria-label='{html.escape(title)}'", 1)


def svg_plot(
    title: str, unit: str, add_lines: Callable[["Axes"], None], *, size: tuple[float, float], salt: str = ""
) -> str:
    """A plot as SVG, the same bytes for the same data; `add_lines` draws on its axes.

    The names in the SVG follow from `salt`, or else the title: on one page, each plot needs its own.
    """
    # Matplotlib takes half a second to import, and only the end of a run needs it.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt or title}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        add_lines(axes)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _checks_table(checks: Sequence[Check]) -> str:
    lines = ["<table><thead><tr><th>Check</th><th>Result</th><th>Detail</th></tr></thead><tbody>"]
    for check in checks:
        state, result = ("good", "✓ passed") if check.passed else ("bad", "✕ failed")
        name, detail = html.escape(check.name), html.escape(check.detail)
        lines.append(f"<tr><td>{name}</td><td class='nowrap state-{state}'>{result}</td><td>{detail}</td></tr>")
    return "\n".join([*lines, "</tbody></table>"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))


def machine() -> str:
    """The machine's CPUs, kernel and Python, without host names."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cores = sum(line.startswith("processor") for line in lines)
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{cores} CPUs ({name}), Linux {platform.release()}, Python {platform.python_version()}"
