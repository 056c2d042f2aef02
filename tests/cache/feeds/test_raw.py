"""Values of raw feeds: the included fields, byte for byte."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import resources
from cache.feeds import raw

POD = (
    b'{"metadata":{"name":"web-1","namespace":"default","uid":"u1","resourceVersion":"17","labels":{"app":"web"},'
    b'"managedFields":[{"manager":"m"}]},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i"}]},'
    b'"status":{"podIP":"10.0.0.1","ready":true}}'
)
HEAD = b'{"apiVersion":"v1","kind":"Pod",'

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
objects = st.fixed_dictionaries(
    {
        "metadata": st.dictionaries(
            st.sampled_from(["name", "namespace", "labels", "resourceVersion", "managedFields", "uid"]), json_values
        )
    },
    optional={"spec": json_values, "status": json_values, "kind": st.just("Pod"), "apiVersion": st.just("v1")},
)
paths = st.lists(
    st.lists(st.sampled_from(["metadata", "spec", "status", "labels", "managedFields", "a", "b"]), min_size=1).map(
        tuple
    )
)


def value(data: bytes, *fields: str) -> bytes:
    selected = [tuple(field.split(".")) for field in fields] if fields else None
    return raw.object_value(data, api_version="v1", kind="Pod", fields=selected)


def written(content: object, *, indent: int | None = None) -> bytes:
    return json.dumps(content, separators=None if indent else (",", ":"), indent=indent, ensure_ascii=False).encode()


def test_keys() -> None:
    pods, slices = resources.ResourceType.parse("v1/pods"), resources.ResourceType.parse("discovery.k8s.io/v1/slices")
    assert raw.object_key(pods, "default", "web-1") == "/core/v1/pods/default/web-1"
    assert raw.object_key(slices, "", "n1") == "/discovery.k8s.io/v1/slices//n1"


def test_a_value_has_everything_but_version_and_managed_fields_in_order() -> None:
    assert value(POD) == HEAD + (
        b'"metadata":{"name":"web-1","namespace":"default","uid":"u1","labels":{"app":"web"}},'
        b'"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i"}]},"status":{"podIP":"10.0.0.1","ready":true}}'
    )


def test_an_item_of_a_list_and_a_watch_event_give_the_same_value() -> None:
    event = b'{"kind":"Pod",' + POD[1:-1] + b',"apiVersion":"v1"}'
    assert value(event) == value(POD)
    assert value(event, "spec.nodeName") == value(POD, "spec.nodeName")


def test_the_objects_own_kind_takes_precedence_over_the_lists() -> None:
    event = b'{"kind":"Widget","apiVersion":"example.com/v1","metadata":{"name":"w"}}'
    assert value(event) == b'{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w"}}'


def test_escapes_and_numbers_stay_as_they_were_written() -> None:
    odd = b'"spec":{"a":"\\u003cb\\/\\u00e9\xc3\xa9 : \\n","n":[1.50e+3,-0.0,12345678901234567890123]}}'
    assert value(b'{"metadata":{"name":"a"},' + odd) == HEAD + b'"metadata":{"name":"a"},' + odd


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_white_space_is_removed(indent: int | None) -> None:
    content = json.loads(POD) | {"spec": {"text": 'two  spaces, "a": b,\n\tc', "list": [1, {"x": []}]}}
    assert value(json.dumps(content, indent=indent).encode()) == value(written(content))


def test_white_space_is_removed_everywhere() -> None:
    assert value(b' {"metadata" :{"name":"a"},"x":[1 ,2]\t} ') == HEAD + b'"metadata":{"name":"a"},"x":[1,2]}'


@pytest.mark.parametrize(
    ("fields", "rest"),
    [
        (["spec.nodeName"], b'"metadata":{"name":"web-1","namespace":"default"},"spec":{"nodeName":"n1"}}'),
        (
            ["status.podIP", "metadata.labels", "spec.containers"],
            (
                b'"metadata":{"name":"web-1","namespace":"default","labels":{"app":"web"}},'
                b'"spec":{"containers":[{"name":"c","image":"i"}]},"status":{"podIP":"10.0.0.1"}}'
            ),
        ),
        (
            ["metadata"],
            b'"metadata":{"name":"web-1","namespace":"default","uid":"u1","labels":{"app":"web"}}}',
        ),
        (
            ["metadata.managedFields"],
            b'"metadata":{"name":"web-1","namespace":"default","managedFields":[{"manager":"m"}]}}',
        ),
        (
            ["metadata", "metadata.managedFields"],
            (
                b'"metadata":{"name":"web-1","namespace":"default","uid":"u1","labels":{"app":"web"},'
                b'"managedFields":[{"manager":"m"}]}}'
            ),
        ),
        (
            ["spec.nodeName", "spec", "spec.missing"],
            (
                b'"metadata":{"name":"web-1","namespace":"default"},'
                b'"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i"}]}}'
            ),
        ),
        (
            ["data", "spec.missing.deeper", "spec.containers.image", "status.ready.x", "metadata.resourceVersion"],
            b'"metadata":{"name":"web-1","namespace":"default"}}',
        ),
    ],
)
def test_fields(fields: list[str], rest: bytes) -> None:
    assert value(POD, *fields) == HEAD + rest


def leaves(part: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Return the leaves of nested objects by path. Lists and empty objects are leaves."""
    if not isinstance(part, dict) or not part:
        return {path: part}
    found = {}
    for name, inner in part.items():
        found.update(leaves(inner, (*path, name)))
    return found


@given(objects, paths)
def test_fields_include_everything_below_them(content: dict[str, object], fields: list[tuple[str, ...]]) -> None:
    carried = [("metadata", "name"), ("metadata", "namespace"), *fields]
    dropped = [("metadata", "resourceVersion")]
    if not any(path[:2] == ("metadata", "managedFields") for path in fields):
        dropped.append(("metadata", "managedFields"))
    expected = {
        path: leaf
        for path, leaf in leaves(content).items()
        if any(path[: len(field)] == field for field in carried) and path[:2] not in dropped
    }
    if not any(path[0] == "metadata" for path in expected):
        expected["metadata",] = {}
    result = json.loads(raw.object_value(written(content), api_version="v1", kind="Pod", fields=fields))
    assert leaves(result) == expected | {("apiVersion",): "v1", ("kind",): "Pod"}


@given(objects)
def test_a_value_is_compact_json_with_everything_else_in_it(content: dict[str, object]) -> None:
    result = value(written(content, indent=1))
    assert msgspec.json.format(result, indent=-1) == result
    metadata = content["metadata"]
    assert isinstance(metadata, dict)
    kept = {name: part for name, part in metadata.items() if name not in ("managedFields", "resourceVersion")}
    assert json.loads(result) == content | {"metadata": kept, "apiVersion": "v1", "kind": "Pod"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"metadata":null}',
        b'{"metadata":[]}',
        b'{"metadata":{"name":"a"}',
        b'{"metadata":{"name":"a"}} x',
        b'{"metadata":{"name":"a"},"x":01}',
        b'{"metadata":{"name":"a"},"x":"\\q"}',
        b'{"metadata":{"name":"a"},"x":NaN}',
        b'{"metadata":{"name":"a"},"\xff":1}',
        b'{"metadata":{"name":"a"},"x":' + b"[" * 12_000 + b"]" * 12_000 + b"}",
    ],
)
@pytest.mark.parametrize("fields", [[], ["metadata"], ["x.y"]])
def test_an_invalid_object_raises(data: bytes, fields: list[str]) -> None:
    with pytest.raises(raw.InvalidObject):
        value(data, *fields)
