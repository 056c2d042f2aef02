"""Which of Calico's objects are created or changed at start."""

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
    """An API server that answers by a script."""
    opened = ScriptedServer()
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
async def session(server: ScriptedServer) -> AsyncIterator[api.KubeApi]:
    """A session with the server."""
    opened = session_to(server)
    await opened.start()
    yield opened
    await opened.close()


async def ensure(session: api.KubeApi, group: syncers.Group) -> None:
    """The same as at start, with short pauses between attempts."""
    await calico_objects.ensure(session, group, retry_seconds=0.01)


class Store:
    """The objects of an API server, by path. The next answers have the statuses in `forced`, if there are any."""

    def __init__(self, server: ScriptedServer) -> None:
        self.objects: dict[str, dict[str, object]] = {}
        self.forced: list[int] = []
        self.writes: list[str] = []
        server.script = [self.answer] * 40

    async def answer(self, request: web.Request) -> web.Response:
        """Reads or writes an object."""
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
async def test_missing_objects_are_created_once(
    server: ScriptedServer, session: api.KubeApi, group: syncers.Group
) -> None:
    store = Store(server)
    await ensure(session, group)
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
    await ensure(session, group)
    assert store.writes == []


@pytest.mark.parametrize("group", [V1, V3])
async def test_tiers_of_older_releases_are_created_and_not_changed(
    server: ScriptedServer, session: api.KubeApi, group: syncers.Group
) -> None:
    store = Store(server)
    tiers = (calico_objects.ADMIN_TIER, calico_objects.BASELINE_ADMIN_TIER)
    await calico_objects.ensure_tiers(session, group, tiers, retry_seconds=0.01)
    prefix = f"/apis/{group.value}/tiers"
    assert {path.rpartition("/")[2]: found["spec"] for path, found in store.objects.items()} == {
        "adminnetworkpolicy": {"order": 1_000, "defaultAction": "Pass"},
        "baselineadminnetworkpolicy": {"order": 10_000_000, "defaultAction": "Pass"},
    }
    store.objects[f"{prefix}/adminnetworkpolicy"]["spec"] = {"order": 7}
    await calico_objects.ensure_tiers(session, group, tiers, retry_seconds=0.01)
    assert store.writes == [f"POST {prefix}/adminnetworkpolicy", f"POST {prefix}/baselineadminnetworkpolicy"]


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
def test_only_missing_members_are_added(spec: dict[str, object], changes: dict[str, object]) -> None:
    assert calico_objects.filled_in({**spec, "clusterGUID": "g", "more": 1}) == {
        **spec,
        "clusterGUID": "g",
        "more": 1,
        **changes,
    }


async def test_a_conflict_is_retried(server: ScriptedServer, session: api.KubeApi) -> None:
    store = Store(server)
    store.forced = [404, 409, 503]
    await ensure(session, V3)
    assert len(store.objects) == 4


async def test_missing_permissions_are_one_warning(server: ScriptedServer, session: api.KubeApi) -> None:
    store = Store(server)
    store.forced = [404, 403, 403]
    with testing.capture_logs() as lines:
        await ensure(session, V3)
    [warning] = [line for line in lines if line["log_level"] == "warning"]
    assert "POST /apis/projectcalico.org/v3/clusterinformations" in warning["denied"]
    assert "GET /apis/projectcalico.org/v3/tiers/default" in warning["denied"]
    assert len(store.objects) == 2


async def test_a_failure_is_logged_and_the_others_are_created(server: ScriptedServer, session: api.KubeApi) -> None:
    store = Store(server)
    store.objects["/apis/projectcalico.org/v3/clusterinformations/default"] = {"spec": "no object"}
    store.forced = [200, 422]
    with testing.capture_logs() as lines:
        await ensure(session, V3)
    assert any("422" in str(line.get("error")) for line in lines)
    assert json.dumps(sorted(store.writes)).count("tiers") == 3


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{", b'{"spec":%s%s}' % (b"[" * 13_000, b"]" * 13_000), b'{"spec":"\xff"}', b'{"spec":"\\ud800"}'],
)
async def test_an_answer_that_cannot_be_decoded_is_logged_and_the_others_are_created(
    server: ScriptedServer, session: api.KubeApi, body: bytes
) -> None:
    store = Store(server)
    server.script.insert(0, server.body(body))
    with testing.capture_logs() as lines:
        await ensure(session, V3)
    assert [line["name"] for line in lines if line["log_level"] == "warning"] == ["default"]
    assert json.dumps(sorted(store.writes)).count("tiers") == 3
