"""Decodes list pages, watch events and Status objects. Pure.

This module decodes only the envelope of an object (apiVersion, kind, name, namespace, resourceVersion), and passes its
JSON on unchanged. The API server writes `{"type":"ADDED","object":{...}}`, so one typed pass checks the whole line, and
the object's bytes are a slice of it. Decoding `object` as msgspec.Raw and then its envelope takes two passes and twice
the time. Only lines of another form take the two passes.
"""

from typing import NamedTuple

import msgspec

MAX_NAME_LENGTH = 253
"""Kubernetes' limit for names (DNS subdomain). Namespaces are shorter."""
MAX_VERSION_LENGTH = 128
"""resourceVersion is opaque. The longest in use is a 64-bit number; aggregated API servers join several."""
MAX_CONTINUE_LENGTH = 65_536
"""A continue token holds a key and a version in base64. A longer text is not a token, and would not fit into a URL."""


class InvalidInput(ValueError):
    """The API server sent something that cannot be decoded."""


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
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""RecursionError: JSON that is nested deeper than the interpreter's stack allows."""
_LIST_SUFFIX = "List"
_MAX_DETAIL_LENGTH = 200
"""Error messages quote unexpected JSON, which can be large."""


def decode_line(line: bytes) -> WatchLine:
    """Decode one line of a watch. Raises InvalidInput."""
    try:
        try:
            typed = _decode_typed_line(line)
        except msgspec.ValidationError:
            return _decode_unusual_line(line)
        prefix = _PREFIXES.get(typed.type)
        if prefix is not None and line.startswith(prefix) and line.endswith(b"}}"):
            return WatchLine(typed.type, typed.object, line[len(prefix) - 1 : -1])
        return _decode_unusual_line(line)
    except _UNDECODABLE as error:
        raise InvalidInput(f"broken watch event: {str(error)[:_MAX_DETAIL_LENGTH]}") from error


def _decode_unusual_line(line: bytes) -> WatchLine:
    decoded = _decode_raw_line(line)
    raw = bytes(decoded.object)
    return WatchLine(decoded.type, _decode_envelope(raw), raw)


def decode_item(raw: msgspec.Raw) -> Envelope:
    """Decode the envelope of a list item. Raises InvalidInput."""
    try:
        return _decode_envelope(raw)
    except _UNDECODABLE as error:
        raise InvalidInput(f"broken list item: {str(error)[:_MAX_DETAIL_LENGTH]}") from error


def decode_page(body: bytes) -> ListPage:
    """Decode the body of a list. Raises InvalidInput."""
    try:
        page = _decode_list(body)
    except _UNDECODABLE as error:
        raise InvalidInput(f"broken list: {str(error)[:_MAX_DETAIL_LENGTH]}") from error
    token = page.metadata.continue_token or ""
    if not page.kind.endswith(_LIST_SUFFIX):
        raise InvalidInput(f"expected a list, got kind {page.kind[:_MAX_DETAIL_LENGTH]!r}")
    if len(token) > MAX_CONTINUE_LENGTH or len(page.metadata.resource_version) > MAX_VERSION_LENGTH:
        raise InvalidInput("broken list: its continue token or resourceVersion is too long")
    kind = page.kind.removesuffix(_LIST_SUFFIX)
    return ListPage(page.api_version, kind, page.metadata.resource_version, token, page.items or [])


def ends_initial_events(raw: bytes) -> bool:
    """Return whether the bookmark ends the initial events of a WatchList. Raises InvalidInput."""
    try:
        annotations = _decode_bookmark(raw).metadata.annotations
    except _UNDECODABLE as error:
        raise InvalidInput(f"broken bookmark: {str(error)[:_MAX_DETAIL_LENGTH]}") from error
    return annotations is not None and annotations.get("k8s.io/initial-events-end") == "true"


def decode_status(body: bytes) -> Status:
    """Decode the body of an error. If it is not a Status (a proxy's HTML, a truncated body), it becomes the message."""
    try:
        return _decode_status(body)
    except _UNDECODABLE:
        return Status(message=body.decode("utf-8", "replace").strip())


class LineSplitter:
    """Splits a stream of bytes into lines. Chunks may end anywhere."""

    __slots__ = ("_max_line_bytes", "_pending", "_pending_bytes")

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    @property
    def has_rest(self) -> bool:
        """Whether an unfinished line is pending. At the end of the stream this means that the line was cut off."""
        return self._pending_bytes > 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Add a chunk. Return the lines that it completes, without newlines and without empty lines.

        Raises:
            InvalidInput: a line is longer than the limit. Do not use the splitter any more.
        """
        first, newline, rest = chunk.partition(b"\n")
        self._pending.append(first)
        self._pending_bytes += len(first)
        if self._pending_bytes > self._max_line_bytes:
            raise InvalidInput(f"a line of the watch is longer than {self._max_line_bytes} bytes")
        if not newline:
            return []
        lines = rest.split(b"\n")
        last = lines.pop()
        lines.insert(0, b"".join(self._pending))
        self._pending = [last]
        self._pending_bytes = len(last)
        return [line for line in lines if line]
