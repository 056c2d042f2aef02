"""Conversions that may take long: in a thread, one after another, the newest state of each object.

The hub's loop goes on meanwhile: the interpreter gives it the next turn after half a millisecond, or when a call into a
C library returns. After an expensive conversion the objects of this type in its namespace rest, so that who may write
there uses a small share of the hub's time, however often its objects change. Nothing else waits for that. The record
is docs/decisions/expensive-conversions.md.
"""

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
import time
from typing import Any, NamedTuple

from cache import objects, resources
from cache.feeds import feed
from typha import clock
from typha.hub import policy

_monotonic = clock.monotonic
_SWITCH_SECONDS = 0.0005
"""How long the thread keeps the interpreter while the loop waits for it. Python's default is 5 ms."""
_STACK_BYTES = 16 * 1024 * 1024
"""The decoder uses the C stack for each level of an object, and some C libraries give threads 128 KiB."""


class _Key(NamedTuple):
    feed: str
    type: resources.ResourceType
    namespace: str
    name: str

    @property
    def rationed(self) -> "_Rationed":
        """What rests together."""
        return self.type, self.namespace


_Rationed = tuple[resources.ResourceType, str]


class Conversion(NamedTuple):
    """A finished conversion: what `feed.Feed.adopt` needs, and the CPU time that it took."""

    source: feed.Feed
    event: objects.ObjectEvent
    outcome: Any
    received_at: float
    """Monotonic time at which the object came."""
    seconds: float
    is_outdated: bool
    """Whether the object has been deleted, or converted in a newer state, meanwhile."""


class _Waiting(NamedTuple):
    source: feed.Feed
    event: objects.ObjectEvent
    received_at: float


def _key(source: feed.Feed, event: objects.ObjectEvent) -> _Key:
    return _Key(source.name, event.type, event.namespace, event.name)


def _convert(source: feed.Feed, event: objects.ObjectEvent) -> tuple[Any, float]:
    begun = time.thread_time()
    outcome = source.convert(event)
    return outcome, time.thread_time() - begun


class ConversionScheduler:
    """`submit` gives it an object, `convert_next` converts one after another.

    A list is not complete before its objects are converted: `hold` says whether a status has to wait, and `released`
    which ones need wait no longer. What lists and statuses wait for is never rationed.
    """

    def __init__(self, limits: policy.HubPolicy) -> None:
        self._policy = limits
        self._waiting: dict[_Key, _Waiting] = {}
        self._urgent: set[_Key] = set()
        self._under_way: _Key | None = None
        self._is_outdated = False
        self._is_newest = True
        """Whether no status waits for a newer state of the object than the one under way."""
        self._rests: dict[_Rationed, float] = {}
        """Monotonic time until which the objects of a type in a namespace rest."""
        self._held: dict[tuple[str, resources.ResourceType], set[_Key]] = {}
        self._released: list[tuple[str, resources.ResourceType]] = []
        self._wake = asyncio.Event()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"<ConversionScheduler waiting={len(self._waiting)} under_way={self._under_way}>"

    @property
    def is_idle(self) -> bool:
        """Whether no object waits, and none is being converted."""
        return not self._waiting and self._under_way is None

    @property
    def waiting(self) -> int:
        """Number of objects that wait."""
        return len(self._waiting)

    def submit(self, source: feed.Feed, event: objects.ObjectEvent) -> None:
        """Converts the object when it is its turn. Its newest state replaces one that waits, in the same place."""
        key = _key(source, event)
        self._waiting[key] = _Waiting(source, event, _monotonic())
        if event.origin is not objects.Origin.EVENT:
            self._urgent.add(key)
        self._wake.set()

    def forget(self, source: feed.Feed, event: objects.ObjectEvent) -> None:
        """The object is deleted, or has been converted elsewhere: what waits of it or is under way is outdated."""
        key = _key(source, event)
        self._waiting.pop(key, None)
        self._urgent.discard(key)
        if key == self._under_way:
            self._is_outdated = True
        self._settle(key)

    def abandon(self, feed_name: str) -> None:
        """A feed has another source: nothing that waits for it or is under way matters any more."""
        for key in [key for key in self._waiting if key.feed == feed_name]:
            del self._waiting[key]
            self._urgent.discard(key)
        if self._under_way is not None and self._under_way.feed == feed_name:
            self._is_outdated = True
        self._held = {place: keys for place, keys in self._held.items() if place[0] != feed_name}
        self._released = [place for place in self._released if place[0] != feed_name]

    def hold(self, source: feed.Feed, type: resources.ResourceType) -> bool:
        """Whether a type's status has to wait for its objects. If so, they hurry, and `released` names it later."""
        keys = {key for key in self._waiting if key.feed == source.name and key.type == type}
        self._urgent |= keys
        if self._under_way is not None and (self._under_way.feed, self._under_way.type) == (source.name, type):
            self._is_newest = self._under_way not in keys
            keys.add(self._under_way)
        self._held.pop((source.name, type), None)
        if not keys:
            return False
        self._held[source.name, type] = keys
        self._wake.set()
        return True

    def drop_hold(self, source: feed.Feed, type: resources.ResourceType) -> None:
        """The status that waited is outdated."""
        self._held.pop((source.name, type), None)

    def released(self) -> list[tuple[str, resources.ResourceType]]:
        """The feeds and types whose status need wait no longer, since the last call."""
        released, self._released = self._released, []
        return released

    def _settle(self, key: _Key) -> None:
        place = key.feed, key.type
        held = self._held.get(place)
        if held is not None:
            held.discard(key)
            if not held:
                del self._held[place]
                self._released.append(place)

    async def convert_next(self) -> Conversion:
        """Converts the next object that does not rest.

        Raises:
            MemoryError: there is none to convert it. It waits again.
        """
        key = await self._next()
        source, event, received_at = self._waiting.pop(key)
        self._urgent.discard(key)
        self._under_way, self._is_outdated, self._is_newest = key, False, True
        interval_seconds = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            outcome, seconds = await self._in_thread(source, event)
        except MemoryError:
            if not self._is_outdated and key not in self._waiting:
                self.submit(source, event)
                self._urgent.add(key)  # a status may wait for it
            raise
        finally:
            sys.setswitchinterval(interval_seconds)
            self._under_way = None
        if seconds >= self._policy.charged_conversion_seconds:
            rest_seconds = seconds * (1 / self._policy.conversion_share_max - 1)
            self._rests[key.rationed] = _monotonic() + rest_seconds
        if self._is_newest:
            self._settle(key)
        return Conversion(source, event, outcome, received_at, seconds, self._is_outdated)

    async def _next(self) -> _Key:
        while True:
            now = _monotonic()
            self._rests = {rationed: until for rationed, until in self._rests.items() if until > now}
            for key in self._waiting:
                if key in self._urgent or key.rationed not in self._rests:
                    return key
            self._wake.clear()
            seconds = min(self._rests.values()) - now if self._waiting else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    async def _in_thread(self, source: feed.Feed, event: objects.ObjectEvent) -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        stack_bytes = threading.stack_size(_STACK_BYTES)  # for the thread that the first call starts
        try:
            if self._pool is None:
                self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="conversion")
            converting = loop.run_in_executor(self._pool, _convert, source, event)
        except RuntimeError:  # no thread can be started: better late than never
            return _convert(source, event)
        finally:
            threading.stack_size(stack_bytes)
        return await converting

    def close(self) -> None:
        """Ends the thread, after its present conversion."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
