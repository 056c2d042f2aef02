"""Draws docs/pictures/dashboard.svg: the panels of the dashboard, from the answers of a Prometheus.

python tools/draw_dashboard.py http://localhost:9090 --seconds 120
"""

import argparse
import io
import json
import math
import pathlib
import re
import time
import urllib.parse
import urllib.request
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parent.parent
DASHBOARD = ROOT / "deploy" / "chart" / "files" / "dashboard.json"
PICTURE = ROOT / "docs" / "pictures" / "dashboard.svg"
COLUMNS = 3
STEP_SECONDS = 2
TIMEOUT_SECONDS = 10.0
LEGEND_ENTRIES_MAX = 5
_TAG = re.compile(r"<[^>]*>")
_FRACTION = re.compile(r"(\d\.\d)\d+")
"""In a tag, a tenth of a point is fine enough, and half of the bytes."""


def ask(url: str, path: str, **parameters: object) -> list[dict[str, Any]]:
    """The result of a query."""
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=TIMEOUT_SECONDS) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def concrete(expression: str, instance: str) -> str:
    """The expression without Grafana's variables."""
    return expression.replace("$__rate_interval", "15s").replace("$job", ".*").replace("$instance", instance)


def legend(text: str, labels: dict[str, str]) -> str:
    """A legend's text with the labels of a series filled in."""
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def draw_panel(axes: Axes, panel: dict[str, Any], url: str, *, instance: str, begun: float, ended: float) -> None:
    """Draw the series of one panel against seconds."""
    for target in panel["targets"]:
        expression = concrete(target["expr"], instance)
        for found in ask(url, "query_range", query=expression, start=begun, end=ended, step=STEP_SECONDS):
            points = [(at - begun, float(value)) for at, value in found["values"] if not math.isnan(float(value))]
            if points:
                axes.plot(
                    *zip(*points, strict=True), linewidth=0.9, label=legend(target["legendFormat"], found["metric"])
                )
    defaults = panel["fieldConfig"]["defaults"]
    if defaults.get("custom", {}).get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    elif panel["type"] != "heatmap":
        axes.set_ylim(bottom=0)
    axes.set_title(f"{panel['title']} ({defaults.get('unit', 'short')})", loc="left", fontsize=8)
    axes.tick_params(labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[:LEGEND_ENTRIES_MAX], labels[:LEGEND_ENTRIES_MAX], fontsize=5.5, frameon=False)


def draw(url: str, *, instance: str, seconds: float) -> str:
    """The picture as SVG: single values as text, all else as lines."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    ended = time.time()
    drawn = [panel for panel in panels if panel["type"] in ("timeseries", "heatmap")]
    values = []
    for panel in panels:
        if panel["type"] == "stat":
            found = ask(url, "query", query=concrete(panel["targets"][0]["expr"], instance))
            values += [f"{panel['title']}: {float(found[0]['value'][1]):.4g}"] if found else []
    rows = math.ceil(len(drawn) / COLUMNS)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dashboard", "font.size": 7}):
        drawing = Figure(figsize=(10, 1.9 * rows + 0.6), layout="constrained")
        drawing.patch.set_facecolor("white")  # also on a dark page
        for number, panel in enumerate(drawn, start=1):
            axes = drawing.add_subplot(rows, COLUMNS, number)
            draw_panel(axes, panel, url, instance=instance, begun=ended - seconds, ended=ended)
        drawing.suptitle("   |   ".join(values), fontsize=8)
        written = io.StringIO()
        drawing.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = _TAG.sub(lambda tag: _FRACTION.sub(r"\1", tag.group()), written.getvalue())
    return "\n".join(line.rstrip() for line in text[text.index("<svg") :].splitlines()) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--instance", default=".*", help="a regular expression of the label")
    parser.add_argument("--seconds", type=float, default=120.0)
    arguments = parser.parse_args()
    PICTURE.write_text(draw(arguments.url, instance=arguments.instance, seconds=arguments.seconds), encoding="utf-8")
