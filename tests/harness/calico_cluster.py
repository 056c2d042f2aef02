"""A real API server with Calico's kinds, and the converted lists of that server, to test the feeds against."""

import asyncio
import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cache.feeds.calico import syncers
from loadtest.environment import calico_crds, control_plane
from tests.harness import go_client, repository, served

CORPUS = repository.GOLDEN_CORPUS
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
OTHER_GROUPS = (calico_crds.CLUSTER_POLICIES, calico_crds.MIGRATIONS)
TYPHA = (sys.executable, "-c", "from typha.cli import main; main.main()")
PATIENCE_SECONDS = 180.0
CHECK_SECONDS = 5.0
"""Time for clients to match the lists before the lists are read again."""
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
    """A cluster with a real API server instead of the simulated one, and without a feeds file."""

    def __init__(self, folder: pathlib.Path, plane: control_plane.ControlPlane) -> None:
        super().__init__(folder)
        self.plane = plane
        self.kubeconfig = plane.kubeconfig
        self.plurals = dict(BUILT_IN)
        self.refused = 0

    def variables(self) -> dict[str, str]:
        """The environment of the base class without the feeds file, and with a free port for health."""
        found = {name: value for name, value in super().variables().items() if name != "TYPHA_FEEDSFILE"}
        return found | {"TYPHA_HEALTHENABLED": "true", "TYPHA_HEALTHHOST": "127.0.0.1", "TYPHA_HEALTHPORT": "0"}

    def install(self, *groups: str) -> None:
        """Install custom resource definitions, and wait until they are served."""
        for item in calico_crds.definitions(*groups):
            self.plane.create(DEFINITIONS, item)
            group, version = item["spec"]["group"], item["spec"]["versions"][0]["name"]
            names = item["spec"]["names"]
            self.plurals[f"{group}/{version}", names["kind"]] = names["plural"]
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self.plane.request("GET", f"/apis/{group}/{version}/{names['plural']}").status != 200:
                assert time.monotonic() < deadline, names

    def update_definitions(self, *groups: str) -> None:
        """Change the schemas of installed definitions, as an upgrade does: the API server ends all their watches."""
        for item in calico_crds.definitions(*groups):
            path = f"{DEFINITIONS}/{item['metadata']['name']}"
            current = self.plane.request("GET", path).json()
            [version] = current["spec"]["versions"]
            spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
            spec.setdefault("properties", {})["addedByUpgrade"] = {"type": "string"}
            assert self.plane.request("PUT", path, current).status == 200, path

    def names(self, version: str, plural: str) -> set[str]:
        """The names of all objects of a kind, such as crd.projectcalico.org/v1 tiers."""
        items = self.plane.request("GET", f"/apis/{version}/{plural}").json()["items"]
        return {item["metadata"]["name"] for item in items}

    def uninstall(self, *groups: str) -> None:
        """Remove definitions with their objects, and wait until they are gone."""
        names = [item["metadata"]["name"] for item in calico_crds.definitions(*groups)]
        for name in names:
            assert self.plane.request("DELETE", f"{DEFINITIONS}/{name}").status == 200
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(self.plane.request("GET", f"{DEFINITIONS}/{name}").status == 200 for name in names):
            assert time.monotonic() < deadline, names

    def collection(self, item: dict[str, Any]) -> str:
        """The path of the collection of an object."""
        version, namespace = item["apiVersion"], item["metadata"].get("namespace")
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        middle = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{middle}/{self.plurals[version, item['kind']]}"

    def play(self, steps: list[dict[str, Any]]) -> None:
        """Do the writes of a recording's steps, and count those that the API server rejects."""
        for step in steps:
            for item in step["objects"]:
                if (item["apiVersion"], item["kind"]) not in self.plurals:
                    continue  # recorded to show that it does not matter
                if item["kind"] == "Namespace" and step["op"] == "delete":
                    continue  # no controller would complete the deletion
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
        """The API server's lists of all types of all feeds that it serves."""
        types = {source.type for spec in syncers.specs(group) for source in spec.sources}
        answers = [self.plane.request("GET", type.list_path) for type in types]
        assert {answer.status for answer in answers} <= {200, 404}
        return b"\n".join(answer.body for answer in answers if answer.status == 200)


@contextlib.contextmanager
def opened(folder: pathlib.Path) -> Iterator[RealCluster]:
    """Start a separate control plane, because custom resources affect all users of one. Fails without its binaries."""
    try:
        binaries = control_plane.find_binaries()
    except control_plane.BinariesMissingError as error:
        pytest.fail(str(error), pytrace=False)
    with control_plane.ControlPlane(folder / "plane", binaries=binaries) as plane:
        yield RealCluster(folder, plane)


async def output_of(*arguments: str, data: bytes = b"") -> tuple[int, list[dict[str, Any]], str]:
    """Run a command. Returns its exit code, the lines of its output, and its errors."""
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
    """(value, revision, V3ResourceVersion) by key. An empty value is None, as for the original's agents."""
    return {
        line["key"]: (line["value"] or None, line["revision"], line["v3_resource_version"])
        for line in lines
        if "key" in line
    }


async def converted(cluster: RealCluster, group: syncers.Group, feed: str, *options: str) -> Map:
    """What `typha convert` makes of the API server's lists."""
    lists = await asyncio.to_thread(cluster.lists, group)
    code, lines, errors = await output_of("convert", "--feed", feed, "--api-group", group.value, *options, data=lists)
    assert code in (0, 1), errors  # 1: an object was refused; the feed does not have it either
    return content(lines)


def values(of: Map) -> dict[str, str | None]:
    return {key: value for key, (value, _, _) in of.items()}


def difference(seen: Map, wanted: Map) -> list[tuple[str, str | None]]:
    """The first few (key, value) pairs that only one of the two has."""
    return sorted(set(values(seen).items()) ^ set(values(wanted).items()), key=repr)[:6]


def check_revisions(seen: Map, wanted: Map) -> None:
    """Fail if a revision is newer than the lists'. It may be older: updates that change no value are not sent."""
    for key, (_, revision, v3_resource_version) in seen.items():
        _, newest, newest_v3 = wanted[key]
        assert is_same_or_older(revision, newest), key
        assert v3_resource_version in {newest_v3, "/"} or is_same_or_older(v3_resource_version, newest_v3), key


def is_same_or_older(revision: str, newest: str) -> bool:
    """Compare by number. A profile's revision has a slash at the end (namespace) or at the start (service account)."""
    return int(revision.strip("/") or 0) <= int(newest.strip("/") or 0)


async def have_the_map(
    cluster: RealCluster, group: syncers.Group, agents: Sequence[go_client.Agent]
) -> dict[tuple[str, str], Map]:
    """Wait until each agent has the converted lists of its feed. Returns them by syncer type and release."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    kinds = list(dict.fromkeys((agent.syncer, agent.release) for agent in agents))
    while True:
        maps = await asyncio.gather(
            *(
                converted(cluster, group, syncer, *(("--agent-release", release) if release else ()))
                for syncer, release in kinds
            )
        )
        wanted = {
            kind: {key: line for key, line in found.items() if line[0] is not None}
            for kind, found in zip(kinds, maps, strict=True)
        }
        until = time.monotonic() + CHECK_SECONDS
        while time.monotonic() < until:
            if all(_has(agent, wanted[agent.syncer, agent.release]) for agent in agents):
                for agent in agents:
                    check_revisions(agent.map or {}, wanted[agent.syncer, agent.release])
                return wanted
            await asyncio.sleep(0.05)
        assert time.monotonic() < deadline, [
            (agent.syncer, agent.flags, difference(agent.map or {}, wanted[agent.syncer, agent.release]))
            for agent in agents
        ]


def _has(agent: go_client.Agent, wanted: Map) -> bool:
    held = agent.map
    return held is not None and values(held) == values(wanted)


def recorded_steps(
    group: syncers.Group, directory: pathlib.Path = CORPUS, pattern: str = "*"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first steps of the recordings of a group, and the later steps."""
    first, later = [], []
    for path in sorted(directory.glob(f"{pattern}.json")):
        recording = json.loads(path.read_text())
        if recording["api_group"] == group.value:
            steps = recording["steps"]
            first += steps[:1]
            later += steps[1:]
    return first, later
