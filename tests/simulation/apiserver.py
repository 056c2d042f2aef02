"""An API server in memory, and a driver that feeds its answers to a real watch machine.

It has objects, versions and a history that it compacts, and it answers lists, pages, WatchLists and watches. Its faults
are random: it is down, answers with errors, ends streams, compacts its history, or is silent.
"""

import asyncio
import json
import random
from collections import deque
from typing import NamedTuple

from cache import objects, resources
from cache.feeds import raw
from cache.watch import decoding, policy, requests
from cache.watch.machine import WatchMachine
from cache.watch.policy import Failure
from cache.watch.requests import RequestKind
from tests.simulation import world as worlds

NAMESPACE = "default"
_NODES = 3
POLICY = policy.WatchPolicy(
    page_limit=7,
    slice_items=5,
    backoff_max_seconds=4.0,
    retry_after_max_seconds=3.0,
    idle_seconds=20.0,
    quiet_seconds=24.0,
    list_read_seconds=10.0,
    initial_quiet_seconds=5.0,
    absent_grace_seconds=3.0,
    absent_seconds=2.0,
    lost_seconds=12.0,  # more than the time between two bookmarks, as in a real cluster
    watch_seconds_min=20,
    watch_seconds_max=40,
    healthy_seconds=3.0,
)
_BOOKMARK_SECONDS = 8.0
_REFUSALS = ((429, "TooManyRequests"), (500, "InternalError"), (503, ""), (401, "Unauthorized"), (404, "NotFound"))


class _Object(NamedTuple):
    version: int
    text: str


class Stream:
    """An open watch: the lines that have arrived, and whether it has ended."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.under_way: deque[bytes] = deque()
        self.lines: deque[bytes] = deque()
        self.is_ended = False
        self.is_silent = False
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wake the reader: there is a line, or there will be none."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def end(self) -> None:
        """End the stream."""
        self.is_ended = True
        self.wake()


class ApiServer:
    """Objects of several types, all in one namespace."""

    def __init__(
        self,
        world: worlds.World,
        types: tuple[resources.ResourceType, ...],
        *,
        latency_seconds: float,
        names_nodes: bool = False,
    ) -> None:
        """With `names_nodes` each write puts the object on another node."""
        self.world = world
        self.types = types
        self.version = 10
        self.down_until = 0.0
        self.fault_probability = 0.0
        self.has_watch_list = True
        self._latency_seconds = latency_seconds
        self._names_nodes = names_nodes
        self._objects: dict[resources.ResourceType, dict[str, _Object]] = {type: {} for type in types}
        self._history: dict[resources.ResourceType, deque[tuple[int, bytes]]] = {type: deque() for type in types}
        self._streams: dict[resources.ResourceType, list[Stream]] = {type: [] for type in types}
        self._pages: dict[str, tuple[int, list[str]]] = {}
        self._compacted = 0

    def names(self, type: resources.ResourceType) -> list[str]:
        """The names of the existing objects."""
        return list(self._objects[type])

    def write(self, type: resources.ResourceType, name: str, content: str | None) -> None:
        """Write an object, or delete it if the content is None."""
        before = self._objects[type].get(name)
        if content is None and before is None:
            return
        self.version += 1
        if content is None:
            kind, content = "DELETED", ""
            del self._objects[type][name]
        else:
            kind = "MODIFIED" if before else "ADDED"
        place = f',"nodeName":"o{self.version % _NODES}"' if self._names_nodes else ""
        text = (
            f'{{"apiVersion":"v1","kind":"{_kind_of(type)}","metadata":{{"name":"{name}","namespace":"{NAMESPACE}",'
            f'"resourceVersion":"{self.version}"}},"spec":{{"content":"{content}"{place}}}}}'
        )
        if kind != "DELETED":
            self._objects[type][name] = _Object(self.version, text)
        line = f'{{"type":"{kind}","object":{text}}}'.encode()
        self._history[type].append((self.version, line))
        self._send(type, self.version, line)

    def _send(self, type: resources.ResourceType, version: int, line: bytes) -> None:
        for stream in self._streams[type]:
            stream.position = version
            if not stream.is_silent:
                self._deliver(stream, line)

    def _deliver(self, stream: Stream, line: bytes) -> None:
        def arrive() -> None:
            line = stream.under_way.popleft()
            if not stream.is_ended:
                stream.lines.append(line)
                stream.wake()

        stream.under_way.append(line)
        self.world.after(self._latency_seconds, arrive)

    def compact(self) -> None:
        """Forget the history: watches from older versions get 410."""
        self._compacted = self.version
        self._pages.clear()
        for history in self._history.values():
            history.clear()

    def break_streams(self, *, is_silent: bool) -> None:
        """End all watches, or keep them open without any further line."""
        for streams in self._streams.values():
            for stream in streams:
                if is_silent:
                    stream.is_silent = True
                else:
                    self.world.after(self._latency_seconds, stream.end)
            streams.clear()

    def go_down(self, seconds: float) -> None:
        """Be unreachable for a while."""
        self.down_until = self.world.now + seconds
        self.break_streams(is_silent=False)

    def expected(self) -> dict[str, bytes]:
        """The keys and values that every client must have in the end."""
        return {
            raw.object_key(type, NAMESPACE, name): raw.object_value(
                held.text.encode(), api_version="v1", kind=_kind_of(type)
            )
            for type, named in self._objects.items()
            for name, held in named.items()
        }

    # Answers.

    def refusal(self, request: requests.Request) -> tuple[int, bytes] | None:
        """The error to answer with, by the rules of the API or at random; None for no error."""
        if request.kind is RequestKind.WATCH_LIST and not self.has_watch_list:
            return 422, _status(422, "Invalid")
        if request.kind is RequestKind.WATCH and int(request.query["resourceVersion"]) < self._compacted:
            return 410, _status(410, "Expired")
        if request.query.get("continue", "") and request.query["continue"] not in self._pages:
            return 410, _status(410, "Expired")
        if self.world.chance(self.fault_probability):
            code, reason = self.world.random.choice(_REFUSALS)
            return code, _status(code, reason)
        return None

    def page(self, type: resources.ResourceType, request: requests.Request) -> bytes:
        """Answer with a page of a list."""
        token = request.query.get("continue", "")
        version, names = self._pages.pop(token) if token else (self.version, self.names(type))
        limit = int(request.query.get("limit", len(names)))
        items = [self._objects[type][name].text for name in names[:limit] if name in self._objects[type]]
        rest = names[limit:]
        following = f"{version}-{len(rest)}-{self.world.random.randrange(1 << 30)}" if rest else ""
        if rest:
            self._pages[following] = (version, rest)
        metadata = json.dumps({"resourceVersion": str(version), "continue": following})
        kind = _kind_of(type)
        return f'{{"kind":"{kind}List","apiVersion":"v1","metadata":{metadata},"items":[{",".join(items)}]}}'.encode()

    def open(self, type: resources.ResourceType, request: requests.Request) -> Stream:
        """Open a watch. A WatchList sends a bookmark after its initial events."""
        stream = Stream(self.version)
        if request.kind is RequestKind.WATCH_LIST:
            for held in self._objects[type].values():
                self._deliver(stream, f'{{"type":"ADDED","object":{held.text}}}'.encode())
            self._deliver(stream, _bookmark(self.version, ends_initial=True))
        else:
            since = int(request.query["resourceVersion"])
            for version, line in self._history[type]:
                if version > since:
                    self._deliver(stream, line)
        self._streams[type].append(stream)
        self.world.after(_BOOKMARK_SECONDS, lambda: self._bookmark(type, stream))
        self.world.after(request.timeout_seconds, stream.end)
        if self.world.chance(self.fault_probability):
            self.world.after(self.world.random.random() * 2.0, stream.end)
        return stream

    def _bookmark(self, type: resources.ResourceType, stream: Stream) -> None:
        if stream in self._streams[type] and not stream.is_ended:
            self._deliver(stream, _bookmark(self.version, ends_initial=False))
            self.world.after(_BOOKMARK_SECONDS, lambda: self._bookmark(type, stream))

    def close(self, type: resources.ResourceType, stream: Stream) -> None:
        """Close a watch: the client has disconnected."""
        stream.is_ended = True
        if stream in self._streams[type]:
            self._streams[type].remove(stream)


def _kind_of(type: resources.ResourceType) -> str:
    return type.resource.removesuffix("s").capitalize()


def _status(code: int, reason: str) -> bytes:
    return json.dumps({"kind": "Status", "code": code, "reason": reason, "message": reason}).encode()


def _bookmark(version: int, *, ends_initial: bool) -> bytes:
    metadata: dict[str, object] = {"resourceVersion": str(version)}
    if ends_initial:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return json.dumps(
        {"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}}
    ).encode()


class Watcher:
    """Drives a watch machine against this API server, as `cache.kube.watcher` does over HTTP."""

    def __init__(self, server: ApiServer, type: resources.ResourceType, sink: objects.WatchSink) -> None:
        self._server = server
        self._world = server.world
        self.type = type
        self._machine = WatchMachine(
            type,
            sink,
            policy=POLICY,
            random=random.Random(server.world.random.random()),
            now=server.world.time,
        )

    @property
    def _now(self) -> float:
        return self._world.time

    @property
    def is_unconfirmed(self) -> bool:
        """Whether the API server can no longer confirm the known objects."""
        return self._machine.is_unconfirmed(self._now)

    async def run(self) -> None:
        """Watch forever."""
        while True:
            action = self._machine.next_action(self._now)
            if isinstance(action, requests.Pause):
                await asyncio.sleep(max(0.0, action.until - self._now))
                self._machine.tick(self._now)
            elif isinstance(action, requests.Request):
                await self._perform(action)
            await self._finish_batch()

    async def _finish_batch(self) -> None:
        is_sweeping = self._machine.sweep(self._now)
        while is_sweeping:
            await asyncio.sleep(0)
            is_sweeping = self._machine.sweep(self._now)
        for notice in self._machine.take_notices():
            self._world.note(f"watch {self.type.resource}", notice.kind.name)
        self._machine.end_batch(self._now)

    async def _perform(self, request: requests.Request) -> None:
        await asyncio.sleep(self._server._latency_seconds)
        if self._world.now < self._server.down_until:
            self._machine.interrupted(self._now, Failure.NETWORK, "refused")
            return
        refusal = self._server.refusal(request)
        if refusal is not None:
            self._machine.refused(self._now, refusal[0], body=refusal[1])
        elif request.kind is RequestKind.LIST:
            await self._list(request)
        else:
            await self._stream(request)

    async def _list(self, request: requests.Request) -> None:
        page = decoding.decode_page(self._server.page(self.type, request), self.type)
        self._machine.begin_page(self._now, page)
        for start in range(0, len(page.items), POLICY.slice_items):
            self._machine.items(page, page.items[start : start + POLICY.slice_items])
            await asyncio.sleep(0)
        self._machine.end_page(self._now, page)

    async def _stream(self, request: requests.Request) -> None:
        machine = self._machine
        machine.accepted(self._now)
        stream = self._server.open(self.type, request)
        try:
            while machine.streaming:
                await self._read(stream, request)
        finally:
            self._server.close(self.type, stream)

    async def _read(self, stream: Stream, request: requests.Request) -> None:
        machine = self._machine
        if not stream.lines and not stream.is_ended:
            stream.waiter = asyncio.get_running_loop().create_future()
            deadline = machine.deadline
            seconds = request.read_timeout_seconds
            if deadline is not None:
                seconds = min(seconds, max(0.0, deadline - self._now))
            await asyncio.wait([stream.waiter], timeout=seconds)
            if not stream.waiter.done() and seconds == request.read_timeout_seconds:
                machine.interrupted(self._now, Failure.IDLE, "no byte for too long")
                return
        taken = 0
        while stream.lines and machine.streaming:
            machine.line(self._now, stream.lines.popleft())
            taken += 1
            if taken % POLICY.slice_items == 0:
                await asyncio.sleep(0)
        if not stream.lines and stream.is_ended and machine.streaming:
            machine.stream_ended(self._now, is_truncated=False)
        if machine.streaming and machine.deadline is not None and self._now >= machine.deadline:
            machine.tick(self._now)
        await self._finish_batch()
