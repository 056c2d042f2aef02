"""The service beside a bare send loop, in alternating runs on the same machine with the same swarm."""

import asyncio
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

from loadtest import controlplane, demo, processes, report, stage, view
from loadtest.swarm import histogram, supervisor

CPU_LIMIT: Final = 1.25
LATENCY_LIMIT: Final = 1.25
LATENCY_LIMIT_SECONDS: Final = 0.005
SETTLE_SECONDS: Final = 1.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What is compared: alternating rounds of the same load."""

    agents: int = 1000
    updates_per_second: float = 20.0
    seconds: float = 15.0
    rounds: int = 5
    pods: int = 5000
    folder: Path = Path("report-bench")


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """One run's cost."""

    cpu_per_delivery: float
    hub_share: float
    p50: float
    p99: float
    memory_bytes: int


async def run(settings: BenchSettings) -> bool:
    """Runs, prints and reports; always true: the figures are for people, acceptance judges them."""
    report.prepare_folder(settings.folder)
    with view.View("typha bench") as screen:
        bare, service = await compare(settings, screen)
        made = report.Report(title="The service beside a bare send loop", command="make bench")
        made.facts = facts(settings, bare, service)
        made.data = {
            "bare": [dataclasses.asdict(one) for one in bare],
            "service": [dataclasses.asdict(one) for one in service],
        }
        made.write(settings.folder)
        for name, text in made.facts.items():
            screen.say(f"{name}: {text}")
    return True


async def compare(settings: BenchSettings, screen: view.View) -> tuple[list[Round], list[Round]]:
    """The rounds of the bare loop and of the service."""
    bare: list[Round] = []
    service: list[Round] = []
    for number in range(settings.rounds):
        bare.append(await _bare_round(settings))
        screen.say(f"round {number + 1}: bare loop {_text(bare[-1])}")
        service.append(await _service_round(settings, screen))
        screen.say(f"round {number + 1}: service   {_text(service[-1])}")
    return bare, service


def facts(settings: BenchSettings, bare: list[Round], service: list[Round]) -> dict[str, str]:
    """Medians and ratios, for people."""
    one, other = median(bare), median(service)
    return {
        "load": f"{settings.agents} agents, {settings.updates_per_second:g} updates/s, {settings.rounds} rounds",
        "bare loop": _text(one),
        "service": _text(other),
        "ratio of CPU": f"{other.cpu_per_delivery / one.cpu_per_delivery:.2f}",
        "difference of p99": f"{(other.p99 - one.p99) * 1e3:+.1f} ms",
    }


def check(bare: list[Round], service: list[Round], *, judged: bool) -> report.Check:
    """CPU at most 1.25 times the bare loop's, p99 at most 1.25 times its and 5 ms; medians of alternating runs."""
    one, other = median(bare), median(service)
    within = (
        other.cpu_per_delivery <= one.cpu_per_delivery * CPU_LIMIT
        and other.p99 <= one.p99 * LATENCY_LIMIT + LATENCY_LIMIT_SECONDS
    )
    detail = f"service {_text(other)}; bare loop {_text(one)}" + ("" if judged else " (not judged)")
    return report.Check("CPU and p99 beside the bare send loop", within or not judged, detail)


def median(rounds: list[Round]) -> Round:
    """The median of each figure."""
    return Round(
        cpu_per_delivery=statistics.median(one.cpu_per_delivery for one in rounds),
        hub_share=statistics.median(one.hub_share for one in rounds),
        p50=statistics.median(one.p50 for one in rounds),
        p99=statistics.median(one.p99 for one in rounds),
        memory_bytes=round(statistics.median(one.memory_bytes for one in rounds)),
    )


async def _bare_round(settings: BenchSettings) -> Round:
    port = controlplane.free_port()
    command = ["-m", "loadtest.bare", "--port", str(port), "--agents", str(settings.agents)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with supervisor.Swarm([(processes.HOST, port)], feed=processes.FEED, agents=settings.agents) as swarm:
            await _answer(process)
            await swarm.wait_in_sync(timeout_seconds=stage.IN_SYNC_TIMEOUT_SECONDS)
            assert process.stdin is not None
            process.stdin.write(f"{settings.updates_per_second} {settings.seconds}\n".encode())
            cost = await _answer(process)
            await asyncio.sleep(SETTLE_SECONDS)
            latency = swarm.take_latency()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    return _round(cost["cpu_seconds"], 0.0, int(cost["deliveries"]), latency, memory_bytes=0)


async def _service_round(settings: BenchSettings, screen: view.View) -> Round:
    arguments = ["--pods", str(settings.pods)]
    async with processes.Simulator(settings.folder, arguments=arguments) as simulator:
        plan = stage.Plan(
            folder=settings.folder,
            kubeconfig=simulator.kubeconfig,
            types=demo.SIMULATED_TYPES,
            agents=settings.agents,
        )

        async def churn() -> None:
            # Updates of pods alone: the same frames as the bare loop's.
            rate = {"rate_per_second": settings.updates_per_second, "create": 0, "delete": 0, "types": {"pods": 1}}
            await simulator.control("POST", "churn", rate)
            await asyncio.sleep(settings.seconds)
            await simulator.control("DELETE", "churn")

        async with stage.open_stage(plan, screen) as running:
            await running.in_sync()
            await running.sleep(SETTLE_SECONDS)
            window = await running.window(settings.seconds, churn)
    return _round(
        window.hub_cpu_seconds,
        window.workers_cpu_seconds,
        window.deliveries,
        window.latency,
        memory_bytes=window.memory_bytes,
    )


def _round(hub: float, workers: float, deliveries: int, latency: histogram.Histogram, *, memory_bytes: int) -> Round:
    total = hub + workers
    return Round(
        cpu_per_delivery=total / max(1, deliveries),
        hub_share=hub / total if total else 0.0,
        p50=latency.quantile(0.5) or 0.0,
        p99=latency.quantile(0.99) or 0.0,
        memory_bytes=memory_bytes,
    )


async def _answer(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise processes.ProcessError("the bare loop has ended")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _text(one: Round) -> str:
    return f"{one.cpu_per_delivery * 1e6:.2f} µs a delivery, p50 {one.p50 * 1e3:.1f} ms, p99 {one.p99 * 1e3:.1f} ms"
