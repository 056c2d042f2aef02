"""Watches: initial events, events, bookmarks, and the end.

An event is encoded once for all watches of its type; each watch has a bounded buffer.
"""

import asyncio
import collections
import enum
import math
import random
import time
from collections.abc import Callable, Iterator

from aiohttp import web

from loadtest.apiserver import objects
from loadtest.apiserver.counters import Counters
from loadtest.apiserver.errors import ApiError, ResourceVersionTooLarge
from loadtest.apiserver.listing import Options
from loadtest.apiserver.objects import Event, EventKind
from loadtest.apiserver.resources import Resource
from loadtest.apiserver.settings import SimulatorSettings, WatchListMode
from loadtest.apiserver.store import Snapshot, Store

#: Initial events in one write.
INITIAL_EVENTS_PER_WRITE = 200
#: Interval at which a request for a future version checks again.
FRESH_POLL_SECONDS = 0.02


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

    def __init__(self) -> None:
        self._open: dict[Resource, list[WatchStream]] = {}

    def publish(self, resource: Resource, event: Event) -> None:
        """Give an event to the watches of its type. A listener of the store."""
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


async def until_fresh(store: Store, version: int, wait_seconds: float) -> None:
    """Wait until the store reaches a version. Raises ResourceVersionTooLarge after `wait_seconds`."""
    deadline = time.monotonic() + wait_seconds
    while store.version < version:
        if time.monotonic() >= deadline:
            raise ResourceVersionTooLarge(version, store.version)
        await asyncio.sleep(FRESH_POLL_SECONDS)


class Watching:
    """Answers watch requests."""

    def __init__(self, settings: SimulatorSettings, store: Store, *, streams: Streams, counters: Counters) -> None:
        self._settings = settings
        self._store = store
        self._streams = streams
        self._counters = counters
        self._random = random.Random(settings.seed)

    async def serve(
        self, request: web.Request, resource: Resource, *, namespace: str, asked: Options, verb: str
    ) -> web.StreamResponse:
        """Stream the watch to its end. A version too old or too new gives an ERROR event, as in kube-apiserver."""
        response = web.StreamResponse(headers={"Cache-Control": "no-cache, private"})
        response.content_type = "application/json"
        stream = WatchStream(
            resource,
            namespace=namespace,
            version=0,
            buffer_bytes=self._settings.watch_buffer_bytes,
            abort=lambda: _abort(request),
        )
        self._counters.requests[verb, resource, 200] += 1
        self._counters.open_watches[verb, resource] += 1
        ended = Ending.GONE
        try:
            await response.prepare(request)
            await self._run(response, stream, asked)
            ended = stream.ending or Ending.EOF
            if ended is Ending.CUT and request.transport is not None:
                request.transport.close()
        except (ConnectionError, asyncio.CancelledError):
            # The peer has left, or the stream was aborted while its writer waited.
            ended = stream.ending or Ending.GONE
            raise
        finally:
            self._counters.open_watches[verb, resource] -= 1
            self._counters.watches_ended[ended.value] += 1
        return response

    async def _run(self, response: web.StreamResponse, stream: WatchStream, asked: Options) -> None:
        try:
            if asked.initial_events:
                await until_fresh(self._store, asked.version or 0, self._settings.fresh_wait_seconds)
            initial = self._begin(stream, asked)
        except ApiError as error:
            await response.write(error.event_line())
            return
        self._streams.add(stream)
        try:
            for lines in initial:
                await response.write(lines)
                await asyncio.sleep(0)
            await self._follow(response, stream, asked)
        finally:
            self._streams.remove(stream)

    def _begin(self, stream: WatchStream, asked: Options) -> Iterator[bytes]:
        """Set the version at which the stream begins; returns the lines before it. Raises Expired, TypeUnknown."""
        resource, store = stream.resource, self._store
        served = asked.initial_events if self._settings.watch_list is WatchListMode.ON else None
        if served or (served is None and not asked.version):
            snapshot = store.snapshot(resource, namespace=stream.namespace)
            stream.version = snapshot.version
            return _initial_lines(resource, snapshot, end=bool(served) and asked.bookmarks)
        if not asked.version:
            stream.version = store.version
            return iter(())
        missed = store.events_since(resource, asked.version)
        # A watch from a future version gets nothing until the store reaches it: silence after a restored backup.
        stream.version = max(asked.version, store.version)
        wanted = [event for event in missed if not stream.namespace or event.namespace == stream.namespace]
        return iter(
            [b"".join(objects.event_line(resource, event.kind, event.item) for event in wanted)] if wanted else []
        )

    async def _follow(self, response: web.StreamResponse, stream: WatchStream, asked: Options) -> None:
        settings = self._settings
        now = time.monotonic()
        lifetime = asked.timeout_seconds or settings.watch_timeout_seconds * (1 + self._random.random())
        deadline = now + lifetime
        bookmark_at = now + settings.bookmark_period_seconds if asked.bookmarks else math.inf
        while True:
            lines = stream.take()
            if lines:
                await response.write(lines)
                continue
            if stream.ending is not None:
                return
            now = time.monotonic()
            if stream.frozen:
                deadline = bookmark_at = math.inf
            elif now >= deadline:
                stream.end(Ending.EOF)
                continue
            elif now >= bookmark_at:
                self._bookmark(stream)
                bookmark_at = now + settings.bookmark_period_seconds
                continue
            await stream.wait(min(deadline, bookmark_at) - now)

    def _bookmark(self, stream: WatchStream) -> None:
        # Never older than the start of the stream: a watch from a future version gets no bookmark yet.
        if self._store.version >= stream.version:
            stream.put(objects.bookmark_line(stream.resource, self._store.version))


def _initial_lines(resource: Resource, snapshot: Snapshot, *, end: bool) -> Iterator[bytes]:
    for start in range(0, len(snapshot.items), INITIAL_EVENTS_PER_WRITE):
        items = snapshot.items[start : start + INITIAL_EVENTS_PER_WRITE]
        yield b"".join(objects.event_line(resource, EventKind.ADDED, item) for item in items)
    if end:
        yield objects.bookmark_line(resource, snapshot.version, initial_events_end=True)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
