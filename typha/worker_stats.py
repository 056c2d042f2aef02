"""What a worker counts: plain integers on the hot path, one message a second to the hub."""

from protocol import reasons


class FeedCounters:
    """Totals of one feed, over all wire formats."""

    __slots__ = ("bytes_sent", "deliveries", "sends", "snapshots_sent")

    def __init__(self) -> None:
        self.deliveries = 0
        """Updates times clients, behind the snapshot."""
        self.bytes_sent = 0
        self.sends = 0
        self.snapshots_sent = 0


class WorkerStats:
    """Totals since the worker's start, and the worst of the time since the last report."""

    def __init__(self, feeds: tuple[str, ...]) -> None:
        self.accepted = 0
        self.pings_sent = 0
        self.pongs_received = 0
        self.catch_ups = 0
        self.accept_failures = 0
        self.close_lines_suppressed = 0
        self.disconnects = dict.fromkeys(reasons.DisconnectReason, 0)
        self.feeds = {feed: FeedCounters() for feed in feeds}
        self.pause_seconds_max = 0.0
        """Longest turn since the last report."""

    def counters(self) -> dict[str, object]:
        """The totals, as they go to the hub."""
        return {
            "accepted": self.accepted,
            "pings_sent": self.pings_sent,
            "pongs_received": self.pongs_received,
            "catch_ups": self.catch_ups,
            "accept_failures": self.accept_failures,
            "disconnects": {reason.value: count for reason, count in self.disconnects.items() if count},
            "feeds": {
                feed: {
                    "deliveries": counters.deliveries,
                    "bytes_sent": counters.bytes_sent,
                    "sends": counters.sends,
                    "snapshots_sent": counters.snapshots_sent,
                }
                for feed, counters in self.feeds.items()
            },
        }

    def note_pause(self, seconds: float) -> None:
        """A turn took so long."""
        if seconds > self.pause_seconds_max:
            self.pause_seconds_max = seconds

    def take_close_lines_suppressed(self) -> int:
        """Ends of connections that were counted and not logged since the last line that was."""
        count, self.close_lines_suppressed = self.close_lines_suppressed, 0
        return count

    def take_pause_seconds_max(self) -> float:
        """The longest turn since the last call."""
        longest, self.pause_seconds_max = self.pause_seconds_max, 0.0
        return longest
