"""The simulated cluster's objects on a real API server: a Calico cluster with running pods, and changes of pods."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from loadtest import WRITTEN_AT
from loadtest.apiserver import population, resources
from loadtest.environment import calico_crds
from loadtest.scenarios.real import writer
from loadtest.verification import expected_state

_GROUPS: Final = (calico_crds.V3, calico_crds.CLUSTER_POLICIES)
_DEFINITIONS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_SEED: Final = 1
_CREATED: Final = (201, 409)
"""409: an earlier try has reached the API server."""


class Cluster:
    """Creates the objects and changes pods."""

    def __init__(self, client: expected_state.ApiClient, size: population.Population) -> None:
        self._requests = writer.Requests(client)
        self._size = size
        self._dice = random.Random(_SEED)
        self._pods: list[str] = []
        """Paths."""
        self.changes = 0
        """Changes of pods so far."""

    async def populate(self) -> None:
        """Install Calico's kinds and create all objects. Raises WriteError, TimeoutError."""
        definitions = calico_crds.definitions(*_GROUPS)
        await _all(self._install, [(one,) for one in definitions])
        made = list(population.generate(self._size, seed=_SEED))
        await _all(self._create, [one for one in made if one[0] is resources.NAMESPACES])
        await _all(self._create, [one for one in made if one[0] is not resources.NAMESPACES])

    async def change_pods(self, *, changes_per_second: float, seconds: float) -> None:
        """Give random pods a label with the time of the write, at this rate. Raises WriteError."""
        begin = time.monotonic()
        gate = asyncio.Semaphore(writer.AT_ONCE)

        async def change(path: str) -> None:
            try:
                stamp = {WRITTEN_AT: str(time.time_ns())}
                await self._requests.request("PATCH", path, {"metadata": {"labels": stamp}})
                self.changes += 1
            finally:
                gate.release()

        async with asyncio.TaskGroup() as group:
            for number in range(int(changes_per_second * seconds)):
                await asyncio.sleep(max(0.0, begin + number / changes_per_second - time.monotonic()))
                await gate.acquire()
                group.create_task(change(self._dice.choice(self._pods)), name=f"change {number}")

    async def _install(self, definition: dict[str, Any]) -> None:
        """Create the definition of a kind, and wait until the kind is served."""
        await self._requests.request("POST", _DEFINITIONS, definition, accepted=_CREATED)
        group, version = definition["spec"]["group"], definition["spec"]["versions"][0]["name"]
        await self._requests.wait_served(f"/apis/{group}/{version}/{definition['spec']['names']['plural']}")

    async def _create(self, resource: resources.Resource, value: dict[str, Any]) -> None:
        metadata = {name: member for name, member in value["metadata"].items() if name != "managedFields"}
        collection = resource.path
        if resource.namespaced:
            root, _, plural = resource.path.rpartition("/")
            collection = f"{root}/namespaces/{metadata['namespace']}/{plural}"
        if resource is resources.SERVICES:
            spec = {
                name: member for name, member in value["spec"].items() if name != "clusterIP"
            }  # the server gives one
            value = {**value, "spec": spec}
        body = {**value, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        await self._requests.request("POST", collection, body, accepted=_CREATED)
        if resource is resources.PODS:
            path = f"{collection}/{metadata['name']}"
            self._pods.append(path)
            await self._requests.request("PATCH", f"{path}/status", {"status": value["status"]})


async def _all(write: Callable[..., Awaitable[object]], arguments: Iterable[Sequence[Any]]) -> None:
    """Call a function with each of the arguments, several at once."""
    gate = asyncio.Semaphore(writer.AT_ONCE)

    async def call(one: Sequence[Any]) -> None:
        async with gate:
            await write(*one)

    async with asyncio.TaskGroup() as group:
        for number, one in enumerate(arguments):
            group.create_task(call(one), name=f"write {number}")
