"""Traces of single updates through the service: from a decoded watch event to the last client of its publish.

The hub records times only; who makes spans of them is the caller's affair. While tracing is off none of this exists:
the watchers call the hub itself, and a commit checks one attribute.

At most one event between two commits is traced. Where a worker has got to is read from the counter that it shares with
the hub, every millisecond at first, and less often the longer it takes: so no process is woken or asked, and the end of
a delivery is known to a twentieth of its length, or to a millisecond.
"""

import asyncio
import dataclasses
import random
from collections.abc import Callable

from cache import objects, resources
from typha import clock
from typha.hub import hub, worker_link
from typha.observability import spans

_monotonic = clock.monotonic

FOLLOWED_MAX = 64
"""Traces whose deliveries are under way. More are only there when workers are far behind; they are not traced then."""
DELIVERY_SECONDS_MAX = 60.0
"""A worker that takes longer is stuck, and is about to be replaced."""
_LOOK_SECONDS_MIN = 0.001
_LOOK_SHARE = 0.05


@dataclasses.dataclass(slots=True)
class Delivery:
    """One worker's part of a publish. Times are monotonic seconds."""

    worker: int
    clients: int
    """Of this worker, as it last reported."""
    publish: int
    """Number of the message to the worker that has the publish."""
    ended_at: float = 0.0
    is_complete: bool = False
    """False if the worker died, or took too long."""


@dataclasses.dataclass(slots=True)
class PublishTrace:
    """One watch event on its way. Times are monotonic seconds, 0 for what has not happened."""

    type: str
    operation: str
    came_at: float
    converted_at: float = 0.0
    commit_began_at: float = 0.0
    committed_at: float = 0.0
    updates: int = 0
    """Objects that came since the last commit, this one among them."""
    deliveries: list[Delivery] = dataclasses.field(default_factory=list)
    """Empty if no client is sent anything."""


class Tracer:
    """Chooses events, and follows them.

    Args:
        ratio: of events that are to be traced, 0 to 1.
        finished: takes a trace that has come to its end.
        dropped: called for each one that is given up.
        chance: a random number from 0 to below 1.
    """

    def __init__(
        self,
        ratio: float,
        finished: Callable[[PublishTrace], None],
        dropped: Callable[[], None],
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._ratio = ratio
        self._finished = finished
        self._dropped = dropped
        self._chance = chance
        self._pending: PublishTrace | None = None
        self._followed: list[tuple[PublishTrace, list[tuple[Delivery, worker_link.WorkerLink]]]] = []
        self._wake = asyncio.Event()

    def begin(self, type: resources.ResourceType, operation: str) -> None:
        """An event has been decoded, and is traced if chance has it."""
        if self._pending is None and self._chance() < self._ratio:
            if len(self._followed) >= FOLLOWED_MAX:
                self._dropped()
            else:
                self._pending = PublishTrace(str(type), operation, _monotonic())

    def converted(self) -> None:
        """The event has been converted."""
        if self._pending is not None and not self._pending.converted_at:
            self._pending.converted_at = _monotonic()

    def forget(self) -> None:
        """The event may be waiting for its conversion in a thread, past the next commit: it is not traced."""
        if self._pending is not None and not self._pending.converted_at:
            self._pending = None

    def committed(self, workers: worker_link.WorkerLinks, began_at: float, updates: int, *, published: bool) -> None:
        """A commit is over, and the workers know of it."""
        trace, self._pending = self._pending, None
        if trace is None:
            return
        trace.commit_began_at, trace.committed_at, trace.updates = began_at, _monotonic(), updates
        if published:
            links = [
                (Delivery(link.number, link.report.active, link.newest_publish), link) for link in workers.values()
            ]
            trace.deliveries = [delivery for delivery, _ in links]
            if links:
                self._followed.append((trace, links))
                self._wake.set()
                return
        self._finished(trace)

    async def run(self) -> None:
        """Follows traces until workers have delivered, forever."""
        while True:
            await self._wake.wait()
            while self._followed:
                now = _monotonic()
                self.look(now)
                youngest = min((now - trace.committed_at for trace, _ in self._followed), default=0.0)
                await asyncio.sleep(max(_LOOK_SECONDS_MIN, youngest * _LOOK_SHARE))
            self._wake.clear()

    def look(self, now: float) -> None:
        """Notes which workers have delivered by now (monotonic seconds)."""
        followed, self._followed = self._followed, []
        for trace, links in followed:
            is_late = now - trace.committed_at > DELIVERY_SECONDS_MAX
            under_way = []
            for delivery, link in links:
                delivery.is_complete = link.is_attached and link.has_finished(delivery.publish)
                if delivery.is_complete or not link.is_attached or is_late:
                    delivery.ended_at = now
                else:
                    under_way.append((delivery, link))
            if under_way:
                self._followed.append((trace, under_way))
            else:
                self._finished(trace)


class TracedHub:
    """The hub as the watchers' sink while tracing is on."""

    def __init__(self, traced: hub.Hub, tracer: Tracer) -> None:
        self._hub = traced
        self._tracer = tracer
        self.skipped = traced.skipped
        self.status = traced.status
        self.confirmed = traced.confirmed
        self.batch_end = traced.batch_end
        self.room = traced.room

    def apply(self, event: objects.ObjectEvent) -> None:
        """See `Hub.apply`."""
        self._tracer.begin(event.type, "apply")
        self._hub.apply(event)
        if self._hub.conversions.is_idle:
            self._tracer.converted()
        else:
            self._tracer.forget()

    def delete(self, event: objects.ObjectEvent) -> None:
        """See `Hub.delete`."""
        self._tracer.begin(event.type, "delete")
        self._hub.delete(event)
        self._tracer.converted()


def spans_of(trace: PublishTrace) -> tuple[spans.Span, list[spans.Span]]:
    """The span of a whole trace, and those of its parts. No name, key or value of an object is in them."""
    parts = [
        spans.Span("convert", trace.came_at, trace.converted_at),
        spans.Span("coalesce", trace.converted_at, trace.commit_began_at),
        spans.Span("commit", trace.commit_began_at, trace.committed_at, {"typha.updates": trace.updates}),
        *(
            spans.Span(
                "deliver",
                trace.committed_at,
                delivery.ended_at,
                {"typha.worker": delivery.worker, "typha.clients": delivery.clients},
                has_failed=not delivery.is_complete,
            )
            for delivery in trace.deliveries
        ),
    ]
    attributes: dict[str, str | int | bool] = {
        "typha.resource.type": trace.type,
        "typha.operation": trace.operation,
        "typha.clients": sum(delivery.clients for delivery in trace.deliveries),
        "typha.published": bool(trace.deliveries),
    }
    return spans.Span("update", trace.came_at, max(part.ended_at for part in parts), attributes), parts
