"""Agents of several releases on a real API server: each gets the feed of its release, also during an upgrade."""

import asyncio
import contextlib
import os
import pathlib
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cache.feeds.calico import syncers
from loadtest.environment import calico_crds, control_plane
from tests.harness import calico_cluster, go_client, repository, served, worker_stand

pytestmark = [pytest.mark.control_plane, pytest.mark.go, pytest.mark.slow, pytest.mark.timeout(600)]

V1 = syncers.Group.V1
ADMIN, CLUSTER = calico_crds.ADMIN_POLICIES, calico_crds.CLUSTER_POLICIES
RECORDINGS = ("anp-*", "banp-*", "legacy-*", "birdip-*", "kinds-per-release", "pod-ports", "felixconfig-types-old")
"""Of v3.31.7: what only older releases have, and where they differ."""
ROUNDS = 4
POLICY = "/calico/v1/policy/"
ADMIN_TIERS = {"adminnetworkpolicy", "baselineadminnetworkpolicy"}
USER = {"kind": "User", "name": "user", "apiGroup": "rbac.authorization.k8s.io"}
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[calico_cluster.RealCluster]:
    with calico_cluster.opened(tmp_path) as running:
        yield running


def agent(release: str, *flags: str) -> go_client.Agent:
    return go_client.Agent(syncers.FELIX, *flags, release=release)


def served_times(one: go_client.Agent) -> int:
    """How many of its connections got something."""
    return sum(bool(client.statuses) for client in one.clients)


def written(operation: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"op": operation, "objects": list(items)}


def an_object(version: str, kind: str, name: str, spec: dict[str, Any], namespace: str = "") -> dict[str, Any]:
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **place}, "spec": spec}


def admin_policies(cidr: str = "10.1.0.0/16") -> list[dict[str, Any]]:
    """One of each admin kind."""
    rules = [{"action": "Deny", "to": [{"networks": [cidr]}]}]
    subject: dict[str, Any] = {"namespaces": {}}
    return [
        an_object(ADMIN, "AdminNetworkPolicy", "strict", {"priority": 7, "subject": subject, "egress": rules}),
        an_object(ADMIN, "BaselineAdminNetworkPolicy", "default", {"subject": subject, "egress": rules}),
    ]


def steps_of_all_kinds() -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The first objects, and rounds of changes."""
    first, later = calico_cluster.recorded_steps(V1)
    for pattern in RECORDINGS:
        more_first, more_later = calico_cluster.recorded_steps(V1, repository.GOLDEN_RELEASES / "v3.31.7", pattern)
        first += more_first
        later += more_later
    fields = {"requireMTUFile": True, "istioAmbientMode": "Enabled", "iptablesLockFilePath": "/run/lock"}
    first.append(written("create", an_object(V1.value, "FelixConfiguration", "node.of-all", fields)))
    return first, [later[number::ROUNDS] for number in range(ROUNDS)]


async def test_agents_of_five_releases_follow_one_service(gobpeer: str, cluster: calico_cluster.RealCluster) -> None:
    first, rounds = steps_of_all_kinds()
    await asyncio.to_thread(cluster.install, V1.value, *calico_cluster.OTHER_GROUPS, ADMIN)
    await asyncio.to_thread(cluster.play, first)
    newer = [agent(""), agent("v3.32.1"), agent("v3.32.1", "-no-restart")]
    older = [agent("v3.31.7"), agent("v3.31.7", "-no-restart")]
    late, oldest = agent("v3.30.7"), agent("v3.29.7")

    async def agree(*agents: go_client.Agent) -> dict[tuple[str, str], calico_cluster.Map]:
        return await calico_cluster.have_the_map(cluster, V1, agents)

    async def in_sync(*agents: go_client.Agent) -> None:
        await worker_stand.eventually(lambda: all(one.map for one in agents), seconds=served.TIMEOUT_SECONDS)

    def admin_tiers() -> set[str]:
        return cluster.names(V1.value, "tiers") & ADMIN_TIERS

    async with (
        served.serving(cluster, "--workers", "2") as service,
        go_client.living(gobpeer, address := await service.address(), *newer),
    ):
        await in_sync(*newer)
        assert not admin_tiers()
        async with go_client.living(gobpeer, address, oldest):
            await agree(oldest)
            assert admin_tiers() == {"adminnetworkpolicy"}
        # Nobody has the 3.29 feed any more. It is dropped a minute later, while the rest of this test runs.
        async with go_client.living(gobpeer, address, *older):
            await agree(*newer, *older)
            assert admin_tiers() == ADMIN_TIERS
            await asyncio.to_thread(cluster.play, rounds.pop(0))
            await agree(*newer, *older)
            assert all(served_times(one) == 1 for one in (*newer, *older)), "a client was disconnected"

            for worker in service.workers():
                os.kill(worker, signal.SIGKILL)
            await asyncio.to_thread(cluster.play, rounds.pop(0))
            await agree(*newer, *older)
            await worker_stand.eventually(lambda: len(service.workers()) == 4)

            # A feed is made for the first agent of 3.30 while the API server is away: everything is known.
            await asyncio.to_thread(cluster.plane.kill)
            async with go_client.living(gobpeer, address, late):
                await in_sync(late)
                await asyncio.to_thread(cluster.plane.start_api_server)
                await asyncio.to_thread(cluster.play, rounds.pop(0))
                await agree(*newer, *older, late)
                await service.logged("No agents of an older release are left.*3.29")
                async with go_client.living(gobpeer, address, oldest):
                    await in_sync(oldest)
                    await asyncio.to_thread(cluster.play, rounds.pop(0))
                    maps = await agree(*newer, *older, late, oldest)
        assert min(len(found) for found in maps.values()) > 250
        assert len({frozenset(found) for found in maps.values()}) == len(maps) == 5, "two releases have the same keys"
    assert "Traceback" not in service.text


@contextlib.asynccontextmanager
async def serving_an_older_agent(
    cluster: calico_cluster.RealCluster, gobpeer: str
) -> AsyncIterator[tuple[served.Service, go_client.Agent]]:
    one = agent("v3.31.7")
    async with (
        served.serving(cluster, "--workers", "0") as service,
        go_client.living(gobpeer, await service.address(), one),
    ):
        yield service, one


def admin_keys(one: go_client.Agent) -> set[str]:
    return {key for key in one.map or () if "kanp." in key or "kbanp." in key}


async def test_admin_policies_that_are_absent_or_forbidden_stall_no_older_agent(
    gobpeer: str, cluster: calico_cluster.RealCluster
) -> None:
    everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    allowed = {"apiGroups": ["policy.networking.k8s.io"], "resources": ["clusternetworkpolicies"], "verbs": ["*"]}
    groups = ["", "discovery.k8s.io", "networking.k8s.io", "crd.projectcalico.org", "kubevirt.io"]
    role = {"metadata": {"name": "most"}, "rules": [everything | {"apiGroups": groups}, allowed]}
    binding = {"metadata": {"name": "most"}, "subjects": [USER], "roleRef": {"kind": "ClusterRole", "name": "most"}}
    await asyncio.to_thread(cluster.install, V1.value, *calico_cluster.OTHER_GROUPS)
    for plural, item in (("clusterroles", role), ("clusterrolebindings", binding)):
        await asyncio.to_thread(cluster.plane.create, f"{RBAC}/{plural}", item)
    async with serving_an_older_agent(cluster, gobpeer) as (_, with_all_rights):
        await calico_cluster.have_the_map(cluster, V1, [with_all_rights])
        assert cluster.names(V1.value, "tiers") >= ADMIN_TIERS
        await asyncio.to_thread(cluster.install, ADMIN)
        await asyncio.to_thread(cluster.play, [written("create", *admin_policies())])
        cluster.kubeconfig = cluster.plane.user_kubeconfig
        async with serving_an_older_agent(cluster, gobpeer) as (service, with_few_rights):
            await worker_stand.eventually(lambda: bool(with_few_rights.map), seconds=served.TIMEOUT_SECONDS)
            assert not admin_keys(with_few_rights)
            await service.logged("missing RBAC rule.*adminnetworkpolicies")
            await asyncio.to_thread(
                cluster.plane.request, "PUT", f"{RBAC}/clusterroles/most", role | {"rules": [everything]}
            )
            await calico_cluster.have_the_map(cluster, V1, [with_all_rights, with_few_rights])
            assert len(admin_keys(with_all_rights)) == len(admin_keys(with_few_rights)) == 2
    assert served_times(with_few_rights) == served_times(with_all_rights) == 1


# An upgrade.

NEXT_RELEASES = ("v3.32.1", "", "v3.32.1", "")
"""What the nodes' agents are replaced by, one after another."""


def policies(cidr: str) -> list[dict[str, Any]]:
    """One policy of each kind that a cluster of 3.31 has, with and without a dot in its name, to be updated."""
    own = {"selector": "all()", "types": ["Egress"], "egress": [{"action": "Deny", "destination": {"nets": [cidr]}}]}
    kubernetes = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": cidr}}]}]}
    staged = own | {"stagedAction": "Set"}
    return [
        an_object(V1.value, "GlobalNetworkPolicy", "plain", own),
        an_object(V1.value, "GlobalNetworkPolicy", "default.dotted", own | {"tier": "default"}),
        an_object(V1.value, "GlobalNetworkPolicy", "sec.of-tier", own | {"tier": "sec"}),
        an_object(V1.value, "NetworkPolicy", "sec.of-tier", own | {"tier": "sec"}, "default"),
        an_object("networking.k8s.io/v1", "NetworkPolicy", "web", kubernetes, "default"),
        an_object(V1.value, "StagedGlobalNetworkPolicy", "sec.staged", staged | {"tier": "sec"}),
        an_object(V1.value, "StagedNetworkPolicy", "default.staged", staged, "default"),
        an_object(V1.value, "StagedKubernetesNetworkPolicy", "web", kubernetes | {"stagedAction": "Set"}, "default"),
        *admin_policies(cidr),
    ]


def cluster_policies() -> list[dict[str, Any]]:
    rules = [{"action": "Deny", "to": [{"networks": ["10.3.0.0/16"]}]}]
    return [
        an_object(
            CLUSTER,
            "ClusterNetworkPolicy",
            tier.lower(),
            {"tier": tier, "priority": 7, "subject": {"namespaces": {}}, "egress": rules},
        )
        for tier in ("Admin", "Baseline")
    ]


def vanished(agents: list[go_client.Agent], in_force: dict[str, set[str]]) -> list[tuple[str, str, str]]:
    """Every policy that an agent lost or had not when it was in sync, by its release: its object always existed."""
    found = []
    for one in agents:
        wanted = in_force[one.release]
        for client in one.clients:
            found += [(one.release, "deleted", key) for key in client.deleted if key.startswith(POLICY)]
            for held in client.keys_in_sync:
                found += [(one.release, "missing", key) for key in wanted - held]
    return found


async def test_no_policy_vanishes_for_any_agent_during_an_upgrade(
    gobpeer: str, cluster: calico_cluster.RealCluster
) -> None:
    address = f"127.0.0.1:{(port := control_plane.free_port())}"
    variables = {"TYPHA_SERVERPORT": str(port)}
    tiers = [
        an_object(V1.value, "Tier", "sec", {"order": 50}),
        an_object(V1.value, "Tier", "adminnetworkpolicy", {"order": 1000, "defaultAction": "Pass"}),
        an_object(V1.value, "Tier", "baselineadminnetworkpolicy", {"order": 10_000_000, "defaultAction": "Pass"}),
    ]
    await asyncio.to_thread(cluster.install, V1.value, ADMIN)
    await asyncio.to_thread(cluster.play, [written("create", *tiers, *policies("10.0.0.0/16"))])
    assert not cluster.refused
    nodes = [agent("v3.31.7") for _ in NEXT_RELEASES]
    everyone = list(nodes)
    in_force: dict[str, set[str]] = {}

    async def agree() -> None:
        maps = await calico_cluster.have_the_map(cluster, V1, nodes)
        for (_, release), found in maps.items():
            keys = {key for key in found if key.startswith(POLICY)}
            assert in_force.setdefault(release, keys) <= keys

    async def update(cidr: str) -> None:
        await asyncio.to_thread(cluster.play, [written("update", *policies(cidr))])
        await agree()

    async with contextlib.AsyncExitStack() as agents:
        lives = [contextlib.AsyncExitStack() for _ in nodes]
        for life, node in zip(lives, nodes, strict=True):
            await agents.enter_async_context(life)
            await life.enter_async_context(go_client.living(gobpeer, address, node))
        async with served.serving(cluster, "--workers", "1", **variables) as service:
            await agree()
            assert len([key for key in in_force["v3.31.7"] if "/policy/" in key.removeprefix(POLICY)]) == len(
                policies("")
            )
            await asyncio.to_thread(cluster.update_definitions, V1.value, ADMIN)
            await update("10.2.0.0/16")
            await asyncio.to_thread(cluster.install, *calico_cluster.OTHER_GROUPS)
            await asyncio.to_thread(cluster.play, [written("create", *cluster_policies())])
            await update("10.3.0.0/16")
            assert all(served_times(node) == 1 for node in nodes)
        async with served.serving(cluster, "--workers", "1", **variables) as again:
            await agree()
            for number, release in enumerate(NEXT_RELEASES):
                await lives[number].aclose()
                nodes[number] = agent(release)
                everyone.append(nodes[number])
                await agents.enter_async_context(go_client.living(gobpeer, address, nodes[number]))
                await update(f"10.{10 + number}.0.0/16")
    assert vanished(everyone, in_force) == []
    assert len([key for key in in_force["v3.32.1"] if "KubernetesClusterNetworkPolicy" in key]) == 2
    assert not cluster.refused
    assert "Traceback" not in service.text + again.text
