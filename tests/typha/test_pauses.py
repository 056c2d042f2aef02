"""Pauses: what is the longest lately, and of all."""

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from typha import pauses

STEPS = st.lists(st.tuples(st.floats(0, 900), st.floats(0, 5)), max_size=40)


@given(STEPS)
def test_the_worst_stays_and_the_recent_ones_cover_ten_minutes(steps: list[tuple[float, float]]) -> None:
    longest, now = pauses.Longest(0.0), 0.0
    noted: list[tuple[float, float]] = []
    for passed, seconds in steps:
        now += passed
        longest.rotate(now)
        longest.note(seconds)
        noted.append((now, seconds))
        ages = [(now - when, length) for when, length in noted]
        assert longest.worst_seconds == max(length for _, length in ages)
        assert longest.recent_seconds >= max(length for age, length in ages if age < pauses.WINDOW_SECONDS)


def test_what_is_long_ago_is_no_longer_recent() -> None:
    longest = pauses.Longest(0.0)
    longest.note(3.0)
    for now in (pauses.WINDOW_SECONDS, 2 * pauses.WINDOW_SECONDS):
        longest.rotate(now)
    assert (longest.recent_seconds, longest.worst_seconds) == (0.0, 3.0)


async def test_the_probe_sees_a_loop_that_is_held_up() -> None:
    probe = pauses.PauseProbe()
    running = asyncio.create_task(probe.run())
    await asyncio.sleep(pauses.PROBE_SECONDS)
    asyncio.get_running_loop().call_soon(time.sleep, 0.2)
    await asyncio.sleep(2 * pauses.PROBE_SECONDS)
    running.cancel()
    assert 0.2 - pauses.PROBE_SECONDS <= probe.longest.worst_seconds < 1.0
