"""What a worker counts: plain integers on the hot path, one message a second to the hub."""

from protocol import reasons
from typha import clock
from typha.observability import loop_latency, quantiles

PING_SECONDS = "typha_ping_latency"
SNAPSHOT_SECONDS = "typha_client_snapshot_send_secs"
LATENCY_SECONDS = "typha_client_latency_secs"
WRITE_SECONDS = "typha_client_write_latency_secs"
UPDATES_PER_MESSAGE = "typha_kvs_per_msg"
HISTOGRAMS = (PING_SECONDS, SNAPSHOT_SECONDS, LATENCY_SECONDS, WRITE_SECONDS, UPDATES_PER_MESSAGE)
"""Histograms of a feed, under the names of the metrics they become."""


class FeedCounters:
    """Totals of one feed, over all wire formats."""

    __slots__ = ("bytes_sent", "deliveries", "histograms", "late_sends", "sends", "snapshots_sent")

    def __init__(self) -> None:
        self.deliveries = 0
        """Updates times clients, behind the snapshot."""
        self.bytes_sent = 0
        self.sends = 0
        """Writes to clients that had been sent everything before."""
        self.late_sends = 0
        """Writes to clients that were behind in the log."""
        self.snapshots_sent = 0
        self.histograms = {name: quantiles.Histogram() for name in HISTOGRAMS}

    def counters(self) -> dict[str, int]:
        """The totals by name."""
        return {
            "deliveries": self.deliveries,
            "bytes_sent": self.bytes_sent,
            "sends": self.sends,
            "late_sends": self.late_sends,
            "snapshots_sent": self.snapshots_sent,
        }


class WorkerStats:
    """Totals since the worker's start, and the worst of the time since the last report."""

    def __init__(self, feeds: tuple[str, ...]) -> None:
        self.accepted = 0
        self.pings_sent = 0
        self.pongs_received = 0
        self.catch_ups = 0
        self.accept_failures = 0
        self.tls_reload_failures = 0
        self.close_lines_suppressed = 0
        self.disconnects = dict.fromkeys(reasons.DisconnectReason, 0)
        self.feeds = {feed: FeedCounters() for feed in feeds}
        self.turns = loop_latency.MaxLatency(clock.monotonic())

    def counters(self) -> dict[str, object]:
        """The totals, as they go to the hub."""
        return {
            "accepted": self.accepted,
            "pings_sent": self.pings_sent,
            "pongs_received": self.pongs_received,
            "catch_ups": self.catch_ups,
            "accept_failures": self.accept_failures,
            "tls_reload_failures": self.tls_reload_failures,
            "disconnects": {reason.value: count for reason, count in self.disconnects.items() if count},
            "feeds": {feed: counters.counters() for feed, counters in self.feeds.items()},
        }

    def longest_turns(self, now: float) -> dict[str, float]:
        """The longest turns, as they go to the hub."""
        self.turns.rotate(now)
        return {"pause_seconds_max": self.turns.recent_seconds, "pause_seconds_worst": self.turns.worst_seconds}

    def histograms(self, now: float) -> dict[str, dict[str, list[int]]]:
        """Of feeds that have had values, as they go to the hub; what is out of their window is forgotten."""
        for counters in self.feeds.values():
            for histogram in counters.histograms.values():
                histogram.rotate(now)
        found = {
            feed: {name: histogram.to_list() for name, histogram in counters.histograms.items() if histogram.count}
            for feed, counters in self.feeds.items()
        }
        return {feed: histograms for feed, histograms in found.items() if histograms}

    def take_close_lines_suppressed(self) -> int:
        """Ends of connections that were counted and not logged since the last line that was."""
        count, self.close_lines_suppressed = self.close_lines_suppressed, 0
        return count
