"""The cost of a client of Typha's protocol beside a native one: alternating runs of the same load on the same feed.

Clients of Typha's protocol use snappy, native ones no compression. So either way the service's only work per client is
one write of the bytes that all clients share. In each run a few clients follow the changes first. The memory of the
service's processes at that point is subtracted from their memory with all clients. Shared memory, which is the log and
the snapshots, is left out.
"""

import dataclasses
import statistics
from typing import Final

from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fixture
from loadtest.swarm import control

FEW: Final = 10
SETTLE_SECONDS: Final = 1.5
SHARE_LIMIT: Final = 0.1
CPU_SLACK_SECONDS: Final = 0.5e-6
MEMORY_SLACK_BYTES: Final = 500.0
COMPRESSED: Final = {control.Protocol.NATIVE: False, control.Protocol.TYPHA: True}


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """The cost in one run."""

    cpu_per_delivery: float
    memory_bytes_per_client: float
    """Of the service's processes (PSS), without shared memory."""
    socket_bytes_per_client: float
    """Of the kernel, for both ends, during the updates: the median of one sample a second."""
    p50: float
    p99: float
    snapshot_bytes: float


async def run(settings: fixture.Settings) -> bool:
    """Run and publish a report; returns whether Typha's protocol costs no more than the native one."""
    report.prepare_folder(settings.folder)
    rounds: dict[control.Protocol, list[Round]] = {protocol: [] for protocol in control.Protocol}
    with dashboard.Dashboard("typha protocols") as screen:
        for number in range(settings.rounds):
            for protocol, done in rounds.items():
                done.append(await _round(settings, protocol, screen))
                screen.say(f"round {number + 1}: {protocol.value:<6} {text(done[-1])}")
        native, typha = (median(rounds[protocol]) for protocol in (control.Protocol.NATIVE, control.Protocol.TYPHA))
        made = report.Report(title="Both protocols", command="python -m loadtest protocols")
        made.facts = {
            "load": f"{settings.agents} clients, {settings.updates_per_second:g} updates/s, {settings.rounds} rounds",
            "native, without zstd": text(native),
            "Typha's, with snappy": text(typha),
        }
        made.checks = checks(native, typha, judged=settings.judge_times)
        made.data = {protocol.value: [dataclasses.asdict(one) for one in done] for protocol, done in rounds.items()}
        return made.publish(settings.folder, screen)


def checks(native: Round, typha: Round, *, judged: bool) -> list[report.Check]:
    """The limit is 10 % more than the native protocol, or 0.5 us and 0.5 kB more if that is more."""
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
    """A round in one line."""
    return (
        f"{one.cpu_per_delivery * 1e6:.2f} µs a delivery, p50 {one.p50 * 1e3:.1f} ms, p99 {one.p99 * 1e3:.1f} ms, "
        f"{one.memory_bytes_per_client / 1e3:.2f} kB a client, kernel {one.socket_bytes_per_client / 1e3:.2f} kB a "
        f"client, snapshot {one.snapshot_bytes / 1e6:.2f} MB"
    )


async def _round(settings: fixture.Settings, protocol: control.Protocol, screen: dashboard.Dashboard) -> Round:
    few = min(FEW, settings.agents - 1)
    spoken = dataclasses.replace(
        settings, protocols=(protocol,), compressed=COMPRESSED[protocol], feed=fixture.FELIX, public_agents=0
    )
    async with fixture.open_scene(spoken, screen, agents_at_first=few) as scene:
        running = scene.testbed

        async def churn() -> None:
            await scene.simulator.update_pods(settings.updates_per_second, settings.seconds)

        await churn()
        await running.sleep(SETTLE_SECONDS)
        base = measure.memory(running.service.pids()).private_bytes
        base_sockets = measure.kernel_socket_bytes()
        await running.swarm.reconnect(ramp_per_second=running.agents.ramp_per_second)
        await running.in_sync()
        await running.sleep(SETTLE_SECONDS)
        samples = len(running.monitor.samples)
        window = await running.window(settings.seconds, churn)
        memory = measure.memory(running.service.pids()).private_bytes
        sockets = statistics.median(sample.kernel_socket_bytes for sample in running.monitor.samples[samples:])
        counters = await running.service.counters()
    more = settings.agents - few
    return Round(
        cpu_per_delivery=window.cpu_per_delivery,
        memory_bytes_per_client=(memory - base) / more,
        socket_bytes_per_client=(sockets - base_sockets) / more,
        p50=window.latency_seconds(0.5),
        p99=window.latency_seconds(0.99),
        snapshot_bytes=counters.total("typha_snapshot_compressed_bytes"),
    )
