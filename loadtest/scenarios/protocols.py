"""What a client of Typha's protocol costs beside a native one: alternating runs of the same load on the same feed.

Clients of Typha's protocol take snappy, native ones no compression: so both do nothing per client but one write of the
same bytes for all. A run is one service from start to end. A few clients follow it through the same changes first, and
what its processes hold then is the base that is subtracted from what they hold with all clients. The log and the
snapshots, which are shared, are left out of it.
"""

import asyncio
import dataclasses
import statistics
from pathlib import Path
from typing import Final

from loadtest.environment import processes, testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.swarm import control

FEW: Final = 10
FEED: Final = "felix"
SETTLE_SECONDS: Final = 1.5
SHARE_LIMIT: Final = 0.1
CPU_SLACK_SECONDS: Final = 0.5e-6
MEMORY_SLACK_BYTES: Final = 500.0
COMPRESSED: Final = {control.Protocol.NATIVE: False, control.Protocol.TYPHA: True}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolsSettings:
    """The load; updates are of pods alone."""

    agents: int = 2000
    updates_per_second: float = 50.0
    seconds: float = 15.0
    rounds: int = 5
    nodes: int = 500
    pods: int = 5000
    judged: bool = True
    folder: Path = Path("report-protocols")


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """One run's cost."""

    cpu_per_delivery: float
    memory_bytes_per_client: float
    """Of the service's processes (PSS), what is shared left out."""
    socket_bytes_per_client: float
    """Of the kernel, for both ends, while updates are sent: the median of what was seen once a second."""
    p50: float
    p99: float
    snapshot_bytes: float


async def run(settings: ProtocolsSettings) -> bool:
    """Runs, prints and reports; whether Typha's protocol costs no more than the native one."""
    report.prepare_folder(settings.folder)
    rounds: dict[control.Protocol, list[Round]] = {protocol: [] for protocol in control.Protocol}
    with dashboard.View("typha protocols") as screen:
        for number in range(settings.rounds):
            for protocol, done in rounds.items():
                done.append(await _round(settings, protocol, screen))
                screen.say(f"round {number + 1}: {protocol.value:<6} {text(done[-1])}")
        made = report.Report(title="Both protocols", command="python -m loadtest protocols")
        medians = {protocol: median(done) for protocol, done in rounds.items()}
        made.facts = {
            "load": f"{settings.agents} clients, {settings.updates_per_second:g} updates/s, {settings.rounds} rounds",
            "native, without zstd": text(medians[control.Protocol.NATIVE]),
            "Typha's, with snappy": text(medians[control.Protocol.TYPHA]),
        }
        made.checks = checks(medians[control.Protocol.NATIVE], medians[control.Protocol.TYPHA], judged=settings.judged)
        made.data = {protocol.value: [dataclasses.asdict(one) for one in done] for protocol, done in rounds.items()}
        made.write(settings.folder)
        for name, fact in made.facts.items():
            screen.say(f"{name}: {fact}")
        for check in made.checks:
            screen.say(check.line())
    return made.passed


def checks(native: Round, typha: Round, *, judged: bool) -> list[report.Check]:
    """At most 10 % more than the native protocol, or 0.5 us and 0.5 kB, whichever is more."""
    cpu, memory = typha.cpu_per_delivery, typha.memory_bytes_per_client
    cpu_limit = native.cpu_per_delivery + max(native.cpu_per_delivery * SHARE_LIMIT, CPU_SLACK_SECONDS)
    memory_limit = native.memory_bytes_per_client + max(
        native.memory_bytes_per_client * SHARE_LIMIT, MEMORY_SLACK_BYTES
    )
    note = "" if judged else " (not judged)"
    return [
        report.Check(
            "CPU per delivery of Typha's protocol",
            cpu <= cpu_limit or not judged,
            f"{cpu * 1e6:.2f} µs, native {native.cpu_per_delivery * 1e6:.2f} µs, limit {cpu_limit * 1e6:.2f} µs{note}",
        ),
        report.Check(
            "memory per client of Typha's protocol",
            memory <= memory_limit or not judged,
            f"{memory / 1e3:.2f} kB, native {native.memory_bytes_per_client / 1e3:.2f} kB, "
            f"limit {memory_limit / 1e3:.2f} kB{note}",
        ),
    ]


def median(rounds: list[Round]) -> Round:
    """The median of each figure."""
    names = [field.name for field in dataclasses.fields(Round)]
    return Round(*(statistics.median(getattr(one, name) for one in rounds) for name in names))


def text(one: Round) -> str:
    """A round for people."""
    return (
        f"{one.cpu_per_delivery * 1e6:.2f} µs a delivery, p50 {one.p50 * 1e3:.1f} ms, p99 {one.p99 * 1e3:.1f} ms, "
        f"{one.memory_bytes_per_client / 1e3:.2f} kB a client, kernel {one.socket_bytes_per_client / 1e3:.2f} kB a "
        f"client, snapshot {one.snapshot_bytes / 1e6:.2f} MB"
    )


async def _round(settings: ProtocolsSettings, protocol: control.Protocol, screen: dashboard.View) -> Round:
    arguments = ["--nodes", str(settings.nodes), "--pods", str(settings.pods), "--calico"]
    async with processes.Simulator(settings.folder, arguments=arguments) as simulator:
        few = min(FEW, settings.agents - 1)
        plan = testbed.Plan(
            folder=settings.folder,
            kubeconfig=simulator.kubeconfig,
            types=(),
            feed=FEED,
            agents=settings.agents,
            agents_at_first=few,
            protocols=(protocol,),
            compressed=COMPRESSED[protocol],
        )

        async def churn() -> None:
            rate = {"rate_per_second": settings.updates_per_second, "create": 0, "delete": 0, "types": {"pods": 1}}
            await simulator.control("POST", "churn", {**rate, "label_times": True})
            await asyncio.sleep(settings.seconds)
            await simulator.control("DELETE", "churn")

        async with testbed.open_stage(plan, screen) as running:
            await running.swarm.wait_in_sync(timeout_seconds=testbed.IN_SYNC_TIMEOUT_SECONDS, agents=few)
            await churn()
            await running.sleep(SETTLE_SECONDS)
            base = measure.memory(running.service.pids()).private_bytes
            base_sockets = measure.kernel_socket_bytes()
            await running.swarm.reconnect(ramp_per_second=plan.ramp_per_second)
            await running.in_sync()
            await running.sleep(SETTLE_SECONDS)
            samples = len(running.monitor.samples)
            window = await running.window(settings.seconds, churn)
            memory = measure.memory(running.service.pids()).private_bytes
            sockets = statistics.median(sample.kernel_socket_bytes for sample in running.monitor.samples[samples:])
            counters = await running.service.counters()
    more = settings.agents - few
    return Round(
        cpu_per_delivery=window.cpu_seconds / max(1, window.deliveries),
        memory_bytes_per_client=(memory - base) / more,
        socket_bytes_per_client=(sockets - base_sockets) / more,
        p50=window.latency.quantile(0.5) or 0.0,
        p99=window.latency.quantile(0.99) or 0.0,
        snapshot_bytes=counters.total("typha_snapshot_compressed_bytes"),
    )
