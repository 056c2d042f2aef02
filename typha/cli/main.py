"""The command line: `typha serve`, `watch`, `convert`, `version`, and `typha component typha` for existing manifests.

A command is imported when it is used: the service needs no client code, and the client commands need no code of the
service. Exit code 2 means a bad configuration or bad arguments, with one line on standard error. Commands define
further exit codes.
"""

import importlib
import sys
from collections.abc import Sequence

import click

_HELP = {"help_option_names": ["-h", "--help"]}


class LazyGroup(click.Group):
    """A group of commands given as "module:attribute". It imports a command when the command is used."""

    def __init__(self, *, name: str, commands_by_name: dict[str, str], help_text: str) -> None:
        super().__init__(name=name, help=help_text, context_settings=_HELP, no_args_is_help=True)
        self._commands_by_name = commands_by_name

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = self._commands_by_name.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{target} is not a command")
        return command


component = LazyGroup(
    name="component",
    commands_by_name={"typha": "typha.cli.serve:component_typha"},
    help_text="Run the service like the original: `component typha`.",
)

cli = LazyGroup(
    name="typha",
    commands_by_name={
        "serve": "typha.cli.serve:serve",
        "watch": "typha.cli.watch:watch",
        "convert": "typha.cli.convert:convert",
        "version": "typha.cli.version:version",
        "component": "typha.cli.main:component",
    },
    help_text="Fan-out proxy between the Kubernetes API and the agents on a cluster's nodes.",
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process. A usage error is one line on standard error."""
    try:
        result = cli.main(args=None if arguments is None else list(arguments), prog_name="typha", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"typha: error: {' '.join(error.format_message().split())}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the command `typha`."""
    sys.exit(run())
