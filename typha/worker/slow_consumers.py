"""Clients far behind the end of the log: in what order they are sent what they are owed, and how fast.

A hundred clients that have not read for a minute are owed half a gigabyte when they read again. Sent as fast as they
take it, that fills links and processors for seconds, at the cost of all who are up to date. So while anything is sent
to those, laggards together get a small share of the worker's time, and so many bytes a second. They get all there is as
soon as nothing else is to be sent, or when one of them has been held up by this for too long.

Where many lag, they are who is to be served: no laggard's share of the time is less than that of a client that is up to
date, and laggards are sent several times what comes to be owed to them meanwhile.
"""

import math
from collections import OrderedDict

from typha import clock
from typha.worker import client, policy

_monotonic = clock.monotonic

_AHEAD_SECONDS = 0.01
"""So much of what is due is sent in one go, and then rested for: fewer turns."""
_LIVE_SECONDS = 0.25
"""So long after the last pass nothing else is to be sent."""
_RATE_SECONDS = 0.25
"""How often it is reckoned how many bytes a second each client gets that is up to date."""
_FASTER_THAN_LIVE = 4.0
"""Laggards may be sent so many times that much, each: they come nearer to the end, whatever the rate."""
_TURNS_PER_PING_INTERVAL = 4
"""A laggard's turn comes at least so often: nobody is in silence for longer than the interval."""


class SlowConsumers:
    """A queue: `take` gives the next one as long as it may be sent something, `spent` says what that took."""

    def __init__(self, limits: policy.Policy) -> None:
        self._time_share = limits.slow_consumers_time_share
        self._bytes_per_second = limits.slow_consumers_bytes_per_second
        self._patience_seconds = limits.slow_consumers_patience_seconds
        self._turn_seconds = limits.ping_interval_seconds / _TURNS_PER_PING_INTERVAL
        self._queue: OrderedDict[client.Client, float] = OrderedDict()
        """With the time since which each waits for its turn."""
        self._rested_at = 0.0
        """When all that was sent is paid for."""
        self._live_until = 0.0
        self._clients = 0
        """Those that the last pass went to."""
        self._rate_begun = 0.0
        self._rate_bytes = 0
        self._live_bytes_per_second = 0.0

    def __repr__(self) -> str:
        return f"<SlowConsumers queued={len(self._queue)} rested_at={self._rested_at:.3f}>"

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, current: client.Client) -> None:
        """The client's socket takes bytes; it is sent some in its turn."""
        self._queue.setdefault(current, _monotonic())

    def withdraw(self, current: client.Client) -> bool:
        """The client waits for its turn no longer; whether it did."""
        return self._queue.pop(current, None) is not None

    def note_pass(self, now: float, *, bytes_each: int, clients: int) -> None:
        """So much was sent to each of the clients that are up to date."""
        self._live_until = now + _LIVE_SECONDS
        self._clients = clients
        self._rate_bytes += bytes_each
        if now - self._rate_begun >= _RATE_SECONDS:
            self._live_bytes_per_second = self._rate_bytes / (now - self._rate_begun)
            self._rate_begun, self._rate_bytes = now, 0

    @property
    def due_at(self) -> float:
        """When the next one may be sent something, which may be past; infinity if there is none."""
        return min(self._rested_at, self._unpaced_at()) if self._queue else math.inf

    def _unpaced_at(self) -> float:
        first, queued_at = next(iter(self._queue.items()))
        held_up_until = min(self._turn_seconds, self._patience_seconds - first.held_up_seconds)
        return min(self._live_until, queued_at + held_up_until)

    def take(self, now: float) -> client.Client | None:
        """The next one, which may be gone by now; None if nobody may be sent anything for the moment."""
        if not self._queue or now < min(self._rested_at - _AHEAD_SECONDS, self._unpaced_at()):
            return None
        current, queued_at = self._queue.popitem(last=False)
        current.held_up_seconds += now - queued_at
        return current

    def spent(self, begun: float, now: float, sent_bytes: int) -> None:
        """Sending from `begun` to `now` is rested for until it has taken no more than its shares."""
        count = len(self._queue) + 1
        time_share = max(self._time_share, count / (count + self._clients))
        bytes_per_second = max(self._bytes_per_second, count * self._live_bytes_per_second * _FASTER_THAN_LIVE)
        paid_seconds = max((now - begun) / time_share, sent_bytes / bytes_per_second)
        self._rested_at = max(self._rested_at, begun) + paid_seconds
