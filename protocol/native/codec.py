"""Internal: encodes messages as msgpack payloads, and decodes them (docs/protocol.md, section 3).

A payload is an array whose first element is the message type. Readers ignore additional elements of the array and
unknown members of a hello's map, so that version 1 can be extended.
"""

import enum
import functools
import re
import struct
from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias

import msgpack
import msgspec

from protocol import errors, messages, subscriptions

MAX_NAME_CHARS = 1024
"""Limit of the names of feed, agent, node and software, and of the text of a goodbye."""
MAX_KEY_CHARS = 4096
"""A raw key has at most 4 x 253 characters and the separators."""
MAX_CHUNK_DIGESTS = 4096
"""Limit of the chunk digests in a hello, whose frame has room for 7,200 of them."""
MAX_CHUNKS = 1 << 20
"""Limit of the chunks of a snapshot that leaves some out, a bit for each."""
INCARNATION_BYTES = 16
MAX_UPDATES = 1 << 20
"""Limit of the updates in a frame: each takes up to 35 times its bytes in memory."""
MAX_SERVERS = 16
"""Limit of the servers in a goodbye."""
MAX_UPSTREAMS = 8
"""Limit of the upstreams in a hello."""
MAX_LIST_LENGTH = 64
"""Limit of the number of versions, and of features, in a hello."""


class MessageType(enum.IntEnum):
    """The first element of a payload. The numbers never change."""

    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    SNAPSHOT_BEGIN = 3
    SNAPSHOT_CHUNK = 4
    SNAPSHOT_END = 5
    UPDATES = 6
    STATUS = 7
    PING = 8
    PONG = 9
    GOODBYE = 10
    APPLIED = 11
    SNAPSHOT_RESUME = 12
    DICTIONARY = 13


def message_name(kind: type[messages.Message]) -> str:
    """The name of a message in the specification: `snapshot-begin` for `SnapshotBegin`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


_LONG_ID = struct.Struct(">Q")
_LONG_ID_FROM = 1 << 32
"""Connection ids from here on take 8 bytes. The ids of the service do, because they contain the worker's number."""


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def encode(message: messages.Message) -> bytes:
    """The payload of a message."""
    return _ENCODERS[type(message)](message)


def encode_updates(previous_sequence: int, sequence: int, updates: Sequence[messages.Update]) -> bytes:
    """The payload of `Updates`, for the hot path: it does not need the message object."""
    return _pack((MessageType.UPDATES, previous_sequence, sequence, updates))


def encode_chunk(index: int, digest: int, updates: Sequence[messages.Update], *, more: bool) -> bytes:
    """The payload of `SnapshotChunk`."""
    return _pack((MessageType.SNAPSHOT_CHUNK, index, digest, more, updates))


def _encode_client_hello(hello: messages.ClientHello) -> bytes:
    content: dict[str, object] = {
        "versions": hello.versions,
        "features": sorted(hello.features),
        "feed": hello.feed,
        "agent": hello.agent,
        "software": hello.software,
        "node": hello.node,
    }
    if hello.subscription is not None:
        content["subscription"] = msgspec.to_builtins(hello.subscription)
    if hello.resume is not None:
        content["resume"] = tuple(hello.resume)
    if hello.chunk_digests is not None:
        content["chunk_digests"] = hello.chunk_digests
    return _pack((MessageType.CLIENT_HELLO, content))


def _encode_server_hello(hello: messages.ServerHello) -> bytes:
    content: dict[str, object] = {
        "version": hello.version,
        "feed": hello.feed,
        "incarnation": hello.incarnation,
        "features": sorted(hello.features),
        "not_supported": sorted(hello.not_supported),
        "software": hello.software,
        "connection_id": hello.connection_id,
        "ping_interval_ms": hello.ping_interval_milliseconds,
        "max_frame_bytes": hello.max_frame_bytes,
    }
    if hello.confirmed_milliseconds is not None:
        content["confirmed_ms"] = hello.confirmed_milliseconds
    if hello.upstreams is not None:
        content["upstreams"] = hello.upstreams
    return _pack((MessageType.SERVER_HELLO, content))


def encode_server_hello(hello: messages.ServerHello, connection_id: int) -> bytes:
    """The payload of a hello with another connection id.

    Thousands of clients may connect at once, and their hellos differ in the id only, so the rest is cached. Hellos with
    `not_supported` are not cached, because it contains strings from the client, nor those with a time.
    """
    if connection_id < _LONG_ID_FROM or hello.not_supported or hello.confirmed_milliseconds is not None:
        return encode(msgspec.structs.replace(hello, connection_id=connection_id))
    before, after = _around_id(hello)
    return before + _LONG_ID.pack(connection_id) + after


@functools.lru_cache(maxsize=64)
def _around_id(hello: messages.ServerHello) -> tuple[bytes, bytes]:
    stand_in = (1 << 64) - 1
    encoded = encode(msgspec.structs.replace(hello, connection_id=stand_in))
    before, name, after = encoded.rpartition(_pack("connection_id") + _pack(stand_in))
    return before + name[: -_LONG_ID.size], after


_ENCODERS: dict[type, Callable[..., bytes]] = {
    messages.ClientHello: _encode_client_hello,
    messages.ServerHello: _encode_server_hello,
    messages.SnapshotBegin: lambda m: _pack((MessageType.SNAPSHOT_BEGIN, m.sequence, m.keys, m.chunks)),
    messages.SnapshotChunk: lambda m: encode_chunk(m.index, m.digest, m.updates, more=m.more),
    messages.SnapshotEnd: lambda m: _pack((MessageType.SNAPSHOT_END, m.sequence, m.keys, m.digest)),
    messages.Updates: lambda m: encode_updates(m.previous_sequence, m.sequence, m.updates),
    messages.Status: lambda m: _pack((MessageType.STATUS, m.sequence, int(m.status))),
    messages.Ping: lambda m: _pack((MessageType.PING,)),
    messages.Pong: lambda m: _pack((MessageType.PONG, m.sequence)),
    messages.Goodbye: lambda m: _pack(
        (MessageType.GOODBYE, m.reason, m.text, m.retry_after_milliseconds, *([m.servers] if m.servers else []))
    ),
    messages.Applied: lambda m: _pack((MessageType.APPLIED, m.sequence)),
    messages.SnapshotResume: lambda m: _pack((MessageType.SNAPSHOT_RESUME, m.sequence, m.keys, m.chunks, m.kept)),
    messages.Dictionary: lambda m: _pack((MessageType.DICTIONARY, m.number, m.data)),
}


# Decoding. Every message has a type of its own, so that nothing is built that the message does not hold. msgspec skips
# all else without making room for it, and checks an announced length against the bytes that are left.

_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]
_Names = Annotated[tuple[_Name, ...], msgspec.Meta(max_length=MAX_LIST_LENGTH)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Wire(msgspec.Struct, array_like=True, gc=False):
    """A payload. Additional elements are skipped."""


class _ResumePosition(msgspec.Struct, array_like=True):
    incarnation: bytes
    sequence: _Count


class _ClientHelloContent(msgspec.Struct):
    feed: _Name
    agent: _Name
    versions: Annotated[tuple[_Count, ...], msgspec.Meta(min_length=1, max_length=MAX_LIST_LENGTH)]
    features: _Names | None = None
    software: _Name | None = None
    node: _Name | None = None
    subscription: subscriptions.Subscription | None = None
    resume: _ResumePosition | None = None
    chunk_digests: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=MAX_CHUNK_DIGESTS)] | None = None


class _ClientHello(_Wire, tag=int(MessageType.CLIENT_HELLO)):
    content: _ClientHelloContent

    def message(self) -> messages.ClientHello:
        hello = self.content
        resume = hello.resume
        digests = 1 if hello.chunk_digests is None else len(hello.chunk_digests)
        if messages.Feature.CHUNK_DIGESTS in (hello.features or ()) and (not digests or digests & (digests - 1)):
            raise msgspec.ValidationError(f"{digests} chunk digests, which is no power of two")
        return messages.ClientHello(
            hello.feed,
            hello.agent,
            hello.versions,
            frozenset(hello.features or ()),
            hello.software or "",
            hello.node or "",
            hello.subscription,
            None if resume is None else messages.ResumePosition(resume.incarnation, resume.sequence),
            hello.chunk_digests,
        )


_Incarnation = Annotated[bytes, msgspec.Meta(min_length=INCARNATION_BYTES, max_length=INCARNATION_BYTES)]


class _ServerHelloContent(msgspec.Struct):
    version: _Count
    feed: _Name
    incarnation: _Incarnation
    features: _Names | None = None
    not_supported: _Names | None = None
    software: _Name | None = None
    connection_id: _Count | None = None
    ping_interval_ms: _Count | None = None
    max_frame_bytes: _Count | None = None
    confirmed_ms: _Count | None = None
    upstreams: Annotated[tuple[_Incarnation, ...], msgspec.Meta(max_length=MAX_UPSTREAMS)] | None = None


class _ServerHello(_Wire, tag=int(MessageType.SERVER_HELLO)):
    content: _ServerHelloContent

    def message(self) -> messages.ServerHello:
        hello = self.content
        return messages.ServerHello(
            version=hello.version,
            feed=hello.feed,
            incarnation=hello.incarnation,
            features=frozenset(hello.features or ()),
            not_supported=frozenset(hello.not_supported or ()),
            software=hello.software or "",
            connection_id=hello.connection_id or 0,
            ping_interval_milliseconds=hello.ping_interval_ms or 0,
            max_frame_bytes=hello.max_frame_bytes or 0,
            confirmed_milliseconds=hello.confirmed_ms,
            upstreams=hello.upstreams,
        )


class _SnapshotBegin(_Wire, tag=int(MessageType.SNAPSHOT_BEGIN)):
    sequence: _Count
    keys: _Count
    chunks: _Count

    def message(self) -> messages.SnapshotBegin:
        return messages.SnapshotBegin(self.sequence, self.keys, self.chunks)


class _SnapshotResume(_Wire, tag=int(MessageType.SNAPSHOT_RESUME)):
    sequence: _Count
    keys: _Count
    chunks: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHUNKS)]
    kept: bytes

    def message(self) -> messages.SnapshotResume:
        if self.chunks & (self.chunks - 1):
            raise msgspec.ValidationError(f"{self.chunks} chunks, which is no power of two")
        if len(self.kept) != -(-self.chunks // 8):
            raise msgspec.ValidationError(
                f"`kept` has length {len(self.kept)}, which is not that of {self.chunks} chunks"
            )
        return messages.SnapshotResume(self.sequence, self.keys, self.chunks, self.kept)


class _Update(msgspec.Struct, array_like=True, gc=False):
    key: Annotated[str, msgspec.Meta(max_length=MAX_KEY_CHARS)]
    value: bytes | None
    revision: str
    update_type: int
    v3_resource_version: str = ""
    ttl: int = 0


_UpdateList = Annotated[tuple[_Update, ...], msgspec.Meta(max_length=MAX_UPDATES)]


def _updates(updates: tuple[_Update, ...]) -> tuple[messages.Update, ...]:
    return tuple(
        [
            messages.Update(
                update.key,
                update.value,
                update.revision,
                update.update_type,
                update.v3_resource_version,
                update.ttl,
            )
            for update in updates
        ]
    )


class _SnapshotChunk(_Wire, tag=int(MessageType.SNAPSHOT_CHUNK)):
    index: _Count
    digest: _Count
    more: bool
    updates: _UpdateList

    def message(self) -> messages.SnapshotChunk:
        return messages.SnapshotChunk(self.index, self.digest, self.more, _updates(self.updates))


class _SnapshotEnd(_Wire, tag=int(MessageType.SNAPSHOT_END)):
    sequence: _Count
    keys: _Count
    digest: _Count

    def message(self) -> messages.SnapshotEnd:
        return messages.SnapshotEnd(self.sequence, self.keys, self.digest)


class _Updates(_Wire, tag=int(MessageType.UPDATES)):
    previous_sequence: _Count
    sequence: _Count
    updates: _UpdateList

    def message(self) -> messages.Updates:
        return messages.Updates(self.previous_sequence, self.sequence, _updates(self.updates))


class _Status(_Wire, tag=int(MessageType.STATUS)):
    sequence: _Count
    status: messages.SyncStatus

    def message(self) -> messages.Status:
        return messages.Status(self.sequence, self.status)


class _Ping(_Wire, tag=int(MessageType.PING)):
    def message(self) -> messages.Ping:
        return messages.Ping()


class _Pong(_Wire, tag=int(MessageType.PONG)):
    sequence: _Count

    def message(self) -> messages.Pong:
        return messages.Pong(self.sequence)


class _Goodbye(_Wire, tag=int(MessageType.GOODBYE)):
    reason: _Name
    text: _Name
    retry_after_milliseconds: _Count
    servers: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=MAX_SERVERS)] | None = None

    def message(self) -> messages.Goodbye:
        return messages.Goodbye(self.reason, self.text, self.retry_after_milliseconds, self.servers or ())


class _Applied(_Wire, tag=int(MessageType.APPLIED)):
    sequence: _Count

    def message(self) -> messages.Applied:
        return messages.Applied(self.sequence)


class _Dictionary(_Wire, tag=int(MessageType.DICTIONARY)):
    number: _Count
    data: bytes

    def message(self) -> messages.Dictionary:
        return messages.Dictionary(self.number, self.data)


_FromClient: TypeAlias = _ClientHello | _Pong | _Goodbye | _Applied
_FromServer: TypeAlias = (
    _ServerHello
    | _SnapshotBegin
    | _SnapshotResume
    | _SnapshotChunk
    | _SnapshotEnd
    | _Updates
    | _Status
    | _Ping
    | _Goodbye
    | _Dictionary
)
_Decode: TypeAlias = Callable[[bytes | memoryview], _FromClient | _FromServer]
_decode_from_client: _Decode = msgspec.msgpack.Decoder(_FromClient).decode
_decode: _Decode = msgspec.msgpack.Decoder(_FromClient | _FromServer).decode


def decode(payload: bytes | memoryview) -> messages.Message:
    """Decodes a payload from either side.

    Raises:
        RemoteProtocolError: not msgpack, not a known message, or a field of the wrong type or size.
    """
    return _message(_decode, payload)


def decode_from_client(payload: bytes | memoryview) -> messages.Message:
    """Decodes a payload from a client: a hello, a pong, a goodbye or a position. Other messages are refused unread.

    Raises:
        RemoteProtocolError: not msgpack, not a client's message, or a field of the wrong type or size.
    """
    return _message(_decode_from_client, payload)


def _message(decode: _Decode, payload: bytes | memoryview) -> messages.Message:
    try:
        return decode(payload).message()
    except msgspec.ValidationError as error:
        raise errors.RemoteProtocolError(f"a message is not valid: {_in_plain_words(str(error))}") from error
    except UnicodeDecodeError as error:
        raise errors.RemoteProtocolError("a message is not valid: a text is not UTF-8") from error
    except RecursionError as error:
        raise errors.RemoteProtocolError("a message is not valid: it is nested too deeply") from error
    except MemoryError as error:
        raise errors.RemoteProtocolError("there is no memory for a message") from error
    except msgspec.MsgspecError as error:
        raise errors.RemoteProtocolError("a message is not valid: it is not one whole msgpack value") from error


_WORDS = {
    "int": "integer",
    "str": "text",
    "bytes": "bin",
    "bool": "boolean",
    "null": "nil",
    "None": "nil",
    "object": "map",
    "Object missing required field": "a member is missing:",
}
"""msgspec's words for kinds, and the specification's."""


def _in_plain_words(text: str) -> str:
    """What msgspec finds wrong, in the words of the specification: "Expected `text`, got `array` - at `$[1].feed`"."""
    return re.sub(rf"(?<![^`\s])({'|'.join(_WORDS)})(?![^`\s])", lambda found: _WORDS[found[0]], text)
