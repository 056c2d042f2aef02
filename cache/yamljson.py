"""YAML to JSON, as Kubernetes' own tools read it.

The result is that of sigs.k8s.io/yaml, which kubectl, client-go and the API server use: a YAML 1.1 of its own, without
numbers to base 60, with names of keys as texts and members in order. It reads streams as kubectl reads files. It tells
about two things that those tools pass over in silence: duplicate keys, and text after the end of a document.

libyaml scans and parses, as the other tools' parser is a translation of it. What is read from outside is bounded here:
depth, aliases by number and by size.
"""

import codecs
import collections
import contextlib
import io
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import yaml

from cache import yamlscalars

DEPTH_LIMIT: Final = 400
"""Levels of lists and mappings within each other. Decoders of JSON give up at some 1,000; objects have 10 to 30."""

ALIAS_BYTES_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of JSON that the aliases of a document may stand for. An API server takes objects of at most 3 MiB."""

NOTES_LIMIT: Final = 10
"""Notes kept for one document."""

# As in the parser of Kubernetes' tools: how much of a document may come from aliases, by the number of its nodes.
_ALIAS_NODES_FREE: Final = 100
_NODES_FREE: Final = 1_000
_SMALL_NODES: Final = 400_000
_LARGE_NODES: Final = 4_000_000
_SMALL_RATIO: Final = 0.99
_LARGE_RATIO: Final = 0.10

_MERGE_DEPTH_LIMIT: Final = 16
"""Mappings that are written after `<<` within each other. With an alias after it, as always, there is but one."""

_CACHED_LENGTH: Final = 64
_CACHE_ENTRIES: Final = 10_000
_BLOCK_BYTES: Final = 1 << 16
_SEPARATOR: Final = b"---"
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARK_AND_BREAK: Final = 6
"""Bytes of a line break and a byte order mark, at most."""
_LATE_MARK = re.compile(rb"(?:[\r\n]|\xc2\x85|\xe2\x80[\xa8\xa9])\xef\xbb\xbf")
_MERGE: Final = "<<"
_MERGE_TAG: Final = yamlscalars.TAG + "merge"

_Loader: Final[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""Gives the events. Without libyaml they come from PyYAML's own parser, some 30 times slower."""


class YamlError(ValueError):
    """The text is not YAML, or cannot be JSON."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(f"line {line}: {problem}")
        self.problem = problem
        """What is wrong, without the place."""
        self.line = line
        """Line in the whole text, from 1."""


class Readable(Protocol):
    """What a stream of documents is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, or all. Empty at the end."""
        ...


class Note(NamedTuple):
    """Something that Kubernetes' tools pass over in silence."""

    line: int
    text: str


class Document(NamedTuple):
    """One document of a stream."""

    number: int
    """From 1. Empty documents count."""
    line: int
    """Where it begins, from 1."""
    raw: bytes
    """JSON. `null` for a document without content."""
    notes: tuple[Note, ...] = ()


def to_json(text: bytes) -> Document:
    """Read the first document of a text. UTF-8, or UTF-16 with a byte order mark.

    Raises:
        YamlError: with the line.
    """
    source = _Text(text)
    with _as_yaml_error(source):
        return _read(source, 1, 1)


def decode(text: bytes) -> Any:
    """The first document of a text as dicts, lists, texts, numbers, booleans and None. Raises YamlError."""
    return msgspec.json.decode(to_json(text).raw)


def documents(stream: Readable, *, line: int = 1) -> Iterator[Document]:
    """Read a stream as kubectl does: lines that begin with `---` part its documents. One document is held at a time.

    `line` is the number of the stream's first line.

    Raises:
        YamlError: with the line.
    """
    source = _Stream(stream, line)
    number = 0
    while source.begin():
        number += 1
        with _as_yaml_error(source):
            document = _read(source, number, source.first_line)
        yield document


class _Node(NamedTuple):
    """A node that is read."""

    text: bytes
    """JSON."""
    members: dict[str, bytes] | None
    """For a mapping."""


class _Anchored:
    """What an anchor names."""

    __slots__ = ("event", "node", "nodes")

    def __init__(self, event: yaml.ScalarEvent | None) -> None:
        self.node: _Node | None = None
        """None while its mapping or list is open."""
        self.nodes = 1
        """Nodes in it. Aliases count as what they stand for."""
        self.event = event
        """Set for a scalar."""


class _Frame:
    """A mapping or list that is open."""

    __slots__ = ("anchored", "elements", "has_merged", "key", "members", "nodes_before")

    def __init__(self, *, is_mapping: bool, anchored: _Anchored | None, nodes_before: int) -> None:
        self.members: dict[str, bytes] | None = {} if is_mapping else None
        self.elements: list[bytes] = []
        self.key: Any = None
        """Name of the member whose value comes next, a str. None: a name comes next."""
        self.has_merged = False
        self.anchored = anchored
        self.nodes_before = nodes_before

    def put(self, text: bytes) -> None:
        """Add a value."""
        if self.members is None:
            self.elements.append(text)
        else:
            self.members[self.key] = text
            self.key = None

    def text(self) -> bytes:
        """The whole as JSON. The members are in the order of their names."""
        if self.members is None:
            return b"[%b]" % b",".join(self.elements)
        return b"{%b}" % b",".join([b"%b:%b" % (_name_text(name), text) for name, text in sorted(self.members.items())])


class _Cache(dict[str, Any]):
    """Remembers what a function makes of short texts: most names and many values come again and again."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, text: str) -> Any:
        made = self._function(text)
        if len(text) <= _CACHED_LENGTH:
            if len(self) >= _CACHE_ENTRIES:
                self.clear()
            self[text] = made
        return made


_name_text = _Cache(yamlscalars.encode).__getitem__


class _Composer:
    """Makes the JSON of one document of its events."""

    def __init__(self, next_event: Callable[[], Any], first_line: int) -> None:
        self._next_event = next_event
        self._first_line = first_line
        self._plain_texts = _Cache(lambda value: yamlscalars.as_json(yamlscalars.resolve(value)))
        self._plain_names = _Cache(lambda value: value if type(yamlscalars.resolve(value)) is str else None)
        self._anchors: dict[str, _Anchored] = {}
        self._depth = 0
        self._merge_depth = 0
        self._nodes = 1
        self._alias_nodes = 0
        self._alias_bytes = 0
        self.notes: list[Note] = []
        """What is remarkable, the first of it."""

    def note(self, event: Any, text: str) -> None:
        """Keep a note for the reader of the document."""
        if len(self.notes) < NOTES_LIMIT:
            self.notes.append(Note(self._first_line + event.start_mark.line, text))

    def compose(self, event: Any) -> _Node:
        """Read the node that begins with an event. Raises YamlError."""
        try:
            if type(event) is yaml.ScalarEvent:
                return self._scalar(event)
            if type(event) is yaml.AliasEvent:
                return self._alias(event)
        except ValueError as error:
            raise self._error(event, error) from error
        return self._collection(event)

    def _collection(self, event: Any) -> _Node:
        next_event, plain_texts, plain_names = self._next_event, self._plain_texts, self._plain_names
        scalar_event, alias_event = yaml.ScalarEvent, yaml.AliasEvent
        starts, ends = (yaml.MappingStartEvent, yaml.SequenceStartEvent), (yaml.MappingEndEvent, yaml.SequenceEndEvent)
        stack: list[_Frame] = []
        top = self._open(event)
        try:
            while True:
                event = next_event()
                kind = type(event)
                members = top.members
                if kind in ends:
                    node = self._close(top)
                    if not stack:
                        return node
                    top = stack.pop()
                    top.put(node.text)
                elif members is not None and top.key is None:
                    if (
                        kind is scalar_event
                        and event.value == _MERGE
                        and (event.implicit[0] or event.tag == _MERGE_TAG)
                    ):
                        top.has_merged = True
                        self._merge(members)
                        continue
                    name = None
                    if kind is scalar_event and event.implicit[0] and event.anchor is None and event.tag is None:
                        self._nodes += 1
                        name = plain_names[event.value]
                    if name is None:
                        name = self._name(event)
                    if name in members and not top.has_merged:
                        self.note(event, f"duplicate key {yamlscalars.shown(name)}: the last one counts")
                    top.key = name
                elif kind is scalar_event:
                    if event.anchor is not None or event.tag is not None:
                        text = self._scalar(event).text
                    else:
                        self._nodes += 1
                        text = plain_texts[event.value] if event.implicit[0] else yamlscalars.encode(event.value)
                    if members is None:
                        top.elements.append(text)
                    else:
                        members[top.key] = text
                        top.key = None
                elif kind in starts:
                    stack.append(top)
                    top = self._open(event)
                elif kind is alias_event:
                    top.put(self._alias(event).text)
                else:
                    raise ValueError("the document ends within a list or mapping")
        except YamlError:
            raise
        except ValueError as error:
            raise self._error(event, error) from error

    def _error(self, event: Any, error: ValueError) -> YamlError:
        return (
            error if isinstance(error, YamlError) else YamlError(str(error), self._first_line + event.start_mark.line)
        )

    def _open(self, event: Any) -> _Frame:
        self._nodes += 1
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise self._error(event, ValueError(f"nested more than {DEPTH_LIMIT} levels deep"))
        anchored = None
        if event.anchor is not None:
            anchored = self._anchors[event.anchor] = _Anchored(None)
        return _Frame(is_mapping=type(event) is yaml.MappingStartEvent, anchored=anchored, nodes_before=self._nodes - 1)

    def _close(self, frame: _Frame) -> _Node:
        self._depth -= 1
        node = _Node(frame.text(), frame.members)
        if frame.anchored is not None:
            frame.anchored.node = node
            frame.anchored.nodes = self._nodes - frame.nodes_before
        return node

    def _scalar(self, event: Any) -> _Node:
        self._nodes += 1
        node = _Node(yamlscalars.as_json(self._value(event)), None)
        if event.anchor is not None:
            anchored = self._anchors[event.anchor] = _Anchored(event)
            anchored.node = node
        return node

    def _value(self, event: Any) -> bool | int | float | str | None:
        value: str = event.value
        if event.tag is not None:
            return yamlscalars.tagged(event.tag, value)
        return yamlscalars.resolve(value) if event.implicit[0] else value

    def _name(self, event: Any) -> str:
        if type(event) is yaml.AliasEvent:
            event = self._anchored(event).event
        elif type(event) is yaml.ScalarEvent:
            self._nodes += 1
            if event.anchor is not None:
                self._anchors[event.anchor] = _Anchored(event)
        else:
            event = None
        if event is None:
            raise ValueError("a list or mapping cannot be the name of a member")
        return yamlscalars.as_name(self._value(event))

    def _alias(self, event: Any) -> _Node:
        anchored = self._anchored(event)
        if anchored.node is None:
            if anchored.event is None:
                raise ValueError(f"anchor {yamlscalars.shown(event.anchor)} value contains itself")
            anchored.node = _Node(yamlscalars.as_json(self._value(anchored.event)), None)
        self._alias_bytes += len(anchored.node.text)
        if self._alias_bytes > ALIAS_BYTES_LIMIT:
            raise ValueError(f"aliases stand for more than {ALIAS_BYTES_LIMIT} bytes")
        return anchored.node

    def _anchored(self, event: Any) -> _Anchored:
        """What an alias stands for, once more."""
        anchored = self._anchors.get(event.anchor)
        if anchored is None:
            raise ValueError(f"unknown anchor {yamlscalars.shown(event.anchor)} referenced")
        self._nodes += 1 + anchored.nodes
        self._alias_nodes += anchored.nodes
        if self._alias_nodes > _ALIAS_NODES_FREE and self._nodes > _NODES_FREE:
            share = min(max(self._nodes - _SMALL_NODES, 0) / (_LARGE_NODES - _SMALL_NODES), 1)
            if self._alias_nodes / self._nodes > _SMALL_RATIO - (_SMALL_RATIO - _LARGE_RATIO) * share:
                raise ValueError(f"document contains excessive aliasing: {self._alias_nodes} of {self._nodes} nodes")
        return anchored

    def _merge(self, into: dict[str, bytes]) -> None:
        """Read what comes after `<<`. Its members replace those before it, and those after it replace its."""
        event = self._next_event()
        if type(event) is yaml.SequenceStartEvent:
            self._nodes += 1
            anchored = _Anchored(None)
            if event.anchor is not None:
                self._anchors[event.anchor] = anchored
            merged = []
            while type(event := self._next_event()) is not yaml.SequenceEndEvent:
                merged.append(self._merged(event))
            anchored.node = _Node(b"[%b]" % b",".join(text for text, _ in merged), None)
            anchored.nodes += len(merged)
        else:
            merged = [self._merged(event)]
        for _, members in reversed(merged):
            into.update(members)

    def _merged(self, event: Any) -> tuple[bytes, dict[str, bytes]]:
        self._merge_depth += 1
        if self._merge_depth > _MERGE_DEPTH_LIMIT:
            raise ValueError(f"mappings to merge are nested more than {_MERGE_DEPTH_LIMIT} levels deep")
        node = self.compose(event) if type(event) in (yaml.MappingStartEvent, yaml.AliasEvent) else None
        self._merge_depth -= 1
        if node is None or node.members is None:
            raise ValueError("map merge requires map or sequence of maps as the value")
        return node.text, node.members


def _read(source: "_Source", number: int, first_line: int) -> Document:
    """Read one document of what a source gives. The text after its end is only looked at."""
    loader = _Loader(source)
    try:
        next_event = loader.get_event
        next_event()  # begin of the stream
        event = next_event()
        if type(event) is yaml.StreamEndEvent:
            return Document(number, first_line, b"null")
        if event.version not in (None, (1, 1)):
            raise YamlError("found incompatible YAML document: its version is not 1.1", first_line)
        composer = _Composer(next_event, first_line)
        event = next_event()
        line = first_line + event.start_mark.line
        node = composer.compose(event)
        event = next_event()  # end of the document
        try:
            following = next_event()
        except yaml.MarkedYAMLError:
            following = None
        if type(following) is not yaml.StreamEndEvent:
            composer.note(following or event, "text after the end of the document is ignored")
        return Document(number, line, node.text, tuple(composer.notes))
    finally:
        loader.dispose()


@contextlib.contextmanager
def _as_yaml_error(source: "_Source") -> Iterator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        raise YamlError(error.problem or "cannot be parsed", source.first_line + line) from error
    except yaml.reader.ReaderError as error:
        raise YamlError(error.reason, source.line_at(error.position)) from error
    except yaml.YAMLError as error:
        raise YamlError(str(error) or "cannot be parsed", source.first_line) from error


# Sources


class _Source(Protocol):
    """What a parser reads."""

    first_line: int
    """Line of the document's beginning in the whole text, from 1."""

    def read(self, size: int) -> bytes:
        """The next part. Empty at the end of the document."""
        ...

    def line_at(self, offset: int) -> int:
        """The line of the byte at an offset in the document."""
        ...


class _Text:
    """A text that is one document."""

    first_line = 1

    def __init__(self, text: bytes) -> None:
        self._text = _recoded(text)
        self._rest = self._text

    def read(self, _size: int) -> bytes:
        _refuse_late_mark(b"", self._rest, 1)
        part, self._rest = self._rest, b""
        return part

    def line_at(self, offset: int) -> int:
        return 1 + self._text.count(b"\n", 0, offset)


class _Part(NamedTuple):
    offset: int
    line: int
    text: bytes


class _Stream:
    """The documents of a stream, one after the other."""

    def __init__(self, stream: Readable, line: int) -> None:
        self._stream = stream
        self._buffer = b""
        self._has_begun = False
        self._is_inside = False
        self._is_at_end = False
        self._line = line
        self._offset = 0
        self._tail = b""
        self._recent: collections.deque[_Part] = collections.deque(maxlen=2)
        self.first_line = line

    def begin(self) -> bool:
        """Go to the next document. False: there is none. Raises YamlError."""
        while self._is_inside:
            self.read(_BLOCK_BYTES)
        if not self._has_begun:
            self._has_begun = True
            self._fill()
            if self._buffer.startswith(_UTF16):
                self._stream = io.BytesIO(_recoded(self._buffer + self._stream.read()))
                self._buffer = b""
        elif self._buffer:
            separator = self._separator()
            self._buffer = self._buffer[len(separator) :]
            self._line += 1
        self._fill_to(len(_SEPARATOR))
        if not self._buffer:
            return False
        if self._buffer.startswith(_SEPARATOR):
            self._separator()
        self._offset = 0
        self._recent.clear()
        self._tail = b""
        self.first_line = self._line
        self._is_inside = True
        return True

    def read(self, size: int) -> bytes:
        """The next part of the document, which may be longer or shorter than `size`. Empty at its end."""
        if not self._is_inside:
            return b""
        self._fill_to(len(_SEPARATOR) + 2)
        end = self._buffer.find(b"\n" + _SEPARATOR)
        if end >= 0:
            self._is_inside = False
            return self._give(end + 1)
        if not self._is_at_end:
            return self._give(len(self._buffer) - len(_SEPARATOR))
        self._is_inside = False
        part = self._give(len(self._buffer))
        return part if part.endswith(b"\n") else part + b"\n"

    def line_at(self, offset: int) -> int:
        """As in the protocol. Knows the parts that were given last: parsers look no further back."""
        for part in reversed(self._recent):
            if part.offset <= offset:
                return part.line + part.text.count(b"\n", 0, offset - part.offset)
        return self.first_line

    def _give(self, count: int) -> bytes:
        text, self._buffer = self._buffer[:count], self._buffer[count:]
        _refuse_late_mark(self._tail, text, self._line)
        self._tail = (self._tail + text)[-_MARK_AND_BREAK + 1 :]
        self._recent.append(_Part(self._offset, self._line, text))
        self._offset += len(text)
        self._line += text.count(b"\n")
        return text

    def _separator(self) -> bytes:
        """The line that the buffer begins with."""
        while b"\n" not in self._buffer and self._fill():
            pass
        line, newline, _ = self._buffer.partition(b"\n")
        rest = line[len(_SEPARATOR) :].decode("utf-8", "replace").strip()
        if rest and not rest.startswith("#"):
            raise YamlError(f"invalid document separator: {yamlscalars.shown(rest)} after ---", self._line)
        return line + newline

    def _fill_to(self, count: int) -> None:
        while len(self._buffer) < count and self._fill():
            pass

    def _fill(self) -> bool:
        block = self._stream.read(_BLOCK_BYTES) if not self._is_at_end else b""
        self._buffer += block
        self._is_at_end = not block
        return bool(block)


def _recoded(text: bytes) -> bytes:
    """The text in UTF-8, if its mark says that it is UTF-16: lines are found by bytes."""
    if not text.startswith(_UTF16):
        return text
    try:
        return text.decode("utf-16").encode()
    except UnicodeDecodeError as error:
        raise YamlError("invalid UTF-16", 1) from error


def _refuse_late_mark(before: bytes, text: bytes, line: int) -> None:
    """Refuse a byte order mark at the beginning of a later line.

    libyaml would skip it; for Kubernetes' tools it is part of the name or value.
    """
    if codecs.BOM_UTF8 in before + text and (found := _LATE_MARK.search(before + text)):
        line += (before + text).count(b"\n", len(before), found.end())
        raise YamlError("byte order mark within a document", line)
