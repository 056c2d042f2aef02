"""What the workers reported lately: the newest ends of connections, and the latency of deliveries since it was taken.

It outlives the workers. The status page shows it.
"""

from collections import deque

import msgspec

from protocol.reasons import DisconnectReason
from typha import clock
from typha.ipc import messages
from typha.observability import quantiles

ENDS_MAX = 200
"""More than a person reads. The metrics and the history count all of them."""


class EndedConnection(msgspec.Struct, frozen=True, gc=False):
    """A connection that has ended. Node and address are the peer's own words."""

    at: float
    """Monotonic seconds."""
    node: str
    address: str
    feed: str
    reason: DisconnectReason
    age_seconds: float
    worker: int


class Recent:
    """Takes the workers' reports."""

    def __init__(self) -> None:
        self.ends: deque[EndedConnection] = deque(maxlen=ENDS_MAX)
        """In the order in which they were reported."""
        self._latency = quantiles.Histogram()

    def __repr__(self) -> str:
        return f"Recent({len(self.ends)} ends, {self._latency.count} deliveries)"

    def take(self, worker: int, report: messages.ReportRecent) -> None:
        """A worker's report, which has been checked."""
        self._latency.merge_list(report.latency)
        now = clock.monotonic()
        for end in report.ends:
            at = min(now, end.at)
            self.ends.append(EndedConnection(at, end.node, end.address, end.feed, end.reason, end.age_seconds, worker))

    def take_latency(self) -> quantiles.Histogram:
        """The latency of all deliveries that were reported since the last call."""
        taken, self._latency = self._latency, quantiles.Histogram()
        return taken
