"""A log line for each object that a feed cannot carry, or that may not mean what it says; not for thousands of them."""

from collections.abc import Callable

import structlog

from cache.feeds import feed
from typha import clock

_log = structlog.get_logger("typha.hub")

LINES_PER_MINUTE = 100
"""Of either kind: doubtful objects must not use up the lines of those that are absent."""
_MINUTE_SECONDS = 60.0


class RefusalLog:
    """What has been said lately."""

    def __init__(self, now: Callable[[], float] = clock.monotonic) -> None:
        self._now = now
        self._lines: dict[bool, tuple[float, int]] = {}

    def write(self, refusal: feed.Rejection) -> None:
        """One line, or one that says that there are more, or none."""
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
