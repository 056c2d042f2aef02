"""Tests of loadtest.apiserver.population."""

import collections
import json

import pytest

from loadtest.apiserver import resources
from loadtest.apiserver.population import CALICO_RESOURCES, Maker, Population, generate, populate
from loadtest.apiserver.store import Store
from loadtest.environment import calico_crds

SMALL = Population(nodes=7, pods=200, namespaces=3, services=5, widgets=4)


def populated(seed: int) -> Store:
    store = Store(seed=seed)
    for resource in resources.BUILT_IN:
        store.install(resource)
    populate(store, SMALL, seed=seed)
    return store


def test_counts_and_size() -> None:
    store = populated(0)
    counts = {resource.name: store.count(resource) for resource in store.resources() if store.count(resource)}
    assert counts == {"nodes": 7, "pods": 200, "namespaces": 3, "services": 5, "endpointslices": 5, "widgets": 4}
    sizes = [len(item) for item in store.objects(resources.PODS).values()]
    assert min(sizes) > 1500
    assert max(sizes) < 2300


def test_the_seed_decides_every_byte() -> None:
    first, again, other = (populated(seed).objects(resources.PODS) for seed in (1, 1, 2))
    assert first == again != other


def test_pods_are_spread_and_complete() -> None:
    pods = [json.loads(item) for item in populated(0).objects(resources.PODS).values()]
    assert len({pod["metadata"]["namespace"] for pod in pods}) == SMALL.namespaces
    assert len({pod["spec"]["nodeName"] for pod in pods}) == SMALL.nodes
    assert collections.Counter(pod["status"]["podIP"] for pod in pods).most_common(1)[0][1] == 1
    for pod in pods:
        assert {"labels", "ownerReferences", "managedFields"} <= set(pod["metadata"])


def test_namespaces_of_all_objects_exist() -> None:
    objects = list(generate(SMALL, seed=0))
    there = {value["metadata"]["name"] for resource, value in objects if resource == resources.NAMESPACES}
    used = {value["metadata"].get("namespace") for resource, value in objects if resource.namespaced}
    assert used <= there


def test_an_impossible_population() -> None:
    with pytest.raises(ValueError, match="node"):
        Population(nodes=0)


def test_fat_pods() -> None:
    maker = Maker(Population(pod_bytes=4000), seed=0)
    sizes = [len(json.dumps(maker.pod(number), separators=(",", ":"))) for number in range(20)]
    assert 3500 < min(sizes) <= max(sizes) < 4500
    labels = maker.pod(0)["metadata"]["labels"]
    assert all(len(value) <= 63 for value in labels.values())


def test_types_and_objects_of_a_cluster_with_calico() -> None:
    store = Store()
    for resource in resources.BUILT_IN:
        store.install(resource)
    populate(store, Population(nodes=1, pods=0, namespaces=1, services=0, widgets=0, calico=True), seed=0)
    assert {resource.kind for resource in CALICO_RESOURCES.values()} <= {kind.name for kind in calico_crds.KINDS}
    assert set(CALICO_RESOURCES.values()) <= set(store.resources())
    assert store.count(CALICO_RESOURCES["IPPool"]) == 1
    assert b"projectcalico.org/IPv4Address" in next(iter(store.objects(resources.NODES).values()))


def test_names_of_the_types() -> None:
    assert CALICO_RESOURCES["BlockAffinity"].path == "/apis/projectcalico.org/v3/blockaffinities"
    assert CALICO_RESOURCES["NetworkSet"].namespaced
    assert not CALICO_RESOURCES["IPPool"].namespaced
