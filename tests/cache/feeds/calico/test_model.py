"""The common part of converters: reading objects with Go's rules."""

from typing import Any

import pytest

from cache.feeds.calico import kubepolicies, model, networks, pods, profiles
from tests.harness import builders

NULL_OR_ABSENT: dict[str, dict[str, Any]] = {
    "null": {"spec": {"nodeName": "w", "serviceAccountName": None}, "labels": {"a": None}, "generateName": None},
    "absent": {"spec": {"nodeName": "w"}, "labels": {"a": ""}},
}


def test_a_null_member_counts_as_absent() -> None:
    found = []
    for members in NULL_OR_ABSENT.values():
        metadata = {name: value for name, value in members.items() if name != "spec"}
        port = {"name": "http", "containerPort": 80, "protocol": None if "generateName" in metadata else ""}
        spec = {**members["spec"], "containers": [{"ports": [port]}]}
        found.append(pods.convert(builders.event("p", "n", metadata=metadata, spec=spec, status={"podIP": "10.0.0.1"})))
    assert found[0] == found[1]
    assert builders.value(found[0])["labels"]["a"] == ""


def test_objects_without_content() -> None:
    [item] = networks.convert_global_set(builders.event(spec=None), builders.V1)
    assert item.value == b'{"labels":null}'
    assert pods.convert(builders.event("p", "n", spec=None, status=None)) == ()
    labels, _, _ = profiles.convert_namespace(builders.event("n", metadata={"uid": None, "labels": {"a": None}}))
    assert labels.value == b'{"pcns.a":"","pcns.projectcalico.org/name":"n"}'
    [policy] = kubepolicies.convert_policy(builders.event("p", "n", spec={"podSelector": {"matchLabels": {"a": None}}}))
    assert builders.value([policy])["selector"].startswith("(projectcalico.org/orchestrator == 'k8s' && a == '')")


def test_invalid_utf8_is_the_objects_fault() -> None:
    event = builders.event(spec={"nets": ["?"]})
    event = event._replace(raw=(event.raw or b"").replace(b"?", b"\xff"))
    with pytest.raises(model.ConversionError, match="invalid-object"):
        model.members(event)
    with pytest.raises(model.ConversionError, match="invalid-object"):
        networks.convert_global_set(event, builders.V1)


@pytest.mark.parametrize("spec", [{"nets": [None]}, {"nets": "10.0.0.0/8"}, {"nets": [1], "other": None}])
def test_other_wrong_types_are_rejected(spec: dict[str, Any]) -> None:
    with pytest.raises(model.ConversionError, match="invalid-object"):
        networks.convert_global_set(builders.event(spec=spec), builders.V1)
