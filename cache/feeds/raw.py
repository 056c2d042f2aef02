"""Raw feeds: Kubernetes objects as they are, minus what a feed does not carry. Pure.

A key is `/<group or core>/<version>/<resource>/<namespace or empty>/<name>`. A value is the object as compact JSON:
`apiVersion` and `kind` first (list items of built-in types lack them), then the other members in the API server's
order, byte for byte as it wrote them. `metadata.resourceVersion` travels beside the value as the revision, so that an
update that changes nothing a feed carries is no delivery; `metadata.managedFields` is carried only where a feed's
fields name it. A field's path leads through objects only: what lies behind a list is carried with the whole list.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from cache import resources

FieldPath: TypeAlias = tuple[str, ...]

_Tree: TypeAlias = "dict[str, _Tree | None]"
"""Members that are carried: None = whole, else these members of them."""

_ALWAYS_CARRIED: tuple[FieldPath, ...] = (("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"))
_FEEDS_FIELDS_MAX = 1024
"""Selections that are remembered: one for each resource type of each feed that names fields."""


@dataclass(frozen=True, slots=True)
class ResourceSpec:
    """One resource type of a raw feed, and which fields it carries: None = all but managedFields."""

    type: resources.ResourceType
    fields: tuple[FieldPath, ...] | None = None


@dataclass(frozen=True, slots=True)
class FeedSpec:
    """A raw feed: its name and what it consists of; no type stands in it twice."""

    name: str
    resources: tuple[ResourceSpec, ...]


class InvalidObject(ValueError):
    """An object's JSON cannot be carried: not an object, or its metadata is none."""


_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def object_key(type: resources.ResourceType, namespace: str, name: str) -> str:
    """The key of an object."""
    return f"/{type.group or 'core'}/{type.version}/{type.resource}/{namespace}/{name}"


def object_value(raw: bytes, *, api_version: str, kind: str, fields: Iterable[FieldPath] | None = None) -> bytes:
    """The value of an object whose JSON is `raw`.

    Args:
        raw: as the API server wrote it, with or without apiVersion and kind.
        api_version, kind: put where the object lacks them (contract: a list's own, minus "List").
        fields: the paths that are carried, or None for all.

    Raises:
        InvalidObject: `raw` is not a JSON object with a metadata object, or is nested too deeply to be read.
    """
    selection = _EVERYTHING if fields is None else _select(tuple(fields))
    try:
        # Formatting costs 2 us and makes sure: not every server behind the API server's aggregation writes compactly.
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
    """Which members of an object, and of its metadata, are carried: None = all."""

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
        if branch is None:  # carried whole already
            return
        tree = branch
    tree[path[-1]] = None


def _pick(members: dict[str, msgspec.Raw], tree: _Tree) -> dict[str, msgspec.Raw]:
    """The members that the tree names, in the object's own order; a member of which nothing is carried is left out."""
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
    except msgspec.ValidationError:  # a list or a scalar: there is nothing of that name in it
        return {}
    return _pick(members, tree)
