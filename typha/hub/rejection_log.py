"""A log line for each object that a feed cannot carry, or that may not mean what it says; limited in number."""

from collections.abc import Callable

import structlog

from cache.feeds import feed
from typha import clock

_log = structlog.get_logger("typha.hub")

LINES_PER_MINUTE = 100
"""For each of the two kinds: doubtful objects must not use up the lines of absent ones."""
_MINUTE_SECONDS = 60.0


class RejectionLog:
    """Counts the lines of the last minute."""

    def __init__(self, now: Callable[[], float] = clock.monotonic) -> None:
        self._now = now
        self._lines: dict[bool, tuple[float, int]] = {}

    def write(self, refusal: feed.Rejection) -> None:
        """Logs the object, or that there are more, or nothing."""
        now = self._now()
        began, lines = self._lines.get(refusal.is_carried, (now, 0))
        if now - began >= _MINUTE_SECONDS:
            began, lines = now, 0
        self._lines[refusal.is_carried] = (began, lines + 1)
        if lines < LINES_PER_MINUTE:
            _log.warning(
                "Object is carried, but may not mean what it says"
                if refusal.is_carried
                else "Object cannot be carried; it is absent for the feed's clients",
                feed=refusal.feed,
                key=refusal.key,
                reason=refusal.reason,
                detail=refusal.detail,
            )
        elif lines == LINES_PER_MINUTE:
            _log.warning(
                "More objects of this kind are counted, but not named for a while",
                are_carried=refusal.is_carried,
                metric="typha_updates_dropped_total",
                seconds=round(began + _MINUTE_SECONDS - now),
            )
