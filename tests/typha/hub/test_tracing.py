"""Which events are traced, and when a trace ends."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest

from protocol import messages
from tests.harness import hub_stand
from tests.harness.worker_stand import PODS, pod
from typha import clock
from typha.hub import tracing


class Time:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


class Stand(hub_stand.HubStand):
    """A hub with a tracer. Chances are given by the test: an event is traced where they are below the ratio, 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.finished: list[tracing.PublishTrace] = []
        self.dropped = 0
        self.chances: list[float] = []
        self.tracer = tracing.Tracer(0.5, self.finished.append, self._drop, chance=self._chance)
        self.sink = tracing.TracedHub(self.hub, self.tracer)
        self.hub.tracer = self.tracer

    def _drop(self) -> None:
        self.dropped += 1

    def _chance(self) -> float:
        return self.chances.pop(0) if self.chances else 0.0

    def close(self) -> None:
        """Everything goes."""
        for worker in self.workers:
            worker.close()
        self.hub.close()

    def change(self, *names: str, version: int = 9) -> None:
        """Objects that come in one batch."""
        for name in names:
            self.sink.apply(pod(name, "x", version=version))
        self.sink.batch_end()


@pytest.fixture
def time() -> Iterator[Time]:
    stopped = Time()
    with (
        clock.replaced(monotonic=stopped.monotonic, time_ns=stopped.time_ns),
        mock.patch.object(tracing, "_monotonic", stopped.monotonic),
    ):
        yield stopped


@pytest.fixture
def stand(time: Time) -> Iterator[Stand]:
    with contextlib.closing(Stand()) as opened:
        yield opened


def test_a_trace_ends_with_the_last_worker(stand: Stand, time: Time) -> None:
    first, second = stand.add_worker(1, tells_progress=True), stand.add_worker(2, tells_progress=True)
    stand.open()
    for worker in (first, second):
        worker.hear()
        worker.sent()
    stand.change("p1")
    for worker, at in ((first, 101.0), (second, 103.0)):
        assert not stand.finished
        worker.hear()
        worker.sent()
        time.now = at
        stand.tracer.look(at)
    [trace] = stand.finished
    assert [(one.worker, one.ended_at, one.is_complete) for one in trace.deliveries] == [
        (1, 101.0, True),
        (2, 103.0, True),
    ]
    whole, parts = tracing.spans_of(trace)
    assert whole.ended_at == 103.0
    assert [part.name for part in parts] == ["convert", "coalesce", "commit", "deliver", "deliver"]


def test_earlier_publishes_do_not_end_it(stand: Stand) -> None:
    worker = stand.add_worker(tells_progress=True)
    stand.open()
    worker.hear()
    stand.change("p1")  # the worker has heard of it, but has finished only what came before
    worker.sent()
    stand.tracer.look(clock.monotonic())
    assert not stand.finished
    worker.hear()
    worker.sent()
    stand.tracer.look(clock.monotonic())
    assert len(stand.finished) == 1


def test_chance_chooses_and_one_of_a_batch_is_enough(stand: Stand) -> None:
    stand.add_worker()
    stand.open()
    stand.chances = [0.5, 0.9]
    stand.change("p1", "p2")
    assert not stand.finished
    stand.chances = [0.5, 0.499, 0.9]
    stand.change("p3", "p4", "p5")
    stand.tracer.look(clock.monotonic())
    assert stand.chances == [0.9]  # not asked any more in this batch
    assert len(stand.finished) == 1


def test_a_worker_that_dies_ends_its_part(stand: Stand, time: Time) -> None:
    worker = stand.add_worker(tells_progress=True)
    stand.open()
    stand.change("p1")
    stand.hub.remove_worker(1)
    stand.tracer.look(time.now)
    [trace] = stand.finished
    assert [one.is_complete for one in trace.deliveries] == [False]
    assert tracing.spans_of(trace)[1][-1].has_failed
    worker.hear()


def test_a_worker_that_is_stuck_ends_its_part(stand: Stand, time: Time) -> None:
    stand.add_worker(tells_progress=True)
    stand.open()
    stand.change("p1")
    time.now += tracing.DELIVERY_SECONDS_MAX
    stand.tracer.look(time.now)
    assert not stand.finished
    time.now += 1.0
    stand.tracer.look(time.now)
    assert [one.is_complete for one in stand.finished[0].deliveries] == [False]


def test_what_nobody_is_sent_has_no_delivery(stand: Stand) -> None:
    stand.add_worker(tells_progress=True)
    stand.sync()
    stand.change("p1")
    [trace] = stand.finished
    assert trace.deliveries == []
    assert tracing.spans_of(trace)[0].attributes["typha.published"] is False


def test_deletions_are_traced(stand: Stand) -> None:
    stand.sync()
    stand.change("p1")
    stand.sink.delete(pod("p1", version=10))
    stand.sink.batch_end()
    assert [trace.operation for trace in stand.finished] == ["apply", "delete"]


def test_no_more_are_followed_than_fit(stand: Stand) -> None:
    stand.add_worker(tells_progress=True)
    stand.open()
    for number in range(tracing.FOLLOWED_MAX + 3):
        stand.sink.apply(pod("p1", str(number), version=number + 10))
        stand.hub.commit()
    assert stand.dropped == 3
    assert not stand.finished


def test_the_rest_of_the_sink_is_the_hubs(stand: Stand) -> None:
    stand.sink.status(PODS, messages.SyncStatus.IN_SYNC)
    stand.sink.batch_end()
    assert all(source.synced_once for source in stand.hub.feeds.values())
