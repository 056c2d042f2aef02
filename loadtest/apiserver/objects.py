"""The JSON of an object as kube-apiserver writes it: in a list, alone, in a watch event. Pure.

Built-in types have their members in the order of the Go structs. Items of a list have no apiVersion and kind; elsewhere
kind comes first, then apiVersion. Custom types have their members sorted by name, everywhere.
"""

import datetime
import enum
from typing import Any, NamedTuple

import msgspec

from loadtest.apiserver.errors import Invalid
from loadtest.apiserver.resources import Resource

JsonObject = dict[str, Any]

#: Creation times start here and advance one second for each version: the store has no clock.
EPOCH = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
INITIAL_EVENTS_END = "k8s.io/initial-events-end"

_METADATA_ORDER = (
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
)

_PLAIN = msgspec.json.Encoder()
_SORTED = msgspec.json.Encoder(order="sorted")


class EventKind(enum.Enum):
    """Types of watch events that carry an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


class Event(NamedTuple):
    """One change. `item` is the object as in a list; for a deletion, its last state with the deletion's version."""

    kind: EventKind
    version: int
    key: str
    namespace: str
    item: bytes


class _Metadata(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion")


class _Versioned(msgspec.Struct):
    metadata: _Metadata


_VERSIONED = msgspec.json.Decoder(_Versioned)
_OBJECT = msgspec.json.Decoder(JsonObject)


def identity(resource: Resource, value: JsonObject) -> tuple[str, str]:
    """Namespace ("" for types without one) and name. Raises Invalid."""
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        raise Invalid(resource, "", "metadata: Required value")
    name = metadata.get("name")
    namespace = metadata.get("namespace", "")
    if not isinstance(name, str) or not name or "/" in name:
        raise Invalid(resource, str(name), "metadata.name: Required value: a name without slashes")
    if not isinstance(namespace, str) or "/" in namespace:
        raise Invalid(resource, name, "metadata.namespace: Invalid value")
    if bool(namespace) is not resource.namespaced:
        needs = "Required value" if resource.namespaced else "Forbidden: not allowed on this type"
        raise Invalid(resource, name, f"metadata.namespace: {needs}")
    return namespace, name


def prepared(resource: Resource, value: JsonObject, *, version: int, uid: str, created: str) -> JsonObject:
    """A copy with the members that the server sets, in the server's order."""
    given = value["metadata"]
    set_by_server = {"uid": uid, "resourceVersion": str(version), "creationTimestamp": created}
    metadata = {
        name: set_by_server.get(name, given.get(name))
        for name in _METADATA_ORDER
        if name in set_by_server or given.get(name) is not None
    }
    metadata.update({name: member for name, member in given.items() if name not in metadata and member is not None})
    result: JsonObject = {}
    if resource.custom:
        result = {"apiVersion": resource.api_version, "kind": resource.kind}
    result["metadata"] = metadata
    result.update({name: member for name, member in value.items() if name not in ("apiVersion", "kind", "metadata")})
    return result


def encode(resource: Resource, value: JsonObject) -> bytes:
    """The object as in a list."""
    return _SORTED.encode(value) if resource.custom else _PLAIN.encode(value)


def decode(item: bytes) -> JsonObject:
    """The object of an item in a list. Raises msgspec.DecodeError."""
    return _OBJECT.decode(item)


def version_of(item: bytes) -> int:
    """metadata.resourceVersion of an object."""
    return int(_VERSIONED.decode(item).metadata.resource_version)


def labels(item: bytes) -> dict[str, str]:
    """The labels of an object."""
    return decode(item)["metadata"].get("labels") or {}


def timestamp(version: int) -> str:
    """Creation time of an object created at a version, as in Kubernetes' JSON."""
    return (EPOCH + datetime.timedelta(seconds=version)).strftime("%Y-%m-%dT%H:%M:%SZ")


def merged(value: JsonObject, change: JsonObject) -> JsonObject:
    """A JSON merge patch (RFC 7386): null removes, objects are merged, other values replace."""
    result = dict(value)
    for name, member in change.items():
        if member is None:
            result.pop(name, None)
        elif isinstance(member, dict):
            before = result.get(name)
            result[name] = merged(before if isinstance(before, dict) else {}, member)
        else:
            result[name] = member
    return result


def type_members(resource: Resource) -> bytes:
    """`"kind":"Pod","apiVersion":"v1"`: the first members of a built-in object."""
    return b'"kind":"%b","apiVersion":"%b"' % (resource.kind.encode(), resource.api_version.encode())


def alone(resource: Resource, item: bytes) -> bytes:
    """The object as written outside a list."""
    return item if resource.custom else b"{" + type_members(resource) + b"," + item[1:]


def event_line(resource: Resource, kind: EventKind, item: bytes) -> bytes:
    """One line of a watch stream."""
    return b'{"type":"%b","object":%b}\n' % (kind.value.encode(), alone(resource, item))


def bookmark_line(resource: Resource, version: int, *, initial_events_end: bool = False) -> bytes:
    """A BOOKMARK; with `initial_events_end` the one that ends the initial events of a WatchList."""
    metadata: JsonObject = {"resourceVersion": str(version)}
    if initial_events_end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    item = encode(resource, prepared_bookmark(resource, metadata))
    return b'{"type":"BOOKMARK","object":%b}\n' % alone(resource, item)


def prepared_bookmark(resource: Resource, metadata: JsonObject) -> JsonObject:
    """An object of the type with nothing but metadata."""
    if resource.custom:
        return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
    return {"metadata": metadata}


_BAD_VALUES = {"surrogate": b'"\\ud800"', "nan": b"NaN", "deep": b"[" * 13_000 + b"]" * 13_000}
"""Half of a surrogate pair is no text, NaN is no JSON, and no decoder takes so many levels."""


def bad_object(why: str = "") -> bytes:
    """An object that cannot be decoded."""
    value = _BAD_VALUES[why or "surrogate"]
    return b'{"metadata":{"name":"bad","namespace":"default","resourceVersion":"1"},"data":{"bad":%b}}' % value


def with_bad_object(body: bytes, why: str = "") -> bytes:
    """A list with one more object, which cannot be decoded."""
    start, end = body.index(b'"items":[') + len(b'"items":['), body.index(b"]")
    return body[:start] + bad_object(why) + (b"," if end > start else b"") + body[start:]


def with_token(body: bytes, token: str) -> bytes:
    """A list that is continued by a token."""
    page = decode(body)
    page["metadata"]["continue"] = token
    return _PLAIN.encode(page)


def list_body(resource: Resource, items: list[bytes], *, version: int, token: str = "", remaining: int = 0) -> bytes:
    """A whole list; custom types have their items before kind and metadata, as sorted members do."""
    metadata: JsonObject = {"resourceVersion": str(version)}
    if token:
        metadata["continue"] = token
        if remaining:
            metadata["remainingItemCount"] = remaining
    joined = b",".join(items)
    if resource.custom:
        return b'{"apiVersion":"%b","items":[%b],"kind":"%bList","metadata":%b}\n' % (
            resource.api_version.encode(),
            joined,
            resource.kind.encode(),
            _SORTED.encode(metadata),
        )
    return b'{"kind":"%bList","apiVersion":"%b","metadata":%b,"items":[%b]}\n' % (
        resource.kind.encode(),
        resource.api_version.encode(),
        _PLAIN.encode(metadata),
        joined,
    )
