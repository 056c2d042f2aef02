"""Internal: the Go types of the messages, and the conversion of messages to gob and back.

The order of fields is that of the original's structs. The registered names contain a package path that the original no
longer uses; they never change.
"""

import operator
from collections.abc import Sequence

from protocol import messages as common
from protocol.gob import decoder, encoder, scalars, schema
from protocol.typha import messages, timestamps

NAME_PREFIX = b"github.com/projectcalico/typha/pkg/syncproto."
SERVER_LIMITS = decoder.Limits(message_bytes=256 * 1024 * 1024, skipped_values=16 * 1024 * 1024)
"""Limits for servers' messages: the original sends up to 1,000 objects in one message, and one may exceed 1 MiB."""

_get = operator.attrgetter


def _go_text(value: object) -> str:
    """Formats a revision as Go's fmt does. It is a string in practice, but may have any basic type."""
    match value:
        case str():
            return value
        case None:
            return "<nil>"
        case bool():
            return str(value).lower()
        case bytes() | list():
            return f"[{' '.join(_go_text(element) for element in value)}]"
        case _:
            return str(value)


def _make_update(
    key: str, value: bytes, revision: object, v3_resource_version: str, ttl: int, update_type: int
) -> common.Update:
    text = revision if type(revision) is str else _go_text(revision)
    return common.Update(key, value or None, text, update_type, v3_resource_version, ttl)


def _make_client_hello(
    hostname: str,
    info: str,
    version: str,
    syncer_type: str,
    supports_decoder_restart: bool,
    algorithms: Sequence[str],
    supports_modern_policy_keys: bool,
    client_connection_id: int,
) -> messages.ClientHello:
    return messages.ClientHello(
        hostname,
        info,
        version,
        syncer_type,
        supports_decoder_restart,
        tuple(algorithms),
        supports_modern_policy_keys,
        client_connection_id,
    )


TIME = schema.Opaque("Time", timestamps.check)
ENVELOPE = schema.Struct(
    "Envelope", [schema.Field("Message", schema.INTERFACE, lambda message: message)], lambda message: message
)
COMPRESSION_ALGORITHMS = schema.Slice("[]syncproto.CompressionAlgorithm", schema.STRING, max_length=64)
CLIENT_HELLO = schema.Struct(
    "MsgClientHello",
    [
        schema.Field("Hostname", schema.STRING, _get("hostname")),
        schema.Field("Info", schema.STRING, _get("info")),
        schema.Field("Version", schema.STRING, _get("version")),
        schema.Field("SyncerType", schema.STRING, _get("syncer_type")),
        schema.Field("SupportsDecoderRestart", schema.BOOL, _get("supports_decoder_restart")),
        schema.Field(
            "SupportedCompressionAlgorithms", COMPRESSION_ALGORITHMS, _get("supported_compression_algorithms")
        ),
        schema.Field("SupportsModernPolicyKeys", schema.BOOL, _get("supports_modern_policy_keys")),
        schema.Field("ClientConnID", schema.UINT, _get("client_connection_id")),
    ],
    _make_client_hello,
)
SERVER_HELLO = schema.Struct(
    "MsgServerHello",
    [
        schema.Field("Version", schema.STRING, _get("version")),
        schema.Field("SyncerType", schema.STRING, _get("syncer_type")),
        schema.Field("SupportsNodeResourceUpdates", schema.BOOL, _get("supports_node_resource_updates")),
        schema.Field("ServerConnID", schema.UINT, _get("server_connection_id")),
    ],
    messages.ServerHello,
)
DECODER_RESTART = schema.Struct(
    "MsgDecoderRestart",
    [
        schema.Field("Message", schema.STRING, _get("message")),
        schema.Field("CompressionAlgorithm", schema.STRING, _get("compression_algorithm")),
    ],
    messages.DecoderRestart,
)
ACK = schema.Struct("MsgACK", [], messages.Ack)
SYNC_STATUS = schema.Struct(
    "MsgSyncStatus", [schema.Field("SyncStatus", schema.UINT8, _get("status"))], messages.SyncStatus
)
PING = schema.Struct("MsgPing", [schema.Field("Timestamp", TIME, _get("timestamp"))], messages.Ping)
PONG = schema.Struct(
    "MsgPong",
    [
        schema.Field("PingTimestamp", TIME, _get("ping_timestamp")),
        schema.Field("PongTimestamp", TIME, _get("pong_timestamp")),
    ],
    messages.Pong,
)
SERIALIZED_UPDATE = schema.Struct(
    "SerializedUpdate",
    [
        schema.Field("Key", schema.STRING, _get("key")),
        schema.Field("Value", schema.BYTES, _get("value")),
        schema.Field("Revision", schema.INTERFACE, _get("revision")),
        schema.Field("V3ResourceVersion", schema.STRING, _get("v3_resource_version")),
        schema.Field("TTL", schema.INT, _get("ttl")),
        schema.Field("UpdateType", schema.UINT8, _get("update_type")),
    ],
    _make_update,
)
SERIALIZED_UPDATES = schema.Slice("[]syncproto.SerializedUpdate", SERIALIZED_UPDATE)
KEY_VALUES = schema.Struct(
    "MsgKVs",
    [schema.Field("KVs", SERIALIZED_UPDATES, _get("updates"))],
    lambda updates: messages.KeyValues(tuple(updates)),
)

_STRUCTS: dict[type, schema.Struct] = {
    messages.ClientHello: CLIENT_HELLO,
    messages.ServerHello: SERVER_HELLO,
    messages.DecoderRestart: DECODER_RESTART,
    messages.Ack: ACK,
    messages.SyncStatus: SYNC_STATUS,
    messages.Ping: PING,
    messages.Pong: PONG,
    messages.KeyValues: KEY_VALUES,
}
ENCODER_NAMES = {kind: (NAME_PREFIX + struct.name.encode(), struct) for kind, struct in _STRUCTS.items()}
SERVER_MESSAGE_TYPES: dict[bytes, schema.Kind] = {**schema.REGISTERED, **dict(ENCODER_NAMES.values())}
"""Everything that the Go client has registered. It decodes and ignores unexpected messages."""
CLIENT_MESSAGE_TYPES: dict[bytes, schema.Kind] = dict(
    ENCODER_NAMES[kind] for kind in (messages.ClientHello, messages.Ack, messages.Pong)
)
"""A client that sends anything else is disconnected, whether or not the server can decode it."""

SERVER_KINDS: tuple[schema.Defined, ...] = (
    *(ENVELOPE, SERVER_HELLO, DECODER_RESTART, SYNC_STATUS, PING, TIME),
    *(KEY_VALUES, SERIALIZED_UPDATES, SERIALIZED_UPDATE),
)
CLIENT_KINDS: tuple[schema.Defined, ...] = (ENVELOPE, CLIENT_HELLO, COMPRESSION_ALGORITHMS, ACK, PONG, TIME)
SERVER = encoder.Encoder(SERVER_KINDS, ENCODER_NAMES)
CLIENT = encoder.Encoder(CLIENT_KINDS, ENCODER_NAMES)


def make_client_decoder(limits: decoder.Limits = SERVER_LIMITS) -> decoder.Decoder:
    """A decoder of servers' messages. It returns the content of the envelopes: a message, or None."""
    return decoder.Decoder(ENVELOPE, SERVER_MESSAGE_TYPES, limits=limits)


def make_server_decoder(limits: decoder.Limits = decoder.HELLO_LIMITS) -> decoder.Decoder:
    """A decoder of clients' messages."""
    return decoder.Decoder(ENVELOPE, CLIENT_MESSAGE_TYPES, limits=limits)


def encode(message: messages.Message, *, types: encoder.Encoder) -> bytes:
    """Encodes a message for a peer that has received the definitions of `types`."""
    return types.message(ENVELOPE, message)


_uint, _text = scalars.encode_uint, scalars.encode_text
_KEY_VALUES_PREFIX = b"".join(
    (
        *(scalars.encode_int(SERVER.id_of(ENVELOPE)), b"\1"),
        SERVER.interface_start(*ENCODER_NAMES[messages.KeyValues]),
    )
)


def encode_update(update: common.Update) -> bytes:
    """Encodes a SerializedUpdate, for the hot path. The result equals that of the schema.

    It omits an empty value, as the original does, although clients then read a deletion.
    """
    key, value, revision, update_type, v3_resource_version, ttl = update
    if not key:
        return SERVER.value(SERIALIZED_UPDATE, update)
    parts = [b"\1", _text(key)]
    if value:
        parts += (b"\1", _uint(len(value)), value, b"\1")
    else:
        parts.append(b"\2")
    text = _text(revision)
    parts += (encoder.STRING_IN_INTERFACE, _uint(len(text) + 1), b"\0", text)
    last = 2
    if v3_resource_version:
        parts += (b"\1", _text(v3_resource_version))
        last = 3
    if ttl:
        parts += (_uint(4 - last), scalars.encode_int(ttl))
        last = 4
    if update_type:
        parts += (_uint(5 - last), _uint(update_type))
    parts.append(b"\0")
    return b"".join(parts)


def encode_key_values(updates: Sequence[bytes]) -> bytes:
    """Encodes a message with updates from `encode_update`, with the type ids of `SERVER`."""
    content = b"".join((b"\1", _uint(len(updates)), *updates, b"\0")) if updates else b"\0"
    return encoder.frame(b"".join((_KEY_VALUES_PREFIX, _uint(len(content)), content, b"\0")))
