"""Measures the latency of an event loop, and keeps garbage collection from adding to it."""

import asyncio
import gc
import selectors
from collections.abc import Callable

from typha import clock

WINDOW_SECONDS = 600.0
_COLLECT_INTERVAL_SECONDS = 60.0
_IDLE_PROBE_SECONDS = 0.05
_IDLE_LAG_SECONDS = 0.005


class MaxLatency:
    """The highest latency of the last ten to twenty minutes, and the highest since the start."""

    __slots__ = ("_previous_seconds", "_window_end", "_window_seconds", "worst_seconds")

    def __init__(self, now: float) -> None:
        self.worst_seconds = 0.0
        """The highest since the start."""
        self._window_seconds = 0.0
        self._previous_seconds = 0.0
        self._window_end = now + WINDOW_SECONDS

    @property
    def recent_seconds(self) -> float:
        """The highest of the current and the previous window."""
        return max(self._window_seconds, self._previous_seconds)

    def record(self, seconds: float) -> None:
        """Take one measured latency into account."""
        if seconds > self._window_seconds:
            self._window_seconds = seconds
            self.worst_seconds = max(self.worst_seconds, seconds)

    def rotate(self, now: float) -> None:
        """Start a new window if the current one is over. Call this regularly."""
        if now >= self._window_end:
            overdue_seconds = now - self._window_end
            self._previous_seconds = self._window_seconds if overdue_seconds < WINDOW_SECONDS else 0.0
            self._window_seconds = 0.0
            self._window_end = now + WINDOW_SECONDS


class TimingSelector(selectors.EpollSelector):
    """A selector for an event loop that measures the duration of every turn of the loop.

    A turn is the time between two calls of `select`. Unlike a periodic timer, this misses no slow turn and does not
    wake an idle process.
    """

    def __init__(self, monotonic: Callable[[], float] = clock.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._turn_began = monotonic()
        self.latency = MaxLatency(self._turn_began)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Select as the base class does, and record the turn that ends with this call."""
        turn_ended = self._monotonic()
        self.latency.record(turn_ended - self._turn_began)
        self.latency.rotate(turn_ended)
        ready = super().select(timeout)
        self._turn_began = self._monotonic()
        if timeout is not None and timeout > 0:
            # A late return means that the process was stopped or had no CPU.
            self.latency.record(self._turn_began - turn_ended - timeout)
        return ready


class GarbageCollection:
    """Runs full garbage collections only while the loop is idle.

    Waiting is safe: the objects in the stores are not part of reference cycles.
    """

    @staticmethod
    def freeze() -> None:
        """Exclude all existing objects from collection, and turn automatic full collections off.

        Call this after the first sync: the loaded objects stay, and a full collection would visit each of them.
        """
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 1_000_000)

    async def run(self) -> None:
        """Collect once a minute, as soon as the loop is idle. Never returns."""
        while True:
            await asyncio.sleep(_COLLECT_INTERVAL_SECONDS)
            await _idle()
            gc.collect()


async def _idle() -> None:
    """Return once a short timer of the loop has fired on time."""
    lag_seconds = _IDLE_LAG_SECONDS
    while lag_seconds >= _IDLE_LAG_SECONDS:
        due = clock.monotonic() + _IDLE_PROBE_SECONDS
        await asyncio.sleep(_IDLE_PROBE_SECONDS)
        lag_seconds = clock.monotonic() - due
