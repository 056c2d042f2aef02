"""Raw feeds: Kubernetes objects as they are, minus what a feed does not carry. Pure.

A key is `/<group or core>/<version>/<resource>/<namespace or empty>/<name>`. A value is the object as compact JSON:
`apiVersion` and `kind` first (list items of built-in types lack them), then the other members in the API server's
order, byte for byte as it wrote them. `metadata.resourceVersion` travels beside the value as the revision, so that an
update that changes nothing a feed carries is no delivery; `metadata.managedFields` is carried only where a feed's
fields name it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from cache import resources

FieldPath: TypeAlias = tuple[str, ...]

_ALWAYS_CARRIED: tuple[FieldPath, ...] = (("metadata", "name"), ("metadata", "namespace"))


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
        InvalidObject: `raw` is not a JSON object with a metadata object.
    """
    try:
        members = _decode_members(_compact(raw))
        members["apiVersion"] = members.get("apiVersion") or msgspec.Raw(_encode(api_version))
        members["kind"] = members.get("kind") or msgspec.Raw(_encode(kind))
        if fields is None:
            metadata = _decode_members(members["metadata"])
            metadata.pop("managedFields", None)
        else:
            members, metadata = _select(members, (*_ALWAYS_CARRIED, *fields))
    except (msgspec.DecodeError, KeyError) as error:
        raise InvalidObject(f"not a Kubernetes object: {error}") from error
    metadata.pop("resourceVersion", None)
    members["metadata"] = msgspec.Raw(_encode(metadata))
    ordered = {"apiVersion": members.pop("apiVersion"), "kind": members.pop("kind"), **members}
    return _encode(ordered)


def _compact(raw: bytes) -> bytes:
    # kube-apiserver writes compact JSON; a newline or a space behind a colon shows a server that does not (or stands
    # inside a string, and then the work is merely wasted).
    return msgspec.json.format(raw, indent=-1) if b"\n" in raw or b'": ' in raw else raw


def _select(
    members: dict[str, msgspec.Raw], paths: Iterable[FieldPath]
) -> tuple[dict[str, msgspec.Raw], dict[str, msgspec.Raw]]:
    """The named paths, in the object's own order: (members without metadata's content, metadata's members)."""
    wanted: dict[str, list[FieldPath]] = {"apiVersion": [()], "kind": [()]}
    for path in paths:
        wanted.setdefault(path[0], []).append(path[1:])
    metadata = _decode_members(members["metadata"])
    selected = {name: _pick(value, wanted[name]) for name, value in members.items() if name in wanted}
    if () in wanted["metadata"]:
        metadata.pop("managedFields", None)
    else:
        metadata = _decode_members(selected["metadata"])
    return {name: value for name, value in selected.items() if value != b""}, metadata


def _pick(value: msgspec.Raw, paths: list[FieldPath]) -> msgspec.Raw:
    """The parts of `value` that the paths name; empty if there is none of them."""
    if () in paths:
        return value
    try:
        members = _decode_members(value)
    except msgspec.ValidationError:  # a path leads into a list or a scalar: there is nothing of that name
        return msgspec.Raw(b"")
    wanted: dict[str, list[FieldPath]] = {}
    for path in paths:
        wanted.setdefault(path[0], []).append(path[1:])
    picked = {name: _pick(member, wanted[name]) for name, member in members.items() if name in wanted}
    picked = {name: member for name, member in picked.items() if bytes(member) != b""}
    return msgspec.Raw(_encode(picked)) if picked else msgspec.Raw(b"")
