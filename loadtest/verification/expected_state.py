"""The state that agents must hold: all objects of a feed, listed, converted as the service does, and digested."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import aiohttp
import msgspec

from cache import objects, resources
from cache.feeds import raw
from cache.feeds.calico import feed, syncers
from loadtest.environment import kubeconfig
from protocol import digest

PAGE_SIZE: Final = 500
MAX_ATTEMPTS: Final = 5
REQUEST_TIMEOUT_SECONDS: Final = 180.0
"""Only a failure takes so long, also where an API server, a service and agents share two CPUs with other programs."""
_MAX_VALUE_BYTES: Final = 1 << 30


class ApiRequestError(Exception):
    """The API server did not answer a request, or refused it; the message has path and answer."""


class Live(msgspec.Struct, frozen=True):
    """A live key: digest of key and value, uid and version of the object."""

    digest: int
    uid: str
    revision: str


@dataclasses.dataclass(frozen=True)
class ExpectedState:
    """All live keys of a feed.

    The types are listed one after the other, so this is the state at one moment only if nothing writes in between.
    """

    live: Mapping[str, Live]

    @property
    def digest(self) -> int:
        """State digest of all keys."""
        return sum(entry.digest for entry in self.live.values()) % digest.MODULUS


class _ListMetadata(msgspec.Struct):
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    kind: str
    api_version: str = msgspec.field(name="apiVersion")
    items: list[msgspec.Raw]
    metadata: _ListMetadata = msgspec.field(default_factory=_ListMetadata)


class Identity(msgspec.Struct):
    """The part of an object's metadata that identifies the object and its version."""

    name: str
    namespace: str = ""
    uid: str = ""
    revision: str = msgspec.field(name="resourceVersion", default="")


class _Object(msgspec.Struct):
    metadata: Identity


_decode_list = msgspec.json.Decoder(_List).decode
_decode_object = msgspec.json.Decoder(_Object).decode


class ApiClient:
    """An HTTP client of one API server; an async context manager. `requests` counts its requests."""

    def __init__(self, access: kubeconfig.Access) -> None:
        self.access = access
        self.requests = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(headers=self.access.headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, parameters: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body of any answer. Raises ApiRequestError if there is no answer."""
        return await self.request("GET", path, params=parameters)

    async def request(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        """Status and body of any answer; `options` are aiohttp's. Raises ApiRequestError if there is no answer."""
        if self._session is None:
            raise RuntimeError("the client is not open: use `async with`")
        self.requests += 1
        tls = self.access.tls if self.access.tls is not None else True
        try:
            async with self._session.request(method, self.access.server + path, ssl=tls, **options) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiRequestError(f"{method} {path}: {type(error).__name__} {error}") from error

    async def read_state(self, specs: Iterable[raw.ResourceSpec]) -> ExpectedState:
        """List all types. A type that the server does not know has no objects. Raises ApiRequestError."""
        live: dict[str, Live] = {}
        for spec in specs:
            for page in await self._pages(spec.type):
                live.update(live_entries(spec, page.items, api_version=page.api_version, list_kind=page.kind))
        return ExpectedState(live)

    async def read_values(self, specs: Iterable[raw.ResourceSpec]) -> dict[str, bytes]:
        """The values of all live keys. Raises ApiRequestError."""
        found: dict[str, bytes] = {}
        for spec in specs:
            for page in await self._pages(spec.type):
                kind = page.kind.removesuffix("List")
                for item in page.items:
                    known = _decode_object(item).metadata
                    key = raw.object_key(spec.type, known.namespace, known.name)
                    found[key] = raw.object_value(bytes(item), api_version=page.api_version, kind=kind)
        return found

    async def read_calico_state(self, feed_name: str, *, group: syncers.Group = syncers.Group.V3) -> ExpectedState:
        """The live keys of one of Calico's feeds: lists, converted as the service does. Raises ApiRequestError."""
        [spec] = [spec for spec in syncers.specs(group) if spec.name == feed_name]
        made = feed.CalicoFeed(spec, max_value_bytes=_MAX_VALUE_BYTES)
        for source in spec.sources:
            for page in await self._pages(source.type):
                for item in page.items:
                    known = _decode_object(item).metadata
                    names = known.namespace, known.name, known.revision
                    about = page.api_version, source.kind, objects.Origin.LIST
                    made.apply(objects.ObjectEvent(source.type, *names, bytes(item), *about))
        made.take()
        # Clients of Typha's protocol cannot tell an empty value from a missing one.
        live = {
            update.key: Live(digest.pair_digest(update.key.encode(), update.value), "", update.revision)
            for update in (stored.as_update() for stored in made.store)
            if update.value
        }
        return ExpectedState(live)

    async def _pages(self, type: resources.ResourceType) -> list[_List]:
        for _ in range(MAX_ATTEMPTS):
            pages: list[_List] = []
            parameters = {"limit": str(PAGE_SIZE)}
            while True:
                status, body = await self.get(type.list_path, parameters)
                if status == 410:  # the server has forgotten the version of this list: start again
                    break
                if status == 404:
                    return []
                if status != 200:
                    text = body[:300].decode(errors="replace")
                    raise ApiRequestError(f"GET {type.list_path}: {status} {text}")
                page = _decode_list(body)
                pages.append(page)
                if not page.metadata.continue_:
                    return pages
                parameters["continue"] = page.metadata.continue_
        raise ApiRequestError(f"GET {type.list_path}: its version was forgotten {MAX_ATTEMPTS} times")


def live_entries(
    spec: raw.ResourceSpec, items: Iterable[bytes], *, api_version: str, list_kind: str
) -> dict[str, Live]:
    """The live keys that the items of a list give."""
    kind = list_kind.removesuffix("List")
    found: dict[str, Live] = {}
    for item in items:
        metadata = _decode_object(item).metadata
        key = raw.object_key(spec.type, metadata.namespace, metadata.name)
        value = raw.object_value(bytes(item), api_version=api_version, kind=kind, fields=spec.fields)
        found[key] = Live(digest.pair_digest(key.encode(), value), metadata.uid, metadata.revision)
    return found


def specs(types: Iterable[str]) -> list[raw.ResourceSpec]:
    """Specs of whole objects of these types, such as `v1/pods` or `discovery.k8s.io/v1/endpointslices`."""
    return [raw.ResourceSpec(resources.ResourceType.parse(text)) for text in types]
