"""The command line: `typha serve`, `watch`, `convert` and others, and the original's programs for existing manifests.

`typha`, `calico` and `calico-typha` are one program. What it offers depends on the name by which it is called, or on a
first argument that is such a name: images of the original have no entry point, so their arguments begin with a program.

A command is imported when it is used: the service needs no client code, and the client commands need no code of the
service. Exit code 2 means a bad configuration or bad arguments, with one line on standard error. Commands define
further exit codes.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from typha import signals

_HELP = {"help_option_names": ["-h", "--help"]}
_SERVICE = "typha.cli.serve"


def _load(target: str) -> click.Command:
    """The command "module:attribute"."""
    module, _, attribute = target.partition(":")
    if module == _SERVICE:
        signals.ignore_early()  # importing the service takes longer than an operator's script waits
    command = getattr(importlib.import_module(module), attribute)
    if not isinstance(command, click.Command):
        raise TypeError(f"{target} is not a command")
    return command


class LazyGroup(click.Group):
    """A group of commands given as "module:attribute". It imports a command when the command is used."""

    def __init__(self, *, name: str, commands_by_name: dict[str, str], help_text: str) -> None:
        super().__init__(name=name, help=help_text, context_settings=_HELP, no_args_is_help=True)
        self._commands_by_name = commands_by_name

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = self._commands_by_name.get(cmd_name)
        return None if target is None else _load(target)


component = LazyGroup(
    name="component",
    commands_by_name={"typha": f"{_SERVICE}:component_typha"},
    help_text="Run the service like the original: `component typha`.",
)

_ORIGINALS = {
    "health": "typha.cli.health:health",
    "version": "typha.cli.version:version",
    "component": "typha.cli.main:component",
}

cli = LazyGroup(
    name="typha",
    commands_by_name={
        "serve": f"{_SERVICE}:serve",
        "watch": "typha.cli.watch:watch",
        "convert": "typha.cli.convert:convert",
        "config": "typha.cli.config:config",
        "check": "typha.cli.check:check",
        "rbac": "typha.cli.rbac:rbac",
        "status": "typha.cli.status:status",
        "get": "typha.cli.get:get",
        "explain": "typha.cli.explain:explain",
        "diags": "typha.cli.diags:diags",
        **_ORIGINALS,
    },
    help_text="Fan-out proxy between the Kubernetes API and the agents on a cluster's nodes.",
)

calico_group = LazyGroup(
    name="calico", commands_by_name=_ORIGINALS, help_text="What the original's program `calico` offers of Typha."
)


_PROGRAMS = {
    "typha": "typha.cli.main:cli",
    "calico": "typha.cli.main:calico_group",
    "calico-typha": f"{_SERVICE}:component_typha",
}


def run(arguments: Sequence[str], program: str = "typha") -> int:
    """Run one command and return the exit code of the process. A usage error is one line on standard error."""
    arguments = list(arguments)
    if arguments and os.path.basename(arguments[0]) in _PROGRAMS:
        program, arguments = os.path.basename(arguments[0]), arguments[1:]
    try:
        result = _load(_PROGRAMS[program]).main(args=arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"{program}: error: {' '.join(error.format_message().split())}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except OSError as error:  # such as a full disk behind standard output
        with contextlib.suppress(OSError):
            click.echo(f"{program}: error: {error}", err=True)
        _drop_output()
        return 1
    return result if isinstance(result, int) else 0


def _open_standard_streams() -> None:
    """Open /dev/null for those that are closed, as Go does: a socket would get their number, and be written to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _drop_output() -> None:
    """Keep the interpreter from writing at exit what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _main(program: str) -> NoReturn:
    _open_standard_streams()
    sys.exit(run(sys.argv[1:], program))


def main() -> None:
    """Entry point of the command `typha`."""
    _main("typha")


def calico() -> None:
    """Entry point of the command `calico`."""
    _main("calico")


def calico_typha() -> None:
    """Entry point of the command `calico-typha`."""
    _main("calico-typha")
