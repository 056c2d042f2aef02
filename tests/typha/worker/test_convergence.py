"""What clients say they have applied, in a worker: pure, and on real sockets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors, messages
from tests.harness.worker_stand import FEED, Peer, WorkerStand, eventually, pod
from typha.ipc import messages as ipc
from typha.worker import convergence

POSITIONS = frozenset({"positions"})


class Reporter:
    """A client."""

    def __init__(self) -> None:
        self.applied: convergence.Position | None = None


class Bench:
    """Some clients that report, and a feed that has reached 100."""

    def __init__(self, count: int) -> None:
        self.all = convergence.Convergence()
        self.clients = [Reporter() for _ in range(count)]
        for one in self.clients:
            self.all.add(one, FEED, 0.0)

    def note(self, place: int, sequence: int, now: float) -> None:
        self.all.note(self.clients[place], FEED, sequence, newest=100, now=now)

    def report(self, now: float, newest: int = 100) -> ipc.ReportApplied:
        [found] = self.all.reports({FEED: newest}, now)
        return found


def test_a_change_is_applied_everywhere_when_the_last_client_has_applied_it() -> None:
    bench = Bench(3)
    bench.all.expect(FEED, 50, 10.0)
    bench.note(0, 60, 11.0)
    bench.note(1, 49, 12.0)
    assert bench.report(12.0).reached == 0
    bench.note(2, 50, 13.0)
    bench.note(1, 55, 14.5)
    bench.note(1, 56, 15.0)
    found = bench.report(16.0)
    assert (found.reached, found.reached_at, found.lowest) == (50, 14.5, 50)


def test_a_client_that_goes_is_not_waited_for_and_a_newcomer_neither() -> None:
    bench = Bench(2)
    bench.all.expect(FEED, 50, 10.0)
    bench.all.add(Reporter(), FEED, 10.5)
    bench.note(0, 50, 11.0)
    bench.all.remove(bench.clients[1], FEED, 12.0)
    found = bench.report(13.0)
    assert (found.reached, found.reached_at, found.reporting) == (50, 12.0, 2)


def test_nobody_to_wait_for() -> None:
    bench = Bench(1)
    bench.all.remove(bench.clients[0], FEED, 1.0)
    bench.all.remove(Reporter(), FEED, 1.0)  # one that does not report
    bench.all.expect(FEED, 50, 10.0)
    bench.all.expect("another", 5, 10.0)
    found, other = bench.all.reports({FEED: 100}, 11.0)
    assert (found.reached, found.reached_at, found.reporting, found.lowest) == (50, 0.0, 0, convergence.EVERYTHING)
    assert (other.reached, other.lowest) == (5, convergence.EVERYTHING)


def test_who_has_applied_everything_up_to_now() -> None:
    bench = Bench(3)
    assert bench.report(0.0, newest=40).applied == 3  # nothing can be expected of them yet
    bench.report(1.0, newest=40)
    bench.note(0, 40, 1.5)
    bench.note(1, 39, 1.5)
    assert bench.report(2.0, newest=100).applied == 1
    assert bench.report(3.0, newest=100).applied == 1
    assert bench.report(4.0, newest=100).applied == 0  # 100 is two seconds old
    bench.note(1, 100, 4.5)
    found = bench.report(5.0, newest=100)
    assert (found.applied, found.reporting, found.lowest) == (1, 3, 0)


def test_a_position_that_goes_back_is_ignored_and_one_from_the_future_rejected() -> None:
    bench = Bench(1)
    for sequence in (50, 0, 49, 50):
        bench.note(0, sequence, 1.0)
    assert bench.report(1.0).lowest == 50
    with pytest.raises(errors.RemoteProtocolError, match="only reached 100"):
        bench.note(0, 101, 1.0)
    assert bench.report(1.0).lowest == 50


def test_a_flood_is_rejected_and_what_a_network_held_back_is_not() -> None:
    bench = Bench(2)
    for _ in range(int(convergence.MESSAGES_AT_ONCE)):
        bench.note(0, 1, 5.0)
    with pytest.raises(errors.RemoteProtocolError, match="too many"):
        bench.note(0, 2, 5.0)
    bench.note(0, 2, 6.0)
    for second in range(1000):
        bench.note(1, second % 100, float(second))


@given(st.lists(st.tuples(st.sampled_from("anre"), st.integers(0, 4), st.integers(0, 20)), max_size=60))
def test_what_is_settled_is_what_a_look_at_all_clients_says(steps: list[tuple[str, int, int]]) -> None:
    """A model that looks at every client after each step."""
    bench = Bench(5)
    waiting: set[int] | None = None
    asked, settled = 0, (0, 0.0)
    open_clients = set(range(5))
    for moment, (step, place, sequence) in enumerate(steps, start=1):
        now = float(moment * 10)
        if step == "n" and place in open_clients:
            bench.note(place, sequence, now)
        elif step == "r" and place in open_clients:
            open_clients.remove(place)
            bench.all.remove(bench.clients[place], FEED, now)
        elif step == "e":
            asked = sequence
            bench.all.expect(FEED, asked, now)
            waiting = {one for one in open_clients if _sequence(bench, one) < asked}
            settled, waiting = (settled, waiting) if waiting else ((asked, 0.0), None)
        if waiting is not None:
            waiting = {one for one in waiting if one in open_clients and _sequence(bench, one) < asked}
            settled, waiting = (settled, waiting) if waiting else ((asked, now), None)
        found = bench.report(now)
        assert (found.reached, found.reached_at) == settled
        assert found.lowest == min((_sequence(bench, one) for one in open_clients), default=convergence.EVERYTHING)


def _sequence(bench: Bench, place: int) -> int:
    position = bench.clients[place].applied
    assert position is not None
    return position.sequence


async def test_the_hub_learns_what_clients_have_applied(stage: WorkerStand) -> None:
    stage.put(pod("a"))
    silent, first, second = (
        await stage.subscribe(),
        await stage.subscribe(features=POSITIONS),
        await stage.subscribe(features=POSITIONS | {"zstd"}),
    )
    await stage.converged(silent, first, second)
    assert first.hello is not None
    assert first.hello.features == POSITIONS
    await eventually(lambda: stage.handle.applied and stage.handle.applied[FEED].reporting == 2)
    stage.put(pod("b"))
    sequence = stage.feed.store.sequence
    for peer in (first, second):
        await stage.converged(peer)
        peer.say(messages.Applied(sequence))
    await eventually(lambda: stage.handle.applied[FEED].reached == sequence)
    found = stage.handle.applied[FEED]
    assert (found.reporting, found.lowest) == (2, sequence)
    stage.hub.convergence.look(found.reached_at + 1.0)
    counts = stage.hub.convergence.seconds[FEED]
    assert sum(counts.counts) == 1
    assert 0.0 < counts.seconds < 60.0
    second.close()
    await eventually(lambda: stage.handle.applied[FEED].reporting == 1)


@pytest.mark.parametrize(("features", "sequence"), [(frozenset[str](), 0), (POSITIONS, 1 << 62)])
async def test_a_client_that_lies_is_told_goodbye(stage: WorkerStand, features: frozenset[str], sequence: int) -> None:
    good, liar = await stage.subscribe(features=POSITIONS), await stage.subscribe(features=features)
    stage.put(pod("a"))
    await stage.converged(good, liar)
    liar.say(messages.Applied(sequence))
    await liar.read_to_end()
    assert liar.goodbye is not None
    assert liar.goodbye.reason == "protocol-error"
    good.say(messages.Applied(stage.feed.store.sequence))
    await eventually(lambda: _has_applied(stage, good, stage.feed.store.sequence))
    assert good.goodbye is None


def _has_applied(stage: WorkerStand, peer: Peer, sequence: int) -> bool:
    host, port = peer.socket.getsockname()
    [found] = [one for one in stage.server.poller.clients.values() if one.address == f"{host}:{port}"]
    return found.applied is not None and found.applied.sequence == sequence
