"""What `typha convert` reads: objects, lists and watch events, as JSON or YAML, in any mixture.

JSON keeps its bytes, since the order of members can be part of a value. YAML is taken as Kubernetes takes it, times
being texts, without aliases.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
import yaml

from cache.feeds.calico.codecs import gojson

MAX_INPUT_BYTES = 1 << 30
"""Of all files together."""
MAX_DEPTH = 100
"""Lists within lists; an API server gives one or two."""


class UnreadableInput(ValueError):
    """The input is not what can be read; says where and why."""


class Entry(NamedTuple):
    """One object, or what a watch said of one."""

    raw: bytes
    """Its JSON."""
    api_version: str
    kind: str
    namespace: str
    name: str
    resource_version: str
    watch_type: str
    """ADDED, MODIFIED or DELETED; empty for an object that is simply there."""

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What tells objects apart."""
        return self.api_version, self.kind, self.namespace, self.name

    def in_namespace(self, namespace: str) -> "Entry":
        """The entry with a namespace, in its JSON too."""
        members = _decode_members(self.raw)
        metadata = {**_decode_members(members["metadata"]), "namespace": _encode(namespace)}
        members["metadata"] = msgspec.Raw(msgspec.json.encode(metadata))
        return self._replace(namespace=namespace, raw=msgspec.json.encode(members))

    @property
    def title(self) -> str:
        """For messages: kind, and namespace and name."""
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class _Metadata(msgspec.Struct):
    name: str = ""
    namespace: str | None = None
    resourceVersion: str | None = None  # noqa: N815


class _Header(msgspec.Struct):
    apiVersion: str = ""  # noqa: N815
    kind: str = ""
    metadata: _Metadata | None = None
    items: list[msgspec.Raw] | None = None
    type: Any = None
    object: msgspec.Raw = msgspec.Raw(b"")


_WATCH_TYPES = frozenset({"ADDED", "MODIFIED", "DELETED"})
_QUIET_WATCH_TYPES = frozenset({"BOOKMARK", "SYNCED"})

_decode_header = msgspec.json.Decoder(_Header).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _encode(text: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(text))


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: a time is a text, and nothing refers to something else."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.line + 1}: aliases are not taken")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text: bytes, *, source: str) -> list[Entry]:
    """The objects and events of one file, in order.

    Raises:
        UnreadableInput: neither JSON nor YAML, or something in it is neither object, list nor watch event.
    """
    try:
        documents = list(_json_documents(text) if text.lstrip()[:1] in (b"{", b"[") else _yaml_documents(text))
        return [entry for document in documents for entry in _entries(document, source)]
    except RecursionError as error:
        raise UnreadableInput(f"{source}: nested too deeply") from error
    except (UnicodeDecodeError, json.JSONDecodeError, msgspec.DecodeError, yaml.YAMLError) as error:
        raise UnreadableInput(f"{source}: {' '.join(str(error).split())}") from error


def _json_documents(text: bytes) -> Iterator[bytes]:
    """The texts of consecutive JSON documents, as an API server would read and give them."""
    decoded = gojson.without_lone_surrogates(text.decode())
    scan = json.JSONDecoder().raw_decode
    position = _skip_blank(decoded, 0)
    while position < len(decoded):
        _, end = scan(decoded, position)
        yield decoded[position:end].encode()
        position = _skip_blank(decoded, end)


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _yaml_documents(text: bytes) -> Iterator[bytes]:
    for document in yaml.load_all(text, Loader=_Loader):
        if document is not None:
            try:
                yield json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
            except (TypeError, ValueError) as error:
                raise yaml.YAMLError(f"not JSON: {error}") from error


def _entries(document: bytes, source: str, *, depth: int = 0) -> Iterable[Entry]:
    if depth > MAX_DEPTH:
        raise UnreadableInput(f"{source}: lists nested too deeply")
    if document.lstrip()[:1] == b"[":
        return [
            entry for element in _decode_list(document) for entry in _entries(bytes(element), source, depth=depth + 1)
        ]
    header = _decode_header(document)
    if header.items is not None and header.kind.endswith("List"):
        return [entry for item in header.items for entry in _list_item(header, bytes(item), source, depth)]
    if bytes(header.object) and isinstance(header.type, str) and not header.kind:
        if header.type in _QUIET_WATCH_TYPES:
            return []
        if header.type not in _WATCH_TYPES:
            raise UnreadableInput(f"{source}: not a watch event that can be replayed: {header.type}")
        return [_entry(bytes(header.object), source, watch_type=header.type)]
    return [_entry(document, source)]


def _list_item(header: _Header, item: bytes, source: str, depth: int) -> Iterable[Entry]:
    if header.kind == "List":
        return _entries(item, source, depth=depth + 1)
    # Items of a typed list lack what the list says for all of them.
    return [_entry(item, source, api_version=header.apiVersion, kind=header.kind.removesuffix("List"))]


def _entry(raw: bytes, source: str, *, api_version: str = "", kind: str = "", watch_type: str = "") -> Entry:
    header = _decode_header(raw)
    api_version, kind = header.apiVersion or api_version, header.kind or kind
    if not api_version or not kind or header.metadata is None or not header.metadata.name:
        raise UnreadableInput(f"{source}: an object without apiVersion, kind or metadata.name")
    metadata = header.metadata
    return Entry(
        msgspec.json.format(raw, indent=-1),
        api_version,
        kind,
        metadata.namespace or "",
        metadata.name,
        metadata.resourceVersion or "",
        watch_type,
    )
