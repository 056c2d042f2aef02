"""Calico's feeds on a real API server: agents get what `typha convert` makes of the API server's lists."""

import asyncio
import json
import pathlib
import time
from collections.abc import Iterator

import aiohttp
import pytest

from cache.feeds.calico import syncers
from loadtest.environment import control_plane
from tests.harness import calico_cluster, served
from tests.harness.calico_cluster import Map, RealCluster, output_of, recorded_steps
from typha.hub import calico_objects

pytestmark = [pytest.mark.control_plane, pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE_SECONDS = calico_cluster.PATIENCE_SECONDS
OTHER_GROUPS = calico_cluster.OTHER_GROUPS


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[RealCluster]:
    with calico_cluster.opened(tmp_path) as running:
        yield running


async def watched(address: str, feed: str) -> Map:
    code, lines, errors = await output_of("watch", address, "--feed", feed, "--until-in-sync", "--json")
    assert code == 0, errors
    return calico_cluster.content(lines)


async def agree(cluster: RealCluster, address: str, group: syncers.Group, *options: str) -> dict[str, Map]:
    """Wait until all four feeds equal the converted lists. Returns the feeds' contents."""
    found = {}
    for feed in syncers.NAMES:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            seen = await watched(address, feed)
            wanted = await calico_cluster.converted(cluster, group, feed, *options)
            different = calico_cluster.difference(seen, wanted)
            if not different:
                break
            assert time.monotonic() < deadline, different
        calico_cluster.check_revisions(seen, wanted)
        found[feed] = seen
    return found


def until_user_may_read(cluster: RealCluster, path: str) -> None:
    """Wait until the API server's cache of rules has followed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while cluster.plane.request("GET", path, token=control_plane.USER_TOKEN).status == 403:
        assert time.monotonic() < deadline, path


async def becomes_ready(service: served.Service, status: int) -> None:
    """Wait until the readiness endpoint answers with this status."""
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


async def test_group_v1_in_a_cluster_that_is_empty_at_first(cluster: RealCluster) -> None:
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


async def test_rules_without_types_that_are_not_installed_are_enough(cluster: RealCluster) -> None:
    """As those of operator 1.40, which knows of no ClusterNetworkPolicies and of no migrations of virtual machines."""
    v1 = syncers.Group.V1
    await asyncio.to_thread(cluster.install, v1.value)
    groups = ["", "discovery.k8s.io", "networking.k8s.io", v1.group]
    role = {"metadata": {"name": "typha"}, "rules": [{"apiGroups": groups, "resources": ["*"], "verbs": ["*"]}]}
    user = {"kind": "User", "name": "user", "apiGroup": "rbac.authorization.k8s.io"}
    binding = {"metadata": {"name": "typha"}, "subjects": [user], "roleRef": {"kind": "ClusterRole", "name": "typha"}}
    for plural, item in (("clusterroles", role), ("clusterrolebindings", binding)):
        await asyncio.to_thread(cluster.plane.create, f"/apis/rbac.authorization.k8s.io/v1/{plural}", item)
    cluster.kubeconfig = cluster.plane.user_kubeconfig
    await asyncio.to_thread(until_user_may_read, cluster, f"/apis/{v1.value}/tiers")
    async with served.serving(cluster, "--workers", "0") as service:
        await becomes_ready(service, 200)
        for type in ("clusternetworkpolicies", "virtualmachineinstancemigrations"):
            await service.logged(f"resource type is not installed.*{type}")
        assert "missing RBAC rule" not in service.text
        # They are installed, and still may not be read.
        await asyncio.to_thread(cluster.install, *OTHER_GROUPS)
        for type in ("clusternetworkpolicies", "virtualmachineinstancemigrations"):
            await service.logged(f"resource type cannot be read.*missing RBAC rule.*{type}")
        everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
        await asyncio.to_thread(
            cluster.plane.request,
            "PUT",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/typha",
            role | {"rules": [everything]},
        )
        for type in ("clusternetworkpolicies", "virtualmachineinstancemigrations"):
            await service.logged(f"can list and watch the resource type again.*{type}")
        await becomes_ready(service, 200)


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


async def test_host_local_ipam(cluster: RealCluster) -> None:
    v1 = syncers.Group.V1
    await asyncio.to_thread(cluster.install, v1.value, *OTHER_GROUPS)
    first, _ = recorded_steps(v1)
    await asyncio.to_thread(cluster.play, first)
    spec = {"podCIDR": "10.1.2.0/24", "podCIDRs": ["10.1.2.0/24", "fd00:1::/64"]}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "host-local"}, "spec": spec}
    cluster.plane.create("/api/v1/nodes", node)
    async with served.serving(cluster, "--workers", "0", USE_POD_CIDR="true") as service:
        found = await agree(cluster, await service.address(), v1, "--use-pod-cidr")
        address = await service.address()
        assert {"10.1.2.0-24", "fd00:1::-64"} <= {key.rpartition("/")[2] for key in found["felix"] if "/ipam/" in key}
        assert found["felix"]["/calico/v1/host/host-local/config/IpInIpTunnelAddr"][0] == "10.1.2.1"
        assert not any("/ipam/v2/" in key for key in found["bgp"])
        cluster.plane.request("DELETE", "/api/v1/nodes/host-local")
        found = await agree(cluster, address, v1, "--use-pod-cidr")
        assert not any("10.1.2.0-24" in key for key in found["felix"])


async def test_without_definitions_no_client_gets_an_empty_snapshot_as_in_sync(cluster: RealCluster) -> None:
    v1 = syncers.Group.V1
    await asyncio.to_thread(cluster.install, v1.value, *OTHER_GROUPS)
    async with served.serving(cluster, "--workers", "0") as service:
        assert "/calico/v1/Ready" in await watched(await service.address(), syncers.FELIX)
        await asyncio.to_thread(cluster.uninstall, v1.value)
        await service.logged("no resource type of the API group is served any more.*crd.projectcalico.org")
        await service.logged(
            'Feed status changed feed="felix".*"in-sync"[^$]*Feed status changed feed="felix".*"resync"'
        )
        for feed in syncers.NAMES:
            arguments = ("watch", await service.address(), "--feed", feed, "--until-in-sync", "--timeout", "1")
            assert (await output_of(*arguments))[0] == 3, feed
    async with served.serving(cluster, "--workers", "0", TYPHA_READONLY="true") as service:
        await service.logged("Calico's feeds wait")
        await becomes_ready(service, 503)


INFORMATION = "/apis/crd.projectcalico.org/v1/clusterinformations"
TIERS = "/apis/crd.projectcalico.org/v1/tiers"


async def test_objects_that_the_service_creates_at_start(cluster: RealCluster) -> None:
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


async def test_a_service_with_only_a_feeds_file_is_ready_without_calico(cluster: RealCluster) -> None:
    async with served.serving(
        cluster, "--workers", "1", TYPHA_FEEDSFILE=str(cluster.feeds_file), KUBECONFIG=str(cluster.kubeconfig)
    ) as service:
        await service.logged("Calico's feeds are off")
        assert await watched(await service.address(), served.FEED) == {}
        await becomes_ready(service, 200)
        code, _, errors = await output_of("watch", await service.address(), "--feed", "felix", "--until-in-sync")
        assert code == 4
        assert "felix" in errors
