"""`python -m clients.agents.bgp`: runs the agent, or shows what it would configure."""

import asyncio
import contextlib
import functools
import logging
import signal
from collections.abc import Coroutine
from pathlib import Path

import click

from clients.agents import servers as service
from clients.agents.bgp import agent, bird, rendering, resources

_node = click.option("--node", required=True, help="Name of the node that the agent runs on.")


@click.group()
def main() -> None:
    """The BGP agent in the role of Calico's confd."""


@main.command()
@service.options()
@_node
@click.option(
    "--state-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the feed's content in this file, and begin with it: BIRD then starts also while no server is in reach.",
)
@click.option(
    "--folder",
    default="/run/typha-bgp",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="For BIRD's configuration and socket.",
)
@click.option("--bird", "program", default="bird", show_default=True, help="BIRD 2.")
@click.option("--birdc", "control", default="birdc", show_default=True)
def run(
    *, servers: service.Servers, node: str, state_file: Path | None, folder: Path, program: str, control: str
) -> None:
    """Keep BIRD configured and running until SIGTERM, which leaves the routes in the kernel."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    process = bird.Bird(agent.folder_for(folder).resolve(), program=program, control=control)
    asyncio.run(_until_terminated(agent.Agent(node, process).run(servers, state_file=state_file)))


@main.command()
@service.options()
@_node
def render(*, servers: service.Servers, node: str) -> None:
    """Print the configuration that BIRD would get, and what is not supported."""
    tell = functools.partial(click.echo, err=True)
    try:
        found = asyncio.run(service.fetch(servers, feed=agent.FEED, agent=agent.AGENT, node=node, tell=tell))
    except service.NotInSync as error:
        raise click.ClickException(str(error)) from error
    state = resources.State()
    for key, value in found.items():
        state.apply(key, value)
    try:
        rendered = rendering.render(state, node)
    except rendering.UnknownNode as error:
        raise click.ClickException(f"the feed has no BGP address of node {error}") from error
    click.echo(rendered.text, nl=False)
    for subject, text in sorted(rendered.problems.items()):
        click.echo(f"{subject}: {text}", err=True)


async def _until_terminated(work: Coroutine[None, None, None]) -> None:
    """Run the agent; SIGTERM and Ctrl-C end it in order."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    main()
