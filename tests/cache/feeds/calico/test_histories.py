"""For any history of objects, the map is a function of the present objects, and nothing raises."""

import collections
import itertools
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import objects
from cache.feeds.calico import releases, syncers
from cache.feeds.calico.releases import Release
from tests.harness import corpus

pytestmark = pytest.mark.slow

_GROUP = syncers.Group.V1
_NAMES = st.sampled_from(["a", "b", "c"])
_CIDRS = st.sampled_from(["10.0.0.0/24", "10.0.1.0/24", "10.0.0.7/24", "fd00::/64", "junk", "::ffff:10.0.0.0/120"])
_TEXTS = st.sampled_from(["", "x", "a == 'b'", "a ==", "all()", "10.0.0.1", "10.0.0.1/8", "fd00::1", "default", "<&>"])
_LABELS = st.dictionaries(st.sampled_from(["a", "pcns.a", "projectcalico.org/namespace", "b/c"]), _TEXTS, max_size=3)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def _object(api_version: str, kind: str, **members: Any) -> st.SearchStrategy[dict[str, Any]]:
    fixed = {"apiVersion": st.just(api_version), "kind": st.just(kind)}
    strategies = {
        name: st.fixed_dictionaries(value) if isinstance(value, dict) else value for name, value in members.items()
    }
    return st.fixed_dictionaries({**fixed, **strategies})


def _metadata(*annotations: str, is_namespaced: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    texts = _TEXTS | st.sampled_from(
        ['{"name":"a"}', '{"labels":{"k":"v"}}', "{", "null", '[{"name":"e","addresses":["1.1.1.1","z"]}]']
    )
    found = st.dictionaries(st.sampled_from([*annotations, "other"]), texts, max_size=3)
    place = {"namespace": st.sampled_from(["n1", "n2"])} if is_namespaced else {}
    return st.fixed_dictionaries(
        {"name": _NAMES, "uid": st.just("668f26ba-664f-431a-afd8-273070d23404"), **place},
        optional={"labels": _LABELS, "annotations": found},
    )


_V1 = _GROUP.value
_INNER = "projectcalico.org/metadata"
_NODE_ANNOTATIONS = [f"projectcalico.org/{name}" for name in ("IPv4IPIPTunnelAddr", "WireguardPublicKey", "Interfaces")]
_CONFIG_ANNOTATIONS = [f"config.projectcalico.org/{name}" for name in ("IpInIpTunnelAddr", "RequireMTUFile", "Own")]
_FELIX_METADATA = st.fixed_dictionaries(
    {"name": st.sampled_from(["default", "node.a", "node.b", "other"])},
    optional={"annotations": st.dictionaries(st.sampled_from(_CONFIG_ANNOTATIONS), _TEXTS, max_size=3)},
)
_AFFINITY = {
    "cidr": _CIDRS,
    "node": st.sampled_from(["", "w1", "w2"]),
    "state": _TEXTS,
    "deleted": st.sampled_from(["", "true", "false", "maybe"]),
}
_HOST_ENDPOINT = {"node": st.sampled_from(["", "w1", "w1/endpoint/a"]), "interfaceName": _TEXTS}
_POLICY = {"selector": _TEXTS, "namespaceSelector": _TEXTS, "order": st.none() | st.floats(-10, 10)}
_STAGED = {
    "selector": _TEXTS,
    "tier": st.sampled_from(["", "a", "sec"]),
    "stagedAction": st.sampled_from(["", "Delete"]),
}
_CLUSTER_INFORMATION = {"clusterGUID": _TEXTS, "datastoreReady": st.booleans()}
_POD_METADATA = _metadata("cni.projectcalico.org/podIP", "cni.projectcalico.org/floatingIPs", is_namespaced=True)
_OBJECTS = st.one_of(
    _object(_V1, "IPPool", metadata=_metadata(), spec={"cidr": _CIDRS, "natOutgoing": st.booleans()}),
    _object(_V1, "IPAMBlock", metadata=_metadata(), spec={"cidr": _CIDRS, "affinity": st.none() | _TEXTS}),
    _object(_V1, "BlockAffinity", metadata=_metadata(), spec=_AFFINITY),
    _object(_V1, "GlobalNetworkSet", metadata=_metadata(_INNER), spec={"nets": st.lists(_TEXTS, max_size=3)}),
    _object(_V1, "HostEndpoint", metadata=_metadata(_INNER), spec=_HOST_ENDPOINT),
    _object(_V1, "GlobalNetworkPolicy", metadata=_metadata(_INNER), spec=_POLICY),
    _object(
        _V1,
        "FelixConfiguration",
        metadata=_FELIX_METADATA,
        spec={"logSeverityScreen": _TEXTS, "iptablesLockFilePath": _TEXTS, "requireMTUFile": st.booleans()},
    ),
    _object(_V1, "StagedNetworkPolicy", metadata=_metadata(_INNER, is_namespaced=True), spec=_STAGED),
    _object(_V1, "ClusterInformation", metadata=st.just({"name": "default"}), spec=_CLUSTER_INFORMATION),
    _object("v1", "Node", metadata=_metadata(*_NODE_ANNOTATIONS, "projectcalico.org/IPv4Address")),
    _object(
        "v1",
        "Pod",
        metadata=_POD_METADATA,
        spec={
            "nodeName": st.sampled_from(["", "w1", "w2"]),
            "initContainers": st.sampled_from([[], [{"ports": [{"name": "p", "containerPort": 7}]}]]),
        },
        status={"podIP": _TEXTS, "phase": st.sampled_from(["Running", "Succeeded"])},
    ),
    _object("v1", "Namespace", metadata=_metadata()),
)


def _write(
    replay: corpus.Replay,
    present: dict[tuple[str, str, str], bytes],
    action: str,
    found: dict[str, Any],
    *,
    version: int,
) -> bool:
    """Put or delete the object, if that is the action and can be done. Return whether it was."""
    found["metadata"]["resourceVersion"] = str(version)
    raw = json.dumps(found).encode()
    if action == "put":
        present[_place(found)] = raw
        replay.apply(raw, objects.Origin.EVENT)
    elif action == "delete" and _place(found) in present:
        replay.delete(present.pop(_place(found)))
    else:
        return False
    return True


def _place(found: dict[str, Any]) -> tuple[str, str, str]:
    return found["kind"], found["metadata"].get("namespace", ""), found["metadata"]["name"]


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(["put", "put", "put", "delete", "take"]), _OBJECTS), max_size=30), st.randoms()
)
def test_the_map_is_a_function_of_the_present_objects(history: list[tuple[str, dict[str, Any]]], random: Any) -> None:
    replay = corpus.Replay(_GROUP)
    present: dict[tuple[str, str, str], bytes] = {}
    clients: dict[str, dict[str, str | None]] = {syncer: {} for syncer in syncers.NAMES}
    for number, (action, found) in enumerate(history):
        if not _write(replay, present, action, found, version=number):
            _send(replay, clients)
    _send(replay, clients)
    fresh = corpus.Replay(_GROUP)
    left = list(present.values())
    random.shuffle(left)
    fresh.apply_list(left)
    for syncer in syncers.NAMES:
        expected = {key: item.value for key, item in fresh.snapshot(syncer).items()}
        assert {key: item.value for key, item in replay.snapshot(syncer).items()} == expected
        assert clients[syncer] == expected


_OLDER = [release for release in Release if release is not Release.NEWEST]
_ACTIONS = st.sampled_from(["put", "put", "put", "delete", "take", "open", "step", "step"])


@settings(max_examples=150)
@given(st.lists(st.tuples(_ACTIONS, _OBJECTS, st.sampled_from(_OLDER)), max_size=40), st.randoms())
def test_a_projection_is_a_function_of_the_present_objects(
    history: list[tuple[str, dict[str, Any], Release]], random: Any
) -> None:
    replay = corpus.Replay(_GROUP)
    present: dict[tuple[str, str, str], bytes] = {}
    seeds: dict[Release, Iterator[object]] = {}
    clients: dict[str, dict[str, str | None]] = {}
    for number, (action, found, release) in enumerate(history):
        if _write(replay, present, action, found, version=number):
            continue
        if action == "open" and release not in seeds:
            seeds[release] = replay.open(release)
            clients[releases.feed_name(release)] = {}
        elif action == "step" and release in seeds:
            next(seeds[release], None)
        else:
            _send(replay, clients)
    for seed in seeds.values():
        collections.deque(seed, maxlen=0)
    _send(replay, clients)
    fresh = corpus.Replay(_GROUP)
    for release in seeds:
        collections.deque(fresh.open(release), maxlen=0)
    left = list(present.values())
    random.shuffle(left)
    fresh.apply_list(left)
    for name, held in clients.items():
        expected = {key: item.value for key, item in fresh.snapshot(name).items()}
        assert {key: item.value for key, item in replay.snapshot(name).items()} == expected
        assert held == expected


_NETWORKS = ((), ("10.0.0.0/24",), ("10.0.1.0/24",), ("10.0.0.0/24", "10.0.1.0/24"))
_STATES = [(name, networks) for name in ("a", "b") for networks in (None, *_NETWORKS)]
"""A node, and its networks. None: it is absent."""


def _node(name: str, networks: tuple[str, ...]) -> bytes:
    spec = {"podCIDR": networks[0] if networks else "", "podCIDRs": networks}
    metadata = {"name": name, "resourceVersion": "1"}
    return json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec}).encode()


@pytest.mark.parametrize("release", [None, Release.V3_29])
def test_blocks_of_pod_cidrs_are_those_of_a_fresh_start(release: Release | None) -> None:
    """All histories of three steps of two nodes that share, swap and drop two networks."""
    name = syncers.FELIX if release is None else releases.feed_name(release)

    def started() -> corpus.Replay:
        replay = corpus.Replay(_GROUP, use_pod_cidr=True)
        if release is not None:
            collections.deque(replay.open(release), maxlen=0)
        return replay

    def contents(replay: corpus.Replay) -> dict[str, str | None]:
        return {key: item.value for key, item in replay.snapshot(name).items()}

    expected: dict[frozenset[tuple[str, tuple[str, ...]]], dict[str, str | None]] = {}
    for history in itertools.product(_STATES, repeat=3):
        replay, present = started(), dict[str, tuple[str, ...]]()
        clients: dict[str, dict[str, str | None]] = {name: {}}
        for node, networks in history:
            if networks is not None:
                present[node] = networks
                replay.apply(_node(node, networks), objects.Origin.EVENT)
            elif node in present:
                replay.delete(_node(node, present.pop(node)))
            _send(replay, clients)
        state = frozenset(present.items())
        if state not in expected:
            fresh = started()
            fresh.apply_list([_node(*one) for one in present.items()])
            expected[state] = contents(fresh)
        assert contents(replay) == expected[state], history
        assert clients[name] == expected[state], history
    both = expected[frozenset({("a", _NETWORKS[1]), ("b", _NETWORKS[1])})]
    block = both["/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-24"]
    assert json.loads(block or "")["affinity"] == "host:b"


def _send(replay: corpus.Replay, clients: dict[str, dict[str, str | None]]) -> None:
    """Send each client its updates. Check their update types and sequences."""
    for syncer, held in clients.items():
        sequence = replay.feeds[syncer].store.sequence
        updates = replay.take(syncer)
        assert replay.feeds[syncer].store.sequence == sequence + len(updates)
        for item in updates:
            has_value = item.value is not None or item.key in replay.feeds[syncer].store
            if item.update_type == 3 or not has_value:
                held.pop(item.key, None)
                assert item.value is None
            else:
                held[item.key] = item.value


_RECORDED = [
    (syncers.Group(scenario.api_group), bytes(raw))
    for scenario in map(corpus.load, corpus.NAMES)
    for raw in scenario.objects_after
]


@settings(max_examples=300)
@given(st.data())
def test_no_object_raises(data: st.DataObject) -> None:
    group, raw = data.draw(st.sampled_from(_RECORDED))
    found = msgspec.json.decode(raw)
    _mutate(found, data)
    replay = corpus.Replay(group)
    replay.apply(json.dumps(found).encode(), objects.Origin.EVENT)
    for syncer in syncers.NAMES:
        replay.take(syncer)


def _mutate(found: dict[str, Any], data: st.DataObject) -> None:
    """Replace any member by another value, except those in which the watcher reads the object's name."""
    name = data.draw(
        st.sampled_from([name for name in found if name not in ("apiVersion", "kind", "metadata")] or ["spec"])
    )
    holder: Any = found
    key: Any = name
    if data.draw(st.booleans()) and isinstance(found["metadata"].get("annotations"), dict):
        holder, key = (
            found["metadata"]["annotations"],
            data.draw(st.sampled_from(sorted(found["metadata"]["annotations"]))),
        )
    while isinstance(holder.get(key) if isinstance(holder, dict) else holder[key], dict | list):
        inner = holder[key]
        choices = sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not choices or data.draw(st.integers(0, 3)) == 0:
            break
        holder, key = inner, data.draw(st.sampled_from(choices))
    holder[key] = data.draw(_JSON)
