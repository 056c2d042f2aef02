"""The chart on a real kube-apiserver: what it accepts, helm's client, permissions, ways in and out."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import msgspec
import pytest

from cache.feeds.calico import syncers
from clients import connection, mirror
from loadtest.environment import calico_crds, control_plane
from tests.harness import calico_cluster, certificates, chart, chart_cluster, served, typha_peer, worker_stand
from tests.harness.repository import ROOT
from typha import settings
from typha.preflight import cluster as preflight
from typha.preflight.findings import Status

pytestmark = [
    pytest.mark.control_plane,
    pytest.mark.helm,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("chart_real"),
]

V1 = syncers.Group.V1
ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/calico-typha"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{chart.NAMESPACE}/deployments/calico-typha"
ACCOUNT = preflight.Account(chart.NAMESPACE, "calico-typha")
VALUES = chart.PLAIN | {"calico": {"apiGroup": V1.value}}
TURNS = 8
AGENTS = 12
NAMESPACES = [f"n{number}" for number in range(5)]
PATIENCE_SECONDS = calico_cluster.PATIENCE_SECONDS
ORIGINAL = os.environ.get("TYPHA_TESTS_ORIGINAL", "")
"""A binary of the original, to try the ways in and out with it. Without one, this service stands for it."""

OLDER_AGENT = msgspec.structs.replace(typha_peer.PLAIN_HELLO, version="v3.31.7", supports_modern_policy_keys=False)
"""Only for such an agent the service reads the two admin kinds."""

Permission = tuple[str, str, str]


class ChartCluster(calico_cluster.RealCluster):
    """The environment of a pod of the chart, on this machine."""

    def __init__(
        self,
        folder: pathlib.Path,
        plane: control_plane.ControlPlane,
        rendered: chart.Rendered,
        mounts: dict[str, pathlib.Path] | None = None,
    ) -> None:
        super().__init__(folder, plane)
        self.rendered = rendered
        self.mounts = mounts
        self.kubeconfig = folder / "account.kubeconfig"
        chart_cluster.account_kubeconfig(plane, self.kubeconfig, rendered.deployment["metadata"]["name"])

    def variables(self) -> dict[str, str]:
        """The environment of the service."""
        return chart_cluster.variables(self.rendered, self.kubeconfig, self.mounts)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, helm_tools: pathlib.Path) -> Iterator[control_plane.ControlPlane]:
    """A control plane with the kinds of Prometheus' operator and cert-manager, and none of Calico's.

    It has no streaming lists, as before Kubernetes 1.34: with them, the service needs no permission to list.
    """
    flags = ("--feature-gates=WatchList=false",)
    with control_plane.ControlPlane(tmp_path_factory.mktemp("plane"), api_server_flags=flags) as running:
        chart_cluster.install_definitions(running, helm_tools)
        yield running


@pytest.fixture(scope="module")
def plane(bare: control_plane.ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> control_plane.ControlPlane:
    """The same with Calico's kinds and a few namespaces."""
    install_calico(bare, tmp_path_factory.mktemp("calico"))
    for name in NAMESPACES:
        bare.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return bare


def install_calico(plane: control_plane.ControlPlane, folder: pathlib.Path) -> None:
    groups = (V1.value, *calico_cluster.OTHER_GROUPS, calico_crds.ADMIN_POLICIES)
    if plane.request("GET", f"/apis/{V1.value}").status != 200:
        calico_cluster.RealCluster(folder, plane).install(*groups)


def apply_all(plane: control_plane.ControlPlane, rendered: chart.Rendered) -> None:
    for item in rendered.objects:
        answer = chart_cluster.apply(plane, item)
        assert answer.status in (200, 201), (item["kind"], answer.body)


def delete_all(plane: control_plane.ControlPlane, rendered: chart.Rendered) -> None:
    for item in rendered.objects:
        assert plane.request("DELETE", chart_cluster.path_of(item)).status == 200


@contextlib.contextmanager
def applied(plane: control_plane.ControlPlane, rendered: chart.Rendered) -> Iterator[chart.Rendered]:
    """The objects of a rendering, until the end of the block."""
    apply_all(plane, rendered)
    account = preflight.Account(chart.NAMESPACE, rendered.deployment["metadata"]["name"])
    try:
        for permission in chart.permissions(rendered.one("ClusterRole")):
            until_followed(plane, account, permission, is_allowed=True)
        yield rendered
    finally:
        delete_all(plane, rendered)


async def readiness(service: served.Service) -> tuple[int, str]:
    """Status and table of the readiness endpoint."""
    line = (await service.logged(r'.*server="health".*'))[0]
    port = line.partition("port=")[2].split()[0]
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readiness") as response:
        return response.status, await response.text()


async def becomes_ready(service: served.Service) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := await readiness(service))[0] != 200:
        assert time.monotonic() < deadline, found[1]
        await asyncio.sleep(0.1)


# What the API server accepts


@pytest.mark.parametrize("name", chart.MATRIX)
def test_every_object_passes_a_server_side_dry_run(
    name: str, bare: control_plane.ControlPlane, helm_tools: pathlib.Path
) -> None:
    for item in chart.run(helm_tools, values=chart.MATRIX[name]).objects:
        answer = chart_cluster.apply(bare, item, is_dry_run=True)
        assert answer.status in (200, 201), (item["kind"], answer.body)


def test_a_dry_run_refuses_what_the_api_server_does_not_know(
    bare: control_plane.ControlPlane, helm_tools: pathlib.Path
) -> None:
    """So that the test above can fail."""
    deployment = chart.run(helm_tools, values=chart.PLAIN).deployment
    changed = {**deployment, "spec": {**deployment["spec"], "replica": 3}}
    answer = chart_cluster.apply(bare, changed, is_dry_run=True)
    assert answer.status >= 400, answer.body


def kubeconform(tools: pathlib.Path, pattern: str, text: str) -> tuple[int, str]:
    command = [str(tools / "kubeconform"), "-strict", "-summary", "-schema-location", pattern, "-"]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def test_kubeconform_with_the_api_servers_schemas(
    bare: control_plane.ControlPlane, helm_tools: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    texts = [chart.run(helm_tools, values=values).text for values in chart.MATRIX.values()]
    texts += [path.read_text() for path in sorted((ROOT / "deploy" / "manifests").glob("*.yaml"))]
    everything = "\n---\n".join(texts)
    objects = chart.Rendered(0, everything, "").objects
    pattern = chart_cluster.write_schemas(bare, tmp_path, objects)
    code, report = kubeconform(helm_tools, pattern, everything)
    assert code == 0, report
    assert f"Valid: {len(objects)}, Invalid: 0, Errors: 0, Skipped: 0" in report
    for wrong in (("  replicas: 3", "  replica: 3"), ("  replicas: 3", '  replicas: "3"')):
        code, report = kubeconform(helm_tools, pattern, texts[0].replace(*wrong))
        assert code == 1, report


# helm's own client


def helm(
    tools: pathlib.Path, plane: control_plane.ControlPlane, *command: str, values: chart.Values | None = None
) -> str:
    """Run helm against the API server; returns what it says."""
    done = subprocess.run(
        [str(tools / "helm"), *command, "--namespace", chart.NAMESPACE, *(("--values", "-") if values else ())],
        input=json.dumps(values),
        env={"KUBECONFIG": str(plane.kubeconfig), "HOME": str(plane.folder), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def live(plane: control_plane.ControlPlane) -> dict[str, Any]:
    answer = plane.request("GET", DEPLOYMENT)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json()
    return found


def test_helm_installs_upgrades_rolls_back_and_uninstalls(
    bare: control_plane.ControlPlane, helm_tools: pathlib.Path
) -> None:
    chart_path = str(chart.CHART)
    notes = helm(helm_tools, bare, "install", "typha", chart_path, values=VALUES | {"replicas": 5})
    assert "rollout status deployment calico-typha" in notes
    assert "WARNING: tls.mode is none" in notes
    assert live(bare)["spec"]["replicas"] == 5
    scaling = VALUES | {"autoscaling": {"enabled": True}}
    helm(helm_tools, bare, "upgrade", "typha", chart_path, values=scaling)
    assert live(bare)["spec"]["replicas"] == 5, "an upgrade that switches autoscaling on must not shrink the Deployment"
    scale = {"spec": {"replicas": 7}}  # as the autoscaler does
    bare.request("PATCH", f"{DEPLOYMENT}/scale", scale, content_type="application/merge-patch+json")
    helm(helm_tools, bare, "upgrade", "typha", chart_path, values=scaling | {"podLabels": {"a": "b"}})
    assert live(bare)["spec"]["replicas"] == 7
    helm(helm_tools, bare, "rollback", "typha", "1")
    assert live(bare)["spec"]["replicas"] == 5
    installed = chart.run(helm_tools, values=scaling).objects
    helm(helm_tools, bare, "uninstall", "typha")
    assert [item["kind"] for item in installed if bare.request("GET", chart_cluster.path_of(item)).status != 404] == []


def test_a_release_keeps_its_mode(bare: control_plane.ControlPlane, helm_tools: pathlib.Path) -> None:
    """Kubernetes refuses another selector, but after helm has made the Service, which then no release has."""
    place = f"/api/v1/namespaces/{chart.NAMESPACE}/services/typha"
    helm(helm_tools, bare, "install", "typha", str(chart.CHART), values=VALUES | {"mode": "join"})
    with pytest.raises(AssertionError, match="mode: the Deployment typha has another selector"):
        helm(helm_tools, bare, "upgrade", "typha", str(chart.CHART), values=VALUES | {"mode": "beside"})
    helm(helm_tools, bare, "upgrade", "typha", str(chart.CHART), values=VALUES | {"mode": "join", "replicas": 2})
    helm(helm_tools, bare, "uninstall", "typha")
    assert bare.request("GET", place).status == 404


def test_the_notes_name_what_agents_need(bare: control_plane.ControlPlane, helm_tools: pathlib.Path) -> None:
    def notes(values: chart.Values) -> str:
        said = helm(helm_tools, bare, "install", "x", str(chart.CHART), "--dry-run=server", values=VALUES | values)
        return said.partition("\nNOTES:\n")[2]

    assert "FELIX_TYPHAK8SSERVICENAME=calico-typha" in notes({})
    assert "set env daemonset/calico-node FELIX_TYPHAK8SSERVICENAME=typha" in notes({"mode": "beside"})
    assert "scale deployment calico-typha --replicas 0" in notes({"mode": "join"})
    alone = notes({"feeds": chart.FEEDS, "calico": {"feeds": False}, "name": "fleet"})
    assert "Agents connect to fleet.kube-system.svc, port 5473. Feeds: apps, workloads." in alone
    assert "FELIX" not in alone


def test_helm_takes_over_the_originals_deployment(bare: control_plane.ControlPlane, helm_tools: pathlib.Path) -> None:
    """Service, budget and Deployment as Calico's manifests have them. Their selectors cannot change."""
    labels = {"k8s-app": "calico-typha"}
    place = {"name": "calico-typha", "namespace": chart.NAMESPACE, "labels": labels}
    port = {"name": "calico-typha", "port": 5473, "targetPort": "calico-typha"}
    container = {
        "name": "calico-typha",
        "image": "quay.io/calico/typha:v3.32.0",
        "env": [{"name": name, "value": "x"} for name in ("TYPHA_DATASTORETYPE", "TYPHA_DEBUGPORT")],
    }
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [container], "serviceAccountName": "calico-node"},
    }
    originals: list[chart.Object] = [
        {"apiVersion": "v1", "kind": "Service", "metadata": place, "spec": {"selector": labels, "ports": [port]}},
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": place,
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": place,
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
    ]
    for item in originals:
        path = chart_cluster.path_of(item).rpartition("/")[0]
        bare.create(path, item)
    with pytest.raises(AssertionError, match="cannot be imported into the current release"):
        helm(helm_tools, bare, "install", "typha", str(chart.CHART), values=VALUES)
    helm(helm_tools, bare, "install", "typha", str(chart.CHART), "--take-ownership", values=VALUES)
    pod = live(bare)["spec"]["template"]["spec"]
    [taken] = pod["containers"]
    assert taken["image"] == "registry.example.com/typha:0.1.0"
    assert pod["serviceAccountName"] == "calico-typha"
    rendered = chart.run(helm_tools, values=VALUES)
    left_over = {item["name"] for item in taken["env"]} - {
        item["name"] for item in rendered.pod["containers"][0]["env"]
    }
    assert left_over == {"TYPHA_DEBUGPORT"}  # what only the original sets stays, says docs/installing.md

    # And back, without a moment in which there is no Deployment: replace the objects, and forget the release.
    for item in originals:
        path = chart_cluster.path_of(item)
        version = bare.request("GET", path).json()["metadata"]["resourceVersion"]
        again = {**item, "metadata": {**item["metadata"], "resourceVersion": version}}
        answer = bare.request("PUT", path, again)
        assert answer.status == 200, answer.body
    secrets = f"/api/v1/namespaces/{chart.NAMESPACE}/secrets?labelSelector=owner%3Dhelm%2Cname%3Dtypha"
    assert bare.request("DELETE", secrets).status == 200
    assert json.loads(helm(helm_tools, bare, "list", "--output", "json")) == []
    pod = live(bare)["spec"]["template"]["spec"]
    assert [one["image"] for one in pod["containers"]] == [container["image"]]
    assert pod["serviceAccountName"] == "calico-node"
    kept = {chart_cluster.path_of(item) for item in originals}
    for path in kept | {chart_cluster.path_of(item) for item in rendered.objects}:
        assert bare.request("DELETE", path).status == 200, path


# The account


async def test_a_new_cluster(
    bare: control_plane.ControlPlane, helm_tools: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The chart first, then Calico's kinds: the service waits, and then makes what Calico needs. With mutual TLS."""
    files = certificates.make(tmp_path)
    for name, source in (("tls.crt", "server.pem"), ("tls.key", "server.key"), ("ca.crt", "ca.pem")):
        (tmp_path / name).write_bytes((tmp_path / source).read_bytes())
    values = VALUES | {"tls": chart.SECRET | {"clientCN": certificates.AGENT}}
    with applied(bare, chart.run(helm_tools, values=values)) as rendered:
        mounts = {"/etc/typha/tls": tmp_path, "/etc/typha/ca": tmp_path}
        cluster = ChartCluster(tmp_path, bare, rendered, mounts)
        async with served.serving(cluster) as service:
            if bare.request("GET", f"/apis/{V1.value}").status != 200:
                await service.logged("Calico's feeds wait")
                assert (await readiness(service))[0] == 503
                await asyncio.to_thread(install_calico, bare, tmp_path)
            await becomes_ready(service)
            await service.logged('Created or updated an object that Calico needs .*kind="Tier"')
            context = certificates.client_context(files.authority)
            async with agent(await service.address(), tls=context) as one:
                await one.wait_in_sync(timeout_seconds=PATIENCE_SECONDS)
                assert "/calico/v1/Ready" in one
            refused = mirror.Mirror(
                await service.address(), feed=syncers.FELIX, agent="plain", protocol=connection.Protocol.TYPHA
            )
            async with refused:
                await worker_stand.eventually(lambda: refused.last_disconnect, seconds=PATIENCE_SECONDS)
                assert not refused.in_sync
        assert "missing RBAC rule" not in service.text
        assert "do not allow" not in service.text


def agent(address: str, *, tls: ssl.SSLContext | None = None, number: int = 0) -> mirror.Mirror:
    """An agent like Felix, which connects again by itself."""
    name = f"node-{number}"
    return mirror.Mirror(
        address,
        feed=syncers.FELIX,
        agent=name,
        node=name,
        tls=tls,
        server_name="localhost" if tls else None,
        protocol=connection.Protocol.TYPHA,
    )


def role(allowed: list[Permission]) -> chart.Object:
    """The chart's role with these permissions alone."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "calico-typha"},
        "rules": [{"apiGroups": [group], "resources": [name], "verbs": [verb]} for group, name, verb in allowed],
    }


def until_followed(
    plane: control_plane.ControlPlane, account: preflight.Account, permission: Permission, *, is_allowed: bool
) -> None:
    """Wait until the API server's cache has followed the role, of which this permission is one that has changed."""
    group, name, verb = permission
    spec = {"resourceAttributes": {"verb": verb, "group": group, "resource": name}, **account.user}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    deadline = time.monotonic() + PATIENCE_SECONDS
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    while plane.create(path, review)["status"]["allowed"] is not is_allowed:
        assert time.monotonic() < deadline, permission


async def checked(plane: control_plane.ControlPlane, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `typha check` says of the account's permissions, except what is well."""
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    monkeypatch.setenv("CALICO_API_GROUP", V1.value)
    findings = await preflight.examine(settings.Settings(), os.environ, account=ACCOUNT)
    return [one.found for one in findings if one.check == "permissions" and one.status is not Status.OK]


async def test_each_permission_is_needed_and_its_lack_is_named(
    plane: control_plane.ControlPlane,
    helm_tools: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By `typha check`, and by the service itself: in its log, and for what it serves also in the readiness."""
    with applied(plane, chart.run(helm_tools, values=VALUES)) as rendered:
        every = sorted(chart.permissions(rendered.one("ClusterRole")))
        assert await checked(plane, monkeypatch) == []
        older = [
            one for one in every if "admin" in one[1]
        ]  # these are read for older agents alone, once all else is there
        first_list, first_watch, second_list, second_watch = older
        needed = [one for one in every if one not in older]
        batches = [needed[turn::TURNS] for turn in range(TURNS)]
        for missing in [*batches, [first_list, second_watch], [first_watch, second_list]]:
            assert len({(group, name) for group, name, _ in missing}) == len(missing), "two verbs of one kind"
            allowed = [one for one in every if one not in missing]
            assert plane.request("PUT", ROLE, role(allowed)).status == 200
            await asyncio.to_thread(until_followed, plane, ACCOUNT, missing[-1], is_allowed=False)
            said = await checked(plane, monkeypatch)
            assert len(said) == len(missing)
            for group, name, verb in missing:
                assert [line for line in said if re.search(rf"may not {verb} {group or 'core'}/v\w+/{name}\b", line)], (
                    verb,
                    name,
                )
            await forget_created(plane, missing)
            async with served.serving(ChartCluster(tmp_path, plane, rendered)) as service:
                host, _, port = (await service.address()).rpartition(":")
                _, writer = await asyncio.open_connection(host, int(port))
                with contextlib.closing(writer):
                    writer.write(typha_peer.encoded(OLDER_AGENT))
                    for permission in missing:
                        await service.logged(said_by_the_service(permission))
                if missing[0] in older:  # it costs the policies alone
                    await becomes_ready(service)
                elif any(verb in ("list", "watch") for _, _, verb in missing):
                    assert (await readiness(service))[0] == 503


def said_by_the_service(permission: Permission) -> str:
    """The line of the log for a permission that is missing, as an expression."""
    group, name, verb = permission
    if verb in ("list", "watch"):
        return rf'missing RBAC rule: verb \\?"{verb}\\?" on resource \\?"{name}\\?" in API group \\?"{group}\\?"'
    method = {"get": "GET", "create": "POST", "update": "PUT"}[verb]
    return rf"the credentials do not allow it.*{method} \S*/{name}\b"


async def forget_created(plane: control_plane.ControlPlane, missing: list[Permission]) -> None:
    """Delete what the service creates, so that the next start does it again; leave an incomplete one to be updated."""
    tiers, informations = f"/apis/{V1.value}/tiers", f"/apis/{V1.value}/clusterinformations"
    await asyncio.to_thread(plane.request, "DELETE", f"{tiers}/kube-admin")
    await asyncio.to_thread(plane.request, "DELETE", f"{informations}/default")
    if any(verb == "update" for _, _, verb in missing):
        body = {"apiVersion": V1.value, "kind": "ClusterInformation", "metadata": {"name": "default"}, "spec": {}}
        await asyncio.to_thread(plane.create, informations, body)


# Ways in and back out, with agents connected and objects that change


@contextlib.asynccontextmanager
async def running(
    plane: control_plane.ControlPlane, folder: pathlib.Path, rendered: chart.Rendered
) -> AsyncIterator[served.Service]:
    """A pod of the chart that is ready."""
    place = folder / str(time.monotonic_ns())
    place.mkdir()
    async with served.serving(ChartCluster(place, plane, rendered)) as service:
        await becomes_ready(service)
        yield service


@contextlib.asynccontextmanager
async def original(plane: control_plane.ControlPlane, folder: pathlib.Path) -> AsyncIterator[tuple[str, Any]]:
    """The original in its pod, with the environment of Calico's manifests: its address and its process."""
    port, health = (control_plane.free_port() for _ in range(2))
    environment = {
        "KUBECONFIG": str(plane.kubeconfig),
        "TYPHA_LOGSEVERITYSCREEN": "info",
        "TYPHA_LOGFILEPATH": "none",
        "TYPHA_LOGSEVERITYSYS": "none",
        "TYPHA_CONNECTIONREBALANCINGMODE": "none",
        "TYPHA_DATASTORETYPE": "kubernetes",
        "TYPHA_HEALTHENABLED": "true",
        "TYPHA_HEALTHPORT": str(health),
        "TYPHA_SERVERPORT": str(port),
        "TYPHA_SHUTDOWNTIMEOUTSECS": "5",
        "PATH": os.environ["PATH"],
    }
    command = (ORIGINAL,) if ORIGINAL else (*calico_cluster.TYPHA, "component", "typha")
    with (folder / f"original-{time.monotonic_ns()}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        async with aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://localhost:{health}/readiness") as response:
                        if response.status == 200:
                            break
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        yield f"127.0.0.1:{port}", process
    finally:
        for pid in served.processes_of_session(process.pid):
            with contextlib.suppress(ProcessLookupError):  # a worker also ends by itself, with its hub
                os.kill(pid, signal.SIGKILL)
        await process.wait()


async def ended(process: Any) -> None:
    """Delete the pod: SIGTERM, and the rest of its life."""
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.wait(), PATIENCE_SECONDS)


@contextlib.asynccontextmanager
async def agents(address: str) -> AsyncIterator[list[mirror.Mirror]]:
    """Agents in sync."""
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(agent(address, number=number)) for number in range(AGENTS)]
        for one in opened:
            await one.wait_in_sync(timeout_seconds=PATIENCE_SECONDS)
        yield opened


async def converge(cluster: calico_cluster.RealCluster, opened: list[mirror.Mirror]) -> None:
    """Wait until every agent is in sync and has what the API server has now."""
    wanted = await calico_cluster.converted(cluster, V1, syncers.FELIX)
    values = {key: value for key, (value, _, _) in wanted.items() if value is not None}

    def agree() -> bool:
        return all(
            one.in_sync and {key: entry.value.decode() for key, entry in one.items()} == values for one in opened
        )

    await worker_stand.eventually(agree, seconds=PATIENCE_SECONDS)


async def all_moved(service: chart_cluster.Endpoints, count: int) -> None:
    """Wait until this many connections have come to a Service."""
    await worker_stand.eventually(lambda: service.connections >= count, seconds=PATIENCE_SECONDS)


async def test_in_its_place_and_back_under_load(
    plane: control_plane.ControlPlane, helm_tools: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A roll-out from the original to the chart, and one back. Each agent moves once in each, and misses nothing."""
    cluster = calico_cluster.RealCluster(tmp_path, plane)
    with applied(plane, chart.run(helm_tools, values=VALUES)) as rendered:
        async with chart_cluster.Endpoints(plane, "calico-typha") as service, contextlib.AsyncExitStack() as stack:
            first, old = await stack.enter_async_context(original(plane, tmp_path))
            await service.are(first)
            opened = await stack.enter_async_context(agents(service.address))
            async with chart_cluster.writing(plane, NAMESPACES):
                ours = await stack.enter_async_context(running(plane, tmp_path, rendered))
                await service.are(first, await ours.address())  # the surge: old and new serve
                await service.are(await ours.address())  # the old pod is being deleted
                await ended(old)
                await all_moved(service, 2 * AGENTS)
                second, _ = await stack.enter_async_context(original(plane, tmp_path))
                await service.are(await ours.address(), second)
                await service.are(second)
                await ended(ours.process)
                await all_moved(service, 3 * AGENTS)
            await converge(cluster, opened)
            assert service.connections == 3 * AGENTS
            assert ours.process.returncode == 0
            await service.are()


async def test_beside_it_and_back(
    plane: control_plane.ControlPlane, helm_tools: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Two Services. Agents that start again with the other one's name get the same, and so on the way back."""
    cluster = calico_cluster.RealCluster(tmp_path, plane)
    values = VALUES | {"mode": "beside"}
    async with (
        chart_cluster.Endpoints(plane, "calico-typha") as old,
        chart_cluster.Endpoints(plane, "typha") as new,
        original(plane, tmp_path) as (first, _),
    ):
        await old.are(first)
        with applied(plane, chart.run(helm_tools, values=values)) as rendered:
            async with running(plane, tmp_path, rendered) as ours:
                await new.are(await ours.address())
                async with agents(old.address) as stay, agents(new.address) as moved:
                    async with chart_cluster.writing(plane, NAMESPACES):
                        await asyncio.sleep(0)
                    await converge(cluster, [*stay, *moved])
                    assert (old.connections, new.connections) == (AGENTS, AGENTS)
                await new.are()
        async with agents(old.address) as back:
            await converge(cluster, back)
        await old.are()


async def test_joining_the_service_and_leaving_it(
    plane: control_plane.ControlPlane, helm_tools: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Pods of both behind one Service: agents of either have the same. Then the original goes, and comes back."""
    cluster = calico_cluster.RealCluster(tmp_path, plane)
    values = VALUES | {"mode": "join"}
    with applied(plane, chart.run(helm_tools, values=values)) as rendered:
        async with chart_cluster.Endpoints(plane, "calico-typha") as service, contextlib.AsyncExitStack() as stack:
            first, old = await stack.enter_async_context(original(plane, tmp_path))
            ours = await stack.enter_async_context(running(plane, tmp_path, rendered))
            await service.are(first, await ours.address())
            opened = await stack.enter_async_context(agents(service.address))
            async with chart_cluster.writing(plane, NAMESPACES):
                await service.are(await ours.address())
                await ended(old)
                await worker_stand.eventually(lambda: all(one.in_sync for one in opened), seconds=PATIENCE_SECONDS)
            await converge(cluster, opened)
            second, _ = await stack.enter_async_context(original(plane, tmp_path))
            await service.are(second)
            await ended(ours.process)
            await converge(cluster, opened)
            await service.are()
