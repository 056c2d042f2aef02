"""The simulated API server as a whole: starts, stops, breaks, and is controlled from another process by /_sim/.

GET    /_sim/stats          state; requests and watches are in /metrics
POST   /_sim/churn          start (members of ChurnSettings), replaces a running one; DELETE stops it
POST   /_sim/burst          {"count": N} and members of ChurnSettings
POST   /_sim/faults         one Fault or a list; DELETE removes all
POST   /_sim/types          install a type: {"group", "version", "name", "kind", "namespaced", "custom"}
DELETE /_sim/types          remove a type: the same body
POST   /_sim/objects        create objects: {"type": plural name, "count": N}
DELETE /_sim/objects        delete all objects of a type at once, which no watch tells: {"type"}
"""

import asyncio
import dataclasses
import json
import socket
import time
from collections.abc import Coroutine, Iterable
from typing import Any, Self

import msgspec
from aiohttp import web

from loadtest.apiserver import churn, faults, objects, resources
from loadtest.apiserver.counters import Counters
from loadtest.apiserver.errors import ApiError
from loadtest.apiserver.faults import Fault, FaultKind, Rules
from loadtest.apiserver.handlers import Handlers
from loadtest.apiserver.population import Population, populate
from loadtest.apiserver.settings import SimulatorSettings
from loadtest.apiserver.store import Store
from loadtest.apiserver.watching import Ending, Streams

#: Largest body of a write, as in kube-apiserver.
MAX_BODY_BYTES = 3 * 1024 * 1024
#: A closed listening socket releases its port with a short delay.
BIND_SECONDS = 2.0
BIND_RETRY_SECONDS = 0.005
#: A restart waits this long before it closes connections, so that the caller gets the answer.
ANSWER_SECONDS = 0.05
CONTROL_PREFIX = "/_sim/"
MAX_BURST = 1_000_000
_BROKEN_LINE = b'{"type":"MODIFIED","object":{"kind":\n'


class _Burst(msgspec.Struct):
    count: int
    types: dict[str, float] | None = None
    label_times: bool = False


class _Objects(msgspec.Struct):
    type: str
    count: int = 0


class Simulator:
    """A simulated API server in the running event loop; an async context manager.

    Write to `store` at any time from the loop's thread; watches get each change at once.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self.settings = settings or SimulatorSettings()
        self.store = Store(seed=self.settings.seed, history_events=self.settings.history_events)
        self.counters = Counters()
        self.rules = Rules()
        self.applied: list[dict[str, Any]] = []
        self.churn = churn.Churn(self.store, seed=self.settings.seed)
        self._streams = Streams()
        self._handlers = Handlers(
            self.settings, self.store, streams=self._streams, counters=self.counters, rules=self.rules
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._restarting: asyncio.Task[None] | None = None
        self._site: web.SockSite | None = None
        self._runner: web.AppRunner | None = None
        self._port = self.settings.port
        for resource in resources.BUILT_IN:
            self.store.install(resource)
        self.store.subscribe(self._streams.publish)

    @property
    def port(self) -> int:
        """TCP port, known after the start; it stays the same after a restart."""
        return self._port

    @property
    def url(self) -> str:
        """Address for clients, without a trailing slash."""
        return f"http://{self.settings.host}:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen. Raises OSError."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await self._listen(await self._bind())

    async def stop(self) -> None:
        """Stop churn and faults, close all connections."""
        self.churn.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.churn.wait()
        for stream in self._streams.of(""):
            stream.end(Ending.ABORT)
        if self._runner is not None:
            await self._runner.cleanup()

    def populate(self, population: Population) -> None:
        """Create the objects of a population, and forget this history as the server would after a while."""
        populate(self.store, population, seed=self.settings.seed)
        self.store.compact()

    def schedule(self, script: Iterable[Fault]) -> None:
        """Schedule faults from now on; those at 0 seconds happen before this returns. Raises as `inject`."""
        for fault in script:
            if len(self._tasks) >= faults.MAX_FAULTS:
                raise ValueError(f"more than {faults.MAX_FAULTS} faults wait")
            if fault.at_seconds:
                self._spawn(self._later(fault), name=f"fault {fault.kind.value}")
            else:
                self.inject(fault)

    def inject(self, fault: Fault) -> None:
        """Let a fault happen now; `at_seconds` is ignored.

        Raises Expired for a roll-back beyond the history, ValueError for a restart during another one.
        """
        if fault.kind in faults.REQUEST_KINDS:
            self.rules.add(fault, time.monotonic())
        elif fault.kind in faults.STREAM_KINDS:
            self._break_streams(fault)
        elif fault.kind is FaultKind.COMPACT:
            # Advance one version, so that no client knows the newest version, not even from a bookmark.
            self.store.advance()
            for resource in self.store.resources():
                if fault.resource in ("", resource.name, str(resource)):
                    self.store.compact(resource)
            self._break_streams(dataclasses.replace(fault, kind=FaultKind.DROP))
        elif fault.kind is FaultKind.ROLL_BACK:
            self.store.roll_back(max(1, self.store.version - fault.count))
            self._break_streams(Fault(kind=FaultKind.DROP))
        else:
            if self._restarting is not None and not self._restarting.done():
                raise ValueError("a restart is under way already")
            self._restarting = self._spawn(self._restart(fault.duration_seconds), name="restart")
        self.applied.append({**faults.document(fault), "at": time.time()})

    def clear_faults(self) -> None:
        """Remove the faults of requests and the scheduled ones; a restart in progress continues."""
        self.rules.clear()
        for task in self._tasks:
            if task is not self._restarting:
                task.cancel()

    def uninstall(self, resource: resources.Resource) -> None:
        """Remove a type, as if its CustomResourceDefinition were deleted; its watches end. Raises TypeUnknown."""
        self.store.uninstall(resource)
        for stream in self._streams.of(str(resource)):
            stream.end(Ending.EOF)

    def statistics(self) -> dict[str, Any]:
        """The answer of /_sim/stats."""
        store = self.store
        return {
            "version": store.version,
            "objects": {str(resource): store.count(resource) for resource in store.resources()},
            "churn": self.churn.statistics(),
            "faults_applied": self.applied,
            "faults_active": [faults.document(fault) for fault in self.rules.active(time.monotonic())],
        }

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if not request.path.startswith(CONTROL_PREFIX):
            return await self._handlers.handle(request)
        what = request.path.removeprefix(CONTROL_PREFIX)
        try:
            answer = await self._obey(request.method, what, await request.read())
        except (ValueError, msgspec.DecodeError, ApiError) as error:
            return web.json_response({"error": str(error)}, status=400)
        if answer is None:
            return web.json_response({"error": f"no such control: {request.method} {what}"}, status=404)
        return web.json_response(answer, dumps=lambda value: json.dumps(value, ensure_ascii=False))

    async def _obey(self, method: str, what: str, body: bytes) -> dict[str, Any] | None:
        """Obey a request to the control endpoint; returns None if there is no such request."""
        match method, what:
            case "GET", "stats":
                return self.statistics()
            case "POST", "churn":
                self.churn.start(msgspec.json.decode(body or b"{}", type=churn.ChurnSettings))
                return self.churn.statistics()
            case "DELETE", "churn":
                self.churn.stop()
                await self.churn.wait()
                return {"version": self.store.version, **self.churn.statistics()}
            case "POST", "burst":
                burst = msgspec.json.decode(body, type=_Burst)
                if not 0 < burst.count <= MAX_BURST:
                    raise ValueError(f"burst: count must be between 1 and {MAX_BURST}, not {burst.count}")
                types = burst.types or churn.ChurnSettings().types
                await self.churn.burst(burst.count, churn.ChurnSettings(types=types, label_times=burst.label_times))
                return {"version": self.store.version}
            case "POST", "faults":
                script = faults.parse(body)
                self.schedule(script)
                return {"accepted": len(script), "version": self.store.version}
            case "DELETE", "faults":
                self.clear_faults()
                return {}
            case "POST", "types":
                resource = msgspec.json.decode(body, type=resources.Resource)
                self.store.install(resource)
                return {"path": resource.path}
            case "DELETE", "types":
                self.uninstall(msgspec.json.decode(body, type=resources.Resource))
                return {}
            case (("POST" | "DELETE"), "objects"):
                wanted = msgspec.json.decode(body, type=_Objects)
                await self._fill_or_clear(wanted.type, wanted.count)
                return {"version": self.store.version}
        return None

    async def _fill_or_clear(self, name: str, count: int) -> None:
        """Create objects of a type, or delete all of them. Raises ValueError for an unknown type."""
        resource = next((one for one in self.store.resources() if one.name == name), None)
        if resource is None:
            raise ValueError(f"no such type: {name}")
        for number in range(count):
            namespace = {"namespace": "filled"} if resource.namespaced else {}
            self.store.create(resource, {"metadata": {"name": f"filled-{number:06d}", **namespace}})
            if number % churn.WRITES_PER_TURN == 0:
                await asyncio.sleep(0)
        if not count:
            for stream in self._streams.of(name):
                stream.end(Ending.ABORT)
            for key in self.store.objects(resource):
                namespace_name, _, object_name = key.rpartition("/")
                self.store.delete(resource, namespace_name, object_name)
            self.store.compact(resource)

    async def _listen(self, bound: socket.socket) -> None:
        if self._runner is None:
            raise RuntimeError("the simulator is not started")
        self._site = web.SockSite(self._runner, bound, backlog=1024)
        await self._site.start()

    async def _bind(self) -> socket.socket:
        """A socket that is bound but does not listen: connections are refused, and the port stays reserved."""
        bound = socket.socket(socket.AF_INET6 if ":" in self.settings.host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deadline = time.monotonic() + BIND_SECONDS
        while True:
            try:
                bound.bind((self.settings.host, self._port))
            except OSError:
                if time.monotonic() > deadline:
                    bound.close()
                    raise
                await asyncio.sleep(BIND_RETRY_SECONDS)
            else:
                self._port = bound.getsockname()[1]
                return bound

    async def _later(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_seconds)
        try:
            self.inject(fault)
        except (ApiError, ValueError) as error:
            self.applied.append({**faults.document(fault), "failed": str(error)})

    def _break_streams(self, fault: Fault) -> None:
        for stream in self._streams.of(fault.resource):
            if fault.kind is FaultKind.CLOSE:
                stream.end(Ending.EOF)
            elif fault.kind is FaultKind.DROP:
                stream.end(Ending.ABORT)
            elif fault.kind is FaultKind.DROP_MID_LINE:
                stream.cut()
            elif fault.kind is FaultKind.BROKEN_JSON:
                stream.put(_BROKEN_LINE)
            elif fault.kind is FaultKind.BAD_EVENT:
                stream.put(b'{"type":"MODIFIED","object":%b}\n' % objects.bad_object())
            elif fault.kind is FaultKind.HALF_OPEN:
                stream.freeze()
            else:
                stream.lose(fault.count)

    async def _restart(self, refuse_seconds: float) -> None:
        if self._runner is None or self._site is None or self._runner.server is None:
            raise RuntimeError("the simulator is not started")
        await asyncio.sleep(ANSWER_SECONDS)
        await self._site.stop()
        for stream in self._streams.of(""):
            stream.end(Ending.ABORT)
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        # A new process fills its watch caches with a list, so it knows no older versions.
        self.store.compact()
        bound = await self._bind()
        try:
            await asyncio.sleep(refuse_seconds)
        except asyncio.CancelledError:
            bound.close()
            raise
        await self._listen(bound)

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
