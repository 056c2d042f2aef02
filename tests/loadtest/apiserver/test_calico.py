"""Tests of loadtest.apiserver.calico."""

from loadtest.apiserver import calico
from loadtest.apiserver.population import Population, populate
from loadtest.apiserver.resources import BUILT_IN
from loadtest.apiserver.store import Store
from loadtest.environment import calico_crds


def test_types_and_objects_of_a_cluster_with_calico() -> None:
    store = Store()
    for resource in BUILT_IN:
        store.install(resource)
    populate(store, Population(nodes=1, pods=0, namespaces=1, services=0, widgets=0, calico=True), seed=0)
    assert {resource.kind for resource in calico.RESOURCES.values()} <= {kind.name for kind in calico_crds.KINDS}
    assert set(calico.RESOURCES.values()) <= set(store.resources())
    assert store.count(calico.RESOURCES["IPPool"]) == 1
    assert b"projectcalico.org/IPv4Address" in next(iter(store.objects(BUILT_IN[1]).values()))


def test_names_of_the_types() -> None:
    assert calico.RESOURCES["BlockAffinity"].path == "/apis/projectcalico.org/v3/blockaffinities"
    assert calico.RESOURCES["NetworkSet"].namespaced
    assert not calico.RESOURCES["IPPool"].namespaced
