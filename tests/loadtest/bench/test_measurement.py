"""When a span of time that is measured is over."""

import asyncio
import time

from loadtest.bench import measurement
from loadtest.swarm import control, supervisor


class Bench:
    """A swarm of two processes that report what the test says."""

    def __init__(self) -> None:
        self.swarm = supervisor.Swarm([("127.0.0.1", 1)], feed="workloads", agents=2, processes=2)

    async def report(self, number: int, updates: int, *, late_seconds: float = 0.0) -> None:
        """One process says how many updates its agents have got, and whoever waits for that looks."""
        stats = control.Stats(
            at_ns=time.time_ns() - int(late_seconds * 1e9),
            agents=1,
            connected=1,
            in_sync=1,
            connects=1,
            disconnects={},
            protocol_errors=[],
            behaving=control.GroupStats(updates=updates),
            cpu_seconds=0.0,
        )
        process = self.swarm.processes[number]
        process.stats = stats
        self.swarm.received(stats, process.start.protocol)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_it_is_quiet_when_all_have_said_twice_that_nothing_came() -> None:
    bench = Bench()
    quiet = asyncio.create_task(measurement.until_quiet(bench.swarm))
    for updates in (5, 7, 7):
        for number in (0, 1):
            await asyncio.sleep(0)
            assert not quiet.done()
            await bench.report(number, updates)
    await asyncio.wait_for(quiet, 60)


async def test_a_process_that_is_too_busy_to_report_is_waited_for() -> None:
    bench = Bench()
    await bench.report(1, 0)
    quiet = asyncio.create_task(measurement.until_quiet(bench.swarm))
    for _ in range(5):
        await bench.report(0, 5)
        await bench.report(1, 0, late_seconds=1)  # said before it was asked, and heard only now
    assert not quiet.done()
    for updates in (5, 5):
        await bench.report(0, 5)
        await bench.report(1, updates)
    await asyncio.wait_for(quiet, 60)
