"""Messages compared with recorded ones, and the two ways of encoding updates with each other."""

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import messages as common
from protocol.gob import decoder, encoder
from protocol.typha import codec, messages, snappy
from tests import wire
from tests.harness import strategies

VECTORS: dict[str, dict[str, Any]] = {
    vector["name"]: vector for vector in wire.load_json("messages/messages.json")["vectors"]
}
OF_CLIENTS = ("MsgClientHello", "MsgACK", "MsgPong")
NOT_OURS = {"kvs-nil-revision", "kvs-int-revision", "kvs-uint64-revision", "kvs-1-allzero"}
"""Revisions other than strings can be decoded but not encoded."""


def decode_all(data: bytes, reader: decoder.Decoder | None = None) -> list[Any]:
    reader = reader or codec.make_client_decoder()
    reader.receive(data)
    decoded = []
    while (value := reader.next_value()) is not decoder.NEED_DATA:
        decoded.append(value)
    return decoded


def time_of(field: dict[str, Any] | None) -> bytes:
    return b"" if field is None else bytes.fromhex(field["payloadHex"])


def update_of(fields: dict[str, Any], value: bytes | None) -> common.Update:
    revision = fields["Revision"]
    return common.Update(
        fields["Key"],
        value,
        "<nil>" if revision is None else revision["value"],
        fields["UpdateType"],
        fields["V3ResourceVersion"],
        int(fields["TTL"]),
    )


def check_value(expected: dict[str, Any] | None, value: bytes | None) -> None:
    data = value or b""
    match expected:
        case None:
            assert data == b""
        case {"utf8": str(text)}:
            assert data == text.encode()
        case {"base64": str(text)}:
            assert data == base64.b64decode(text)
        case {"sha256": str(digest), "len": int(length)}:
            assert (len(data), hashlib.sha256(data).hexdigest()) == (length, digest)
        case _:
            pytest.fail(f"unknown description {expected}")


def expected_message(vector: dict[str, Any]) -> messages.Message:
    fields = vector["fields"]
    match vector["type"]:
        case "MsgClientHello":
            return messages.ClientHello(
                hostname=fields["Hostname"],
                info=fields["Info"],
                version=fields["Version"],
                syncer_type=fields["SyncerType"],
                supports_decoder_restart=fields["SupportsDecoderRestart"],
                supported_compression_algorithms=tuple(fields["SupportedCompressionAlgorithms"]),
                supports_modern_policy_keys=fields["SupportsModernPolicyKeys"],
                client_connection_id=int(fields["ClientConnID"]),
            )
        case "MsgServerHello":
            return messages.ServerHello(
                fields["Version"],
                fields["SyncerType"],
                fields["SupportsNodeResourceUpdates"],
                int(fields["ServerConnID"]),
            )
        case "MsgDecoderRestart":
            return messages.DecoderRestart(fields["Message"], fields["CompressionAlgorithm"])
        case "MsgACK":
            return messages.Ack()
        case "MsgSyncStatus":
            return messages.SyncStatus(fields["SyncStatus"])
        case "MsgPing":
            return messages.Ping(time_of(fields["Timestamp"]))
        case _:
            return messages.Pong(time_of(fields["PingTimestamp"]), time_of(fields["PongTimestamp"]))


def test_there_are_as_many_vectors_as_recorded() -> None:
    listed = {entry["path"]: entry for entry in wire.load_json("manifest.json")["files"]}
    found = {
        path.relative_to(wire.FOLDER).as_posix()
        for path in wire.FOLDER.rglob("*")
        if path.is_file() and path.parent != wire.FOLDER and path.suffix != ".pyc"
    }
    assert found == listed.keys()
    assert len(found) == wire.FILES
    assert {path for path in found if hashlib.sha256(wire.load(path)).hexdigest() != listed[path]["sha256"]} == set()
    assert len(VECTORS) == 61


@pytest.mark.parametrize("name", VECTORS)
def test_messages_from_go_are_decoded(name: str) -> None:
    vector = VECTORS[name]
    first = wire.load(f"messages/{vector['first']}")
    chunks = snappy.ChunkReader()
    chunks.receive(wire.load(f"messages/{vector['snappy']}"))
    content = b""
    while (piece := chunks.next_content()) is not None:
        content += piece
    assert content == first
    one, again = decode_all(first + wire.load(f"messages/{vector['again']}"))
    assert one == again
    if vector["type"] != "MsgKVs":
        assert one == expected_message(vector)
        return
    expected = vector["fields"]["KVs"]
    assert one.updates == tuple(
        update_of(fields, update.value) for fields, update in zip(expected, one.updates, strict=True)
    )
    for fields, update in zip(expected, one.updates, strict=True):
        check_value(fields["Value"], update.value)


@pytest.mark.parametrize("name", sorted(VECTORS.keys() - NOT_OURS))
def test_bytes_equal_those_of_go_with_the_ids_of_go(name: str) -> None:
    vector = VECTORS[name]
    reader = codec.make_client_decoder()
    (message,) = decode_all(wire.load(f"messages/{vector['first']}"), reader)
    kinds = codec.CLIENT_KINDS if vector["type"] in OF_CLIENTS else codec.SERVER_KINDS
    numbers = {wire_type.name: number for number, wire_type in reader.definitions.items()}
    # Types that this message does not use have no id in the stream. Any id will do for them.
    types = encoder.Encoder(
        kinds, codec.ENCODER_NAMES, ids=[numbers.get(kind.name, 900 + place) for place, kind in enumerate(kinds)]
    )
    assert codec.encode(message, types=types) == wire.load(f"messages/{vector['again']}")


def test_definitions_equal_those_that_a_go_client_accepted() -> None:
    chunks = snappy.ChunkReader()
    chunks.receive(wire.load("shared-frames/preamble.bin"))
    types = encoder.Encoder(codec.SERVER_KINDS, codec.ENCODER_NAMES, ids=[*range(1000, 1007), 1008, 1007])
    content = chunks.next_content()
    reader = codec.make_client_decoder()
    ours = codec.make_client_decoder()
    assert content is not None
    assert decode_all(content, reader) == decode_all(types.definitions, ours) == []
    assert dict(reader.definitions) == dict(ours.definitions)
    assert sorted(content) == sorted(types.definitions)


@given(st.lists(strategies.updates, max_size=4))
def test_the_hot_path_for_updates_gives_the_same_bytes(updates: list[common.Update]) -> None:
    fast = codec.encode_key_values([codec.encode_update(update) for update in updates])
    assert fast == codec.encode(messages.KeyValues(tuple(updates)), types=codec.SERVER)
    (decoded,) = decode_all(codec.SERVER.definitions + fast)
    assert decoded.updates == tuple(update._replace(value=update.value or None) for update in updates)


hellos = st.builds(
    messages.ClientHello,
    hostname=strategies.names,
    info=strategies.names,
    version=strategies.names,
    syncer_type=strategies.names,
    supports_decoder_restart=st.booleans(),
    supported_compression_algorithms=st.lists(strategies.names, max_size=3).map(tuple),
    supports_modern_policy_keys=st.booleans(),
    client_connection_id=strategies.counts,
)


@given(hellos)
def test_hello_round_trip(hello: messages.ClientHello) -> None:
    data = codec.CLIENT.definitions + codec.encode(hello, types=codec.CLIENT)
    assert decode_all(data) == [hello]
    reader = codec.make_server_decoder()
    assert [value for byte in data for value in decode_all(bytes([byte]), reader)] == [hello]


def test_an_empty_value_is_omitted() -> None:
    empty = common.Update("/calico/v1/config/a", b"", "1", common.UpdateType.NEW)
    assert codec.encode_update(empty) == codec.encode_update(empty._replace(value=None))
