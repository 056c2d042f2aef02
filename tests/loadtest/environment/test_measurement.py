"""Tests of loadtest.environment.measurement: when a measured span ends."""

import asyncio
import time

from loadtest.environment import measurement
from loadtest.swarm import control, supervisor


class ReportedSwarm:
    """A swarm of two processes whose reports come from the test."""

    def __init__(self) -> None:
        self.swarm = supervisor.Swarm([("127.0.0.1", 1)], supervisor.SwarmPlan(feed="workloads", agents=2, processes=2))

    async def report(self, number: int, updates: int, *, late_seconds: float = 0.0) -> None:
        """One process reports how many updates its agents have received; waiting tasks run."""
        stats = control.Stats(
            at_ns=time.time_ns() - int(late_seconds * 1e9),
            agents=1,
            connected=1,
            in_sync=1,
            connects=1,
            disconnects={},
            protocol_errors=[],
            behaving=control.Group(updates=updates),
            cpu_seconds=0.0,
        )
        process = self.swarm.processes[number]
        process.stats = stats
        self.swarm.received(stats, process.order.protocol)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_it_is_quiet_when_all_have_reported_twice_that_nothing_came() -> None:
    reported = ReportedSwarm()
    quiet = asyncio.create_task(measurement.until_quiet(reported.swarm))
    for updates in (5, 7, 7):
        for number in (0, 1):
            await asyncio.sleep(0)
            assert not quiet.done()
            await reported.report(number, updates)
    await asyncio.wait_for(quiet, 180)


async def test_a_process_that_is_too_busy_to_report_is_waited_for() -> None:
    reported = ReportedSwarm()
    await reported.report(1, 0)
    quiet = asyncio.create_task(measurement.until_quiet(reported.swarm))
    for _ in range(5):
        await reported.report(0, 5)
        await reported.report(1, 0, late_seconds=1)  # reported before the question, and received only now
    assert not quiet.done()
    for updates in (5, 5):
        await reported.report(0, 5)
        await reported.report(1, updates)
    await asyncio.wait_for(quiet, 180)
