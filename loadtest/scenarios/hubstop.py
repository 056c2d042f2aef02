"""The hub stands still for a while, as on a machine that swaps, or under a debugger."""

import os
import signal
from typing import Final

from loadtest import report, view
from loadtest.scenarios import fanout, setting

PING_INTERVAL_SECONDS: Final = 10.0
"""The service's default."""
SILENCE_SLACK_SECONDS: Final = 1.0
AFTER_SECONDS: Final = 5.0


async def hub_stop(
    settings: setting.Settings, screen: view.View, *, ping_interval_seconds: float = PING_INTERVAL_SECONDS
) -> report.Report:
    """SIGSTOP to the hub under changes, SIGCONT after a while: no agent is lost or left in silence, all converge."""
    environment = {"TYPHA_SERVERPINGINTERVALSECS": str(ping_interval_seconds)}
    async with setting.open_scene(settings, screen, environment=environment) as scene:
        running = scene.running
        await scene.start_churn()
        await running.sleep(min(fanout.WARM_UP_SECONDS, settings.seconds))
        before = running.swarm.totals()
        workers = set(running.service.worker_pids())
        running.swarm.take_silence()
        hub = running.service.hub_pid
        os.kill(hub, signal.SIGSTOP)
        screen.say(f"the hub is stopped (SIGSTOP) for {settings.seconds:g} s")
        try:
            await running.sleep(settings.seconds)
        finally:
            os.kill(hub, signal.SIGCONT)
        screen.say("the hub goes on (SIGCONT)")
        await running.sleep(AFTER_SECONDS)
        silence = running.swarm.take_silence()
        after = running.swarm.totals()
        lost = sum(after.disconnects.values()) - sum(before.disconnects.values())
        limit = ping_interval_seconds + SILENCE_SLACK_SECONDS
        checks = [
            report.Check(
                "no agent is lost while the hub stands still",
                not lost and after.connected == after.agents,
                f"{lost} connections ended, {after.connected} of {after.agents} are connected",
            ),
            report.Check(
                "no agent is left in silence for longer than the ping interval",
                silence <= limit or not settings.judge_times,
                f"{silence:.1f} s at the longest, interval {ping_interval_seconds:g} s",
            ),
            report.Check(
                "no worker is replaced",
                set(running.service.worker_pids()) == workers,
                f"{len(workers)} workers before",
            ),
        ]
        return await scene.finish("The hub stands still", {"stopped for": f"{settings.seconds:g} s"}, checks)
