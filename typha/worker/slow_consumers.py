"""Slow consumers: clients far behind the end of the log, in which order they are sent their backlog, and how fast.

A hundred clients that have not read for a minute have a backlog of half a gigabyte. Sent as fast as they take it, that
fills links and processors for seconds, at the cost of all clients that are up to date. So while those are being sent
something, all slow consumers together get a small share of the worker's time, and a limited number of bytes a second.
They get everything as soon as nothing else is to be sent, or when pacing has delayed one of them for too long.

Where many clients are slow, they are the ones to be served: none gets a smaller share of the time than a client that is
up to date, and together they may be sent several times what is added to their backlog meanwhile.
"""

import math
from collections import OrderedDict

from typha import clock
from typha.worker import client, policy

_monotonic = clock.monotonic

_AHEAD_SECONDS = 0.01
"""What is due within this time is sent in one go, and then rested for: fewer turns."""
_LIVE_SECONDS = 0.25
"""This long after the last pass nothing else is to be sent."""
_RATE_SECONDS = 0.25
"""How often the rate of bytes to each up-to-date client is computed."""
_FASTER_THAN_LIVE = 4.0
"""Each slow consumer may be sent this many times that rate, so that its backlog shrinks whatever the rate is."""
_TURNS_PER_PING_INTERVAL = 4
"""A slow consumer's turn comes at least this often, so that no client goes without bytes for a ping interval."""


class SlowConsumers:
    """A queue: `take` returns the next client once it may be sent something, `spent` tells what that took."""

    def __init__(self, limits: policy.Policy) -> None:
        self._time_share = limits.slow_consumers_time_share
        self._bytes_per_second = limits.slow_consumers_bytes_per_second
        self._patience_seconds = limits.slow_consumers_patience_seconds
        self._turn_seconds = limits.ping_interval_seconds / _TURNS_PER_PING_INTERVAL
        self._queue: OrderedDict[client.Client, float] = OrderedDict()
        """Each with the time since which it waits for its turn."""
        self._rested_at = 0.0
        """When the rest for all that was sent is over."""
        self._live_until = 0.0
        self._live_clients = 0
        """Clients of the last pass."""
        self._rate_begun = 0.0
        self._rate_bytes = 0
        self._live_bytes_per_second = 0.0
        self.waited_seconds = 0.0
        """How long the client that was taken last has waited for its turn."""

    def __repr__(self) -> str:
        return f"<SlowConsumers queued={len(self._queue)} rested_at={self._rested_at:.3f}>"

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, current: client.Client) -> None:
        """The client's socket takes bytes; it is sent some in its turn."""
        self._queue.setdefault(current, _monotonic())

    def note_pass(self, now: float, *, bytes_each: int, clients: int) -> None:
        """A pass has sent this much to each of the up-to-date clients."""
        self._live_until = now + _LIVE_SECONDS
        self._live_clients = clients
        self._rate_bytes += bytes_each
        if now - self._rate_begun >= _RATE_SECONDS:
            self._live_bytes_per_second = self._rate_bytes / (now - self._rate_begun)
            self._rate_begun, self._rate_bytes = now, 0

    @property
    def due_at(self) -> float:
        """When the next client may be sent something, which may be in the past; infinity if there is none."""
        return min(self._rested_at, self._unpaced_at()) if self._queue else math.inf

    def _unpaced_at(self) -> float:
        first, queued_at = next(iter(self._queue.items()))
        held_up_until = min(self._turn_seconds, self._patience_seconds - first.held_up_seconds)
        return min(self._live_until, queued_at + held_up_until)

    def take(self, now: float) -> client.Client | None:
        """The next client, which may be gone by now; None if none may be sent anything yet."""
        if not self._queue or now < min(self._rested_at - _AHEAD_SECONDS, self._unpaced_at()):
            return None
        current, queued_at = self._queue.popitem(last=False)
        self.waited_seconds = max(0.0, now - queued_at)
        current.held_up_seconds += now - queued_at
        return current

    def spent(self, begun: float, now: float, sent_bytes: int) -> None:
        """Sending took from `begun` to `now`; the rest after it keeps all slow consumers within their share."""
        count = len(self._queue) + 1
        time_share = max(self._time_share, count / (count + self._live_clients))
        bytes_per_second = max(self._bytes_per_second, count * self._live_bytes_per_second * _FASTER_THAN_LIVE)
        paid_seconds = max((now - begun) / time_share, sent_bytes / bytes_per_second)
        self._rested_at = max(self._rested_at, begun) + paid_seconds
