"""`typha convert`: show what the agents of a feed see of some objects, without a cluster.

The input is objects, lists and watch events, as JSON or YAML, in any mixture. JSON keeps its bytes, because the order
of members can be part of a value. YAML is read as kubectl reads it (see cache.yamljson).
"""

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

from cache import objects, resources, yamljson
from cache.feeds.calico import customresource, feed, releases, specfields, syncers
from cache.feeds.calico.codecs import gojson
from protocol import messages
from typha import settings

EXIT_REFUSED = 1
EXIT_UNREADABLE = 2

MAX_INPUT_BYTES = 1 << 30
"""Limit for all files together."""
MAX_DEPTH = 100
"""Limit for lists within lists. API servers nest them once or twice."""

PROGRESS_AFTER_SECONDS = 2.0
"""What takes less needs no progress bar."""

_FIRST_BYTES = 4096
"""As far as kubectl looks for what a text begins with."""
_PIECE_BYTES = 1 << 20
_MAX_VALUE_BYTES = 1 << 30
_STANDARD_INPUT = "-"
_GROUP_VARIABLE = "CALICO_API_GROUP"
_WHOLE_KINDS = frozenset({"BGPConfiguration", "BGPFilter", "BGPPeer", "CalicoNodeStatus", "EndpointSlice", "Service"})
"""The values of these kinds contain the whole object."""
_SOMETIMES_WHOLE_KINDS = frozenset({"FelixConfiguration", "ClusterInformation"})
_NAMESPACED_KINDS = frozenset(
    {
        *("EndpointSlice", "NetworkPolicy", "NetworkSet", "Pod", "Service", "ServiceAccount"),
        *("StagedKubernetesNetworkPolicy", "StagedNetworkPolicy", "VirtualMachineInstanceMigration"),
    }
)
_NAMESPACE_DEFAULT = "default"
_TITLES_NAMED = 3
_VALUE_SHOWN = 40
_INVALID_OBJECT = "invalid-object"
_WATCH_TYPES = frozenset({"ADDED", "MODIFIED", "DELETED"})
_IGNORED_WATCH_TYPES = frozenset({"BOOKMARK", "SYNCED"})


@click.command(name="convert", short_help="Show what the agents of a feed see of some objects.")
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option("--feed", "feed_name", type=click.Choice(syncers.NAMES), required=True, help="Name of the feed.")
@click.option(
    "--api-group",
    help="API group and version of Calico. Default: CALICO_API_GROUP; if it is not set, chosen from the objects.",
)
@click.option(
    "--agent-release",
    metavar="VERSION",
    help="Release of the agents, such as v3.31.7. Default: the newest.",
)
@click.option(
    "--use-pod-cidr/--no-pod-cidr",
    default=None,
    help="Whether blocks and tunnel addresses come from the nodes' pod CIDRs. Default: USE_POD_CIDR.",
)
@click.option("--deltas", is_flag=True, help="Print updates step by step: the first list, then each watch event.")
@click.pass_context
def convert(
    context: click.Context,
    *,
    files: tuple[str, ...],
    feed_name: str,
    api_group: str | None,
    agent_release: str | None,
    use_pod_cidr: bool | None,
    deltas: bool,
) -> None:
    """Print what the agents of a feed see of the objects in FILEs, as one JSON object per line.

    FILEs contain objects, lists or watch events, as JSON or YAML. Without FILEs, or for "-", the command reads standard
    input. Exit codes: 1 an object was refused, 2 bad usage or unreadable input.
    """
    try:
        release = releases.Release.NEWEST if agent_release is None else releases.parse_release(agent_release)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--agent-release") from error
    try:
        if use_pod_cidr is None:
            use_pod_cidr = settings.uses_pod_cidrs(os.environ)
    except settings.ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    files = files or (_STANDARD_INPUT,)
    progress = Progress(_total_bytes(files))
    inputs = _Inputs(files, progress)
    try:
        entries = list(inputs.entries())
    except (OSError, UnreadableInput) as error:
        progress.end()
        click.echo(f"typha: error: {error}", err=True)
        context.exit(EXIT_UNREADABLE)
    finally:
        progress.end()
    for warning in inputs.warnings:
        click.echo(warning, err=True)
    group = _choose_group(api_group, entries)
    conversion = _Conversion(feed_name, group, release, use_pod_cidr=use_pod_cidr)
    try:
        if deltas:
            _print_deltas(conversion, entries)
        else:
            _print_snapshot(conversion, entries)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe; keep the interpreter from reporting it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    conversion.report()
    context.exit(EXIT_REFUSED if conversion.has_refused else 0)


# Input


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
        members = _decode_members(self.raw)
        metadata = {**_decode_members(members["metadata"]), "namespace": _encode(namespace)}
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
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _encode(text: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(text))


class _Inputs:
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
            if name == _STANDARD_INPUT:
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


def _total_bytes(files: Iterable[str]) -> int | None:
    """Size of all files together. None if one of them is no regular file."""
    total = 0
    for name in files:
        try:
            status = os.fstat(sys.stdin.fileno()) if name == _STANDARD_INPUT else os.stat(name)
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


# Conversion


def _choose_group(option: str | None, entries: Iterable[Entry]) -> syncers.Group:
    chosen = option if option is not None else os.environ.get(_GROUP_VARIABLE, "")
    if chosen:
        return syncers.Group.V3 if chosen.lower() == syncers.Group.V3.value else syncers.Group.V1
    versions = {entry.api_version for entry in entries}
    only_v3 = syncers.Group.V3.value in versions and syncers.Group.V1.value not in versions
    return syncers.Group.V3 if only_v3 else syncers.Group.V1


class _Conversion:
    """One feed, and the messages about objects for standard error."""

    def __init__(self, feed_name: str, group: syncers.Group, release: releases.Release, *, use_pod_cidr: bool) -> None:
        specs = syncers.specs(group, use_pod_cidr=use_pod_cidr)
        [spec] = [spec for spec in specs if spec.name == feed_name]
        self.feed: feed.CalicoFeed = feed.CalicoFeed(spec, max_value_bytes=_MAX_VALUE_BYTES)
        """Takes the objects."""
        self.shown = self.feed
        """What the agents get of it."""
        if feed_name == syncers.FELIX and release is not releases.Release.NEWEST:
            self.shown = projection = feed.Projection(self.feed, release)
            for _ in projection.seed():
                pass
        self.has_refused = False
        self._group = group
        [self._other_group] = [other for other in syncers.Group if other is not group]
        self._ignored = 0
        self._types = {(_api_version(source.type), source.kind): source.type for source in spec.sources}
        self._lines: dict[str, None] = {}
        self._without_managed_fields: dict[str, None] = {}

    def select(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries of kinds that the feed converts. Counts the entries of the other API group."""
        selected = []
        for entry in entries:
            self._ignored += entry.api_version == self._other_group.value
            if (entry.api_version, entry.kind) in self._types:
                selected.append(self._in_namespace(entry))
        return selected

    def _in_namespace(self, entry: Entry) -> Entry:
        if entry.namespace or entry.kind not in _NAMESPACED_KINDS:
            return entry
        self._message(f"warning: {entry.title}: no namespace, using {_NAMESPACE_DEFAULT!r}")
        return entry.in_namespace(_NAMESPACE_DEFAULT)

    def put(self, entry: Entry, origin: objects.Origin) -> None:
        """Add or change an object."""
        refusal = self.feed.apply(self._event(entry, origin))
        if refusal is not None:
            self._message(
                f"{'warning' if refusal.is_carried else 'refused'}: {entry.title}: {refusal.reason}: {refusal.detail}"
                + (_no_texts(entry.raw) if refusal.reason == _INVALID_OBJECT else "")
            )
            self.has_refused = self.has_refused or not refusal.is_carried
        self._inspect(entry)

    def remove(self, entry: Entry) -> None:
        """Delete an object."""
        self.feed.delete(self._event(entry, objects.Origin.EVENT))

    def report(self) -> None:
        """Print the messages to standard error, each one once."""
        if self._ignored:
            objects_text = "1 object" if self._ignored == 1 else f"{self._ignored} objects"
            self._message(f"ignored {objects_text} of {self._other_group.value}: the group is {self._group.value}")
        for line in self._lines:
            click.echo(line, err=True)
        titles = list(self._without_managed_fields)
        if titles:
            more = f" and {len(titles) - _TITLES_NAMED} more" if len(titles) > _TITLES_NAMED else ""
            named = ", ".join(titles[:_TITLES_NAMED]) + more
            click.echo(
                f"warning: no managedFields, which are part of the value (kubectl --show-managed-fields): {named}",
                err=True,
            )

    def _event(self, entry: Entry, origin: objects.Origin) -> objects.ObjectEvent:
        return objects.ObjectEvent(
            self._types[entry.api_version, entry.kind],
            entry.namespace,
            entry.name,
            entry.resource_version,
            entry.raw,
            entry.api_version,
            entry.kind,
            origin,
        )

    def _message(self, line: str) -> None:
        self._lines[" ".join(line.split())] = None

    def _inspect(self, entry: Entry) -> None:
        """Warn about unknown fields, and about missing managedFields if they are part of the value."""
        is_own = entry.api_version == self._group.value
        is_whole = entry.kind in _WHOLE_KINDS or (
            entry.kind in _SOMETIMES_WHOLE_KINDS and entry.name != "default" and not entry.name.startswith("node.")
        )
        if not is_own and not is_whole:
            return
        members = json.loads(entry.raw, parse_int=float)  # which may have any number of digits
        unknown = specfields.unknown_fields(entry.kind, members.get("spec")) if is_own else []
        if unknown:
            self._message(f"warning: {entry.title}: unknown fields are dropped: {', '.join(unknown)}")
        metadata = members["metadata"]
        annotations = metadata.get("annotations") or {}
        is_replaced = self._group is syncers.Group.V1 and customresource.METADATA_ANNOTATION in annotations
        if is_whole and "managedFields" not in metadata and not (is_own and is_replaced):
            self._without_managed_fields[entry.title] = None


def _no_texts(raw: bytes) -> str:
    """Name the labels and annotations that are no texts: YAML makes numbers and booleans of 1.10, 012, on and 1e5."""
    metadata = _decode_members(_decode_members(raw)["metadata"])
    names = []
    for part in ("labels", "annotations"):
        with contextlib.suppress(KeyError, msgspec.ValidationError):
            for name, value in _decode_members(metadata[part]).items():
                if not bytes(value).startswith((b'"', b"null")):
                    names.append(f"{part}.{name}: {bytes(value)[:_VALUE_SHOWN].decode(errors='replace')}")
    return f" (no text, quote it: {', '.join(names[:_TITLES_NAMED])})" if names else ""


def _api_version(type: resources.ResourceType) -> str:
    return f"{type.group}/{type.version}" if type.group else type.version


# Output


def _print_snapshot(conversion: _Conversion, entries: Iterable[Entry]) -> None:
    """Print the snapshot that a new client gets after all entries."""
    present: dict[tuple[str, str, str, str], Entry] = {}
    for entry in conversion.select(entries):
        present.pop(entry.place, None)
        if entry.watch_type != "DELETED":
            present[entry.place] = entry
    for entry in present.values():
        conversion.put(entry, objects.Origin.LIST)
    conversion.shown.take()
    updates = [stored.as_update() for stored in conversion.shown.store]
    _print_lines(_line(update) for update in sorted(updates, key=lambda update: update.key.encode()))


def _print_deltas(conversion: _Conversion, entries: Iterable[Entry]) -> None:
    """Print the updates that a client gets: step 0 for the objects outside watch events, then a step for each event."""
    entries = list(entries)
    for entry in conversion.select(entry for entry in entries if not entry.watch_type):
        conversion.put(entry, objects.Origin.LIST)
    _print_step(conversion, 0)
    for step, event in enumerate((entry for entry in entries if entry.watch_type), 1):
        for entry in conversion.select([event]):
            if entry.watch_type == "DELETED":
                conversion.remove(entry)
            else:
                conversion.put(entry, objects.Origin.EVENT)
        _print_step(conversion, step)


def _print_step(conversion: _Conversion, step: int) -> None:
    batch = conversion.shown.take()
    if batch is not None:
        _print_lines(_line(update, step=step) for update in batch.updates)


def _print_lines(lines: Iterator[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.write(line + b"\n")


def _line(update: messages.Update, *, step: int | None = None) -> bytes:
    """One update as JSON. An empty value becomes null, because the original's agents see no value."""
    content: dict[str, object] = {
        "key": update.key,
        "value": update.value.decode() if update.value else None,
        "revision": update.revision,
        "v3_resource_version": update.v3_resource_version,
        "update_type": int(update.update_type),
        "ttl": update.ttl,
    }
    if step is not None:
        content["step"] = step
    return json.dumps(content, ensure_ascii=False).encode()
