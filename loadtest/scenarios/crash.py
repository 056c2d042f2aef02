"""The service is killed in the middle of its work, and started again."""

from typing import Final

from loadtest import report, view
from loadtest.scenarios import setting

BEFORE_SECONDS: Final = 3.0


async def kill(settings: setting.Settings, screen: view.View) -> report.Report:
    """SIGKILL to the hub while everything changes: no process is left, the next start works, the agents converge."""
    async with setting.open_scene(settings, screen) as scene:
        running = scene.running
        await scene.start_churn()
        await running.sleep(BEFORE_SECONDS)
        workers = running.service.worker_pids()
        await running.service.kill()
        screen.say("the service was killed (SIGKILL)")
        left = await running.service.left_over(workers)
        start_seconds = await running.service.start()
        screen.say(f"it is ready again after {start_seconds:.1f} s")
        in_sync_seconds = await running.in_sync()
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
        ]
        return await scene.finish("kill -9 of the service", {}, checks)
