"""Tests of loadtest.environment.calico_crds: the definitions agree with what the feeds watch."""

import json

import pytest

from cache.feeds.calico import syncers
from loadtest.environment import calico_crds


@pytest.mark.parametrize("group", syncers.Group)
def test_every_custom_resource_of_the_feeds_is_defined(group: syncers.Group) -> None:
    defined = {
        (item["spec"]["group"], item["spec"]["versions"][0]["name"], item["spec"]["names"]["plural"])
        for item in calico_crds.definitions(
            group.value, calico_crds.ADMIN_POLICIES, calico_crds.CLUSTER_POLICIES, calico_crds.MIGRATIONS
        )
    }
    built_in = {"", "discovery.k8s.io", "networking.k8s.io"}
    watched = {source.type for spec in syncers.specs(group) for source in spec.sources if not source.is_older}
    assert {(type.group, type.version, type.resource) for type in watched if type.group not in built_in} <= defined


def test_defaults_are_below_their_parents() -> None:
    named = {item["metadata"]["name"]: item for item in calico_crds.definitions(*calico_crds.GROUPS)}
    peer = named["bgppeers.projectcalico.org"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    reference = peer["properties"]["password"]["properties"]["secretKeyRef"]
    assert reference["properties"] == {"name": {"type": "string", "default": ""}}
    assert "default" not in peer["properties"]["password"]
    affinity = "blockaffinities.crd.projectcalico.org"
    schema = named[affinity]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert "properties" not in schema["properties"]["spec"]


@pytest.mark.parametrize(("argument", "group"), [("v1", calico_crds.V1), ("v3", calico_crds.V3)])
def test_prints_a_list_for_kubectl(argument: str, group: str, capsys: pytest.CaptureFixture[str]) -> None:
    calico_crds.main([argument])
    items = json.loads(capsys.readouterr().out)["items"]
    assert [item for item in items if item["spec"]["group"] == group.partition("/")[0]] == calico_crds.definitions(
        group
    )
