"""The open files of a process: how many there may be, and how many of them are for connections.

A peer must never take a descriptor that the service needs for a segment of a log, a snapshot or a renewed certificate:
docs/decisions/connections-and-refusals.md.
"""

import contextlib
import resource

from protocol import formats
from typha import settings
from typha.worker import policy

_WORKER_BASE = 64
"""Loop, link, log, listener, TLS files while they are read, connections between accept and close; half of it spare."""
_WORKER_PER_SEGMENT = 3
_WORKER_BLOCKS = policy.Policy().catch_up_blocks
_HUB_BASE = 208
"""Watches of the API server, connections to the metrics and health ports and to the admin socket, links and pipes of
workers."""
_HUB_PER_SEGMENT = 4
_SNAPSHOTS_PER_CHANNEL = 3
"""The newest, the one before while it is read, and the next while it is built or on its way."""
_OWN_SHARE_MAX = 0.5
"""However low the limit is, this part of it is enough for connections: a service without clients is of no use."""


def raise_limit() -> int:
    """Raises the soft limit of open files to the hard one, if that is allowed; returns the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft


def own(configured: settings.Settings, *, feeds: int, with_hub: bool) -> int:
    """Descriptors that a worker needs for itself, together with the hub's if it runs in the hub's process."""
    channels = feeds * len(formats.NAMES)
    segments = configured.log_budget_bytes // configured.segment_bytes + channels
    count = _WORKER_BASE + segments * _WORKER_PER_SEGMENT + channels * _SNAPSHOTS_PER_CHANNEL + _WORKER_BLOCKS
    if with_hub:
        count += _HUB_BASE + segments * _HUB_PER_SEGMENT + channels * _SNAPSHOTS_PER_CHANNEL
    return count


def connections_max(configured: settings.Settings, *, feeds: int, with_hub: bool, limit: int) -> int:
    """Connections that a worker may hold with this limit of open files."""
    return limit - min(own(configured, feeds=feeds, with_hub=with_hub), int(limit * _OWN_SHARE_MAX))
