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


class Stage(Protocol):
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


def strike(stage: Stage, kind: str) -> None:
    """Inject a fault, unless the phase of faults is over."""
    if stage.is_calm:
        return
    stage.world.note("fault", kind)
    if kind in _ON_AGENTS:
        victims = [agent for agent in stage.agents if not agent.plan.is_steady]
        if victims:
            _ON_AGENTS[kind](stage, stage.world.random.choice(victims))
    else:
        _ON_SERVICE[kind](stage)


def _stall(stage: Stage, agent: agents.Agent) -> None:
    agent.stall(stage.world.random.choice(_STALL_SECONDS))


def _slow(stage: Stage, agent: agents.Agent) -> None:
    agent.bytes_per_second = stage.world.random.choice((500, 5000))


def _leave(stage: Stage, agent: agents.Agent) -> None:
    agent.hang_up(is_reset=False)


def _reset(stage: Stage, agent: agents.Agent) -> None:
    agent.hang_up(is_reset=True)


def _cut(stage: Stage, agent: agents.Agent) -> None:
    limit = stage.plan.limits.no_progress_timeout_seconds
    agent.cut(stage.world.random.choice((0.5, 4.0, 30.0)), user_timeout_seconds=limit)


def _mute(stage: Stage, agent: agents.Agent) -> None:
    agent.is_mute = True


def _hang_worker(stage: Stage, seconds: float) -> None:
    alive = stage.workers()
    if alive:
        stage.world.random.choice(alive).process.hang(seconds)


def _kill_worker(stage: Stage) -> None:
    alive = stage.workers()
    if alive:
        stage.world.random.choice(alive).process.kill()


def _kill_hub(stage: Stage) -> None:
    """Kill the hub. Its workers must end, and then a new service starts."""
    stage.newest.process.kill()
    _restart(stage, within_seconds=_RESTART_SECONDS)


def _drain(stage: Stage) -> None:
    """A rolling update: drain the service, in whatever state its clients are."""
    draining = stage.newest
    if draining.hub is not None:
        draining.stop()
        linger_seconds = stage.plan.limits.goodbye_linger_seconds
        _restart(stage, within_seconds=stage.plan.drain_seconds + linger_seconds + _DRAIN_SLACK_SECONDS)


def _restart(stage: Stage, *, within_seconds: float) -> None:
    """Wait until the service has ended, which must happen in time, and start a new one."""
    dying = stage.newest
    begun = stage.world.now

    def restart() -> None:
        lingering = [one for one in dying.processes() if one.is_alive]
        calm_at = max([begun, *(one.disturbed_until for one in lingering)])
        if lingering and stage.world.now < calm_at + within_seconds:
            stage.world.after(0.1, restart)
            return
        if lingering:
            raise worlds.Violation(f"{lingering} outlive their service")
        if stage.newest is dying:
            stage.start_service()

    stage.world.after(0.1, restart)


def _storm(stage: Stage) -> None:
    for agent in stage.agents:
        agent.hang_up(is_reset=stage.world.chance(0.5))


def _herd(stage: Stage) -> None:
    """Stall many clients while many objects change, so that they share catch-ups."""
    draw = stage.world.random
    seconds = draw.choice((0.0, 3.0, 9.0))
    for agent in stage.agents:
        if not agent.plan.is_steady:
            agent.stall(seconds or draw.choice(_STALL_SECONDS))
    for delay_seconds in (0.1, 1.0, 3.0):
        _later(stage, delay_seconds, lambda: stage.write(30))


def _relist(stage: Stage) -> None:
    """Compact the history of the API server, so that everything is listed again while clients reconnect."""
    stage.server.compact()
    stage.server.break_streams(is_silent=False)
    stage.write(stage.world.random.choice((2, 10, 30)))
    for agent in stage.agents:
        _later(stage, stage.world.random.random() * _RELIST_SECONDS, functools.partial(agent.hang_up, is_reset=False))


def _later(stage: Stage, seconds: float, action: Callable[[], None]) -> None:
    """Do something later, unless the phase of faults is over by then."""
    stage.world.after(seconds, lambda: None if stage.is_calm else action())


def _api_errors(stage: Stage) -> None:
    stage.server.fault_probability = 0.4
    stage.server.has_watch_list = stage.world.chance(0.5)


_ON_AGENTS: dict[str, Callable[[Stage, agents.Agent], None]] = {
    "stall": _stall,
    "slow": _slow,
    "leave": _leave,
    "reset": _reset,
    "cut": _cut,
    "mute": _mute,
}
_ON_SERVICE: dict[str, Callable[[Stage], None]] = {
    "worker-hang": lambda it: _hang_worker(it, it.world.random.choice((0.05, 0.5, 2.0))),
    "worker-long-hang": lambda it: _hang_worker(it, 14.0),
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
