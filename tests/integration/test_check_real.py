"""`typha check` on a real kube-apiserver with Calico's kinds: each rule that a role lacks is named."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cache import resources
from cache.feeds.calico import syncers
from loadtest.environment import calico_crds
from loadtest.environment.control_plane import ControlPlane
from tests.harness import calico_cluster
from typha import settings
from typha.preflight import cluster
from typha.preflight.findings import Finding, Status

pytestmark = [pytest.mark.control_plane, pytest.mark.slow, pytest.mark.timeout(600)]

ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
ACCOUNT = cluster.Account("calico-system", "calico-typha")
GROUP = syncers.Group.V1
PATIENCE_SECONDS = 180.0
TURNS = 8

Rule = tuple[str, resources.ResourceType]


def rules() -> list[Rule]:
    """Every verb and kind that the service uses."""
    types = dict.fromkeys(source.type for spec in syncers.specs(GROUP) for source in spec.sources)
    tiers, information = (syncers.custom_type(GROUP, plural) for plural in ("tiers", "clusterinformations"))
    written = [("get", tiers), ("create", tiers), *((verb, information) for verb in ("get", "create", "update"))]
    return [*((verb, type) for type in types for verb in ("list", "watch")), *written]


def role(allowed: list[Rule]) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "typha"},
        "rules": [{"apiGroups": [type.group], "resources": [type.resource], "verbs": [verb]} for verb, type in allowed],
    }


def until_served(plane: ControlPlane, path: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while plane.request("GET", path).status != 200:
        assert time.monotonic() < deadline, path


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("plane")) as running:
        groups = (GROUP.value, calico_crds.CLUSTER_POLICIES, calico_crds.ADMIN_POLICIES, calico_crds.MIGRATIONS)
        for definition in calico_crds.definitions(*groups):
            running.create(calico_cluster.DEFINITIONS, definition)
        for definition in calico_crds.definitions(*groups):
            [version] = definition["spec"]["versions"]
            path = f"/apis/{definition['spec']['group']}/{version['name']}/{definition['spec']['names']['plural']}"
            until_served(running, path)
        running.create(ROLES, role(rules()))
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "typha"}
        subject = {"kind": "ServiceAccount", "name": ACCOUNT.name, "namespace": ACCOUNT.namespace}
        binding = {"metadata": {"name": "typha"}, "roleRef": reference, "subjects": [subject]}
        running.create(BINDINGS, binding)
        until_followed(running, rules()[-1], is_allowed=True)
        yield running


def until_followed(plane: ControlPlane, rule: Rule, *, is_allowed: bool) -> None:
    """Wait until the API server's cache has followed the role, of which this rule is one that has changed."""
    verb, type = rule
    attributes = {"verb": verb, "group": type.group, "resource": type.resource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"resourceAttributes": attributes, **ACCOUNT.user},
    }
    deadline = time.monotonic() + PATIENCE_SECONDS
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    while plane.create(path, review)["status"]["allowed"] is not is_allowed:
        assert time.monotonic() < deadline, rule


async def denied(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the account may not, with the administrator's credentials."""
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    findings = await cluster.examine(settings.Settings(), os.environ, account=ACCOUNT)
    return [one for one in findings if one.check == "permissions" and one.status is not Status.OK]


def words(rule: Rule) -> str:
    verb, type = rule
    return f"{ACCOUNT.namespace}/{ACCOUNT.name} may not {verb} {type}"


def consequence(rule: Rule) -> Status:
    verb, type = rule
    is_needed = verb in ("list", "watch") and "adminnetworkpolicies" not in type.resource
    return Status.FAILED if is_needed else Status.WARNING


async def test_each_rule_that_is_removed_is_named(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight at a time, of which no two are of one kind: one more question for each of them would take minutes."""
    assert await denied(plane, monkeypatch) == []
    every = rules()
    for turn in range(TURNS):
        missing = every[turn::TURNS]
        changed = role([rule for rule in every if rule not in missing])
        assert plane.request("PUT", f"{ROLES}/typha", changed).status == 200
        await asyncio.to_thread(until_followed, plane, missing[-1], is_allowed=False)
        named = {one.found.partition(": ")[0]: one.status for one in await denied(plane, monkeypatch)}
        assert named == {words(rule): consequence(rule) for rule in missing}
    assert plane.request("PUT", f"{ROLES}/typha", role(every)).status == 200
    await asyncio.to_thread(until_followed, plane, missing[-1], is_allowed=True)


def run(plane: ControlPlane, *arguments: str, is_admin: bool = True) -> tuple[int, dict[str, Any]]:
    """The command as a process: exit code and JSON."""
    path = plane.kubeconfig if is_admin else plane.user_kubeconfig
    done = subprocess.run(
        [*calico_cluster.TYPHA, "check", "--json", "--cluster-only", *arguments],
        env={**os.environ, "KUBECONFIG": str(path)},
        stdout=subprocess.PIPE,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    return done.returncode, json.loads(done.stdout)


def test_the_command_as_an_administrator(plane: ControlPlane) -> None:
    code, found = run(plane)
    by_check = {one["check"]: one for one in found["findings"]}
    assert (code, by_check["credentials"]["found"]) == (0, "accepted as admin")
    assert by_check["API server"]["found"].endswith("answers: " + plane.request("GET", "/version").json()["gitVersion"])
    assert by_check["permissions"]["found"] == "the service may list and watch 29 of 29 kinds"
    assert by_check["agents"]["status"] == "cannot tell"


def test_the_command_as_a_user_without_rights(plane: ControlPlane) -> None:
    code, found = run(plane, is_admin=False)
    statuses = [one["status"] for one in found["findings"] if one["check"] == "permissions"]
    assert (code, found["result"]) == (1, "failed")
    assert (statuses.count("failed"), statuses.count("warning")) == (27, 4)
    unknown = {one["check"] for one in found["findings"] if one["status"] == "cannot tell"}
    assert unknown == {"agents", "operator"}


def test_the_agents_and_the_operator_are_seen(plane: ControlPlane) -> None:
    for namespace in ("calico-system", "tigera-operator"):
        plane.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    agent = {
        "metadata": {"name": "calico-node-x", "labels": {"k8s-app": "calico-node"}},
        "spec": {"containers": [{"name": "calico-node", "image": "quay.io/calico/node:v3.28.1"}]},
    }
    plane.create("/api/v1/namespaces/calico-system/pods", agent)
    labels = {"name": "tigera-operator"}
    container = {"name": "tigera-operator", "image": "quay.io/tigera/operator:v1.38.3"}
    deployment = {
        "metadata": {"name": "tigera-operator"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }
    plane.create("/apis/apps/v1/namespaces/tigera-operator/deployments", deployment)
    code, found = run(plane)
    by_check = {one["check"]: one for one in found["findings"]}
    assert code == 1
    assert by_check["agents"]["found"].startswith("v3.28.1 (1 pods of calico-node): Felix is refused")
    assert by_check["operator"]["found"] == "v1.38.3: an admission policy gives its pods this image"
