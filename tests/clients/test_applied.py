"""What a receiver has applied, and when the server hears of it."""

import heapq
import itertools
import pathlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import applied, follower, mirror, testing
from protocol import messages
from tests.harness import worker_stand

FEEDS = {"pods": {"/a": b"1", "/b": b"2"}}
IN_SYNC = messages.SyncStatus.IN_SYNC


class VirtualTimers:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, VirtualTimer]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> "VirtualTimer":
        timer = VirtualTimer(callback)
        heapq.heappush(self._due, (self.now + delay, next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._due)
            if not timer.is_cancelled:
                timer.callback()
        self.now = end


class VirtualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Bench:
    """An acknowledger and what it has sent: (time, sequence)."""

    def __init__(self) -> None:
        self.timers = VirtualTimers()
        self.sent: list[tuple[float, int]] = []
        self.one = applied.Acknowledger(self.timers)
        self.one.connected(self.send)

    def send(self, sequence: int) -> None:
        self.sent.append((self.timers.now, sequence))


def test_the_first_one_goes_at_once_and_the_others_once_a_second_with_the_newest() -> None:
    bench = Bench()
    for sequence in range(1, 26):
        bench.one.received(sequence, has_changed=True)
        bench.one.applied()
        bench.timers.advance(0.125)
    bench.timers.advance(10.0)
    assert bench.sent == [(0.0, 1), (1.0, 8), (2.0, 16), (3.0, 24), (4.0, 25)]


def test_nothing_is_applied_that_nobody_has_applied() -> None:
    bench = Bench()
    bench.one.received(5, has_changed=True)
    version = bench.one.version
    bench.one.received(6, has_changed=True)
    bench.timers.advance(5.0)
    assert bench.sent == []
    bench.one.applied(version)
    bench.timers.advance(5.0)
    assert [sequence for _, sequence in bench.sent] == [5]


def test_what_follows_without_a_change_is_applied_too() -> None:
    bench = Bench()
    bench.one.received(5, has_changed=True)
    bench.one.received(6, has_changed=False)
    bench.one.applied()
    bench.timers.advance(1.0)
    bench.one.received(9, has_changed=False)
    assert [sequence for _, sequence in bench.sent] == [6, 9]
    bench.one.received(10, has_changed=True)
    bench.timers.advance(5.0)
    assert [sequence for _, sequence in bench.sent] == [6, 9]


def test_another_connection_with_the_same_map_needs_no_call() -> None:
    bench = Bench()
    bench.one.received(500, has_changed=True)
    bench.one.applied()
    bench.one.disconnected()
    bench.one.received(501, has_changed=False)  # as of a connection whose server does not want to know
    bench.one.connected(bench.send)
    bench.one.received(7, has_changed=False)
    assert [sequence for _, sequence in bench.sent] == [500, 7]


def test_no_message_comes_after_the_connection() -> None:
    bench = Bench()
    bench.one.received(1, has_changed=True)
    bench.one.applied()
    bench.one.received(2, has_changed=True)
    bench.one.applied()
    bench.one.disconnected()
    bench.timers.advance(5.0)
    assert [sequence for _, sequence in bench.sent] == [1]


def test_versions_of_a_slow_receiver_are_rounded_down() -> None:
    bench = Bench()
    for sequence in range(1, 5001):
        bench.one.received(sequence, has_changed=True)
    assert len(bench.one._covered) <= applied._VERSIONS_MAX + 1
    for version in (1000, 2500, 5000):
        bench.one.applied(version)
        bench.timers.advance(2.0)
    found = [sequence for _, sequence in bench.sent]
    assert len(found) == 3
    assert all(wanted - 256 <= one <= wanted for one, wanted in zip(found, (1000, 2500, 5000), strict=True))
    assert found[-1] == 5000


@pytest.mark.parametrize("version", [-1, 2])
def test_versions_that_there_are_not(version: int) -> None:
    bench = Bench()
    bench.one.received(1, has_changed=True)
    with pytest.raises(ValueError, match="no version"):
        bench.one.applied(version)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("apply"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("wait"), st.integers(1, 15), st.booleans()),
        st.tuples(st.just("reconnect"), st.integers(0, 50), st.booleans()),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_a_server_hears_only_what_is_applied(steps: list[tuple[str, int, bool]]) -> None:
    """The model keeps every sequence of the connection with the version that the map had there."""
    bench = Bench()
    sequence, applied_version, seen, begun = 0, 0, [(0, 0)], 0
    for step, number, has_changed in steps:
        match step:
            case "receive":
                sequence += number
                bench.one.received(sequence, has_changed=has_changed)
                seen.append((sequence, bench.one.version))
            case "apply":
                version = max(0, bench.one.version - number)
                applied_version = max(applied_version, version)
                bench.one.applied(version)
            case "wait":
                bench.timers.advance(number / 10)
            case "reconnect":
                sequence, begun, seen = number, len(bench.sent), []
                bench.one.connected(bench.send)
        for _, said in bench.sent[begun:]:
            first_unapplied = min((at for at, version in seen if version > applied_version), default=1 << 62)
            assert said <= sequence
            assert said < first_unapplied or any(at == said and version <= applied_version for at, version in seen)
    times = [at for at, _ in bench.sent[begun:]]
    assert all(later - sooner >= 0.999 for sooner, later in itertools.pairwise(times))
    bench.timers.advance(1.0)
    known = [at for at, version in seen if version <= applied_version and (at, version) != (0, 0)]
    if known:
        assert max([said for _, said in bench.sent[begun:]], default=0) == max(known)


async def test_a_mirror_tells_by_one_call_and_after_a_reconnect_by_none() -> None:
    async with (
        testing.Server(feeds=FEEDS) as server,
        mirror.Mirror(server.address, feed="pods", agent="test", reports_applied=True) as held,
    ):
        await held.wait_in_sync(timeout_seconds=180)
        assert server.applied("pods") == [0]
        held.applied()
        await server.wait_applied("pods")
        server.put("pods", "/c", b"3")
        server.disconnect_all()
        await server.wait_hellos(2)
        changes = held.changes()
        while "/c" not in held:
            await anext(changes)
        version = held.version
        assert max(server.applied("pods"), default=0) < server.feeds["pods"].sequence
        held.applied(version)
        await server.wait_applied("pods")
        server.disconnect_all()
        await server.wait_hellos(3, timeout_seconds=180)
        await server.wait_applied("pods", timeout_seconds=180)
        await changes.aclose()
    assert all("positions" in hello.features for hello in server.hellos)


async def test_what_is_restored_is_not_applied_by_that(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "pods"
    async with testing.Server(feeds=FEEDS) as server:
        for expected in (False, True):
            async with mirror.Mirror(
                server.address, feed="pods", agent="test", reports_applied=True, state_file=file
            ) as held:
                await held.wait_in_sync(timeout_seconds=10)
                assert (held.restored, held.version) == (expected, 1)
                assert server.applied("pods") == [0]
                held.applied(1)
                await server.wait_applied("pods")
            await worker_stand.eventually(lambda: not server.clients)


async def test_an_event_is_applied_once_the_next_one_is_asked_for() -> None:
    async with testing.Server(feeds=FEEDS, ping_interval_seconds=0.05) as server:
        events = follower.follow(server.address, feed="pods", agent="test", reports_applied=True)
        kinds: list[type] = []
        while not kinds or kinds[-1] is not follower.Batch:
            kinds.append(type(await anext(events)))
        assert server.applied("pods") == [0]
        assert await anext(events) == follower.StatusChanged(IN_SYNC)
        await server.wait_applied("pods")
        await events.aclose()


async def test_whoever_does_not_report_must_not() -> None:
    async with testing.Server(feeds=FEEDS) as server, mirror.Mirror(server.address, feed="pods", agent="t") as held:
        await held.wait_in_sync(timeout_seconds=180)
        assert server.applied("pods") == []
        with pytest.raises(RuntimeError, match="reports_applied"):
            held.applied()
        assert held.version == 0
