"""`typha serve` and `typha component typha`: load the settings, set up logging, run the service."""

import asyncio
import contextlib
import os
from typing import Any

import click
import structlog

from typha import settings
from typha.cli import version
from typha.observability import logs, loop_latency
from typha.settings import feeds_file
from typha.worker import tls

EXIT_BAD_CONFIGURATION = 2

_CONFIG_FILE = "config_file"
_STRICT = "strict"


def _parameters() -> list[click.Parameter]:
    parameters: list[click.Parameter] = [
        click.Option(
            ["-c", "--config-file", _CONFIG_FILE],
            metavar="FILE",
            help=f"INI file with settings. Default: {settings.DEFAULT_CONFIG_FILE}, if it exists.",
        ),
        click.Option(
            ["--strict", _STRICT], is_flag=True, help="Reject unknown settings and all invalid values (exit code 2)."
        ),
    ]
    return parameters + [_option(row) for row in settings.SETTINGS]


def _option(row: settings.Row) -> click.Option:
    """The flag of a setting. Its value stays text, because the loader parses the values of all sources alike."""
    metavar = f"<{row.type.label}>"
    if row.type.label == "bool":  # the value is optional
        return click.Option([row.flag, row.attribute], is_flag=False, flag_value="true", metavar=metavar, help=row.help)
    return click.Option([row.flag, row.attribute], metavar=metavar, help=row.help)


def _serve(**arguments: Any) -> int:
    config_file = arguments.pop(_CONFIG_FILE)
    strict = arguments.pop(_STRICT)
    names = {row.attribute: row.name for row in settings.SETTINGS}
    flags = {names[attribute]: text for attribute, text in arguments.items() if text is not None}
    try:
        loaded = settings.load(flags=flags, environment=os.environ, config_file=config_file, strict=strict)
        if loaded.settings.feeds_file:
            feeds_file.load(loaded.settings.feeds_file)  # report an error before anything starts
        loaded = loaded._replace(notices=(*loaded.notices, *tls.check(loaded.settings, os.environ)))
        return _run(loaded)
    except settings.ConfigurationError as error:
        click.echo(f"typha: error: {error}", err=True)
        return EXIT_BAD_CONFIGURATION


def _run(loaded: settings.Loaded) -> int:
    pipeline = logs.configure(loaded.settings, file_given="LogFilePath" in loaded.given)
    with contextlib.closing(pipeline):
        log = structlog.get_logger("typha.settings")
        for notice in loaded.notices:
            getattr(log, notice.level)(notice.event, **notice.fields)
        from typha import service  # imported late, so that a configuration error shows quickly

        selector = loop_latency.TimingSelector()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            return runner.run(service.serve(loaded.settings, selector.latency))


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
_HELP = "Run the service. Each setting can be set by a flag, by the environment variable TYPHA_<NAME>, or in the file."

serve = click.Command("serve", callback=_serve, params=_parameters(), help=_HELP, context_settings=_CONTEXT)


@click.pass_context
def _serve_without_subcommand(context: click.Context, /, **arguments: Any) -> int | None:
    return _serve(**arguments) if context.invoked_subcommand is None else None


component_typha = click.Group(
    "typha",
    callback=_serve_without_subcommand,
    params=_parameters(),
    help=_HELP,
    context_settings=_CONTEXT,
    invoke_without_command=True,
    commands={"version": version.version},
)
