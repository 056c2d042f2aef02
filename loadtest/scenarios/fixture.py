"""The settings of all scenarios, and how a scenario begins and ends."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from loadtest.environment import processes, testbed
from loadtest.reporting import dashboard, report
from loadtest.swarm import control, supervisor

WARM_UP_SECONDS: Final = 3.0
FELIX: Final = "felix"
BOTH: Final = (control.Protocol.NATIVE, control.Protocol.TYPHA)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes of a scenario; not every scenario uses all of them."""

    agents: int = 1000
    public_agents: int = 10
    updates_per_second: float = 20.0
    seconds: float = 20.0
    rounds: int = 5
    nodes: int = 500
    replicas: int = 3
    """Of a fleet."""
    tiers: bool = False
    """One replica of a fleet is elected to watch the API server, and the others follow it."""
    pods: int = 5000
    attack_share: float = 1.0
    """Of the full size of each attack."""
    attacks: tuple[str, ...] = ()
    """Their names; empty for all."""
    protocols: tuple[control.Protocol, ...] = (control.Protocol.NATIVE,)
    """What the agents speak, in equal parts."""
    compressed: bool = True
    tls: bool = False
    """Mutual TLS between agents and service."""
    feed: str = processes.FEED
    """The raw feed of all simulated types, or one of Calico's."""
    pod_bytes: int = 0
    """Size of the pods; 0: 1.5 to 2 kB."""
    folder: Path = Path("report-load")
    judge_times: bool = True
    """Check latencies and times, or only show them (for small sizes and shared machines)."""

    def __post_init__(self) -> None:
        if control.Protocol.TYPHA in self.protocols and not self.is_calico:
            raise ValueError(f"feed {self.feed!r}: Typha's protocol has Calico's feeds alone")

    @property
    def is_calico(self) -> bool:
        """Whether Calico's feeds are served."""
        return self.feed != processes.FEED


@dataclasses.dataclass(frozen=True)
class Scene:
    """A simulated API server and a testbed on it."""

    settings: Settings
    simulator: processes.SimulatorProcess
    testbed: testbed.Testbed

    async def start_churn(self, rate_per_second: float = 0.0, **more: object) -> None:
        """Change the API server's objects from now on, and return when that has gone on for a while."""
        await self.simulator.start_churn(rate_per_second or self.settings.updates_per_second, **more)
        await self.testbed.sleep(min(WARM_UP_SECONDS, self.settings.seconds))

    async def finish(self, title: str, facts: Mapping[str, str], checks: list[report.Check]) -> report.Report:
        """Stop the changes, prove every agent's map, and make the report."""
        await self.simulator.stop_churn()
        return await self.testbed.finish(title, facts, checks)


@contextlib.asynccontextmanager
async def open_scene(
    settings: Settings,
    screen: dashboard.Dashboard,
    *,
    environment: Mapping[str, str] | None = None,
    ulimit: str = "",
    watch_list: str = "on",
    **changes: Any,
) -> AsyncIterator[Scene]:
    """Start a simulated API server, the service and the agents, and wait until the agents are in sync.

    `environment` and `ulimit` are for the service, `watch_list` is for the simulator; `changes` are members of the
    swarm's plan that differ from the settings.
    """
    agents = supervisor.SwarmPlan(
        feed=settings.feed,
        agents=settings.agents,
        public_agents=settings.public_agents,
        protocols=settings.protocols,
        compressed=settings.compressed,
    )
    agents = msgspec.structs.replace(agents, **changes)
    async with (
        processes.SimulatorProcess(
            settings.folder,
            nodes=settings.nodes,
            pods=settings.pods,
            pod_bytes=settings.pod_bytes,
            calico=settings.is_calico,
            watch_list=watch_list,
        ) as simulator,
        testbed.open_testbed(
            settings.folder,
            simulator.kubeconfig,
            agents,
            screen,
            tls=settings.tls,
            settings=environment,
            ulimit=ulimit,
            api_counters=simulator.counters,
        ) as opened,
    ):
        await opened.in_sync(agents=agents.agents_at_first)
        yield Scene(settings, simulator, opened)
