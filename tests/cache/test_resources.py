"""Parsing and printing of resource types."""

import pytest

from cache.resources import ResourceType


@pytest.mark.parametrize(
    ("text", "path", "canonical"),
    [
        ("v1/pods", "/api/v1/pods", "core/v1/pods"),
        ("core/v1/nodes", "/api/v1/nodes", "core/v1/nodes"),
        (
            "discovery.k8s.io/v1/endpointslices",
            "/apis/discovery.k8s.io/v1/endpointslices",
            "discovery.k8s.io/v1/endpointslices",
        ),
        ("apps/v1/deployments", "/apis/apps/v1/deployments", "apps/v1/deployments"),
    ],
)
def test_a_type_is_parsed_and_written(text: str, path: str, canonical: str) -> None:
    type = ResourceType.parse(text)
    assert type.list_path == path
    assert str(type) == canonical
    assert ResourceType.parse(canonical) == type


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pods",
        "/v1/pods",
        "v1/",
        "v1/Pods",
        "v1/pods/status",
        "a/b/c/d",
        "apps/v1/../secrets",
        "v1/pods?watch=1",
        "-x/v1/pods",
        "x..y/v1/pods",
        "v1/po ds",
        f"{'a.' * 127}a/v1/pods",
    ],
)
def test_an_invalid_type_raises_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="not a resource type") as caught:
        ResourceType.parse(text)
    assert repr(text) in str(caught.value)


def test_types_are_ordered_and_hashable() -> None:
    pods, nodes = ResourceType.parse("v1/pods"), ResourceType.parse("v1/nodes")
    assert sorted([pods, nodes]) == [nodes, pods]
    assert len({pods, ResourceType("", "v1", "pods")}) == 1
