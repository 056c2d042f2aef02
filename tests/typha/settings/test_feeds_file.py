"""The feeds file: its format, and errors that name the file, the feed and the key."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.feeds.raw import FeedSpec, ResourceSpec
from cache.resources import ResourceType
from tests.harness.repository import ROOT
from typha.settings import ConfigurationError, feeds_file


def test_a_valid_file() -> None:
    text = """
    feeds:
      workloads:
        resources:
          - type: v1/pods
            fields: [metadata.labels, spec.nodeName]
          - type: discovery.k8s.io/v1/endpointslices
      b: {resources: [{type: core/v1/nodes}]}
    """
    pods = ResourceSpec(ResourceType("", "v1", "pods"), (("metadata", "labels"), ("spec", "nodeName")))
    slices = ResourceSpec(ResourceType("discovery.k8s.io", "v1", "endpointslices"))
    assert feeds_file.parse("f", text) == [
        FeedSpec("b", (ResourceSpec(ResourceType("", "v1", "nodes")),)),
        FeedSpec("workloads", (pods, slices)),
    ]


def test_parts_can_be_repeated_with_anchors() -> None:
    text = "feeds:\n  a: {resources: &r [{type: v1/pods}]}\n  b: {resources: *r}\n"
    assert [feed.resources for feed in feeds_file.parse("f", text)] == [
        (ResourceSpec(ResourceType("", "v1", "pods")),)
    ] * 2


def test_the_example_is_valid() -> None:
    feeds = feeds_file.load(str(ROOT / "docs" / "feeds.example.yaml"))
    assert [feed.name for feed in feeds] == ["network", "workloads"]


def resources(text: str) -> str:
    return f"feeds: {{web: {{resources: {text}}}}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: expected a mapping"),
        ("[]", "the file: expected a mapping"),
        ("{}", "the file: missing key feeds"),
        ("feeds: {a: {resources: [{type: v1/pods}]}}\nfoo: 1", "the file: unknown key foo, expected feeds"),
        ("feeds: {}", "feeds: expected 1 to 64 feeds, not 0"),
        ("feeds: [1]", "feeds: expected a mapping"),
        ("feeds: {felix: {}}", "feeds.felix: the name is reserved"),
        ("feeds: {Web: {}}", "feeds.Web: a name has 1 to 63"),
        ("feeds: {-a: {}}", "feeds.-a: a name has 1 to 63"),
        (f"feeds: {{{'a' * 64}: {{}}}}", "a name has 1 to 63"),
        ("feeds: {1: {}}", "feeds.1: missing key resources"),
        ("feeds: {on: {}}", "feeds.true: missing key resources"),
        ("feeds: {web: null}", "feeds.web: expected a mapping"),
        ("feeds: {web: {}}", "feeds.web: missing key resources"),
        ("feeds: {web: {resources: [], type: x}}", "feeds.web: unknown key type, expected resources"),
        (resources("[]"), "feeds.web.resources: expected a list of 1 to 256 resource types"),
        (resources("v1/pods"), "feeds.web.resources: expected a list"),
        (resources("[v1/pods]"), r"feeds.web.resources\[0\]: expected a mapping"),
        (
            resources("[{type: v1/pods, field: []}]"),
            r"feeds.web.resources\[0\]: unknown key field, expected fields, type",
        ),
        (resources("[{fields: [a]}]"), r"feeds.web.resources\[0\]: missing key type"),
        (resources("[{type: 1}]"), r"feeds.web.resources\[0\].type: expected text"),
        (resources("[{type: pods}]"), r"feeds.web.resources\[0\].type: not a resource type: 'pods'"),
        (
            resources("[{type: v1/pods}, {type: core/v1/pods}]"),
            r"resources\[1\].type: duplicate resource type core/v1/pods",
        ),
        (resources("[{type: v1/pods, fields: []}]"), r"resources\[0\].fields: expected a list of 1 to 256"),
        (resources("[{type: v1/pods, fields: spec}]"), r"resources\[0\].fields: expected a list"),
        (resources("[{type: v1/pods, fields: [spec..x]}]"), r"fields\[0\]: expected a dotted path .*, not spec..x"),
        (resources("[{type: v1/pods, fields: [spec, 1]}]"), r"fields\[1\]: expected a dotted path .*, not 1"),
        ("feeds: {a: {", "not valid YAML: line 2: did not find expected"),
        ("feeds:\n  a: {}\n  a: {}", "line 3: duplicate key 'a': the last one counts"),
        ("feeds: {}\n...\nfeeds: {}", "line 2: text after the end of the document is ignored"),
        ("feeds: {? [a] : {}}", "not valid YAML: line 1: a list or mapping cannot be the name of a member"),
        ("feeds: {? {a: b} : {}}", "not valid YAML: line 1: a list or mapping cannot be the name of a member"),
        ("feeds: *x", "not valid YAML: line 1: unknown anchor 'x' referenced"),
        ("a: &x [*x]", "not valid YAML: line 1: anchor 'x' value contains itself"),
        ("feeds: !!python/object/apply:os.system [ls]", "feeds: expected a mapping"),
        ("\x00", "not valid YAML: line 1: control characters are not allowed"),
        ("[" * 100_000, "not valid YAML: line 1: nested more than 400 levels deep"),
        ("feeds: 2026-13-45", "feeds: expected a mapping"),
    ],
)
def test_a_mistake_is_rejected(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^f.yaml: .*{message}") as caught:
        feeds_file.parse("f.yaml", text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_missing_and_large_files_are_rejected(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigurationError, match="missing: no such file"):
        feeds_file.load(str(tmp_path / "missing"))
    large = tmp_path / "large.yaml"
    large.write_text("#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigurationError, match="larger than 1048576 bytes"):
        feeds_file.load(str(large))


@given(st.text(alphabet="feds: {}[]\n-&*!|'\"#?,x1", max_size=60))
def test_any_text_is_rejected_without_another_error(text: str) -> None:
    with pytest.raises(ConfigurationError):
        feeds_file.parse("f", text)
