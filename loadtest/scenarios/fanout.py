"""Scenarios of ordinary work: steady changes, idle agents, storms, bursts."""

import time
from typing import Final

from loadtest.environment import testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import assertions, fixture

BURST_UPDATES: Final = 2000
FEW_AGENTS: Final = 10
MEMORY_PER_CLIENT_LIMIT_BYTES: Final = 2000
MEMORY_PER_TLS_CLIENT_LIMIT_BYTES: Final = 28_000


async def steady(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """A steady rate of changes: CPU per delivery, latency, memory."""
    async with fixture.open_scene(settings, screen) as scene:
        await scene.start_churn()
        window = await scene.testbed.window(settings.seconds)
        made = await scene.finish("Steady fan-out", window.facts(), [])
        made.data["cpu_seconds_per_delivery"] = window.cpu_per_delivery
        return made


async def idle(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """Memory and CPU of agents that receive nothing."""
    few = FEW_AGENTS + settings.public_agents
    async with fixture.open_scene(settings, screen, agents=few) as scene:
        await scene.testbed.sleep(min(fixture.WARM_UP_SECONDS, settings.seconds))
        base = measure.memory(scene.testbed.service.pids()).total_bytes
        base_sockets = measure.kernel_socket_bytes()
    async with fixture.open_scene(settings, screen) as scene:
        window = await scene.testbed.window(settings.seconds)
        memory = measure.memory(scene.testbed.service.pids()).total_bytes
        sockets = measure.kernel_socket_bytes()
        each = (memory - base) / max(1, settings.agents - few)
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


async def storm(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """All agents drop their connections and connect again at once; then a span without changes, for pings."""
    async with fixture.open_scene(settings, screen) as scene:
        running = scene.testbed
        span = await assertions.begin(running)
        clients = settings.agents - settings.public_agents
        window = await running.window(0.0, lambda: running.swarm.storm(timeout_seconds=testbed.IN_SYNC_TIMEOUT_SECONDS))
        facts = {
            "wall time to the last agent in sync": f"{window.work_seconds:.2f} s",
            "connect to in sync": window.in_sync_after.quantiles_text("connections"),
            "CPU of the service per client": f"{window.cpu_seconds / clients * 1e3:.3f} ms",
            "bytes per client": f"{(running.swarm.totals().bytes - span.before.bytes) / clients / 1e6:.3f} MB",
            **span.facts(),
            **window.facts(),
        }
        await running.sleep(settings.seconds)
        return await scene.finish("Snapshot storm", facts, span.checks(judge_times=settings.judge_times))


async def burst(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """2,000 changes at once."""
    async with fixture.open_scene(settings, screen) as scene:
        begin = time.monotonic()
        window = await scene.testbed.window(2.0, lambda: scene.simulator.burst(BURST_UPDATES))
        facts = {
            "updates": f"{BURST_UPDATES} to {settings.agents} agents",
            "slowest delivery, write to read": f"{window.latency_seconds(1.0) * 1e3:.0f} ms",
            "whole run": f"{time.monotonic() - begin:.1f} s",
            **window.facts(),
        }
        return await scene.finish("Burst", facts, [])
