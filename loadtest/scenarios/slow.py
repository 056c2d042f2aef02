"""Agents that read slowly or not at all: what it does to the others, to memory, and to themselves."""

import asyncio
import dataclasses
import statistics
import time
from typing import Final

from loadtest.environment import testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fanout, fixture
from loadtest.swarm import histogram, supervisor

STALLED_SHARE: Final = 0.1
FAT_POD_BYTES: Final = 3000
SLOW_BYTES_PER_SECOND: Final = 10_000
BUFFER_BYTES: Final = 32 * 1024
"""Of the slow agents: a few seconds of changes, and enough to take the first snapshot in time."""
LOG_BUDGET_BYTES: Final = 64 * 1024 * 1024
MEMORY_FACTOR: Final = 1.2
CATCH_UP_TIMEOUT_SECONDS: Final = 120.0
CAUGHT_UP_SECONDS: Final = 1.0
LOOK_INTERVAL_SECONDS: Final = 0.5
LAG_CHURN_BYTES_PER_SECOND: Final = 11_000
LAG_SEEN_WITHIN_SECONDS: Final = 10.0
LAGGING_SECONDS: Final = 1.0
"""So long the slowest client is behind where one is called lagging; a publish in flight is behind for milliseconds."""

ONLY_PODS: Final = {"types": {"pods": 1.0}}


async def stalled(settings: fixture.Settings, screen: dashboard.View) -> report.Report:
    """A tenth of the agents stops reading, and reads again: nobody else notices, none is cut, all converge."""
    return await _slow(settings, screen, bytes_per_second=0, what="do not read")


async def slow_readers(settings: fixture.Settings, screen: dashboard.View) -> report.Report:
    """A tenth of the agents reads 10 kB/s, less than there is, and then as fast as it can."""
    return await _slow(settings, screen, bytes_per_second=SLOW_BYTES_PER_SECOND, what="read 10 kB/s")


@dataclasses.dataclass
class _Rounds:
    """What the alternating spans gave."""

    without: list[float] = dataclasses.field(default_factory=list)
    """The others' p99."""
    with_them: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    lag_bytes: list[float] = dataclasses.field(default_factory=list)
    """The most that the log held for a slow agent, beyond what its sockets had taken; of each span."""
    owed_bytes: list[float] = dataclasses.field(default_factory=list)
    """What one of the others got in the span."""
    kernel_bytes: list[float] = dataclasses.field(default_factory=list)
    """The most that the kernel held for one connection, both ends, when the span ended."""
    catch_up_seconds: list[float] = dataclasses.field(default_factory=list)
    catching_up: list[float] = dataclasses.field(default_factory=list)
    """The others' p99 while the slow ones caught up."""


async def _slow(
    settings: fixture.Settings, screen: dashboard.View, *, bytes_per_second: int, what: str
) -> report.Report:
    count = max(1, round(settings.agents * STALLED_SHARE))
    fat = dataclasses.replace(settings, pod_bytes=settings.pod_bytes or FAT_POD_BYTES)
    async with fixture.open_scene(
        fat, screen, small_buffers=count, small_buffer_bytes=BUFFER_BYTES, apart=True
    ) as scene:
        running = scene.running
        idle_bytes = measure.memory(running.service.pids()).total_bytes
        await scene.start_churn(**ONLY_PODS)
        await running.sleep(min(fanout.WARM_UP_SECONDS, settings.seconds))
        first = (await running.service.counters()).total("typha_disconnects_total")
        rounds = _Rounds()
        for number in range(settings.rounds):
            screen.say(f"round {number + 1} of {settings.rounds}: without, then with {count} agents that {what}")
            quiet = await running.window(settings.seconds)
            rounds.without.append(quiet.latency.quantile(0.99) or 0.0)
            await _with_slow(running, rounds, settings, count=count, bytes_per_second=bytes_per_second)
        cut = (await running.service.counters()).total("typha_disconnects_total") - first
        checks = _checks(rounds, settings, f"{count} agents that {what}", idle_bytes=idle_bytes)
        checks.append(report.Check("no slow agent is cut off", cut == 0, f"{cut:.0f} connections were closed"))
        facts = {
            "p99 of the others, without": fanout.milliseconds(rounds.without),
            "p99 of the others, with them": fanout.milliseconds(rounds.with_them),
            "of that, while they caught up": fanout.milliseconds(rounds.catching_up),
            "caught up after": ", ".join(f"{one:.1f}" for one in rounds.catch_up_seconds) + " s",
        }
        return await scene.finish(f"Agents that {what}", facts, checks)


async def _with_slow(
    running: testbed.Stage, rounds: _Rounds, settings: fixture.Settings, *, count: int, bytes_per_second: int
) -> None:
    """A span with slow agents, up to the moment at which they have caught up."""
    lags = [0.0]
    bytes_before = running.swarm.totals().behaving_bytes
    others = max(1, settings.agents - settings.public_agents - count - len(settings.protocols))

    async def look() -> None:
        end = time.monotonic() + settings.seconds
        while time.monotonic() < end:
            await running.sleep(LOOK_INTERVAL_SECONDS)
            lags.append((await running.service.counters()).total("typha_client_lag_bytes_max"))
        rounds.kernel_bytes.append(measure.queued_bytes(running.service.port)[0])
        rounds.owed_bytes.append((running.swarm.totals().behaving_bytes - bytes_before) / others)
        before = _latency_counts(running.swarm)
        rounds.catch_up_seconds.append(
            await running.swarm.wait_for(
                lambda now: now.in_sync >= now.agents and now.impaired_lag_seconds < CAUGHT_UP_SECONDS,
                timeout_seconds=CATCH_UP_TIMEOUT_SECONDS,
            )
        )
        catching_up = histogram.Histogram(enumerate(_latency_counts(running.swarm))).since(before)
        rounds.catching_up.append(catching_up.quantile(0.99) or 0.0)

    await running.swarm.impair(count, bytes_per_second=bytes_per_second, seconds=settings.seconds)
    window = await running.window(settings.seconds, look)
    rounds.lag_bytes.append(max(lags))
    rounds.with_them.append(window.latency.quantile(0.99) or 0.0)
    rounds.peak_bytes = max(rounds.peak_bytes, window.memory_bytes)


def _latency_counts(swarm: supervisor.Swarm) -> list[int]:
    """Of the others, of both protocols, by bucket."""
    return [sum(counts) for counts in zip(*(one.counts for one in swarm.latency_of.values()), strict=True)]


def _checks(rounds: _Rounds, settings: fixture.Settings, who: str, *, idle_bytes: int) -> list[report.Check]:
    limit = (idle_bytes + LOG_BUDGET_BYTES) * MEMORY_FACTOR
    lag, owed = min(rounds.lag_bytes), min(rounds.owed_bytes)
    kernel = max(rounds.kernel_bytes)
    return [
        fanout.unmoved(
            f"{who} move nobody else",
            statistics.median(rounds.without),
            statistics.median(rounds.with_them),
            judged=settings.judge_times,
        ),
        report.Check(
            "memory stays within what it was when idle, the log's budget and 20 %",
            rounds.peak_bytes <= limit,
            f"{rounds.peak_bytes / 1e6:.1f} MB at its peak, {idle_bytes / 1e6:.1f} MB when idle, "
            f"limit {limit / 1e6:.1f} MB",
        ),
        report.Check(
            "more is owed to a slow agent than the kernel takes for it",
            (lag > 0 and owed > kernel) or not settings.judge_times,
            f"{owed / 1e3:.0f} kB or more were sent to each of the others in a span, the kernel held at most "
            f"{kernel / 1e3:.0f} kB for a slow one, and {lag / 1e3:.0f} kB or more of the slowest one's were still in "
            "the log",
        ),
    ]


async def lag(settings: fixture.Settings, screen: dashboard.View) -> report.Report:
    """One agent stops reading under 11 kB/s of changes: within 10 s the service says that it lags."""
    async with fixture.open_scene(settings, screen, small_buffers=1) as scene:
        running = scene.running
        rate = await _rate(scene)
        await scene.start_churn(rate_per_second=rate, **ONLY_PODS)
        await running.sleep(min(fanout.WARM_UP_SECONDS, settings.seconds))
        await running.swarm.impair(1, bytes_per_second=0, seconds=4 * LAG_SEEN_WITHIN_SECONDS)
        begin = time.monotonic()
        after = 0.0
        while not after and time.monotonic() < begin + 3 * LAG_SEEN_WITHIN_SECONDS:
            await asyncio.sleep(LOOK_INTERVAL_SECONDS)
            counters = await running.service.counters()
            if counters.total("typha_client_lag_seconds_max") >= LAGGING_SECONDS:
                after = time.monotonic() - begin
        await running.swarm.impair(1, bytes_per_second=0, seconds=0.0)
        found = f"seen after {after:.1f} s" if after else "not seen"
        check = report.Check(
            f"an agent that does not read is seen as lagging within {LAG_SEEN_WITHIN_SECONDS:.0f} s",
            0 < after <= LAG_SEEN_WITHIN_SECONDS or not settings.judge_times,
            f"{found}, with {rate:.1f} updates/s, {LAG_CHURN_BYTES_PER_SECOND / 1e3:.0f} kB/s for each agent",
        )
        return await scene.finish("An agent that lags", {"updates": f"{rate:.1f}/s"}, [check])


async def _rate(scene: fixture.Scene) -> float:
    """Updates a second that make 11 kB/s for each agent, by what updates have lately taken."""
    swarm = scene.running.swarm
    before = swarm.totals()
    await scene.start_churn(**ONLY_PODS)
    await scene.running.sleep(min(fanout.WARM_UP_SECONDS, scene.settings.seconds))
    await scene.stop_churn()
    await scene.running.sleep(1.0)
    after = swarm.totals()
    deliveries = max(1, after.behaving_updates - before.behaving_updates)
    return LAG_CHURN_BYTES_PER_SECOND / max(1.0, (after.behaving_bytes - before.behaving_bytes) / deliveries)
