"""Watch streams. An event is encoded once for all watches of its type; each watch has a bounded buffer."""

import asyncio
import collections
import enum
from collections.abc import Callable, Iterator

from loadtest.apiserver import objects
from loadtest.apiserver.counters import Counters
from loadtest.apiserver.objects import Event
from loadtest.apiserver.resources import Resource


class Ending(enum.Enum):
    """How a stream ends."""

    EOF = "eof"  # the HTTP answer is complete
    CUT = "cut"  # buffered data is sent, then the connection is closed in the middle of the answer
    ABORT = "abort"  # the connection is reset at once
    SLOW = "slow"  # the client did not keep up; then as ABORT
    GONE = "gone"  # the client has left


class WatchStream:
    """The buffer of one watch. It skips events up to `version`, which follows the events that it takes.

    `abort` must reset the connection.
    """

    def __init__(
        self, resource: Resource, *, namespace: str, version: int, buffer_bytes: int, abort: Callable[[], None]
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.version = version
        self.ending: Ending | None = None
        self.frozen = False
        self._to_lose = 0
        self._after_loss: Ending | None = None
        self._buffer_bytes = buffer_bytes
        self._abort = abort
        self._lines: collections.deque[bytes] = collections.deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()

    def offer(self, event: Event, line: bytes) -> None:
        """Take an event, unless it is old, of another namespace, or to be lost."""
        if event.version <= self.version or (self.namespace and event.namespace != self.namespace):
            return
        self.version = event.version
        if self._to_lose:
            self._to_lose -= 1
            return
        self.put(line)
        if self._after_loss is not None:
            self.end(self._after_loss)

    def put(self, line: bytes) -> None:
        """Add bytes; a full buffer ends the stream."""
        if self.ending is not None or self.frozen:
            return
        self._lines.append(line)
        self._queued_bytes += len(line)
        if self._queued_bytes > self._buffer_bytes:
            self.end(Ending.SLOW)
        self._wake.set()

    def take(self) -> bytes:
        """Remove and return all buffered bytes."""
        taken = b"".join(self._lines)
        self._lines.clear()
        self._queued_bytes = 0
        self._wake.clear()
        return taken

    def end(self, ending: Ending) -> None:
        """End the stream: with EOF and CUT after the buffered data, otherwise at once, even if its writer waits."""
        if self.ending is None:
            self.ending = ending
        if ending in (Ending.ABORT, Ending.SLOW):
            self._abort()
        self._wake.set()

    def cut(self) -> None:
        """End the stream in the middle of a line."""
        line = objects.bookmark_line(self.resource, self.version)
        self.put(line[: len(line) // 2])
        self.end(Ending.CUT)

    def freeze(self) -> None:
        """Send nothing more, but stay open."""
        self.frozen = True
        self.take()

    def lose(self, count: int) -> None:
        """Drop the next `count` events; the stream breaks after the event that follows them."""
        self._to_lose += count
        self._after_loss = Ending.CUT

    async def wait(self, timeout_seconds: float) -> None:
        """Return when there is work to do, or after a time."""
        if timeout_seconds > 0:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._wake.wait()
            except TimeoutError:
                return


class Streams:
    """All open watch streams."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._open: dict[Resource, list[WatchStream]] = {}

    def publish(self, resource: Resource, event: Event) -> None:
        """Give an event to the watches of its type. A listener of the store."""
        self._counters.events[resource] += 1
        watching = self._open.get(resource)
        if watching:
            line = objects.event_line(resource, event.kind, event.item)
            for stream in watching:
                stream.offer(event, line)

    def add(self, stream: WatchStream) -> None:
        """Give events to a stream from now on."""
        self._open.setdefault(stream.resource, []).append(stream)

    def remove(self, stream: WatchStream) -> None:
        """Stop giving events to a stream."""
        self._open[stream.resource].remove(stream)

    def of(self, resource_name: str) -> Iterator[WatchStream]:
        """Open streams of the types with this plural name, or of all types if it is empty."""
        for resource, watching in list(self._open.items()):
            if not resource_name or resource_name in (resource.name, str(resource)):
                yield from list(watching)
