"""How a watcher is doing: failures, back-off, outages and when to say something about them. Pure.

An outage begins with a request that fails, or with a stream that keeps breaking, and ends with a healthy spell, not
with the first answer: a server that answers and breaks off again is one outage and two log lines. A broken stream that
is resumed at once is none.
"""

import random
from dataclasses import dataclass, field

from cache.watch import requests
from cache.watch.counters import WatchCounters
from cache.watch.policy import Backoff, Failure, WatchPolicy
from cache.watch.requests import NoticeKind

_ACTIONABLE = frozenset({Failure.FORBIDDEN, Failure.UNAUTHORIZED, Failure.CREDENTIALS})
_BREAKS_OF_AN_OUTAGE = 3


@dataclass(slots=True)
class _Outage:
    began_at: float
    tries: int = 0
    recovered_at: float | None = None
    told: set[Failure] = field(default_factory=set)


class Health:
    """One watcher's; times are the driver's monotonic clock."""

    def __init__(
        self,
        *,
        policy: WatchPolicy,
        counters: WatchCounters,
        notify: requests.Notify,
        random: random.Random,
        now: float,
    ) -> None:
        self._policy = policy
        self._counters = counters
        self._notify = notify
        self._backoff = Backoff(policy, random)
        self._outage: _Outage | None = None
        self.last_success = now
        self.not_before = now
        """No request before this time."""

    @property
    def is_troubled(self) -> bool:
        """Whether there is an outage, or would be with the next failure: then no single event is worth a log line."""
        return self._outage is not None or self._backoff.tries >= _BREAKS_OF_AN_OUTAGE - 1

    @property
    def lost_at(self) -> float:
        """When the type counts as lost, unless something succeeds before."""
        return self.last_success + self._policy.lost_seconds

    def succeeded(self, now: float) -> None:
        """Data arrived."""
        self.last_success = now
        if self._outage is not None and self._outage.recovered_at is None:
            self._outage.recovered_at = now

    def healthy(self, now: float) -> None:
        """A healthy spell has passed: failures start counting anew."""
        self.succeeded(now)
        self._backoff.healthy()
        if self._outage is not None:
            seconds = round((self._outage.recovered_at or now) - self._outage.began_at, 3)
            fields = {"seconds": seconds, "tries": self._outage.tries}
            self._outage = None
            self._notify(requests.Notice(NoticeKind.OUTAGE_ENDED, "info", fields))

    def pause(self, now: float, seconds: float) -> None:
        """Schedules the next request, without any failure."""
        self.not_before = now + seconds

    def failed(self, now: float, failure: Failure, detail: str, *, retry_after_seconds: float = 0.0) -> None:
        """A request failed: backs off, and the type has an outage."""
        self._counters.errors[failure.value] += 1
        self.pause(now, self._backoff.failed(failure, retry_after_seconds=retry_after_seconds))
        self._suffer(now, failure, detail)

    def broke(self, now: float, failure: Failure, detail: str) -> None:
        """A good stream broke, or has to begin anew: at once for the first time, then with back-off."""
        self._counters.errors[failure.value] += 1
        self.pause(now, self._backoff.broke(failure))
        if self._outage is not None or self._backoff.tries >= _BREAKS_OF_AN_OUTAGE:
            self._suffer(now, failure, detail)

    def _suffer(self, now: float, failure: Failure, detail: str) -> None:
        outage = self._outage
        is_new = outage is None
        if outage is None:
            outage = self._outage = _Outage(began_at=now)
            self._counters.outages += 1
        outage.tries += 1
        outage.recovered_at = None
        fields = {"failure": failure.value, "detail": detail}
        if failure in _ACTIONABLE and failure not in outage.told:
            outage.told.add(failure)
            self._notify(requests.Notice(NoticeKind.ACTION_NEEDED, "error", fields))
        elif is_new:
            self._notify(requests.Notice(NoticeKind.OUTAGE_BEGAN, "warning", fields))
