"""Health: who has reported what, and what /liveness and /readiness answer. Pure; the time is passed in.

Rules and table are the original's: a reporter must report again within its timeout; live = no reporter is overdue or
not live; ready = no reporter that reports readiness is overdue or not ready. While draining, the answer is not ready.
"""

import dataclasses
from typing import NamedTuple

REPORT_TIMEOUT_SECONDS = 20.0
REPORT_INTERVAL_SECONDS = 10.0

SYNC_SERVER = "SyncServer"
"""Reporter of the fan-out: live only."""

_COLUMNS = ("COMPONENT", "TIMEOUT", "LIVENESS", "READINESS", "DETAIL")
_TIMED_OUT = "timed out"
_NOT_REPORTED = "-"
_DETAIL_LIMIT = 200


def cache_reporter(feed: str) -> str:
    """The name of a feed's reporter: live and ready."""
    return f"{feed}-cache"


class Answer(NamedTuple):
    """What an endpoint answers: 200 or 503, and the table."""

    status: int
    body: str


@dataclasses.dataclass(slots=True)
class _Reporter:
    timeout_seconds: float
    reports_live: bool
    reports_ready: bool
    reported_at_seconds: float
    live: bool = False
    ready: bool = False
    detail: str = ""

    def is_overdue(self, now_seconds: float) -> bool:
        return now_seconds - self.reported_at_seconds > self.timeout_seconds


class HealthAggregator:
    """Reporters by name. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._reporters: dict[str, _Reporter] = {}
        self._draining = False

    def __repr__(self) -> str:
        return f"HealthAggregator({', '.join(self._reporters)}{', draining' if self._draining else ''})"

    def register(
        self,
        name: str,
        *,
        now_seconds: float,
        live: bool = True,
        ready: bool = False,
        timeout_seconds: float = REPORT_TIMEOUT_SECONDS,
    ) -> None:
        """Add a reporter that reports liveness, readiness or both; until its first report it is neither."""
        self._reporters[name] = _Reporter(timeout_seconds, live, ready, now_seconds)

    def unregister(self, name: str) -> None:
        """Forget a reporter; unknown names are fine."""
        self._reporters.pop(name, None)

    def report(
        self, name: str, *, now_seconds: float, live: bool = True, ready: bool = False, detail: str = ""
    ) -> bool:
        """Take a report; whether it changes anything but the time, so that it is worth a log line.

        Raises:
            KeyError: nobody of that name is registered.
        """
        reporter = self._reporters[name]
        changed = (reporter.live, reporter.ready) != (live, ready)
        reporter.live, reporter.ready, reporter.detail = live, ready, detail
        reporter.reported_at_seconds = now_seconds
        return changed

    def drain(self) -> None:
        """From now on not ready, so that no new agents are sent here."""
        self._draining = True

    def is_live(self, now_seconds: float) -> bool:
        """Whether all reporters that report liveness are live and in time."""
        return all(
            reporter.live and not reporter.is_overdue(now_seconds)
            for reporter in self._reporters.values()
            if reporter.reports_live
        )

    def is_ready(self, now_seconds: float) -> bool:
        """Whether all reporters that report readiness are ready and in time, and nothing drains."""
        return not self._draining and all(
            reporter.ready and not reporter.is_overdue(now_seconds)
            for reporter in self._reporters.values()
            if reporter.reports_ready
        )

    def liveness(self, now_seconds: float) -> Answer:
        """What /liveness answers."""
        return Answer(200 if self.is_live(now_seconds) else 503, self.table(now_seconds))

    def readiness(self, now_seconds: float) -> Answer:
        """What /readiness answers."""
        return Answer(200 if self.is_ready(now_seconds) else 503, self.table(now_seconds))

    def table(self, now_seconds: float) -> str:
        """All reporters by name, as text without a final newline."""
        rows = [_COLUMNS, *(self._row(name, now_seconds) for name in sorted(self._reporters))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
        heading, *lines = (
            "|" + "|".join(f" {cell:<{width}} " for cell, width in zip(row, widths, strict=True)) + "|" for row in rows
        )
        return "\n".join((rule, heading, rule, *lines, rule))

    def _row(self, name: str, now_seconds: float) -> tuple[str, ...]:
        reporter = self._reporters[name]
        overdue = reporter.is_overdue(now_seconds)
        ready = reporter.ready and not self._draining
        detail = "draining" if self._draining and reporter.reports_ready else reporter.detail
        return (
            name,
            f"{reporter.timeout_seconds:g}s",
            _cell("live", reported=reporter.reports_live, value=reporter.live, overdue=overdue),
            _cell("ready", reported=reporter.reports_ready, value=ready, overdue=overdue),
            " ".join(detail.split())[:_DETAIL_LIMIT],
        )


def _cell(word: str, *, reported: bool, value: bool, overdue: bool) -> str:
    if not reported:
        return _NOT_REPORTED
    if overdue:
        return _TIMED_OUT
    return f"reporting {word}" if value else f"reporting non-{word}"
