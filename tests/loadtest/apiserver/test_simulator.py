"""Tests of the control endpoint of loadtest.apiserver.simulator."""

import asyncio
from typing import Any

import pytest

from loadtest.apiserver import resources
from loadtest.apiserver.population import Population
from loadtest.apiserver.simulator import Simulator
from tests.harness.apiserver_client import Api, until

TYPE = {"group": "new.example.com", "version": "v1", "name": "gadgets", "kind": "Gadget", "custom": True}


async def test_churn_is_started_and_stopped(api: Api, simulator: Simulator) -> None:
    status, answer = await api.send("POST", "/_sim/churn", {"rate_per_second": 500, "types": {"pods": 1}})
    assert (status, answer["running"]) == (200, True)
    version = simulator.store.version
    await until(lambda: simulator.store.version > version + 5)
    _, answer = await api.send("DELETE", "/_sim/churn")
    assert answer["version"] == simulator.store.version
    assert answer["running"] is False
    _, stats = await api.get("/_sim/stats")
    assert stats["version"] == answer["version"]


async def test_a_burst(api: Api, simulator: Simulator) -> None:
    simulator.populate(Population(nodes=1, pods=20, namespaces=1, services=0, widgets=0))
    version = simulator.store.version
    async with api.watch("/api/v1/pods", resourceVersion=version) as watch, asyncio.TaskGroup() as group:
        burst = group.create_task(api.send("POST", "/_sim/burst", {"count": 10_000, "types": {"pods": 1}}))
        for _ in range(10_000):
            _, value = await watch.event()
    assert burst.result() == (200, {"version": version + 10_000})
    assert value["metadata"]["resourceVersion"] == str(version + 10_000)


async def test_faults_are_accepted_shown_and_removed(api: Api) -> None:
    fault = {"kind": "error", "code": 500, "resource": "pods"}
    assert (await api.send("POST", "/_sim/faults", [fault]))[1]["accepted"] == 1
    assert (await api.get("/api/v1/pods"))[0] == 500
    _, stats = await api.get("/_sim/stats")
    assert stats["faults_active"] == [fault]
    assert stats["faults_applied"][0].items() >= fault.items()
    await api.send("DELETE", "/_sim/faults")
    assert (await api.get("/api/v1/pods"))[0] == 200


async def test_a_restart_is_answered_before_it_happens(api: Api) -> None:
    assert (await api.send("POST", "/_sim/faults", {"kind": "restart", "duration_seconds": 0.01}))[0] == 200


async def status_of(api: Api, path: str) -> int:
    async with api.session.get(api.url + path) as response:
        return response.status


async def test_types_come_and_go(api: Api, simulator: Simulator) -> None:
    path = "/apis/new.example.com/v1/gadgets"
    assert await status_of(api, path) == 404
    assert (await api.send("POST", "/_sim/types", TYPE))[1] == {"path": path}
    assert (await api.get(path))[1]["items"] == []
    gadget = {"metadata": {"name": "g", "namespace": "a"}}
    assert (await api.send("POST", "/apis/new.example.com/v1/namespaces/a/gadgets", gadget))[0] == 201
    async with api.watch(path) as watch:
        assert await watch.names(1) == ["ADDED g"]
        await api.send("DELETE", "/_sim/types", TYPE)
        assert await watch.line() == b""
    assert await status_of(api, path) == 404
    assert resources.PODS in simulator.store.resources()


async def test_objects_are_created_and_all_deleted_at_once(api: Api, simulator: Simulator) -> None:
    await api.send("POST", "/_sim/objects", {"type": "serviceaccounts", "count": 30})
    assert simulator.store.count(resources.SERVICE_ACCOUNTS) == 30
    version = simulator.store.version
    await api.send("DELETE", "/_sim/objects", {"type": "serviceaccounts"})
    assert simulator.store.count(resources.SERVICE_ACCOUNTS) == 0
    assert (await api.get("/api/v1/serviceaccounts", resourceVersion=version, resourceVersionMatch="Exact"))[0] == 410


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/_sim/churn", {"rate_per_second": -1}),
        ("POST", "/_sim/churn", {"types": {"widgets": 1}}),
        ("POST", "/_sim/burst", {"count": 0}),
        ("POST", "/_sim/burst", {}),
        ("POST", "/_sim/faults", {"kind": "dragon"}),
        ("POST", "/_sim/faults", {"kind": "roll-back", "count": 1}),
        ("DELETE", "/_sim/types", TYPE),
        ("POST", "/_sim/types", []),
        ("DELETE", "/_sim/objects", {"type": "nothing"}),
    ],
)
async def test_an_impossible_request_is_400(api: Api, simulator: Simulator, method: str, path: str, body: Any) -> None:
    simulator.store.compact()
    status, answer = await api.send(method, path, body)
    assert status == 400
    assert answer["error"]


async def test_unknown_controls(api: Api) -> None:
    assert (await api.get("/_sim/nothing"))[0] == 404
