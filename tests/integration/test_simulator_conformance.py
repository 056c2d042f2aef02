"""Conformance of the simulated API server: each test runs on it and on a real one."""

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Protocol

import aiohttp
import pytest

from loadtest.apiserver import resources
from loadtest.apiserver.simulator import Simulator
from loadtest.environment import control_plane
from tests.harness.apiserver_client import Api, JsonObject, names

pytestmark = pytest.mark.slow

DEADLINE_SECONDS = 180.0
WIDGETS = resources.WIDGETS
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"{WIDGETS.name}.{WIDGETS.group}"},
    "spec": {
        "group": WIDGETS.group,
        "names": {"kind": WIDGETS.kind, "plural": WIDGETS.name, "singular": "widget", "listKind": "WidgetList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": WIDGETS.version,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
WATCH_LIST = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}


class Backend(Protocol):
    """Operations that only the owner of a server can do."""

    async def expire_history(self) -> None: ...

    async def install_widgets(self) -> None: ...


@dataclasses.dataclass
class Server:
    """A real or simulated API server, with an empty namespace for the test."""

    api: Api
    backend: Backend
    namespace: str

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps"

    async def create(self, *created: str) -> str:
        """Create config maps. Returns the version of the last one."""
        value: JsonObject = {}
        for name in created:
            status, value = await self.api.send("POST", self.path, {"metadata": {"name": name}, "data": {"a": "b"}})
            assert status == 201, value
        return str(value["metadata"]["resourceVersion"])

    async def change(self, name: str, data: dict[str, str]) -> None:
        headers = {"Content-Type": "application/merge-patch+json"}
        status, answer = await self.api.send("PATCH", f"{self.path}/{name}", {"data": data}, **headers)
        assert status == 200, answer

    async def delete(self, name: str) -> None:
        assert (await self.api.send("DELETE", f"{self.path}/{name}"))[0] == 200

    async def listed(self, **query: str | int) -> tuple[int, Any]:
        """The HTTP status, and the listed names or the reason of the error."""
        status, answer = await self.api.get(self.path, **query)
        return status, names(answer) if status == 200 else answer["reason"]


class SimulatedBackend:
    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def expire_history(self) -> None:
        self._simulator.store.advance()
        self._simulator.store.compact()

    async def install_widgets(self) -> None:
        self._simulator.store.install(WIDGETS)


class RealBackend:
    def __init__(self, plane: control_plane.ControlPlane) -> None:
        self._plane = plane

    async def expire_history(self) -> None:
        await asyncio.to_thread(self._plane.expire_history)

    async def install_widgets(self) -> None:
        await asyncio.to_thread(self._install)

    def _install(self) -> None:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        assert self._plane.request("POST", path, DEFINITION).status in (201, 409)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._plane.request("GET", WIDGETS.path).status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.control_plane)])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    async with contextlib.AsyncExitStack() as stack:
        backend: Backend
        if request.param == "simulated":
            simulator = await stack.enter_async_context(Simulator())
            api = Api(await stack.enter_async_context(aiohttp.ClientSession()), simulator.url)
            backend = SimulatedBackend(simulator)
        else:
            plane: control_plane.ControlPlane = request.getfixturevalue("control_plane")
            session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {control_plane.ADMIN_TOKEN}"},
                connector=aiohttp.TCPConnector(ssl=plane.tls_context()),
            )
            api = Api(await stack.enter_async_context(session), plane.url)
            backend = RealBackend(plane)
        namespace = f"test-{uuid.uuid4().hex[:12]}"
        assert (await api.send("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}}))[0] == 201
        yield Server(api, backend, namespace)


async def test_the_format_of_lists_objects_and_events(server: Server) -> None:
    version = await server.create("a")
    _, listed = await server.api.get(server.path)
    assert list(listed) == ["kind", "apiVersion", "metadata", "items"]
    assert (listed["kind"], listed["apiVersion"]) == ("ConfigMapList", "v1")
    [item] = listed["items"]
    assert not {"kind", "apiVersion"} & set(item)
    assert list(item["metadata"])[:5] == ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"]
    _, alone = await server.api.get(f"{server.path}/a")
    assert list(alone.items()) == [("kind", "ConfigMap"), ("apiVersion", "v1"), *item.items()]
    async with server.api.watch(server.path, resourceVersion=int(version) - 1) as watch:
        assert await watch.event() == ("ADDED", alone)


async def test_the_format_of_custom_types(server: Server) -> None:
    await server.backend.install_widgets()
    path = f"/apis/{WIDGETS.group}/{WIDGETS.version}/namespaces/{server.namespace}/widgets"
    widget = {"apiVersion": WIDGETS.api_version, "kind": "Widget", "metadata": {"name": "w"}, "spec": {"b": 1, "a": 2}}
    assert (await server.api.send("POST", path, widget))[0] == 201
    _, listed = await server.api.get(path)
    assert list(listed) == ["apiVersion", "items", "kind", "metadata"]
    [item] = listed["items"]
    assert list(item) == ["apiVersion", "kind", "metadata", "spec"]
    assert list(item["spec"]) == ["a", "b"]
    assert list(item["metadata"]) == sorted(item["metadata"])
    async with server.api.watch(path, **WATCH_LIST) as watch:
        assert await watch.event() == ("ADDED", item)
        kind, bookmark = await watch.event()
        assert (kind, list(bookmark)) == ("BOOKMARK", ["apiVersion", "kind", "metadata"])


async def test_the_pages_of_a_list_are_one_snapshot(server: Server) -> None:
    await server.create("a", "b", "c", "d", "e")
    _, first = await server.api.get(server.path, limit=2)
    assert first["metadata"]["remainingItemCount"] == 3
    await server.create("bb")
    await server.delete("d")
    await server.change("e", {"a": "changed"})
    _, second = await server.api.get(server.path, limit=2, **{"continue": first["metadata"]["continue"]})
    _, third = await server.api.get(server.path, limit=2, **{"continue": second["metadata"]["continue"]})
    assert names(first, second, third) == ["a", "b", "c", "d", "e"]
    assert third["items"][0]["data"] == {"a": "b"}
    assert {page["metadata"]["resourceVersion"] for page in (second, third)} == {first["metadata"]["resourceVersion"]}
    assert set(third["metadata"]) == {"resourceVersion"}
    assert await server.listed() == (200, ["a", "b", "bb", "c", "e"])


async def test_versions_and_matches(server: Server) -> None:
    version = await server.create("a", "b")
    await server.create("c")
    not_older = {"resourceVersionMatch": "NotOlderThan", "resourceVersion": version}
    exact = {"resourceVersionMatch": "Exact", "resourceVersion": version}
    assert await server.listed(**exact) == (200, ["a", "b"])
    assert await server.listed(**exact, limit=1) == (200, ["a"])
    assert await server.listed(resourceVersion=version, limit=5) == (200, ["a", "b"])
    assert await server.listed(**not_older) == (200, ["a", "b", "c"])
    assert await server.listed(**not_older, limit=1) == (200, ["a"])
    assert await server.listed(resourceVersion=version) == (200, ["a", "b", "c"])
    assert await server.listed(resourceVersion=0, limit=1) == (200, ["a", "b", "c"])
    assert (await server.listed(**{"continue": "nonsense"}))[0] == 400
    _, page = await server.api.get(server.path, limit=1)
    token = page["metadata"]["continue"]
    assert await server.listed(**{"continue": token, "resourceVersion": version}) == (400, "BadRequest")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"resourceVersionMatch": "Exact"}, "resourceVersionMatch"),
        ({"resourceVersionMatch": "Exact", "resourceVersion": "0"}, "resourceVersionMatch"),
        ({"sendInitialEvents": "true"}, "sendInitialEvents"),
        ({"watch": "true", "sendInitialEvents": "true"}, "resourceVersionMatch"),
        ({"watch": "true", "resourceVersionMatch": "NotOlderThan", "resourceVersion": "1"}, "resourceVersionMatch"),
    ],
)
async def test_contradictory_options_are_rejected(server: Server, query: dict[str, str], field: str) -> None:
    status, refusal = await server.api.get(server.path, **query)
    assert (status, refusal["reason"]) == (422, "Invalid")
    assert (refusal["details"]["causes"][0]["reason"], refusal["details"]["causes"][0]["field"]) == (
        "FieldValueForbidden",
        field,
    )


async def test_a_version_from_the_future(server: Server) -> None:
    future = int(await server.create("a")) + 100_000
    async with server.api.session.get(server.api.url + server.path, params={"resourceVersion": future}) as response:
        refusal = await response.json()
        assert (response.status, response.headers["Retry-After"]) == (504, "1")
    async with server.api.watch(server.path, resourceVersion=future, **WATCH_LIST) as watch:
        kind, error = await watch.event()
    for status in (refusal, error):
        assert (status["reason"], status["code"], status["details"]["retryAfterSeconds"]) == ("Timeout", 504, 1)
        assert status["details"]["causes"] == [
            {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        ]
    assert kind == "ERROR"
    async with server.api.watch(server.path, resourceVersion=future, timeoutSeconds=1) as watch:
        await server.create("b")
        assert await watch.line() == b""


async def test_a_watch_resumes_exactly(server: Server) -> None:
    version = await server.create("a")
    await server.create("b")
    await server.change("a", {"x": "y"})
    await server.delete("b")
    async with server.api.watch(server.path, resourceVersion=version) as watch:
        assert await watch.names(2) == ["ADDED b", "MODIFIED a"]
        kind, deleted = await watch.event()
        assert (kind, deleted["data"]) == ("DELETED", {"a": "b"})
        later = await server.create("c")
        assert await watch.names(1) == ["ADDED c"]
    assert int(version) < int(deleted["metadata"]["resourceVersion"]) < int(later)
    async with server.api.watch(server.path, resourceVersion=deleted["metadata"]["resourceVersion"]) as watch:
        assert await watch.names(1) == ["ADDED c"]


async def test_watch_list(server: Server) -> None:
    version = await server.create("b", "a")
    async with server.api.watch(server.path, **WATCH_LIST) as watch:
        assert await watch.names(2) == ["ADDED a", "ADDED b"]
        kind, bookmark = await watch.event()
        assert (kind, bookmark["kind"], bookmark["apiVersion"]) == ("BOOKMARK", "ConfigMap", "v1")
        assert bookmark["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert set(bookmark) == {"kind", "apiVersion", "metadata"}
        assert int(bookmark["metadata"]["resourceVersion"]) >= int(version)
        await server.delete("a")
        assert await watch.names(1) == ["DELETED a"]
    without = {**WATCH_LIST, "allowWatchBookmarks": "false", "timeoutSeconds": "1"}
    async with server.api.watch(server.path, **without) as watch:
        assert await watch.names(1) == ["ADDED b"]
        assert await watch.line() == b""


async def test_a_write_without_a_change_makes_no_new_version(server: Server) -> None:
    version = await server.create("a")
    await server.change("a", {"a": "b"})
    assert (await server.api.get(f"{server.path}/a"))[1]["metadata"]["resourceVersion"] == version


async def test_conflicts_are_rejected(server: Server) -> None:
    version = await server.create("a")
    value = {"metadata": {"name": "a"}, "data": {}}
    status, refusal = await server.api.send("POST", server.path, value)
    assert (status, refusal["reason"], refusal["details"]) == (
        409,
        "AlreadyExists",
        {"name": "a", "kind": "configmaps"},
    )
    value["metadata"] = {"name": "a", "resourceVersion": str(int(version) - 1)}
    assert (await server.api.send("PUT", f"{server.path}/a", value))[1]["reason"] == "Conflict"
    status, refusal = await server.api.get(f"{server.path}/missing")
    assert (status, refusal["reason"], refusal["details"]) == (
        404,
        "NotFound",
        {"name": "missing", "kind": "configmaps"},
    )


@pytest.mark.parametrize("path", ["/api/v1/things", "/apis/discovery.k8s.io/v1/things", "/api/v1/pods/one"])
async def test_unknown_types(server: Server, path: str) -> None:
    status, refusal = await server.api.get(path)
    assert (status, refusal["reason"], refusal["details"]) == (404, "NotFound", {})
    assert refusal["message"] == "the server could not find the requested resource"


@pytest.mark.parametrize("path", ["/nothing", "/apis/missing.example.com/v1", "/apis/missing.example.com/v1/things"])
async def test_unknown_groups(server: Server, path: str) -> None:
    async with server.api.session.get(server.api.url + path) as response:
        assert (response.status, response.content_type) == (404, "text/plain")


async def test_discovery(server: Server) -> None:
    _, core = await server.api.get("/api/v1")
    assert (core["kind"], core["groupVersion"]) == ("APIResourceList", "v1")
    [pods] = [entry for entry in core["resources"] if entry["name"] == "pods"]
    assert (pods["kind"], pods["namespaced"]) == ("Pod", True)
    assert {"get", "list", "watch"} <= set(pods["verbs"])
    _, groups = await server.api.get("/apis")
    assert "discovery.k8s.io" in [group["name"] for group in groups["groups"]]


async def test_compacted_history_is_gone(server: Server) -> None:
    version = await server.create("a", "b")
    _, first = await server.api.get(server.path, limit=1)
    await server.backend.expire_history()
    async with server.api.watch(server.path, resourceVersion=version) as watch:
        kind, error = await watch.event()
        assert (kind, error["kind"], error["code"], error["reason"]) == ("ERROR", "Status", 410, "Expired")
        assert await watch.line() == b""
    assert await server.listed(resourceVersion=version, resourceVersionMatch="Exact") == (410, "Expired")
    status, refusal = await server.api.get(server.path, limit=1, **{"continue": first["metadata"]["continue"]})
    assert (status, refusal["reason"]) == (410, "Expired")
    assert await server.listed(**{"continue": refusal["metadata"]["continue"]}) == (200, ["b"])
    assert await server.listed() == (200, ["a", "b"])
