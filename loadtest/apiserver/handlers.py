"""The HTTP side: paths, verbs, lists, single objects and writes."""

import asyncio
import dataclasses
import time
import zlib

import msgspec
from aiohttp import web

from loadtest.apiserver import discovery, listing, objects, resources, watching
from loadtest.apiserver.counters import WATCH_LIST, Counters
from loadtest.apiserver.errors import ApiError, BadRequest, PageNotFound, TypeUnknown
from loadtest.apiserver.faults import Fault, FaultKind, Rules
from loadtest.apiserver.resources import Resource
from loadtest.apiserver.settings import SimulatorSettings, WatchListMode
from loadtest.apiserver.store import Store

#: Answers from this size on are compressed for clients that accept it, as by kube-apiserver.
GZIP_FROM_BYTES = 128 * 1024
_MERGE_PATCH = ("application/merge-patch+json", "application/strategic-merge-patch+json")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@dataclasses.dataclass(frozen=True, slots=True)
class RequestTarget:
    """The target of a path: a collection (`name` is empty) or an object."""

    resource: Resource
    namespace: str
    name: str


def find_target(store: Store, path: str) -> RequestTarget | None:
    """The target of a path, or None for other paths. Raises TypeUnknown, PageNotFound."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    if rest[-1] == "status" and len(rest) > 2:
        rest.pop()  # what may be written by way of the status is not restricted here
    if rest[0] == "namespaces" and len(rest) in (3, 4):
        resource = store.find(group, version, rest[2])
        if not resource.namespaced:
            raise TypeUnknown(resource)
        return RequestTarget(resource, rest[1], rest[3] if len(rest) == 4 else "")
    resource = store.find(group, version, rest[0])
    if len(rest) == 1:
        return RequestTarget(resource, "", "")
    if len(rest) == 2 and not resource.namespaced:
        return RequestTarget(resource, "", rest[1])
    raise TypeUnknown(resource)


class Handlers:
    """Answers the requests of the Kubernetes API."""

    def __init__(
        self, settings: SimulatorSettings, store: Store, *, streams: watching.Streams, counters: Counters, rules: Rules
    ) -> None:
        self._settings = settings
        self._store = store
        self._counters = counters
        self._rules = rules
        self._tokens = 0
        """Continue tokens that were made up."""
        self._watching = watching.Watching(settings, store, streams=streams, counters=counters)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; every error is a Status."""
        verb = request.method if request.method in _METHODS else "OTHER"
        resource: Resource | None = None
        try:
            if request.path in self._settings.forbidden:
                raise ApiError(403, "Forbidden", f'User "simulated" cannot read {request.path} at the cluster scope')
            target = find_target(self._store, request.path)
            if target is None:
                return self._other(request)
            resource = target.resource
            verb = _verb(request, target)
            response = await self._resource(request, target, verb)
        except PageNotFound:
            response = web.Response(status=404, text="404 page not found\n")
        except ApiError as error:
            response = _refusal(error)
        if response.prepared:  # a watch is counted when it begins
            return response
        self._counters.requests[verb, resource, response.status] += 1
        if resource is None or not isinstance(response, web.Response):
            return response
        return await self._deliver(request, response, verb, resource)

    async def _deliver(
        self, request: web.Request, response: web.Response, verb: str, resource: Resource
    ) -> web.StreamResponse:
        """An answer as it is, or compressed, or slowly."""
        body = response.body
        assert isinstance(body, bytes)
        now = time.monotonic()
        if (bomb := self._rules.take(FaultKind.COMPRESSED, verb, resource, now=now)) is not None:
            response.body = await asyncio.to_thread(_compressed, body, bomb)
            response.headers["Content-Encoding"] = bomb.text or "gzip"
        if (drip := self._rules.take(FaultKind.DRIP, verb, resource, now=now)) is None:
            return response
        slow = web.StreamResponse(status=response.status, headers={"Content-Type": "application/json"})
        await slow.prepare(request)
        await slow.write(body[: len(body) // 2])
        while drip in self._rules.active(time.monotonic()):
            await asyncio.sleep(drip.delay_seconds)
            await slow.write(b" ")
        if request.transport is not None:
            request.transport.abort()
        return slow

    async def _resource(self, request: web.Request, target: RequestTarget, verb: str) -> web.StreamResponse:
        now = time.monotonic()
        delay = self._rules.take(FaultKind.DELAY, verb, target.resource, now=now)
        if delay is not None:
            await asyncio.sleep(delay.delay_seconds)
        fault = self._rules.take(FaultKind.ERROR, verb, target.resource, now=now)
        if fault is not None:
            raise fault.error(verb, target.resource)
        if verb in ("WATCH", WATCH_LIST):
            asked = listing.parse(request.query, watch_list=self._settings.watch_list is not WatchListMode.OFF)
            return await self._watching.serve(
                request, target.resource, namespace=target.namespace, asked=asked, verb=verb
            )
        if verb == "LIST":
            return await self._answer_list(request, target)
        return await self._single(request, target, verb)

    async def _answer_list(self, request: web.Request, target: RequestTarget) -> web.Response:
        def fault(kind: FaultKind) -> Fault | None:
            return self._rules.take(kind, "LIST", target.resource, now=time.monotonic())

        query = dict(request.query)
        alternating = fault(FaultKind.ALTERNATING_LIST)
        endless = alternating or fault(FaultKind.ENDLESS_LIST)
        if endless:
            query.pop("continue", None)
        asked = listing.parse(query, watch_list=True)
        await watching.until_fresh(self._store, listing.least_version(asked), self._settings.fresh_wait_seconds)
        body = listing.body(self._store, target.resource, target.namespace, asked)
        if endless:
            self._tokens += 1
            body = objects.with_token(body, f"endless-{self._tokens % 2 if alternating else self._tokens}")
        if bad := fault(FaultKind.BAD_OBJECT):
            body = objects.with_bad_object(body, bad.text)
        if fault(FaultKind.BROKEN_LIST):
            body = body[: len(body) // 2]
        return _answer(body, gzip=self._settings.gzip and "gzip" in request.headers.get("Accept-Encoding", ""))

    async def _single(self, request: web.Request, target: RequestTarget, verb: str) -> web.Response:
        resource, namespace, name = target.resource, target.namespace, target.name
        if verb == "GET":
            return self._object(resource, self._store.get(resource, namespace, name))
        if verb == "DELETE":
            item = self._store.delete(resource, namespace, name, conditions=_preconditions(await request.read()))
            return self._object(resource, item) if resource == resources.PODS else _answer(_deleted(resource, item))
        try:
            value = objects.decode(await request.read())
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is no JSON object: {error}") from error
        if verb == "PATCH":
            if request.content_type not in _MERGE_PATCH:
                raise ApiError(
                    415, "UnsupportedMediaType", f"only merge patches are simulated, not {request.content_type}"
                )
            return self._object(resource, self._store.patch(resource, namespace, name, value))
        metadata = value.get("metadata")
        if isinstance(metadata, dict) and namespace:
            metadata.setdefault("namespace", namespace)
        if objects.identity(resource, value) != (namespace, name or value["metadata"]["name"]):
            raise BadRequest("name or namespace of the object differ from those of the path")
        if verb == "PUT":
            return self._object(resource, self._store.replace(resource, value))
        return self._object(resource, self._store.create(resource, value), status=201)

    def _other(self, request: web.Request) -> web.Response:
        if request.path in ("/readyz", "/livez", "/healthz"):
            return web.Response(text="ok")
        if request.path == "/metrics":
            return web.Response(text=self._counters.exposition())
        body = discovery.document(request.path, self._store.resources())
        if body is None:
            raise PageNotFound(request.path)
        return _answer(body)

    @staticmethod
    def _object(resource: Resource, item: bytes, *, status: int = 200) -> web.Response:
        return _answer(objects.alone(resource, item) + b"\n", status=status)


def _preconditions(body: bytes) -> dict[str, str]:
    """What DeleteOptions say of the object to delete: its uid or resourceVersion. Raises BadRequest."""
    try:
        found = objects.decode(body).get("preconditions") or {} if body else {}
        return {str(name): str(value) for name, value in found.items()}
    except (msgspec.DecodeError, AttributeError) as error:
        raise BadRequest(f"the body is no DeleteOptions: {error}") from error


def _verb(request: web.Request, target: RequestTarget) -> str:
    if request.method not in _METHODS:
        raise ApiError(405, "MethodNotAllowed", f"{request.method} is not served")
    if request.method != "GET":
        if bool(target.name) is (request.method == "POST"):
            raise ApiError(405, "MethodNotAllowed", f"{request.method} is not served at this path")
        return request.method
    if target.name:
        return "GET"
    if request.query.get("watch", "").lower() not in ("true", "1"):
        return "LIST"
    return WATCH_LIST if request.query.get("sendInitialEvents", "").lower() in ("true", "1") else "WATCH"


def _answer(body: bytes, *, status: int = 200, gzip: bool = False) -> web.Response:
    headers = {"Cache-Control": "no-cache, private"}
    if gzip and len(body) >= GZIP_FROM_BYTES:
        headers["Content-Encoding"] = "gzip"
        headers["Vary"] = "Accept-Encoding"
        compressor = zlib.compressobj(level=1, wbits=31)
        body = compressor.compress(body) + compressor.flush()
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _compressed(body: bytes, bomb: Fault) -> bytes:
    """A body and blanks after it, compressed."""
    compressor = zlib.compressobj(wbits=15 if bomb.text == "deflate" else 31)
    parts = [compressor.compress(part) for part in (body, *[b" " * 1_000_000] * bomb.megabytes)]
    return b"".join([*parts, compressor.flush()])


def _deleted(resource: Resource, item: bytes) -> bytes:
    metadata = objects.decode(item)["metadata"]
    group = {"group": resource.group} if resource.group else {}
    details = {"name": metadata["name"], **group, "kind": resource.name, "uid": metadata["uid"]}
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
    return msgspec.json.encode(status) + b"\n"


def _refusal(error: ApiError) -> web.Response:
    response = _answer(error.status() + b"\n", status=error.code)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response
