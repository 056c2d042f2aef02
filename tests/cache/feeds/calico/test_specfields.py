"""Fields that Calico does not know."""

import json
from typing import Any

import pytest

from cache.feeds.calico import specfields
from tests.harness import corpus


@pytest.mark.parametrize(
    ("kind", "spec", "unknown"),
    [
        ("IPPool", {"cidr": "x", "ipMode": "y", "blockSize": 26}, ["spec.ipMode"]),
        ("Tier", {"order": 1}, []),
        (
            "BGPPeer",
            {"peerIP": "1.2.3.4", "peerIp": "x", "password": {"secretKeyRef": {"nme": "s"}}},
            ["spec.peerIp", "spec.password.secretKeyRef.nme"],
        ),
        (
            "NetworkPolicy",
            {"doNotTrack": True, "ingress": [{"action": "Allow", "sorce": {}}, {"source": {"ports": [1], "port": 1}}]},
            ["spec.doNotTrack", "spec.ingress[0].sorce", "spec.ingress[1].source.port"],
        ),
        ("GlobalNetworkPolicy", {"egress": [{"metadata": {"annotations": {"any": "1"}}}], "preDNAT": True}, []),
        ("FelixConfiguration", {"wireguardEnabled": True, "wireguardEnable": True}, ["spec.wireguardEnable"]),
        ("Unheard", {"a": 1}, []),
        ("IPPool", None, []),
        ("NetworkPolicy", {"ingress": 5}, []),
    ],
)
def test_unknown_fields(kind: str, spec: Any, unknown: list[str]) -> None:
    assert specfields.unknown_fields(kind, spec) == unknown


def test_the_fields_of_stored_objects_are_known() -> None:
    for name in corpus.NAMES:
        scenario = corpus.load(name)
        for raw in scenario.objects_after:
            found = json.loads(bytes(raw))
            if found["apiVersion"] == scenario.api_group:
                assert specfields.unknown_fields(found["kind"], found.get("spec")) == [], (name, found["kind"])
