"""Agents that take the pods of their node and all Services, beside the same agents with the whole feed."""

import asyncio
import contextlib
import dataclasses
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from loadtest.environment import child, kubeconfig, processes
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fixture
from loadtest.swarm import readers
from loadtest.verification import expected_state
from protocol import digest
from protocol.subscriptions import Selector, Subscription, node_of

OWN_NODE: Final = Subscription(kinds=("core/v1/pods", "core/v1/services"), own_node=True)
VARIANTS: Final = {"whole feed": None, "own node": OWN_NODE}
WAIT_SECONDS: Final = 600.0
SETTLE_SECONDS: Final = 3.0
IDLE_SECONDS: Final = 12.0
"""More than a ping interval."""
_MAX_LINE_BYTES: Final = 16 * 1024 * 1024


class ReadersProcess(child.Child):
    """`loadtest.swarm.readers` as a process."""

    def __init__(self, settings: fixture.Settings, plan: readers.Plan) -> None:
        super().__init__("readers", settings.folder / "readers.log")
        self._plan = plan
        self.newest: readers.Report | None = None

    async def start(self) -> None:
        """Start it, with its plan."""
        command = [sys.executable, "-m", "loadtest.swarm.readers"]
        pipe = asyncio.subprocess.PIPE
        await self._spawn(command, stdin=pipe, stdout=pipe, limit=_MAX_LINE_BYTES)
        await self.write(msgspec.json.encode(self._plan) + b"\n")

    async def next(self) -> readers.Report:
        """The next report. Raises ProcessError."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            self.check()
            raise child.ProcessError("the readers have ended")
        self.newest = msgspec.json.decode(line, type=readers.Report)
        return self.newest

    async def until(self, condition: Callable[[readers.Report], bool]) -> readers.Report:
        """The first report for which the condition holds. Raises ProcessError, TimeoutError."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition(found := await self.next()):
                pass
            return found

    async def for_seconds(self, seconds: float) -> readers.Report:
        """The last report after this time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        return await self.until(lambda _: loop.time() >= deadline)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a variant cost."""

    updates: int
    """Changes of the feed in the measured span."""
    seconds: float
    hub_cpu_seconds: float
    worker_cpu_seconds: float
    idle_cpu_share: float
    """CPU seconds a second of the service, before the changes begin: pings, and what the API server says."""
    bytes: int
    """To all agents, in the span."""
    hub_bytes: int
    """Memory of the hub without shared files (PSS)."""
    worker_bytes: int
    shared_bytes: int
    """Logs and snapshots."""
    snapshot_median_seconds: float
    snapshot_worst_seconds: float
    storm_cpu_seconds: float
    """Of the service, while all agents connected again."""
    storm_bytes: int

    def facts(self, name: str, agents: int) -> dict[str, str]:
        """Lines for a report."""
        cpu = self.hub_cpu_seconds + self.worker_cpu_seconds
        net = (cpu - self.idle_cpu_share * self.seconds) / max(1, self.updates) * 1e3
        each = [part / max(1, self.updates) * 1e3 for part in (cpu, self.hub_cpu_seconds, self.worker_cpu_seconds)]
        return {
            f"{name}: CPU per update": f"{each[0]:.3f} ms (hub {each[1]:.3f}, workers {each[2]:.3f}), "
            f"{net:.3f} ms without that of the idle service",
            f"{name}: CPU while idle": f"{self.idle_cpu_share * 1e3:.1f} ms a second",
            f"{name}: bytes per update, to all agents": f"{self.bytes / max(1, self.updates):,.0f}",
            f"{name}: memory": f"hub {self.hub_bytes / 1e6:.1f}, workers {self.worker_bytes / 1e6:.1f}, "
            f"logs and snapshots {self.shared_bytes / 1e6:.1f} MB",
            f"{name}: connect to in sync, all at once": f"{self.snapshot_median_seconds:.2f} s median, "
            f"{self.snapshot_worst_seconds:.2f} s worst",
            f"{name}: a newcomer": f"{self.storm_bytes / agents / 1e3:.1f} kB, "
            f"{self.storm_cpu_seconds / agents * 1e3:.3f} ms of CPU",
        }


async def own_node(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """CPU, bytes and memory of agents with their node's objects, and with the whole feed."""
    made = report.Report(title="Own node beside the whole feed", command="")
    costs: dict[str, Cost] = {}
    for name, subscription in VARIANTS.items():
        screen.say(f"{name}: {settings.agents} agents")
        async with _served(settings) as (simulator, service):
            cost, checks = await _measure(settings, simulator, service, subscription)
        costs[name] = cost
        made.facts |= cost.facts(name, settings.agents)
        made.checks += [dataclasses.replace(check, name=f"{name}: {check.name}") for check in checks]
    made.facts["load"] = (
        f"{settings.agents} agents on {settings.nodes} nodes, {settings.pods} pods, "
        f"{settings.updates_per_second:g} changes/s for {settings.seconds:g} s"
    )
    made.data = {name: dataclasses.asdict(cost) for name, cost in costs.items()}
    return made


@contextlib.asynccontextmanager
async def _served(
    settings: fixture.Settings,
) -> AsyncIterator[tuple[processes.SimulatorProcess, processes.ServiceProcess]]:
    async with processes.SimulatorProcess(settings.folder, nodes=settings.nodes, pods=settings.pods) as simulator:
        kubeconfig_file, types = simulator.kubeconfig, processes.SIMULATED_TYPES
        async with processes.ServiceProcess(settings.folder, kubeconfig=kubeconfig_file, types=types) as service:
            yield simulator, service


async def _measure(
    settings: fixture.Settings,
    simulator: processes.SimulatorProcess,
    service: processes.ServiceProcess,
    subscription: Subscription | None,
) -> tuple[Cost, list[report.Check]]:
    async with expected_state.ApiClient(await kubeconfig.load(simulator.kubeconfig)) as client:
        nodes = [key.rpartition("/")[2] for key in await client.read_values(_SPECS) if key.startswith("/core/v1/nodes")]
        plan = readers.Plan(
            address=service.address,
            feed=processes.FEED,
            agents=settings.agents,
            nodes=nodes,
            subscription=subscription,
            compressed=settings.compressed,
            proved_every=max(1, settings.agents // 50),
        )
        async with ReadersProcess(settings, plan) as swarm:
            await swarm.until(lambda now: now.in_sync == settings.agents)
            await swarm.for_seconds(SETTLE_SECONDS)
            idle = sum(service.cpu())
            begun = time.monotonic()
            await swarm.for_seconds(IDLE_SECONDS)
            idle = (sum(service.cpu()) - idle) / (time.monotonic() - begun)
            await simulator.start_churn(settings.updates_per_second)
            before = await swarm.for_seconds(SETTLE_SECONDS)
            updates, cpu, begun = await _updates(service), service.cpu(), time.monotonic()
            after = await swarm.for_seconds(settings.seconds)
            updates, cpu_after = await _updates(service) - updates, service.cpu()
            seconds = time.monotonic() - begun
            await simulator.stop_churn()
            hub, *workers = (measure.memory([pid]) for pid in service.pids())
            shared = measure.memory(service.pids()).memfd_bytes
            await swarm.for_seconds(SETTLE_SECONDS)
            storm_cpu, storm_before = sum(service.cpu()), await swarm.next()
            await swarm.write(b"again\n")
            storm = await swarm.until(lambda now: now.rounds > 1 and now.in_sync == settings.agents)
            storm_cpu = sum(service.cpu()) - storm_cpu
            proved = await swarm.for_seconds(SETTLE_SECONDS)
            checks = _checks(await client.read_values(_SPECS), subscription, proved, settings.agents)
    cost = Cost(
        updates=int(updates),
        seconds=seconds,
        idle_cpu_share=idle,
        hub_cpu_seconds=cpu_after.hub - cpu.hub,
        worker_cpu_seconds=cpu_after.workers - cpu.workers,
        bytes=after.bytes - before.bytes,
        hub_bytes=hub.private_bytes,
        worker_bytes=sum(one.private_bytes for one in workers),
        shared_bytes=shared,
        snapshot_median_seconds=storm.in_sync_seconds[0],
        snapshot_worst_seconds=storm.in_sync_seconds[1],
        storm_cpu_seconds=storm_cpu,
        storm_bytes=storm.bytes - storm_before.bytes,
    )
    return cost, checks


_SPECS: Final = expected_state.specs(processes.SIMULATED_TYPES)


async def _updates(service: processes.ServiceProcess) -> float:
    counters = await service.counters()
    return counters.total("typha_updates_total")


def _checks(
    content: dict[str, bytes], subscription: Subscription | None, proved: readers.Report, agents: int
) -> list[report.Check]:
    wrong = [one for one in proved.proofs if one.digest != _expected(content, subscription, one.node)]
    wanted = subscription is not None
    return [
        report.Check(
            "the agents that keep their map have the right one",
            not wrong and bool(proved.proofs),
            f"{len(proved.proofs) - len(wrong)} of {len(proved.proofs)}, {proved.proofs[0].keys} keys in the first",
        ),
        report.Check(
            "the subscription is in force",
            all(one.in_force is wanted for one in proved.proofs),
            str(subscription.label if subscription is not None else "none"),
        ),
        report.Check(
            "no connection was lost",
            not proved.lost and proved.in_sync == agents,
            f"{proved.lost} lost, {proved.in_sync} of {agents} in sync",
        ),
    ]


def _expected(content: dict[str, bytes], subscription: Subscription | None, node: str) -> int:
    if subscription is None:
        return digest.state_digest(content.items())
    selects = Selector(subscription).selects
    found = {key: value for key, value in content.items() if selects(key) and node_of(key, value) in (None, node)}
    return digest.state_digest(found.items())
