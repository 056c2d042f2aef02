"""Tests of loadtest.apiserver.watching over HTTP: initial events, resumed watches, bookmarks, ends."""

import asyncio
import json
import socket

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest.apiserver import resources
from loadtest.apiserver.settings import SimulatorSettings, WatchListMode
from loadtest.apiserver.simulator import Simulator
from tests.harness.apiserver_client import Api, JsonObject, until
from tests.loadtest.apiserver.conftest import pod
from tests.loadtest.apiserver.test_store import STEPS, step

PODS = "/api/v1/pods"
WATCH_LIST = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}


async def test_a_watch_resumes_exactly_where_it_was(api: Api, simulator: Simulator) -> None:
    store = simulator.store
    begin = store.version
    store.create(resources.PODS, pod("new"))
    middle = store.version
    store.patch(resources.PODS, "default", "new", {"metadata": {"labels": {"a": "b"}}})
    store.create(resources.NODES, {"metadata": {"name": "n1"}})
    store.delete(resources.PODS, "default", "p3")
    async with api.watch(PODS, resourceVersion=begin) as watch:
        assert await watch.names(3) == ["ADDED new", "MODIFIED new", "DELETED p3"]
        store.delete(resources.PODS, "default", "new")
        kind, value = await watch.event()
        assert (kind, value["metadata"]["resourceVersion"]) == ("DELETED", str(store.version))
        assert list(value)[:2] == ["kind", "apiVersion"]
    async with api.watch(PODS, resourceVersion=middle) as watch:
        assert await watch.names(3) == ["MODIFIED new", "DELETED p3", "DELETED new"]
    await until(lambda: not simulator.counters.watches_by_resource())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, STEPS, st.integers(1, 3), st.booleans())
async def test_list_and_watch_reproduce_the_store(
    before: list[tuple[str, str, int]], after: list[tuple[str, str, int]], limit: int, watch_list: bool
) -> None:
    async with Simulator() as simulator, aiohttp.ClientSession() as session:
        api, store = Api(session, simulator.url), simulator.store
        for entry in before:
            step(store, *entry)
        mirror: dict[str, JsonObject] = {}
        if watch_list:
            query: dict[str, str | int] = dict(WATCH_LIST)
        else:
            pages = await api.pages(PODS, limit=limit)
            mirror = {item["metadata"]["uid"]: item for page in pages for item in page["items"]}
            query = {"resourceVersion": pages[-1]["metadata"]["resourceVersion"]}
        half = len(after) // 2
        for entry in after[:half]:
            step(store, *entry)
        async with api.watch(PODS, **query) as watch:
            for entry in after[half:]:
                step(store, *entry)
            last = json.loads(store.create(resources.PODS, pod("last")))["metadata"]["uid"]
            while last not in mirror:
                kind, value = await watch.event()
                del value["kind"], value["apiVersion"]
                if kind == "DELETED":
                    del mirror[value["metadata"]["uid"]]
                elif kind != "BOOKMARK":
                    mirror[value["metadata"]["uid"]] = value
        expected = [json.loads(item) for item in store.objects(resources.PODS).values()]
        assert sorted(mirror.values(), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}])
async def test_without_a_version_the_state_comes_first(api: Api, simulator: Simulator, query: dict[str, str]) -> None:
    async with api.watch(PODS, **query) as watch:
        assert await watch.names(10) == [f"ADDED p{number}" for number in range(10)]
        simulator.store.create(resources.PODS, pod("new"))
        assert await watch.names(1) == ["ADDED new"]


async def test_watch_list_ends_its_initial_events_with_a_bookmark(api: Api, simulator: Simulator) -> None:
    async with api.watch(PODS, **WATCH_LIST) as watch:
        assert await watch.names(10) == [f"ADDED p{number}" for number in range(10)]
        kind, value = await watch.event()
        assert (kind, value["kind"]) == ("BOOKMARK", "Pod")
        assert value["metadata"] == {
            "resourceVersion": str(simulator.store.version),
            "annotations": {"k8s.io/initial-events-end": "true"},
        }
        simulator.store.delete(resources.PODS, "default", "p0")
        assert await watch.names(1) == ["DELETED p0"]


async def test_initial_events_can_be_declined(api: Api, simulator: Simulator) -> None:
    query = {**WATCH_LIST, "sendInitialEvents": "false"}
    async with api.watch(PODS, **query) as watch:
        simulator.store.delete(resources.PODS, "default", "p0")
        assert await watch.names(1) == ["DELETED p0"]


async def test_a_server_that_ignores_watch_list_never_ends_its_initial_events() -> None:
    settings = SimulatorSettings(watch_list=WatchListMode.IGNORED, bookmark_period_seconds=0.01)
    async with Simulator(settings) as simulator, aiohttp.ClientSession() as session:
        simulator.store.create(resources.PODS, pod("one"))
        async with Api(session, simulator.url).watch(PODS, **WATCH_LIST) as watch:
            assert await watch.names(1) == ["ADDED one"]
            kind, value = await watch.event()
            assert (kind, value["metadata"]) == ("BOOKMARK", {"resourceVersion": "2"})


async def test_a_version_too_old_is_an_error_event(api: Api, simulator: Simulator) -> None:
    begin = simulator.store.version
    simulator.store.create(resources.PODS, pod("new"))
    simulator.store.compact()
    async with api.watch(PODS, resourceVersion=begin) as watch:
        kind, status = await watch.event()
        assert (kind, status["kind"], status["code"], status["reason"]) == ("ERROR", "Status", 410, "Expired")
        assert await watch.line() == b""
    async with api.watch(PODS, resourceVersion=simulator.store.version) as watch:
        simulator.store.create(resources.PODS, pod("newer"))
        assert await watch.names(1) == ["ADDED newer"]


async def test_history_is_bounded() -> None:
    async with Simulator(SimulatorSettings(history_events=3)) as simulator, aiohttp.ClientSession() as session:
        api, store = Api(session, simulator.url), simulator.store
        begin = store.version
        for number in range(4):
            store.create(resources.PODS, pod(f"p{number}"))
        async with api.watch(PODS, resourceVersion=begin) as watch:
            assert (await watch.event())[1]["code"] == 410
        async with api.watch(PODS, resourceVersion=begin + 1) as watch:
            assert await watch.names(3) == ["ADDED p1", "ADDED p2", "ADDED p3"]


async def test_a_watch_from_a_future_version_is_silent_and_a_watch_list_refused(api: Api, simulator: Simulator) -> None:
    store = simulator.store
    future = store.version + 1
    async with api.watch(PODS, resourceVersion=future) as watch:
        store.create(resources.PODS, pod("hidden"))
        store.create(resources.PODS, pod("seen"))
        assert await watch.names(1) == ["ADDED seen"]
    async with api.watch(PODS, resourceVersion=store.version + 5, **WATCH_LIST) as watch:
        kind, status = await watch.event()
        assert (kind, status["code"]) == ("ERROR", 504)
        assert status["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


async def test_bookmarks_carry_the_newest_version_on_request() -> None:
    async with (
        Simulator(SimulatorSettings(bookmark_period_seconds=0.02)) as simulator,
        aiohttp.ClientSession() as session,
    ):
        api, store = Api(session, simulator.url), simulator.store
        version = store.version
        async with api.watch(PODS, resourceVersion=version, allowWatchBookmarks="true") as watch:
            store.create(resources.NODES, {"metadata": {"name": "n1"}})
            kind, value = await watch.event()
            assert (kind, value["metadata"]) == ("BOOKMARK", {"resourceVersion": str(version + 1)})
        async with api.watch(PODS, resourceVersion=version) as silent:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(silent.response.content.readline(), 0.1)


async def test_a_watch_ends_cleanly_at_its_timeout(api: Api, simulator: Simulator) -> None:
    async with api.watch(PODS, resourceVersion=simulator.store.version, timeoutSeconds=1) as watch:
        assert await watch.line() == b""
    assert simulator.counters.watches_ended["eof"] == 1


async def test_a_watch_of_one_namespace(api: Api, simulator: Simulator) -> None:
    begin = simulator.store.version
    simulator.store.create(resources.PODS, pod("other", "second"))
    async with api.watch("/api/v1/namespaces/second/pods", resourceVersion=begin) as watch:
        simulator.store.create(resources.PODS, pod("hidden"))
        simulator.store.create(resources.PODS, pod("third", "second"))
        assert await watch.names(2) == ["ADDED other", "ADDED third"]


async def test_a_slow_watch_is_ended_and_others_are_not() -> None:
    settings = SimulatorSettings(watch_buffer_bytes=200_000)
    async with Simulator(settings) as simulator, aiohttp.ClientSession() as session:
        store = simulator.store
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        with slow:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", simulator.port))
            await loop.sock_sendall(
                slow, b"GET /api/v1/configmaps?watch=1&resourceVersion=1 HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            async with (
                Api(session, simulator.url).watch(resources.CONFIG_MAPS.path, resourceVersion=1) as watch,
                asyncio.timeout(180),
            ):
                number = 0
                while not simulator.counters.watches_ended["slow"]:
                    number += 1
                    metadata = {"name": f"c{number}", "namespace": "a"}
                    store.create(resources.CONFIG_MAPS, {"metadata": metadata, "data": "x" * 50_000})
                    assert await watch.names(1) == [f"ADDED c{number}"]
        assert simulator.counters.watches_by_resource() in ({}, {"core/v1/configmaps": 1})
