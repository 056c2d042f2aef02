"""The last hour in points of ten seconds, which the status page draws. It is in memory, and ends with the service.

Each point has what was counted since the one before. Nothing is added to the hot path: the totals are those of the
metrics, and the latency is what the workers reported in that time.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from protocol.reasons import DisconnectReason
from typha import clock
from typha.admin import server, status
from typha.hub import recent, supervisor
from typha.ipc import messages
from typha.observability import quantiles

INTERVAL_SECONDS: Final = 10.0
"""Ten reports of each worker. Shorter points would be noise in a chart of an hour."""
POINTS_MAX: Final = 360
"""An hour. A point takes about 500 bytes."""
_JUMP_SECONDS: Final = 0.5
"""By how much the wall clock must have been set before what is shown gets other times."""
_NUMBER_MAX: Final = 2**53
"""A worker that lies about its totals makes no number that JSON's readers cannot take."""


class Point(msgspec.Struct, frozen=True, gc=False):
    """Ten seconds. Quantiles are None if nothing was delivered."""

    at: float
    """At its end: monotonic seconds, and in an answer Unix seconds."""
    clients: int
    deliveries: int
    bytes_sent: int
    latency_p50: float | None
    latency_p99: float | None
    ends: dict[DisconnectReason, int]


_Moment = TypeVar("_Moment", Point, recent.EndedConnection)


class History:
    """Collects the points. `look` is to be called every second or so."""

    def __init__(self, of_workers: supervisor.Supervisor, reported: recent.Recent) -> None:
        self._supervisor = of_workers
        self._recent = reported
        self._points: deque[Point] = deque(maxlen=POINTS_MAX)
        self._before = messages.WorkerCounts()
        self._due_at = clock.monotonic() + INTERVAL_SECONDS
        self._unix_at_zero = status.unix_seconds(0.0)
        """What a moment of the monotonic clock lacks to Unix time. It stays until the wall clock is set, so a point has
        the same time in every answer; after that all have times of the new clock, at the old distances."""

    def __repr__(self) -> str:
        return f"History({len(self._points)} points)"

    def look(self) -> None:
        """Adds a point if one is due. After a standstill of the hub, one point covers all of it."""
        now = clock.monotonic()
        if now < self._due_at:
            return
        self._due_at = max(self._due_at + INTERVAL_SECONDS, now + INTERVAL_SECONDS / 2)
        counts, before = self._supervisor.totals(), self._before
        latency = self._recent.take_latency()
        self._before = counts
        ends = {
            reason: _number(count - before.disconnects.get(reason, 0)) for reason, count in counts.disconnects.items()
        }
        self._points.append(
            Point(
                at=now,
                clients=_number(self._supervisor.active),
                deliveries=_number(_sum(counts, "deliveries") - _sum(before, "deliveries")),
                bytes_sent=_number(_sum(counts, "bytes_sent") - _sum(before, "bytes_sent")),
                latency_p50=_quantile(latency, 0.5),
                latency_p99=_quantile(latency, 0.99),
                ends={reason: count for reason, count in ends.items() if count},
            )
        )

    @property
    def pages(self) -> dict[str, server.Page]:
        """`/v1/history` and `/v1/ends`."""
        return {"/v1/history": self.history, "/v1/ends": self.ends}

    async def history(self, _query: server.Query) -> server.Answer:
        """All points, the oldest first."""
        answer = {"interval_seconds": INTERVAL_SECONDS, "points": self._dated(self._points)}
        return server.Answer(msgspec.json.encode(answer))

    async def ends(self, query: server.Query) -> server.Answer:
        """The newest ended connections, at most `limit`; the newest come first."""
        limit = status.number(query, "limit", default=recent.ENDS_MAX, most=recent.ENDS_MAX)
        newest = sorted(self._recent.ends, key=lambda end: -end.at)  # workers report in turns
        return server.Answer(msgspec.json.encode({"ends": self._dated(newest[:limit])}))

    def _dated(self, found: Iterable[_Moment]) -> list[_Moment]:
        unix_at_zero = status.unix_seconds(0.0)
        if abs(unix_at_zero - self._unix_at_zero) > _JUMP_SECONDS:
            self._unix_at_zero = unix_at_zero
        return [msgspec.structs.replace(one, at=round(self._unix_at_zero + one.at, 3)) for one in found]


def _sum(counts: messages.WorkerCounts, name: str) -> int:
    return sum(getattr(feed, name) for feed in counts.feeds.values())


def _number(value: int) -> int:
    return max(0, min(value, _NUMBER_MAX))


def _quantile(latency: quantiles.Histogram, quantile: float) -> float | None:
    value = latency.quantile(quantile)
    return None if math.isnan(value) else value
