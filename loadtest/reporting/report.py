"""The report of a load test: JSON for programs, one HTML page with plots for people."""

import dataclasses
import html
import io
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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
        checks = [(check.name, "passed" if check.passed else "FAILED", check.detail) for check in self.checks]
        facts = [*self.facts.items(), ("command", self.command), ("machine", machine())]
        drawn = [_plot(self.samples, *plot) for plot in _PLOTS] if len(self.samples) > 1 else []
        return _PAGE.format(
            title=html.escape(self.title),
            verdict=("passed" if self.passed else "FAILED") if self.checks else "",
            started=_when(self.started),
            checks=_table(("check", "result", "detail"), checks) if checks else "",
            facts=_table(("fact", "value"), facts),
            plots="\n".join(drawn),
        )


def prepare_folder(folder: Path) -> None:
    """Create the folder, hide it from git, and remove the logs of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    for log in folder.glob("*.log"):
        log.unlink()


_PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem .8rem; border-bottom: 1px solid #ddd }}
svg {{ width: 100%; height: auto }}
</style></head><body>
<h1>{title} {verdict}</h1><p>{started}</p>
{checks}
{facts}
{plots}
</body></html>
"""

_Line = tuple[str, Callable[[monitor.Sample], float | None], float]
"""Label, value, and the factor that gives the plot's unit."""

_PLOTS: Final[tuple[tuple[str, str, tuple[_Line, ...]], ...]] = (
    (
        "Agents",
        "agents",
        (("connected", lambda sample: sample.connected, 1), ("in sync", lambda sample: sample.in_sync, 1)),
    ),
    ("Deliveries", "deliveries/s", (("deliveries", lambda sample: sample.deliveries_per_second, 1),)),
    ("Updates", "updates/s", (("updates", lambda sample: sample.updates_per_second, 1),)),
    (
        "Delivery latency: from the write to the API server to the agent's read",
        "ms",
        (
            ("p50", lambda sample: sample.latency_p50_seconds, 1e3),
            ("p99", lambda sample: sample.latency_p99_seconds, 1e3),
        ),
    ),
    ("Lag of the slowest agent", "s", (("lag", lambda sample: sample.slowest_lag_seconds, 1),)),
    (
        "Memory",
        "MB",
        (
            ("service, every page once", lambda sample: sample.service_memory_bytes, 1 / MEGABYTE),
            ("of it private to the hub", lambda sample: sample.hub_private_bytes, 1 / MEGABYTE),
            ("of it private to the workers", lambda sample: sample.workers_private_bytes, 1 / MEGABYTE),
            ("of it logs and snapshots", lambda sample: sample.service_memfd_bytes, 1 / MEGABYTE),
            ("kernel, TCP, both ends", lambda sample: sample.kernel_socket_bytes, 1 / MEGABYTE),
        ),
    ),
    (
        "CPU of the service",
        "cores",
        (("hub", lambda sample: sample.hub_cores, 1), ("workers", lambda sample: sample.workers_cores, 1)),
    ),
    ("CPU per delivery", "µs", (("hub and workers", lambda sample: sample.cpu_seconds_per_delivery, 1e6),)),
)


def _plot(samples: Sequence[monitor.Sample], title: str, unit: str, lines: Sequence[_Line]) -> str:
    def add_lines(axes: "Axes") -> None:
        for name, value_of, factor in lines:
            values = [value_of(sample) for sample in samples]
            axes.plot(
                [sample.seconds for sample in samples],
                [float("nan") if value is None else value * factor for value in values],
                label=name,
            )
        axes.set_xlabel("s")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=8)

    return svg_plot(title, unit, add_lines, size=(9, 2.6))


def svg_plot(title: str, unit: str, add_lines: Callable[["Axes"], None], *, size: tuple[float, float]) -> str:
    """A plot as SVG, the same bytes for the same data; `add_lines` draws on its axes."""
    # Matplotlib takes half a second to import, and only the end of a run needs it.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        add_lines(axes)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


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
