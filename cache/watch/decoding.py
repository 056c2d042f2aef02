"""Decodes list pages, watch events and Status objects. Pure.

This module decodes only the envelope of an object (apiVersion, kind, name, namespace, resourceVersion), and passes its
JSON on unchanged. The API server writes `{"type":"ADDED","object":{...}}`, so one typed pass checks the whole line, and
the object's bytes are a slice of it. Decoding `object` as msgspec.Raw and then its envelope takes two passes and twice
the time. Only lines of another form take the two passes.

One object that cannot be decoded is left out alone. Where a page or a line fails to decode, a scan of its brackets
finds the objects (docs/decisions/watching.md). The scan depends on no value, so it works for any bad one.
"""

import re
from collections.abc import Generator, Iterator
from typing import NamedTuple

import msgspec

from cache import resources

MAX_NAME_LENGTH = 253
"""Kubernetes' limit for names (DNS subdomain). Namespaces are shorter."""
MAX_VERSION_LENGTH = 128
"""resourceVersion is opaque. The longest in use is a 64-bit number; aggregated API servers join several."""
MAX_CONTINUE_LENGTH = 65_536
"""A continue token holds a key and a version in base64. A longer text is not a token, and would not fit into a URL."""


class InvalidInput(ValueError):
    """The API server sent something that cannot be decoded."""


class InvalidObject(InvalidInput):
    """One object cannot be decoded, but what surrounds it is whole. Its identity is empty if that is unknown."""

    def __init__(self, detail: str, *, namespace: str, name: str) -> None:
        super().__init__(detail)
        self.namespace = namespace
        self.name = name


class Metadata(msgspec.Struct, gc=False, rename="camel"):
    """The part of an object's metadata that identifies it."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class Envelope(msgspec.Struct, gc=False, rename="camel"):
    """The part that all objects have in common."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    api_version: str = ""
    kind: str = ""

    @property
    def is_sane(self) -> bool:
        """Whether the object has a usable name. Names cannot contain the slash, which separates the parts of keys."""
        metadata = self.metadata
        return (
            0 < len(metadata.name) <= MAX_NAME_LENGTH
            and len(metadata.namespace) <= MAX_NAME_LENGTH
            and len(metadata.resource_version) <= MAX_VERSION_LENGTH
            and "/" not in metadata.name
            and "/" not in metadata.namespace
        )


class _TypedLine(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    type: str
    object: Envelope


class _RawLine(msgspec.Struct, gc=False):
    type: str
    object: msgspec.Raw


class _BookmarkMetadata(msgspec.Struct, gc=False):
    annotations: dict[str, str] | None = None


class _Bookmark(msgspec.Struct, gc=False):
    metadata: _BookmarkMetadata


class _ListMetadata(msgspec.Struct, gc=False, rename="camel"):
    resource_version: str = ""
    continue_token: str | None = msgspec.field(default=None, name="continue")
    remaining_item_count: int | None = None


class _List(msgspec.Struct, gc=False, rename="camel"):
    kind: str
    metadata: _ListMetadata
    api_version: str = ""
    items: list[msgspec.Raw] | None = None


class _Cause(msgspec.Struct, gc=False):
    reason: str = ""
    message: str = ""


class _Details(msgspec.Struct, gc=False, rename="camel"):
    causes: list[_Cause] | None = None
    retry_after_seconds: int = 0


class Status(msgspec.Struct, gc=False):
    """A Kubernetes Status object: the reason for a failed request."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None

    @property
    def says_version_too_large(self) -> bool:
        """Whether the server does not know the requested version yet (504 Timeout with this cause)."""
        causes = (self.details.causes if self.details else None) or []
        return any(cause.reason == "ResourceVersionTooLarge" for cause in causes) or (
            "too large resource version" in self.message.lower()
        )

    @property
    def says_expired(self) -> bool:
        """Whether the requested version or continue token has expired."""
        return self.code == 410 or self.reason in ("Expired", "Gone")


class ListPage(NamedTuple):
    """A page of a list. `kind` is the kind of the items. Do not keep items: each keeps the whole page in memory."""

    api_version: str
    kind: str
    resource_version: str
    continue_token: str
    items: list[msgspec.Raw]
    size_bytes: int


class WatchLine(NamedTuple):
    """One watch event: its type as written, the envelope of the object, and the exact JSON of the object."""

    type: str
    envelope: Envelope
    raw: bytes


_decode_typed_line = msgspec.json.Decoder(_TypedLine).decode
_decode_raw_line = msgspec.json.Decoder(_RawLine).decode
_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_bookmark = msgspec.json.Decoder(_Bookmark).decode
_decode_list = msgspec.json.Decoder(_List).decode
_decode_status = msgspec.json.Decoder(Status).decode

_PREFIXES = {
    type: f'{{"type":"{type}","object":{{'.encode() for type in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR")
}
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""RecursionError: JSON that is nested deeper than the interpreter's stack allows."""
_CHANGES = ("ADDED", "MODIFIED", "DELETED")
_LIST_SUFFIX = "List"
_GROUPS_WITH_REGULAR_NAMES = frozenset(
    {"", "apps", "autoscaling", "batch", "extensions", "policy", "crd.projectcalico.org", "projectcalico.org"}
) | {
    f"{name}.k8s.io"
    for name in (
        "admissionregistration",
        "apiextensions",
        "apiregistration",
        "authentication",
        "authorization",
        "certificates",
        "coordination",
        "discovery",
        "events",
        "flowcontrol.apiserver",
        "networking",
        "node",
        "policy.networking",
        "rbac.authorization",
        "resource",
        "scheduling",
        "storage",
    )
}
"""Groups whose resources are the plurals of their kinds. Elsewhere the author of a definition is free: the pods of
metrics.k8s.io are a PodMetricsList."""
_MAX_DETAIL_LENGTH = 200
"""Error messages quote unexpected JSON, which can be large."""
_MAX_SCANNED_LINE_BYTES = 64 * 1024
"""A longer line with a bad object counts as broken, and the next list leaves the object out. The worst input of this
size takes 12 ms."""
_MAX_IDENTITY_BYTES = 2048
"""Look for the identity of a bad object in its beginning only. The API server writes the name first."""
_BRACKETS_PER_STEP = 10_000
_SPLIT_ITEMS_MAX = 100_000
_DENSE_FROM_BYTES = 1024 * 1024
_BYTES_PER_COMMA_MIN = 8
_MAX_SIGNAL_BYTES = 64 * 1024
"""Bookmarks and Status objects have some hundred bytes."""
_STRING = rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)'
"""Matches at every quotation mark, to the end if the string is not closed. It never backtracks."""
_BRACKETS = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_SIMPLE_VALUE = re.compile(_STRING + rb"|[^\s,\[\]{}]+", re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*+")
_PLAIN_NAME = re.compile(rb'"([!#-\[\]-~]{0,253})"')


def decode_line(line: bytes) -> WatchLine:
    """Decode one line of a watch.

    Raises:
        InvalidObject: the line is whole, and reports a change of an object that cannot be decoded.
        InvalidInput: the line is broken.
    """
    try:
        try:
            typed = _decode_typed_line(line)
        except msgspec.ValidationError:
            return _decode_unusual_line(line)
        prefix = _PREFIXES.get(typed.type)
        if prefix is not None and line.startswith(prefix) and line.endswith(b"}}"):
            return WatchLine(typed.type, typed.object, line[len(prefix) - 1 : -1])
        return _decode_unusual_line(line)
    except UNDECODABLE as error:
        raise _line_error(line, f"broken watch event: {str(error)[:_MAX_DETAIL_LENGTH]}") from error


def _line_error(line: bytes, detail: str) -> InvalidInput:
    """Distinguish a bad object within a whole line from a line that is broken, and that a new request may repair."""
    if len(line) > _MAX_SCANNED_LINE_BYTES:
        return InvalidInput(detail)
    try:
        members = {name: (start, end) for name, start, end in _drain(_members(line, 0))}
    except InvalidInput:
        return InvalidInput(detail)
    type_start, type_end = members.get(b'"type"', (0, 0))
    start, end = members.get(b'"object"', (0, 0))
    if line[type_start:type_end].strip(b'"').decode("latin-1") not in _CHANGES or line[start : start + 1] != b"{":
        return InvalidInput(detail)
    namespace, name = _identity(line[start:end])
    return InvalidObject(detail, namespace=namespace, name=name)


def _decode_unusual_line(line: bytes) -> WatchLine:
    decoded = _decode_raw_line(line)
    raw = bytes(decoded.object)
    return WatchLine(decoded.type, _decode_envelope(raw), raw)


def decode_item(raw: msgspec.Raw) -> Envelope:
    """Decode the envelope of a list item. Raises InvalidObject."""
    try:
        return _decode_envelope(raw)
    except UNDECODABLE as error:
        namespace, name = _identity(bytes(raw))
        detail = f"broken list item: {str(error)[:_MAX_DETAIL_LENGTH]}"
        raise InvalidObject(detail, namespace=namespace, name=name) from error


def decode_page(body: bytes, type: resources.ResourceType) -> ListPage:
    """Decode the body of a list of a resource type. Raises InvalidInput."""
    try:
        page = _decode_list(body)
    except UNDECODABLE as error:
        raise InvalidInput(f"broken list: {str(error)[:_MAX_DETAIL_LENGTH]}") from error
    return _checked_page(page, type, page.items or [], len(body))


def check_density(body: bytes) -> None:
    """Raise InvalidInput for a large page of which the decoder would make millions of tiny items at once.

    Good pages have a comma every 25 bytes. An item takes 64 bytes, however small it is.
    """
    if len(body) > _DENSE_FROM_BYTES and body.count(b",") * _BYTES_PER_COMMA_MIN > len(body):
        raise InvalidInput("broken list: too many values for its size")


def split_page(body: bytes, type: resources.ResourceType) -> Generator[None, None, ListPage]:
    """Decode the body of a list without its items, which `decode_item` then checks one by one.

    Raises:
        InvalidInput: the body is not a whole list.
    """
    items_start = items_end = 0
    members = _members(body, 0)
    while True:
        member = yield from _next_member(members)
        if member is None:
            break
        name, start, end = member
        if name == b'"items"' and body[start : start + 1] == b"[":
            items_start, items_end = start, end
    if not items_end:
        raise InvalidInput("broken list: it has no items")
    try:
        page = _decode_list(body[:items_start] + b"[]" + body[items_end:])
    except UNDECODABLE as error:
        raise InvalidInput(f"broken list: {str(error)[:_MAX_DETAIL_LENGTH]}") from error
    items: list[msgspec.Raw] = []
    position = _after_space(body, items_start + 1)
    while body[position : position + 1] not in (b"]", b""):
        end = yield from _end_of_value(body, position)
        items.append(msgspec.Raw(body[position:end]))
        if len(items) > _SPLIT_ITEMS_MAX:
            raise InvalidInput(f"broken list: more than {_SPLIT_ITEMS_MAX} items")
        yield
        position = _after_space(body, end)
        if body[position : position + 1] == b",":
            position = _after_space(body, position + 1)
    return _checked_page(page, type, items, len(body))


def _checked_page(page: _List, type: resources.ResourceType, items: list[msgspec.Raw], size_bytes: int) -> ListPage:
    token = page.metadata.continue_token or ""
    if not page.kind.endswith(_LIST_SUFFIX):
        raise InvalidInput(f"expected a list, got kind {page.kind[:_MAX_DETAIL_LENGTH]!r}")
    kind = page.kind.removesuffix(_LIST_SUFFIX)
    if kind and not may_be_kind_of(kind, type):
        raise InvalidInput(f"expected a list of {type.resource}, got kind {page.kind[:_MAX_DETAIL_LENGTH]!r}")
    if len(token) > MAX_CONTINUE_LENGTH or len(page.metadata.resource_version) > MAX_VERSION_LENGTH:
        raise InvalidInput("broken list: its continue token or resourceVersion is too long")
    return ListPage(page.api_version, kind, page.metadata.resource_version, token, items, size_bytes)


def may_be_kind_of(kind: str, type: resources.ResourceType) -> bool:
    """Return whether objects of a resource type may have a kind. In groups with irregular names, any kind is right."""
    if type.group not in _GROUPS_WITH_REGULAR_NAMES:
        return True
    singular = kind.lower()
    plurals = {singular, f"{singular}s", f"{singular}es", f"{singular.removesuffix('y')}ies"}
    return type.resource in plurals


def _identity(raw: bytes) -> tuple[str, str]:
    """Return namespace and name of an object that cannot be decoded, as far as they can be found."""
    found = {b'"namespace"': "", b'"name"': ""}
    beginning = raw[:_MAX_IDENTITY_BYTES]
    try:
        for member, start, _ in _drain(_members(beginning, 0)):
            if member == b'"metadata"' and beginning[start : start + 1] == b"{":
                for name, value, end in _drain(_members(beginning, start)):
                    text = _PLAIN_NAME.fullmatch(beginning, value, end)
                    if name in found and text is not None:
                        found[name] = text[1].decode("ascii")
                break
    except InvalidInput:
        return found[b'"namespace"'], found[b'"name"']
    return found[b'"namespace"'], found[b'"name"']


# The scan of brackets. Each step of a generator looks at a bounded number of them.

_Member = tuple[bytes, int, int]
"""A member's name with its quotation marks, and where its value starts and ends."""


def _members(data: bytes, start: int) -> Generator[_Member | None, None, None]:
    """Yield the members of the object that starts at a position, and None after each step. Raises InvalidInput."""
    position = _after_space(data, start)
    if data[position : position + 1] != b"{":
        raise InvalidInput("not an object")
    position = _after_space(data, position + 1)
    while data[position : position + 1] != b"}":
        name = _SIMPLE_VALUE.match(data, position)
        position = _after_space(data, name.end()) if name is not None else position
        if name is None or data[position : position + 1] != b":":
            raise InvalidInput("not a member of an object")
        value = _after_space(data, position + 1)
        end = yield from _end_of_value(data, value)
        yield name[0], value, end
        position = _after_space(data, end)
        if data[position : position + 1] == b",":
            position = _after_space(data, position + 1)
    if start == 0 and _after_space(data, position + 1) != len(data):
        raise InvalidInput("more than an object")


def _end_of_value(data: bytes, start: int) -> Generator[None, None, int]:
    """Return the position after the value that starts at a position. Raises InvalidInput if it has no end."""
    if data[start : start + 1] not in (b"{", b"["):
        simple = _SIMPLE_VALUE.match(data, start)
        if simple is None:
            raise InvalidInput("no value")
        return simple.end()
    depth = 0
    for seen, bracket in enumerate(_BRACKETS.finditer(data, start), 1):
        if seen % _BRACKETS_PER_STEP == 0:
            yield
        first = data[bracket.start()]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
            if depth == 0:
                return bracket.end()
    raise InvalidInput("a value has no end")


def _next_member(members: Generator[_Member | None, None, None]) -> Generator[None, None, _Member | None]:
    """Return the next member, or None at the end."""
    for member in members:
        if member is not None:
            return member
        yield
    return None


def _drain(members: Generator[_Member | None, None, None]) -> Iterator[_Member]:
    return (member for member in members if member is not None)


def _after_space(data: bytes, position: int) -> int:
    space = _SPACE.match(data, position)
    return position if space is None else space.end()


def ends_initial_events(raw: bytes) -> bool:
    """Return whether the bookmark ends the initial events of a WatchList. Raises InvalidInput."""
    if len(raw) > _MAX_SIGNAL_BYTES:
        raise InvalidInput(f"a bookmark is longer than {_MAX_SIGNAL_BYTES} bytes")
    try:
        annotations = _decode_bookmark(raw).metadata.annotations
    except UNDECODABLE as error:
        raise InvalidInput(f"broken bookmark: {str(error)[:_MAX_DETAIL_LENGTH]}") from error
    return annotations is not None and annotations.get("k8s.io/initial-events-end") == "true"


def decode_status(body: bytes) -> Status:
    """Decode the body of an error. If it is not a Status (a proxy's HTML, a truncated body), it becomes the message."""
    body = body[:_MAX_SIGNAL_BYTES]
    try:
        return _decode_status(body)
    except UNDECODABLE:
        return Status(message=body.decode("utf-8", "replace").strip())


class LineSplitter:
    """Splits a stream of bytes into lines. Chunks may end anywhere."""

    __slots__ = ("_max_line_bytes", "_pending", "pending_since")

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self.pending_since: float | None = None
        """Time at which the first byte of the unfinished line arrived. None without such a line."""
        self._pending = bytearray()

    @property
    def has_rest(self) -> bool:
        """Whether an unfinished line is pending. At the end of the stream this means that the line was cut off."""
        return bool(self._pending)

    def feed(self, chunk: bytes, now: float = 0.0) -> list[bytes]:
        """Add a chunk that arrived now. Return the lines that it completes, without newlines and without empty lines.

        Raises:
            InvalidInput: a line is longer than the limit. Do not use the splitter any more.
        """
        first, newline, rest = chunk.partition(b"\n")
        if len(self._pending) + len(first) > self._max_line_bytes:
            raise InvalidInput(f"a line of the watch is longer than {self._max_line_bytes} bytes")
        if not newline:
            if self.pending_since is None and first:
                self.pending_since = now
            self._pending += first
            return []
        lines = rest.split(b"\n")
        last = lines.pop()
        lines.insert(0, bytes(self._pending + first) if self._pending else first)
        self._pending = bytearray(last)
        self.pending_since = now if last else None
        return [line for line in lines if line]
