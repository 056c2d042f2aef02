"""What is created at start, and what is left alone."""

import json
import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from structlog import testing

from cache.feeds.calico import syncers
from cache.kube import api
from tests.harness.scripted_server import ScriptedServer, session_to
from typha.hub import calico_objects

V1, V3 = syncers.Group.V1, syncers.Group.V3


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    opened = ScriptedServer()
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
async def session(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[api.KubeApi]:
    monkeypatch.setattr(calico_objects, "_RETRY_SECONDS", 0.01)
    opened = session_to(server)
    await opened.start()
    yield opened
    await opened.close()


class Store:
    """An API server's objects by path; some statuses can be forced."""

    def __init__(self, server: ScriptedServer) -> None:
        self.objects: dict[str, dict[str, object]] = {}
        self.forced: list[int] = []
        self.writes: list[str] = []
        server.script = [self.answer] * 40

    async def answer(self, request: web.Request) -> web.Response:
        if self.forced:
            return web.json_response({}, status=self.forced.pop(0))
        if request.method == "GET":
            found = self.objects.get(request.path)
            return web.json_response(found or {}, status=200 if found else 404)
        body = await request.json()
        path = request.path if request.method == "PUT" else f"{request.path}/{body['metadata']['name']}"
        self.writes.append(f"{request.method} {path}")
        self.objects[path] = body
        return web.json_response(body, status=200 if request.method == "PUT" else 201)


@pytest.mark.parametrize("group", [V1, V3])
async def test_creates_what_is_missing_and_then_nothing(
    server: ScriptedServer, session: api.KubeApi, group: syncers.Group
) -> None:
    store = Store(server)
    await calico_objects.ensure(session, group)
    names = [path.rpartition(f"/apis/{group.value}/")[2] for path in store.objects]
    assert names == ["clusterinformations/default", "tiers/default", "tiers/kube-admin", "tiers/kube-baseline"]
    information = next(iter(store.objects.values()))
    spec = information["spec"]
    assert isinstance(spec, dict)
    assert re.fullmatch("[0-9a-f]{32}", spec.pop("clusterGUID"))
    assert spec == {"clusterType": "typha,kdd", "datastoreReady": True}
    metadata = information["metadata"]
    assert isinstance(metadata, dict)
    assert ("annotations" in metadata) is (group is V1)
    spec["clusterGUID"] = "x"
    store.writes.clear()
    await calico_objects.ensure(session, group)
    assert store.writes == []


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ({}, {"clusterType": "typha,kdd", "datastoreReady": True}),
        ({"clusterType": "k8s"}, {"clusterType": "k8s,typha,kdd", "datastoreReady": True}),
        ({"clusterType": "kdd,typha", "datastoreReady": False}, {}),
        (
            {"clusterType": "typhaX", "datastoreReady": None},
            {"clusterType": "typhaX,typha,kdd", "datastoreReady": True},
        ),
    ],
)
def test_only_what_lacks_is_filled_in(spec: dict[str, object], changes: dict[str, object]) -> None:
    assert calico_objects.filled_in({**spec, "clusterGUID": "g", "more": 1}) == {
        **spec,
        "clusterGUID": "g",
        "more": 1,
        **changes,
    }


async def test_a_conflict_is_tried_again(server: ScriptedServer, session: api.KubeApi) -> None:
    store = Store(server)
    store.forced = [404, 409, 503]
    await calico_objects.ensure(session, V3)
    assert len(store.objects) == 4


async def test_not_being_allowed_is_one_warning(server: ScriptedServer, session: api.KubeApi) -> None:
    store = Store(server)
    store.forced = [404, 403, 403]
    with testing.capture_logs() as lines:
        await calico_objects.ensure(session, V3)
    [warning] = [line for line in lines if line["log_level"] == "warning"]
    assert "POST /apis/projectcalico.org/v3/clusterinformations" in warning["denied"]
    assert "GET /apis/projectcalico.org/v3/tiers/default" in warning["denied"]
    assert len(store.objects) == 2


async def test_what_cannot_be_done_is_named_and_left(server: ScriptedServer, session: api.KubeApi) -> None:
    store = Store(server)
    store.objects["/apis/projectcalico.org/v3/clusterinformations/default"] = {"spec": "no object"}
    store.forced = [200, 422]
    with testing.capture_logs() as lines:
        await calico_objects.ensure(session, V3)
    assert any("422" in str(line.get("error")) for line in lines)
    assert json.dumps(sorted(store.writes)).count("tiers") == 3
