"""An API server in memory, and a driver that feeds its answers to a real watch machine.

It has objects, versions and a history that it compacts, and it answers lists, pages, WatchLists and watches. Its faults
are random: it is down, answers with errors, ends streams, compacts its history, or is silent.
"""

import asyncio
import json
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

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


Backup = dict[resources.ResourceType, dict[str, _Object]]


class Stream:
    """An open watch: the lines that have arrived, and whether it has ended."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.under_way: deque[bytes] = deque()
        self.lines: deque[bytes] = deque()
        self.is_ended = False
        self.is_silent = False
        self.is_lost = False
        """The way is cut: not even what is under way arrives."""
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wake the reader: there is a line, or there will be none."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def end(self) -> None:
        """End the stream."""
        self.is_ended = True
        self.wake()


class Route:
    """The way of one process to the API server."""

    def __init__(self) -> None:
        self.is_silent = False
        """Requests are lost, and so are answers, without an error."""
        self.is_cut = False
        """Requests fail at once."""
        self.streams: list[Stream] = []
        """The open watches on this way."""

    def cut(self, *, is_silent: bool) -> None:
        """Lose the API server."""
        self.is_cut, self.is_silent = not is_silent, is_silent
        for stream in self.streams:
            stream.is_silent = stream.is_lost = True
            if not is_silent:
                stream.end()

    def mend(self) -> None:
        """Find it again. Watches that were cut in silence stay silent: the API server's end is gone."""
        self.is_cut = self.is_silent = False


class Refused(Exception):
    """The API server refuses a request, or does not answer."""


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
        self.latency_seconds = latency_seconds
        self._names_nodes = names_nodes
        self._objects: dict[resources.ResourceType, dict[str, _Object]] = {type: {} for type in types}
        self._history: dict[resources.ResourceType, deque[tuple[int, bytes]]] = {type: deque() for type in types}
        self._streams: dict[resources.ResourceType, list[Stream]] = {type: [] for type in types}
        self._pages: dict[str, tuple[int, list[str]]] = {}
        self._compacted = 0
        self.on_write: Callable[[resources.ResourceType, str, str | None], None] = lambda *_: None
        """Called for each object that is written or deleted (text None)."""
        self._expected: tuple[int, dict[str, bytes]] | None = None
        """Those of a version."""
        self._lease: dict[str, Any] | None = None

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
            f'{{"apiVersion":"v1","kind":"{kind_of(type)}","metadata":{{"name":"{name}","namespace":"{NAMESPACE}",'
            f'"resourceVersion":"{self.version}"}},"spec":{{"content":"{content}"{place}}}}}'
        )
        if kind != "DELETED":
            self._objects[type][name] = _Object(self.version, text)
        self.on_write(type, name, None if kind == "DELETED" else text)
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
            if not stream.is_ended and not stream.is_lost:
                stream.lines.append(line)
                stream.wake()

        stream.under_way.append(line)
        self.world.after(self.latency_seconds, arrive)

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
                    self.world.after(self.latency_seconds, stream.end)
            streams.clear()

    def backup(self) -> Backup:
        """The objects of this moment."""
        return {type: dict(named) for type, named in self._objects.items()}

    def restore(self, kept: Backup) -> None:
        """Have the objects of a backup, as an etcd that was restored from it: no history, and higher versions."""
        for type, named in kept.items():
            present = self._objects[type]
            for name in [name for name in present if name not in named]:
                self.on_write(type, name, None)
            for name, held in named.items():
                if present.get(name) != held:
                    self.on_write(type, name, held.text)
            self._objects[type] = dict(named)
        self.version += 1000
        self.compact()
        self.break_streams(is_silent=False)

    # The Lease of an election.

    async def exchange_lease(self, route: Route, method: str, body: bytes | None) -> tuple[int, bytes]:
        """Answer a request for the only Lease.

        Raises:
            Refused: there is no answer.
        """
        await asyncio.sleep(self.latency_seconds)
        if route.is_silent:
            await asyncio.sleep(POLICY.list_read_seconds)
            raise Refused("no answer")
        if route.is_cut or self.world.now < self.down_until or self.world.chance(self.fault_probability):
            raise Refused("refused")
        held = self._lease
        if method == "GET":
            return (404, b"") if held is None else (200, json.dumps(held).encode())
        sent = json.loads(body or b"{}")
        version = sent["metadata"].get("resourceVersion", "")
        if (method == "POST") != (held is None) or (
            held is not None and held["metadata"]["resourceVersion"] != version
        ):
            return 409, _status(409, "Conflict")
        self.version += 1
        sent["metadata"]["resourceVersion"] = str(self.version)
        self._lease = sent
        await asyncio.sleep(self.latency_seconds)
        return (201 if method == "POST" else 200), json.dumps(sent).encode()

    def go_down(self, seconds: float) -> None:
        """Be unreachable for a while."""
        self.down_until = self.world.now + seconds
        self.break_streams(is_silent=False)

    def expected(self) -> dict[str, bytes]:
        """The keys and values that every client must have in the end."""
        if self._expected is None or self._expected[0] != self.version:
            self._expected = self.version, self._make_expected()
        return self._expected[1]

    def _make_expected(self) -> dict[str, bytes]:
        return {
            raw.object_key(type, NAMESPACE, name): raw.object_value(
                held.text.encode(), api_version="v1", kind=kind_of(type)
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
        kind = kind_of(type)
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
        self.world.after(request.timeout_seconds, lambda: None if stream.is_lost else stream.end())
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


def kind_of(type: resources.ResourceType) -> str:
    """The kind of a type's objects."""
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

    def __init__(
        self, server: ApiServer, type: resources.ResourceType, sink: objects.WatchSink, *, route: Route | None = None
    ) -> None:
        self._server = server
        self._route = Route() if route is None else route
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

    @property
    def last_confirmed(self) -> float | None:
        """When the API server last confirmed the known objects."""
        return self._machine.counters.last_confirmed

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
        await asyncio.sleep(self._server.latency_seconds)
        if self._route.is_silent:
            await asyncio.sleep(POLICY.list_read_seconds)
            self._machine.interrupted(self._now, Failure.IDLE, "no answer")
            return
        if self._route.is_cut or self._world.now < self._server.down_until:
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
        self._route.streams.append(stream)
        try:
            while machine.streaming:
                await self._read(stream, request)
        finally:
            self._route.streams.remove(stream)
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
