"""Watchers on a real kube-apiserver: after any fault, a reader's digest equals the digest of the API server's lists."""

import asyncio
import contextlib
import dataclasses
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cache import objects, resources
from cache.feeds import raw
from cache.kube import api, watcher
from cache.watch import decoding
from cache.watch.policy import WatchPolicy
from loadtest.environment.control_plane import ControlPlane
from protocol import digest
from protocol.messages import SyncStatus

pytestmark = [pytest.mark.control_plane, pytest.mark.slow]

PODS = resources.ResourceType.parse("v1/pods")
CONFIG_MAPS = resources.ResourceType.parse("v1/configmaps")
SERVICES = resources.ResourceType.parse("v1/services")

_PATIENCE_SECONDS = 180.0
_POLICY = WatchPolicy(healthy_seconds=2.0, connect_backoff_max_seconds=1.0, absent_seconds=0.5)


class DigestSink:
    """A reader in the process. It keeps a digest of whole objects, as a raw feed carries them."""

    def __init__(self) -> None:
        self.digest = digest.StateDigest()
        self.statuses: dict[resources.ResourceType, SyncStatus] = {}
        self.deleted: set[str] = set()

    def apply(self, event: objects.ObjectEvent) -> None:
        assert event.raw is not None
        value = raw.object_value(event.raw, api_version=event.api_version, kind=event.kind)
        self.digest.put(raw.object_key(event.type, event.namespace, event.name), value)

    def delete(self, event: objects.ObjectEvent) -> None:
        key = raw.object_key(event.type, event.namespace, event.name)
        self.digest.discard(key)
        self.deleted.add(key)

    def skipped(self, skipped: objects.SkippedObject) -> None:
        pytest.fail(f"left out: {skipped}")

    def status(self, type: resources.ResourceType, status: SyncStatus) -> None:
        self.statuses[type] = status

    def confirmed(self, type: resources.ResourceType) -> None:
        pass

    def batch_end(self) -> None:
        pass

    async def room(self) -> None:
        pass


class Reader:
    """Watches some types, and compares the result with the lists of the API server."""

    def __init__(self, plane: ControlPlane, sink: DigestSink, watchers: list[watcher.Watcher]) -> None:
        self.plane = plane
        self.sink = sink
        self.watchers = {subject.type: subject for subject in watchers}

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                holds = condition()
                while not holds:
                    await asyncio.sleep(0.02)
                    holds = condition()
        except TimeoutError:
            counters = {str(type): subject.counters for type, subject in self.watchers.items()}
            pytest.fail(f"{what} did not happen: {counters}")

    async def until_converged(self) -> None:
        """Lists again and again: the API server writes objects of its own after a restart."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not await self._has_converged():
            assert time.monotonic() < deadline, "no watch has the API server's state"

    async def _has_converged(self) -> bool:
        truth = await asyncio.to_thread(listed_digest, self.plane, list(self.watchers))
        # A digest of nothing is that of an empty cluster.
        is_in_sync = all(self.sink.statuses.get(type) is SyncStatus.IN_SYNC for type in self.watchers)
        return is_in_sync and self.sink.digest.value == truth


def listed_digest(plane: ControlPlane, types: list[resources.ResourceType]) -> int:
    pairs = []
    for type in types:
        answer = plane.request("GET", type.list_path)
        if answer.status == 404:
            continue
        page = decoding.decode_page(answer.body, type)
        for item in page.items:
            metadata = decoding.decode_item(item).metadata
            value = raw.object_value(bytes(item), api_version=page.api_version, kind=page.kind)
            pairs.append((raw.object_key(type, metadata.namespace, metadata.name), value))
    return digest.state_digest(pairs)


@contextlib.asynccontextmanager
async def reading(
    plane: ControlPlane, *types: resources.ResourceType, policy: WatchPolicy = _POLICY
) -> AsyncIterator[Reader]:
    session = api.KubeApi()
    await session.start()
    sink = DigestSink()
    watchers = [watcher.Watcher(session, type, sink, policy=policy) for type in types]
    tasks = [asyncio.create_task(subject.run(), name=f"watch {subject.type}") for subject in watchers]
    try:
        yield Reader(plane, sink, watchers)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await session.close()


@pytest.fixture(autouse=True)
def kubeconfig(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))


class Churn:
    """Writes pods and config maps in its own namespace, and records the deleted keys."""

    def __init__(self, plane: ControlPlane, seed: int) -> None:
        self.plane = plane
        self.random = random.Random(seed)
        self.namespace = f"test-{uuid.uuid4().hex[:12]}"
        self.live: list[tuple[resources.ResourceType, str]] = []
        self.deleted: set[str] = set()
        plane.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    def path(self, type: resources.ResourceType) -> str:
        return f"/api/v1/namespaces/{self.namespace}/{type.resource}"

    def run(self, count: int) -> None:
        for _ in range(count):
            choice = self.random.random()
            if not self.live or choice < 0.4:
                self.create()
            elif choice < 0.8:
                type, name = self.random.choice(self.live)
                patch = {"metadata": {"labels": {"turn": str(self.random.randrange(10**9))}}}
                answer = self.plane.request(
                    "PATCH", f"{self.path(type)}/{name}", patch, content_type="application/merge-patch+json"
                )
                assert answer.status == 200, answer
            else:
                type, name = self.live.pop(self.random.randrange(len(self.live)))
                answer = self.plane.request("DELETE", f"{self.path(type)}/{name}", {"gracePeriodSeconds": 0})
                assert answer.status == 200, answer
                self.deleted.add(raw.object_key(type, self.namespace, name))

    def create(self) -> None:
        name = f"o-{uuid.uuid4().hex[:8]}"
        if self.random.random() < 0.5:
            body: dict[str, Any] = {"spec": {"containers": [{"name": "main", "image": "none"}]}}
            type = PODS
        else:
            body, type = {"data": {"text": 'é}\n"{' * 20}}, CONFIG_MAPS
        self.plane.create(self.path(type), {"metadata": {"name": name}} | body)
        self.live.append((type, name))


@pytest.mark.parametrize("use_watch_list", [True, False])
async def test_churn_restart_and_expired_history(control_plane: ControlPlane, use_watch_list: bool) -> None:
    churn = await asyncio.to_thread(Churn, control_plane, 1)
    await asyncio.to_thread(churn.run, 100)
    policy = dataclasses.replace(_POLICY, use_watch_list=use_watch_list, page_limit=5)  # fewer than its pods
    async with reading(control_plane, PODS, CONFIG_MAPS, SERVICES, policy=policy) as reader:
        await reader.until_converged()
        await asyncio.to_thread(churn.run, 200)
        await reader.until_converged()
        pods = reader.watchers[PODS].counters
        assert (pods.watchlist_requests > 0) is use_watch_list
        assert (pods.list_pages > 1) is not use_watch_list
        assert pods.relists_410 == 0
        assert pods.events > 0

        await asyncio.to_thread(control_plane.restart)
        await asyncio.to_thread(churn.run, 100)
        await reader.until_converged()
        assert all(subject.counters.stream_breaks for subject in reader.watchers.values())

        await asyncio.to_thread(control_plane.expire_history)
        await asyncio.to_thread(churn.run, 100)
        await reader.until_converged()
        await reader.until(
            lambda: all(subject.counters.relists_410 for subject in reader.watchers.values()), "a 410 for each type"
        )
        await reader.until_converged()
        own = {key for key in reader.sink.deleted if f"/{churn.namespace}/" in key}
        assert own <= churn.deleted, "a live object was deleted"


async def test_a_silent_stream_is_renewed(control_plane: ControlPlane) -> None:
    churn = await asyncio.to_thread(Churn, control_plane, 2)
    short = dataclasses.replace(_POLICY, quiet_seconds=0.5, healthy_seconds=0.2)
    async with reading(control_plane, PODS, policy=short) as reader:
        await reader.until_converged()
        pods = reader.watchers[PODS].counters
        await reader.until(lambda: pods.renewals > 2, "silent streams")
        await asyncio.to_thread(churn.run, 30)
        await reader.until_converged()
        assert (pods.errors["idle"], pods.relists_410, pods.lists) == (0, 0, 1)


async def test_a_type_that_is_installed_later_is_found_and_is_empty_after_its_removal(
    control_plane: ControlPlane,
) -> None:
    group = f"g{uuid.uuid4().hex[:8]}.example.com"
    widgets = resources.ResourceType(group, "v1", "widgets")
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    policy = dataclasses.replace(_POLICY, absent_grace_seconds=1.0)
    async with reading(control_plane, widgets, policy=policy) as reader:
        await reader.until(lambda: reader.sink.statuses.get(widgets) is SyncStatus.IN_SYNC, "in sync without the type")
        assert reader.watchers[widgets].counters.errors["not-found"] > 0

        await asyncio.to_thread(control_plane.create, crds, widget_definition(group))
        collection = f"/apis/{group}/v1/namespaces/default/widgets"
        body = {"apiVersion": f"{group}/v1", "kind": "Widget", "metadata": {"name": "one"}, "spec": {"size": 1}}
        await asyncio.to_thread(create_when_served, control_plane, collection, body)
        await reader.until(lambda: len(reader.sink.digest) == 1, "the first widget")
        await reader.until_converged()

        answer = await asyncio.to_thread(control_plane.request, "DELETE", f"{crds}/widgets.{group}")
        assert answer.status == 200
        await reader.until(lambda: len(reader.sink.digest) == 0, "no widgets any more")
        await reader.until(
            lambda: reader.sink.statuses[widgets] is SyncStatus.IN_SYNC, "in sync without the type again"
        )


async def test_a_user_without_rights_gets_a_log_line_with_the_missing_rule(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.user_kubeconfig))
    async with reading(control_plane, PODS) as reader:
        await reader.until(lambda: reader.watchers[PODS].counters.errors["forbidden"] >= 2, "two refusals")
        assert reader.sink.statuses == {}
        assert reader.watchers[PODS].status is SyncStatus.WAITING
    output = capsys.readouterr().out
    assert output.count("missing RBAC rule") == 1
    assert 'resource "pods" in API group ""' in output


async def test_without_rights_a_type_that_is_not_installed_is_in_sync(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = [
        resources.ResourceType.parse("policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"),
        resources.ResourceType.parse("kubevirt.io/v1/virtualmachineinstancemigrations"),
        resources.ResourceType.parse("v1/nonesuch"),
        resources.ResourceType.parse("apps/v1/nonesuch"),
    ]
    monkeypatch.setenv("KUBECONFIG", str(control_plane.user_kubeconfig))
    async with reading(control_plane, PODS, *absent) as reader:
        in_sync = dict.fromkeys(absent, SyncStatus.IN_SYNC)
        await reader.until(lambda: reader.sink.statuses == in_sync, "in sync with what is not installed")
        await reader.until(lambda: reader.watchers[PODS].counters.errors["forbidden"] >= 1, "a refusal")
        assert reader.watchers[PODS].status is SyncStatus.WAITING
    output = capsys.readouterr().out
    assert output.count("resource type is not installed") == len(absent)
    assert output.count("missing RBAC rule") == 1


def widget_definition(group: str) -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"}
    return {
        "metadata": {"name": f"widgets.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def create_when_served(plane: ControlPlane, collection: str, body: dict[str, Any]) -> None:
    answer = plane.request("POST", collection, body)
    while answer.status == 404:  # the API server takes a moment to serve a new type; pytest's timeout limits this loop
        answer = plane.request("POST", collection, body)
    assert answer.status == 201, answer
