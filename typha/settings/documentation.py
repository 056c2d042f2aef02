"""Renders the settings table as the Markdown tables of docs/configuration.md. Pure."""

from typing import Any

from typha.settings.table import KUBERNETES_VARIABLES, SETTINGS, Row, Scope

_HEADINGS = {
    Scope.ORIGINAL: "### Settings of the original",
    Scope.OURS: "### Additional settings",
}


def tables() -> str:
    """The settings by scope, then the variables without the prefix TYPHA_."""
    parts = [_table(scope, heading) for scope, heading in _HEADINGS.items()]
    return "\n".join((*parts, _kubernetes_table()))


def _table(scope: Scope, heading: str) -> str:
    lines = [heading, "", "| Setting | Type | Default | Meaning | Why this default |", "|---|---|---|---|---|"]
    for row in SETTINGS:
        if row.scope is scope:
            lines.append(f"| `{row.name}` | {row.type.label} | {_default(row)} | {row.help} | {row.why} |")
    return "\n".join(lines) + "\n"


def _kubernetes_table() -> str:
    lines = ["### Variables without the prefix TYPHA_", "", "| Variable | Default | Meaning |", "|---|---|---|"]
    lines += [f"| `{variable.name}` | {variable.default} | {variable.help} |" for variable in KUBERNETES_VARIABLES]
    return "\n".join(lines) + "\n"


def _default(row: Row) -> str:
    value: Any = row.default
    if isinstance(value, bool):
        return str(value).lower()
    if value == "":
        return "empty"
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{shown} {row.unit}" if row.unit else shown
