"""One run of a seed with several replicas: one API server, one network, clients that move, and faults between them.

Every replica is a whole service. What holds for one service (`simulation`) is checked for each of them, and what must
hold for all of them together.
"""

import asyncio
import contextlib
import errno
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from cache.feeds import feed, followed
from cache.kube import api, discovery
from cache.watch import policy
from protocol import messages
from tests.simulation import (
    agents,
    apiserver,
    expected_state,
    models,
    network,
    plans,
    process,
    replica,
    replica_plans,
    service,
    simulation,
    streams,
)
from tests.simulation import truth as truths
from tests.simulation import world as worlds
from typha.upstream import choice

_LOOK_SECONDS = 0.25
_PERMANENT = 3
"""Objects of each type that are never deleted: none of them may ever be missing."""
_PERMANENT_SHARE = 0.2
_CHAIN_SECONDS_MAX = 30.0
"""How long followers may be in a ring, or too far from the API server: some rounds of questions."""
_CLAIM_SECONDS = 3.0
"""What a replica says that the API server has confirmed may be on its way for so long."""
_SERVED_SECONDS = 20.0
"""Within this time after the faults, and ever after, each client has a server."""
_UNSERVED_SECONDS = 5.0
CONVERGENCE_SECONDS = 300.0
"""A replica avoids an upstream for up to 60 s, leaves the API server after 60 s more, and says so for 20 s before. A
client whose network was lost is silent for 15 s, and a watch that has failed waits for up to 30 s."""
_REST_SECONDS = 10.0
_NUMBERS = 1_000_000
"""From here on, connections between replicas are numbered."""
_LINK = network.Link(40_000, 40_000, latency_seconds=0.0, partial_probability=0.2)


class _Way(NamedTuple):
    """From one replica to another, by their places."""

    source: int
    target: int


class _Peering(NamedTuple):
    """A connection between replicas."""

    way: _Way
    connection: network.Connection


class Replicas(simulation.Simulation):
    """All parts of a run."""

    def __init__(self, world: worlds.World, plan: replica_plans.ReplicaPlan) -> None:
        self.replica_plan = plan
        self.replicas: list[replica.Replica] = []
        """The newest life of each, by its place."""
        self.truth = truths.Truth(world)
        self.newest_confirmation = 0.0
        self._places: dict[int, int] = {}
        """Where an agent is connected, by its number in the plan."""
        self._lost_ways: dict[_Way, bool] = {}
        """Whether the loss is silent."""
        self._peerings: list[_Peering] = []
        self._seen: dict[agents.Agent, set[str]] = {}
        """The permanent keys that an agent has had."""
        self._wrong_since: dict[str, float] = {}
        self._calm_at = 0.0
        self._backup: apiserver.Backup = {}
        super().__init__(world, plan.base)

    # Actions

    def start_service(self) -> None:
        """Start all replicas."""
        self.server.on_write = self.truth.written
        self._write_permanent()
        self._backup = self.server.backup()
        for place in range(self.replica_plan.replicas):
            self.start_replica(place)

    def start_replica(self, place: int) -> None:
        """Start a replica, without any state of its previous lives."""
        made = replica.Replica(self, place, len(self.generations) + 1, self.plan)
        self.generations.append(made)
        self.replicas[place : place + 1] = [made]
        if self._calm_at == 0.0 and self.world.chance(0.5):
            made.process.wall_clock_ahead_seconds = self.world.random.uniform(-5.0, 5.0)

    @property
    def services(self) -> list[service.Service]:
        """Those that serve now."""
        return list(self.replicas)

    def by_incarnation(self, incarnation: bytes) -> replica.Replica | None:
        """The replica with this incarnation, dead or alive."""
        number = int.from_bytes(incarnation)
        found = self.generations[number - 1] if 0 < number <= len(self.generations) else None
        return found if isinstance(found, replica.Replica) else None

    def by_process(self, running: process.Process) -> replica.Replica | None:
        """The replica that a hub's process belongs to."""
        return next((one for one in self.replicas if one.process is running), None)

    def service_of(self, agent: agents.Agent) -> service.Service:
        """See Simulation."""
        return self._serving.get(agent) or self.replicas[0]

    _serving: dict[agents.Agent, service.Service]

    def _dial(self, agent: agents.Agent, connection: network.Connection) -> bool:
        """A client knows all replicas, and after each end of a connection it tries another one."""
        if not hasattr(self, "_serving"):
            self._serving = {}
        before = self._serving.get(agent)
        others = [one for one in self.replicas if one is not before or len(self.replicas) == 1]
        self._serving[agent] = self.world.random.choice(others)
        return super()._dial(agent, connection)

    def _heard(self, agent: agents.Agent) -> None:
        super()._heard(agent)
        model = agent.model
        if not isinstance(model, models.NativeModel | models.TyphaModel) or model.status is None:
            return
        has = {key for key in model.keys if replica.is_permanent(key)}
        lost = self._seen.setdefault(agent, set()) - has
        if lost:
            raise worlds.Violation(f"{agent.name}: {min(lost)} is deleted, and lives")
        self._seen[agent] |= has

    def _write_permanent(self) -> None:
        for type in service.TYPES:
            for number in range(_PERMANENT):
                self.server.write(type, f"p{number}", f"first-{number}")

    def write(self, count: int) -> None:
        """Change some objects, and sometimes one of the permanent ones."""
        draw = self.world.random
        for _ in range(count):
            if draw.random() < _PERMANENT_SHARE:
                self._written += 1
                self.server.write(draw.choice(service.TYPES), f"p{draw.randrange(_PERMANENT)}", f"{self._written}")
            else:
                super().write(1)

    # The network between replicas

    def dial(self, running: process.Process, address: str) -> network.Connection | None:
        """Connect a replica to another one. See `streams.Dial`."""
        origin = self.by_process(running)
        target = next((one for one in self.replicas if one.address == address), None)
        if origin is None or target is None:
            raise OSError(errno.EHOSTUNREACH, "no such host")
        way = _Way(origin.place, target.place)
        back = _Way(target.place, origin.place)
        if way in self._lost_ways or back in self._lost_ways:
            if self._lost_ways.get(way, True):
                return None
            raise OSError(errno.EHOSTUNREACH, "no way")
        link = _LINK._replace(latency_seconds=self.replica_plan.latency_seconds)
        connection = network.Connection(self.world, _NUMBERS + len(self._peerings), link)
        self._peerings.append(_Peering(way, connection))
        if not target.backlog.connect(connection):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        return connection

    def lose_way(self, way: _Way, *, is_silent: bool, seconds: float) -> None:
        """Lose what goes from one replica to another for a while."""
        self.world.note("network", f"{way.source} -> {way.target} is lost for {seconds:.0f} s, silent: {is_silent}")
        self._lost_ways[way] = is_silent
        limit = self.plan.limits.no_progress_timeout_seconds
        for peering in self._peerings:
            connection = peering.connection
            if {*peering.way} != {*way} or connection.server_closed or connection.client_closed:
                continue
            if not is_silent:
                connection.is_reset = True
                connection.on_client_event()
                connection._fail_server(errno.ECONNRESET)
            elif peering.way == way:
                connection.up.is_cut = True
            else:
                connection.cut_down(user_timeout_seconds=limit)
        self.world.after(seconds, lambda: self.mend_way(way))

    def mend_way(self, way: _Way) -> None:
        """Have it again."""
        if self._lost_ways.pop(way, None) is not None:
            self.world.note("network", f"{way.source} -> {way.target} is there again")
            for peering in self._peerings:
                if {*peering.way} == {*way}:
                    pipe = peering.connection.up if peering.way == way else peering.connection.down
                    pipe.is_cut = False
                    pipe.move()

    # Faults

    def strike(self, kind: str) -> None:
        """Inject a fault, unless the phase of faults is over."""
        if self.is_calm:
            return
        self.world.note("fault", kind)
        _FAULTS[kind](self)

    def victim(self) -> replica.Replica:
        """A replica, by chance one that feeds others."""
        draw = self.world.random
        feeding = [one for one in self.replicas if any(other is one for _, other in self.followings())]
        return draw.choice(feeding) if feeding and draw.random() < 0.6 else draw.choice(self.replicas)

    def crash(self, one: replica.Replica, *, seconds: float) -> None:
        """Kill a replica, and start it again."""
        one.process.kill()
        self.world.after(seconds, functools.partial(self._restart, one))

    def drain(self, one: replica.Replica) -> None:
        """End a replica as a roll-out does, and start it again."""
        if one.hub is not None and one.process.is_alive:
            one.stop()
            self.world.after(0.5, functools.partial(self._restart, one))

    def _restart(self, one: replica.Replica) -> None:
        if any(running.is_alive for running in one.processes()):
            self.world.after(0.5, functools.partial(self._restart, one))
        elif self.replicas[one.place] is one:
            self.start_replica(one.place)

    def restore(self) -> None:
        """The API server is restored from a backup that lacks much."""
        self.server.restore(self._backup)

    # Checks

    def followings(self) -> list[tuple[replica.Replica, replica.Replica]]:
        """Which replica follows which, both alive."""
        found = []
        for one in self.replicas:
            upstream = one.upstream
            above = None if upstream is None else self.by_incarnation(upstream.incarnation)
            if above is not None and above.process.is_alive and one.process.is_alive:
                found.append((one, above))
        return found

    def _look(self) -> None:
        super()._look()
        above = dict(self.followings())
        for one in self.replicas:
            self._check_path(one, above)
            self._check_claim(one)
        if self.is_calm and self.world.now > self._calm_at + _SERVED_SECONDS:
            for agent in self.agents:
                is_served = agent.connection is not None and agent.model is not None and agent.model.is_accepted
                self._bound(f"{agent.name} has no server", is_served, _UNSERVED_SECONDS)

    def _bound(self, what: str, holds: bool, seconds: float) -> None:
        """Check that something wrong does not last."""
        if holds:
            self._wrong_since.pop(what, None)
        elif self.world.now - self._wrong_since.setdefault(what, self.world.now) > seconds:
            raise worlds.Violation(f"for {seconds:g} s: {what}")

    def _check_path(self, one: replica.Replica, above: dict[replica.Replica, replica.Replica]) -> None:
        """Check that followers are in no ring, and not too far from the API server, for longer than it takes to see."""
        path = [one]
        while path[-1] in above and len(path) <= len(self.replicas):
            path.append(above[path[-1]])
        is_short = len(path) <= choice.UPSTREAMS_MAX + 1 and len(set(path)) == len(path)
        disturbed_until = max(running.disturbed_until for other in path for running in other.processes())
        self._bound(f"{one!r} is in a ring", is_short or disturbed_until > self.world.now, _CHAIN_SECONDS_MAX)

    def _check_claim(self, one: replica.Replica) -> None:
        """Check that what a replica says of its freshness is true: it has all that the API server had until then."""
        source = None if one.hub is None else one.hub.feeds.get(service.FEED)
        claimed_at = None if source is None or not one.process.is_alive else source.confirmed_at
        if source is None or claimed_at is None:
            return
        if claimed_at > self.newest_confirmation:
            raise worlds.Violation(
                f"{one!r} says {claimed_at}, and no replica was confirmed since {self.newest_confirmation}"
            )
        for key in self.truth.keys:
            true_at = self.truth.last_true_at(key, one.expected.map.get(key, expected_state.ABSENT))
            if true_at < claimed_at - _CLAIM_SECONDS:
                said, had = claimed_at - worlds.BEGIN_SECONDS, true_at - worlds.BEGIN_SECONDS
                raise worlds.Violation(f"{one!r} says: confirmed at {said:.2f}, and has a {key} of {had:.2f}")

    # Phases of a run

    def _fault(self, kind: str) -> Callable[[], None]:
        return lambda: self.strike(kind)

    def run(self) -> None:
        """Run the phase of faults, and the convergence."""
        world, plan = self.world, self.plan
        self.write(plan.keys)
        begin = world.now
        self._churn()
        for seconds, kind in self.replica_plan.faults:
            world.at(begin + seconds, self._fault(kind))
        world.run_until(begin + plan.seconds)
        self.calm()
        deadline = world.now + CONVERGENCE_SECONDS
        while world.run_until(deadline, condition=self.has_converged):
            world.note("simulation", "all have converged")
            if self._stays_calm():
                return
        raise worlds.Violation(f"no rest: {self.slow_consumers()}")

    def calm(self) -> None:
        """See Simulation."""
        super().calm()
        self._calm_at = self.world.now
        for way in list(self._lost_ways):
            self.mend_way(way)
        for one in self.replicas:
            one.route.mend()

    def slow_consumers(self) -> list[str]:
        """What has not converged, for an error message."""
        lagging = [
            f"{one!r} {one.chosen and one.chosen.choice.mode}" for one in self.replicas if not self._is_settled(one)
        ]
        return lagging + [f"{agent.name}" for agent in self.agents if not self._is_current(agent)]

    def has_converged(self) -> bool:
        """Whether all replicas and clients have the objects of the API server, from where they are to have them."""
        return all(map(self._is_settled, self.replicas)) and all(map(self._is_current, self.agents))

    def _is_settled(self, one: replica.Replica) -> bool:
        the_hub = one.hub
        if the_hub is None or not one.process.is_alive or one.is_stopping:
            return False
        source = the_hub.feeds[service.FEED]
        if source.confirmed_at is None or {entry.key: entry.value for entry in source.store} != self.server.expected():
            return False
        watching = self._watching_places()
        return bool(watching) and one.is_watching is (one.place in watching)

    def _watching_places(self) -> list[int]:
        """Who is to watch the API server, once all is well."""
        match self.replica_plan.topology:
            case replica_plans.Topology.EACH:
                return [one.place for one in self.replicas]
            case replica_plans.Topology.ELECTED:
                return [one.place for one in self.replicas if one.candidate is not None and one.candidate.holds]
            case replica_plans.Topology.MUTUAL:  # whoever came first; the others follow it
                return [one.place for one in self.replicas if one.is_watching][:1]
            case _:
                return [0]

    def _stays_calm(self) -> bool:
        """Check that without faults nobody is disconnected. Returns whether nobody moves to another source either."""
        ends = sum(agent.ends for agent in self.agents)
        sources = self._sources()
        self.world.run_until(self.world.now + 1.2 * self.plan.limits.ping_interval_seconds + _REST_SECONDS)
        if self._sources() != sources:
            return False  # replicas that came back to an upstream at one moment have made a ring, and seen it
        if sum(agent.ends for agent in self.agents) != ends:
            raise worlds.Violation("a client was disconnected without a fault")
        if not self.has_converged():
            raise worlds.Violation(f"no longer converged: {self.slow_consumers()}")
        watching = [one for one in self.replicas if one.route.streams]
        if watching != [one for one in self.replicas if one.is_watching]:
            raise worlds.Violation(f"the API server has watches of {watching}")
        if self.replica_plan.topology is replica_plans.Topology.ELECTED and len(watching) != 1:
            raise worlds.Violation(f"{watching} watch, and one is elected")
        return True

    def _sources(self) -> list[tuple[choice.Upstream | None, bool]]:
        return [(one.upstream, one.is_watching) for one in self.replicas]


def _lose_way(target: Replicas, *, is_silent: bool, both: bool) -> None:
    one, other = target.world.random.sample(range(len(target.replicas)), 2)
    followings = target.followings()
    if followings and target.world.chance(0.7):
        below, above = target.world.random.choice(followings)
        one, other = target.world.random.sample([below.place, above.place], 2)
    seconds = target.world.random.choice((3.0, 12.0, 45.0))
    target.lose_way(_Way(one, other), is_silent=is_silent, seconds=seconds)
    if both:
        target.lose_way(_Way(other, one), is_silent=is_silent, seconds=seconds)


def _lose_api(target: Replicas, *, is_silent: bool) -> None:
    one = target.victim()
    seconds = target.world.random.choice((3.0, 15.0, 40.0))
    target.world.note("network", f"{one!r} loses the API server for {seconds:.0f} s, silent: {is_silent}")
    one.route.cut(is_silent=is_silent)
    target.world.after(seconds, one.route.mend)


def _wedge(target: Replicas) -> None:
    """All processes of a replica stand still, as after SIGSTOP."""
    seconds = target.world.random.choice((4.0, 12.0, 45.0))
    for running in target.victim().processes():
        running.hang(seconds)


def _hang_worker(target: Replicas) -> None:
    alive = target.workers()
    if alive:
        target.world.random.choice(alive).process.hang(target.world.random.choice((0.5, 2.0, 6.0)))


def _kill_worker(target: Replicas) -> None:
    alive = target.workers()
    if alive:
        target.world.random.choice(alive).process.kill()


def _jump(target: Replicas) -> None:
    one, seconds = target.victim(), target.world.random.choice((-86_400.0, -30.0, 30.0, 86_400.0, 3e8))
    target.world.note("clock", f"{one!r} jumps by {seconds:.0f} s")
    for running in one.processes():
        running.wall_clock_ahead_seconds += seconds


def _api_errors(target: Replicas) -> None:
    target.server.fault_probability = 0.3


def _of_agent(target: Replicas, act: Callable[[agents.Agent], None]) -> None:
    act(target.world.random.choice(target.agents))


_FAULTS: dict[str, Callable[[Replicas], None]] = {
    "crash": lambda it: it.crash(it.victim(), seconds=it.world.random.choice((0.5, 5.0, 30.0))),
    "wedge": _wedge,
    "way-silent": lambda it: _lose_way(it, is_silent=True, both=True),
    "way-error": lambda it: _lose_way(it, is_silent=False, both=True),
    "way-one": lambda it: _lose_way(it, is_silent=True, both=False),
    "api-lost": lambda it: _lose_api(it, is_silent=False),
    "api-lost-silent": lambda it: _lose_api(it, is_silent=True),
    "api-down": lambda it: it.server.go_down(it.world.random.choice((1.0, 8.0))),
    "api-long-down": lambda it: it.server.go_down(40.0),
    "api-compact": lambda it: it.server.compact(),
    "api-restore": lambda it: it.restore(),
    "api-errors": _api_errors,
    "clock": _jump,
    "drain": lambda it: it.drain(it.victim()),
    "worker-kill": _kill_worker,
    "worker-hang": _hang_worker,
    "hub-hang": lambda it: it.victim().process.hang(it.world.random.choice((0.2, 2.0, 6.0))),
    "burst": lambda it: it.write(it.world.random.choice((5, 30, 100))),
    "leave": lambda it: _of_agent(it, lambda one: one.hang_up(is_reset=it.world.chance(0.5))),
    "stall": lambda it: _of_agent(it, lambda one: one.stall(it.world.random.choice((1.0, 6.0)))),
    "cut": lambda it: _of_agent(
        it, lambda one: one.cut(8.0, user_timeout_seconds=it.plan.limits.no_progress_timeout_seconds)
    ),
}


@contextlib.contextmanager
def _connected(running: list[Replicas], world: worlds.World, plan: plans.Plan) -> Iterator[None]:
    """Let replicas connect to each other and to the Lease, and record what followers take."""
    take = followed.FollowedFeed.take

    def taken(self: followed.FollowedFeed, limits: feed.BatchLimits = feed.EVERYTHING) -> feed.Batch | None:
        batch = take(self, limits)
        one = running[0].by_process(world.current) if running and world.current is not None else None
        if one is None:
            return batch
        if batch is not None:
            one.expected.record(batch)
            if one.expected.digest != self.store.digest:
                raise worlds.Violation(f"{one!r}: the store's digest is not that of its updates")
        if self._in_force is messages.SyncStatus.IN_SYNC and not self.backlog:
            one.settled()
        return batch

    async def exchange(
        session: replica.Replica,
        method: str,
        path: str,
        *,
        json_body: bytes | None = None,
        answer_seconds: float = 30.0,
    ) -> discovery.Answer:
        try:
            async with asyncio.timeout(answer_seconds):
                return discovery.Answer(*await session.server.exchange_lease(session.route, method, json_body))
        except (apiserver.Refused, TimeoutError) as error:
            raise api.Interrupted(policy.Failure.NETWORK, str(error)) from error

    def dial(running_process: process.Process, address: str) -> network.Connection | None:
        return running[0].dial(running_process, address)

    with contextlib.ExitStack() as stack:
        patches: list[Any] = [
            mock.patch.object(followed.FollowedFeed, "take", taken),
            mock.patch.object(asyncio, "open_connection", streams.opener(world, dial, is_tls=plan.tls)),
            mock.patch.object(discovery, "exchange", exchange),
        ]
        for patch in patches:
            stack.enter_context(patch)
        yield


def run(seed: int, *, tell: Callable[[str], None] | None = None) -> worlds.World:
    """Run a seed. Returns its world, with the history.

    Raises:
        Violation: an invariant does not hold. The notes of the exception have the seed and the last events.
    """
    plan = replica_plans.make(seed)
    world = worlds.World(seed, tell=tell)
    running: list[Replicas] = []

    def make() -> Replicas:
        made = Replicas(world, plan)
        running.append(made)
        return made

    with _connected(running, world, plan.base):
        simulation.run_in(world, plan.base, make)
    return world
