"""A fleet as a model in virtual time: the real decisions of freshness and rebalancing, and faults by a seed.

The simulation of the service (`simulation.py`) has one service with all its parts. Here are many replicas with nothing
but the decisions that concern the others, the API server as a version that rises, and clients that follow the Service.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Final

from protocol.reasons import DisconnectReason
from tests.simulation import world as worlds
from typha import settings
from typha.hub import rebalancing
from typha.ipc import messages
from typha.peers import freshness

POLICY: Final = freshness.HandOverPolicy(after_seconds=30.0, spread_seconds=60.0, again_seconds=300.0)
SILENCE_SECONDS: Final = 150.0
"""Until a loss in silence is noticed (`WatchPolicy.unconfirmed_seconds`)."""
PROBES_SECONDS_MAX: Final = 30.0
"""Until the Service's clients know that a replica is ready, or is not: three probes."""
RECOVERY_SECONDS_MAX: Final = 8.0
"""Until a replica is fresh again after the API server is back: watches wait up to 5 s, and lists take a moment."""
ASK_SECONDS: Final = 5.0
BACK_OFF_SECONDS_MAX: Final = 5.0
NATIVE_SHARE: Final = 0.5
STUBBORN_SHARE: Final = 0.03
"""Clients that know one replica only."""
ALLOWED_OLD_SECONDS: Final = freshness.CONFIRMED_SECONDS_MAX + 20.0
"""For how long one that has lost the API server in silence can be taken for fresh: the limits as they are meant."""
ANSWERED_SECONDS_MAX: Final = 16.0
EARLY_SECONDS: Final = 14.0
"""After the API server is back for all, nobody has a reason to move yet."""
ROUNDS_SECONDS: Final = 2 * POLICY.spread_seconds + 2 * PROBES_SECONDS_MAX + 10.0
"""After this long in a hand-over, only clients that know no other replica may be left."""
CALM_SECONDS: Final = 1200.0
REST_SECONDS: Final = 300.0


@dataclasses.dataclass(eq=False)
class Client:
    """A client over all its connections."""

    is_native: bool
    only: "Replica | None" = None
    at: "Replica | None" = None
    back_at: float = 0.0
    tries: int = 0
    named: tuple["Replica", ...] = ()


class Workers:
    """What a rebalancer sees of its supervisor; counts arrive a second late."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica
        self.active = 0
        self.gone = 0
        self.wanted = 0

    def totals(self) -> messages.WorkerCounts:
        return messages.WorkerCounts(disconnects={DisconnectReason.REBALANCED: self.gone})

    def send_away(self, clients: int) -> None:
        self.wanted += clients

    def report(self) -> None:
        self.active = len(self._replica.clients)


class Replica:
    """One replica of the fleet."""

    def __init__(self, fleet: "Fleet", number: int) -> None:
        self.fleet = fleet
        self.name = str(number)
        self.clients: dict[Client, None] = {}
        self.leavers: list[tuple[float, Client]] = []
        self.is_alive = True
        self.is_draining = False
        self.is_cut = False
        self.cuts_in_silence = False
        self.is_reachable = True
        """By the other replicas."""
        self.workers = Workers(self)
        self.governor = rebalancing.Rebalancer(
            settings.Settings(), self.workers, count_replicas=_nobody, count_nodes=lambda: 0
        )
        self.known: list[Replica] = []
        self.start(ready_after_seconds=0.0)

    def start(self, *, ready_after_seconds: float) -> None:
        """A new process: it has nothing, and must list first."""
        now = self.fleet.now
        self.is_alive = True
        self.freshness = freshness.Freshness(POLICY)
        self.version = 0
        self.confirmed_at = -1.0
        self.lost_at: float | None = now
        self.contact_from = now + ready_after_seconds
        self.ask_at = 0.0
        self.answered_at: dict[Replica, float] = {}
        self.handing_over_since: float | None = None
        self.seen_ready = False
        self.seen_from = now

    @property
    def has_way(self) -> bool:
        """Whether the API server can be reached."""
        return self.fleet.is_up and not self.is_cut

    @property
    def is_stale(self) -> bool:
        """As the replica itself sees it."""
        if self.lost_at is None or not self.version:
            return False
        return not self.cuts_in_silence or self.fleet.now - self.lost_at >= SILENCE_SECONDS

    @property
    def is_ready(self) -> bool:
        """What its probe says."""
        is_leaving = self.is_draining or self.freshness.stance is freshness.Stance.HANDING_OVER
        return self.is_alive and self.version > 0 and not is_leaving


async def _nobody() -> int:
    raise rebalancing.Unknown("the model counts")


class Fleet:
    """All of it. `second` is a step; raises Violation."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = 0.0
        self.version = 1
        self.is_up = True
        self.up_since = -1000.0
        """When the API server, as seen by all, was last back."""
        self.was_common = False
        self.replicas: list[Replica] = []
        self.gone: list[Replica] = []
        self.moves: list[float] = []
        """Hand-overs and rebalancing."""
        self._count = 0
        for _ in range(self.dice.randint(2, 8)):
            self.join(0.0)
        self.nodes = self.dice.randint(100, 300)
        self.clients = [Client(self.dice.random() < NATIVE_SHARE) for _ in range(self.nodes)]
        for client in self.clients:
            client.back_at = self.dice.uniform(0.0, 30.0)
            if self.dice.random() < STUBBORN_SHARE:
                client.only = self.dice.choice(self.replicas)

    def join(self, ready_after_seconds: float) -> Replica:
        """A new replica."""
        self._count += 1
        one = Replica(self, self._count)
        one.start(ready_after_seconds=ready_after_seconds)
        self.replicas.append(one)
        return one

    def lose(self, client: Client, named: tuple[Replica, ...] = ()) -> None:
        """A client's connection ends."""
        if client.at is not None:
            client.at.clients.pop(client, None)
        client.at, client.tries = None, 0
        client.named = named if client.is_native else ()
        client.back_at = self.now + self.dice.uniform(0.1, 1.0)

    def leave(self, one: Replica) -> None:
        """A replica's process is gone for good."""
        one.is_alive = False
        for client in list(one.clients):
            self.lose(client)
        self.replicas.remove(one)
        self.gone.append(one)
        for client in self.clients:
            if client.only is one:
                client.only = None

    def second(self) -> None:
        """One second."""
        self.now += 1.0
        self.version += 1
        for one in self.replicas:
            self._follow(one)
        for one in self.replicas:
            if one.is_alive:
                self._decide(one)
        for client in self.clients:
            if client.at is None and client.back_at <= self.now:
                self._connect(client)

    def run(self, seconds: float) -> None:
        """Several."""
        for _ in range(int(seconds)):
            self.second()

    # Parts of a second

    def _follow(self, one: Replica) -> None:
        if not one.is_alive:
            return
        if not one.has_way:
            if one.lost_at is None:
                one.lost_at = self.now
            one.contact_from = self.now + self.dice.uniform(0.5, RECOVERY_SECONDS_MAX)
        elif self.now >= one.contact_from:
            one.lost_at, one.version, one.confirmed_at = None, self.version, self.now
            one.known = list(self.replicas)
            share = rebalancing.connection_limit(replicas=len(one.known), nodes=self.nodes, lower=1, upper=10_000)
            one.governor.limit = rebalancing.Limit(share.connections // 4, share.reason)  # one connection a node here
        if one.is_ready != one.seen_ready:
            if self.now >= one.seen_from:
                one.seen_ready = one.is_ready
        else:
            one.seen_from = self.now + self.dice.uniform(1.0, PROBES_SECONDS_MAX)

    def _decide(self, one: Replica) -> None:
        state = one.freshness
        if one.is_stale and state.wants_answers(self.now) and self.now >= one.ask_at:
            one.ask_at = self.now + freshness.jittered(ASK_SECONDS)
            state.note_answers(self.now, self._ask(one))
        was = state.stance
        decision = state.look(self.now, is_stale=one.is_stale)
        if decision.stance is freshness.Stance.HANDING_OVER:
            one.handing_over_since = self.now if one.handing_over_since is None else one.handing_over_since
        else:
            one.handing_over_since = None
            if was is freshness.Stance.HANDING_OVER:
                one.leavers.clear()
        if decision.begins_round:
            at = (self.now + self.dice.uniform(0.0, POLICY.spread_seconds) for _ in one.clients)
            one.leavers = sorted(zip(at, one.clients, strict=True), key=lambda leaver: leaver[0])
        named = tuple(peer for peer in self.replicas if peer.name in decision.fresh)
        while one.leavers and one.leavers[0][0] <= self.now:
            _, client = one.leavers.pop(0)
            if client.at is one:
                self._check_move(one, decision)
                self._move(client, named)
        self._check_left(one)
        one.workers.report()
        one.governor.send_one_away(self.now)
        if one.workers.wanted and one.clients:
            self._move(self.dice.choice(list(one.clients)), ())
            one.workers.gone += 1
        one.workers.wanted = 0

    def _move(self, client: Client, named: tuple[Replica, ...]) -> None:
        self.moves.append(self.now)
        self.lose(client, named)

    def _ask(self, one: Replica) -> dict[str, freshness.Answer]:
        found = {}
        for peer in one.known:
            answers = peer.is_alive and peer.is_reachable and one.is_reachable and peer.version > 0
            if peer is not one and answers and not peer.is_draining:
                found[peer.name] = freshness.Answer(self.now, None if peer.is_stale else peer.confirmed_at)
                one.answered_at[peer] = self.now
        return found

    def _connect(self, client: Client) -> None:
        choice = [client.only] if client.only is not None else [one for one in self.replicas if one.seen_ready]
        if client.named and client.only is None:
            choice = list(client.named)
        client.named = ()
        one = self.dice.choice(choice) if choice else None
        if one is not None and one.is_alive and one.version and not one.is_draining:
            client.at, client.tries = one, 0
            one.clients[client] = None
            return
        client.back_at = self.now + min(BACK_OFF_SECONDS_MAX, 0.2 * 2**client.tries) * self.dice.uniform(0.5, 1.0)
        client.tries = min(client.tries + 1, 10)

    # Checks

    def _check_move(self, one: Replica, decision: freshness.Decision) -> None:
        """A client is handed over only to a replica that has what this one lacks."""
        assert one.lost_at is not None
        for name in decision.fresh:
            [peer] = [peer for peer in (*self.replicas, *self.gone) if peer.name == name]
            if peer.confirmed_at <= one.lost_at and peer.is_alive:
                raise worlds.Violation(f"{one.name} hands over to {name}, which has nothing newer")
            if self.now - peer.confirmed_at > ALLOWED_OLD_SECONDS and peer.is_alive:
                raise worlds.Violation(
                    f"{one.name} hands over to {name}, lost {self.now - peer.confirmed_at:.0f} s ago"
                )
            if self.now - one.answered_at.get(peer, -1000.0) > ANSWERED_SECONDS_MAX:
                raise worlds.Violation(f"{one.name} hands over to {name}, which does not answer any more")
        if self.was_common and one.has_way and self.now - self.up_since < EARLY_SECONDS:
            raise worlds.Violation(f"{one.name} hands over, although it is about to be fresh itself")

    def _check_left(self, one: Replica) -> None:
        """After two rounds, a stale replica has only clients that know no other."""
        since = one.handing_over_since
        if since is None or self.now - since < ROUNDS_SECONDS or not any(peer.seen_ready for peer in self.replicas):
            return
        left = [client for client in one.clients if client.only is None]
        if left:
            raise worlds.Violation(f"{one.name} has handed over for {self.now - since:.0f} s, {len(left)} are left")

    # Faults

    def strike(self) -> None:
        """A fault by the dice."""
        kinds: list[Callable[[], None]] = [self.outage, self.cut, self.crash, self.roll_out, self.isolate, self.grow]
        self.dice.choice(kinds)()

    def outage(self) -> None:
        """All lose the API server, at once or in silence, and find it again."""
        in_silence = self.dice.random() < 0.3
        for one in self.replicas:
            one.cuts_in_silence = in_silence and self.dice.random() < 0.5
        self.was_common = not any(one.is_cut or one.lost_at is not None for one in self.replicas)
        self.is_up = False
        self.run(self.dice.choice([10, 60, 200, 400]))
        self.is_up, self.up_since = True, self.now
        self.run(self.dice.randint(5, 60))
        self.was_common = False

    def cut(self) -> None:
        """Some lose it, at different times."""
        chosen = self.dice.sample(self.replicas, self.dice.randint(1, len(self.replicas)))
        for one in chosen:
            one.is_cut, one.cuts_in_silence = True, self.dice.random() < 0.5
            self.run(self.dice.choice([0, 3, 40, 100]))
        if self.dice.random() < 0.5:  # the others fall silent while clients are on their way to them
            for one in self.replicas:
                one.is_reachable = one.is_reachable and self.dice.random() < 0.3
        self.run(self.dice.choice([20, 100, 400]))
        for one in self.replicas:
            one.is_reachable = True
        for one in chosen:
            one.is_cut = False
            self.run(self.dice.choice([0, 3, 40]))

    def crash(self) -> None:
        """A process ends, and is started again."""
        one = self.dice.choice(self.replicas)
        one.is_alive = False
        for client in list(one.clients):
            self.lose(client)
        self.run(self.dice.randint(1, 20))
        one.start(ready_after_seconds=self.dice.uniform(2.0, 30.0))

    def roll_out(self) -> None:
        """Each replica is replaced: a new one, ready after a while, and then the old one drains."""
        for old in list(self.replicas):
            new = self.join(self.dice.uniform(2.0, 30.0))
            for _ in range(100):
                if new.seen_ready:
                    break
                self.second()
            old.is_draining = True
            for client in list(old.clients):
                if self.dice.random() < 0.1:
                    self.second()
                if client.at is old:
                    self.lose(client)
            self.leave(old)

    def isolate(self) -> None:
        """The others cannot ask a replica, nor can it ask them."""
        one = self.dice.choice(self.replicas)
        one.is_reachable = False
        self.cut()
        one.is_reachable = True

    def grow(self) -> None:
        """One more replica, which joins slowly."""
        self.join(self.dice.choice([5.0, 120.0]))
        self.run(30)

    def calm(self) -> None:
        """The faults are over: the fleet must come to rest with all clients on fresh replicas."""
        self.was_common = False
        for one in self.replicas:
            one.is_cut = one.cuts_in_silence = False
            one.is_reachable = True
        self.run(CALM_SECONDS)
        rested_at = self.now
        self.run(REST_SECONDS)
        if later := [at for at in self.moves if at > rested_at]:
            raise worlds.Violation(f"{len(later)} clients were moved in a fleet at rest")
        for one in self.replicas:
            if one.version != self.version or one.freshness.stance is not freshness.Stance.FRESH:
                raise worlds.Violation(f"{one.name} is {one.freshness.stance}, {self.version - one.version} s old")
        if homeless := [client for client in self.clients if client.at is None]:
            raise worlds.Violation(f"{len(homeless)} clients have no server")


def run(seed: int) -> Fleet:
    """Run a seed. Raises Violation, with the seed in its notes."""
    draws = random.getstate()
    random.seed(seed)  # for the jitter of the service's own code
    try:
        fleet = Fleet(seed)
        fleet.run(120)
        for _ in range(fleet.dice.randint(1, 4)):
            fleet.strike()
            fleet.run(fleet.dice.choice([5, 60, 200]))
        fleet.calm()
    except worlds.Violation as error:
        error.add_note(f"fleet, seed {seed}")
        raise
    finally:
        random.setstate(draws)
    return fleet
