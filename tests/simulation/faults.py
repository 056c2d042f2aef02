"""The faults, one function for each kind. The victims are random."""

import functools
from collections.abc import Callable
from typing import Protocol

from tests.simulation import agents, apiserver, plans, service
from tests.simulation import world as worlds

_RESTART_SECONDS = 0.5
_STALL_SECONDS = (0.5, 3.0, 9.0)
_DRAIN_SLACK_SECONDS = 2.0
_RELIST_SECONDS = 0.1
"""Clients reconnect within this time after the API server has compacted its history."""


class Target(Protocol):
    """The parts of a simulation that faults act on."""

    world: worlds.World
    plan: plans.Plan
    server: apiserver.ApiServer
    agents: list[agents.Agent]
    is_calm: bool

    @property
    def newest(self) -> service.Service:
        """The current service."""
        ...

    def workers(self) -> list[service.Worker]:
        """The running workers."""
        ...

    def start_service(self) -> None:
        """Start a new service."""
        ...

    def write(self, count: int) -> None:
        """Change some objects."""
        ...


def strike(target: Target, kind: str) -> None:
    """Inject a fault, unless the phase of faults is over."""
    if target.is_calm:
        return
    target.world.note("fault", kind)
    if kind in _ON_AGENTS:
        victims = [agent for agent in target.agents if not agent.plan.is_steady]
        if victims:
            _ON_AGENTS[kind](target, target.world.random.choice(victims))
    else:
        _ON_SERVICE[kind](target)


def _stall(target: Target, agent: agents.Agent) -> None:
    agent.stall(target.world.random.choice(_STALL_SECONDS))


def _slow(target: Target, agent: agents.Agent) -> None:
    agent.bytes_per_second = target.world.random.choice((500, 5000))


def _leave(target: Target, agent: agents.Agent) -> None:
    agent.hang_up(is_reset=False)


def _reset(target: Target, agent: agents.Agent) -> None:
    agent.hang_up(is_reset=True)


def _cut(target: Target, agent: agents.Agent) -> None:
    limit = target.plan.limits.no_progress_timeout_seconds
    agent.cut(target.world.random.choice((0.5, 4.0, 30.0)), user_timeout_seconds=limit)


def _mute(target: Target, agent: agents.Agent) -> None:
    agent.is_mute = True


def _hang_worker(target: Target, seconds: float) -> None:
    alive = target.workers()
    if alive:
        target.world.random.choice(alive).process.hang(seconds)


def _kill_worker(target: Target) -> None:
    alive = target.workers()
    if alive:
        target.world.random.choice(alive).process.kill()


def _kill_hub(target: Target) -> None:
    """Kill the hub. Its workers must end, and then a new service starts."""
    target.newest.process.kill()
    _restart(target, within_seconds=_RESTART_SECONDS)


def _drain(target: Target) -> None:
    """A rolling update: drain the service, in whatever state its clients are."""
    draining = target.newest
    if draining.hub is not None:
        draining.stop()
        linger_seconds = target.plan.limits.goodbye_linger_seconds
        _restart(target, within_seconds=target.plan.drain_seconds + linger_seconds + _DRAIN_SLACK_SECONDS)


def _restart(target: Target, *, within_seconds: float) -> None:
    """Wait until the service has ended, which must happen in time, and start a new one."""
    dying = target.newest
    begun = target.world.now

    def restart() -> None:
        lingering = [one for one in dying.processes() if one.is_alive]
        calm_at = max([begun, *(one.disturbed_until for one in lingering)])
        if lingering and target.world.now < calm_at + within_seconds:
            target.world.after(0.1, restart)
            return
        if lingering:
            raise worlds.Violation(f"{lingering} outlive their service")
        if target.newest is dying:
            target.start_service()

    target.world.after(0.1, restart)


def _storm(target: Target) -> None:
    for agent in target.agents:
        agent.hang_up(is_reset=target.world.chance(0.5))


def _herd(target: Target) -> None:
    """Stall many clients while many objects change, so that they share catch-ups."""
    draw = target.world.random
    seconds = draw.choice((0.0, 3.0, 9.0))
    for agent in target.agents:
        if not agent.plan.is_steady:
            agent.stall(seconds or draw.choice(_STALL_SECONDS))
    for delay_seconds in (0.1, 1.0, 3.0):
        _later(target, delay_seconds, lambda: target.write(30))


def _relist(target: Target) -> None:
    """Compact the history of the API server, so that everything is listed again while clients reconnect."""
    target.server.compact()
    target.server.break_streams(is_silent=False)
    target.write(target.world.random.choice((2, 10, 30)))
    for agent in target.agents:
        _later(target, target.world.random.random() * _RELIST_SECONDS, functools.partial(agent.hang_up, is_reset=False))


def _later(target: Target, seconds: float, action: Callable[[], None]) -> None:
    """Do something later, unless the phase of faults is over by then."""
    target.world.after(seconds, lambda: None if target.is_calm else action())


def _api_errors(target: Target) -> None:
    target.server.fault_probability = 0.4
    target.server.has_watch_list = target.world.chance(0.5)


_ON_AGENTS: dict[str, Callable[[Target, agents.Agent], None]] = {
    "stall": _stall,
    "slow": _slow,
    "leave": _leave,
    "reset": _reset,
    "cut": _cut,
    "mute": _mute,
}
_ON_SERVICE: dict[str, Callable[[Target], None]] = {
    "worker-hang": lambda it: _hang_worker(it, it.world.random.choice((0.05, 0.5, 2.0))),
    "worker-long-hang": lambda it: _hang_worker(it, 24.0),
    "worker-kill": _kill_worker,
    "hub-hang": lambda it: it.newest.process.hang(it.world.random.choice((0.2, 1.0, 5.0))),
    "hub-long-hang": lambda it: it.newest.process.hang(plans.LONG_HANG_SECONDS),
    "hub-kill": _kill_hub,
    "drain": _drain,
    "api-compact": lambda it: it.server.compact(),
    "api-break": lambda it: it.server.break_streams(is_silent=False),
    "api-silence": lambda it: it.server.break_streams(is_silent=True),
    "api-down": lambda it: it.server.go_down(it.world.random.choice((0.5, 5.0, 9.0))),
    "api-errors": _api_errors,
    "burst": lambda it: it.write(it.world.random.choice((5, 30, 120))),
    "storm": _storm,
    "herd": _herd,
    "relist": _relist,
}
