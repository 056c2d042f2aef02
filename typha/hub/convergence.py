"""How far the fleet is: what clients that report positions have applied, over all workers (docs/protocol.md, P1 to P6).

The time until a change is applied everywhere is measured for one change of a feed at a time. The next one begins when
that is settled, a second later at the earliest, so the cost does not grow with the number of changes.
"""

from typing import NamedTuple

from typha import clock
from typha.hub import commit_times, worker_link
from typha.ipc import messages
from typha.observability import buckets

_monotonic = clock.monotonic

SECONDS_BETWEEN = 1.0
"""Between two changes that are measured: workers report every second, and counting the clients costs them some 50 us
for each thousand."""
PATIENCE_SECONDS = 60.0
"""A change that is not applied everywhere by then counts as longer than every bucket, and another one is measured: one
client that hangs must not hide how fast the others are."""


class Reported(NamedTuple):
    """One feed's clients that report positions, as the workers last reported."""

    reporting: int
    applied: int
    """Those that have applied everything up to now."""
    lag_seconds: float
    """For how long the slowest of them has not applied the oldest change that it has not applied."""


NOBODY = Reported(0, 0, 0.0)


class _Measured(NamedTuple):
    """The change of a feed that is being measured."""

    sequence: int
    committed_at: float
    waiting: dict[worker_link.WorkerLink, None]
    """Workers that have not answered."""
    applied_at: list[float]
    """What the others have answered."""


class Convergence:
    """All feeds. `look` is to be called every second."""

    def __init__(self, workers: worker_link.WorkerLinks) -> None:
        self._workers = workers
        self._measured: dict[str, _Measured] = {}
        self._next_at: dict[str, float] = {}
        self.seconds: dict[str, buckets.BucketCounts] = {}
        """By feed: from a commit to the last client that has applied it."""

    def committed(self, times: commit_times.CommitTimes, feed: str) -> None:
        """The feed's newest commit is on its way to the workers. It is measured if its turn has come."""
        if feed in self._measured or times.newest_at < self._next_at.get(feed, 0.0):
            return
        asked = [worker for worker in self._workers.values() if feed in worker.applied]
        if not any(worker.applied[feed].reporting for worker in asked):
            return
        self._measured[feed] = _Measured(times.newest_sequence, times.newest_at, dict.fromkeys(asked), [])
        for worker in asked:
            worker.send(messages.AwaitApplied(feed, times.newest_sequence))

    def look(self, now: float) -> None:
        """Takes the workers' answers. A worker that has died is not waited for."""
        for feed, measured in list(self._measured.items()):
            for worker in list(measured.waiting):
                report = worker.applied[feed]
                if worker.is_attached and report.reached < measured.sequence:
                    continue
                del measured.waiting[worker]
                if report.reached == measured.sequence and report.reached_at:
                    measured.applied_at.append(min(report.reached_at, now))
            overdue = now - measured.committed_at > PATIENCE_SECONDS
            if measured.waiting and not overdue:
                continue
            del self._measured[feed]
            self._next_at[feed] = measured.committed_at + SECONDS_BETWEEN
            if measured.waiting:
                self._record(feed, now - measured.committed_at)
            elif measured.applied_at:
                self._record(feed, max(measured.applied_at) - measured.committed_at)

    def _record(self, feed: str, seconds: float) -> None:
        counts = self.seconds.setdefault(feed, buckets.BucketCounts())
        counts.record(buckets.APPLIED_BOUNDS, seconds, 1)

    def is_reported(self, feed: str) -> bool:
        """Whether the feed has had clients that report positions."""
        return feed in self.seconds or any(feed in worker.applied for worker in self._workers.values())

    def reported(self, feed: str, times: commit_times.CommitTimes, now: float) -> Reported:
        """What the workers last reported of a feed."""
        reports = [worker.applied[feed] for worker in self._workers.values() if feed in worker.applied]
        reporting = sum(report.reporting for report in reports)
        if not reporting:
            return NOBODY
        lowest = min(report.lowest for report in reports if report.reporting)
        applied = sum(report.applied for report in reports)
        return Reported(reporting, applied, times.age_of_next(lowest, now))
