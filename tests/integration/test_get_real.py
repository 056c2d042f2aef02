"""`typha get` and `typha explain` beside a real API server: one object of each kind, compared with what was applied."""

import asyncio
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cache.feeds.calico import syncers
from tests.harness import admin_stand, calico_cluster, one_of_each, served
from tests.harness.calico_cluster import RealCluster

pytestmark = [pytest.mark.control_plane, pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE_SECONDS = calico_cluster.PATIENCE_SECONDS


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[RealCluster]:
    with calico_cluster.opened(tmp_path) as running:
        yield running


def apply(cluster: RealCluster, example: one_of_each.Example) -> dict[str, Any]:
    """Create the object, with its status if it has one; returns it as the API server has it."""
    namespace = example.metadata.get("namespace")
    root = "/api/v1" if example.api_version == "v1" else f"/apis/{example.api_version}"
    collection = f"{root}/{f'namespaces/{namespace}/' if namespace else ''}{example.resource}"
    path = f"{collection}/{example.metadata['name']}"
    answer = cluster.plane.request("POST", collection, example.body)
    if answer.status == 409:  # the service was first, or the API server itself
        current = cluster.plane.request("GET", path).json()
        answer = cluster.plane.request("PUT", path, {**current, **example.content})
    assert answer.status in (200, 201), (example.kind, answer.body)
    if example.resource == "pods":
        answer = cluster.plane.request("PUT", f"{path}/status", {**answer.json(), "status": example.content["status"]})
        assert answer.status == 200, answer.body
    found: dict[str, Any] = cluster.plane.request("GET", path).json()
    return found


def apply_all(cluster: RealCluster) -> dict[str, dict[str, Any]]:
    """One object of each kind, namespaces first."""
    examples = sorted(one_of_each.EXAMPLES, key=lambda one: one.resource != "namespaces")
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}
    applied = {}
    for example in examples:
        applied[example.kind] = apply(cluster, example)
        if example.resource == "namespaces":
            answer = cluster.plane.request("POST", "/api/v1/namespaces/prod/serviceaccounts", account)
            assert answer.status == 201, answer.body
    return applied


async def test_one_object_of_each_kind(
    cluster: RealCluster, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "admin.sock")
    await asyncio.to_thread(cluster.install, *calico_cluster.OTHER_GROUPS, syncers.Group.V3.value)
    async with served.serving(cluster, "--workers", "1", TYPHA_ADMINSOCKET=path) as service:
        await service.logged("Admin socket is listening")
        applied = await asyncio.to_thread(apply_all, cluster)

        async def command(*arguments: str) -> tuple[int, str]:
            code, output, _ = await admin_stand.run(capsys, *arguments, "--server", path)
            return code, output

        for example in one_of_each.EXAMPLES:
            deadline = time.monotonic() + PATIENCE_SECONDS
            wanted = applied[example.kind]["metadata"]["resourceVersion"]
            while True:  # until the service has the object as it is now
                code, output = await command("get", example.kind, example.name, "-A", "-o", "json")
                found = json.loads(output) if code == 0 else {"metadata": {}}
                if found["metadata"].get("resourceVersion", "").partition("/")[0] == wanted:
                    break
                assert time.monotonic() < deadline, (example.kind, wanted, output)
                await asyncio.sleep(0.2)
            assert example.specification(found) == example.spec, example.kind
            assert found["metadata"].get("namespace") == example.metadata.get("namespace")

        [pod] = [one for one in one_of_each.EXAMPLES if one.resource == "pods"]
        code, output = await command("explain", "pod", pod.metadata["name"], "-n", pod.metadata["namespace"], "--json")
        [explained] = json.loads(output)["objects"]
        [fate] = explained["feeds"]
        [key] = fate["keys"]
        assert (code, key["revision"]) == (0, applied["WorkloadEndpoint"]["metadata"]["resourceVersion"])
        assert abs(key["at"] - time.time()) < PATIENCE_SECONDS
