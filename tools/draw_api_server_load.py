"""Draws docs/pictures/api-server-load.svg from the figures beside it: `python tools/draw_api_server_load.py`.

`python -m loadtest run --scenario direct` writes such figures, for one machine, as api-server-load.json.
"""

import io
import json
import pathlib
import statistics

import matplotlib as mpl
from matplotlib.figure import Figure

FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "pictures"
PANELS = (
    ("cores", "CPU, cores"),
    ("sent_mb_per_second", "bytes sent, MB/s"),
    ("live_mb", "live memory, MB"),
)
WAYS = (("direct", "agents connect directly", "#c0392b"), ("proxy", "agents connect through typha", "#1f6fb2"))
TICKS = (0, 10, 100, 1000, 5000)


def draw() -> str:
    """The picture as SVG."""
    rows = json.loads((FOLDER / "api-server-load.json").read_text(encoding="utf-8"))["rows"]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "load", "font.size": 9}):
        drawing = Figure(figsize=(9, 3.1), layout="constrained")
        drawing.patch.set_facecolor("white")  # also on a dark page
        for number, (field, title) in enumerate(PANELS, start=1):
            axes = drawing.add_subplot(1, len(PANELS), number)
            for way, label, color in WAYS:
                found = [(row["agents"], row[field]) for row in rows if row["way"] == way]
                agents = [one for one, _ in found]
                axes.plot(agents, [statistics.mean(values) for _, values in found], color=color, label=label)
                points = [(count, value) for count, values in found for value in values]
                axes.plot(*zip(*points, strict=True), ".", color=color)
            axes.set_xscale("symlog", linthresh=10)
            axes.set_xlim(0, 8000)
            axes.set_xticks(TICKS, [f"{tick:,}" for tick in TICKS])
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel("agents")
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        drawing.suptitle("What agents cost the API server, 20 pod updates a second", fontsize=11)
        drawing.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        written = io.StringIO()
        drawing.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return "\n".join(line.rstrip() for line in text[text.index("<svg") :].splitlines()) + "\n"


if __name__ == "__main__":
    (FOLDER / "api-server-load.svg").write_text(draw(), encoding="utf-8")
