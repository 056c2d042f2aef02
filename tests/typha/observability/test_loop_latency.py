"""Pauses: what is the longest lately, and of all."""

import asyncio
import selectors
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_the_longest_turn_of_a_loop_is_seen_whenever_it_comes() -> None:
    selector = loop_latency.TimingSelector()

    async def work() -> None:
        await asyncio.sleep(0.3)  # nothing to do is no pause
        asyncio.get_running_loop().call_soon(time.sleep, 0.1)
        await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(work())
    assert 0.1 <= selector.longest.worst_seconds < 0.3


def test_who_is_answered_too_late_was_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    selector = loop_latency.TimingSelector()

    def stopped(self: selectors.EpollSelector, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        time.sleep(0.1)
        return []

    monkeypatch.setattr(selectors.EpollSelector, "select", stopped)
    with selector:
        for timeout in (None, 0.0, 0.05):
            selector.select(timeout)
    assert 0.05 <= selector.longest.worst_seconds < 0.1
