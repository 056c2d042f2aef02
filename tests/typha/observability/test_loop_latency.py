"""Loop latency: the highest lately and since the start, and what a selector measures."""

import asyncio
import os
import selectors

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typha.observability import loop_latency

STEPS = st.lists(st.tuples(st.floats(0, 900), st.floats(0, 5)), max_size=40)


@given(STEPS)
def test_the_worst_stays_and_the_recent_latency_covers_ten_minutes(steps: list[tuple[float, float]]) -> None:
    latency, now = loop_latency.MaxLatency(0.0), 0.0
    recorded: list[tuple[float, float]] = []
    for passed, seconds in steps:
        now += passed
        latency.rotate(now)
        latency.record(seconds)
        recorded.append((now, seconds))
        ages = [(now - when, length) for when, length in recorded]
        assert latency.worst_seconds == max(length for _, length in ages)
        assert latency.recent_seconds >= max(length for age, length in ages if age < loop_latency.WINDOW_SECONDS)


def test_the_recent_latency_forgets_after_two_windows() -> None:
    latency = loop_latency.MaxLatency(0.0)
    latency.record(3.0)
    for now in (loop_latency.WINDOW_SECONDS, 2 * loop_latency.WINDOW_SECONDS):
        latency.rotate(now)
    assert (latency.recent_seconds, latency.worst_seconds) == (0.0, 3.0)


def test_a_selector_measures_the_longest_turn_of_its_loop() -> None:
    now = [1.0]
    selector = loop_latency.TimingSelector(lambda: now[0])

    async def work() -> None:
        for seconds in (0.125, 0.5, 0.25):
            now[0] += seconds
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(work())
    assert selector.latency.worst_seconds == 0.5


@pytest.mark.parametrize(("timeout", "latency_seconds"), [(None, 0.0), (0.0, 0.0), (0.25, 0.5)])
def test_a_selector_that_returns_after_its_timeout_was_held_up(timeout: float | None, latency_seconds: float) -> None:
    moments = iter((1.0, 1.0, 1.75))  # made, called, returned 0.75 s later
    ready = os.eventfd(1)
    with loop_latency.TimingSelector(lambda: next(moments)) as selector:
        selector.register(ready, selectors.EVENT_READ)
        selector.select(timeout)
    os.close(ready)
    assert selector.latency.worst_seconds == latency_seconds
