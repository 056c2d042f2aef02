"""Tests of loadtest.apiserver.handlers over HTTP: lists, single objects, writes and discovery."""

import aiohttp
import pytest

from loadtest.apiserver import handlers, resources
from loadtest.apiserver.settings import SimulatorSettings, WatchListMode
from loadtest.apiserver.simulator import Simulator
from tests.harness.apiserver_client import Api, names
from tests.loadtest.apiserver.conftest import pod

PODS = "/api/v1/pods"


async def test_a_list_has_the_form_of_its_type(api: Api, simulator: Simulator) -> None:
    status, pods = await api.get(PODS)
    assert status == 200
    assert list(pods) == ["kind", "apiVersion", "metadata", "items"]
    assert (pods["kind"], pods["apiVersion"]) == ("PodList", "v1")
    assert pods["metadata"] == {"resourceVersion": str(simulator.store.version)}
    assert names(pods) == [f"p{number}" for number in range(10)]
    assert all("kind" not in item and "apiVersion" not in item for item in pods["items"])
    simulator.store.install(resources.WIDGETS)
    simulator.store.create(resources.WIDGETS, {"metadata": {"name": "w", "namespace": "default"}})
    _, widgets = await api.get(resources.WIDGETS.path)
    assert list(widgets) == ["apiVersion", "items", "kind", "metadata"]
    assert widgets["items"][0]["kind"] == "Widget"


async def test_pages_are_one_snapshot_whatever_changes_between_them(api: Api, simulator: Simulator) -> None:
    store = simulator.store
    _, first = await api.get(PODS, limit=4)
    assert first["metadata"]["remainingItemCount"] == 6
    store.delete(resources.PODS, "default", "p5")
    store.create(resources.PODS, pod("p55"))
    store.patch(resources.PODS, "default", "p7", {"metadata": {"labels": {"changed": "yes"}}})
    _, second = await api.get(PODS, limit=4, **{"continue": first["metadata"]["continue"]})
    _, third = await api.get(PODS, limit=4, **{"continue": second["metadata"]["continue"]})
    assert names(first, second, third) == [f"p{number}" for number in range(10)]
    assert second["items"][3]["metadata"]["labels"] == {}
    versions = {page["metadata"]["resourceVersion"] for page in (first, second, third)}
    assert versions == {first["metadata"]["resourceVersion"]}
    assert "continue" not in third["metadata"]
    assert "remainingItemCount" not in third["metadata"]


async def test_a_token_expires_with_its_snapshot_and_offers_the_present(api: Api, simulator: Simulator) -> None:
    _, first = await api.get(PODS, limit=4)
    simulator.store.delete(resources.PODS, "default", "p5")
    simulator.store.compact()
    status, refusal = await api.get(PODS, limit=4, **{"continue": first["metadata"]["continue"]})
    assert (status, refusal["kind"], refusal["code"], refusal["reason"]) == (410, "Status", 410, "Expired")
    status, rest = await api.get(PODS, **{"continue": refusal["metadata"]["continue"]})
    assert status == 200
    assert names(rest) == ["p4", "p6", "p7", "p8", "p9"]
    assert rest["metadata"]["resourceVersion"] == str(simulator.store.version)


async def test_versions_and_matches(api: Api, simulator: Simulator) -> None:
    before = simulator.store.version
    simulator.store.delete(resources.PODS, "default", "p0")

    async def listed(**query: str | int) -> int:
        status, answer = await api.get(PODS, **query)
        return len(answer["items"]) if status == 200 else -status

    assert await listed(resourceVersion=before, resourceVersionMatch="Exact") == 10
    assert await listed(resourceVersion=before, resourceVersionMatch="NotOlderThan") == 9
    assert await listed(resourceVersion=before) == 9
    assert await listed(resourceVersion=0, limit=3) == 9
    assert await listed(resourceVersion=before, resourceVersionMatch="NotOlderThan", limit=3) == 3
    assert await listed(resourceVersionMatch="Exact") == -422
    assert await listed(**{"continue": "nonsense"}) == -400
    simulator.store.compact()
    assert await listed(resourceVersion=before, resourceVersionMatch="Exact") == -410
    assert await listed(resourceVersion=before, resourceVersionMatch="NotOlderThan") == 9


async def test_a_future_version_is_awaited_and_then_too_large(api: Api, simulator: Simulator) -> None:
    future = simulator.store.version + 3
    query: dict[str, str | int] = {"resourceVersion": future, "resourceVersionMatch": "NotOlderThan"}
    async with api.session.get(api.url + PODS, params=query) as response:
        refusal = await response.json()
        assert (response.status, response.headers["Retry-After"]) == (504, "1")
    assert (refusal["reason"], refusal["details"]["causes"][0]["reason"]) == ("Timeout", "ResourceVersionTooLarge")
    assert "Too large resource version" in refusal["message"]


async def test_a_namespace_s_list_and_single_objects(api: Api, simulator: Simulator) -> None:
    simulator.store.create(resources.PODS, pod("other", "second"))
    simulator.store.create(resources.NODES, {"metadata": {"name": "n1"}})
    assert names((await api.get("/api/v1/namespaces/second/pods"))[1]) == ["other"]
    status, one = await api.get("/api/v1/namespaces/second/pods/other")
    assert (status, list(one)[:3]) == (200, ["kind", "apiVersion", "metadata"])
    assert (await api.get("/api/v1/nodes/n1"))[0] == 200
    status, refusal = await api.get("/api/v1/namespaces/second/pods/missing")
    assert (status, refusal["reason"], refusal["message"]) == (404, "NotFound", 'pods "missing" not found')


@pytest.mark.parametrize(
    "path",
    ["/api/v1/things", "/api/v2", "/apis/discovery.k8s.io/v1/things", "/api/v1/namespaces/a/nodes", "/api/v1/pods/one"],
)
async def test_unknown_types_are_404_with_a_status(api: Api, path: str) -> None:
    status, refusal = await api.get(path)
    assert (status, refusal["kind"], refusal["reason"]) == (404, "Status", "NotFound")


@pytest.mark.parametrize(
    "path", ["/nothing", "/apis/example.com", "/apis/example.com/v1", "/apis/example.com/v1/things", "/metric"]
)
async def test_unknown_groups_and_pages_are_404_without_a_status(api: Api, path: str) -> None:
    async with api.session.get(api.url + path) as response:
        assert (response.status, response.content_type) == (404, "text/plain")


async def test_writes(api: Api, simulator: Simulator) -> None:
    path = "/api/v1/namespaces/default/pods"
    status, created = await api.send("POST", path, {"metadata": {"name": "new"}, "spec": {"nodeName": "n1"}})
    assert (status, created["metadata"]["namespace"]) == (201, "default")
    assert (await api.send("POST", path, {"metadata": {"name": "new"}}))[0] == 409
    status, patched = await api.send(
        "PATCH", f"{path}/new", {"spec": {"nodeName": "n2"}}, **{"Content-Type": "application/merge-patch+json"}
    )
    assert (status, patched["spec"]) == (200, {"nodeName": "n2"})
    status, conflict = await api.send("PUT", f"{path}/new", created)
    assert (status, conflict["reason"]) == (409, "Conflict")
    assert (await api.send("PUT", f"{path}/new", {**patched, "spec": {}}))[1]["spec"] == {}
    assert (await api.send("DELETE", f"{path}/new"))[0] == 200
    assert (await api.send("DELETE", f"{path}/new"))[0] == 404
    assert (await api.send("PUT", f"{path}/new", {"metadata": {"name": "else"}}))[0] == 400
    assert (await api.send("POST", path, ["no object"]))[0] == 400
    assert (await api.send("PATCH", f"{path}/p1", [], **{"Content-Type": "application/json-patch+json"}))[0] == 400
    assert (await api.send("PATCH", f"{path}/p1", {}, **{"Content-Type": "application/apply-patch+yaml"}))[0] == 415
    assert (await api.send("PUT", path, {}))[0] == 405
    assert simulator.store.count(resources.PODS) == 10


async def test_a_deletion_may_name_the_version_and_identity_it_means(api: Api, simulator: Simulator) -> None:
    path = "/api/v1/namespaces/default/pods/p1"
    _, found = await api.get(path)
    uid, version = found["metadata"]["uid"], found["metadata"]["resourceVersion"]
    for wrong in ({"uid": "other"}, {"uid": uid, "resourceVersion": "1"}):
        status, refusal = await api.send("DELETE", path, {"preconditions": wrong})
        assert (status, refusal["reason"]) == (409, "Conflict")
    assert (await api.send("DELETE", path, ["preconditions"]))[0] == 400
    assert (await api.send("DELETE", path, {"preconditions": {"uid": uid, "resourceVersion": version}}))[0] == 200


async def test_a_list_may_be_restricted_by_labels(api: Api, simulator: Simulator) -> None:
    simulator.store.create(resources.PODS, pod("both", a="1", b="2"))
    simulator.store.create(resources.PODS, pod("one", a="1"))
    assert names((await api.get(PODS, labelSelector="a=1"))[1]) == ["both", "one"]
    assert names((await api.get(PODS, labelSelector="b=2,a=1"))[1]) == ["both"]


async def test_a_pod_s_annotations_may_be_set_by_way_of_its_status(api: Api, simulator: Simulator) -> None:
    path = "/api/v1/namespaces/default/pods/p1"
    patch = {"metadata": {"annotations": {"a": "b"}}}
    kind = "application/strategic-merge-patch+json"
    status, found = await api.send("PATCH", f"{path}/status", patch, **{"Content-Type": kind})
    assert (status, found["metadata"]["annotations"]) == (200, {"a": "b"})
    other = {"metadata": {"uid": "of another pod of this name"}}
    status, refusal = await api.send("PATCH", f"{path}/status", other, **{"Content-Type": kind})
    assert (status, refusal["reason"]) == (422, "Invalid")


async def test_discovery_and_health(api: Api, simulator: Simulator) -> None:
    simulator.store.install(resources.WIDGETS)
    assert (await api.get("/api"))[1]["versions"] == ["v1"]
    assert "loadtest.example.com" in [group["name"] for group in (await api.get("/apis"))[1]["groups"]]
    assert (await api.get("/apis/loadtest.example.com"))[1]["preferredVersion"]["version"] == "v1"
    _, listed = await api.get("/apis/loadtest.example.com/v1")
    assert [(entry["name"], entry["kind"]) for entry in listed["resources"]] == [("widgets", "Widget")]
    _, core = await api.get("/api/v1")
    assert core["groupVersion"] == "v1"
    assert {"pods": True, "nodes": False}.items() <= {e["name"]: e["namespaced"] for e in core["resources"]}.items()
    assert (await api.get("/version"))[1]["major"] == "1"
    for path in ("/readyz", "/livez", "/healthz"):
        async with api.session.get(api.url + path) as response:
            assert (response.status, await response.text()) == (200, "ok")


async def test_large_lists_are_compressed_for_clients_that_accept_it(api: Api, simulator: Simulator) -> None:
    simulator.store.create(
        resources.CONFIG_MAPS, {"metadata": {"name": "big", "namespace": "a"}, "data": "x" * 200_000}
    )
    path = api.url + resources.CONFIG_MAPS.path
    async with api.session.get(path) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert len((await response.json())["items"][0]["data"]) == 200_000
    async with api.session.get(path, headers={"Accept-Encoding": "identity"}) as response:
        assert "Content-Encoding" not in response.headers
        assert len(await response.read()) > handlers.GZIP_FROM_BYTES


async def test_requests_and_open_watches_are_counted(api: Api, simulator: Simulator) -> None:
    await api.get(PODS)
    await api.get("/api/v1/namespaces/default/pods/p1")
    await api.get("/api/v1/namespaces/default/pods/missing")
    watch_list = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    async with api.watch(PODS) as plain, api.watch(PODS, **watch_list) as listing:
        await plain.names(10)
        await listing.names(10)
        async with api.session.get(api.url + "/metrics") as response:
            metrics = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#")
        assert simulator.counters.watches_by_resource() == {"core/v1/pods": 2}
    assert simulator.counters.requests == {
        ("GET", resources.PODS, 200): 1,
        ("GET", resources.PODS, 404): 1,
        ("LIST", resources.PODS, 200): 1,
        ("WATCH", resources.PODS, 200): 1,
        ("WATCHLIST", resources.PODS, 200): 1,
    }
    series = 'component="apiserver",group="",resource="pods",subresource="",verb="WATCH",version="v1"'
    assert metrics[f"apiserver_longrunning_requests{{{series}}}"] == "2"
    assert metrics[f'apiserver_request_total{{code="200",{series}}}'] == "2"


async def test_with_the_feature_off_watch_list_is_invalid() -> None:
    settings = SimulatorSettings(watch_list=WatchListMode.OFF)
    async with Simulator(settings) as simulator, aiohttp.ClientSession() as session:
        api = Api(session, simulator.url)
        query = {"watch": "true", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        status, refusal = await api.get(PODS, **query)
        assert (status, refusal["reason"]) == (422, "Invalid")
