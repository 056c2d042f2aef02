"""What all scenarios take, and how they begin and end."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from loadtest import demo
from loadtest.environment import processes, testbed
from loadtest.reporting import dashboard, report
from loadtest.swarm import control

CHURN_OFF_SECONDS: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes of a scenario; not every scenario uses all of them."""

    agents: int = 1000
    public_agents: int = 10
    updates_per_second: float = 20.0
    seconds: float = 20.0
    rounds: int = 5
    nodes: int = 500
    pods: int = 5000
    silent_connections: int = 2000
    protocols: tuple[control.Protocol, ...] = (control.Protocol.NATIVE,)
    """What the agents speak, in equal parts."""
    compressed: bool = True
    tls: bool = False
    """Mutual TLS between agents and service."""
    feed: str = processes.FEED
    """The raw feed of everything that is simulated, or one of Calico's."""
    pod_bytes: int = 0
    """Size of the pods; 0: 1.5 to 2 kB."""
    folder: Path = Path("report-load")
    judge_times: bool = True
    """Whether latencies and times are checked, or only shown (a tenth of the size, on a shared machine)."""

    def __post_init__(self) -> None:
        if control.Protocol.TYPHA in self.protocols and not self.is_calico:
            raise ValueError(f"feed {self.feed!r}: Typha's protocol has Calico's feeds alone")

    @property
    def is_calico(self) -> bool:
        """Whether Calico's feeds are served."""
        return self.feed != processes.FEED


@dataclasses.dataclass(frozen=True)
class Scene:
    """A simulated API server and a stage on it."""

    settings: Settings
    screen: dashboard.View
    simulator: processes.Simulator
    running: testbed.Stage

    async def start_churn(self, **more: object) -> None:
        """Lets the API server's objects change from now on."""
        body = {
            "rate_per_second": self.settings.updates_per_second,
            "label_times": self.settings.is_calico,
            "pod_bytes": self.settings.pod_bytes,
            **more,
        }
        await self.simulator.control("POST", "churn", body)

    async def stop_churn(self) -> None:
        """Ends the changes."""
        await self.simulator.control("DELETE", "churn")

    async def finish(self, title: str, facts: Mapping[str, str], checks: list[report.Check]) -> report.Report:
        """Ends the changes, proves every agent's map, and gives the report."""
        await self.stop_churn()
        verdict = await self.running.prove()
        totals = self.running.swarm.totals()
        made = report.Report(title=title, command="python -m loadtest run", samples=self.running.monitor.samples)
        made.checks = [*checks, *testbed.checks(verdict, totals)]
        made.facts = {"agents": testbed.proved_how(verdict), **facts}
        made.data = testbed.data_of(verdict, totals)
        return made


@contextlib.asynccontextmanager
async def open_scene(
    settings: Settings,
    screen: dashboard.View,
    *,
    agents: int | None = None,
    small_buffers: int = 0,
    small_buffer_bytes: int = 1,
    apart: bool = False,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Scene]:
    """Starts a simulated API server, the service and the agents, and waits until those are in sync."""
    arguments = ["--nodes", str(settings.nodes), "--pods", str(settings.pods), "--pod-bytes", str(settings.pod_bytes)]
    arguments += ["--calico"] if settings.is_calico else []
    async with processes.Simulator(settings.folder, arguments=arguments) as simulator:
        plan = testbed.Plan(
            folder=settings.folder,
            kubeconfig=simulator.kubeconfig,
            types=demo.SIMULATED_TYPES,
            agents=settings.agents if agents is None else agents,
            feed=settings.feed,
            protocols=settings.protocols,
            compressed=settings.compressed,
            tls=settings.tls,
            public_agents=settings.public_agents,
            small_buffers=small_buffers,
            small_buffer_bytes=small_buffer_bytes,
            apart=apart,
            settings=environment or {},
        )
        async with testbed.open_stage(plan, screen, api_load=testbed.simulator_load(simulator)) as running:
            await running.in_sync()
            yield Scene(settings, screen, simulator, running)
