"""Log lines that name single objects: those that cannot be carried or used, and expensive ones; limited in number."""

import enum
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import structlog

from cache import objects
from cache.feeds import feed, raw
from typha import clock
from typha.observability import logs

_log = structlog.get_logger("typha.hub")

LINES_PER_MINUTE = 100
"""For each class of lines: doubtful objects must not use up the lines of absent ones."""
_MINUTE_SECONDS = 60.0
_DETAIL_CHARS_MAX = 1000


class _Class(enum.Enum):
    """The classes of lines. The value is the line's text."""

    DOUBTFUL = "Object is carried, but may not mean what it says"
    ABSENT = "Object cannot be carried; it is absent for the feed's clients"
    SKIPPED = "Object cannot be used; it is absent for all clients"
    EXPENSIVE = "Object takes long to convert; while it changes often, only its newest state is converted"


RECENT_MAX = 500
"""Refused objects that are remembered, for `typha explain`. With the longest details, 1 MB."""


class Refusal(NamedTuple):
    """Why an object was refused or doubted, and when (monotonic seconds)."""

    reason: str
    detail: str
    is_carried: bool
    at: float


class RejectionLog:
    """Limits the lines of each class, and remembers the newest refusals."""

    def __init__(self, now: Callable[[], float] = clock.monotonic) -> None:
        self._now = now
        self.recent: OrderedDict[tuple[str, str], Refusal] = OrderedDict()
        """By feed and object (`cache.feeds.raw.object_key`); the feed is empty if no feed gets to see the object."""
        self._limits = {which: logs.LineLimit(LINES_PER_MINUTE, seconds=_MINUTE_SECONDS, now=now) for which in _Class}

    def write(self, refusal: feed.Rejection) -> None:
        """Logs an object that a feed cannot carry, or that there are more, or nothing."""
        self._remember(refusal.feed, refusal.key, refusal.reason, refusal.detail, is_carried=refusal.is_carried)
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
        key = raw.object_key(skipped.type, skipped.namespace, skipped.name)
        self._remember("", key, skipped.reason, skipped.detail, is_carried=False)
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

    def _remember(self, feed: str, key: str, reason: str, detail: str, *, is_carried: bool) -> None:
        self.recent[feed, key] = Refusal(reason, detail[:_DETAIL_CHARS_MAX], is_carried, self._now())
        self.recent.move_to_end((feed, key))
        if len(self.recent) > RECENT_MAX:
            self.recent.popitem(last=False)

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
