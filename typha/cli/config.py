"""`typha config`: the settings that `typha serve` would use here and now, where they come from, and what they do."""

import dataclasses
import json
import os
import textwrap
from collections.abc import Iterable
from typing import Any

import click

from typha import build, settings
from typha.cli import serve
from typha.settings import description, machine

_COLUMNS = ("NAME", "VALUE", "SOURCE", "EFFECT")
_WIDTH_MAX = 40
"""Of a column; a longer value moves the rest of its line."""
_JSON = "as_json"


def _config(**arguments: Any) -> int:
    as_json = arguments.pop(_JSON)
    on = machine.read()
    try:
        loaded = serve.load(arguments, on)
    except settings.ConfigurationError as error:
        click.echo(f"typha: error: {error}", err=True)
        return serve.EXIT_BAD_CONFIGURATION
    rows = list(description.described(loaded))
    variables = list(description.variables(os.environ))
    if as_json:
        found = {
            "version": build.VERSION,
            "settings": [row._asdict() for row in rows],
            "variables": [row._asdict() for row in variables],
            "machine": dataclasses.asdict(on),
            "notices": [{"level": notice.level, "event": notice.event, **notice.fields} for notice in loaded.notices],
        }
        click.echo(json.dumps(found, indent=2))
        return 0
    click.echo("\n".join([*_table(rows), "", *_table(variables), "", _machine_line(on), *_notice_lines(loaded)]))
    return 0


def _table(rows: list[description.Shown]) -> Iterable[str]:
    """The lines of a table."""
    cells = [_COLUMNS, *((row.name, row.value, row.source, _effect(row)) for row in rows)]
    widths = [min(_WIDTH_MAX, max(len(row[column]) for row in cells)) for column in range(len(_COLUMNS) - 1)]
    for *row, effect in cells:
        yield "  ".join((*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)), effect))


def _effect(row: description.Shown) -> str:
    return row.effect if row.has_effect else f"none: {row.effect}"


def _machine_line(on: machine.Machine) -> str:
    quota = "none" if on.cpu_quota is None else f"{on.cpu_quota:g}"
    return f"CPUs: {on.cpus}; CPU quota: {quota}; memory limit in bytes: {on.memory_limit_bytes or 'none'}"


def _notice_lines(loaded: settings.Loaded) -> Iterable[str]:
    for notice in loaded.notices:
        fields = " ".join(f"{name}={value}" for name, value in notice.fields.items())
        yield textwrap.shorten(f"{notice.level}: {notice.event} {fields}", 500)


config = click.Command(
    "config",
    callback=_config,
    params=[
        click.Option(["--json", _JSON], is_flag=True, help="JSON instead of a table."),
        *serve.parameters(),
    ],
    help="Show every setting that `typha serve` with the same flags, environment and file would use: its value, its "
    "source and its effect. Secrets are redacted.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
