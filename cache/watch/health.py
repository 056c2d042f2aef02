"""How a watcher is doing: its counters, its failures, the back-off after them, and its outages. Pure.

An outage begins when a request fails or a stream breaks repeatedly. It ends after a healthy period, not at the first
answer: a server that answers and then breaks the stream again causes one outage and two log lines. A broken stream that
resumes at once causes no outage, and an API server that is starting causes none for a while. The length of an outage is
the time from its first failure to the success after which nothing failed, whatever the failures were.
"""

import random
from dataclasses import dataclass, field

from cache.watch import requests
from cache.watch.policy import Backoff, Failure, WatchPolicy
from cache.watch.requests import NoticeKind

_ACTIONABLE = frozenset({Failure.FORBIDDEN, Failure.UNAUTHORIZED, Failure.CREDENTIALS})
_REPORTED_AT_ONCE = frozenset({Failure.DEADLINE, Failure.ENDLESS, Failure.MEMORY})
"""Good servers, and processes with enough memory, do not cause these, so the first one is worth a line."""
_BREAKS_OF_AN_OUTAGE = 3
_STARTING_SECONDS = 60.0
"""An API server that starts has read each type from etcd by then. One that has not says something about the type, such
as a conversion webhook that does not answer."""


def _no_errors() -> dict[str, int]:
    return {failure.value: 0 for failure in Failure}


@dataclass(slots=True)
class WatchCounters:
    """Counters of one resource type, for metrics. They only rise, except `last_confirmed`, which is a time."""

    lists: int = 0
    """Lists started, as pages or as WatchList."""
    list_pages: int = 0
    watch_requests: int = 0
    watchlist_requests: int = 0
    renewals: int = 0
    """Watches that continued after they reached their timeoutSeconds."""
    stream_breaks: int = 0
    """Watches that ended early because of the server, the network or us (half open, broken JSON)."""
    resumes: int = 0
    """Broken watches that continued from the last version, counted at the first event or bookmark after the break."""
    relists_410: int = 0
    """Lists started because the last version had expired."""
    events: int = 0
    """Objects read: list items, initial events and events."""
    bookmarks: int = 0
    objects_unchanged: int = 0
    """Objects read whose version was already known."""
    objects_rejected: int = 0
    """Objects left out because they cannot be decoded, or because their name is unusable."""
    objects_swept: int = 0
    """Objects that a new list did not contain, and that therefore count as deleted."""
    outages: int = 0
    errors: dict[str, int] = field(default_factory=_no_errors)
    """Count by failure class."""
    last_confirmed: float | None = None
    """Time (the driver's monotonic clock, seconds) at which the API server last confirmed the objects. None = never."""


@dataclass(slots=True)
class _Trouble:
    """Failures without a healthy period in between. It is an outage once it is reported."""

    began_at: float
    failed_at: float = 0.0
    """Time of the last failure."""
    tries: int = 0
    recovered_at: float | None = None
    is_outage: bool = False
    reported: set[Failure] = field(default_factory=set)


class Health:
    """The health of one watcher. Times are readings of the driver's monotonic clock."""

    def __init__(
        self,
        *,
        policy: WatchPolicy,
        counters: WatchCounters,
        notices: list[requests.Notice],
        random: random.Random,
        now: float,
    ) -> None:
        self._policy = policy
        self._counters = counters
        self._notices = notices
        self._backoff = Backoff(policy, random)
        self._trouble: _Trouble | None = None
        self.last_success = now
        self.not_before = now
        """Time of the next request."""

    @property
    def is_troubled(self) -> bool:
        """Whether an outage is in progress, or the next failure starts one. Single events are not logged then."""
        return self._is_outage or self._backoff.tries >= _BREAKS_OF_AN_OUTAGE - 1

    @property
    def _is_outage(self) -> bool:
        return self._trouble is not None and self._trouble.is_outage

    @property
    def lost_at(self) -> float:
        """Time at which the type counts as lost unless a request succeeds before."""
        return self.last_success + self._policy.lost_seconds

    @property
    def lost_contact_at(self) -> float | None:
        """Time of the last failure in the present outage; None without an outage."""
        return self._trouble.failed_at if self._trouble is not None and self._trouble.is_outage else None

    def answered(self, now: float) -> None:
        """Record an answer that is neither a success nor a failure."""
        self.last_success = now

    def succeeded(self, now: float) -> None:
        """Record that data arrived, or that the API server accepted a watch."""
        self.last_success = now
        trouble = self._trouble
        if trouble is not None and trouble.recovered_at is None:
            trouble.recovered_at = now
            if not trouble.is_outage:
                self._trouble = None

    def healthy(self, now: float) -> None:
        """End a healthy period: reset the back-off and end the outage."""
        self.succeeded(now)
        self._backoff.healthy()
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            seconds = round((trouble.recovered_at or now) - trouble.began_at, 3)
            fields = {"seconds": seconds, "tries": trouble.tries}
            self._notices.append(requests.Notice(NoticeKind.OUTAGE_ENDED, "info", fields))

    def pause(self, now: float, seconds: float) -> None:
        """Delay the next request; this is not a failure."""
        self.not_before = now + seconds

    def failed(self, now: float, failure: Failure, detail: str, *, retry_after_seconds: float = 0.0) -> None:
        """Record a failed request: back off, and start or continue an outage."""
        self._counters.errors[failure.value] += 1
        self.pause(now, self._backoff.failed(failure, retry_after_seconds=retry_after_seconds))
        self._continue_trouble(now, failure, detail, is_outage=failure is not Failure.STARTING)

    def broke(self, now: float, failure: Failure, detail: str) -> None:
        """Record that a good stream broke or must restart. The first retry comes at once, later ones after back-off."""
        self._counters.errors[failure.value] += 1
        self.pause(now, self._backoff.broke(failure))
        is_outage = self._backoff.tries >= _BREAKS_OF_AN_OUTAGE or failure in _REPORTED_AT_ONCE
        self._continue_trouble(now, failure, detail, is_outage=is_outage)

    def _continue_trouble(self, now: float, failure: Failure, detail: str, *, is_outage: bool) -> None:
        trouble = self._trouble = self._trouble or _Trouble(began_at=now)
        trouble.tries += 1
        trouble.failed_at = now
        trouble.recovered_at = None
        if not trouble.is_outage and not is_outage and now - trouble.began_at < _STARTING_SECONDS:
            return
        is_new = not trouble.is_outage
        if is_new:
            trouble.is_outage = True
            self._counters.outages += 1
        fields = {"failure": failure.value, "detail": detail}
        if failure in _ACTIONABLE and failure not in trouble.reported:
            trouble.reported.add(failure)
            self._notices.append(requests.Notice(NoticeKind.ACTION_NEEDED, "error", fields))
        elif is_new:
            self._notices.append(requests.Notice(NoticeKind.OUTAGE_BEGAN, "warning", fields))
