"""The chart on a real API server. There are no controllers, so tests write what these would: tokens and endpoints."""

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from loadtest.environment import control_plane, kubeconfig
from tests.harness import calico_cluster, chart

DEFINITIONS: Final = ("monitoring.coreos.com_prometheusrules", "monitoring.coreos.com_servicemonitors")
ISSUED_DEFINITIONS: Final = ("cert-manager.io_certificates", "cert-manager.io_issuers")
PORT_NAME: Final = "calico-typha"
"""By which agents find the endpoints of the Service."""

_PLURALS: Final = {"NetworkPolicy": "networkpolicies"}
_CLUSTERWIDE: Final = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


def path_of(item: chart.Object) -> str:
    """The path of an object."""
    version, kind = item["apiVersion"], item["kind"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    place = "" if kind in _CLUSTERWIDE else f"/namespaces/{item['metadata']['namespace']}"
    return f"{root}{place}/{_PLURALS.get(kind, f'{kind.lower()}s')}/{item['metadata']['name']}"


def apply(plane: control_plane.ControlPlane, item: chart.Object, *, is_dry_run: bool = False) -> control_plane.Response:
    """Apply an object on the server, which refuses unknown fields."""
    query = f"fieldManager=test&force=true&fieldValidation=Strict{'&dryRun=All' if is_dry_run else ''}"
    return plane.request("PATCH", f"{path_of(item)}?{query}", item, content_type="application/apply-patch+yaml")


def install_definitions(plane: control_plane.ControlPlane, tools: Path) -> None:
    """Install the kinds of Prometheus' operator and of cert-manager that the chart has, and wait for them."""
    items = [
        yaml.load((tools / "definitions" / f"{name}.yaml").read_text(), yaml.CSafeLoader)
        for name in (*DEFINITIONS, *ISSUED_DEFINITIONS)
    ]
    for item in items:
        plane.create(calico_cluster.DEFINITIONS, item)
    for item in items:
        spec = item["spec"]
        path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        deadline = time.monotonic() + calico_cluster.PATIENCE_SECONDS
        while plane.request("GET", path).status != 200:
            assert time.monotonic() < deadline, path
            time.sleep(0.1)


def account_kubeconfig(plane: control_plane.ControlPlane, path: Path, name: str) -> None:
    """Write a kubeconfig with a token of a service account, as the kubelet would mount it."""
    accounts = f"/api/v1/namespaces/{chart.NAMESPACE}/serviceaccounts"
    answer = plane.create(f"{accounts}/{name}/token", {"spec": {"expirationSeconds": 3600}})
    authority = plane.certificate_authority.read_bytes()
    kubeconfig.write(path, plane.url, token=answer["status"]["token"], authority=authority)


def variables(rendered: chart.Rendered, access: Path, mounts: dict[str, Path] | None = None) -> dict[str, str]:
    """The environment of the chart's pod, on free ports of loopback; `mounts` says where its folders are."""
    found = dict(rendered.environment)
    for folder, at in (mounts or {}).items():
        found = {name: value.replace(f"{folder}/", f"{at}/") for name, value in found.items()}
    return found | {
        "KUBECONFIG": str(access),
        "TYPHA_SERVERHOST": "127.0.0.1",
        "TYPHA_SERVERPORT": "-1",
        "TYPHA_HEALTHHOST": "127.0.0.1",
        "TYPHA_HEALTHPORT": "0",
        "TYPHA_PROMETHEUSMETRICSHOST": "127.0.0.1",
        "TYPHA_PROMETHEUSMETRICSPORT": "0",
        "TYPHA_SHUTDOWNCONNECTIONDROPINTERVALMAXSECS": "0.05",
        "TYPHA_WORKERS": "1",
    }


class Endpoints:
    """The endpoints of a Service, as the controller writes them, and its address, as kube-proxy makes it.

    `async with` begins to listen on `address`. Each connection goes to a random endpoint of the port's name.
    """

    def __init__(self, plane: control_plane.ControlPlane, service: str) -> None:
        self._plane = plane
        self.service = service
        self.address = ""
        self.connections = 0
        """How many have been opened."""
        self._ready: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Endpoints":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def are(self, *addresses: str) -> None:
        """Make these the ready endpoints: one EndpointSlice each, because each has a port of its own here."""
        for index in range(2):
            path = f"/apis/discovery.k8s.io/v1/namespaces/{chart.NAMESPACE}/endpointslices/{self.service}-{index}"
            if index >= len(addresses):
                await asyncio.to_thread(self._plane.request, "DELETE", path)
                continue
            host, _, port = addresses[index].rpartition(":")
            written = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{self.service}-{index}",
                    "namespace": chart.NAMESPACE,
                    "labels": {"kubernetes.io/service-name": self.service},
                },
                "addressType": "IPv4",
                # The API server takes no endpoint on loopback; tests know that its place is there.
                "endpoints": [{"addresses": [host.replace("127.", "10.")], "conditions": {"ready": True}}],
                "ports": [{"name": PORT_NAME, "port": int(port), "protocol": "TCP"}],
            }
            answer = await asyncio.to_thread(apply, self._plane, written)
            assert answer.status in (200, 201), answer.body
        self._ready = await asyncio.to_thread(self._look_up)
        assert sorted(self._ready) == sorted(addresses)

    def _look_up(self) -> list[str]:
        """As agents and kube-proxy do: the slices that have the Service's label, the port by its name."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{chart.NAMESPACE}/endpointslices"
        answer = self._plane.request("GET", f"{path}?labelSelector=kubernetes.io/service-name%3D{self.service}")
        return [
            f"{address.replace('10.', '127.')}:{port['port']}"
            for item in answer.json()["items"]
            for port in item["ports"]
            if port["name"] == PORT_NAME
            for endpoint in item["endpoints"]
            if endpoint["conditions"]["ready"]
            for address in endpoint["addresses"]
        ]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            host, _, port = random.choice(self._ready).rpartition(":")
            server = await asyncio.open_connection(host, int(port))
            self.connections += 1
            with contextlib.closing(server[1]):
                copies = [_copy(reader, server[1]), _copy(server[0], writer)]
                tasks = [asyncio.create_task(copy, name="endpoint") for copy in copies]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in tasks:
                        one.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def writing(plane: control_plane.ControlPlane, names: Iterable[str]) -> AsyncIterator[None]:
    """Change namespaces in turn, as fast as the API server answers, until the end of the block."""
    names = list(names)
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            body = {"metadata": {"labels": {"changed": str(number)}}}
            path = f"/api/v1/namespaces/{names[number % len(names)]}"
            answer = await asyncio.to_thread(
                plane.request, "PATCH", path, body, content_type="application/merge-patch+json"
            )
            assert answer.status == 200, answer.body
            number += 1

    task = asyncio.create_task(write(), name="writer")
    try:
        yield
    finally:
        stop.set()
        await task


# Schemas for kubeconform


def write_schemas(plane: control_plane.ControlPlane, folder: Path, items: Iterable[chart.Object]) -> str:
    """Write the API server's own schemas of these objects' kinds; returns kubeconform's pattern for their names."""
    paths = plane.request("GET", "/openapi/v3").json()["paths"]
    kinds = {(item["apiVersion"], item["kind"]) for item in items}
    for version in {version for version, _ in kinds}:
        path = f"apis/{version}" if "/" in version else f"api/{version}"
        schemas = plane.request("GET", paths[path]["serverRelativeURL"]).json()["components"]["schemas"]
        strict = {name: _strict(schema) for name, schema in schemas.items()}
        for name, schema in strict.items():
            for known in schema.get("x-kubernetes-group-version-kind", []):
                group = f"{known['group']}/" if known["group"] else ""
                if (f"{group}{known['version']}", known["kind"]) in kinds:
                    # kubeconform shortens the group to its first part.
                    short = re.sub(r"[./].*", "-", group)
                    whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": strict}}
                    (folder / f"{known['kind'].lower()}-{short}{known['version']}.json").write_text(json.dumps(whole))
    return f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"


def _strict(schema: Any) -> Any:
    """The schema without room for unknown fields."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _strict(item) for name, item in schema.items()}
    is_open = found.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in found
    if isinstance(found.get("properties"), dict) and found.get("type") == "object" and not is_open:
        found["additionalProperties"] = False
    return found
