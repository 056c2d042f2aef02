"""The service, a swarm of agents and a monitor on an API server: the testbed of every scenario."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cache.feeds import raw
from loadtest.environment import certificates, kubeconfig, measurement, processes
from loadtest.reporting import dashboard, monitor, report
from loadtest.swarm import supervisor
from loadtest.verification import convergence, expected_state

IN_SYNC_TIMEOUT_SECONDS: Final = 600.0
"""1,000 agents of 100,000 pods take 20 GB over TLS: minutes on two CPUs."""
QUIET_TIMEOUT_SECONDS: Final = 60.0
REPORTED_SECONDS: Final = 0.6
"""The swarm's processes report every half second: after this time, what has happened is known."""


@dataclasses.dataclass(frozen=True)
class Testbed:
    """A running testbed."""

    agents: supervisor.SwarmPlan
    types: Sequence[str]
    """Those of the raw feed; none if the service serves Calico's feeds."""
    screen: dashboard.Dashboard
    service: processes.ServiceProcess
    swarm: supervisor.Swarm
    monitor: monitor.Monitor
    client: expected_state.ApiClient
    monitoring: asyncio.Task[None]

    @property
    def specs(self) -> Sequence[raw.ResourceSpec]:
        """What is listed for the raw feed."""
        return expected_state.specs(self.types)

    async def sleep(self, seconds: float) -> None:
        """Sleep. Raises the monitor's error if the monitor fails."""
        done, _ = await asyncio.wait([self.monitoring], timeout=seconds)
        if done:
            self.monitoring.result()

    async def wait_until(
        self, condition: Callable[[], Awaitable[bool]], *, timeout_seconds: float, interval_seconds: float
    ) -> float | None:
        """Wait until the condition holds; returns how long that took, or None at the timeout."""
        begin = time.monotonic()
        while not await condition():
            if time.monotonic() - begin > timeout_seconds:
                return None
            await self.sleep(interval_seconds)
        return time.monotonic() - begin

    async def in_sync(self, *, agents: int | None = None) -> float:
        """Wait until this many agents (default: all) are in sync; returns how long that took."""
        return await self.swarm.wait_in_sync(timeout_seconds=IN_SYNC_TIMEOUT_SECONDS, agents=agents)

    async def window(self, seconds: float, work: Callable[[], Awaitable[None]] | None = None) -> measurement.Window:
        """Measure for this time, or longer if `work` takes longer."""
        begin = time.monotonic()

        async def no_work() -> None:
            return

        async def settle() -> None:
            await self.sleep(max(0.0, begin + seconds - time.monotonic()))
            # The last deliveries are in the next report of the swarm, and in the next sample.
            await self.sleep(monitor.INTERVAL_SECONDS + REPORTED_SECONDS)

        return await measurement.observe(self.service, self.swarm, work or no_work, settle=settle)

    async def finish(
        self,
        title: str,
        facts: Mapping[str, str],
        checks: Sequence[report.Check],
        *,
        command: str = "python -m loadtest run",
        deletions_asked: Mapping[tuple[str, str], int] | None = None,
    ) -> report.Report:
        """Prove every agent's map and make the report. Nothing may write any more."""
        verdict = await convergence.when_quiet(
            self.swarm, self._expected, timeout_seconds=QUIET_TIMEOUT_SECONDS, deletions_asked=deletions_asked
        )
        return self.make_report(verdict, title, facts, checks, command=command)

    def make_report(
        self,
        verdict: convergence.Verdict,
        title: str,
        facts: Mapping[str, str],
        checks: Sequence[report.Check],
        *,
        command: str,
    ) -> report.Report:
        """The report of a run that ended with this verdict."""
        totals = self.swarm.totals()
        found = dataclasses.asdict(verdict)
        found["digest"] = f"{verdict.digest:016x}"  # many JSON readers lose digits of a 64-bit number
        proved_how = (
            f"{verdict.agents - verdict.public_agents} raw ones (each checks its own frame sequence and keeps its own "
            "digest; those of one process decode each distinct frame once) and "
            f"{verdict.public_agents} that decode everything through the public client"
        )
        return report.Report(
            title=title,
            command=command,
            samples=self.monitor.samples,
            checks=[*checks, *proof_checks(verdict, totals)],
            facts={"agents": proved_how, **facts},
            data={
                "verdict": found,
                "swarm": dataclasses.asdict(totals),
                "start_seconds": self.service.start_seconds,
                "start_cpu_seconds": self.service.start_cpu_seconds,
            },
        )

    async def _expected(self) -> expected_state.ExpectedState:
        if self.types:
            return await self.client.read_state(self.specs)
        return await self.client.read_calico_state(self.agents.feed)


@contextlib.asynccontextmanager
async def open_testbed(
    folder: Path,
    api_server: Path,
    agents: supervisor.SwarmPlan,
    screen: dashboard.Dashboard,
    *,
    types: Sequence[str] = processes.SIMULATED_TYPES,
    tls: bool = False,
    settings: Mapping[str, str] | None = None,
    ulimit: str = "",
    api_counters: monitor.ApiCounters | None = None,
) -> AsyncIterator[Testbed]:
    """Start service, swarm and monitor, and end them. The agents connect at once; nothing waits for them here.

    `api_server` is a kubeconfig file. The agents' feed is the raw one of `types`, or one of Calico's, which does not
    use `types`. With `tls` they connect over mutual TLS, with certificates made for the run. `settings` are environment
    variables of the service; `ulimit` is what the shell's ulimit gets before.
    """
    types = types if agents.feed == processes.FEED else ()
    made = certificates.make(folder, host=processes.HOST) if tls else None
    environment = {**(made.environment if made else {}), **(settings or {})}
    agents = msgspec.structs.replace(agents, tls=made.agents if made else None)
    async with (
        expected_state.ApiClient(await kubeconfig.load(api_server)) as client,
        processes.ServiceProcess(
            folder, kubeconfig=api_server, types=types, settings=environment, ulimit=ulimit
        ) as service,
        supervisor.Swarm([service.address], agents) as swarm,
    ):
        watcher = monitor.Monitor(swarm, service, api_counters=api_counters, on_sample=screen.show)
        monitoring = asyncio.create_task(watcher.run(), name="monitor")
        try:
            yield Testbed(agents, types, screen, service, swarm, watcher, client, monitoring)
        finally:
            monitoring.cancel()
            await asyncio.wait([monitoring])


def proof_checks(verdict: convergence.Verdict, totals: supervisor.Totals) -> list[report.Check]:
    """The checks at the end of every run."""
    return [
        report.Check(
            "every agent holds the API server's state",
            verdict.converged == verdict.agents,
            "; ".join([verdict.line(), *verdict.differing]),
        ),
        report.Check(
            "no agent saw the deletion of a live object",
            not verdict.phantom_deletions and not verdict.deletions_lost,
            "; ".join([f"{verdict.deletions_seen} objects were seen deleted", *verdict.phantom_deletions[:5]]),
        ),
        report.Check(
            "no agent saw the protocol broken",
            not totals.protocol_errors,
            "; ".join(totals.protocol_errors[:5]) or f"{totals.frames:,} frames checked",
        ),
    ]
