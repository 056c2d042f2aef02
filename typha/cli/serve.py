"""`typha serve` and `typha component typha`: load the settings, set up logging, run the service."""

import asyncio
import contextlib
import os
import platform
from typing import Any

import click
import structlog

from typha import build, settings
from typha.cli import version
from typha.observability import logs, loop_latency
from typha.settings import description, feeds_file, machine
from typha.worker import tls

EXIT_BAD_CONFIGURATION = 2
_STDERR = 2

_CONFIG_FILE = "config_file"
_STRICT = "strict"


def parameters() -> list[click.Parameter]:
    """The flags of a command that loads the settings with `load`."""
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


def read(arguments: dict[str, Any], on: machine.Machine) -> settings.Loaded:
    """The settings from the arguments of a command with `parameters`.

    Raises:
        ConfigurationError: as `settings.load`.
    """
    config_file = arguments.pop(_CONFIG_FILE)
    strict = arguments.pop(_STRICT)
    names = {row.attribute: row.name for row in settings.SETTINGS}
    flags = {names[attribute]: text for attribute, text in arguments.items() if text is not None}
    return settings.load(flags=flags, environment=os.environ, config_file=config_file, strict=strict, machine=on)


def load(arguments: dict[str, Any], on: machine.Machine) -> settings.Loaded:
    """The same, checked as far as they can be before the start. Raises ConfigurationError."""
    loaded = read(arguments, on)
    if loaded.settings.feeds_file:
        feeds_file.load(loaded.settings.feeds_file)  # report an error before anything starts
    return loaded._replace(notices=(*loaded.notices, *tls.check(loaded.settings, os.environ)))


def open_standard_descriptors() -> None:
    """Give closed ones of 0 to 2 a place, so that no socket gets the number: libuv ends a process that closes it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _serve(**arguments: Any) -> int:
    open_standard_descriptors()
    on = machine.read()
    try:
        return _run(load(arguments, on), on)
    except settings.ConfigurationError as error:
        click.echo(f"typha: error: {error}", err=True)
        return EXIT_BAD_CONFIGURATION


def _run(loaded: settings.Loaded, on: machine.Machine) -> int:
    pipeline = logs.configure(loaded.settings, file_given="LogFilePath" in loaded.given)
    with contextlib.closing(pipeline):
        log = structlog.get_logger("typha.settings")
        log.info("Starting", logs_to=pipeline.destinations, **_banner(loaded, on))
        for notice in loaded.notices:
            getattr(log, notice.level)(notice.event, **notice.fields)
        from typha import service  # imported late, so that a configuration error shows quickly

        selector = loop_latency.TimingSelector()
        code = None
        try:
            with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
                described = [*description.described(loaded), *description.variables(os.environ)]
                code = runner.run(service.serve(loaded.settings, selector.latency, described))
        except RuntimeError:
            if code is None:
                raise
            # The end of the loop takes a thread, and there was none left.
        return code


def _banner(loaded: settings.Loaded, on: machine.Machine) -> dict[str, Any]:
    """The fields of the first line: what runs, what the machine allows, and the settings that are not the default."""
    fields: dict[str, Any] = {
        "version": build.VERSION,
        "commit": build.commit(),
        "python": platform.python_version(),
        "cpus": on.cpus,
        "cpu_quota": "none" if on.cpu_quota is None else on.cpu_quota,
        "memory_limit": "none" if on.memory_limit_bytes is None else on.memory_limit_bytes,
    }
    changed = [shown for shown in description.described(loaded) if not shown.is_default]
    room = logs.FIELDS_LIMIT - len(fields) - 2  # with `logs_to` and `more_settings`
    fields |= {shown.name: f"{shown.value} ({shown.source})" for shown in changed[:room]}
    if changed[room:]:
        fields["more_settings"] = len(changed) - room
    return fields


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
_HELP = "Run the service. Each setting can be set by a flag, by the environment variable TYPHA_<NAME>, or in the file."

serve = click.Command("serve", callback=_serve, params=parameters(), help=_HELP, context_settings=_CONTEXT)


@click.pass_context
def _serve_without_subcommand(context: click.Context, /, **arguments: Any) -> int | None:
    return _serve(**arguments) if context.invoked_subcommand is None else None


def _print_version(context: click.Context, _parameter: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        click.echo(version.text())
        context.exit()


component_typha = click.Group(
    "typha",
    callback=_serve_without_subcommand,
    params=[
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="As version."
        ),
        *parameters(),
    ],
    help=_HELP,
    context_settings=_CONTEXT,
    invoke_without_command=True,
    commands={"version": version.version},
)
