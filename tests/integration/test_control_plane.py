"""The real control plane: the behaviour that other tests and the acceptance runs rely on."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from loadtest.environment.control_plane import USER_TOKEN, ControlPlane, ControlPlaneError

pytestmark = pytest.mark.control_plane

POD = {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "main", "image": "none"}]}}


def create_pod(plane: ControlPlane) -> tuple[str, str]:
    """Create a pod in a new namespace. Returns the path and the version of the pod."""
    namespace = f"test-{uuid.uuid4().hex[:12]}"
    plane.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    pods = f"/api/v1/namespaces/{namespace}/pods"
    created = plane.create(pods, POD)
    return f"{pods}/web", created["metadata"]["resourceVersion"]


def first_watch_event(plane: ControlPlane, path: str) -> Any:
    """The first event of a watch that ends after one second, or None."""
    answer = plane.request("GET", path + "&watch=true&timeoutSeconds=1")
    assert answer.status == 200
    lines = answer.body.splitlines()
    return json.loads(lines[0]) if lines else None


def test_objects_survive_a_kill_of_the_api_server(control_plane: ControlPlane) -> None:
    pod, version = create_pod(control_plane)

    control_plane.kill()
    with pytest.raises(OSError, match="refused"):
        control_plane.request("GET", pod)
    control_plane.restart()

    answer = control_plane.request("GET", pod)
    assert answer.status == 200
    assert answer.json()["metadata"]["resourceVersion"] == version


def test_versions_from_before_expire_history_are_too_old(control_plane: ControlPlane) -> None:
    pod, version = create_pod(control_plane)
    watch = f"/api/v1/pods?resourceVersion={version}"
    assert first_watch_event(control_plane, watch) is None

    first_good_version = control_plane.expire_history()

    event = first_watch_event(control_plane, watch)
    assert event["type"] == "ERROR"
    assert event["object"]["code"] == 410
    assert first_watch_event(control_plane, f"/api/v1/pods?resourceVersion={first_good_version}") is None
    assert control_plane.request("GET", pod).status == 200


def test_a_user_without_rights_gets_403(control_plane: ControlPlane) -> None:
    assert control_plane.request("GET", "/api/v1/pods", token=USER_TOKEN).status == 403
    assert control_plane.request("GET", "/api/v1/pods", token="unknown").status == 401


def test_a_rejected_object_raises_an_error_with_the_reason(control_plane: ControlPlane) -> None:
    with pytest.raises(ControlPlaneError, match=r"404.*no-such-namespace"):
        control_plane.create("/api/v1/namespaces/no-such-namespace/pods", POD)


def test_metrics_count_requests(control_plane: ControlPlane) -> None:
    labels = {"verb": "LIST", "resource": "pods", "code": "200"}
    before = control_plane.metric_total("apiserver_request_total", **labels)

    for _ in range(3):
        assert control_plane.request("GET", "/api/v1/pods?limit=1").status == 200

    assert control_plane.metric_total("apiserver_request_total", **labels) == before + 3


async def test_kubeconfig_files_are_enough_to_connect(control_plane: ControlPlane) -> None:
    for path, status in ((control_plane.kubeconfig, 200), (control_plane.user_kubeconfig, 403)):
        config = yaml.safe_load(await asyncio.to_thread(path.read_text))
        [cluster], [user] = config["clusters"], config["users"]
        headers = {"Authorization": f"Bearer {user['user']['token']}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(cluster["cluster"]["server"] + "/api/v1/nodes", ssl=control_plane.tls_context()) as answer,
        ):
            assert answer.status == status


def test_two_control_planes_run_side_by_side_and_stop_completely(control_plane: ControlPlane, tmp_path: Path) -> None:
    with ControlPlane(tmp_path / "second") as second:
        pod, _ = create_pod(second)
        assert control_plane.request("GET", pod).status == 404

    with pytest.raises(OSError, match="refused"):
        second.request("GET", pod)
    second.stop()
