"""`python -m clients.agents.bgp`: runs the agent, or shows what it would configure."""

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import Coroutine
from pathlib import Path

import click

from clients.agents.bgp import agent, bird, rendering
from clients.mirror import Change, Mirror

SYNC_TIMEOUT_SECONDS = 60.0

_servers = click.option("--server", "servers", multiple=True, required=True, help="HOST:PORT; may be repeated.")
_node = click.option("--node", required=True, help="Name of the node that the agent runs on.")
_ca = click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Connect by TLS; trust these.")
_certificate = click.option("--certificate-file", type=click.Path(exists=True, dir_okay=False), help="Own certificate.")
_key = click.option("--key-file", type=click.Path(exists=True, dir_okay=False), help="Its key.")
_name = click.option("--server-name", help="The name in the server's certificate, if it is not the host.")


@click.group()
def main() -> None:
    """The BGP agent in the role of Calico's confd."""


@main.command()
@_servers
@_node
@_ca
@_certificate
@_key
@_name
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
    servers: tuple[str, ...],
    node: str,
    ca_file: str | None,
    certificate_file: str | None,
    key_file: str | None,
    server_name: str | None,
    folder: Path,
    program: str,
    control: str,
) -> None:
    """Keep BIRD configured and running until SIGTERM, which leaves the routes in the kernel."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    process = bird.Bird(agent.folder_for(folder).resolve(), program=program, control=control)
    tls = _tls(ca_file, certificate_file, key_file)
    work = agent.Agent(node, process).run(servers, tls=tls, server_name=server_name)
    asyncio.run(_until_terminated(work))


@main.command()
@_servers
@_node
@_ca
@_certificate
@_key
@_name
def render(
    servers: tuple[str, ...],
    node: str,
    ca_file: str | None,
    certificate_file: str | None,
    key_file: str | None,
    server_name: str | None,
) -> None:
    """Print the configuration that BIRD would get, and what is not supported."""
    tls = _tls(ca_file, certificate_file, key_file)
    rendered = asyncio.run(_rendered(servers, node, tls=tls, server_name=server_name))
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


async def _rendered(
    servers: tuple[str, ...], node: str, *, tls: ssl.SSLContext | None, server_name: str | None
) -> rendering.Rendered:
    follower = agent.Agent(node, bird.Bird(Path()))
    async with Mirror(
        servers, feed=agent.FEED, agent=agent.AGENT, node=node, tls=tls, server_name=server_name
    ) as found:
        await found.wait_in_sync(timeout_seconds=SYNC_TIMEOUT_SECONDS)
        follower.apply([Change(key, None, entry) for key, entry in found.items()])
    try:
        return rendering.render(follower.state, node)
    except rendering.UnknownNode as error:
        raise click.ClickException(f"the feed has no BGP address of node {error}") from error


def _tls(ca_file: str | None, certificate_file: str | None, key_file: str | None) -> ssl.SSLContext | None:
    if ca_file is None:
        return None
    context = ssl.create_default_context(cafile=ca_file)
    if certificate_file is not None:
        context.load_cert_chain(certificate_file, key_file)
    return context


if __name__ == "__main__":
    main()
