"""The limit of connections, and the pace at which clients are sent away. No I/O; a fleet is a model."""

import dataclasses
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.reasons import DisconnectReason
from typha import settings
from typha.hub import rebalancing
from typha.ipc import messages

LOWER, UPPER = 400, 10_000


@pytest.mark.parametrize(
    ("nodes", "replicas", "connections"),
    [
        (100, 3, 400),
        (500, 3, 1204),
        (1000, 10, 536),
        (5000, 20, 1264),
        (5000, 2, 10_000),
        (50, 1, 10_000),
        (50, 0, 10_000),
    ],
)
def test_the_limits_of_the_original(nodes: int, replicas: int, connections: int) -> None:
    limit = rebalancing.connection_limit(replicas=replicas, nodes=nodes, lower=LOWER, upper=UPPER)
    assert limit.connections == connections


@given(nodes=st.integers(0, 20_000), replicas=st.integers(2, 50), up=st.floats(0.0, 1.0))
def test_a_fleet_in_which_one_replica_is_down_has_room_for_all(nodes: int, replicas: int, up: float) -> None:
    limit = rebalancing.connection_limit(replicas=replicas, nodes=nodes, lower=1, upper=1 << 40)
    assert (replicas - 1) * limit.connections >= 4 * nodes
    fewer = rebalancing.connection_limit(replicas=replicas, nodes=int(nodes * up), lower=1, upper=1 << 40)
    assert fewer.connections <= limit.connections


class Workers:
    """What a rebalancer sees of its supervisor."""

    def __init__(self, active: int = 0) -> None:
        self._active = active
        self.gone = 0
        self.told: list[int] = []

    @property
    def active(self) -> int:
        return self._active

    def come(self) -> None:
        self._active += 1

    def totals(self) -> messages.WorkerCounts:
        return messages.WorkerCounts(disconnects={DisconnectReason.REBALANCED: self.gone})

    def send_away(self, clients: int) -> None:
        self.told.append(clients)

    def report_gone(self, clients: int) -> None:
        self.gone += clients
        self._active -= clients


def rebalancer(workers: Workers, count: Callable[[], tuple[int, int]]) -> rebalancing.Rebalancer:
    configured = settings.Settings(connection_rebalancing_mode=rebalancing.KUBERNETES)

    async def count_replicas() -> int:
        return count()[0]

    return rebalancing.Rebalancer(configured, workers, count_replicas=count_replicas, count_nodes=lambda: count()[1])


async def test_what_cannot_be_counted_is_no_reason_to_send_anybody_away() -> None:
    def count() -> tuple[int, int]:
        if known:
            return known[0]
        raise rebalancing.Unknown("no answer")

    known: list[tuple[int, int]] = []
    one = rebalancer(Workers(), count)
    assert one.limit == (UPPER, "initial")
    await one.look()
    assert one.limit == (UPPER, "error")
    known.append((3, 500))
    await one.look()
    assert one.limit.connections == 1204
    known.clear()
    await one.look()
    assert one.limit == (UPPER, "error")


async def test_one_client_at_a_time_and_none_twice() -> None:
    workers = Workers(active=405)
    one = rebalancer(workers, lambda: (3, 100))
    await one.look()
    assert [one.send_one_away(float(second)) for second in range(3)] == [True, True, True]
    workers.report_gone(3)
    assert [one.send_one_away(3.0 + second / 10) for second in range(4)] == [True, True, False, False]
    assert workers.told == [1] * 5
    assert one.dropped == 3


async def test_a_worker_that_had_nobody_to_send_is_asked_again() -> None:
    workers = Workers(active=401)
    one = rebalancer(workers, lambda: (3, 100))
    await one.look()
    assert [one.send_one_away(now) for now in (0.0, 1.0, 2.0, 3.0)] == [True, False, False, True]


@dataclasses.dataclass
class Replica:
    """One of a modelled fleet."""

    workers: Workers
    governor: rebalancing.Rebalancer
    look_at: float
    tick_at: float
    serves_from: float


class Fleet:
    """Replicas and clients that connect at random, in virtual time. One that is sent away may come back at once."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = 0.0
        self.nodes = self.dice.randint(50, 1000)
        self.replicas: list[Replica] = []
        self.homeless: list[float] = []
        """When each client without a connection connects."""
        self.moves: list[float] = []
        for _ in range(self.dice.randint(2, 20)):
            self.join()
        self.homeless = [self.dice.uniform(0.0, 10.0) for _ in range(4 * self.nodes)]

    def join(self, *, serves_after: float = 0.0) -> None:
        workers = Workers()
        governor = rebalancer(workers, lambda: (len(self.replicas), self.nodes))
        look_at, tick_at = (self.now + self.dice.uniform(0.0, seconds) for seconds in (30.0, 1.0))
        self.replicas.append(Replica(workers, governor, look_at, tick_at, self.now + serves_after))

    def leave(self) -> None:
        gone = self.replicas.pop(self.dice.randrange(len(self.replicas)))
        self.homeless += [self.now + self.dice.uniform(0.0, 2.0) for _ in range(gone.workers.active)]

    async def step(self, seconds: float) -> None:
        self.now += seconds
        due = [at for at in self.homeless if at <= self.now]
        self.homeless = [at for at in self.homeless if at > self.now]
        serving = [one for one in self.replicas if one.serves_from <= self.now]
        for _ in due:
            if serving:
                self.dice.choice(serving).workers.come()
            else:
                self.homeless.append(self.now + 1.0)
        for one in self.replicas:
            if one.look_at <= self.now:
                await one.governor.look()
                one.look_at += 30.0 * self.dice.uniform(1.0, 1.1)
            if one.tick_at <= self.now:
                one.tick_at += self.dice.uniform(1.0, 1.1)
                if one.governor.send_one_away(self.now) and one.workers.active:
                    one.workers.report_gone(1)
                    self.moves.append(self.now)
                    self.homeless.append(self.now + self.dice.uniform(0.1, 1.5))

    async def run(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            await self.step(1.0)


@pytest.mark.parametrize("seed", range(20))
async def test_a_fleet_comes_to_rest_whatever_happens(seed: int) -> None:
    fleet = Fleet(seed)
    await fleet.run(120.0)
    for _ in range(fleet.dice.randint(1, 4)):
        match fleet.dice.choice(["crash", "roll-out", "growth", "nodes"]):
            case "crash" if len(fleet.replicas) > 2:
                fleet.leave()
            case "roll-out":
                for _ in range(len(fleet.replicas)):
                    fleet.join(serves_after=fleet.dice.uniform(0.0, 20.0))
                    await fleet.run(fleet.dice.uniform(5.0, 30.0))
                    fleet.leave()
            case "growth":
                fleet.join(serves_after=fleet.dice.choice([0.0, 90.0]))
            case _:
                more = fleet.dice.randint(1, fleet.nodes)
                fleet.nodes += more
                fleet.homeless += [fleet.now + fleet.dice.uniform(0.0, 60.0) for _ in range(4 * more)]
        await fleet.run(fleet.dice.uniform(0.0, 90.0))
    clients = 4 * fleet.nodes
    await fleet.run(120.0 + clients / 2)  # one each second and replica
    rested_at = fleet.now
    await fleet.run(600.0)
    assert [at for at in fleet.moves if at > rested_at] == []
    for one in fleet.replicas:
        assert one.workers.active <= one.governor.limit.connections or math.isinf(one.serves_from)
    assert not fleet.homeless
    assert len(fleet.moves) <= 2 * clients
