"""The commands `run` and `status`."""

import asyncio
import contextlib
import gc
import json
import logging
import pathlib
import signal
import sys

import click

from clients.agents import servers as service

GARBAGE_THRESHOLDS = 50_000, 20, 100
"""A cluster's objects stay. With Python's own thresholds, which ask for a collection after 700 new ones, the start in a
large cluster takes 15% more CPU."""
DEFAULT_STATUS_FILE = "/run/typha-node.json"


@click.command()
@service.options()
@click.option("--node", required=True, help="Name of this node.")
@click.option(
    "--state-file",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Keep the feed's content in this file, and begin with it: the server sends only what has changed since.",
)
@click.option("--status-file", default=DEFAULT_STATUS_FILE, show_default=True, metavar="PATH")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, help="Serve metrics here; 0: no metrics.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, metavar="ADDRESS")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
def run(
    *,
    servers: service.Servers,
    node: str,
    state_file: pathlib.Path | None,
    status_file: str,
    metrics_port: int,
    metrics_host: str,
    log_level: str,
) -> None:
    """Follow a server and program the network namespace that it runs in, as root, until a signal ends it.

    What is programmed stays. The policies in the kernel remain in force while no agent runs.
    """
    logging.basicConfig(format="%(asctime)s [%(levelname)s] %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("typha").setLevel(log_level.upper())
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_run(servers, node, state_file, pathlib.Path(status_file), metrics_host, metrics_port))


async def _run(
    servers: service.Servers,
    node: str,
    state_file: pathlib.Path | None,
    status_file: pathlib.Path,
    metrics_host: str,
    metrics_port: int,
) -> None:
    # The other commands work without what only this one needs.
    import prometheus_client

    from clients.agents.node import agent, report
    from clients.agents.node.dataplane import conntrack, links, nft, programmer

    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    tracking = conntrack.Conntrack()
    if not tracking.installed:
        agent.LOG.error("conntrack is not installed: connections of workloads that are gone last until they time out.")
    async with links.Links() as routes:
        programs = programmer.Programmer(node, nft=nft.Nft(), links=routes, conntrack=tracking)
        running = agent.Agent(
            servers,
            node=node,
            programmer=programs,
            status=report.StatusFile(status_file),
            state_file=state_file,
        )
        if metrics_port:
            registry = prometheus_client.CollectorRegistry()
            registry.register(report.Metrics(running.facts, programs))
            prometheus_client.start_http_server(metrics_port, metrics_host, registry)
        try:
            await running.run()
        except (nft.NftFailed, OSError) as error:
            raise click.ClickException(f"the kernel cannot be programmed: {error}") from error


@click.command()
@click.option("--status-file", default=DEFAULT_STATUS_FILE, show_default=True, metavar="PATH")
def status(*, status_file: str) -> None:
    """Print what a running agent says about itself."""
    try:
        found = json.loads(pathlib.Path(status_file).read_text())
    except (OSError, ValueError) as error:
        raise click.ClickException(f"no status: {error}") from error
    width = max(map(len, found))
    for name, value in found.items():
        lines = [f"{key}: {entry}" for key, entry in value.items()] if isinstance(value, dict) else value
        for position, line in enumerate((lines if isinstance(lines, list) else [lines]) or ["none"]):
            click.echo(f"{name.replace('_', ' ') if position == 0 else '':<{width}}  {line}")
