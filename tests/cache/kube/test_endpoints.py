"""The endpoints of a Service, from a scripted API server."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache.kube import api, discovery, endpoints
from tests.harness.scripted_server import ScriptedServer, session_to


@pytest.fixture
async def session(server: ScriptedServer) -> AsyncIterator[api.KubeApi]:
    opened = session_to(server)
    await opened.start()
    yield opened
    await opened.close()


async def listed(session: api.KubeApi, server: ScriptedServer, items: Any) -> list[endpoints.Endpoint]:
    server.script.append(server.body(json.dumps({"items": items}).encode()))
    return await endpoints.of_service(session, "calico-system", "calico-typha", answer_seconds=30.0)


async def test_endpoints_with_their_ports_and_pods(server: ScriptedServer, session: api.KubeApi) -> None:
    pod = {"kind": "Pod", "name": "calico-typha-1"}
    slices = [
        {
            "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.2"], "targetRef": pod, "conditions": {"ready": False}},
                {"addresses": ["10.0.0.3"], "targetRef": {"kind": "Node", "name": "n"}},
            ],
            "ports": [{"name": "calico-typha", "port": 5473}, {"port": 9}],
        },
        {"endpoints": None, "ports": None},
        {"endpoints": [{"addresses": ["10.0.0.4"]}], "ports": []},
    ]
    named = {"calico-typha": 5473, "": 9}
    assert await listed(session, server, slices) == [
        endpoints.Endpoint(("10.0.0.1", "10.0.0.2"), "calico-typha-1", named),
        endpoints.Endpoint(("10.0.0.3",), "", named),
        endpoints.Endpoint(("10.0.0.4",), "", {}),
    ]
    [request] = server.requests
    assert request.path == "/apis/discovery.k8s.io/v1/namespaces/calico-system/endpointslices"
    assert request.query == {"labelSelector": "kubernetes.io/service-name=calico-typha"}


@pytest.mark.parametrize("items", [7, [7], [{"endpoints": 7}], [{"endpoints": [{"addresses": [7]}]}]])
async def test_slices_of_another_shape(server: ScriptedServer, session: api.KubeApi, items: Any) -> None:
    with pytest.raises(api.Interrupted, match="EndpointSlices cannot be read"):
        await listed(session, server, items)


async def test_a_refusal(server: ScriptedServer, session: api.KubeApi) -> None:
    server.script = [server.body(b"no", status=403)]
    with pytest.raises(discovery.Refused, match="403"):
        await endpoints.of_service(session, "a", "b", answer_seconds=30.0)


@pytest.mark.parametrize(("namespace", "name"), [("../../secrets", "b"), ("a", "b?c"), ("", "b"), ("a", "b,c=d")])
async def test_what_is_no_name_asks_nothing(
    server: ScriptedServer, session: api.KubeApi, namespace: str, name: str
) -> None:
    with pytest.raises(ValueError, match="not a name"):
        await endpoints.of_service(session, namespace, name, answer_seconds=30.0)
    assert server.requests == []
