"""Clients that are told to go: to a replica with newer data, or because the service ends."""

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from protocol import reasons
from typha import clock
from typha.ipc import messages
from typha.worker import client, connections, policy, poller

_monotonic = clock.monotonic

Leaver = TypeVar("Leaver")

_DRAIN_TIME_SHARE = 0.95
"""Of the time for draining: the last client leaves within it (docs/reference/typha-behaviour.md, section 8)."""
_DRAIN_JITTER = 0.05
_DRAIN_END_SHARE = 0.97
"""Of the time for draining: the last goodbyes are not waited for after it."""
_DRAIN_LINGER_SECONDS_MIN = 0.5
"""For the last goodbyes to arrive, where little of the time is left."""
_DRAIN_RETRY_MILLISECONDS = 500
_LINGER_LOOK_SECONDS = 0.02


class Departures:
    """Says goodbye to clients one after the other, in random order. Nobody is told twice."""

    def __init__(
        self,
        client_poller: poller.AnyPoller[client.Client],
        worker_connections: connections.Connections,
        limits: policy.Policy,
    ) -> None:
        self._poller = client_poller
        self._connections = worker_connections
        self._policy = limits
        self._leavers: deque[tuple[float, client.Client]] = deque()
        """Clients that are to move to a fresh replica, and when."""
        self._fresh_servers: tuple[str, ...] = ()

    def hand_over(self, message: messages.HandOver) -> None:
        """From now on, all clients that have said hello move to a fresh replica."""
        clients = [one for one in self._poller.clients.values() if one.channel is not None and not one.is_closing()]
        self._leavers = leavers(clients, message.seconds, _monotonic())
        self._fresh_servers = tuple(message.servers)

    def keep(self) -> None:
        """Those that have not moved yet stay."""
        self._leavers.clear()

    def move(self, now: float) -> None:
        """Says goodbye to the clients whose time has come; they find a fresh replica."""
        for _ in range(self._policy.expired_at_a_time):
            if not self._leavers or self._leavers[0][0] > now:
                return
            _, current = self._leavers.popleft()
            if not self._has_left(current):
                self._connections.farewell(
                    current,
                    reasons.DisconnectReason.REBALANCED,
                    text="this server has lost its backend, and another one has not",
                    servers=self._fresh_servers,
                )

    async def drain(self, drain: messages.Drain) -> None:
        """Closes client after client over the given time, and waits for the last ones to read their goodbye."""
        begun = _monotonic()
        drain = msgspec.structs.replace(drain, seconds=max(0.0, drain.seconds - max(0.0, begun - drain.sent_at)))
        for current in list(self._connections.handshaking):
            self._connections.close(current, reasons.DisconnectReason.SHUTTING_DOWN)
        remaining = [current for current in self._poller.clients.values() if not current.is_closing()]
        random.shuffle(remaining)
        times = farewell_times(drain, len(remaining))
        for current in remaining:
            if self._has_left(current):
                continue
            await asyncio.sleep(max(0.0, begun + next(times) - _monotonic()))
            if not self._has_left(current):
                self._connections.farewell(
                    current,
                    reasons.DisconnectReason.SHUTTING_DOWN,
                    text="the server is shutting down",
                    retry_after_milliseconds=_DRAIN_RETRY_MILLISECONDS,
                )
        left_seconds = max(_DRAIN_LINGER_SECONDS_MIN, begun + drain.seconds * _DRAIN_END_SHARE - _monotonic())
        for _ in range(int(min(self._policy.goodbye_linger_seconds, left_seconds) / _LINGER_LOOK_SECONDS)):
            if not self._connections.closing:  # a client that reads its goodbye closes first
                break
            await asyncio.sleep(_LINGER_LOOK_SECONDS)

    def _has_left(self, current: client.Client) -> bool:
        return self._poller.clients.get(current.fd) is not current or current.is_closing()


def leavers(clients: Sequence[Leaver], seconds: float, now: float) -> deque[tuple[float, Leaver]]:
    """When each of these clients is to leave: evenly over the time, in random order."""
    chosen = random.sample(clients, len(clients))
    return deque((now + seconds * (place + random.random()) / len(chosen), one) for place, one in enumerate(chosen))


def farewell_times(drain: messages.Drain, count: int) -> Iterator[float]:
    """When to say goodbye to the next of `count` clients, in seconds from the beginning of the drain.

    The pace is that of the whole service, of which this worker has its share of the clients. All workers end together.
    """
    everyone = count + drain.others
    interval_seconds = min(drain.interval_seconds_max, drain.seconds * _DRAIN_TIME_SHARE / max(1, everyone))
    own_seconds = interval_seconds * everyone / max(1, count)
    for number in itertools.count(1):
        jitter = random.uniform(-_DRAIN_JITTER, _DRAIN_JITTER)
        yield max(0.0, own_seconds * (number - drain.phase) + interval_seconds * jitter)
