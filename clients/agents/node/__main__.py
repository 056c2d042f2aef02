"""The commands of the node agent: `python -m clients.agents.node COMMAND`."""

import asyncio
import functools
import json
import pathlib
import sys
from collections.abc import Iterable
from typing import BinaryIO

import click

from clients.agents import servers as service
from clients.agents.node import explain as explanation
from clients.agents.node import judge as judging
from clients.agents.node import objects, run, verdict

_EXIT_DENIED = 1
_OBJECT_SUFFIXES = frozenset({".yaml", ".yml", ".json"})


class _NoAnswer(click.ClickException):
    """The question cannot be answered. It has another exit code than the answer that a connection is denied."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The agent of a node, in the role of Calico's Felix."""


main.add_command(run.run)
main.add_command(run.status)


@main.command()
def judge() -> None:
    """Answer a question about a cluster's objects, as JSON from standard input to standard output.

    The question has `node`, `objects` or `steps`, and perhaps `flows` and `addresses`.
    """
    try:
        result = judging.answer(json.load(sys.stdin))
    except objects.ConversionFailed as error:
        raise _NoAnswer(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _NoAnswer(f"not a question: {error!r}") from error
    json.dump(result, sys.stdout)


@main.command()
@click.option("--from", "source", metavar="POD|ADDRESS", required=True, help="Where the connection begins.")
@click.option("--to", "destination", metavar="POD|ADDRESS", required=True, help="Where it ends.")
@click.option("--port", "flow", metavar="FLOW", required=True, help="Such as tcp/80, udp/53, icmp/8/0.")
@service.options(required=False)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=service.DEFAULT_TIMEOUT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a server that has the feed complete.",
)
@click.option("--feed", "name", default="felix", show_default=True, help="Name of the feed on the server.")
@click.option(
    "--objects", "paths", multiple=True, type=click.Path(exists=True), help="Take files or folders of objects."
)
@click.option("--dump", type=click.File("rb"), help="Take what `typha watch --json` or `typha convert` printed.")
def explain(
    *,
    source: str,
    destination: str,
    flow: str,
    servers: service.Servers,
    timeout_seconds: float,
    name: str,
    paths: tuple[str, ...],
    dump: BinaryIO | None,
) -> None:
    """Say which tier, policy and rule decides about a connection, in each direction, and what was passed on the way.

    POD is NAMESPACE/NAME. The policies come from one of --server, --objects and --dump. Exit code 1 means denied,
    and 2 that there is no answer.
    """
    if bool(servers.addresses) + bool(paths) + (dump is not None) != 1:
        raise click.UsageError("give one of --server, --objects and --dump")
    try:
        parsed = verdict.parse_flow(flow)
        if servers.addresses:
            values = asyncio.run(
                service.fetch(
                    servers,
                    feed=name,
                    agent="node-agent-explain",
                    timeout_seconds=timeout_seconds,
                    tell=functools.partial(click.echo, err=True),
                )
            )
        elif dump is not None:
            values = _map(objects.parse_dump(dump.read()))
        else:
            values = _map(objects.convert_files(_files(paths)))
        result = explanation.explain(values, source, destination, parsed)
    except (objects.ConversionFailed, explanation.NotThere, service.NotInSync, ValueError, OSError) as error:
        raise _NoAnswer(str(error)) from error
    click.echo(explanation.render(result), nl=False)
    sys.exit(0 if result.allowed else _EXIT_DENIED)


def _map(changes: Iterable[objects.KeyValue]) -> dict[str, bytes]:
    values: dict[str, bytes] = {}
    for key, value in changes:
        values.pop(key, None)
        if value is not None:
            values[key] = value
    return values


def _files(paths: Iterable[str]) -> list[str]:
    """The files of objects in some files and folders."""
    found: list[str] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            found += sorted(str(file) for file in path.rglob("*") if file.suffix in _OBJECT_SUFFIXES)
        else:
            found.append(str(path))
    if not found:
        raise click.UsageError("no files of objects (.yaml, .yml, .json)")
    return found


if __name__ == "__main__":
    main(prog_name="python -m clients.agents.node")
