"""The service, or one of its workers, is killed under load and started again; or the hub stands still for a while."""

import os
import signal
from typing import Final

from loadtest.environment import testbed
from loadtest.reporting import dashboard, report
from loadtest.scenarios import assertions, fixture

LOOK_INTERVAL_SECONDS: Final = 0.1
REPLACED_TIMEOUT_SECONDS: Final = 120.0
"""Only a failure takes so long."""
NO_LISTENER: Final = "connect ECONNREFUSED"
"""What agents see between the end of a service and the next start."""
AFTER_STOP_SECONDS: Final = 5.0


async def kill(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """SIGKILL to the hub under changes: no process is left, the next start works, the agents converge."""
    async with fixture.open_scene(settings, screen) as scene:
        running = scene.testbed
        await scene.start_churn()
        workers = running.service.worker_pids()
        since_kill = await assertions.begin(running)
        await running.service.kill()
        screen.say("the service was killed (SIGKILL)")
        left = await running.service.left_over(workers)
        since_start = await assertions.begin(running)
        start_seconds = await running.service.start()
        screen.say(f"it is ready again after {start_seconds:.1f} s")
        in_sync_seconds = await running.swarm.wait_for(
            lambda _: since_kill.all_are_back(), timeout_seconds=testbed.IN_SYNC_TIMEOUT_SECONDS
        )
        await running.sleep(settings.seconds)
        checks = [
            report.Check(
                "nothing of a killed service is left", not left, f"{len(left)} of {len(workers)} workers live"
            ),
            report.Check(
                "the next start works",
                True,
                f"ready after {start_seconds:.1f} s, all agents in sync {in_sync_seconds:.1f} s later",
            ),
            *since_start.checks(judge_times=settings.judge_times, expected=[NO_LISTENER]),
        ]
        return await scene.finish("kill -9 of the service", since_kill.facts(), checks)


async def worker_kill(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """SIGKILL to one worker under changes: all its agents connect again at once, and live workers serve them."""
    async with fixture.open_scene(settings, screen) as scene:
        running = scene.testbed
        await scene.start_churn()
        workers = set(running.service.worker_pids())
        span = await assertions.begin(running)
        replaced_seconds: float | None = None
        screen.say(f"one of {len(workers)} workers is killed (SIGKILL)")

        async def replaced() -> bool:
            return not set(running.service.worker_pids()) <= workers

        async def kill_one() -> None:
            nonlocal replaced_seconds
            running.service.kill_worker()
            replaced_seconds = await running.wait_until(
                replaced, timeout_seconds=REPLACED_TIMEOUT_SECONDS, interval_seconds=LOOK_INTERVAL_SECONDS
            )
            if replaced_seconds is None:
                raise TimeoutError(f"no new worker within {REPLACED_TIMEOUT_SECONDS:.0f} s")
            await running.swarm.wait_for(
                lambda _: span.lost() > 0 and span.all_are_back(), timeout_seconds=testbed.IN_SYNC_TIMEOUT_SECONDS
            )

        window = await running.window(0.0, kill_one)
        lost = span.lost()
        screen.say(f"{lost} agents were in sync again after {window.work_seconds:.1f} s")
        await running.sleep(settings.seconds)
        restarts = (await running.service.counters()).total("typha_worker_restarts_total")
        facts = {
            "worker replaced after": f"{replaced_seconds:.1f} s",
            "wall time to the last agent in sync": f"{window.work_seconds:.2f} s",
            **span.facts(),
            **await span.reasons(),
            "CPU of the service per client": f"{window.cpu_seconds / max(1, lost) * 1e3:.3f} ms, with the new worker's "
            "start and the changes meanwhile",
            **window.facts(),
        }
        checks = [
            report.Check(
                "one worker was replaced, and its agents came back once",
                restarts == 1 and 0 < lost <= settings.agents and span.back().total == lost,
                f"typha_worker_restarts_total: {restarts:.0f}, {lost} connections ended, {span.back().total} are back",
            ),
            *span.checks(judge_times=settings.judge_times),
        ]
        return await scene.finish("kill -9 of a worker", facts, checks)


async def hub_stop(
    settings: fixture.Settings,
    screen: dashboard.Dashboard,
    *,
    ping_interval_seconds: float = assertions.PING_INTERVAL_SECONDS,
) -> report.Report:
    """SIGSTOP to the hub under changes, SIGCONT after a while: no agent is lost or silent, and all converge."""
    environment = {"TYPHA_SERVERPINGINTERVALSECS": str(ping_interval_seconds)}
    async with fixture.open_scene(settings, screen, environment=environment) as scene:
        running = scene.testbed
        await scene.start_churn()
        workers = set(running.service.worker_pids())
        span = await assertions.begin(running)
        hub = running.service.pid
        os.kill(hub, signal.SIGSTOP)
        screen.say(f"the hub is stopped (SIGSTOP) for {settings.seconds:g} s")
        try:
            await running.sleep(settings.seconds)
        finally:
            os.kill(hub, signal.SIGCONT)
        screen.say("the hub goes on (SIGCONT)")
        await running.sleep(AFTER_STOP_SECONDS)
        after = running.swarm.totals()
        lost = sum(after.disconnects.values()) - sum(span.before.disconnects.values())
        checks = [
            report.Check(
                "no agent is lost while the hub stands still",
                not lost and after.connected == after.agents,
                f"{lost} connections ended, {after.connected} of {after.agents} are connected",
            ),
            *span.checks(judge_times=settings.judge_times, ping_interval_seconds=ping_interval_seconds),
            report.Check(
                "no worker is replaced",
                set(running.service.worker_pids()) == workers,
                f"{len(workers)} workers before",
            ),
        ]
        return await scene.finish("The hub stands still", {"stopped for": f"{settings.seconds:g} s"}, checks)
