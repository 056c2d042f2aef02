"""Recorded connections of the original's server and client, and how each reacted to odd input."""

import re
from typing import Any

import pytest

from protocol import errors, reasons
from protocol.gob import decoder
from protocol.gob import encoder as gob_encoder
from protocol.typha import codec, connection, encoder, messages
from tests import wire

CLIENT, SERVER = connection.Role.CLIENT, connection.Role.SERVER
State = connection.State
GOOD_HELLO = messages.ClientHello(
    hostname="node-a",
    syncer_type="felix",
    supports_decoder_restart=True,
    supported_compression_algorithms=("snappy",),
    supports_modern_policy_keys=True,
)


def client_for(*, syncer_type: str = "felix", restart: bool = True) -> connection.Connection:
    made = connection.Connection(CLIENT)
    algorithms = ("snappy",) if restart else ()
    made.send_hello(
        messages.ClientHello(
            hostname="node-a",
            syncer_type=syncer_type,
            supports_decoder_restart=restart,
            supported_compression_algorithms=algorithms,
            supports_modern_policy_keys=True,
        )
    )
    return made


def drain(ours: connection.Connection) -> list[messages.Message]:
    collected = []
    while (message := ours.next_event()) is not None:
        collected.append(message)
    return collected


# Streams of the original's server.

STREAMS = sorted(path.name.removesuffix(".server.bin") for path in (wire.FOLDER / "streams").glob("*.server.bin"))


def as_recorded(message: messages.Message) -> list[dict[str, Any]]:
    match message:
        case messages.ServerHello():
            return [
                {
                    "msg": "ServerHello",
                    "SupportsNodeResourceUpdates": message.supports_node_resource_updates,
                    "SyncerType": message.syncer_type,
                    "Version": message.version,
                }
            ]
        case messages.DecoderRestart():
            algorithm = message.compression_algorithm
            return [{"msg": "DecoderRestart", "CompressionAlgorithm": algorithm, "Message": message.message}]
        case messages.SyncStatus():
            return [{"msg": "SyncStatus", "SyncStatus": message.status}]
        case messages.Ping():
            return [{"msg": "Ping"}]
        case messages.KeyValues():
            return [
                {
                    "msg": "KV",
                    "Key": update.key,
                    "Revision": update.revision,
                    "RevisionType": "string",
                    "TTL": update.ttl,
                    "UpdateType": update.update_type,
                    "V3ResourceVersion": update.v3_resource_version,
                    "Value": None if update.value is None else update.value.decode(),
                }
                for update in message.updates
            ]
    raise AssertionError(message)


def syncer_type_of(stream: str) -> str:
    return next((name for name in messages.SYNCER_TYPES if name in stream), "felix")


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["bytewise", "whole"])
def test_a_recorded_server_is_followed(name: str, step: int) -> None:
    assert len(STREAMS) == 16
    data = wire.load(f"streams/{name}.server.bin")[: 40_000 if step == 1 else None]
    ours = client_for(syncer_type=syncer_type_of(name), restart="norestart" not in name)
    collected = []
    for start in range(0, len(data), step):
        ours.receive_data(data[start : start + step])
        collected += drain(ours)
    expected = wire.load_lines(f"streams/{name}.jsonl")
    received = [line for message in collected for line in as_recorded(message)]
    assert received == expected[: len(received)]
    if step > 1 or len(data) < 40_000:
        assert len(received) == len(expected)
        assert ours.pending_bytes == 0
        ours.receive_eof()


@pytest.mark.parametrize("name", STREAMS)
def test_answers_equal_those_of_the_recorded_client(name: str) -> None:
    """Our client sends the same hello, acks and pongs in the same order as the recorded client."""
    theirs = codec.make_server_decoder()
    theirs.receive(wire.load(f"streams/{name}.client.bin"))
    hello = theirs.next_value()
    ours = connection.Connection(CLIENT)
    ours.send_hello(hello)
    ours.receive_data(wire.load(f"streams/{name}.server.bin"))
    drain(ours)
    answers = codec.make_server_decoder()
    answers.receive(ours.data_to_send())
    assert answers.next_value() == hello
    while (expected := theirs.next_value()) is not decoder.NEED_DATA:
        if isinstance(expected, messages.Pong):  # The recording client also sent its own time.
            expected = messages.Pong(expected.ping_timestamp)
        assert answers.next_value() == expected
    assert answers.next_value() is decoder.NEED_DATA


# Sessions of the original's client.

SESSIONS = sorted((wire.FOLDER / "client-hello").iterdir())


@pytest.mark.parametrize("path", SESSIONS, ids=lambda path: path.stem)
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["bytewise", "whole"])
def test_a_recorded_client_is_served(path: Any, step: int) -> None:
    assert len(SESSIONS) == 10
    data = path.read_bytes()
    ours = connection.Connection(SERVER)
    collected: list[messages.Message] = []
    for start in range(0, len(data), step):
        ours.receive_data(data[start : start + step])
        collected += drain(ours)
        if ours.state is State.HELLO_RECEIVED:
            ours.accept()
            collected += drain(ours)
    hello = collected[0]
    assert isinstance(hello, messages.ClientHello)
    assert connection.refusal(hello, messages.SYNCER_TYPES) is None
    kinds = [type(message) for message in collected]
    if "norestart" in path.stem:
        assert kinds == [messages.ClientHello, messages.Pong, messages.Pong]
        assert ours.wire_format == encoder.PLAIN
    else:
        assert kinds == [messages.ClientHello, *[messages.Ack] * 2, *[messages.Pong] * 2]
        assert ours.wire_format == encoder.SNAPPY
    assert hello.syncer_type == syncer_type_of(path.stem)
    assert ours.pending_bytes == 0


# Odd input to a server.

TO_SERVER = {entry["id"]: entry for entry in wire.load_json("client-to-server-odd/results.json")}
AWAITED = {"M01b", "M02", "M06b", "M06c"}
"""Valid but incomplete: the handshake timeout ends the connection."""
ENDED = {"M06a", "M06d"}
"""The client closed its end."""
TOO_LONG = {"M03", "M03b", "M03c", "M04", "M05a", "M05b", "M18", "M24b", "M25"}
"""Over a limit. The original waits for announced sizes below 8 GiB (M03c) until the handshake timeout. M25 nests 10,050
types, which exceeds the limit of their number."""
REFUSED = {
    "M28": reasons.DisconnectReason.UNKNOWN_FEED,
}
BROKEN_LATER = {"M10", "M11", "M11d"}
SERVED = {"M27"}
"""An agent without modern policy keys: this service has a feed for it (docs/reference/agent-releases.md)."""
OVER_OUR_LIMITS = {"M05a", "M24a", "M24b"}
"""Hellos of 1 MB, and of 1,000 and 100,000 levels: the original takes them, but no agent sends such a hello."""
RESTARTED = {"M11": State.ERROR, "M11b": State.FOLLOWING, "M11c": State.RESTARTING}


def big_input(name: str) -> bytes:
    """Inputs that the recording only describes."""
    match name:
        case "M04":
            return b"\xfd\x20\x00\x00" + bytes(2 * 1024 * 1024)
        case "M05a" | "M05b":
            hello = messages.ClientHello(
                info="x" * (1_000_000 if name == "M05a" else 1_100_000), supports_modern_policy_keys=True
            )
            return codec.CLIENT.definitions + codec.encode(hello, types=codec.CLIENT)
        case _:
            kinds = [codec.ACK]
            types = [gob_encoder.Encoder(kinds, {}, ids=[number]).definitions for number in range(64, 60_000)]
            return b"".join(types)[:2_154_463]


def odd_input(name: str) -> bytes:
    file = TO_SERVER[name]["file"]
    return wire.load(f"client-to-server-odd/{file}") if file else big_input(name)


def serve(data: bytes) -> tuple[connection.Connection, list[messages.Message], errors.RemoteProtocolError | None]:
    """Acts as the service does: accepts valid hellos, and stops at the first error."""
    ours = connection.Connection(SERVER)
    collected: list[messages.Message] = []
    try:
        for start in range(0, len(data), 65_536):
            ours.receive_data(data[start : start + 65_536])
            while (message := ours.next_event()) is not None:
                collected.append(message)
                if isinstance(message, messages.ClientHello):
                    if connection.refusal(message, messages.SYNCER_TYPES) is not None:
                        return ours, collected, None
                    ours.accept()
    except errors.RemoteProtocolError as error:
        return ours, collected, error
    return ours, collected, None


@pytest.mark.parametrize("name", TO_SERVER)
def test_odd_input_has_the_recorded_outcome(name: str) -> None:
    ours, collected, error = serve(odd_input(name))
    answer = ours.data_to_send()
    if name in SERVED:
        assert (ours.state, error) == (State.FOLLOWING, None)
        return
    if TO_SERVER[name]["reply"] is None or name in OVER_OUR_LIMITS:
        if name in REFUSED:
            (hello,) = collected
            assert isinstance(hello, messages.ClientHello)
            found = connection.refusal(hello, messages.SYNCER_TYPES)
            assert found is not None
            assert found[0] is REFUSED[name]
        elif name in AWAITED | ENDED:
            assert error is None
            assert ours.state is State.HELLO
        else:
            assert error is not None, f"{TO_SERVER[name]['what']} was decoded as {collected}"
            large = error.reason is reasons.DisconnectReason.MESSAGE_TOO_LARGE
            assert large == (name in TOO_LONG)
            assert ours.state is State.ERROR
        assert answer == b""
        return
    assert isinstance(collected[0], messages.ClientHello)
    assert (error is not None) == (name in BROKEN_LATER), error
    assert ours.state is RESTARTED.get(name, State.ERROR if name in BROKEN_LATER else State.FOLLOWING)
    compressed = ours.wire_format == encoder.SNAPPY
    assert compressed == (name in RESTARTED) == ("MsgDecoderRestart" in TO_SERVER[name]["reply"])
    assert answer.endswith(connection.PREAMBLE) == (name == "M11b")


def test_all_odd_input_is_covered() -> None:
    assert len(TO_SERVER) == 47
    assert (
        AWAITED | ENDED | TOO_LONG | SERVED | OVER_OUR_LIMITS | REFUSED.keys() | BROKEN_LATER | RESTARTED.keys()
        <= TO_SERVER.keys()
    )


def test_end_of_stream_inside_a_hello_is_an_error_but_not_before_it() -> None:
    ours, _, _ = serve(odd_input("M06a"))
    with pytest.raises(errors.RemoteProtocolError, match="inside a message"):
        ours.receive_eof()
    ours, _, _ = serve(b"")
    ours.receive_eof()
    assert ours.state is State.CLOSED


# Odd input to a client.

TO_CLIENT = {entry["id"]: entry for entry in wire.load_json("server-to-client-odd/results.json")}
STATUSES = {"wait-for-datastore": 0, "resync": 1, "in-sync": 2}
NO_ERROR = {
    "E03b": "the Go client's read timeout",
    "E03c": "the Go client's read timeout",
}
MORE_THAN_GO = {
    "E09a": "the Go client loses the data after the restart, and hangs",
    "E05b": "this client does not parse keys",
    "E10s": "this client does not parse keys",
}


def callbacks_of(entry: dict[str, Any]) -> list[tuple[str, int]]:
    """The Go client's callbacks as ("updates", number) and ("status", number), without its own first status."""
    found = []
    for part in entry["goClientCallbacks"].split(" | ")[1:]:
        if match := re.match(r"updates\((\d+)\)", part):
            found.append(("updates", int(match[1])))
        elif match := re.match(r"status:(\S+)", part):
            found.append(("status", STATUSES.get(match[1], 3)))
    return found


@pytest.mark.parametrize("name", TO_CLIENT)
def test_an_odd_server_has_the_recorded_outcome(name: str) -> None:
    entry = TO_CLIENT[name]
    ours = client_for(
        syncer_type="bgp" if name in ("E11a", "E11b", "E11e") else "felix", restart=name not in ("E07", "E07b")
    )
    ours.receive_data(wire.load(f"server-to-client-odd/{entry['file']}"))
    reported: list[tuple[str, int]] = []
    error = None
    try:
        while (message := ours.next_event()) is not None:
            if isinstance(message, messages.KeyValues):
                reported.append(("updates", len(message.updates)))
            elif isinstance(message, messages.SyncStatus):
                reported.append(("status", message.status))
    except errors.RemoteProtocolError as raised:
        error = raised
    closed = entry["connection"].startswith("client closed") and name not in NO_ERROR
    assert (error is not None) == closed, f"{entry['what']}: {error}, {entry['goClientLog']}"
    if name in NO_ERROR or name in MORE_THAN_GO:
        assert len(reported) >= len(callbacks_of(entry))
    else:
        assert reported == callbacks_of(entry)


def test_all_odd_servers_are_covered() -> None:
    assert len(TO_CLIENT) == 50
    assert NO_ERROR.keys() | MORE_THAN_GO.keys() <= TO_CLIENT.keys()


def test_the_shared_frames_are_followed() -> None:
    ours = client_for()
    for part in ("plain-hello-restart", "preamble", "snapshot-frame", "delta1-frame", "delta2-frame"):
        ours.receive_data(wire.load(f"shared-frames/{part}.bin"))
    kinds = [type(message) for message in drain(ours)]
    assert kinds[:2] == [messages.ServerHello, messages.DecoderRestart]
    assert len(kinds) > 4
    assert ours.pending_bytes == 0
