"""`python -m loadtest`: the demo, the scenarios, the bench and the acceptance runs."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from loadtest import acceptance, demo, plan
from loadtest.bench import rows, runner
from loadtest.environment import child, control_plane, kubeconfig, processes
from loadtest.scenarios import fixture, protocols, registry
from loadtest.scenarios.real import writer
from loadtest.swarm import control, supervisor
from loadtest.verification import expected_state

EXIT_FAILED = 1
EXIT_TERMINATED = 128 + signal.SIGTERM
PROTOCOLS = {
    "native": (control.Protocol.NATIVE,),
    "typha": (control.Protocol.TYPHA,),
    "mixed": fixture.BOTH,
}
FEEDS = (processes.FEED, fixture.FELIX, "bgp", "tunnel-ip-allocation", "node-status")
EXPECTED = (
    demo.DemoError,
    kubeconfig.KubeconfigError,
    child.ProcessError,
    expected_state.ApiRequestError,
    writer.WriteError,
    supervisor.SwarmError,
    control_plane.ControlPlaneError,
    TimeoutError,
)

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def _finish(work: Coroutine[None, None, bool]) -> None:
    try:
        passed = asyncio.run(_until_terminated(work))
    except asyncio.CancelledError:
        sys.exit(EXIT_TERMINATED)
    except EXPECTED as error:
        click.echo(f"loadtest: {type(error).__name__}: {error}", err=True)
        sys.exit(EXIT_FAILED)
    sys.exit(0 if passed else EXIT_FAILED)


async def _until_terminated(work: Coroutine[None, None, bool]) -> bool:
    """SIGTERM ends the work as Ctrl-C does, and all processes with it."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _duration(seconds: float, of: str) -> Decorator:
    return click.option("--duration", "seconds", default=seconds, type=click.FloatRange(1), help=f"Seconds of {of}.")


def _rounds(of: str) -> Decorator:
    return click.option("--rounds", default=5, type=click.IntRange(1), help=of)


def _agents(count: int, *, least: int) -> Decorator:
    return click.option("--agents", default=count, type=click.IntRange(least))


def _updates(rate: float) -> Decorator:
    return click.option("--updates-per-second", default=rate, type=click.FloatRange(0, min_open=True))


def _cluster(command: Callable[..., None]) -> Callable[..., None]:
    nodes = click.option("--nodes", default=500, type=click.IntRange(1))
    return nodes(click.option("--pods", default=5000, type=click.IntRange(0))(command))


def _folder(name: str, of: str = "Folder of the report.") -> Decorator:
    return click.option("--folder", default=name, type=click.Path(file_okay=False, path_type=Path), help=of)


_public_agents = click.option(
    "--public-agents", default=10, type=click.IntRange(0), help="Those of the agents that use the public client."
)


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Load tests of the service."""


@main.command("demo")
@_duration(30.0, "changes")
@_agents(1000, least=1)
@_public_agents
@_updates(50.0)
@_cluster
@_folder("report-demo")
def demo_command(**settings: Any) -> None:
    """A simulated cluster, or with KUBECONFIG in the environment that cluster, which is only read."""
    own = next((Path(part) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part), None)
    _finish(demo.run(fixture.Settings(**settings), own_cluster=own))


@main.command("run")
@click.option("--scenario", required=True, type=click.Choice(sorted(registry.SCENARIOS)))
@_agents(1000, least=20)
@_public_agents
@_updates(20.0)
@_duration(20.0, "each measured span")
@_rounds("Alternating runs, if the scenario has any.")
@click.option("--replicas", default=3, type=click.IntRange(2, 10), help="Replicas of a fleet.")
@click.option(
    "--tiers/--no-tiers", default=False, help="Of a fleet, one replica is elected to watch, the others follow."
)
@_cluster
@click.option("--protocol", default="native", type=click.Choice([*PROTOCOLS]), help="Protocol of the agents.")
@click.option("--compressed/--plain", default=True, help="With zstd (native) and snappy (Typha), or without.")
@click.option("--tls/--no-tls", default=False, help="Mutual TLS, with certificates made for the run.")
@click.option("--feed", type=click.Choice(FEEDS), help="Default: felix with Typha's protocol, else loadtest (raw).")
@click.option("--pod-bytes", default=0, type=click.IntRange(0), help="Size of the pods; 0: 1.5 to 2 kB.")
@click.option("--attack-share", default=1.0, type=click.FloatRange(0.001), help="Of the full size of each attack.")
@click.option("--attack", "attacks", multiple=True, help="Names of attacks; default: all of the scenario.")
@click.option("--judge-times/--show-times", default=True, help="Check times, or only show them.")
@_folder("report-load")
def run_command(scenario: str, protocol: str, feed: str | None, **settings: Any) -> None:
    """One scenario: on a simulated API server, or `direct` on a real one."""
    spoken = PROTOCOLS["mixed" if scenario in registry.OF_BOTH_PROTOCOLS else protocol]
    needs_calico = control.Protocol.TYPHA in spoken
    feed = feed or (fixture.FELIX if needs_calico else processes.FEED)
    if needs_calico and feed == processes.FEED:
        raise click.BadParameter("Typha's protocol has Calico's feeds alone", param_hint="--feed")
    _finish(registry.run(scenario, fixture.Settings(protocols=spoken, feed=feed, **settings)))


@main.command("bench")
@click.option("--rows", "names", default="", help=f"Names of rows, separated by commas; all: {', '.join(rows.NAMES)}.")
@click.option("--rounds", type=click.IntRange(1), help="Alternating rounds of each row; 5, quick 1.")
@click.option("--duration", "seconds", type=click.FloatRange(1), help="Seconds of each steady load; 10, quick 4.")
@click.option("--scale", type=click.FloatRange(0.01, 1), help="Share of the full number of agents; 1, quick 0.2.")
@click.option("--quick", is_flag=True, help="Everything once, small: some five minutes.")
@click.option("--protocol", default="native", type=click.Choice([one.value for one in control.Protocol]))
@click.option("--record", is_flag=True, help="Add the results to docs/performance/ and update docs/performance.md.")
@_folder("report-bench")
def bench_command(protocol: str, **options: Any) -> None:
    """The numbers to reach, compared with a bare loop in alternating rounds. Below full size nothing is judged."""
    try:
        settings = runner.settings_of(protocol=control.Protocol(protocol), **options)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--rows") from error
    _finish(runner.run(settings))


@main.command("protocols")
@_agents(2000, least=20)
@_updates(50.0)
@_duration(15.0, "each run")
@_rounds("Alternating pairs of runs.")
@_cluster
@click.option("--judge/--show", "judge_times", default=True, help="Check the figures, or only show them.")
@_folder("report-protocols")
def protocols_command(**settings: Any) -> None:
    """Clients of Typha's protocol and native ones in alternating runs: CPU, memory, latency."""
    _finish(protocols.run(fixture.Settings(**settings)))


@main.command("plan")
@click.option("--nodes", required=True, type=click.IntRange(1))
@click.option("--pods", required=True, type=click.IntRange(0))
@_updates(20.0)
@click.option("--replicas", default=0, type=click.IntRange(0), help="0: as many as the model wants.")
@click.option("--workers", default=plan.WORKERS_MAX, type=click.IntRange(1, 64), help="Of each replica.")
@click.option("--network-gbit-per-second", default=10.0, type=click.FloatRange(0.01), help="Of each replica's machine.")
@click.option("--tls/--no-tls", "is_tls", default=True, help="Mutual TLS, as Calico's operator sets it up.")
def plan_command(**asked: Any) -> None:
    """What a cluster needs, by a model of measured figures (docs/sizing.md). Runs nothing."""
    for name, text in plan.lines(plan.Cluster(**asked)):
        click.echo(f"{name}: {text}")


@main.command("acceptance")
@click.option("--scale", default=1.0, type=click.FloatRange(0.01, 1.0), help="Share of the full size.")
@click.option("--only", multiple=True, type=click.Choice(list(acceptance.PARTS)), help="Parts to run; default: all.")
@_folder("report-acceptance", "Folder of the reports.")
def acceptance_command(**settings: Any) -> None:
    """All acceptance runs. Below full size, times are shown and not judged."""
    _finish(acceptance.run(acceptance.AcceptanceSettings(**settings)))


if __name__ == "__main__":
    main()
