"""`python -m loadtest.apiserver`: a simulated API server as a process; prints one line of JSON when it is ready."""

import asyncio
import json
import signal
from pathlib import Path

import click
import uvloop

from loadtest.apiserver import churn, faults
from loadtest.apiserver.population import Population
from loadtest.apiserver.settings import SimulatorSettings, WatchListMode
from loadtest.apiserver.simulator import Simulator


async def _serve(
    settings: SimulatorSettings,
    population: Population,
    *,
    changes: churn.ChurnSettings | None,
    script: list[faults.Fault],
) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    simulator = Simulator(settings)
    simulator.populate(population)
    async with simulator:
        if changes is not None:
            simulator.churn.start(changes)
        simulator.schedule(script)
        objects = {str(resource): simulator.store.count(resource) for resource in simulator.store.resources()}
        ready = {"url": simulator.url, "port": simulator.port, "version": simulator.store.version, "objects": objects}
        click.echo(json.dumps(ready))
        await stopped.wait()


@click.command(context_settings={"show_default": True})
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@click.option("--seed", default=0, help="Seed of the population, the churn and the identifiers.")
@click.option("--nodes", default=500, type=click.IntRange(1))
@click.option("--pods", default=5_000, type=click.IntRange(0))
@click.option("--namespaces", default=20, type=click.IntRange(1))
@click.option("--services", default=200, type=click.IntRange(0), help="Services, each with an EndpointSlice.")
@click.option("--widgets", default=100, type=click.IntRange(0), help="Objects of the custom type.")
@click.option("--pod-bytes", default=0, type=click.IntRange(0), help="Size of pods; 0: 1.5 to 2 kB.")
@click.option("--calico/--no-calico", default=False, help="With the types and objects of a cluster that has Calico.")
@click.option("--churn", "rate", default=0.0, type=click.FloatRange(0), help="Writes a second from the start.")
@click.option("--history-events", default=10_000, type=click.IntRange(1), help="Events kept per type, then 410.")
@click.option("--bookmark-period", default=60.0, type=click.FloatRange(0, min_open=True), help="Seconds.")
@click.option("--watch-timeout", default=1800.0, type=click.FloatRange(0, min_open=True), help="Seconds, at least.")
@click.option("--watch-list", type=click.Choice([mode.value for mode in WatchListMode]), default="on")
@click.option("--gzip/--no-gzip", default=True, help="Compress large lists for clients that accept it.")
@click.option(
    "--faults", "script", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON file of faults."
)
def main(
    host: str,
    port: int,
    seed: int,
    rate: float,
    history_events: int,
    bookmark_period: float,
    watch_timeout: float,
    watch_list: str,
    gzip: bool,
    script: Path | None,
    calico: bool,
    pod_bytes: int,
    **sizes: int,
) -> None:
    """Serve a simulated Kubernetes API until SIGTERM; /_sim/ controls it."""
    settings = SimulatorSettings(
        host=host,
        port=port,
        seed=seed,
        history_events=history_events,
        bookmark_period_seconds=bookmark_period,
        watch_timeout_seconds=watch_timeout,
        watch_list=WatchListMode(watch_list),
        gzip=gzip,
    )
    population = Population(calico=calico, pod_bytes=pod_bytes, **sizes)
    changes = churn.ChurnSettings(rate_per_second=rate, label_times=calico, pod_bytes=pod_bytes) if rate else None
    try:
        planned = faults.parse(script.read_bytes()) if script else []
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--faults") from error
    uvloop.run(_serve(settings, population, changes=changes, script=planned))


if __name__ == "__main__":
    main()
