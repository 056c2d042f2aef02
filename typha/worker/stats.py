"""What a worker counts: plain integers on the hot path, one report a second to the hub."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from protocol import reasons
from typha import clock
from typha.ipc import messages
from typha.observability import logs, loop_latency, quantiles

PING_SECONDS: Final = "typha_ping_latency"
SNAPSHOT_SECONDS: Final = "typha_client_snapshot_send_secs"
LATENCY_SECONDS: Final = "typha_client_latency_secs"
WRITE_SECONDS: Final = "typha_client_write_latency_secs"
WAIT_SECONDS: Final = "typha_next_breadcrumb_latency_secs"
UPDATES_PER_MESSAGE: Final = "typha_kvs_per_msg"
HISTOGRAMS: tuple[messages.HistogramName, ...] = (
    PING_SECONDS,
    SNAPSHOT_SECONDS,
    LATENCY_SECONDS,
    WRITE_SECONDS,
    WAIT_SECONDS,
    UPDATES_PER_MESSAGE,
)
"""The histograms of a feed, by the names of their metrics."""


class FeedStats:
    """One feed over all wire formats: its totals, which travel in reports as they are, and its histograms."""

    __slots__ = ("counts", "histograms")

    def __init__(self) -> None:
        self.counts = messages.FeedCounts()
        self.histograms = {name: quantiles.Histogram() for name in HISTOGRAMS}
        self.histograms[LATENCY_SECONDS] = quantiles.Histogram(
            window_seconds=quantiles.SHORT_WINDOW_SECONDS, slots=quantiles.SHORT_SLOTS
        )


class _Feeds(dict[str, FeedStats]):
    """Of every feed that is served. A projection comes when it is first counted."""

    def __init__(self, counts: messages.WorkerCounts) -> None:
        self._counts = counts

    def __missing__(self, feed: str) -> FeedStats:
        stats = self[feed] = FeedStats()
        self._counts.feeds[feed] = stats.counts
        return stats


class WorkerStats:
    """Totals since the worker's start, and the longest turns."""

    def __init__(self, feeds: Iterable[str]) -> None:
        self.pings_sent = 0
        self.pongs_received = 0
        self.accept_failures = 0
        self.counts = messages.WorkerCounts()
        """What travels in reports."""
        self.feeds = _Feeds(self.counts)
        for feed in feeds:
            self.feeds[feed]
        self.recent_latency = quantiles.Histogram()
        """Of deliveries since the last report of it."""
        self.ends: deque[messages.End] = deque(maxlen=messages.ENDS_REPORTED_MAX)
        """Connections that have ended since then, the newest of them."""
        self.turns = loop_latency.MaxLatency(clock.monotonic())

    def note_disconnect(self, reason: reasons.DisconnectReason) -> None:
        """A connection has ended."""
        disconnects = self.counts.disconnects
        disconnects[reason] = disconnects.get(reason, 0) + 1

    def take_recent(self) -> messages.ReportRecent | None:
        """What has happened since the last call; None for nothing."""
        if not self.recent_latency.count and not self.ends:
            return None
        taken = messages.ReportRecent(self.recent_latency.to_list(), list(self.ends))
        self.recent_latency = quantiles.Histogram()
        self.ends.clear()
        return taken

    def note_log_lines(self) -> None:
        """What became of the lines of this process's log."""
        self.counts.log_errors = logs.COUNTERS.errors
        self.counts.log_lines_dropped = logs.COUNTERS.dropped

    def histograms(self, now: float) -> list[messages.ReportHistograms]:
        """Those of feeds that have had values; values that have left their window are dropped."""
        for stats in self.feeds.values():
            for histogram in stats.histograms.values():
                histogram.rotate(now)
        found = {
            feed: {name: histogram.to_list() for name, histogram in stats.histograms.items() if histogram.count}
            for feed, stats in self.feeds.items()
        }
        return [messages.ReportHistograms(feed, histograms) for feed, histograms in found.items() if histograms]
