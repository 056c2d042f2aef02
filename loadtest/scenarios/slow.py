"""Agents that read slowly or not at all: the effect on other agents, on memory, and on themselves."""

import dataclasses
import time
from typing import Final

from loadtest.environment import processes, testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import assertions, fixture

STALLED_SHARE: Final = 0.1
FAT_POD_BYTES: Final = 3000
SLOW_BYTES_PER_SECOND: Final = 10_000
BUFFER_BYTES: Final = 32 * 1024
"""Receive buffer of the slow agents: a few seconds of changes, and enough to take the first snapshot in time."""
LOG_BUDGET_BYTES: Final = 64 * 1024 * 1024
MEMORY_FACTOR: Final = 1.2
CATCH_UP_TIMEOUT_SECONDS: Final = 120.0
CAUGHT_UP_SECONDS: Final = 1.0
LOOK_INTERVAL_SECONDS: Final = 0.5
LAG_CHURN_BYTES_PER_SECOND: Final = 11_000
LAG_SEEN_WITHIN_SECONDS: Final = 10.0
LAGGING_SECONDS: Final = 1.0
"""Lag from which the slowest client counts as lagging. A publish in flight makes a lag of milliseconds."""


async def stalled(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """A tenth of the agents stops reading, then reads again: no other agent is delayed, none is cut off."""
    return await _slow(settings, screen, bytes_per_second=0, what="do not read")


async def slow_readers(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """A tenth of the agents reads 10 kB/s, less than there is, and then as fast as it can."""
    return await _slow(settings, screen, bytes_per_second=SLOW_BYTES_PER_SECOND, what="read 10 kB/s")


@dataclasses.dataclass
class _Rounds:
    """Figures of each span with slow agents."""

    disturbance: assertions.Disturbance = dataclasses.field(default_factory=assertions.Disturbance)
    lag_bytes: list[float] = dataclasses.field(default_factory=list)
    """The most that the log held for one slow agent, beyond what its sockets had taken."""
    owed_bytes: list[float] = dataclasses.field(default_factory=list)
    """What each of the other agents received in the span."""
    kernel_bytes: list[float] = dataclasses.field(default_factory=list)
    """The most that the kernel held for one connection, both ends, at the end of the span."""
    catch_up_seconds: list[float] = dataclasses.field(default_factory=list)
    catching_up: list[float] = dataclasses.field(default_factory=list)
    """The others' p99 while the slow agents caught up."""


async def _slow(
    settings: fixture.Settings, screen: dashboard.Dashboard, *, bytes_per_second: int, what: str
) -> report.Report:
    count = max(1, round(settings.agents * STALLED_SHARE))
    fat = dataclasses.replace(settings, pod_bytes=settings.pod_bytes or FAT_POD_BYTES)
    async with fixture.open_scene(
        fat, screen, small_buffers=count, small_buffer_bytes=BUFFER_BYTES, background=True
    ) as scene:
        running = scene.testbed
        idle_bytes = measure.memory(running.service.pids()).total_bytes
        await scene.start_churn(types=processes.ONLY_PODS)
        first = (await running.service.counters()).total("typha_disconnects_total")
        rounds = _Rounds()
        for number in range(settings.rounds):
            screen.say(f"round {number + 1} of {settings.rounds}: without, then with {count} agents that {what}")
            await _round(running, rounds, settings, count=count, bytes_per_second=bytes_per_second)
        cut = (await running.service.counters()).total("typha_disconnects_total") - first
        checks = _checks(rounds, settings, f"{count} agents that {what}", idle_bytes=idle_bytes)
        checks.append(report.Check("no slow agent is cut off", cut == 0, f"{cut:.0f} connections were closed"))
        facts = {
            "p99 of the others, without": assertions.milliseconds(rounds.disturbance.without),
            "p99 of the others, with them": assertions.milliseconds(rounds.disturbance.with_it),
            "of that, while they caught up": assertions.milliseconds(rounds.catching_up),
            "caught up after": ", ".join(f"{one:.1f}" for one in rounds.catch_up_seconds) + " s",
        }
        return await scene.finish(f"Agents that {what}", facts, checks)


async def _round(
    running: testbed.Testbed, rounds: _Rounds, settings: fixture.Settings, *, count: int, bytes_per_second: int
) -> None:
    """A span without slow agents, then one with them, until they have caught up."""
    without = await running.window(settings.seconds)
    swarm = running.swarm
    bytes_before = swarm.totals().behaving_bytes
    lags = [0.0]
    others = max(1, settings.agents - settings.public_agents - count - len(settings.protocols))

    async def slow_down_and_catch_up() -> None:
        end = time.monotonic() + settings.seconds
        while time.monotonic() < end:
            await running.sleep(LOOK_INTERVAL_SECONDS)
            lags.append((await running.service.counters()).total("typha_client_lag_bytes_max"))
        rounds.kernel_bytes.append(measure.queued_bytes(running.service.port)[0])
        rounds.owed_bytes.append((swarm.totals().behaving_bytes - bytes_before) / others)
        latency = swarm.latency.copy()
        rounds.catch_up_seconds.append(
            await swarm.wait_for(
                lambda now: now.in_sync >= now.agents and now.impaired_lag_seconds < CAUGHT_UP_SECONDS,
                timeout_seconds=CATCH_UP_TIMEOUT_SECONDS,
            )
        )
        rounds.catching_up.append(swarm.latency.since(latency).quantile(0.99) or 0.0)

    await swarm.impair(count, bytes_per_second=bytes_per_second, seconds=settings.seconds)
    rounds.disturbance.add(without, await running.window(settings.seconds, slow_down_and_catch_up))
    rounds.lag_bytes.append(max(lags))


def _checks(rounds: _Rounds, settings: fixture.Settings, who: str, *, idle_bytes: int) -> list[report.Check]:
    limit = (idle_bytes + LOG_BUDGET_BYTES) * MEMORY_FACTOR
    peak = rounds.disturbance.peak_bytes
    lag, owed, kernel = min(rounds.lag_bytes), min(rounds.owed_bytes), max(rounds.kernel_bytes)
    return [
        rounds.disturbance.check(f"{who} do not delay the others", judged=settings.judge_times),
        report.Check(
            "memory stays within what it was when idle, the log's budget and 20 %",
            peak <= limit,
            f"{peak / 1e6:.1f} MB at its peak, {idle_bytes / 1e6:.1f} MB when idle, limit {limit / 1e6:.1f} MB",
        ),
        report.Check(
            "more is owed to a slow agent than the kernel takes for it",
            (lag > 0 and owed > kernel) or not settings.judge_times,
            f"{owed / 1e3:.0f} kB or more were sent to each of the others in a span, the kernel held at most "
            f"{kernel / 1e3:.0f} kB for a slow one, and {lag / 1e3:.0f} kB or more of the slowest one's were still in "
            "the log",
        ),
    ]


async def lag(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """One agent stops reading under 11 kB/s of changes: within 10 s the service reports that it lags."""
    async with fixture.open_scene(settings, screen, small_buffers=1) as scene:
        running = scene.testbed
        rate = await _rate(scene)
        await scene.start_churn(rate, types=processes.ONLY_PODS)
        await running.swarm.impair(1, bytes_per_second=0, seconds=4 * LAG_SEEN_WITHIN_SECONDS)

        async def lags() -> bool:
            counters = await running.service.counters()
            return counters.total("typha_client_lag_seconds_max") >= LAGGING_SECONDS

        after = await running.wait_until(
            lags, timeout_seconds=3 * LAG_SEEN_WITHIN_SECONDS, interval_seconds=LOOK_INTERVAL_SECONDS
        )
        await running.swarm.impair(1, bytes_per_second=0, seconds=0.0)
        found = "not seen" if after is None else f"seen after {after:.1f} s"
        check = report.Check(
            f"an agent that does not read is seen as lagging within {LAG_SEEN_WITHIN_SECONDS:.0f} s",
            (after is not None and after <= LAG_SEEN_WITHIN_SECONDS) or not settings.judge_times,
            f"{found}, with {rate:.1f} updates/s, {LAG_CHURN_BYTES_PER_SECOND / 1e3:.0f} kB/s for each agent",
        )
        return await scene.finish("An agent that lags", {"updates": f"{rate:.1f}/s"}, [check])


async def _rate(scene: fixture.Scene) -> float:
    """The updates per second that make 11 kB/s for each agent, from the size of recent updates."""
    swarm = scene.testbed.swarm
    before = swarm.totals()
    await scene.start_churn(types=processes.ONLY_PODS)
    await scene.simulator.stop_churn()
    await scene.testbed.sleep(1.0)
    after = swarm.totals()
    deliveries = max(1, after.behaving_updates - before.behaving_updates)
    return LAG_CHURN_BYTES_PER_SECOND / max(1.0, (after.behaving_bytes - before.behaving_bytes) / deliveries)
