"""How much an upstream may send. Its messages are checked before anything is kept of them.

One message is limited by the protocol, and one value by MaxFrameBytes. These limits are for what adds up: keys and
values that must be held, and messages that must be processed. An upstream that sends too much to hold is left; one that
sends too often waits, as a client that reads too slowly makes it wait.
"""

import asyncio
from collections.abc import Callable, Iterable

from cache.feeds import followed
from protocol import errors, messages
from typha import clock

KEY_BYTES = 600
"""What a key takes beside itself and its value: 338 bytes in the store, 250 in the link's digests."""
MEMORY_SHARE = 0.5
"""Of the memory limit. As much again is needed for snapshots, logs, workers, and the process itself."""
BYTES_MAX = 4 * 1024 * 1024 * 1024
"""The same as for all pages of a list of the API server (`cache.watch.policy.WatchPolicy.list_bytes_max`)."""
REVISION_CHARS_MAX = 256
"""Of a revision and of a V3 version. The longest ones join two resource versions, of some 20 digits each."""
MESSAGES_PER_SECOND = 5_000
"""A message takes some 50 us. A snapshot comes in chunks of 64 KiB, so this is 300 MiB a second."""
STATUSES_PER_SECOND = 20
"""Each may be sent to all clients. An upstream that catches this replica up sends two a second at most."""


class Exceeded(errors.RemoteProtocolError):
    """An upstream has sent more than there is room for."""


def bytes_max(memory_limit_bytes: int | None) -> int:
    """What all feeds of an upstream may take together under that memory limit."""
    return BYTES_MAX if memory_limit_bytes is None else min(BYTES_MAX, int(memory_limit_bytes * MEMORY_SHARE))


class Room:
    """Counts what all feeds of the upstream hold, have gathered, and receive in snapshots."""

    def __init__(self, bytes_max: int, feeds: Callable[[], Iterable[followed.FollowedFeed]]) -> None:
        self._bytes_max = bytes_max
        self._feeds = feeds
        self._incoming: dict[str, int] = {}
        """By feed, the bytes of a snapshot that has not replaced the feed's map yet."""

    def __repr__(self) -> str:
        return f"<Room {self._held_bytes} of {self._bytes_max} bytes, incoming={self._incoming}>"

    @property
    def _held_bytes(self) -> int:
        return sum(
            one.store.value_bytes + one.backlog_bytes + KEY_BYTES * (len(one.store) + one.backlog)
            for one in self._feeds()
        )

    def forget_snapshot(self, name: str) -> None:
        """A feed's snapshot is complete, or given up."""
        self._incoming.pop(name, None)

    def begin_snapshot(self, name: str, keys: int) -> None:
        """The upstream announces a snapshot.

        Raises:
            Exceeded: its keys alone take more than there is room for.
        """
        self._incoming[name] = 0
        if keys * KEY_BYTES > self._bytes_max:
            raise Exceeded(f"a snapshot of {keys} keys, which take more than {self._bytes_max} bytes")

    def take(self, source: followed.FollowedFeed, updates: Iterable[messages.Update], *, is_in_snapshot: bool) -> None:
        """The upstream sends these updates of a feed.

        Raises:
            Exceeded: with them, there is more than there is room for.
        """
        new_bytes = 0
        for update in updates:
            value, held = update.value, source.store.get(update.key)
            if value is not None and (held is None or held.value != value):
                new_bytes += KEY_BYTES + len(update.key) + len(value)
        if is_in_snapshot:
            new_bytes = self._incoming[source.name] = self._incoming.get(source.name, 0) + new_bytes
        others_bytes = sum(size for name, size in self._incoming.items() if name != source.name)
        if self._held_bytes + others_bytes + new_bytes > self._bytes_max:
            raise Exceeded(f"keys and values take more than {self._bytes_max} bytes")


class Pace:
    """Lets so many events a second pass, and a second's worth at once."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at = clock.monotonic()

    async def turn(self) -> None:
        """Return when the next event may pass."""
        now = clock.monotonic()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second) - 1.0
        self._at = now
        if self._left < 0.0:
            await asyncio.sleep(-self._left / self._per_second)
