"""From keys and values back to resources: one object of each kind goes through the converters and comes back."""

import pytest

from cache.feeds.calico import syncers
from tests.harness import one_of_each
from typha.admin import answers, kinds


def shown(example: one_of_each.Example) -> kinds.Members:
    kind = kinds.find(example.kind)
    assert kind is not None
    found = kinds.resources(kind, one_of_each.entries(example))
    [resource] = [one for one in found if kinds.name_of(one).name == example.name]
    return resource


@pytest.mark.parametrize("example", one_of_each.EXAMPLES, ids=lambda example: example.kind)
def test_an_object_comes_back(example: one_of_each.Example) -> None:
    resource = shown(example)
    assert (resource["kind"], resource["apiVersion"]) == (example.kind, kinds.API_VERSION)
    assert resource["metadata"].get("namespace", "") == example.metadata.get("namespace", "")
    assert example.specification(resource) == example.spec
    if example.kind in ("GlobalNetworkSet", "NetworkSet", "HostEndpoint"):
        assert resource["metadata"]["labels"] == example.metadata["labels"]


def test_every_kind_has_an_example() -> None:
    assert {kind.name for kind in kinds.KINDS} == {one.kind for one in one_of_each.EXAMPLES}


def test_every_kind_of_the_feeds_can_be_shown() -> None:
    """What no agent gets of its own is in another kind: service accounts are profiles."""
    owners = {
        source.kind for spec in syncers.specs(one_of_each.GROUP) for source in spec.sources if not source.is_older
    }
    by_other_names = {
        *("Pod", "Namespace", "ServiceAccount", "Service", "EndpointSlice", "ClusterNetworkPolicy"),
        "VirtualMachineInstanceMigration",
    }
    assert owners - {kind.name for kind in kinds.KINDS} == by_other_names


def test_aliases_are_unique_and_work_in_any_case() -> None:
    aliases = [alias for kind in kinds.KINDS for alias in (kind.name.lower(), *kind.aliases)]
    assert len(aliases) == len(set(aliases))
    gnp = kinds.find("GNP")
    assert gnp is not None
    assert gnp.name == "GlobalNetworkPolicy"
    assert kinds.find("secrets") is None


@pytest.mark.parametrize("value", ["", "[]", "nonsense", '{"inbound_rules": 7}', '{"labels": []}', "[" * 100_000])
@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
def test_a_value_of_any_form_shows_its_name(kind: kinds.Kind, value: str) -> None:
    owner = next(iter(kind.owners), kind.name)
    entry = answers.Entry(key=f"{kind.prefix}a{kind.part}b", value=value, owner_kind=owner, owner_name="ns/odd")
    [resource] = kinds.resources(kind, [entry])
    assert kinds.name_of(resource).name
    assert kinds.row(resource, kind.wide)


def test_columns_are_those_of_calicoctl() -> None:
    columns = {kind.name: (list(kind.columns), list(kind.wide)) for kind in kinds.KINDS}
    assert columns["NetworkPolicy"] == (["NAME", "TIER"], ["NAME", "TIER", "ORDER", "SELECTOR"])
    assert columns["WorkloadEndpoint"][0] == ["WORKLOAD", "NODE", "NETWORKS", "INTERFACE"]
    assert columns["HostEndpoint"] == (["NAME", "NODE"], ["NAME", "NODE", "INTERFACE", "IPS", "PROFILES"])


def test_cells() -> None:
    by_kind = {example.kind: example for example in one_of_each.EXAMPLES}
    rows = {}
    for name in ("WorkloadEndpoint", "BGPPeer", "BGPConfiguration", "IPPool", "BGPFilter", "GlobalNetworkPolicy"):
        kind = kinds.find(name)
        assert kind is not None
        rows[name] = kinds.row(shown(by_kind[name]), kind.wide)
    assert rows["WorkloadEndpoint"] == [
        *("n1-k8s-web--1-eth0", "web-1", "n1", "10.0.0.5/32", "cali91bef8fbcc9", "kns.prod,ksa.prod.robot", ""),
    ]
    assert rows["BGPPeer"] == ["rack", "192.0.2.9", "(global)", "64514"]
    assert rows["BGPConfiguration"] == ["default", "Info", "-", "64513"]
    assert rows["IPPool"] == ["pool-1", "10.0.0.0/16", "true", "CrossSubnet", "Never", "false", "false", "Automatic"]
    assert rows["BGPFilter"] == ["some", "1", "0", "0", "0"]
    assert rows["GlobalNetworkPolicy"] == ["all", "default", "12.5", "app == 'web' || app == 'db'"]
