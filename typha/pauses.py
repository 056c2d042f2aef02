"""How long the hub's loop was held up, and when its garbage is collected."""

import asyncio
import gc

from typha import clock

_monotonic = clock.monotonic

PROBE_SECONDS = 0.05
"""A pause that begins right after a look is seen shorter by up to this."""
WINDOW_SECONDS = 600.0
_COLLECT_SECONDS = 60.0
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


class PauseProbe:
    """The longest lateness of a timer that should fire twenty times a second."""

    def __init__(self) -> None:
        self.longest = Longest(_monotonic())
        self.last_lag_seconds = 0.0

    async def wait_idle(self) -> None:
        """Returns when the loop has just been on time."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            if self.last_lag_seconds <= _IDLE_LAG_SECONDS:
                return

    async def run(self) -> None:
        """Measures for ever."""
        while True:
            due = _monotonic() + PROBE_SECONDS
            await asyncio.sleep(PROBE_SECONDS)
            now = _monotonic()
            self.last_lag_seconds = max(0.0, now - due)
            self.longest.note(self.last_lag_seconds)
            self.longest.rotate(now)


class Collector:
    """Full collections only while the loop is idle: what the store holds cannot be part of a cycle anyway."""

    def __init__(self, probe: PauseProbe) -> None:
        self._probe = probe
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
            await self._probe.wait_idle()
            begun = _monotonic()
            gc.collect()
            self.seconds_max = max(self.seconds_max, _monotonic() - begun)
