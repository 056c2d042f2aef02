"""Calico's feeds on a real API server: what agents get is what the API server's lists convert to."""

import asyncio
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from cache.calico import syncers
from loadtest import calicocrds, controlplane
from tests.typha import served
from typha import calico_objects

pytestmark = [pytest.mark.control_plane, pytest.mark.slow, pytest.mark.timeout(300)]

CORPUS = pathlib.Path(__file__).parents[1] / "golden" / "corpus"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
OTHER_GROUPS = ("policy.networking.k8s.io/v1alpha2", "kubevirt.io/v1")
TYPHA = (sys.executable, "-c", "from typha import cli; cli.main()")
PATIENCE_SECONDS = 60.0
BUILT_IN = {
    ("v1", "Pod"): "pods",
    ("v1", "Node"): "nodes",
    ("v1", "Namespace"): "namespaces",
    ("v1", "ServiceAccount"): "serviceaccounts",
    ("v1", "Service"): "services",
    ("v1", "Binding"): "bindings",
    ("discovery.k8s.io/v1", "EndpointSlice"): "endpointslices",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicies",
}


class RealCluster(served.Cluster):
    """A real API server in place of the simulated one, and no feeds file."""

    def __init__(self, folder: pathlib.Path, plane: controlplane.ControlPlane) -> None:
        super().__init__(folder)
        self.plane = plane
        self.kubeconfig = plane.kubeconfig
        self.plurals = dict(BUILT_IN)
        self.refused = 0

    def variables(self) -> dict[str, str]:
        """As of the simulated one, less the feeds file; health on a port of its own."""
        found = {name: value for name, value in super().variables().items() if name != "TYPHA_FEEDSFILE"}
        return found | {"TYPHA_HEALTHENABLED": "true", "TYPHA_HEALTHHOST": "127.0.0.1", "TYPHA_HEALTHPORT": "0"}

    def install(self, *groups: str) -> None:
        """Custom resources, served when this returns."""
        for item in calicocrds.definitions(*groups):
            self.plane.create(DEFINITIONS, item)
            group, version = item["spec"]["group"], item["spec"]["versions"][0]["name"]
            names = item["spec"]["names"]
            self.plurals[f"{group}/{version}", names["kind"]] = names["plural"]
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self.plane.request("GET", f"/apis/{group}/{version}/{names['plural']}").status != 200:
                assert time.monotonic() < deadline, names

    def collection(self, item: dict[str, Any]) -> str:
        """Where objects like this one are."""
        version, namespace = item["apiVersion"], item["metadata"].get("namespace")
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        middle = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{middle}/{self.plurals[version, item['kind']]}"

    def play(self, steps: list[dict[str, Any]]) -> None:
        """Writes what the steps of a recording say; what the API server refuses is counted."""
        for step in steps:
            for item in step["objects"]:
                if (item["apiVersion"], item["kind"]) not in self.plurals:
                    continue  # recorded to show that it is no matter
                if item["kind"] == "Namespace" and step["op"] == "delete":
                    continue  # nobody would finish it
                self.refused += self._write(step["op"], item) >= 400

    def _write(self, operation: str, item: dict[str, Any]) -> int:
        collection = self.collection(item)
        if operation == "create":
            return self.plane.request("POST", collection, item).status
        path = f"{collection}/{item['metadata']['name']}"
        if operation == "delete":
            return self.plane.request("DELETE", path, {"gracePeriodSeconds": 0}).status
        current = self.plane.request("GET", path)
        if current.status != 200:
            return current.status
        if operation == "status":
            return self.plane.request("PUT", f"{path}/status", {**current.json(), "status": item["status"]}).status
        metadata = {**item["metadata"], "resourceVersion": current.json()["metadata"]["resourceVersion"]}
        return self.plane.request("PUT", path, {**item, "metadata": metadata}).status

    def lists(self, group: syncers.Group) -> bytes:
        """The API server's lists of everything that a feed takes."""
        types = {source.type for spec in syncers.specs(group) for source in spec.sources}
        answers = [self.plane.request("GET", type.list_path) for type in types]
        assert {answer.status for answer in answers} == {200}
        return b"\n".join(answer.body for answer in answers)


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[RealCluster]:
    """A control plane of its own: custom resources would be there for everybody."""
    try:
        binaries = controlplane.find_binaries()
    except controlplane.BinariesMissingError as error:
        pytest.fail(str(error), pytrace=False)
    with controlplane.ControlPlane(tmp_path / "plane", binaries=binaries) as plane:
        yield RealCluster(tmp_path, plane)


async def output_of(*arguments: str, data: bytes = b"") -> tuple[int, list[dict[str, Any]], str]:
    """A command's exit code, the lines of its output, and what it complains of."""
    process = await asyncio.create_subprocess_exec(
        *TYPHA,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "CALICO_API_GROUP"},
    )
    output, errors = await process.communicate(data)
    return process.returncode or 0, [json.loads(line) for line in output.splitlines()], errors.decode()


Map = dict[str, tuple[str | None, str, str]]


def content(lines: list[dict[str, Any]]) -> Map:
    """Key to value, revision and V3ResourceVersion; an empty value is none to the original's agents."""
    return {
        line["key"]: (line["value"] or None, line["revision"], line["v3_resource_version"])
        for line in lines
        if "key" in line
    }


async def watched(address: str, feed: str) -> Map:
    code, lines, errors = await output_of("watch", address, "--feed", feed, "--until-in-sync", "--json")
    assert code == 0, errors
    return content(lines)


async def converted(cluster: RealCluster, group: syncers.Group, feed: str) -> Map:
    lists = await asyncio.to_thread(cluster.lists, group)
    code, lines, errors = await output_of("convert", "--feed", feed, "--api-group", group.value, data=lists)
    assert code in (0, 1), errors  # 1: an object was refused, which is absent here as there
    return content(lines)


def values(of: Map) -> dict[str, str | None]:
    return {key: value for key, (value, _, _) in of.items()}


async def agree(cluster: RealCluster, address: str, group: syncers.Group) -> dict[str, Map]:
    """Returns when what the service sends equals what the lists convert to, in all four feeds."""
    found = {}
    for feed in syncers.NAMES:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            seen = await watched(address, feed)
            wanted = await converted(cluster, group, feed)
            if values(seen) == values(wanted):
                break
            assert time.monotonic() < deadline, sorted(set(values(seen).items()) ^ set(values(wanted).items()))[:6]
        for key, (_, revision, v3_resource_version) in seen.items():
            assert is_same_or_older(revision, wanted[key][1]), key
            assert v3_resource_version in {wanted[key][2], "/"} or is_same_or_older(v3_resource_version, wanted[key][2])
        found[feed] = seen
    return found


def is_same_or_older(revision: str, newest: str) -> bool:
    return int(revision.strip("/") or 0) <= int(newest.strip("/") or 0)


def recorded_steps(group: syncers.Group) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What all recordings of a group write first, and what they write then."""
    first, later = [], []
    for path in sorted(CORPUS.glob("*.json")):
        recording = json.loads(path.read_text())
        if recording["api_group"] == group.value:
            steps = recording["steps"]
            first += steps[:1]
            later += steps[1:]
    return first, later


async def becomes_ready(service: served.Service, status: int) -> None:
    """Returns when the health page answers so."""
    line = (await service.logged(r'.*server="health".*'))[0]
    port = line.partition("port=")[2].split()[0]
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{port}/readiness") as response:
                if response.status == status:
                    return
                assert time.monotonic() < deadline, await response.text()
            await asyncio.sleep(0.1)


async def test_group_v1_from_an_empty_cluster_on(cluster: RealCluster) -> None:
    v1 = syncers.Group.V1
    await asyncio.to_thread(cluster.install, *OTHER_GROUPS)
    async with served.serving(cluster, "--workers", "1") as service:
        address = await service.address()
        await service.logged("Chose Calico's API group.*crd.projectcalico.org/v1.*neither group")
        await service.logged("Calico's feeds wait")
        await becomes_ready(service, 503)
        code, lines, _ = await output_of("watch", address, "--feed", "felix", "--until-in-sync", "--timeout", "3")
        assert (code, lines) == (3, [])

        await asyncio.to_thread(cluster.install, v1.value)
        found = await agree(cluster, address, v1)
        await becomes_ready(service, 200)
        assert found["felix"]["/calico/v1/Ready"][0] == "true"
        assert {"default", "kube-admin", "kube-baseline"} == {
            key.split("/")[5] for key in found["felix"] if key.startswith("/calico/v1/policy/tier/")
        }

        first, later = recorded_steps(v1)
        await asyncio.to_thread(cluster.play, first)
        filled = await agree(cluster, address, v1)
        assert all(len(filled[feed]) > 5 for feed in (syncers.FELIX, syncers.BGP, syncers.TUNNEL_IP_ALLOCATION))
        assert len(filled[syncers.FELIX]) > 250
        await asyncio.to_thread(cluster.play, later)
        await agree(cluster, address, v1)


async def test_group_v3_by_discovery_and_by_name(cluster: RealCluster) -> None:
    v3 = syncers.Group.V3
    await asyncio.to_thread(cluster.install, v3.value, *OTHER_GROUPS)
    first, later = recorded_steps(v3)
    await asyncio.to_thread(cluster.play, first)
    async with served.serving(cluster, "--workers", "0") as service:
        await service.logged(r"Chose Calico's API group.*projectcalico.org/v3.*projectcalico\.org alone")
        found = await agree(cluster, await service.address(), v3)
        assert len(found[syncers.NODE_STATUS]) == 1
        await asyncio.to_thread(cluster.play, later)
        await agree(cluster, await service.address(), v3)

    await asyncio.to_thread(cluster.install, syncers.Group.V1.value)
    async with served.serving(cluster, "--workers", "0", CALICO_API_GROUP="ProjectCalico.org/V3") as service:
        await service.logged("Chose Calico's API group.*projectcalico.org/v3.*CALICO_API_GROUP")
        await agree(cluster, await service.address(), v3)


INFORMATION = "/apis/crd.projectcalico.org/v1/clusterinformations"
TIERS = "/apis/crd.projectcalico.org/v1/tiers"


async def test_what_is_created_at_start(cluster: RealCluster) -> None:
    await asyncio.to_thread(cluster.install, syncers.Group.V1.value)
    spec = {"clusterType": "k8s,kdd", "datastoreReady": False, "calicoVersion": "v9"}
    body = {"apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"}}
    cluster.plane.create(INFORMATION, {**body, "spec": spec})
    async with served.serving(cluster, "--workers", "0", TYPHA_READONLY="true") as service:
        await watched(await service.address(), syncers.FELIX)
    assert cluster.plane.request("GET", TIERS).json()["items"] == []
    assert cluster.plane.request("GET", f"{INFORMATION}/default").json()["spec"] == spec

    async with served.serving(cluster, "--workers", "0") as service:
        await watched(await service.address(), syncers.FELIX)
    filled = cluster.plane.request("GET", f"{INFORMATION}/default").json()["spec"]
    assert len(filled.pop("clusterGUID")) == 32
    assert filled == {**spec, "clusterType": "k8s,kdd,typha"}
    tiers = {item["metadata"]["name"]: item for item in cluster.plane.request("GET", TIERS).json()["items"]}
    assert {name: item["spec"] for name, item in tiers.items()} == {
        "default": {"order": 1_000_000, "defaultAction": "Deny"},
        "kube-admin": {"order": 1_000, "defaultAction": "Pass"},
        "kube-baseline": {"order": 10_000_000, "defaultAction": "Pass"},
    }
    annotation = tiers["default"]["metadata"]["annotations"]["projectcalico.org/metadata"]
    assert list(json.loads(annotation)) == ["creationTimestamp"]
    assert calico_objects.filled_in(filled | {"clusterGUID": "x"}) == filled | {"clusterGUID": "x"}


async def test_a_feeds_file_alone_is_ready_without_calico(cluster: RealCluster) -> None:
    async with served.serving(
        cluster, "--workers", "1", TYPHA_FEEDSFILE=str(cluster.feeds_file), KUBECONFIG=str(cluster.kubeconfig)
    ) as service:
        await service.logged("Calico's feeds are off")
        assert await watched(await service.address(), served.FEED) == {}
        await becomes_ready(service, 200)
        code, _, errors = await output_of("watch", await service.address(), "--feed", "felix", "--until-in-sync")
        assert code == 4
        assert "felix" in errors
