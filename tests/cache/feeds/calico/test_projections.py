"""Replays the recordings of older releases: what their agents read is what their own Typha sent."""

import collections
import json
import pathlib
from typing import Any

import pytest

from cache import objects
from cache.feeds.calico import feed, projections, releases, syncers
from cache.feeds.calico.releases import Release
from tests.harness import agents_eyes, corpus, deviations, repository
from tests.harness.deviations import NEW

DIRECTORY = repository.GOLDEN_RELEASES
PATHS = sorted(path.relative_to(DIRECTORY).with_suffix("") for path in DIRECTORY.glob("*/*.json"))
RECORDINGS = 270


def _load(path: pathlib.Path) -> corpus.Scenario:
    return corpus.load(path.name, DIRECTORY / path.parent)


def _release(scenario: corpus.Scenario) -> Release:
    major, minor, _ = scenario.release.removeprefix("v").split(".")
    return Release(f"{major}.{minor}")


def _replay(scenario: corpus.Scenario) -> tuple[corpus.Replay, dict[str, str]]:
    """Return feeds for agents of the scenario's release, and their names by syncer type."""
    replay = corpus.Replay(scenario.group)
    for _ in replay.open(_release(scenario)):
        pass
    return replay, {syncers.FELIX: releases.feed_name(_release(scenario))}


def _read(item: corpus.Item, release: str) -> tuple[str, int, Any]:
    return item.key, item.update_type, agents_eyes.meaning(item.key, item.value, release)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_fresh_server_has_the_originals_data(path: pathlib.Path) -> None:
    scenario = _load(path)
    baseline = _load(path.parent / "baseline")
    replay, names = _replay(scenario)
    replay.apply_list(scenario.objects_after)
    for syncer, recorded in scenario.expect.items():
        if recorded.sync_status is not None:
            continue  # one bad object stalls the original's whole feed
        expected = {item.key: _read(item, scenario.release) for item in scenario.snapshot(syncer).values()}
        held = replay.snapshot(names.get(syncer, syncer))
        read = {key: _read(item, scenario.release) for key, item in held.items()}
        assert {key: item for key, item in read.items() if key in expected or key not in baseline.snapshot(syncer)} == (
            expected
        ), syncer


# What we deviate from on purpose: the updates of these depend on history in the original.
@pytest.mark.parametrize("path", [path for path in PATHS if path.name not in deviations.DEVIATIONS], ids=str)
def test_clients_receive_the_originals_updates(path: pathlib.Path) -> None:
    scenario = _load(path)
    replay, names = _replay(scenario)
    replay.apply_list(_load(path.parent / "baseline").objects_after)
    for syncer in scenario.deltas:
        replay.take(names.get(syncer, syncer))
    for step, events in enumerate(scenario.events):
        for event in events:
            replay.play(event)
        for syncer in scenario.deltas:
            recorded = [_read(item, scenario.release) for item in scenario.delta(syncer, step)]
            sent = [_read(item, scenario.release) for item in replay.take(names.get(syncer, syncer))]
            assert sorted(sent, key=repr) == sorted(recorded, key=repr), (syncer, step)


_ADMIN = "tier/adminnetworkpolicy/policy/kanp.adminnetworkpolicy.both"
_BASELINE = "tier/baselineadminnetworkpolicy/policy/kbanp.baselineadminnetworkpolicy.default"
_CLUSTER = {"KubernetesClusterNetworkPolicy//both", "KubernetesClusterNetworkPolicy//default"}


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        (Release.V3_32, _CLUSTER),
        (Release.V3_31, {_ADMIN, _BASELINE}),
        (Release.V3_30, {_ADMIN, _BASELINE}),
        (Release.V3_29, {_ADMIN}),
    ],
)
def test_each_release_has_its_own_cluster_wide_policies(release: Release, expected: set[str]) -> None:
    """In the recordings of 3.29 the API server does not know baseline policies."""
    replay = corpus.Replay(syncers.Group.V1)
    for _ in replay.open(release):
        pass
    built_in = set(replay.snapshot(releases.feed_name(release)))
    replay.apply_list(corpus.load("anp-and-cnp", DIRECTORY / "v3.31.7-newer-crds").objects_after)
    added = set(replay.snapshot(releases.feed_name(release))) - built_in
    assert {key.removeprefix("/calico/v1/policy/") for key in added} == expected


@pytest.mark.parametrize(
    ("release", "protocol", "is_sent"),
    [(Release.V3_31, "TCP", True), (Release.V3_31, None, False), (Release.V3_32, None, True)],
)
def test_ports_without_a_protocol_reject_a_policy_up_to_3_31(
    release: Release, protocol: str | None, is_sent: bool
) -> None:
    rule = {"action": "Allow", "protocol": protocol, "destination": {"ports": ["dns"]}}
    [item] = _items_for(release, "GlobalNetworkPolicy", "sec.a", spec={"tier": "sec", "egress": [rule]})
    assert (item.value is not None) is is_sent
    assert item.update_type == NEW


@pytest.mark.parametrize(
    ("name", "tier", "warns"),
    [
        ("sec.a", "sec", False),
        ("sec.a", "dev", True),
        ("noprefix", "sec", True),
        ("noprefix", "default", False),
        ("knp.default.a", "default", False),
        ("ossg.a", "default", False),
        ("kanp.adminnetworkpolicy.a", "adminnetworkpolicy", False),
    ],
)
def test_a_policy_is_in_the_tier_of_its_name_up_to_3_31_and_a_contradiction_is_said(
    name: str, tier: str, warns: bool
) -> None:
    replay = _with(Release.V3_31)
    replay.apply(_object("GlobalNetworkPolicy", name, spec={"tier": tier, "order": 1}), objects.Origin.EVENT)
    [item] = replay.take("felix-3.31")
    assert item.key.startswith(f"/calico/v1/policy/tier/{projections.legacy_tier(name)}/policy/")
    assert replay.rejections == ([("felix-3.31", name, "doubtful")] if warns else [])


def test_an_agent_of_3_32_gets_the_address_of_a_node_whatever_else_is_wrong_with_it() -> None:
    annotations = {"projectcalico.org/IPv4Address": "10.0.0.1/24", "projectcalico.org/WireguardPublicKey": "bad"}
    node = json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "annotations": annotations}})
    replay = _with(Release.V3_32)
    replay.apply(node.encode(), objects.Origin.LIST)
    later = replay.open(Release.V3_31)
    collections.deque(later, maxlen=0)
    for name in ("felix-3.32", "felix-3.31"):
        sent = {item.key: item.value for item in replay.take(name)}
        assert sent["/calico/v1/host/n/bird_ip"] == "10.0.0.1"
    assert "/calico/v1/host/n/bird_ip" not in {item.key for item in replay.take("felix")}


def test_an_object_for_which_a_projection_had_no_memory_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    replay = _with(Release.V3_32)
    node = json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}).encode()
    projection = replay.feeds["felix-3.32"]
    assert isinstance(projection, feed.Projection)
    with monkeypatch.context() as patches:
        patches.setattr(projection, "_rewrites", dict.fromkeys(projection._rewrites, no_memory))
        with pytest.raises(MemoryError):
            replay.apply(node, objects.Origin.EVENT)
    replay.apply(node, objects.Origin.EVENT)
    assert [item.key for item in replay.take("felix-3.32")] == ["/calico/resources/v3/projectcalico.org/nodes/n"]


def _with(release: Release) -> corpus.Replay:
    replay = corpus.Replay(syncers.Group.V1)
    collections.deque(replay.open(release), maxlen=0)
    replay.take(releases.feed_name(release))
    return replay


def _object(kind: str, name: str, **members: Any) -> bytes:
    return json.dumps(
        {
            "apiVersion": syncers.Group.V1.value,
            "kind": kind,
            "metadata": {"name": name, "resourceVersion": "7"},
            **members,
        }
    ).encode()


def _items_for(release: Release, kind: str, name: str, **members: Any) -> list[corpus.Item]:
    replay = _with(release)
    replay.apply(_object(kind, name, **members), objects.Origin.EVENT)
    return replay.take(releases.feed_name(release))


def test_all_recordings_are_present() -> None:
    assert len(PATHS) == RECORDINGS
