"""What a worker tells of itself: to the log, when SIGUSR1 comes to the hub, and in an archive for support."""

import heapq
import os
from collections import deque
from collections.abc import Collection

import structlog

from typha.ipc import messages
from typha.observability import logs, memory, stacks
from typha.worker import channel as worker_channel
from typha.worker import client, connections

_log = structlog.get_logger("typha.diagnosis")

_CLIENTS_MAX = 20
"""Clients that are named: those with the most log before them."""


def write(
    conns: connections.Connections,
    channels: worker_channel.Channels,
    clients: Collection[client.Client],
    now: float,
) -> None:
    """Logs it, in at most as many lines as there are wire formats and clients to be named."""
    _log.info(
        "Diagnosis of a worker",
        **memory.of_process(),
        connections=len(clients),
        handshaking=len(conns.handshaking),
        closing=len(conns.closing),
        unproven_bytes=conns.unproven_bytes,
    )
    behind: list[tuple[int, int, client.Client]] = []
    for channel in channels:
        _log.info(
            "Diagnosis of a worker's wire format",
            feed=channel.feed,
            format=channel.wire_format,
            live=len(channel.live),
            held=len(channel.held),
            away=len(channel.away),
        )
        behind += [(channel.log.end - reader.offset, reader.number, reader) for reader in channel.away]
    for lag_bytes, number, reader in heapq.nlargest(_CLIENTS_MAX, behind):
        _log.info(
            "Diagnosis of a client that lags",
            client=reader.address,
            agent=reader.adapter.agent if reader.adapter else "",
            feed=reader.channel.feed if reader.channel else "",
            connection=number,
            state=reader.state.value,
            lag_bytes=lag_bytes,
            socket_is_full=reader.waiting,
            seconds=round(now - reader.connected_at, 1),
        )


def description(request: int) -> deque[messages.DescriptionPart]:
    """Memory, tasks, threads and the newest log lines of this process, in parts."""
    facts = "\n".join(f"{name}: {value}" for name, value in memory.of_process().items())
    text = f"{facts}\n\n{stacks.text()}\n\n{chr(10).join(logs.recent_lines())}\n"
    text = text.encode("utf-8", "replace").decode()  # without what cannot travel
    size = messages.DESCRIPTION_CHARS
    parts = [text[start : start + size] for start in range(0, len(text), size)][: messages.DESCRIPTION_PARTS_MAX]
    return deque(
        messages.DescriptionPart(request, os.getpid(), part, place == len(parts)) for place, part in enumerate(parts, 1)
    )
