"""How long the hub's loop was held up, and when its garbage is collected."""

import asyncio
import gc
import time

_monotonic = time.monotonic

PROBE_SECONDS = 0.1
WINDOW_SECONDS = 600.0
_COLLECT_SECONDS = 60.0
_IDLE_LAG_SECONDS = 0.005


class PauseProbe:
    """The longest lateness of a timer that should fire ten times a second, over the last ten minutes or so."""

    def __init__(self) -> None:
        self._longest_now = 0.0
        self._longest_before = 0.0
        self.last_lag_seconds = 0.0

    @property
    def seconds_max(self) -> float:
        """The longest pause of this window and the one before it."""
        return max(self._longest_now, self._longest_before)

    async def wait_idle(self) -> None:
        """Returns when the loop has just been on time."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            if self.last_lag_seconds <= _IDLE_LAG_SECONDS:
                return

    async def run(self) -> None:
        """Measures for ever."""
        window_end = _monotonic() + WINDOW_SECONDS
        while True:
            due = _monotonic() + PROBE_SECONDS
            await asyncio.sleep(PROBE_SECONDS)
            now = _monotonic()
            self.last_lag_seconds = max(0.0, now - due)
            self._longest_now = max(self._longest_now, self.last_lag_seconds)
            if now > window_end:
                window_end = now + WINDOW_SECONDS
                self._longest_before, self._longest_now = self._longest_now, 0.0


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
