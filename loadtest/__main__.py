"""`python -m loadtest`: the demo, the scenarios, the bench and the acceptance runs."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path

import click

from loadtest import acceptance, demo
from loadtest.bench import command, rows, runner
from loadtest.environment import control_plane, kubeconfig, processes
from loadtest.scenarios import fixture, protocols, registry
from loadtest.scenarios.real import writer
from loadtest.swarm import control, supervisor
from loadtest.verification import expected_state

EXIT_FAILED = 1
EXIT_TERMINATED = 128 + signal.SIGTERM
PROTOCOLS = {
    "native": (control.Protocol.NATIVE,),
    "typha": (control.Protocol.TYPHA,),
    "mixed": (control.Protocol.NATIVE, control.Protocol.TYPHA),
}
FELIX = "felix"
FEEDS = (processes.FEED, FELIX, "bgp", "tunnel-ip-allocation", "node-status")
EXPECTED = (
    demo.DemoError,
    kubeconfig.KubeconfigError,
    processes.ProcessError,
    expected_state.ApiError,
    writer.WriteError,
    supervisor.SwarmError,
    control_plane.ControlPlaneError,
    TimeoutError,
)


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
    """SIGTERM ends the work as Ctrl-C does, so that no process is left behind."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Load tests of the service."""


@main.command("demo")
@click.option("--duration", default=30.0, type=click.FloatRange(1), help="Seconds of changes.")
@click.option("--agents", default=1000, type=click.IntRange(1))
@click.option("--public-agents", default=10, type=click.IntRange(0), help="Of the agents: through the public client.")
@click.option("--updates-per-second", default=50.0, type=click.FloatRange(0, min_open=True))
@click.option("--nodes", default=500, type=click.IntRange(1))
@click.option("--pods", default=5000, type=click.IntRange(0))
@click.option("--folder", default="report-demo", type=click.Path(file_okay=False, path_type=Path), help="Report.")
def demo_command(
    duration: float,
    agents: int,
    public_agents: int,
    updates_per_second: float,
    nodes: int,
    pods: int,
    folder: Path,
) -> None:
    """A simulated cluster, or with KUBECONFIG in the environment that cluster, which is only read."""
    own = next((Path(part) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part), None)
    settings = demo.DemoSettings(
        duration_seconds=duration,
        agents=agents,
        public_agents=public_agents,
        updates_per_second=updates_per_second,
        nodes=nodes,
        pods=pods,
        folder=folder,
        kubeconfig=own,
    )
    _finish(demo.run(settings))


@main.command("run")
@click.option("--scenario", required=True, type=click.Choice(sorted(registry.SCENARIOS)))
@click.option("--agents", default=1000, type=click.IntRange(20))
@click.option("--public-agents", default=10, type=click.IntRange(0), help="Of the agents: through the public client.")
@click.option("--updates-per-second", default=20.0, type=click.FloatRange(0, min_open=True))
@click.option("--duration", default=20.0, type=click.FloatRange(1), help="Seconds of each measured span.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Alternating runs, where there are any.")
@click.option("--nodes", default=500, type=click.IntRange(1))
@click.option("--pods", default=5000, type=click.IntRange(0))
@click.option("--protocol", default="native", type=click.Choice([*PROTOCOLS]), help="What the agents speak.")
@click.option("--compressed/--plain", default=True, help="With zstd (native) and snappy (Typha), or without.")
@click.option("--tls/--no-tls", default=False, help="Mutual TLS, with certificates that are made for the run.")
@click.option("--feed", type=click.Choice(FEEDS), help="Default: felix with Typha's protocol, else loadtest (raw).")
@click.option("--pod-bytes", default=0, type=click.IntRange(0), help="Size of the pods; 0: 1.5 to 2 kB.")
@click.option("--silent-connections", default=2000, type=click.IntRange(0), help="Of the scenario bad-peers.")
@click.option("--judge-times/--show-times", default=True, help="Whether times are checked, or only shown.")
@click.option("--folder", default="report-load", type=click.Path(file_okay=False, path_type=Path), help="Report.")
def run_command(
    scenario: str,
    agents: int,
    public_agents: int,
    updates_per_second: float,
    duration: float,
    rounds: int,
    nodes: int,
    pods: int,
    protocol: str,
    compressed: bool,
    tls: bool,
    feed: str | None,
    pod_bytes: int,
    silent_connections: int,
    judge_times: bool,
    folder: Path,
) -> None:
    """One scenario on a simulated API server."""
    spoken = PROTOCOLS[protocol]
    needs_calico = control.Protocol.TYPHA in spoken or scenario in registry.OF_BOTH_PROTOCOLS
    feed = feed or (FELIX if needs_calico else processes.FEED)
    if needs_calico and feed == processes.FEED:
        raise click.BadParameter("Typha's protocol has Calico's feeds alone", param_hint="--feed")
    settings = fixture.Settings(
        agents=agents,
        public_agents=public_agents,
        updates_per_second=updates_per_second,
        seconds=duration,
        rounds=rounds,
        nodes=nodes,
        pods=pods,
        protocols=spoken,
        compressed=compressed,
        tls=tls,
        feed=feed,
        pod_bytes=pod_bytes,
        silent_connections=silent_connections,
        judge_times=judge_times,
        folder=folder,
    )
    _finish(registry.run(scenario, settings))


@main.command("bench")
@click.option("--rows", "names", default="", help=f"Of these, with commas between; all: {', '.join(rows.NAMES)}.")
@click.option("--rounds", type=click.IntRange(1), help="Alternating rounds of each row; 5, quick 1.")
@click.option("--duration", type=click.FloatRange(1), help="Seconds of each steady load; 10, quick 4.")
@click.option("--scale", type=click.FloatRange(0.01, 1), help="Of the full number of agents; 1, quick 0.2.")
@click.option("--quick", is_flag=True, help="Everything once, small: some five minutes.")
@click.option("--protocol", default="native", type=click.Choice([one.value for one in control.Protocol]))
@click.option("--record", is_flag=True, help="Add the results to docs/performance/, write docs/performance.md anew.")
@click.option("--folder", default="report-bench", type=click.Path(file_okay=False, path_type=Path), help="Report.")
def bench_command(
    names: str,
    rounds: int | None,
    duration: float | None,
    scale: float | None,
    quick: bool,
    protocol: str,
    record: bool,
    folder: Path,
) -> None:
    """The numbers to reach, beside a bare loop in alternating rounds. Below full size nothing is judged."""
    try:
        settings = command.settings(
            names=names,
            rounds=rounds,
            seconds=duration,
            scale=scale,
            quick=quick,
            protocol=control.Protocol(protocol),
            record=record,
            folder=folder,
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--rows") from error
    _finish(runner.run(settings))


@main.command("protocols")
@click.option("--agents", default=2000, type=click.IntRange(20))
@click.option("--updates-per-second", default=50.0, type=click.FloatRange(0, min_open=True))
@click.option("--duration", default=15.0, type=click.FloatRange(1), help="Seconds of each run.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Alternating pairs of runs.")
@click.option("--nodes", default=500, type=click.IntRange(1))
@click.option("--pods", default=5000, type=click.IntRange(0))
@click.option("--judge/--show", default=True, help="Whether the figures are checked, or only shown.")
@click.option("--folder", default="report-protocols", type=click.Path(file_okay=False, path_type=Path), help="Report.")
def protocols_command(
    agents: int,
    updates_per_second: float,
    duration: float,
    rounds: int,
    nodes: int,
    pods: int,
    judge: bool,
    folder: Path,
) -> None:
    """Clients of Typha's protocol beside native ones, in alternating runs: CPU, memory, latency."""
    settings = protocols.ProtocolsSettings(
        agents=agents,
        updates_per_second=updates_per_second,
        seconds=duration,
        rounds=rounds,
        nodes=nodes,
        pods=pods,
        judged=judge,
        folder=folder,
    )
    _finish(protocols.run(settings))


@main.command("acceptance")
@click.option("--scale", default=1.0, type=click.FloatRange(0.01, 1.0), help="Of the full size.")
@click.option("--only", multiple=True, type=click.Choice(list(acceptance.PARTS)), help="Parts to run; default: all.")
@click.option(
    "--folder", default="report-acceptance", type=click.Path(file_okay=False, path_type=Path), help="Reports."
)
def acceptance_command(scale: float, only: tuple[str, ...], folder: Path) -> None:
    """Everything that has to be shown; below full size, times are shown and not judged."""
    _finish(acceptance.run(acceptance.AcceptanceSettings(scale=scale, only=only, folder=folder)))


if __name__ == "__main__":
    main()
