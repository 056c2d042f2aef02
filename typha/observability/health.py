"""Health: collects reports, and computes the answers of /liveness and /readiness. Pure; the time is an argument.

The rules and the table are the original's. Every reporter must report again within its timeout. The service is live if
all reporters of liveness are live and on time. It is ready if all reporters of readiness are ready and on time, and the
service is not draining.
"""

import dataclasses
from typing import NamedTuple

REPORT_TIMEOUT_SECONDS = 20.0

SYNC_SERVER = "SyncServer"
"""Reporter of the fan-out. It reports liveness only."""

CLIENT_PORT = "ClientPort"
"""Reporter of the workers that accept connections. It reports readiness only."""

FRESHNESS = "Freshness"
"""Reporter of a replica that knows others. It reports readiness only: while clients are handed over to fresh replicas,
new ones must go there, too."""

_COLUMNS = ("COMPONENT", "TIMEOUT", "LIVENESS", "READINESS", "DETAIL")
_TIMED_OUT = "timed out"
_NOT_REPORTED = "-"
_DETAIL_LIMIT = 200


def cache_reporter(feed: str) -> str:
    """The name of a feed's reporter. It reports liveness and readiness."""
    return f"{feed}-cache"


class Answer(NamedTuple):
    """The answer of an endpoint: status 200 or 503, and the table."""

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
    """All reporters, by name. Times are seconds of one monotonic clock."""

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
        """Add a reporter of liveness, readiness or both. Until its first report, it is neither live nor ready."""
        self._reporters[name] = _Reporter(timeout_seconds, live, ready, now_seconds)

    def unregister(self, name: str) -> None:
        """Remove a reporter. Unknown names are ignored."""
        self._reporters.pop(name, None)

    def report(
        self, name: str, *, now_seconds: float, live: bool = True, ready: bool = False, detail: str = ""
    ) -> bool:
        """Take a report. Returns whether it differs from the previous one, that is, whether to log it.

        Raises:
            KeyError: no reporter has this name.
        """
        reporter = self._reporters[name]
        changed = (reporter.live, reporter.ready) != (live, ready)
        reporter.live, reporter.ready, reporter.detail = live, ready, detail
        reporter.reported_at_seconds = now_seconds
        return changed

    def drain(self) -> None:
        """Report not ready from now on, so that no new agents connect."""
        self._draining = True

    @property
    def is_draining(self) -> bool:
        """Whether the service drains."""
        return self._draining

    def is_live(self, now_seconds: float) -> bool:
        """Whether all reporters of liveness are live and on time."""
        return all(
            reporter.live and not reporter.is_overdue(now_seconds)
            for reporter in self._reporters.values()
            if reporter.reports_live
        )

    def is_ready(self, now_seconds: float) -> bool:
        """Whether all reporters of readiness are ready and on time, and the service is not draining."""
        return not self._draining and all(
            reporter.ready and not reporter.is_overdue(now_seconds)
            for reporter in self._reporters.values()
            if reporter.reports_ready
        )

    def liveness(self, now_seconds: float) -> Answer:
        """The answer of /liveness."""
        return Answer(200 if self.is_live(now_seconds) else 503, self.table(now_seconds))

    def readiness(self, now_seconds: float) -> Answer:
        """The answer of /readiness."""
        return Answer(200 if self.is_ready(now_seconds) else 503, self.table(now_seconds))

    def table(self, now_seconds: float) -> str:
        """A text table of all reporters, sorted by name, without a final newline."""
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
