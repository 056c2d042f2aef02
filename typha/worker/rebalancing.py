"""Which clients a worker sends away so that other replicas get their share."""

import random
from collections.abc import Callable, Iterable, Iterator

from protocol import formats
from protocol.reasons import DisconnectReason
from typha.worker import client, connections
from typha.worker.channel import WorkerChannel

RETRY_MILLISECONDS = 60_000
"""A native client is asked not to come back here for so long, which is two looks at the number of replicas."""
_TEXT = "other replicas have room"
_TRIES = 16
"""Clients that are looked at for one that stands at the end of a frame. Nearly all do between two passes."""

Movable = Callable[[client.Client], bool]


def send_away(count: int, channels: Iterable[WorkerChannel], ends: connections.Connections, movable: Movable) -> int:
    """Asks clients to go, and returns how many. None of them is in its handshake, its snapshot, or behind.

    Native clients come first: a goodbye tells them where not to go, and they keep their map. Those of Typha's protocol
    get a whole new snapshot elsewhere.
    """
    listed = list(channels)
    gone = 0
    for _ in range(count):
        chosen = next((one for one in _cheapest_first(listed) if movable(one)), None)
        if chosen is None:
            break
        ends.farewell(chosen, DisconnectReason.REBALANCED, text=_TEXT, retry_after_milliseconds=RETRY_MILLISECONDS)
        gone += 1
    return gone


def _cheapest_first(channels: list[WorkerChannel]) -> Iterator[client.Client]:
    """Random clients that have been sent everything, some native ones before some others."""
    for is_native in (True, False):
        sets = [
            channel.live
            for channel in channels
            if len(channel.live) and formats.replaces_by_snapshot(channel.wire_format) is is_native
        ]
        for _ in range(_TRIES if sets else 0):
            [live] = random.choices(sets, weights=[len(one) for one in sets])
            yield random.choice(live.clients)
