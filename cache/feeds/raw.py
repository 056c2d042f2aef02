"""Raw feeds: Kubernetes objects without conversion, as a whole or with selected fields. Pure.

A key is `/<group or core>/<version>/<resource>/<namespace or empty>/<name>`. A value is the object as compact JSON:
first `apiVersion` and `kind` (list items of built-in types lack them), then the other members in the API server's order
and exactly as it wrote them. `metadata.resourceVersion` is the revision and not part of the value, so that a change of
other fields causes no update. `metadata.managedFields` is included only if the feed's fields name it. A field's path
leads through objects only. A list is included as a whole.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from cache import resources

FieldPath: TypeAlias = tuple[str, ...]

_Tree: TypeAlias = "dict[str, _Tree | None]"
"""The selected members of an object. None = the whole member, else the selected members of it."""

_ALWAYS_CARRIED: tuple[FieldPath, ...] = (("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"))
_FEEDS_FIELDS_MAX = 1024
"""Number of cached selections: one for each resource type of each feed that names fields."""


@dataclass(frozen=True, slots=True)
class ResourceSpec:
    """One resource type of a raw feed, and its fields. None = all fields except managedFields."""

    type: resources.ResourceType
    fields: tuple[FieldPath, ...] | None = None


@dataclass(frozen=True, slots=True)
class FeedSpec:
    """A raw feed: its name and its resource types. Each type occurs once."""

    name: str
    resources: tuple[ResourceSpec, ...]


class InvalidObject(ValueError):
    """The JSON is not an object, or its metadata is not an object."""


_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def object_key(type: resources.ResourceType, namespace: str, name: str) -> str:
    """Return the key of an object."""
    return f"/{type.group or 'core'}/{type.version}/{type.resource}/{namespace}/{name}"


def object_value(raw: bytes, *, api_version: str, kind: str, fields: Iterable[FieldPath] | None = None) -> bytes:
    """Return the value for an object.

    Args:
        raw: the object's JSON as the API server wrote it, with or without apiVersion and kind.
        api_version, kind: used if the object lacks them (for list items: those of the list, without "List").
        fields: the paths to include, or None for all.

    Raises:
        InvalidObject: `raw` is not a JSON object with a metadata object, or is nested too deeply.
    """
    selection = _EVERYTHING if fields is None else _select(tuple(fields))
    try:
        if not raw.isascii():
            raw.decode()  # the formatter copies texts as they are, and clients may refuse what is not UTF-8
        # Formatting costs 2 us. It is needed because aggregated API servers may write JSON with white space.
        members = _decode_members(msgspec.json.format(raw, indent=-1))
        if "metadata" not in members:
            raise InvalidObject("not a Kubernetes object: it has no metadata")
        if selection.members is not None:
            members = _pick(members, selection.members)
        metadata = _decode_members(members["metadata"])
        if selection.metadata is not None:
            metadata = _pick(metadata, selection.metadata)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidObject(f"not a Kubernetes object: {error}") from error
    if not selection.carries_managed_fields:
        metadata.pop("managedFields", None)
    metadata.pop("resourceVersion", None)
    members["metadata"] = msgspec.Raw(_encode(metadata))
    ordered = {
        "apiVersion": members.pop("apiVersion", None) or msgspec.Raw(_encode(api_version)),
        "kind": members.pop("kind", None) or msgspec.Raw(_encode(kind)),
        **members,
    }
    return _encode(ordered)


@dataclass(frozen=True, slots=True)
class _Selection:
    """The selected members of an object and of its metadata. None = all."""

    members: "_Tree | None"
    metadata: "_Tree | None"
    carries_managed_fields: bool


_NOT_CARRIED: _Tree = {}
_EVERYTHING = _Selection(None, None, carries_managed_fields=False)


@functools.lru_cache(maxsize=_FEEDS_FIELDS_MAX)
def _select(fields: tuple[FieldPath, ...]) -> _Selection:
    tree: _Tree = {}
    for path in (*_ALWAYS_CARRIED, *fields):
        _grow(tree, path)
    metadata, tree["metadata"] = tree["metadata"], None
    named = any(path[:2] == ("metadata", "managedFields") for path in fields)
    return _Selection(tree, metadata, carries_managed_fields=named)


def _grow(tree: _Tree, path: FieldPath) -> None:
    for name in path[:-1]:
        branch = tree.setdefault(name, {})
        if branch is None:  # the whole member is selected already
            return
        tree = branch
    tree[path[-1]] = None


def _pick(members: dict[str, msgspec.Raw], tree: _Tree) -> dict[str, msgspec.Raw]:
    """Return the selected members in the object's order, without members that have no selected part."""
    picked = {}
    for name, value in members.items():
        branch = tree.get(name, _NOT_CARRIED)
        if branch is None:
            picked[name] = value
        elif branch and (inner := _pick_inner(value, branch)):
            picked[name] = msgspec.Raw(_encode(inner))
    return picked


def _pick_inner(value: msgspec.Raw, tree: _Tree) -> dict[str, msgspec.Raw]:
    try:
        members = _decode_members(value)
    except msgspec.ValidationError:  # a list or scalar has no members
        return {}
    return _pick(members, tree)
