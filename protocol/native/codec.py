"""Internal: encodes messages as msgpack payloads, and decodes them (docs/protocol.md, section 3).

A payload is an array whose first element is the message type. Readers ignore additional elements of the array and
unknown members of a hello's map, so that version 1 can be extended.
"""

import enum
import functools
import struct
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import msgpack
import msgspec

from protocol import errors, messages

T = TypeVar("T")

MAX_NAME_CHARS = 1024
"""Limit of the names of feed, agent, node and software, and of the text of a goodbye."""
MAX_KEY_CHARS = 4096
"""A raw key has at most 4 x 253 characters and the separators."""
MAX_CHUNKS = 65536
_UPDATE_DEFAULTS: tuple[object, ...] = ("", 0)
"""Values of the optional elements of an update, v3_resource_version and ttl, if they are missing."""
MAX_LIST_LENGTH = 64
"""Limit of the number of versions, and of features, in a hello."""
MAX_MAP_LENGTH = 1024
MAX_ARRAY_LENGTH = 1 << 20
"""Limits of msgpack maps and arrays: the decoder allocates the announced size before it reads the first entry."""


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


_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]


class _UsualHello(msgspec.Struct, forbid_unknown_fields=True):
    """The members of nearly all hellos. The general decoder handles hellos with other members."""

    versions: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(min_length=1, max_length=MAX_LIST_LENGTH)
    ]
    feed: _Name
    agent: _Name
    features: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=MAX_LIST_LENGTH)] = ()
    software: _Name = ""
    node: _Name = ""


_USUAL_HELLO_START = b"\x92\x01"
"""An array of two elements; the first is the type of a client hello."""
_decode_usual_hello = msgspec.msgpack.Decoder(_UsualHello).decode
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
        content["subscription"] = hello.subscription
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
    return _pack((MessageType.SERVER_HELLO, content))


def encode_server_hello(hello: messages.ServerHello, connection_id: int) -> bytes:
    """The payload of a hello with another connection id.

    Thousands of clients may connect at once, and their hellos differ in the id only, so the rest is cached. Hellos with
    `not_supported` are not cached, because it contains strings from the client.
    """
    if connection_id < _LONG_ID_FROM or hello.not_supported:
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
    messages.Goodbye: lambda m: _pack((MessageType.GOODBYE, m.reason, m.text, m.retry_after_milliseconds)),
}


def decode(payload: bytes | memoryview) -> messages.Message:
    """Decodes a payload.

    Raises:
        RemoteProtocolError: not msgpack, not a known message, or a field of the wrong type or size.
    """
    if payload[: len(_USUAL_HELLO_START)] == _USUAL_HELLO_START:
        try:
            hello = _decode_usual_hello(memoryview(payload)[len(_USUAL_HELLO_START) :])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass  # The general decoder handles rare members, and names the field that is wrong.
        else:
            return messages.ClientHello(
                hello.feed, hello.agent, hello.versions, frozenset(hello.features), hello.software, hello.node
            )
    return decode_any(payload)


def decode_any(payload: bytes | memoryview) -> messages.Message:
    """Like `decode`, without the fast path for client hellos."""
    try:
        value = msgpack.unpackb(
            payload,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_array_len=MAX_ARRAY_LENGTH,
            max_map_len=MAX_MAP_LENGTH,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError, MemoryError) as error:
        raise errors.RemoteProtocolError(f"payload is not msgpack: {error or type(error).__name__}") from error
    if not isinstance(value, tuple) or not value or type(value[0]) is not int:
        raise errors.RemoteProtocolError("payload is not an array that begins with a message type")
    decoder = _DECODERS.get(value[0])
    if decoder is None:
        raise errors.RemoteProtocolError(f"unknown message type {value[0]}")
    try:
        return decoder(value)
    except IndexError:
        raise errors.RemoteProtocolError(f"message of type {value[0]} is too short") from None


def _field(value: object, kind: type[T], name: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise errors.RemoteProtocolError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _count(value: object, name: str) -> int:
    number = _field(value, int, name)
    if number < 0:
        raise errors.RemoteProtocolError(f"{name} is negative")
    return number


def _text(value: object, name: str, *, max_chars: int = MAX_NAME_CHARS) -> str:
    text = _field(value, str, name)
    if len(text) > max_chars:
        raise errors.RemoteProtocolError(f"{name} of {len(text)} characters is over the limit of {max_chars}")
    return text


def _names(value: object, name: str) -> frozenset[str]:
    items = _field(value, tuple, name)
    if len(items) > MAX_LIST_LENGTH:
        raise errors.RemoteProtocolError(f"{name} has {len(items)} entries, over the limit of {MAX_LIST_LENGTH}")
    return frozenset(_text(item, name) for item in items)


def _decode_updates(value: object) -> tuple[messages.Update, ...]:
    return tuple([_decode_update(item) for item in _field(value, tuple, "updates")])


def _decode_update(item: object) -> messages.Update:
    if not isinstance(item, tuple) or len(item) < 4:
        raise errors.RemoteProtocolError("update is not an array of at least four elements")
    key, value, revision, update_type, v3_resource_version, ttl = (*item, *_UPDATE_DEFAULTS[len(item) - 4 :])[:6]
    if not (
        isinstance(key, str)
        and (value is None or isinstance(value, bytes))
        and isinstance(revision, str)
        and isinstance(update_type, int)
        and isinstance(v3_resource_version, str)
        and isinstance(ttl, int)
    ):
        raise errors.RemoteProtocolError("update has an element of the wrong type")
    if len(key) > MAX_KEY_CHARS:
        raise errors.RemoteProtocolError(f"key of {len(key)} characters is over the limit of {MAX_KEY_CHARS}")
    return messages.Update(key, value, revision, update_type, v3_resource_version, ttl)


def _decode_client_hello(value: tuple[object, ...]) -> messages.ClientHello:
    content = _field(value[1], dict, "client hello")
    versions = _field(content.get("versions"), tuple, "versions")
    if not 0 < len(versions) <= MAX_LIST_LENGTH:
        raise errors.RemoteProtocolError(f"versions has {len(versions)} entries")
    resume = content.get("resume")
    subscription = content.get("subscription")
    digests = content.get("chunk_digests")
    return messages.ClientHello(
        feed=_text(content.get("feed"), "feed"),
        agent=_text(content.get("agent"), "agent"),
        versions=tuple(_count(version, "version") for version in versions),
        features=_names(content.get("features", ()), "features"),
        software=_text(content.get("software", ""), "software"),
        node=_text(content.get("node", ""), "node"),
        subscription=None if subscription is None else _field(subscription, dict, "subscription"),
        resume=None if resume is None else _decode_resume(_field(resume, tuple, "resume")),
        chunk_digests=None if digests is None else _decode_digests(_field(digests, tuple, "chunk_digests")),
    )


def _decode_resume(value: tuple[object, ...]) -> messages.ResumePosition:
    incarnation = _field(value[0], bytes, "resume incarnation")
    return messages.ResumePosition(incarnation, _count(value[1], "resume sequence"))


def _decode_digests(value: tuple[object, ...]) -> tuple[int, ...]:
    if len(value) > MAX_CHUNKS:
        raise errors.RemoteProtocolError(f"chunk_digests has {len(value)} entries, over the limit of {MAX_CHUNKS}")
    return tuple(_count(digest, "chunk digest") for digest in value)


def _decode_server_hello(value: tuple[object, ...]) -> messages.ServerHello:
    content = _field(value[1], dict, "server hello")
    return messages.ServerHello(
        version=_count(content.get("version"), "version"),
        feed=_text(content.get("feed"), "feed"),
        incarnation=_field(content.get("incarnation"), bytes, "incarnation"),
        features=_names(content.get("features", ()), "features"),
        not_supported=_names(content.get("not_supported", ()), "not_supported"),
        software=_text(content.get("software", ""), "software"),
        connection_id=_count(content.get("connection_id", 0), "connection_id"),
        ping_interval_milliseconds=_count(content.get("ping_interval_ms", 0), "ping_interval_ms"),
        max_frame_bytes=_count(content.get("max_frame_bytes", 0), "max_frame_bytes"),
    )


def _decode_begin(value: tuple[object, ...]) -> messages.SnapshotBegin:
    return messages.SnapshotBegin(_count(value[1], "sequence"), _count(value[2], "keys"), _count(value[3], "chunks"))


def _decode_chunk(value: tuple[object, ...]) -> messages.SnapshotChunk:
    return messages.SnapshotChunk(
        index=_count(value[1], "chunk index"),
        digest=_count(value[2], "chunk digest"),
        more=_field(value[3], bool, "more"),
        updates=_decode_updates(value[4]),
    )


def _decode_end(value: tuple[object, ...]) -> messages.SnapshotEnd:
    return messages.SnapshotEnd(_count(value[1], "sequence"), _count(value[2], "keys"), _count(value[3], "digest"))


def _decode_delta(value: tuple[object, ...]) -> messages.Updates:
    previous = _count(value[1], "previous sequence")
    return messages.Updates(previous, _count(value[2], "sequence"), _decode_updates(value[3]))


def _decode_status(value: tuple[object, ...]) -> messages.Status:
    number = _count(value[2], "status")
    try:
        return messages.Status(_count(value[1], "sequence"), messages.SyncStatus(number))
    except ValueError:
        raise errors.RemoteProtocolError(f"unknown status {number}") from None


def _decode_goodbye(value: tuple[object, ...]) -> messages.Goodbye:
    return messages.Goodbye(
        reason=_text(value[1], "reason"),
        text=_text(value[2], "text"),
        retry_after_milliseconds=_count(value[3], "retry_after_ms"),
    )


_DECODERS: dict[int, Callable[[tuple[object, ...]], messages.Message]] = {
    MessageType.CLIENT_HELLO: _decode_client_hello,
    MessageType.SERVER_HELLO: _decode_server_hello,
    MessageType.SNAPSHOT_BEGIN: _decode_begin,
    MessageType.SNAPSHOT_CHUNK: _decode_chunk,
    MessageType.SNAPSHOT_END: _decode_end,
    MessageType.UPDATES: _decode_delta,
    MessageType.STATUS: _decode_status,
    MessageType.PING: lambda value: messages.Ping(),
    MessageType.PONG: lambda value: messages.Pong(_count(value[1], "sequence")),
    MessageType.GOODBYE: _decode_goodbye,
}
