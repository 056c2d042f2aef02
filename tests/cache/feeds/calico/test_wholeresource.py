"""Resources that are sent whole."""

import json
import time
from typing import Any

import pytest

from cache import objects, resources
from cache.feeds.calico import customresource, model, wholeresource

UID = "01020304-0506-4708-890a-0b0c0d0e0f10"
REVERSED_UID = "8040c020-a060-4710-8950-d030b070f008"


def event(source: dict[str, Any], group: customresource.Group = customresource.Group.V3) -> objects.ObjectEvent:
    return raw_event(json.dumps(source, ensure_ascii=False).encode(), source["metadata"], group)


def raw_event(
    raw: bytes, metadata: dict[str, Any], group: customresource.Group = customresource.Group.V3
) -> objects.ObjectEvent:
    type = resources.ResourceType(group.group, group.version, "bgppeers")
    namespace = metadata.get("namespace", "")
    return objects.ObjectEvent(
        type, namespace, metadata["name"], "7", raw, group.value, "BGPPeer", objects.Origin.EVENT
    )


def peer(group: customresource.Group = customresource.Group.V3, **metadata: Any) -> model.Item:
    source = {"metadata": {"name": "p", "resourceVersion": "7", **metadata}, "spec": {"asNumber": 64512}}
    (item,) = wholeresource.convert_bgp_peer(event(source, group), group)
    return item


def shown_metadata(item: model.Item) -> dict[str, Any]:
    assert item.value is not None
    metadata = json.loads(item.value)["metadata"]
    assert isinstance(metadata, dict)
    return metadata


def test_the_version_is_not_part_of_the_value() -> None:
    item = peer()
    assert item.key == "/calico/resources/v3/projectcalico.org/bgppeers/p"
    assert item.value == (
        b'{"kind":"BGPPeer","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"asNumber":64512}}'
    )
    assert (item.revision, item.v3_resource_version) == ("7", "7")


def test_a_service_has_a_namespace_in_its_key_and_no_kind_in_its_value() -> None:
    source = {"metadata": {"name": "s", "namespace": "n", "resourceVersion": "7"}, "spec": {"type": "ClusterIP"}}
    (item,) = wholeresource.convert_service(event(source))
    assert item.key == "/calico/resources/v3/projectcalico.org/kubernetesservice/n/s"
    assert (
        item.value
        == b'{"metadata":{"name":"s","namespace":"n"},"spec":{"type":"ClusterIP"},"status":{"loadBalancer":{}}}'
    )


def test_managed_fields_stay_as_the_server_wrote_them_but_compact_and_escaped() -> None:
    raw = (
        b'{"metadata": {"name": "p", "managedFields": [{"fieldsV1": {"f:z": {}, "v:\\"\\u0008<\\"": {}, "f:a": {}},'
        b' "manager": "m"}]}, "spec": {}}'
    )
    (item,) = wholeresource.convert_bgp_peer(raw_event(raw, {"name": "p"}), customresource.Group.V3)
    assert item.value is not None
    assert b'"managedFields":[{"manager":"m","fieldsV1":{"f:z":{},"v:\\"\\u0008\\u003c\\"":{},"f:a":{}}}]' in item.value


def test_only_the_v1_group_reverses_uids() -> None:
    assert shown_metadata(peer(uid=UID))["uid"] == UID
    assert shown_metadata(peer(customresource.Group.V1, uid=UID))["uid"] == REVERSED_UID


def test_the_metadata_annotation_replaces_the_metadata_of_the_v1_group() -> None:
    annotation = json.dumps(
        {
            "name": "other",
            "namespace": "ignored",
            "uid": "ignored",
            "resourceVersion": "ignored",
            "labels": {"in": "1", "both": "in"},
            "annotations": {"in": "1"},
            "creationTimestamp": None,
            "finalizers": ["f"],
            "ownerReferences": [
                {"apiVersion": "crd.projectcalico.org/v1", "kind": "Tier", "name": "t", "uid": UID},
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": UID},
            ],
        }
    )
    item = peer(
        customresource.Group.V1,
        uid=UID,
        generation=3,
        creationTimestamp="2026-01-02T03:04:05Z",
        labels={"out": "1", "both": "out"},
        annotations={"out": "1", customresource.METADATA_ANNOTATION: annotation},
        managedFields=[{"manager": "m"}],
    )
    assert item.key.endswith("/p")
    assert shown_metadata(item) == {
        "name": "other",
        "uid": REVERSED_UID,
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": {"both": "in", "in": "1", "out": "1"},
        "annotations": {"in": "1", "out": "1"},
        "ownerReferences": [
            {"apiVersion": "projectcalico.org/v3", "kind": "Tier", "name": "t", "uid": REVERSED_UID},
            {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": UID},
        ],
        "finalizers": ["f"],
    }


def test_the_metadata_annotation_has_no_meaning_in_the_v3_group() -> None:
    annotations = {customresource.METADATA_ANNOTATION: "{nonsense"}
    assert shown_metadata(peer(annotations=annotations)) == {"name": "p", "annotations": annotations}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{nonsense",
        "[]",
        '{"labels":["x"]}',
        '{"generation":"1"}',
        '{"ownerReferences":[{"apiVersion":"projectcalico.org/v3"}]}',
    ],
)
def test_a_bad_metadata_annotation_rejects_the_object(text: str) -> None:
    with pytest.raises(model.ConversionError, match="bad-metadata-annotation"):
        peer(customresource.Group.V1, annotations={customresource.METADATA_ANNOTATION: text})


def test_labels_of_the_annotation_are_validated() -> None:
    annotations = {customresource.METADATA_ANNOTATION: '{"labels":{"not a label":""}}'}
    item = peer(customresource.Group.V1, annotations=annotations)
    assert item.value is None
    assert "not a label" in item.invalid


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "invalid-object"),
        (b"[]", "invalid-object"),
        (b'{"metadata":{"name":"p"},"spec":{"asNumber":"x"}}', "undecodable"),
        (b'{"metadata":{"name":"p"},"spec":{"keepaliveTime":"x"}}', "undecodable"),
        (b'{"metadata":{"name":"p","uid":"not-a-uid"},"spec":{}}', "bad-uid"),
        (b'{"metadata":[],"spec":{}}', "undecodable"),
        (b'{"metadata":{"name":"p"},"spec":' + b"[" * 100_000, "invalid-object"),
    ],
)
def test_an_undecodable_object_is_rejected_with_a_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(model.ConversionError, match=reason):
        wholeresource.convert_bgp_peer(raw_event(raw, {"name": "p"}, customresource.Group.V1), customresource.Group.V1)


def test_a_megabyte_of_annotations_is_rejected_quickly() -> None:
    started = time.process_time()
    item = peer(annotations={"a": "<é" * 500_000})
    assert time.process_time() - started < 1
    assert "annotations larger than" in item.invalid


def test_a_selector_beyond_our_limit_has_its_own_reason() -> None:
    deep = "(" * 300 + "all()" + ")" * 300
    source = {"metadata": {"name": "p", "uid": UID}, "spec": {"asNumber": 64512, "nodeSelector": deep}}
    with pytest.raises(model.ConversionError, match="256 nested parentheses") as caught:
        wholeresource.convert_bgp_peer(event(source), customresource.Group.V3)
    assert caught.value.reason == "selector-too-deep"
