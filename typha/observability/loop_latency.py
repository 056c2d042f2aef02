"""How long the hub's loop was held up, and when its garbage is collected."""

import asyncio
import gc
import selectors

from typha import clock

_monotonic = clock.monotonic

WINDOW_SECONDS = 600.0
_COLLECT_SECONDS = 60.0
_IDLE_LOOK_SECONDS = 0.05
_IDLE_LAG_SECONDS = 0.005


class Longest:
    """The longest of the last ten to twenty minutes, and the longest of all."""

    __slots__ = ("_before", "_window_end", "now_seconds", "worst_seconds")

    def __init__(self, now: float) -> None:
        self.now_seconds = 0.0
        """Of this window; public, so that a hot path can compare before it calls."""
        self.worst_seconds = 0.0
        """Since the start."""
        self._before = 0.0
        self._window_end = now + WINDOW_SECONDS

    @property
    def recent_seconds(self) -> float:
        """The longest of this window and the one before it."""
        return max(self.now_seconds, self._before)

    def note(self, seconds: float) -> None:
        """Something took so long."""
        if seconds > self.now_seconds:
            self.now_seconds = seconds
            self.worst_seconds = max(self.worst_seconds, seconds)

    def rotate(self, now: float) -> None:
        """Forgets windows that are over; to be called now and then."""
        if now >= self._window_end:
            over_for = now - self._window_end
            self._before = self.now_seconds if over_for < WINDOW_SECONDS else 0.0
            self.now_seconds = 0.0
            self._window_end = now + WINDOW_SECONDS


class TimingSelector(selectors.EpollSelector):
    """For an event loop, which asks it what has happened, turn by turn: what is between is the length of a turn.

    Nothing of it is missed, and nobody is woken for it: a timer that fires twenty times a second to see whether it is
    late cost more than all else that an idle hub did.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answered_at = _monotonic()
        self.longest = Longest(self._answered_at)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As ever."""
        asked_at = _monotonic()
        self.longest.note(asked_at - self._answered_at)
        self.longest.rotate(asked_at)
        ready = super().select(timeout)
        self._answered_at = _monotonic()
        if timeout is not None and timeout > 0:
            # The process was stopped, or had no processor.
            self.longest.note(self._answered_at - asked_at - timeout)
        return ready


class Collector:
    """Full collections only while the loop is idle: what the store holds cannot be part of a cycle anyway."""

    def __init__(self) -> None:
        self.seconds_max = 0.0
        """Longest full collection."""

    @staticmethod
    def after_first_sync() -> None:
        """What was loaded stays: it is taken out of the collector's sight, and automatic full runs end."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 1_000_000)

    async def run(self) -> None:
        """Collects once a minute, when the loop has time."""
        while True:
            await asyncio.sleep(_COLLECT_SECONDS)
            await _idle()
            begun = _monotonic()
            gc.collect()
            self.seconds_max = max(self.seconds_max, _monotonic() - begun)


async def _idle() -> None:
    """Returns when the loop has just been on time."""
    lag_seconds = _IDLE_LAG_SECONDS
    while lag_seconds >= _IDLE_LAG_SECONDS:
        due = _monotonic() + _IDLE_LOOK_SECONDS
        await asyncio.sleep(_IDLE_LOOK_SECONDS)
        lag_seconds = _monotonic() - due
