"""What the API server says: all objects of a feed, listed, converted as the service does, and digested."""

import dataclasses
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec

from cache import resources
from cache.feeds import raw
from loadtest.environment import kubeconfig
from protocol import digest

PAGE_SIZE: Final = 500
MAX_ATTEMPTS: Final = 5
REQUEST_TIMEOUT_SECONDS: Final = 60.0


class ApiError(Exception):
    """The API server did not give what was asked for; the message has the path and its answer."""


class Live(msgspec.Struct, frozen=True):
    """A live key: digest of key and value, the object's uid and version."""

    digest: int
    uid: str
    revision: str


@dataclasses.dataclass(frozen=True)
class Truth:
    """All live keys of a feed. The types were listed one after the other: it is one moment's state only if nothing is
    written meanwhile."""

    live: Mapping[str, Live]

    @property
    def digest(self) -> int:
        """The state digest of all keys."""
        return sum(entry.digest for entry in self.live.values()) % digest.MODULUS


class _ListMetadata(msgspec.Struct):
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    kind: str
    api_version: str = msgspec.field(name="apiVersion")
    items: list[msgspec.Raw]
    metadata: _ListMetadata = msgspec.field(default_factory=_ListMetadata)


class Identity(msgspec.Struct):
    """Of an object's metadata: what names it and its version."""

    name: str
    namespace: str = ""
    uid: str = ""
    revision: str = msgspec.field(name="resourceVersion", default="")


class _Object(msgspec.Struct):
    metadata: Identity


_decode_list = msgspec.json.Decoder(_List).decode
_decode_object = msgspec.json.Decoder(_Object).decode


class ApiClient:
    """Reads from an API server: get and list, nothing else. `requests` counts what it asked."""

    def __init__(self, access: kubeconfig.Access) -> None:
        self.access = access
        self.requests = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(headers=self.access.headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, parameters: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body of any answer. Raises ApiError if there is none."""
        if self._session is None:
            raise RuntimeError("the client is not open: use `async with`")
        self.requests += 1
        tls = self.access.tls if self.access.tls is not None else True
        try:
            url = self.access.server + path
            async with self._session.get(url, params=parameters, ssl=tls) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(f"GET {path}: {type(error).__name__} {error}") from error

    async def truth(self, specs: Iterable[raw.ResourceSpec]) -> Truth:
        """Lists everything. A type that the server does not know has no objects. Raises ApiError."""
        live: dict[str, Live] = {}
        for spec in specs:
            live.update(await self._list(spec))
        return Truth(live)

    async def items(self, type: resources.ResourceType) -> list[bytes]:
        """Lists a type; one that the server does not know has no objects. Raises ApiError."""
        return [bytes(item) for page in await self._pages(type) for item in page.items]

    async def _list(self, spec: raw.ResourceSpec) -> dict[str, Live]:
        found: dict[str, Live] = {}
        for page in await self._pages(spec.type):
            found.update(live_entries(spec, page.items, api_version=page.api_version, list_kind=page.kind))
        return found

    async def _pages(self, type: resources.ResourceType) -> list[_List]:
        for _ in range(MAX_ATTEMPTS):
            pages: list[_List] = []
            parameters = {"limit": str(PAGE_SIZE)}
            while True:
                status, body = await self.get(type.list_path, parameters)
                if status == 410:  # the list took too long, its version is forgotten: from the beginning
                    break
                if status == 404:
                    return []
                if status != 200:
                    text = body[:300].decode(errors="replace")
                    raise ApiError(f"GET {type.list_path}: {status} {text}")
                page = _decode_list(body)
                pages.append(page)
                if not page.metadata.continue_:
                    return pages
                parameters["continue"] = page.metadata.continue_
        raise ApiError(f"GET {type.list_path}: its version was forgotten {MAX_ATTEMPTS} times")


def identity(item: bytes) -> Identity:
    """Who an object of a list is."""
    return _decode_object(item).metadata


def live_entries(
    spec: raw.ResourceSpec, items: Iterable[bytes], *, api_version: str, list_kind: str
) -> dict[str, Live]:
    """Items of a list as live keys."""
    kind = list_kind.removesuffix("List")
    found: dict[str, Live] = {}
    for item in items:
        metadata = identity(item)
        key = raw.object_key(spec.type, metadata.namespace, metadata.name)
        value = raw.object_value(bytes(item), api_version=api_version, kind=kind, fields=spec.fields)
        found[key] = Live(digest.pair_digest(key.encode(), value), metadata.uid, metadata.revision)
    return found


def specs(types: Iterable[str]) -> list[raw.ResourceSpec]:
    """Whole objects of these types (`v1/pods`, `discovery.k8s.io/v1/endpointslices`)."""
    return [raw.ResourceSpec(resources.ResourceType.parse(text)) for text in types]
