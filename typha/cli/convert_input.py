"""The input of `typha convert`: objects, lists and watch events, as JSON or YAML, in any mixture."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import click
import msgspec

from cache import yamljson
from cache.feeds.calico.codecs import gojson

MAX_INPUT_BYTES = 1 << 30
"""Limit for all files together."""
MAX_DEPTH = 100
"""Limit for lists within lists. API servers nest them once or twice."""

PROGRESS_AFTER_SECONDS = 2.0
"""What takes less needs no progress bar."""

_FIRST_BYTES = 4096
"""As far as kubectl looks for what a text begins with."""
_PIECE_BYTES = 1 << 20
STANDARD_INPUT = "-"
_WATCH_TYPES = frozenset({"ADDED", "MODIFIED", "DELETED"})
_IGNORED_WATCH_TYPES = frozenset({"BOOKMARK", "SYNCED"})


class UnreadableInput(ValueError):
    """The input is not in a supported form. The message says where and why."""


class Entry(NamedTuple):
    """One object, or one watch event with its object."""

    raw: bytes
    """The object as JSON."""
    api_version: str
    kind: str
    namespace: str
    name: str
    resource_version: str
    watch_type: str
    """ADDED, MODIFIED or DELETED; empty for an object outside a watch event."""

    @property
    def place(self) -> tuple[str, str, str, str]:
        """The identity of the object."""
        return self.api_version, self.kind, self.namespace, self.name

    def in_namespace(self, namespace: str) -> "Entry":
        """The same entry with a namespace, also in its JSON."""
        members = decode_members(self.raw)
        metadata = {**decode_members(members["metadata"]), "namespace": _encode(namespace)}
        members["metadata"] = msgspec.Raw(msgspec.json.encode(metadata))
        return self._replace(namespace=namespace, raw=msgspec.json.encode(members))

    @property
    def title(self) -> str:
        """Kind, namespace and name, for messages."""
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


_decode_header = msgspec.json.Decoder(_Header).decode
decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _encode(text: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(text))


class Inputs:
    """The bytes of all files: their limit, and progress on a terminal."""

    def __init__(self, files: Iterable[str], progress: "Progress") -> None:
        self._files = files
        self._progress = progress
        self._left = MAX_INPUT_BYTES
        self.warnings: list[str] = []
        """What is remarkable about the files, for standard error."""

    def entries(self) -> Iterator[Entry]:
        """The objects and events of all files, in order.

        Raises:
            OSError: a file cannot be read.
            UnreadableInput: a text is neither JSON nor YAML, or a part is neither an object, a list nor a watch event.
        """
        for name in self._files:
            if name == STANDARD_INPUT:
                yield from self._entries(sys.stdin.buffer, "standard input")
            else:
                with pathlib.Path(name).open("rb") as stream:
                    yield from self._entries(stream, name)

    def _entries(self, stream: BinaryIO, source: str) -> Iterator[Entry]:
        for place, document in self._documents(_Input(stream, self._counter(source)), source):
            try:
                yield from _entries(document, place)
            except RecursionError as error:
                raise UnreadableInput(f"{place}: nested too deeply") from error
            except msgspec.DecodeError as error:
                raise UnreadableInput(f"{place}: {' '.join(str(error).split())}") from error

    def _counter(self, source: str) -> Callable[[int], None]:
        def count(size: int) -> None:
            self._left -= size
            if self._left < 0:
                raise UnreadableInput(f"{source}: more than {MAX_INPUT_BYTES} bytes of input")
            self._progress.advance(size)

        return count

    def _documents(self, stream: "_Input", source: str) -> Iterator[tuple[str, bytes]]:
        """Yield the place and the JSON of each document of a file.

        As for kubectl, a text that begins like JSON is JSON. If that fails after no document or one, the rest is YAML.
        """
        number, line, failure = 0, 1, (0, "")
        readable: yamljson.Readable = stream
        if stream.begins_like_json():
            text = stream.read()
            end = 0
            try:
                for document in _json_documents(text):
                    number += 1
                    line, end = document.line, document.end
                    yield f"{source}: document {number}, line {line}", document.raw
                return
            except _JsonError as error:
                if number > 1:
                    raise UnreadableInput(f"{source}: document {number + 1}, line {error.line}: {error}") from error
                failure = error.line, str(error)
            rest = text[end:].lstrip()
            line = 1 + text.count(b"\n", 0, len(text) - len(rest))
            readable = io.BytesIO(rest)
        try:
            for found in yamljson.documents(readable, line=line):
                number += 1
                place = f"{source}: document {number}, line "
                self.warnings += [f"warning: {place}{note.line}: {note.text}" for note in found.notes]
                if found.raw != b"null":
                    yield f"{place}{found.line}", found.raw
                failure = (0, "")
        except yamljson.YamlError as error:
            line, problem = max(failure, (error.line, error.problem))
            raise UnreadableInput(f"{source}: document {number + 1}, line {line}: {problem}") from error


class _Input:
    """The bytes of one file."""

    def __init__(self, stream: BinaryIO, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count
        self._first = b""

    def begins_like_json(self) -> bool:
        """Whether the first character that is not white space begins an object or a list."""
        self._first = self._read(_FIRST_BYTES)
        return self._first.lstrip()[:1] in (b"{", b"[")

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, or all."""
        if size < 0:
            return b"".join(iter(lambda: self.read(_PIECE_BYTES), b""))
        first, self._first = self._first, b""
        return first or self._read(size)

    def _read(self, size: int) -> bytes:
        text = self._stream.read(size)
        self._count(len(text))
        return text


class Progress:
    """A bar on standard error, if that is a terminal and reading takes long."""

    def __init__(self, total: int | None, now: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._now = now
        self._begin = now()
        self._bar: Any = None
        self._done = 0

    def advance(self, size: int) -> None:
        """Count bytes that are read."""
        self._done += size
        if self._bar is not None:
            self._bar.update(size)
        elif self._now() - self._begin > PROGRESS_AFTER_SECONDS and sys.stderr.isatty():
            more: dict[str, Any] = {"iterable": itertools.count()} if self._total is None else {"length": self._total}
            self._bar = click.progressbar(label="bytes read", show_pos=True, file=sys.stderr, **more)
            self._bar.update(self._done)

    def end(self) -> None:
        """Leave the line of the bar, and show the cursor again."""
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None


def total_bytes(files: Iterable[str]) -> int | None:
    """Size of all files together. None if one of them is no regular file."""
    total = 0
    for name in files:
        try:
            status = os.fstat(sys.stdin.fileno()) if name == STANDARD_INPUT else os.stat(name)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        total += status.st_size
    return total


class _JsonError(ValueError):
    """A text is not JSON."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


class _JsonDocument(NamedTuple):
    raw: bytes
    line: int
    end: int
    """Offset after it, in bytes."""


def _json_documents(text: bytes) -> Iterator[_JsonDocument]:
    """Yield consecutive JSON documents. Lone surrogates are replaced, as in an API server. Raises _JsonError."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Most often it is one document, and none of its values are needed to know that.
        _check_json(text)
        yield _JsonDocument(gojson.without_lone_surrogates(text.decode()).encode(), 1, len(text))
        return
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise _JsonError(str(error), 1 + text.count(b"\n", 0, error.start)) from error
    line, end, end_bytes = 1, 0, 0
    while (begin := _skip_blank(decoded, end)) < len(decoded):
        line += decoded.count("\n", end, begin)
        try:
            _, after = _scan_json(decoded, begin)
        except json.JSONDecodeError as error:
            raise _JsonError(error.msg, error.lineno) from error
        except RecursionError as error:
            raise _JsonError("nested too deeply", line) from error
        raw = gojson.without_lone_surrogates(decoded[begin:after]).encode()
        end_bytes += len(decoded[end:after].encode())
        yield _JsonDocument(raw, line, end_bytes)
        line += decoded.count("\n", begin, after)
        end = after


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _no_number(text: str) -> float:
    raise json.JSONDecodeError(f"{text} is no number in JSON", text, 0)


_check_json = msgspec.json.Decoder(msgspec.Raw).decode
# Numbers are not made: only the end of each document is of interest, and a number can be very long.
_scan_json = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_number).raw_decode


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
        if header.type in _IGNORED_WATCH_TYPES:
            return []
        if header.type not in _WATCH_TYPES:
            raise UnreadableInput(f"{source}: unsupported type of watch event: {header.type}")
        return [_entry(bytes(header.object), source, watch_type=header.type)]
    return [_entry(document, source)]


def _list_item(header: _Header, item: bytes, source: str, depth: int) -> Iterable[Entry]:
    if header.kind == "List":
        return _entries(item, source, depth=depth + 1)
    # Items of a typed list have neither apiVersion nor kind: the list states both for all of them.
    return [_entry(item, source, api_version=header.apiVersion, kind=header.kind.removesuffix("List"))]


_NO_OBJECTS = {"Status": ": a request has failed", "Table": ": kubectl needs -o json or -o yaml"}


def _entry(raw: bytes, source: str, *, api_version: str = "", kind: str = "", watch_type: str = "") -> Entry:
    header = _decode_header(raw)
    api_version, kind = header.apiVersion or api_version, header.kind or kind
    metadata = header.metadata
    if api_version and kind in _NO_OBJECTS:
        raise UnreadableInput(f"{source}: a {kind} of the API server, not an object{_NO_OBJECTS[kind]}")
    if not api_version or not kind or metadata is None or not metadata.name:
        parts = {"apiVersion": api_version, "kind": kind, "metadata.name": metadata and metadata.name}
        missing = ", ".join(name for name, value in parts.items() if not value)
        raise UnreadableInput(f"{source}: not an object of Kubernetes: it has no {missing}")
    return Entry(
        msgspec.json.format(raw, indent=-1),
        api_version,
        kind,
        metadata.namespace or "",
        metadata.name,
        metadata.resourceVersion or "",
        watch_type,
    )
