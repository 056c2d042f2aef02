"""The metadata annotation of group v1."""

import json

import pytest

from cache.feeds.calico import customresource, model
from tests.harness import builders

ANNOTATION = customresource.METADATA_ANNOTATION


def metadata(text: str | None, **members: dict[str, str]) -> customresource.Metadata:
    annotations = {"own": "1"} if text is None else {"own": "1", ANNOTATION: text}
    return customresource.Metadata("o", members.get("labels"), annotations)


def test_without_the_annotation_nothing_changes() -> None:
    plain = metadata(None, labels={"a": "1"})
    assert customresource.effective_metadata(plain, builders.V1) == plain


def test_in_group_v3_the_annotation_has_no_meaning() -> None:
    odd = metadata("{broken")
    assert customresource.effective_metadata(odd, builders.V3) == odd


def test_the_annotations_metadata_takes_precedence() -> None:
    text = json.dumps({"Name": "inner", "labels": {"a": "2"}, "annotations": {"own": "2", "more": "3"}})
    found = customresource.effective_metadata(metadata(text, labels={"a": "1", "b": "1"}), builders.V1)
    assert found == customresource.Metadata("inner", {"a": "2", "b": "1"}, {"own": "2", "more": "3"})


@pytest.mark.parametrize("text", ["{}", "null", '{"name":""}'])
def test_an_empty_annotation_only_removes_itself(text: str) -> None:
    found = customresource.effective_metadata(metadata(text), builders.V1)
    assert found == customresource.Metadata("o", None, {"own": "1"})


def test_owners_of_calicos_kinds_are_translated() -> None:
    owners = [
        {"apiVersion": version, "kind": "K", "name": "n", "uid": builders.UID} for version in (builders.V1.value, "v1")
    ]
    [own, other] = customresource.annotation_metadata(json.dumps({"ownerReferences": owners}))["ownerReferences"]
    assert (own["apiVersion"], own["uid"]) == (builders.V3.value, builders.DERIVED_UID)
    assert (other["apiVersion"], other["uid"]) == ("v1", builders.UID)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        '{"labels":[]}',
        '{"creationTimestamp":"yesterday"}',
        '{"ownerReferences":[{"apiVersion":"projectcalico.org/v3","uid":"x"}]}',
        "[" * 100_000,
    ],
)
def test_unreadable_annotations(text: str) -> None:
    with pytest.raises(model.ConversionError) as caught:
        customresource.effective_metadata(metadata(text), builders.V1)
    assert caught.value.reason == "bad-metadata-annotation"
