"""Log lines that name single objects: those that cannot be carried or used, and expensive ones; limited in number."""

import enum
from collections.abc import Callable

import structlog

from cache import objects
from cache.feeds import feed, raw
from typha import clock
from typha.observability import logs

_log = structlog.get_logger("typha.hub")

LINES_PER_MINUTE = 100
"""For each class of lines: doubtful objects must not use up the lines of absent ones."""
_MINUTE_SECONDS = 60.0


class _Class(enum.Enum):
    """The classes of lines. The value is the line's text."""

    DOUBTFUL = "Object is carried, but may not mean what it says"
    ABSENT = "Object cannot be carried; it is absent for the feed's clients"
    SKIPPED = "Object cannot be used; it is absent for all clients"
    EXPENSIVE = "Object takes long to convert; while it changes often, only its newest state is converted"


class RejectionLog:
    """Limits the lines of each class."""

    def __init__(self, now: Callable[[], float] = clock.monotonic) -> None:
        self._limits = {which: logs.LineLimit(LINES_PER_MINUTE, seconds=_MINUTE_SECONDS, now=now) for which in _Class}

    def write(self, refusal: feed.Rejection) -> None:
        """Logs an object that a feed cannot carry, or that there are more, or nothing."""
        self._write(
            _Class.DOUBTFUL if refusal.is_carried else _Class.ABSENT,
            "typha_updates_dropped_total",
            feed=refusal.feed,
            key=refusal.key,
            reason=refusal.reason,
            detail=refusal.detail,
        )

    def write_skipped(self, skipped: objects.SkippedObject) -> None:
        """Logs an object that no feed gets to see, or that there are more, or nothing."""
        self._write(
            _Class.SKIPPED,
            "typha_objects_skipped",
            type=str(skipped.type),
            namespace=skipped.namespace,
            name=skipped.name,
            reason=skipped.reason,
            detail=skipped.detail,
        )

    def write_expensive(self, event: objects.ObjectEvent, *, feed: str, milliseconds: int) -> None:
        """Logs an object whose conversion took long, or that there are more, or nothing."""
        self._write(
            _Class.EXPENSIVE,
            "typha_expensive_conversions_total",
            feed=feed,
            key=raw.object_key(event.type, event.namespace, event.name),
            milliseconds=milliseconds,
            bytes=len(event.raw or b""),
        )

    def _write(self, which: _Class, metric: str, **fields: str | int) -> None:
        limit = self._limits[which]
        if limit.allows():
            limit.take_suppressed()
            _log.warning(which.value, **fields)
        elif limit.suppressed == 1:
            _log.warning(
                "More objects of this kind are counted, but not named for a while",
                kind=which.name.lower(),
                metric=metric,
                seconds=round(limit.left_seconds),
            )
