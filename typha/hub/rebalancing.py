"""How many connections this replica should have, and the pace at which it sends clients away above that number.

The rule is the original's (docs/reference/typha-behaviour.md, section 9), so that both may serve one cluster. A node
has up to four connections, and a replica may have a fifth more than its share of them, as if another one were down. One
that has more sends one client away each second. So a fleet comes to rest, and stays there.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import structlog

from cache.feeds.calico import syncers
from protocol.reasons import DisconnectReason
from typha import clock, settings
from typha.ipc import messages

_log = structlog.get_logger("typha.rebalancing")
_monotonic = clock.monotonic

_JITTER = 0.1
"""Part of an interval that is added at random, so that replicas do not act at the same moments."""
_HEADROOM_PERCENT = 120
_REPORTED_SECONDS = 2.5
"""A worker that was told to send a client away reports it within two of its reports, unless it had none to send."""
KUBERNETES = "kubernetes"
_INITIAL = "initial"


class Unknown(Exception):
    """The number of replicas or nodes cannot be had now; the message says why."""


class Limit(NamedTuple):
    """The number of connections above which clients are sent away, and what led to it."""

    connections: int
    reason: str


def connection_limit(*, replicas: int, nodes: int, lower: int, upper: int) -> Limit:
    """The limit for a fleet of so many replicas. Whole numbers, rounded down at each step, as the original does it."""
    if replicas <= 1:
        return Limit(upper, "lone typha")
    share = len(syncers.NAMES) * (1 + nodes * _HEADROOM_PERCENT // (replicas - 1) // 100)
    if share < lower:
        return Limit(min(lower, upper), "configured lower limit")
    return Limit(min(share, upper), "fraction+20%" if share < upper else "configured upper limit")


class Workers(Protocol):
    """The supervisor, as far as rebalancing needs it."""

    @property
    def active(self) -> int:
        """Open connections of all workers."""

    def totals(self) -> messages.WorkerCounts:
        """The totals of all workers."""

    def send_away(self, clients: int) -> None:
        """Tells a worker to send some clients to other replicas."""


class Rebalancer:
    """Looks at the fleet from time to time, and sends clients away while this replica has too many.

    Args:
        count_replicas: the addresses of the Service; raises Unknown.
        count_nodes: raises Unknown.
    """

    def __init__(
        self,
        configured: settings.Settings,
        workers: Workers,
        *,
        count_replicas: Callable[[], Awaitable[int]],
        count_nodes: Callable[[], int],
    ) -> None:
        self._settings = configured
        self._workers = workers
        self._count_replicas = count_replicas
        self._count_nodes = count_nodes
        self.limit = Limit(configured.max_connections_upper_limit, _INITIAL)
        self._sent_at: deque[float] = deque()
        """When workers were told of clients that have not been reported as gone yet."""
        self._reported = 0

    @property
    def dropped(self) -> int:
        """Clients that have been sent away since the service's start."""
        return self._workers.totals().disconnects.get(DisconnectReason.REBALANCED, 0)

    async def run(self) -> None:
        """Rebalances forever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_away(), name="connection limit")
            if self._settings.connection_rebalancing_mode == KUBERNETES:
                tasks.create_task(self._look(), name="size of the fleet")

    async def _look(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_jittered(self._settings.k8s_service_poll_interval_seconds))

    async def look(self) -> None:
        """Counts replicas and nodes, and sets the limit by them."""
        upper = self._settings.max_connections_upper_limit
        facts: dict[str, object] = {}
        try:
            replicas, nodes = await self._count_replicas(), self._count_nodes()
            facts = {"replicas": replicas, "nodes": nodes}
            lower = self._settings.max_connections_lower_limit
            limit = connection_limit(replicas=replicas, nodes=nodes, lower=lower, upper=upper)
        except Unknown as error:
            facts = {"error": str(error)}
            limit = Limit(upper, "error")
        if limit != self.limit:
            is_lost = "error" in facts and self.limit.reason != _INITIAL
            level = _log.warning if is_lost else _log.info
            level("Connection limit", connections=limit.connections, reason=limit.reason, **facts)
        self.limit = limit

    async def _send_away(self) -> None:
        while True:
            await asyncio.sleep(_jittered(self._settings.connection_drop_interval_seconds))
            self.send_one_away(_monotonic())

    def send_one_away(self, now: float) -> bool:
        """Tells the worker with the most connections to send a client away, if there are too many; whether it did."""
        for _ in range(self.dropped - self._reported):
            self._reported += 1
            if self._sent_at:
                self._sent_at.popleft()
        while self._sent_at and self._sent_at[0] < now - _REPORTED_SECONDS:
            self._sent_at.popleft()
        if self._workers.active - len(self._sent_at) <= self.limit.connections:
            return False
        self._sent_at.append(now)
        self._workers.send_away(1)
        return True


def _jittered(seconds: float) -> float:
    return seconds * (1 + random.uniform(0.0, _JITTER)) if math.isfinite(seconds) else seconds
