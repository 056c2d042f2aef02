"""Reads the feeds file: raw feeds by name, each with its resource types and the fields that it carries.

    feeds:
      workloads:
        resources:
          - type: v1/pods
            fields: [metadata.labels, spec.nodeName]

YAML is read as Kubernetes' tools read it, but duplicate keys and a second document are mistakes. The schema is strict.
Any mistake raises `ConfigurationError` with the file, the feed and the key in one line.
"""

import re
from typing import Any

import msgspec

from cache import yamljson
from cache.feeds.raw import FeedSpec, FieldPath, ResourceSpec
from cache.resources import ResourceType
from typha.settings import sources
from typha.settings.sources import ConfigurationError

RESERVED_NAMES = frozenset(("felix", "bgp", "tunnel-ip-allocation", "node-status"))
"""Names of Calico's feeds. The feeds file cannot define these."""

FEEDS_LIMIT = 64
RESOURCES_LIMIT = 256
FIELDS_LIMIT = 256
_NAME_LENGTH_LIMIT = 63
_FIELD_LENGTH_LIMIT = 512
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_FIELD = re.compile(r"[^.\s]+(\.[^.\s]+)*")
_SHOWN_LIMIT = 80


def load(path: str) -> list[FeedSpec]:
    """Read and check a feeds file of at most 1 MiB.

    Raises:
        ConfigurationError: the file is missing or invalid; the message names the file, the feed and the key.
    """
    try:
        text = sources.read(path)
    except FileNotFoundError:
        raise ConfigurationError(path, "no such file") from None
    return parse(path, text)


def parse(path: str, text: str) -> list[FeedSpec]:
    """Check the text of a feeds file. `path` is used only in error messages.

    Raises:
        ConfigurationError: as in `load`.
    """
    try:
        document = yamljson.to_json(text.encode())
    except yamljson.YamlError as error:
        raise ConfigurationError(path, f"not valid YAML: line {error.line}: {_shown(error.problem)}") from error
    for note in document.notes:
        raise ConfigurationError(path, f"line {note.line}: {_shown(note.text)}")
    content = msgspec.json.decode(document.raw)
    top = _mapping(path, "the file", content, required={"feeds"})
    feeds = _mapping(path, "feeds", top["feeds"])
    if not 0 < len(feeds) <= FEEDS_LIMIT:
        raise ConfigurationError(path, f"feeds: expected 1 to {FEEDS_LIMIT} feeds, not {len(feeds)}")
    return [_feed(path, name, value) for name, value in feeds.items()]


def _feed(path: str, name: Any, value: Any) -> FeedSpec:
    if not isinstance(name, str) or len(name) > _NAME_LENGTH_LIMIT or not _NAME.fullmatch(name):
        problem = "a name has 1 to 63 of a-z, 0-9 and -, and begins and ends with a letter or digit"
        raise ConfigurationError(path, f"feeds.{_shown(name)}: {problem}")
    where = f"feeds.{name}"
    if name in RESERVED_NAMES:
        raise ConfigurationError(path, f"{where}: the name is reserved")
    items = _mapping(path, where, value, required={"resources"})["resources"]
    where += ".resources"
    if not isinstance(items, list) or not 0 < len(items) <= RESOURCES_LIMIT:
        raise ConfigurationError(path, f"{where}: expected a list of 1 to {RESOURCES_LIMIT} resource types")
    resources: dict[ResourceType, ResourceSpec] = {}
    for index, item in enumerate(items):
        spec = _resource(path, f"{where}[{index}]", item)
        if spec.type in resources:
            raise ConfigurationError(path, f"{where}[{index}].type: duplicate resource type {spec.type}")
        resources[spec.type] = spec
    return FeedSpec(name, tuple(resources.values()))


def _resource(path: str, where: str, value: Any) -> ResourceSpec:
    members = _mapping(path, where, value, required={"type"}, optional={"fields"})
    if not isinstance(members["type"], str):
        raise ConfigurationError(path, f"{where}.type: expected text such as v1/pods")
    try:
        resource_type = ResourceType.parse(members["type"])
    except ValueError as error:
        raise ConfigurationError(path, f"{where}.type: {_shown(error)}") from error
    if "fields" not in members:
        return ResourceSpec(resource_type)
    fields = members["fields"]
    if not isinstance(fields, list) or not 0 < len(fields) <= FIELDS_LIMIT:
        raise ConfigurationError(path, f"{where}.fields: expected a list of 1 to {FIELDS_LIMIT} dotted paths")
    return ResourceSpec(
        resource_type, tuple(_field(path, f"{where}.fields[{i}]", item) for i, item in enumerate(fields))
    )


def _field(path: str, where: str, value: Any) -> FieldPath:
    if not isinstance(value, str) or len(value) > _FIELD_LENGTH_LIMIT or not _FIELD.fullmatch(value):
        raise ConfigurationError(path, f"{where}: expected a dotted path such as spec.nodeName, not {_shown(value)}")
    return tuple(value.split("."))


def _mapping(
    path: str, where: str, value: Any, *, required: set[str] | None = None, optional: set[str] | None = None
) -> dict[Any, Any]:
    """Check that the value is a mapping and, with `required`, that it has these keys and only optional ones besides."""
    if not isinstance(value, dict):
        raise ConfigurationError(path, f"{where}: expected a mapping")
    if required is None:
        return value
    allowed = required | (optional or set())
    for key in value:
        if key not in allowed:
            raise ConfigurationError(path, f"{where}: unknown key {_shown(key)}, expected {', '.join(sorted(allowed))}")
    for key in sorted(required - value.keys()):
        raise ConfigurationError(path, f"{where}: missing key {key}")
    return value


def _shown(value: object) -> str:
    return sources.printable(" ".join(str(value).split()), _SHOWN_LIMIT)
