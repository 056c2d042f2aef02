"""The one writer on a real API server: creates and changes objects, and records each deletion before it asks for it.

It survives an API server that is killed: it repeats a request until the outcome is known.
"""

import asyncio
import dataclasses
import json
import random
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from cache import resources
from cache.feeds import raw
from loadtest import WRITTEN_AT
from loadtest.scenarios.real import objects
from loadtest.verification import expected_state

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10.0)
"""A request that gets no answer is repeated."""
RETRY_SECONDS: Final = 0.2
GIVE_UP_SECONDS: Final = 90.0
AT_ONCE: Final = 16
OPERATIONS: Final = ("update", "update", "create", "delete")
"""Each is equally likely, so the number of objects stays about the same."""


class WriteError(Exception):
    """The API server refused a write; the message has its answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class WrittenKind:
    """A kind of object that is created, updated and deleted."""

    type: resources.ResourceType
    make: Callable[[str, str], objects.JsonObject]

    def path(self, namespace: str, name: str = "") -> str:
        """URL path of the collection in a namespace, or of an object."""
        prefix = self.type.list_path.rpartition("/")[0]
        path = f"{prefix}/namespaces/{namespace}/{self.type.resource}"
        return f"{path}/{name}" if name else path


KINDS: Final = (
    WrittenKind(resources.ResourceType("", "v1", "pods"), objects.pod),
    WrittenKind(resources.ResourceType("", "v1", "services"), objects.service),
    WrittenKind(resources.ResourceType("discovery.k8s.io", "v1", "endpointslices"), objects.endpoint_slice),
    WrittenKind(resources.ResourceType(objects.GROUP, "v1", "widgets"), objects.widget),
)
TYPES: Final = ("v1/namespaces", *(str(kind.type) for kind in KINDS))


class Requests:
    """Sends requests to an API server that may be in trouble. Bodies get the time of the try as annotation."""

    def __init__(self, client: expected_state.ApiClient) -> None:
        self._client = client
        self.retries = 0

    async def request(
        self, method: str, path: str, body: objects.JsonObject | None = None, *, accepted: tuple[int, ...] = (200,)
    ) -> tuple[int, dict[str, Any]]:
        """Repeat a request until the answer is not the sign of a server in trouble. Raises WriteError."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while True:
            status, content, text = await self._once(method, path, body)
            if status in accepted:
                return status, content
            if status and status < 500 and status not in (403, 409, 429):
                raise WriteError(f"{method} {path}: {status} {text[:300]}")
            if time.monotonic() > deadline:
                raise WriteError(f"{method} {path}: {status or 'no answer'} {text[:300]}")
            self.retries += 1
            await asyncio.sleep(RETRY_SECONDS)

    async def wait_served(self, path: str) -> None:
        """Wait until a new kind is served. Raises TimeoutError, WriteError."""
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while True:
                status, _ = await self.request("GET", path, accepted=(200, 404))
                if status == 200:
                    return
                await asyncio.sleep(RETRY_SECONDS)

    async def _once(self, method: str, path: str, body: objects.JsonObject | None) -> tuple[int, dict[str, Any], str]:
        """Status, decoded body if the request succeeded, and text of the body; status 0 if there was no answer."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        data = None if body is None else json.dumps(_stamped(body)).encode()
        try:
            status, answer = await self._client.request(
                method, path, data=data, headers={"Content-Type": kind}, timeout=_TIMEOUT
            )
            return status, json.loads(answer) if status < 300 else {}, answer.decode(errors="replace")
        except (expected_state.ApiRequestError, ValueError) as error:
            return 0, {}, str(error)


class Writer:
    """Writes through an open client.

    `counts` are the operations done; `asked` is when the deletion of each (key, uid) was asked for, in ns since 1970.
    """

    def __init__(self, client: expected_state.ApiClient, *, namespaces: int, seed: int = 0) -> None:
        self.asked: dict[tuple[str, str], int] = {}
        self.counts = {"create": 0, "update": 0, "delete": 0}
        self._requests = Requests(client)
        self._dice = random.Random(seed)
        self._namespaces = [f"load-{number:02d}" for number in range(namespaces)]
        self._live: dict[WrittenKind, list[tuple[str, str, str]]] = {kind: [] for kind in KINDS}
        """(namespace, name, uid) of each object."""
        self._serial = 0

    @property
    def retries(self) -> int:
        """Requests that had to be sent again."""
        return self._requests.retries

    async def populate(self, counts: dict[str, int]) -> None:
        """Create the custom type, the namespaces, and objects of each kind (plural name -> number)."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        await self._requests.request("POST", path, objects.CUSTOM_RESOURCE_DEFINITION, accepted=(201, 409))
        for name in self._namespaces:
            await self._requests.request("POST", "/api/v1/namespaces", objects.namespace(name), accepted=(201, 409))
        await self._requests.wait_served(KINDS[-1].type.list_path)
        gate = asyncio.Semaphore(AT_ONCE)

        async def create(kind: WrittenKind) -> None:
            async with gate:
                await self._create(kind)

        await asyncio.gather(*(create(kind) for kind in KINDS for _ in range(counts[kind.type.resource])))

    async def churn(self, *, writes_per_second: float, seconds: float) -> None:
        """Create, update and delete objects of all kinds for a while, several at once; update namespaces too."""
        begin = time.monotonic()
        gate = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            number = 0
            while (due := begin + number / writes_per_second) < begin + seconds:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await gate.acquire()
                task = group.create_task(self._write(number), name=f"write {number}")
                task.add_done_callback(lambda _: gate.release())
                number += 1
                if time.monotonic() > begin + seconds:
                    break

    async def touch_all(self) -> None:
        """Update an object of each kind, so that each watch has an event to deliver."""
        await self._label_namespace()
        for kind in KINDS:
            await self._update(kind)

    async def _write(self, number: int) -> None:
        if number % 20 == 0:
            await self._label_namespace()
            return
        weights = [10, 1, 2, 2]
        kind = self._dice.choices(KINDS, weights)[0]
        match self._dice.choice(OPERATIONS):
            case "create":
                await self._create(kind)
            case "update":
                await self._update(kind)
            case _:
                await self._delete(kind)

    async def _create(self, kind: WrittenKind) -> None:
        self._serial += 1
        name = f"{kind.type.resource[:-1]}-{self._serial:06d}"
        namespace = self._dice.choice(self._namespaces)
        body = kind.make(name, namespace)
        status, created = await self._requests.request("POST", kind.path(namespace), body, accepted=(201, 409))
        if status == 409:  # an earlier try had reached the server
            _, created = await self._requests.request("GET", kind.path(namespace, name))
        self._live[kind].append((namespace, name, created["metadata"]["uid"]))
        self.counts["create"] += 1

    async def _update(self, kind: WrittenKind) -> None:
        if not self._live[kind]:
            return
        namespace, name, _ = self._dice.choice(self._live[kind])
        change = {"metadata": {"labels": {objects.LABEL: str(self._dice.random())}}}
        await self._requests.request("PATCH", kind.path(namespace, name), change, accepted=(200, 404))
        self.counts["update"] += 1

    async def _delete(self, kind: WrittenKind) -> None:
        live = self._live[kind]
        if not live:
            return
        index = self._dice.randrange(len(live))
        live[index], live[-1] = live[-1], live[index]
        namespace, name, uid = live.pop()
        self.asked[raw.object_key(kind.type, namespace, name), uid] = time.time_ns()
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        await self._requests.request("DELETE", kind.path(namespace, name), options, accepted=(200, 404))
        self.counts["delete"] += 1

    async def _label_namespace(self) -> None:
        path = f"/api/v1/namespaces/{self._dice.choice(self._namespaces)}"
        await self._requests.request("PATCH", path, {"metadata": {}})
        self.counts["update"] += 1


def _stamped(body: objects.JsonObject) -> objects.JsonObject:
    """An object with the time of this try as annotation; options of a deletion stay unchanged."""
    metadata = body.get("metadata")
    if metadata is None:
        return body
    annotations = {**metadata.get("annotations", {}), WRITTEN_AT: str(time.time_ns())}
    return {**body, "metadata": {**metadata, "annotations": annotations}}
