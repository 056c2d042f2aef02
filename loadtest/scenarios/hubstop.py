"""The hub stands still for a while, as on a machine that swaps, or under a debugger."""

import os
import signal
from typing import Final

from loadtest.reporting import dashboard, report
from loadtest.scenarios import assertions, fixture

AFTER_SECONDS: Final = 5.0


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
        await running.sleep(AFTER_SECONDS)
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
