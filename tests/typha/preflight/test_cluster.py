"""What `typha check` says of a cluster, on an API server that answers as scripted by path."""

import asyncio
import contextlib
import json
import pathlib
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp import web

from cache.feeds.calico import syncers
from cache.kube import access
from typha import settings
from typha.preflight import cluster
from typha.preflight.findings import Finding, Status, worst

V1, V3 = syncers.Group.V1, syncers.Group.V3
PODS = "/api/v1/namespaces/calico-system/pods"
OPERATOR = "/apis/apps/v1/namespaces/tigera-operator/deployments/tigera-operator"
INFORMATION = "/apis/crd.projectcalico.org/v1/clusterinformations/default"
SELF_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"

Answer = tuple[int, Any]


class FakeCluster:
    """A cluster with Calico in which everything is as it should be. Tests change answers."""

    def __init__(self) -> None:
        self.version: dict[str, str] = {"major": "1", "minor": "37+", "gitVersion": "v1.37.2"}
        self.groups = [V1.group, "discovery.k8s.io", "networking.k8s.io", "kubevirt.io", "policy.networking.k8s.io"]
        self.missing: set[str] = set()
        """Resources that are not installed."""
        self.denied: set[tuple[str, str]] = set()
        """Verb and resource."""
        self.asked: list[dict[str, Any]] = []
        """Specs of reviews."""
        self.answers: dict[str, Answer] = {}
        """By path; these come first."""
        self.silent = False
        self.closing = asyncio.Event()
        self.requests: list[tuple[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if self.silent:
            await self.closing.wait()
        status, body = self.answers.get(request.path) or await self._usual(request)
        return web.Response(status=status, body=json.dumps(body).encode(), content_type="application/json")

    async def _usual(self, request: web.Request) -> Answer:
        path = request.path
        if path == "/version":
            return 200, self.version
        if path == "/apis":
            return 200, {"groups": [{"name": group} for group in self.groups]}
        if path.endswith("/selfsubjectreviews"):
            return 201, {"status": {"userInfo": {"username": "system:serviceaccount:calico-system:calico-typha"}}}
        if path in (SELF_REVIEWS, REVIEWS):
            spec = (await request.json())["spec"]
            self.asked.append(spec)
            attributes = spec["resourceAttributes"]
            return 201, {"status": {"allowed": (attributes["verb"], attributes["resource"]) not in self.denied}}
        if path == PODS:
            return 200, {"items": [agent_pod("quay.io/calico/node:v3.31.7")] * 3}
        if path.startswith("/apis/") and path.count("/") == 3:
            names = {source.type.resource for spec in syncers.specs(V1) for source in spec.sources}
            return 200, {"resources": [{"name": name} for name in sorted(names - self.missing)]}
        return 404, {"kind": "Status", "message": "not found"}


def agent_pod(image: str) -> dict[str, Any]:
    containers = [{"name": "other", "image": "x:v1.1"}, {"name": "calico-node", "image": image}]
    return {"metadata": {"name": "calico-node-x"}, "spec": {"containers": containers}}


def operator(image: str) -> Answer:
    containers = [{"name": "tigera-operator", "image": image}]
    return 200, {"spec": {"template": {"spec": {"containers": containers}}}}


@contextlib.asynccontextmanager
async def serving(fake: FakeCluster) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        fake.closing.set()
        await runner.cleanup()


async def examine(
    fake: FakeCluster,
    configured: settings.Settings | None = None,
    environment: Mapping[str, str] | None = None,
    account: cluster.Account | None = None,
) -> list[Finding]:
    async with serving(fake) as url:

        async def load() -> access.Access:
            return access.Access(host=url, source="test")

        return await cluster.examine(configured or settings.Settings(), environment or {}, load=load, account=account)


def of(findings: list[Finding], check: str) -> list[tuple[Status, str]]:
    return [(finding.status, finding.found) for finding in findings if finding.check == check]


async def test_a_good_cluster() -> None:
    fake = FakeCluster()
    findings = await examine(fake)
    assert [(finding.status, finding.check) for finding in findings] == [
        (Status.OK, "API server"),
        (Status.OK, "credentials"),
        (Status.OK, "kinds"),
        (Status.OK, "permissions"),
        (Status.OK, "agents"),
        (Status.OK, "operator"),
    ]
    assert [finding.found for finding in findings][1:] == [
        "accepted as system:serviceaccount:calico-system:calico-typha",
        "crd.projectcalico.org/v1: the API server lists crd.projectcalico.org alone",
        "the service may list and watch 29 of 29 kinds",
        "v3.31.7 (3 pods of calico-node): served as 3.31",
        "none: replace the image of the Deployment calico-typha",
    ]
    assert {method for method, path in fake.requests if not path.endswith("reviews")} == {"GET"}


async def test_kinds_that_pod_cidrs_replace_need_no_permission() -> None:
    fake = FakeCluster()
    fake.denied = {(verb, kind) for verb in ("list", "watch") for kind in ("ipamblocks", "blockaffinities")}
    assert worst(await examine(fake)) is Status.FAILED
    assert worst(await examine(fake, environment={"USE_POD_CIDR": "true"})) is Status.OK


@pytest.mark.parametrize("status", [200, 500])
async def test_what_must_be_said_of_the_access_is_a_warning(status: int) -> None:
    async def load() -> access.Access:
        return access.Access(host=url, source="test", warnings=("plain http",))

    fake = FakeCluster()
    fake.answers["/version"] = status, fake.version
    async with serving(fake) as url:
        findings = await cluster.examine(settings.Settings(), {}, load=load)
    assert (Status.WARNING, "plain http") in of(findings, "API server")


async def test_every_verb_of_every_kind_is_asked_for() -> None:
    fake = FakeCluster()
    await examine(fake)
    asked = {(one["resourceAttributes"]["verb"], one["resourceAttributes"]["resource"]) for one in fake.asked}
    types = {source.type.resource for spec in syncers.specs(V1) for source in spec.sources}
    assert asked == {(verb, resource) for resource in types for verb in ("list", "watch")} | {
        *(("get", "tiers"), ("create", "tiers")),
        *(("get", "clusterinformations"), ("create", "clusterinformations"), ("update", "clusterinformations")),
    }


@pytest.mark.parametrize(
    ("denied", "missing", "status", "words"),
    [
        (("watch", "pods"), "", Status.FAILED, "may not watch core/v1/pods: the service is not ready"),
        (("list", "clusternetworkpolicies"), "", Status.FAILED, "the service is not ready"),
        (
            ("list", "clusternetworkpolicies"),
            "clusternetworkpolicies",
            Status.WARNING,
            "not installed now; if it is, the service is not ready",
        ),
        (("watch", "adminnetworkpolicies"), "", Status.WARNING, "agents of Calico 3.29 to 3.31 lack these policies"),
        (("create", "tiers"), "", Status.WARNING, "may not create crd.projectcalico.org/v1/tiers: the objects"),
        (("update", "clusterinformations"), "", Status.WARNING, "may not update crd.projectcalico.org/v1/cluster"),
    ],
)
async def test_a_missing_permission_is_named_with_the_rule(
    denied: tuple[str, str], missing: str, status: Status, words: str
) -> None:
    fake = FakeCluster()
    fake.denied, fake.missing = {denied}, {missing}
    findings = [finding for finding in await examine(fake) if finding.status not in (Status.OK, Status.UNKNOWN)]
    [finding] = [finding for finding in findings if finding.check == "permissions"]
    assert finding.status is status
    assert words in finding.found
    assert f"resources: [{denied[1]}], verbs: [{denied[0]}]" in finding.advice


async def test_nothing_is_created_with_read_only() -> None:
    fake = FakeCluster()
    fake.denied = {("create", "tiers")}
    findings = await examine(fake, settings.Settings(read_only=True))
    assert worst(findings) is Status.OK
    assert (Status.OK, "ReadOnly is set: nothing is created") in of(findings, "permissions")


async def test_the_permissions_of_another_account_are_asked_for() -> None:
    fake = FakeCluster()
    fake.denied = {("list", "nodes")}
    findings = await examine(fake, account=cluster.Account("calico-system", "calico-typha"))
    (status, found), (_, others) = of(findings, "permissions")
    assert status is Status.FAILED
    assert others == "calico-system/calico-typha may list and watch 28 of 29 kinds"
    assert found.startswith("calico-system/calico-typha may not list core/v1/nodes")
    assert {one["user"] for one in fake.asked} == {"system:serviceaccount:calico-system:calico-typha"}


async def test_reviews_that_are_not_allowed_are_unknown() -> None:
    fake = FakeCluster()
    fake.answers[REVIEWS] = 403, {"message": "reviews are not for you"}
    findings = await examine(fake, account=cluster.Account("a", "b"))
    [(status, found)] = of(findings, "permissions")
    assert (status, "58 questions of 58 have no answer: 403 reviews are not for you") == (status, found)
    assert worst(findings) is Status.UNKNOWN


@pytest.mark.parametrize("groups", [[], ["apps"]])
async def test_no_kinds_of_calico(groups: list[str]) -> None:
    fake = FakeCluster()
    fake.groups = groups
    [(status, found)] = of(await examine(fake), "kinds")
    assert status is Status.FAILED
    assert found.startswith("no group crd.projectcalico.org (the API server lists neither group)")


async def test_kinds_that_are_not_installed_are_named() -> None:
    fake = FakeCluster()
    fake.missing = {"virtualmachineinstancemigrations", "tiers"}
    findings = of(await examine(fake), "kinds")
    assert findings[1][0] is Status.WARNING
    assert "crd.projectcalico.org/v1/tiers" in findings[1][1]
    assert "kubevirt.io/v1/virtualmachineinstancemigrations" in findings[1][1]


async def test_without_calico_only_the_types_of_the_feeds_file_count(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "feeds.yaml"
    path.write_text("feeds: {a: {resources: [{type: v1/secrets}, {type: apps/v1/deployments}]}}")
    for configured in (
        settings.Settings(calico_feeds="false", feeds_file=str(path)),
        settings.Settings(calico_feeds="auto", feeds_file=str(path)),
    ):
        fake = FakeCluster()
        fake.groups = ["apps"]
        fake.denied = {("list", "secrets")}
        findings = await examine(fake, configured)
        assert {(one["resourceAttributes"]["verb"], one["resourceAttributes"]["resource"]) for one in fake.asked} == {
            (verb, resource) for verb in ("list", "watch") for resource in ("secrets", "deployments")
        }
        assert of(findings, "permissions")[0] == (
            Status.FAILED,
            "the service may not list core/v1/secrets: the service is not ready",
        )
        assert (of(findings, "agents"), of(findings, "operator")) == ([], [])


async def test_the_group_of_the_environment_is_used() -> None:
    fake = FakeCluster()
    fake.groups.append(V3.group)
    findings = await examine(fake, environment={"CALICO_API_GROUP": "projectcalico.org/v3"})
    assert of(findings, "kinds")[0] == (
        Status.OK,
        "projectcalico.org/v3: CALICO_API_GROUP is 'projectcalico.org/v3'",
    )
    assert "projectcalico.org" in {one["resourceAttributes"]["group"] for one in fake.asked}


@pytest.mark.parametrize(
    ("image", "status", "words"),
    [
        ("quay.io/calico/node:v3.33.0", Status.OK, "served as 3.33"),
        (
            "registry:5000/calico/node:v3.32.1@sha256:" + "a" * 64,
            Status.OK,
            "v3.32.1 (1 pods of calico-node): served as 3.32",
        ),
        ("quay.io/calico/node:v3.28.5", Status.FAILED, "Felix is refused: agents before 3.29"),
        ("quay.io/calico/node:latest", Status.WARNING, "unknown, served as 3.31"),
        ("quay.io/calico/node@sha256:" + "a" * 64, Status.WARNING, "without a version"),
    ],
)
async def test_the_agents_release(image: str, status: Status, words: str) -> None:
    fake = FakeCluster()
    fake.answers[PODS] = 200, {"items": [agent_pod(image)]}
    [(found_status, found)] = of(await examine(fake), "agents")
    assert found_status is status
    assert words in found


async def test_agents_that_a_setting_admits_are_not_refused() -> None:
    fake = FakeCluster()
    fake.answers[PODS] = 200, {"items": [agent_pod("node:v3.28.5"), agent_pod("node:v3.30.1")]}
    findings = await examine(fake, settings.Settings(agent_releases="v3.28.*=3.29"))
    assert [found for _, found in of(findings, "agents")] == [
        "v3.28.5 (1 pods of calico-node): served as 3.29",
        "v3.30.1 (1 pods of calico-node): served as 3.30",
    ]


async def test_without_pods_the_cluster_information_names_the_release() -> None:
    fake = FakeCluster()
    fake.answers[PODS] = 403, {"message": "no"}
    assert of(await examine(fake), "agents")[0][0] is Status.UNKNOWN
    fake.answers[INFORMATION] = 200, {"spec": {"calicoVersion": "v3.27.0"}}
    [(status, found)] = of(await examine(fake), "agents")
    assert status is Status.FAILED
    assert found.startswith("v3.27.0 (ClusterInformation): Felix is refused")


@pytest.mark.parametrize(
    ("image", "minor", "status", "words"),
    [
        ("quay.io/tigera/operator:v1.38.3", "37", Status.OK, "an admission policy gives its pods this image"),
        ("quay.io/tigera/operator:v1.44.0", "36+", Status.OK, "an admission policy"),
        ("quay.io/tigera/operator:v1.44.0", "33", Status.FAILED, "no way is provided"),
        ("quay.io/tigera/operator:v1.42.1", "33", Status.WARNING, "it chooses the image"),
        ("quay.io/tigera/operator@sha256:aa", "37", Status.UNKNOWN, "its version cannot be seen"),
    ],
)
async def test_the_operator(image: str, minor: str, status: Status, words: str) -> None:
    fake = FakeCluster()
    fake.version["minor"] = minor
    fake.answers[OPERATOR] = operator(image)
    [(found_status, found)] = of(await examine(fake), "operator")
    assert found_status is status
    assert words in found


@pytest.mark.parametrize(
    ("path", "answer", "check", "status", "words"),
    [
        ("/version", (401, {"message": "Unauthorized"}), "API server", Status.FAILED, "401 Unauthorized"),
        ("/version", (403, {}), "API server", Status.OK, "its version may not be seen"),
        ("/version", (503, {"message": "starting"}), "API server", Status.FAILED, "503 starting"),
        ("/version", (200, [1]), "API server", Status.FAILED, "the answer is no JSON object"),
        ("/version", (200, {"minor": None}), "API server", Status.OK, "answers: None"),
        ("/apis", (403, {}), "kinds", Status.UNKNOWN, "the API groups may not be seen: 403"),
        (SELF_REVIEWS, (201, {"status": {}}), "permissions", Status.UNKNOWN, "the review has no result"),
        (
            PODS,
            (200, {"items": [1, {"spec": 2}, {"spec": {"containers": {}}}]}),
            "agents",
            Status.UNKNOWN,
            "no release",
        ),
        (OPERATOR, (200, {"spec": []}), "operator", Status.UNKNOWN, "cannot be seen"),
        (OPERATOR, (403, {"message": "no"}), "operator", Status.UNKNOWN, "403 no"),
        (INFORMATION, (200, {"spec": {"calicoVersion": 3}}), "agents", Status.OK, "served as 3.31"),
    ],
)
async def test_unusual_answers(path: str, answer: Answer, check: str, status: Status, words: str) -> None:
    fake = FakeCluster()
    fake.answers[path] = answer
    assert any(found_status is status and words in found for found_status, found in of(await examine(fake), check))


async def test_an_api_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.05)
    fake = FakeCluster()
    fake.silent = True
    [finding] = await examine(fake)
    assert finding.status is Status.FAILED
    assert "no whole answer" in finding.found or "within" in finding.found


async def test_credentials_that_cannot_be_loaded() -> None:
    async def load() -> access.Access:
        raise access.AccessError("kubeconfig x: no such file")

    [finding] = await cluster.examine(settings.Settings(), {}, load=load)
    assert (finding.status, finding.found) == (Status.FAILED, "kubeconfig x: no such file")


@pytest.mark.parametrize("verb", ["get", "create", "update"])
async def test_an_elected_fleet_needs_leases(verb: str) -> None:
    fake = FakeCluster()
    fake.denied = {(verb, "leases")}
    assert worst(await examine(fake)) is Status.OK  # nobody is elected
    configured = settings.Settings(upstream="elected", k8s_namespace="calico-system")
    findings = await examine(fake, configured)
    (finding,) = [one for one in findings if one.status is not Status.OK]
    assert finding.status is Status.WARNING
    assert "none is elected to watch" in finding.found
    assert f'apiGroups: ["coordination.k8s.io"], resources: [leases], verbs: [{verb}]' in finding.advice
    namespaces = [one["resourceAttributes"].get("namespace") for one in fake.asked]
    assert namespaces.count("calico-system") == 3  # a Role in the Service's namespace is enough
    fake.denied = set()
    assert worst(await examine(fake, configured)) is Status.OK


async def test_replicas_that_find_each_other_need_endpoint_slices() -> None:
    fake = FakeCluster()
    fake.denied = {("watch", "endpointslices")}
    configured = settings.Settings(connection_rebalancing_mode="kubernetes")
    (finding,) = [one for one in await examine(fake, configured) if "find each other" in one.found]
    assert finding.status is Status.WARNING
    assert 'apiGroups: ["discovery.k8s.io"], resources: [endpointslices], verbs: [watch]' in finding.advice


async def test_a_review_of_leases_without_an_answer_is_unknown() -> None:
    fake = FakeCluster()
    fake.answers[SELF_REVIEWS] = (403, {"message": "no reviews"})
    findings = await examine(fake, settings.Settings(upstream="elected"))
    assert any(status is Status.UNKNOWN and "leases" in found for status, found in of(findings, "permissions"))
