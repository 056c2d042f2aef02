"""One run of a seed: a service, its clients, the faults, and the invariants at every step and at the end."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterable

from cache.state import cursor
from protocol import reasons
from tests.simulation import (
    agents,
    apiserver,
    checks,
    faults,
    network,
    plans,
    process,
    service,
    sockets,
    strangers,
    surroundings,
)
from tests.simulation import world as worlds
from typha.worker import client

_LOOK_SECONDS = 0.25
_SLACK_SECONDS = 0.7
"""Allowed delay of a ping: latency, a busy turn, and the time between two checks."""
CONVERGENCE_SECONDS = 60.0
_RECOVERY_SECONDS = 1.5
_RELIST_SECONDS = 35.0
"""A watch that has failed again waits up to 30 s (`WatchPolicy.backoff_max_seconds`). Until then its type is not
confirmed, and native clients are told so."""
_APPLIED_SECONDS = 15.0
"""Clients apply within some seconds and say so once a second. Workers report every other second, and count what is
older than two."""
_HOT_SHARE = 0.9
_CUTS = (reasons.DisconnectReason.FELL_BEHIND, reasons.DisconnectReason.NO_PROGRESS)


class Simulation:
    """All parts of a run."""

    def __init__(self, world: worlds.World, plan: plans.Plan) -> None:
        self.world = world
        self.plan = plan
        self.server = apiserver.ApiServer(
            world, service.TYPES, latency_seconds=0.002, names_nodes=any(one.subscription for one in plan.agents)
        )
        self.generations: list[service.Service] = []
        self._fresh_seconds = plan.fresh_seconds
        self._by_connection: dict[int, agents.Agent] = {}
        self._greeted: set[int] = set()
        """Numbers of the connections that have subscribed. A later hold is part of a catch-up."""
        self._written = 0
        self.is_calm = False
        self.start_service()
        ping_seconds = plan.limits.ping_interval_seconds
        self.agents = [
            agents.Agent(
                world,
                number,
                agent_plan,
                feed=service.FEED,
                is_tls=plan.tls,
                dial=self._dial,
                silence_seconds_max=3 * ping_seconds,
            )
            for number, agent_plan in enumerate(plan.agents, start=1)
        ]
        self.strangers = [strangers.Stranger(world, number, self.dial_stranger) for number in range(plan.strangers)]
        for agent in self.agents:
            self._watch(agent)
        world.after(_LOOK_SECONDS, self._look)

    # Actions

    @property
    def newest(self) -> service.Service:
        """The newest service."""
        return self.generations[-1]

    @property
    def services(self) -> list[service.Service]:
        """Those that serve now: the newest."""
        return [self.newest]

    def start_service(self) -> None:
        """Start a new service, without any state of the previous ones."""
        backlog = sockets.Backlog(self.world)
        self.generations.append(service.Service(self.world, len(self.generations) + 1, self.plan, backlog, self.server))

    def workers(self) -> list[service.Worker]:
        """The running workers."""
        return [worker for one in self.services for worker in one.workers.values() if worker.process.is_alive]

    def service_of(self, agent: agents.Agent) -> service.Service:
        """The service that an agent is connected to, or was last."""
        return self.newest

    def _dial(self, agent: agents.Agent, connection: network.Connection) -> bool:
        chosen = self.service_of(agent)
        if agent.model is not None:
            agent.model.expected = chosen.expected
        self._by_connection[connection.number] = agent
        return chosen.backlog.connect(connection)

    def dial_stranger(self, connection: network.Connection) -> bool:
        """Connect a peer that is not a client."""
        return self.newest.backlog.connect(connection)

    def _watch(self, agent: agents.Agent) -> None:
        agent.on_heard = lambda: self._heard(agent)

    def write(self, count: int) -> None:
        """Change some objects."""
        draw = self.world.random
        for _ in range(count):
            type = draw.choice(service.TYPES)
            is_hot = draw.random() < _HOT_SHARE
            name = f"o{draw.randrange(self.plan.hot_keys if is_hot else self.plan.keys)}"
            if draw.random() < self.plan.deletions_share:
                self.server.write(type, name, None)
            else:
                self._written += 1
                padding = draw.randbytes(draw.randrange(self.plan.value_bytes_max) // 2 + 1).hex()
                self.server.write(type, name, f"{self._written}-{padding}")

    def _churn(self) -> None:
        if not self.is_calm:
            self.write(1)
            self.world.after(self.world.random.expovariate(self.plan.writes_per_second), self._churn)

    # Checks

    def moved(self, current: client.Client, state: cursor.CursorState) -> None:
        """Check a change of the state of a cursor."""
        connection, agent = self._agent_of(current)
        if connection is None or agent is None or agent.model is None:
            return
        if current.reason is reasons.DisconnectReason.NETWORK_ERROR and connection.server_error is None:
            raise worlds.Violation(f"{agent.name}: closed with network-error, but the network had no error")
        if current.reason in _CUTS:
            self._check_cut(agent, connection, current)
        reason = f" ({current.reason.value})" if current.reason else ""
        self.world.note(f"server of {agent.name}", f"{state.value}{reason} offset={current.offset}")
        if state is cursor.CursorState.HELD and connection.number not in self._greeted:
            self._greeted.add(connection.number)
            agent.model.floor = self._published(self.service_of(agent), current)
        elif state is cursor.CursorState.CATCHING_UP:
            agent.model.mix()

    def _agent_of(self, current: client.Client) -> tuple[network.Connection | None, agents.Agent | None]:
        """The connection and the agent at its other end, if both still exist."""
        if not isinstance(current.socket, sockets.ServerSocket):
            return None, None
        connection = current.socket.connection
        agent = self._by_connection.get(connection.number)
        return (connection, agent) if agent is not None and agent.connection is connection else (None, None)

    def took_leave(self, current: client.Client) -> None:
        """Note that the server has sent a goodbye, if the protocol has one."""
        _, agent = self._agent_of(current)
        if agent is not None and agent.plan.wire.startswith("native"):
            agent.is_dismissed = True

    def _check_cut(self, agent: agents.Agent, connection: network.Connection, current: client.Client) -> None:
        """Check that the server does not disconnect a client only because it is slow.

        It may disconnect a client that accepts no bytes, or that needs deletions that are forgotten.
        """
        the_hub = self.service_of(agent).hub
        floor = the_hub.feeds[service.FEED].store.tombstone_floor if the_hub else 0
        if current.reason is reasons.DisconnectReason.FELL_BEHIND and current.sequence >= floor:
            raise worlds.Violation(
                f"{agent.name}: disconnected, although all changes since {current.sequence} are known"
            )
        seconds = self.world.now - connection.down.acknowledged_at
        limit = self.plan.limits.no_progress_timeout_seconds
        if current.reason is reasons.DisconnectReason.NO_PROGRESS and seconds < limit - _SLACK_SECONDS:
            raise worlds.Violation(f"{agent.name}: disconnected {seconds:.1f} s after it accepted bytes")

    def _published(self, serving: service.Service, current: client.Client) -> int:
        """The newest sequence number if the client's worker knew of it when the client connected, else 0."""
        channels = serving.hub.channels.values() if serving.hub else ()
        for worker in serving.workers.values():
            handle = serving.hub.workers.get(worker.config.number) if serving.hub else None
            is_served = worker.process.is_alive and current.socket in worker.host.sockets.values()
            if is_served and handle is not None and not handle._ends:
                is_written = all(channel.unwritten is None for channel in channels)
                is_told = is_written and not handle.link.wants_write and not worker.link_end.into.queue
                return serving.expected.sequence if is_told else 0
        return 0

    def _server_end(self, agent: agents.Agent) -> tuple[service.Worker, client.Client] | None:
        for worker in self.workers():
            if worker.server is None:
                continue
            for current in worker.server.poller.clients.values():
                if isinstance(current.socket, sockets.ServerSocket) and current.socket.connection is agent.connection:
                    return worker, current
        return None

    def _heard(self, agent: agents.Agent) -> None:
        """Check that a client has everything if the server has sent everything."""
        connection, model, the_hub = agent.connection, agent.model, self.service_of(agent).hub
        if connection is None or model is None or the_hub is None or connection.down.held or connection.down.arrived:
            return
        found = self._server_end(agent)
        if found is None:
            return
        worker, current = found
        channel = current.channel
        if channel is None or current.state is not cursor.CursorState.FOLLOWING or current.index < 0:
            return
        made = the_hub.channels.get((channel.feed, channel.wire_format, channel.subscription))
        if made is None or made.unwritten is not None:
            return
        if current.offset == made.log.end and not worker.transport.owed(current.fd):
            try:
                model.settle(made.status)
            except worlds.Violation as error:
                raise worlds.Violation(f"{agent.name}: {error}") from error

    def after_turn(self, ran: process.Process) -> None:
        """Check the invariants after a turn of a process."""
        for one in self.services:
            if ran is one.process:
                checks.check_hub(one)
                return
            for worker in one.workers.values():
                if worker.process is ran and worker.server is not None and ran.is_alive:
                    checks.check_worker(worker.server)
                    return

    def _look(self) -> None:
        """Check regularly that the server is not silent, and that no client lags without a cause."""
        self.world.after(_LOOK_SECONDS, self._look)
        now = self.world.now
        ping_seconds = self.plan.limits.ping_interval_seconds
        for agent in self.agents:
            serving = self.service_of(agent)
            hub_calm_at = serving.process.disturbed_until + _RECOVERY_SECONDS
            found = self._server_end(agent)
            if found is None:
                agent.look()
                continue
            worker, current = found
            self._check_applied(agent, current)
            worker_calm_at = worker.process.disturbed_until + _SLACK_SECONDS
            silent = agent.silent_for()
            if silent > ping_seconds + _SLACK_SECONDS and now > worker_calm_at and agent.disturbed_until < now - silent:
                raise worlds.Violation(f"{agent.name}: silence for {silent:.2f} s")
            is_undisturbed = max(worker_calm_at, hub_calm_at, agent.disturbed_until) + self._fresh_seconds < now
            is_held_up = current.state is not cursor.CursorState.FOLLOWING and not self.plan.has_swift_catch_ups
            if agent.plan.is_steady and is_undisturbed and not is_held_up:
                lacks = agent.lacks(serving.expected, bound_seconds=self._fresh_seconds)
                if lacks:
                    raise worlds.Violation(
                        f"{agent.name}: {lacks} updates have not arrived after {self._fresh_seconds} s: {current!r}"
                    )
            agent.look()
        for stranger in self.strangers:
            stranger.look(
                self.plan.limits, calm_at=max([w.process.disturbed_until for w in self.workers()], default=now)
            )

    def _check_applied(self, agent: agents.Agent, current: client.Client) -> None:
        """Check that the server takes for applied what the client has applied, and no more."""
        reporter, position, channel = agent.reporter, current.applied, current.channel
        if reporter is None or not reporter.is_connected or position is None or channel is None:
            return
        try:
            reporter.check(position.sequence, min(position.up_to(), channel.newest_sequence))
        except worlds.Violation as error:
            raise worlds.Violation(f"{agent.name}: {error}") from error

    def _counts_all_as_applied(self) -> bool:
        """Whether the hub counts all clients that report, and knows that they have applied everything."""
        the_hub = self.newest.hub
        if the_hub is None:
            return False
        reporting = sum(agent.reporter is not None for agent in self.agents)
        reported = the_hub.convergence.reported(
            service.FEED, the_hub.publisher.commit_times[service.FEED], self.world.now
        )
        return (reported.reporting, reported.applied) == (reporting, reporting)

    # Phases of a run

    def run(self) -> None:
        """Run the phase of faults, the convergence, and the drain if planned."""
        world, plan = self.world, self.plan
        self.write(plan.keys)
        begin = world.now
        self._churn()
        for seconds, kind in plan.faults:
            world.at(begin + seconds, self._fault(kind))
        world.run_until(begin + plan.seconds)
        self.calm()
        if not world.run_until(world.now + CONVERGENCE_SECONDS, condition=self.has_converged):
            raise worlds.Violation(f"no convergence: {self.slow_consumers()}")
        world.note("simulation", "all have converged")
        self._stay_calm()
        if plan.drains:
            self._drain()

    def _fault(self, kind: str) -> Callable[[], None]:
        return lambda: faults.strike(self, kind)

    def calm(self) -> None:
        """End the phase of faults. The service must recover by itself."""
        self.world.note("simulation", "the faults are over")
        self.is_calm = self.world.is_calm = True
        self.world.short_until = 0.0
        self.server.fault_probability = 0.0
        self.server.down_until = 0.0
        for agent in self.agents:
            agent.calm()

    def slow_consumers(self) -> list[str]:
        """The clients that have not converged, for an error message."""
        lagging = []
        for agent in self.agents:
            if not self._is_current(agent):
                found = self._server_end(agent)
                lagging.append(f"{agent.name} {agent.model and agent.model.status!r} {found and found[1]!r}")
        return lagging or ["the hub itself"]

    def has_converged(self) -> bool:
        """Whether all clients have the objects of the API server, and the status in-sync."""
        the_hub = self.newest.hub
        if the_hub is None or self.newest.is_stopping or not all(self._is_current(agent) for agent in self.agents):
            return False
        if (
            max((one.disturbed_until for one in self.newest.processes() if one.is_alive), default=self.world.now)
            > self.world.now - _RECOVERY_SECONDS
        ):
            return False
        held = {entry.key: entry.value for entry in the_hub.feeds[service.FEED].store}
        return held == self.server.expected()

    def _is_current(self, agent: agents.Agent) -> bool:
        model, history = agent.model, self.service_of(agent).expected
        # A stalled agent does not notice that its server is gone, so it may still have to reconnect.
        is_connected = agent.connection is not None and self._server_end(agent) is not None
        is_told = is_connected and model is not None and model.expected is history and model.status is not None
        return is_told and model is not None and model.status == 2 and model.total == model.newest_total

    def _stay_calm(self) -> None:
        """Check that without faults no client is disconnected, and that the counters of the hub add up."""
        ends = sum(agent.ends for agent in self.agents)
        self.world.run_until(self.world.now + 1.2 * self.plan.limits.ping_interval_seconds + 2.5)
        if sum(agent.ends for agent in self.agents) != ends:
            raise worlds.Violation("a client was disconnected without a fault")
        # A type may be listed again at this moment, because a compaction was among the faults.
        if not self.world.run_until(self.world.now + _RELIST_SECONDS, condition=self.has_converged):
            raise worlds.Violation(f"no longer converged: {self.slow_consumers()}")
        if not self.world.run_until(self.world.now + _APPLIED_SECONDS, condition=self._counts_all_as_applied):
            raise worlds.Violation("not everything counts as applied, although it is")
        tidied_at = self.world.now + 2 * self.plan.limits.stats_interval_seconds
        if not self.world.run_until(tidied_at, condition=lambda: not self._left_files()):
            raise worlds.Violation(self._left_files())
        keeper, the_hub = self.newest.keeper, self.newest.hub
        if keeper is None or the_hub is None:
            raise worlds.Violation("there is no service")
        totals = keeper.totals()
        active = sum(worker.report.active for worker in the_hub.workers.values())
        ended = sum(totals.disconnects.values())
        if totals.accepted != active + ended:
            raise worlds.Violation(f"{totals.accepted} accepted, {active} active, {ended} ended")

    def _left_files(self) -> str:
        return "".join(checks.left_files(worker.server) for worker in self.workers() if worker.server is not None)

    def _drain(self) -> None:
        self.newest.stop()
        bound = self.plan.drain_seconds + self.plan.limits.goodbye_linger_seconds + 2.0
        if not self.world.run_until(self.world.now + bound, condition=lambda: not self.newest.process.is_alive):
            raise worlds.Violation("the drain does not end")
        if self.newest.process.exit_code != 0:
            raise worlds.Violation(f"the drain ends with {self.newest.process.exit_code}")

    def close(self) -> None:
        """Kill all remaining processes."""
        self.world.forget()
        for generation in self.generations:
            for one in generation.processes():
                one.kill()
        self.world.run_until(self.world.now)
        self.world.forget()


def run(seed: int, *, tell: Callable[[str], None] | None = None) -> worlds.World:
    """Run a seed. Returns its world, with the history.

    Raises:
        Violation: an invariant does not hold. The notes of the exception have the seed and the last events.
    """
    plan = plans.make(seed)
    world = worlds.World(seed, tell=tell)
    run_in(world, plan, lambda: Simulation(world, plan))
    return world


def run_in(world: worlds.World, plan: plans.Plan, make: Callable[[], Simulation]) -> None:
    """Run a simulation in its world, with the notes of a failure. See `run`."""
    seed = world.seed
    before = _open_files()
    running: list[Simulation] = []
    with surroundings.replaced(world, plan, running):
        try:
            running.append(make())
            world.after_turn = running[0].after_turn
            running[0].run()
        except BaseException as error:
            error.add_note(f"seed {seed}, after:\n" + "\n".join(list(world.history)[-60:]))
            raise
        finally:
            if running:
                running.pop().close()
    if _open_files() - before:
        gc.collect()  # a killed process leaves reference cycles that hold sockets; a kernel would close them
    if left := _open_files() - before:
        raise worlds.Violation(f"seed {seed}: left open: {', '.join(sorted(left))}")


def first_to_fail(run_one: Callable[[int], object], seeds: Iterable[int]) -> int | None:
    """The first seed that fails, or None."""
    for seed in seeds:
        try:
            run_one(seed)
        except Exception:
            return seed
    return None


def _open_files() -> set[str]:
    """The descriptors of this process with what they refer to.

    They are compared by name, not by number: what an earlier test has left may be collected while a seed runs.
    """
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add(f"{entry} {os.readlink(f'/proc/self/fd/{entry}')}")
    return found
