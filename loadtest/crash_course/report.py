"""The end of the course: one table, and an HTML report with a drawing of topology, routes and verdicts."""

import html
from typing import Final

import click

from loadtest.crash_course import topology
from loadtest.crash_course.api import ApiFailed
from loadtest.crash_course.course import Course, Note, Step
from loadtest.crash_course.namespaces import CommandFailed

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dbe3; }
pre { background: #f4f6f9; padding: .8rem; overflow-x: auto; font-size: 13px; line-height: 1.4; }
.command { color: #0b5394; font-weight: 600; }
.ok { color: #1a7f37; } .failed { color: #b42318; font-weight: 700; }
.correction { background: #fff8e1; border-left: 4px solid #e0a800; padding: .4rem .8rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; border: 1px solid #d5dbe3; text-align: left; }
svg text { font: 13px system-ui, sans-serif; } svg .small { font-size: 11px; fill: #51606f; }
"""


def summarize(course: Course, seconds: float) -> bool:
    """Print the table; returns whether all steps passed."""
    click.secho("\nChapters", bold=True)
    for chapter in dict.fromkeys(step.chapter for step in course.steps):
        steps = [step for step in course.steps if step.chapter == chapter]
        passed = sum(step.is_passed for step in steps)
        click.secho(
            f"  {chapter:<40} {passed:>3} of {len(steps):<3} {sum(step.seconds for step in steps):6.1f} s",
            fg="green" if passed == len(steps) else "red",
        )
    is_passed = bool(course.steps) and all(step.is_passed for step in course.steps)
    click.secho(f"  {'all steps passed' if is_passed else 'there are failures'} in {seconds:.1f} s", bold=True)
    return is_passed


def page(course: Course) -> str:
    """The report, as one HTML file without scripts or references."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Crash course</title>",
        f"<style>{_STYLE}</style></head><body><h1>Kubernetes Calico crash course, on one machine</h1>",
        _drawing(course),
        _routes(course),
        _table(course),
    ]
    chapter = ""
    for entry in course.record:
        if entry.chapter != chapter:
            chapter = entry.chapter
            parts.append(f"<h2>{html.escape(chapter)}</h2>")
        parts.append(_note(entry) if isinstance(entry, Note) else _step(entry))
    return "\n".join([*parts, "</body></html>\n"])


def _note(note: Note) -> str:
    text = html.escape(note.text)
    return f"<p class='correction'><b>Correction.</b> {text}</p>" if note.is_correction else f"<p>{text}</p>"


def _step(step: Step) -> str:
    state = "ok" if step.is_passed else "failed"
    return (
        f"<h3>{html.escape(step.title)}</h3><pre><span class='command'>{html.escape(step.command)}</span>\n"
        f"{html.escape(step.output)}</pre><p class='{state}'>{state}: {html.escape(step.checked)} "
        f"({step.seconds:.1f} s)</p>"
    )


def _routes(course: Course) -> str:
    """The routes that BIRD has given each node and the router."""
    shown = []
    for name in (topology.ROUTER, *(node.name for node in course.cluster.nodes)):
        try:
            routes = course.cluster.spaces.run(name, "ip", "route", "show", "proto", "bird")
        except CommandFailed as error:
            routes = str(error)
        shown.append(f"<pre><span class='command'>{name}# ip route show proto bird</span>\n{html.escape(routes)}</pre>")
    return "\n".join(shown)


def _table(course: Course) -> str:
    rows = []
    for when, matrix in course.matrices.items():
        targets = sorted({target for _, target in matrix})
        head = "".join(f"<th>{html.escape(target)}</th>" for target in targets)
        rows.append(f"<h3>Connections {html.escape(when)}</h3><table><tr><th>from</th>{head}</tr>")
        for source in sorted({source for source, _ in matrix}):
            cells = "".join(_cell(matrix.get((source, target))) for target in targets)
            rows.append(f"<tr><th>{html.escape(source)}</th>{cells}</tr>")
        rows.append("</table>")
    return "\n".join(rows)


def _cell(verdict: bool | None) -> str:
    if verdict is None:
        return "<td></td>"
    return "<td class='ok'>allowed</td>" if verdict else "<td class='failed'>denied</td>"


def _drawing(course: Course) -> str:
    """Router, nodes and pods, with their addresses and blocks."""
    cluster = course.cluster
    width = 300 * len(cluster.nodes)
    parts = [
        f"<svg viewBox='0 0 {width} 330' width='100%' role='img' aria-label='Topology'>",
        _box(width / 2 - 130, 10, 260, 60, "router, API server, service", "172.30.1.1, 172.30.2.1; AS 64513"),
    ]
    blocks: dict[str, list[str]] = {}
    try:
        found = cluster.blocks()
    except (ApiFailed, OSError):  # the course has failed, and the API server with it
        found = []
    for block in found:
        owner = str(block["spec"].get("affinity", "")).removeprefix("host:")
        blocks.setdefault(owner, []).append(block["spec"]["cidr"])
    for place, node in enumerate(cluster.nodes):
        left = 300 * place + 20
        parts.append(
            f"<line x1='{width / 2}' y1='70' x2='{left + 130}' y2='120' stroke='#51606f'/>"
            + _box(left, 120, 260, 60, f"{node.name}  {node.address}", ", ".join(blocks.get(node.name, ["no block"])))
        )
        for row, pod in enumerate(one for one in cluster.pods.values() if one.node == node):
            top = 195 + 42 * row
            parts.append(f"<line x1='{left + 10}' y1='180' x2='{left + 10}' y2='{top + 18}' stroke='#51606f'/>")
            parts.append(_box(left + 20, top, 240, 36, f"{pod.name}  {pod.address}", ""))
    return "\n".join([*parts, "</svg>"])


def _box(left: float, top: float, width: float, height: float, text: str, small: str) -> str:
    return (
        f"<rect x='{left}' y='{top}' width='{width}' height='{height}' rx='6' fill='#eef3fb' stroke='#0b5394'/>"
        f"<text x='{left + 12}' y='{top + 23}'>{html.escape(text)}</text>"
        f"<text class='small' x='{left + 12}' y='{top + 44}'>{html.escape(small)}</text>"
    )
