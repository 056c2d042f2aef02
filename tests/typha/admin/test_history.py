"""The points of the last hour."""

import socket
from collections.abc import Iterator

import msgspec
import pytest

from protocol.reasons import DisconnectReason
from tests.harness import hub_stand, worker_stand
from typha import clock, settings
from typha.admin import history, server
from typha.hub import supervisor
from typha.ipc import messages
from typha.observability import quantiles

TOO_LARGE = 2**63 - 1


async def no_worker(*_: object) -> None:
    """No worker runs in the hub."""


class HistoryStand(hub_stand.HubStand):
    """A hub with a worker that says what the test wants, and a history in virtual time."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self.now = 1000.0
        self.unix_at_zero = 999_000.0
        self.worker = self.add_worker()
        self.supervisor = supervisor.Supervisor(
            self.hub, settings.Settings(workers=1), hub_stand.LIMITS, listener, serve_embedded=no_worker
        )
        self.history = history.History(self.supervisor, self.hub.recent)

    def passes(self, seconds: float) -> None:
        """Time passes; the history is looked after every second, and once at the end."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1)
            self.history.look()

    def counts(self, *, deliveries: int = 0, bytes_sent: int = 0, active: int = 0, **ended: int) -> None:
        """The worker reports totals."""
        disconnects = {DisconnectReason(name.replace("_", "-")): count for name, count in ended.items()}
        feeds = {worker_stand.FEED: messages.FeedCounts(deliveries=deliveries, bytes_sent=bytes_sent)}
        self.worker.say(messages.Report(messages.WorkerCounts(disconnects=disconnects, feeds=feeds), active=active))

    def delivers(self, *seconds: float) -> None:
        """The worker reports the latency of deliveries."""
        histogram = quantiles.Histogram()
        for value in seconds:
            histogram.record(value)
        self.worker.say(messages.ReportRecent(histogram.to_list(), []))

    async def points(self) -> list[history.Point]:
        """All points, as the page has them."""
        answer = await self.history.pages["/v1/history"]({})
        said = msgspec.json.decode(answer.body)
        assert said["interval_seconds"] == history.INTERVAL_SECONDS
        return msgspec.convert(said["points"], list[history.Point])

    async def ends(self, **query: str) -> list[dict[str, object]]:
        """The ended connections, as the page has them."""
        answer = await self.history.pages["/v1/ends"](query)
        return list(msgspec.json.decode(answer.body)["ends"])


@pytest.fixture
def stand() -> Iterator[HistoryStand]:
    """The stand, whose time begins at Unix time 1,000,000."""
    started: list[HistoryStand] = []

    def now() -> float:
        return started[0].now if started else 1000.0

    def unix_ns() -> int:
        return int(((started[0].unix_at_zero if started else 999_000.0) + now()) * 1e9)

    with (
        socket.socket() as listener,
        clock.replaced(monotonic=now, time_ns=unix_ns),
    ):
        made = HistoryStand(listener)
        started.append(made)
        yield made
        made.hub.close()
        made.worker.close()


async def test_points_have_what_happened_in_their_ten_seconds(stand: HistoryStand) -> None:
    stand.counts(deliveries=100, bytes_sent=5000, active=7, pong_timeout=2)
    stand.delivers(0.001, 0.001, 0.5)
    stand.passes(9.9)
    assert await stand.points() == []
    stand.passes(0.2)
    [first] = await stand.points()
    assert (first.at, first.clients, first.deliveries, first.bytes_sent) == (1_000_010.1, 7, 100, 5000)
    assert first.ends == {DisconnectReason.PONG_TIMEOUT: 2}
    assert first.latency_p50 == pytest.approx(0.001, rel=0.07)
    assert first.latency_p99 == pytest.approx(0.5, rel=0.07)
    stand.counts(deliveries=130, bytes_sent=5100, active=6, pong_timeout=2, client_closed=1)
    stand.passes(10)
    second = (await stand.points())[1]
    assert (second.clients, second.deliveries, second.bytes_sent) == (6, 30, 100)
    assert second.ends == {DisconnectReason.CLIENT_CLOSED: 1}
    assert second.latency_p50 is None
    assert second.latency_p99 is None


async def test_an_hour_is_kept(stand: HistoryStand) -> None:
    stand.passes(3700)
    points = await stand.points()
    assert len(points) == history.POINTS_MAX
    assert (points[0].at, points[-1].at) == (1_000_110.0, 1_003_700.0)


async def test_after_a_standstill_one_point_covers_all_of_it(stand: HistoryStand) -> None:
    stand.passes(10)
    stand.counts(deliveries=500)
    stand.now += 300
    stand.history.look()
    stand.passes(20)
    points = await stand.points()
    assert [point.deliveries for point in points[:2]] == [0, 500]
    assert len(points) <= 5


async def test_the_totals_of_a_dead_worker_count_once(stand: HistoryStand) -> None:
    stand.counts(deliveries=100, active=3)
    stand.passes(10)
    stand.supervisor._bury(stand.worker.handle)
    stand.passes(10)
    assert (await stand.points())[1].deliveries == 0
    assert (await stand.points())[1].ends == {DisconnectReason.WORKER_DIED: 3}


async def test_a_worker_that_lies_makes_no_point_that_cannot_be_read(stand: HistoryStand) -> None:
    stand.counts(deliveries=TOO_LARGE, bytes_sent=TOO_LARGE, active=1 << 31, pong_timeout=TOO_LARGE)
    stand.worker.say(messages.ReportRecent([TOO_LARGE, TOO_LARGE, 1, TOO_LARGE], []))
    stand.passes(10)
    stand.counts(deliveries=1)
    stand.passes(10)
    points = await stand.points()
    assert [point.deliveries for point in points] == [2**53, 0]
    assert points[0].ends == {DisconnectReason.PONG_TIMEOUT: 2**53}


async def test_the_newest_ends_come_first(stand: HistoryStand) -> None:
    def end(at: float, node: str) -> messages.End:
        return messages.End(at, node, "10.0.0.1:5", worker_stand.FEED, DisconnectReason.NO_PROGRESS, 5.0)

    stand.worker.say(messages.ReportRecent([0, 0], [end(990.0, "b"), end(995.0, "d")]))
    stand.worker.say(messages.ReportRecent([0, 0], [end(980.0, "a"), end(992.0, "c")]))
    assert [one["node"] for one in await stand.ends()] == ["d", "c", "b", "a"]
    assert await stand.ends(limit="1") == [
        {
            "at": 999_995.0,
            "node": "d",
            "address": "10.0.0.1:5",
            "feed": worker_stand.FEED,
            "reason": "no-progress",
            "age_seconds": 5.0,
            "worker": 1,
        }
    ]
    for limit in ("-1", "201", "x"):
        with pytest.raises(server.BadQuery):
            await stand.ends(limit=limit)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 315_360_000.0])
async def test_when_the_wall_clock_jumps_all_is_shown_by_the_new_clock_at_the_old_distances(
    stand: HistoryStand, seconds: float
) -> None:
    ended = messages.End(995.0, "a", "10.0.0.1:5", worker_stand.FEED, DisconnectReason.NO_PROGRESS, 5.0)
    stand.worker.say(messages.ReportRecent([0, 0], [ended]))
    stand.passes(10)
    stand.unix_at_zero += 0.1  # as when the time service adjusts it
    [before] = await stand.points()
    assert before.at == 1_000_010.0
    stand.unix_at_zero += seconds
    stand.passes(10)
    later = msgspec.structs.replace(ended, at=1005.0, node="b")
    stand.worker.say(messages.ReportRecent([0, 0], [later]))
    first, second = await stand.points()
    assert second.at - first.at == pytest.approx(10.0, abs=0.01)
    assert second.at == pytest.approx(1_000_020.1 + seconds, abs=0.01)
    assert [one["node"] for one in await stand.ends()] == ["b", "a"]
