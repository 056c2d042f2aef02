"""Which TLS handshakes begin, and which end, while peers begin some and never go on. Time is a number here."""

import asyncio
import collections
import heapq
import itertools
import pathlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
from structlog import testing

from protocol.reasons import DisconnectReason
from tests.harness import certificates
from typha import clock
from typha.worker import (
    client,
    connections,
    handshake_steps,
    handshakes,
    policy,
    poller,
    tls,
    tls_session,
    tls_transport,
    trimming,
)

pytestmark = pytest.mark.slow

STEP_SECONDS = 0.001
ANSWER_SECONDS = 0.02
ATTACKER, AGENT = "10.0.0.1", "10.0.0.2"
TIMEOUT_SECONDS = 10.0


class Hall:
    """Handshakes without bytes: a peer goes on with its handshake some time after its first step, or never."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.now = 100.0
        self.answer_seconds: dict[client.Client, float] = {}
        """How long a peer takes for its answer; one that is missing here never answers."""
        self.arrived_at: dict[client.Client, float] = {}
        self.done_after: dict[client.Client, float] = {}
        self.closed: dict[client.Client, DisconnectReason] = {}
        self.most_begun = 0
        self.waits = 0
        """Turns of the loop in which the thread was at work."""
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._by_handshake: dict[int, client.Client] = {}
        self._socket = socket.socket()
        self.transport = tls_transport.TlsTransport()
        self.handshakes = handshakes.TlsHandshakes(
            tls.Contexts(certificates.make(folder).settings()),
            cast("poller.AnyPoller[client.Client]", self),
            self.transport,
            cast("connections.Connections", self),
            policy.Policy(),
            guarded=lambda action: action(),
            take_steps=self._take_steps,
        )

    # In place of the poller and the connections.

    def watch_handshake(self, current: client.Client, *, wants_write: bool) -> None:
        """A peer that answers does so a little later."""
        if current in self.answer_seconds:
            self._later(self.answer_seconds[current], lambda: self._ready(current))

    def watch_read(self, current: client.Client) -> None:
        """The handshake is done."""
        self.done_after[current] = self.now - self.arrived_at[current]

    def has_hung_up(self, current: client.Client) -> bool:
        """Nobody hangs up."""
        return False

    def hold(self, current: client.Client, count: int) -> None:
        """Memory has no limit here."""

    def close(self, current: client.Client, reason: DisconnectReason, *, detail: str = "") -> None:
        """The connection ends."""
        if not current.is_closing():
            current.become_closing(reason)
            current.hello = None
            self.closed[current] = reason

    def _take_steps(self, batch: list[handshake_steps.Handshake], _: tls.ClientTls) -> list[handshake_steps.Verdict]:
        """In the thread."""
        return [self._take_step(handshake) for handshake in batch]

    def _take_step(self, handshake: handshake_steps.Handshake) -> handshake_steps.Verdict:
        """The second step is the last one."""
        handshake.steps += 1
        if handshake.steps == 1:
            return handshake_steps.Verdict()
        handshake.session = cast("tls_session.Session", object())
        return handshake_steps.Verdict(done=True)

    # What happens.

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), action))

    def _ready(self, current: client.Client) -> None:
        if current.hello is not None:
            self.handshakes.ready(current, current.hello)
            self.handshakes.go_on()

    def arrive(self, host: str, *, answer_seconds: float | None = None) -> client.Client:
        """A connection and its first bytes; without `answer_seconds` it stops there."""
        number = next(self._order)
        newcomer = client.Client(self._socket, f"{host}:{number}", number=number, slot=0, now=self.now)
        self.arrived_at[newcomer] = self.now
        assert newcomer.hello is not None
        newcomer.hello.is_shaking = True
        if answer_seconds is not None:
            self.answer_seconds[newcomer] = answer_seconds
        self._later(TIMEOUT_SECONDS, lambda: self._time_out(newcomer))
        self._ready(newcomer)
        return newcomer

    def _time_out(self, current: client.Client) -> None:
        if current not in self.done_after:
            self.close(current, DisconnectReason.HANDSHAKE_TIMEOUT)

    async def pass_time(self, seconds: float, each_step: Callable[[], object] = lambda: None) -> None:
        """Calls `each_step` every millisecond, and lets everything happen that is due."""
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_SECONDS
            each_step()
            while self._due and self._due[0][0] <= self.now:
                heapq.heappop(self._due)[2]()
            self.handshakes.look_after()
            while self.transport.stepping:
                self.waits += 1
                await asyncio.sleep(0)
            self.most_begun = max(self.most_begun, len(self.handshakes._begun))

    def end(self) -> None:
        """Nothing happens any more."""
        self.handshakes.close()
        self._socket.close()


@pytest.fixture
async def hall(tmp_path: pathlib.Path) -> AsyncIterator[Hall]:
    """Ends with the test."""
    made = Hall(tmp_path)
    with clock.replaced(monotonic=lambda: made.now, time_ns=lambda: int(made.now * 1e9)):
        yield made
        made.end()


@pytest.mark.parametrize("host", [ATTACKER, AGENT])
async def test_handshakes_that_stop_keep_no_agent_out(hall: Hall, host: str) -> None:
    """400 a second, and an agent every half second, from another address or the same."""
    agents: list[client.Client] = []
    ticks = itertools.count(1)

    def arrive() -> None:
        tick = next(ticks)
        if tick % 5 in (0, 2):
            hall.arrive(ATTACKER)
        if tick % 500 == 0:
            agents.append(hall.arrive(host, answer_seconds=ANSWER_SECONDS))

    await hall.pass_time(6.0, arrive)
    await hall.pass_time(1.0)
    waits = [hall.done_after[agent] for agent in agents]
    assert max(waits) < (0.8 if host == AGENT else 1.5)
    assert max(waits[6:]) < 0.3
    assert hall.most_begun <= handshakes._BEGUN_MAX


async def test_addresses_take_turns(hall: Hall) -> None:
    """All places are taken, and each address has a queue."""
    for _ in range(1_000):
        hall.arrive(ATTACKER)
    others = [hall.arrive(f"10.0.1.{number}", answer_seconds=ANSWER_SECONDS) for number in range(50)]
    await hall.pass_time(1.5)
    assert len(hall.done_after) == 50
    assert set(hall.done_after) == set(others)


async def test_a_fleet_of_one_address_that_answers_late_is_let_in_whole(hall: Hall) -> None:
    """Agents behind one address are not hurried while others wait, and none is closed for another one."""
    for number in range(1_000):
        hall.arrive(AGENT, answer_seconds=0.2 + number % 7 / 5)
    await hall.pass_time(9.0)
    assert len(hall.done_after) == 1_000
    assert hall.closed == {}
    assert hall.most_begun < 400


async def test_too_many_that_have_begun_cost_the_address_that_has_most_its_oldest(hall: Hall) -> None:
    agents = [hall.arrive(AGENT, answer_seconds=5.0) for _ in range(20)]
    await hall.pass_time(0.1)
    attackers: list[client.Client] = []
    ticks = itertools.count(1)
    await hall.pass_time(6.0, lambda: attackers.append(hall.arrive(ATTACKER)) if next(ticks) % 2 else None)
    assert set(hall.done_after) == set(agents)
    assert hall.most_begun == handshakes._BEGUN_MAX
    closed = list(hall.closed)
    assert closed == attackers[: len(closed)]
    assert len(closed) > 500
    assert set(hall.closed.values()) == {DisconnectReason.HANDSHAKE_TIMEOUT}


async def test_memory_is_given_back_behind_handshakes_that_failed(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[float] = []
    monkeypatch.setattr(trimming, "trim", lambda: trims.append(hall.now))
    for _ in range(100):
        hall.arrive(ATTACKER)
    await hall.pass_time(5.0)
    assert trims == []
    await hall.pass_time(TIMEOUT_SECONDS)
    hall.handshakes.close()
    assert len(trims) == 1


async def test_memory_is_given_back_behind_clients_that_were_slow(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[None] = []
    monkeypatch.setattr(trimming, "trim", lambda: trims.append(None))

    def free_a_piece() -> None:
        hall.transport.freed_pieces += 1

    await hall.pass_time(0.04, free_a_piece)  # too few
    await hall.pass_time(11.0)
    await hall.pass_time(15.0, free_a_piece)  # at their beginning, and 10 s later
    await hall.pass_time(20.0)  # once more behind the last ones
    hall.handshakes.close()
    assert len(trims) == 3


class DefectiveHall(Hall):
    """Each step meets a defect."""

    def _take_step(self, handshake: handshake_steps.Handshake) -> handshake_steps.Verdict:
        defect = ValueError("a defect")
        return handshake_steps.Verdict(reason=DisconnectReason.SERVER_ERROR, detail=str(defect), defect=defect)


async def test_defects_close_each_connection_and_few_are_logged(tmp_path: pathlib.Path) -> None:
    hall = DefectiveHall(tmp_path)
    with (
        clock.replaced(monotonic=lambda: hall.now, time_ns=lambda: int(hall.now * 1e9)),
        testing.capture_logs() as lines,
    ):
        for _ in range(200):
            hall.arrive(ATTACKER)
        await hall.pass_time(0.9)
        hall.end()
    assert collections.Counter(hall.closed.values()) == {DisconnectReason.SERVER_ERROR: 200}
    assert len(lines) == handshakes._DEFECT_LINES_PER_SECOND
    assert {str(line["exc_info"]) for line in lines} == {"a defect"}


class Panic(BaseException):
    """As what pyo3 makes of a panic: no Exception."""


class FailingHall(Hall):
    """One call into the thread fails as a whole, before it has a verdict."""

    failure: BaseException | None = None

    def _take_steps(self, batch: list[handshake_steps.Handshake], _: tls.ClientTls) -> list[handshake_steps.Verdict]:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        return [self._take_step(handshake) for handshake in batch]


@pytest.mark.parametrize("failure", [MemoryError(), Panic("no memory")])
async def test_a_call_that_fails_as_a_whole_ends_its_connections_and_no_other(
    tmp_path: pathlib.Path, failure: BaseException
) -> None:
    hall = FailingHall(tmp_path)
    hall.failure = failure
    with (
        clock.replaced(monotonic=lambda: hall.now, time_ns=lambda: int(hall.now * 1e9)),
        testing.capture_logs() as lines,
    ):
        unlucky = hall.arrive(AGENT, answer_seconds=0.1)
        await hall.pass_time(0.1)
        lucky = hall.arrive(AGENT, answer_seconds=0.1)
        await hall.pass_time(1.0)
        hall.end()
    assert hall.closed == {unlucky: DisconnectReason.SERVER_ERROR}
    assert list(hall.done_after) == [lucky]
    assert [line["exc_info"] for line in lines] == [failure]
