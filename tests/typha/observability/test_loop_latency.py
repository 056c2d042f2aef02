"""Pauses: what is the longest lately, and of all."""

import asyncio
import selectors
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typha import clock
from typha.observability import loop_latency

STEPS = st.lists(st.tuples(st.floats(0, 900), st.floats(0, 5)), max_size=40)


@given(STEPS)
def test_the_worst_stays_and_the_recent_ones_cover_ten_minutes(steps: list[tuple[float, float]]) -> None:
    longest, now = loop_latency.Longest(0.0), 0.0
    noted: list[tuple[float, float]] = []
    for passed, seconds in steps:
        now += passed
        longest.rotate(now)
        longest.note(seconds)
        noted.append((now, seconds))
        ages = [(now - when, length) for when, length in noted]
        assert longest.worst_seconds == max(length for _, length in ages)
        assert longest.recent_seconds >= max(length for age, length in ages if age < loop_latency.WINDOW_SECONDS)


def test_what_is_long_ago_is_no_longer_recent() -> None:
    longest = loop_latency.Longest(0.0)
    longest.note(3.0)
    for now in (loop_latency.WINDOW_SECONDS, 2 * loop_latency.WINDOW_SECONDS):
        longest.rotate(now)
    assert (longest.recent_seconds, longest.worst_seconds) == (0.0, 3.0)


class Time:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.late_seconds = 0.0
        """How much longer than asked the process sleeps."""
        select = selectors.EpollSelector.select

        def sleep(selector: selectors.EpollSelector, timeout: float | None = None) -> list[Any]:
            self.now += (timeout or 0.0) + self.late_seconds
            return select(selector, 0)

        monkeypatch.setattr(selectors.EpollSelector, "select", sleep)

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    made = Time(monkeypatch)
    with clock.replaced(monotonic=made.monotonic, time_ns=lambda: 0):
        yield made


def test_the_longest_turn_of_a_loop_is_seen_whenever_it_comes(time: Time) -> None:
    selector = loop_latency.TimingSelector()

    async def work() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.3)  # an idle loop is not held up
        loop.call_soon(time.advance, 0.1)
        await asyncio.sleep(0.01)

    class Loop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return time.now

    with asyncio.Runner(loop_factory=lambda: Loop(selector)) as runner:
        runner.run(work())
    assert time.now == pytest.approx(1000.4)
    assert selector.longest.worst_seconds == pytest.approx(0.1)


def test_a_loop_that_wakes_up_late_was_held_up(time: Time) -> None:
    selector = loop_latency.TimingSelector()
    time.late_seconds = 0.05
    with selector:
        for timeout in (None, 0.0, 0.05):
            selector.select(timeout)
    assert selector.longest.worst_seconds == pytest.approx(0.05)
