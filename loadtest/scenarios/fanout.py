"""Scenarios of the ordinary work: steady changes, idleness, storms, bursts."""

import time
from collections.abc import Sequence
from typing import Final

from loadtest.environment import testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import assertions, fixture

WARM_UP_SECONDS: Final = 3.0
BURST_UPDATES: Final = 2000
MEMORY_PER_CLIENT_LIMIT_BYTES: Final = 2000
MEMORY_PER_TLS_CLIENT_LIMIT_BYTES: Final = 28_000
P99_FACTOR: Final = 1.2
P99_SLACK_SECONDS: Final = 0.003


def unmoved(name: str, without: float, with_them: float, *, judged: bool) -> report.Check:
    """The check that the others' p99 is unmoved: within 20 % or 3 ms."""
    within = with_them <= max(without * P99_FACTOR, without + P99_SLACK_SECONDS)
    detail = f"p99 {without * 1e3:.1f} ms without, {with_them * 1e3:.1f} ms with them"
    return report.Check(name, within or not judged, detail if judged else f"{detail} (not judged)")


async def steady(settings: fixture.Settings, screen: dashboard.View) -> report.Report:
    """A steady rate of changes: CPU per delivery, latency, memory."""
    async with fixture.open_scene(settings, screen) as scene:
        await scene.start_churn()
        await scene.running.sleep(min(WARM_UP_SECONDS, settings.seconds))
        window = await scene.running.window(settings.seconds)
        made = await scene.finish("Steady fan-out", window.facts(), [])
        made.data["cpu_seconds_per_delivery"] = window.cpu_seconds / max(1, window.deliveries)
        return made


async def idle(settings: fixture.Settings, screen: dashboard.View) -> report.Report:
    """Memory and CPU of agents that get nothing."""
    few = 10
    async with fixture.open_scene(settings, screen, agents=few + settings.public_agents) as scene:
        await scene.running.sleep(min(WARM_UP_SECONDS, settings.seconds))
        base = measure.memory(scene.running.service.pids()).total_bytes
        base_sockets = measure.kernel_socket_bytes()
    async with fixture.open_scene(settings, screen) as scene:
        window = await scene.running.window(settings.seconds)
        memory = measure.memory(scene.running.service.pids()).total_bytes
        sockets = measure.kernel_socket_bytes()
        more = settings.agents - few - settings.public_agents
        each = (memory - base) / max(1, more)
        limit = MEMORY_PER_TLS_CLIENT_LIMIT_BYTES if settings.tls else MEMORY_PER_CLIENT_LIMIT_BYTES
        check = report.Check(
            "memory per idle client",
            each <= limit or not settings.judge_times,
            f"{each / 1000:.2f} kB ({memory / 1e6:.1f} MB with {settings.agents} agents, {base / 1e6:.1f} MB with few)",
        )
        facts = {
            "kernel, TCP buffers": f"{sockets / 1e6:.1f} MB, {base_sockets / 1e6:.1f} MB with few",
            "CPU while idle": f"{window.cpu_seconds / window.seconds * 1e3:.1f} ms a second",
        }
        made = await scene.finish("Idle agents", facts, [check])
        made.data["memory_bytes_per_client"] = each
        return made


async def storm(settings: fixture.Settings, screen: dashboard.View) -> report.Report:
    """All agents drop their connection and come back at once; then a span without changes, for pings."""
    async with fixture.open_scene(settings, screen) as scene:
        running = scene.running
        span = await assertions.begin(running)
        before = span.before
        clients = settings.agents - settings.public_agents

        async def reconnect() -> None:
            await running.swarm.reconnect()
            await running.swarm.wait_for(
                lambda now: now.connects >= before.connects + clients and span.is_everybody_back(),
                timeout_seconds=testbed.IN_SYNC_TIMEOUT_SECONDS,
            )

        running.swarm.take_in_sync_after()
        window = await running.window(0.0, reconnect)
        after = running.swarm.take_in_sync_after()
        facts = {
            "wall time to the last agent in sync": f"{window.work_seconds:.2f} s",
            "connect to in sync": testbed.quantiles_text(after).replace("deliveries", "connections"),
            "CPU of the service per client": f"{window.cpu_seconds / clients * 1e3:.3f} ms",
            "bytes per client": f"{(running.swarm.totals().bytes - before.bytes) / clients / 1e6:.3f} MB",
            **span.facts(),
            **window.facts(),
        }
        await running.sleep(settings.seconds)
        return await scene.finish("Snapshot storm", facts, span.checks(judge_times=settings.judge_times))


async def burst(settings: fixture.Settings, screen: dashboard.View) -> report.Report:
    """2,000 changes at once."""
    async with fixture.open_scene(settings, screen) as scene:
        running = scene.running

        async def change() -> None:
            await scene.simulator.control("POST", "burst", {"count": BURST_UPDATES, "label_times": settings.is_calico})

        begin = time.monotonic()
        window = await running.window(2.0, change)
        slowest = window.latency.quantile(1.0) or 0.0
        facts = {
            "updates": f"{BURST_UPDATES} to {settings.agents} agents",
            "slowest delivery, write to read": f"{slowest * 1e3:.0f} ms",
            "whole run": f"{time.monotonic() - begin:.1f} s",
            **window.facts(),
        }
        return await scene.finish("Burst", facts, [])


def milliseconds(values: Sequence[float]) -> str:
    """Times in seconds for people."""
    return ", ".join(f"{value * 1e3:.1f}" for value in values) + " ms"
