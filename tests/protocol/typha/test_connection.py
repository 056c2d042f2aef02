"""Both ends of a connection, connected without a network."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors, reasons
from protocol import messages as common
from protocol.gob import decoder, scalars
from protocol.gob import encoder as gob_encoder
from protocol.typha import codec, connection, encoder, messages, snappy, timestamps
from tests import wire

CLIENT, SERVER = connection.Role.CLIENT, connection.Role.SERVER
State = connection.State

HELLO = messages.ClientHello(
    syncer_type="bgp",
    supports_decoder_restart=True,
    supported_compression_algorithms=("snappy",),
    supports_modern_policy_keys=True,
)
PLAIN_HELLO = messages.ClientHello(syncer_type="bgp", supports_modern_policy_keys=True)
SERVER_HELLO = messages.ServerHello("1", "bgp", True)
UPDATE = common.Update("/k", b"v", "1", 1)
SAMPLES: dict[type[messages.Message], messages.Message] = {
    type(message): message
    for message in (
        *(HELLO, SERVER_HELLO, messages.DecoderRestart("", "unknown"), messages.Ack(), messages.SyncStatus(1)),
        *(messages.Ping(b""), messages.Pong(), messages.KeyValues((UPDATE,))),
    )
}
PATHS: dict[tuple[connection.Role, State], tuple[messages.ClientHello, list[messages.Message]]] = {
    (SERVER, State.HELLO): (HELLO, []),
    (SERVER, State.RESTARTING): (HELLO, [HELLO]),
    (SERVER, State.RESTARTED): (HELLO, [HELLO, messages.Ack()]),
    (SERVER, State.FOLLOWING): (PLAIN_HELLO, [PLAIN_HELLO]),
    (CLIENT, State.HELLO): (HELLO, []),
    (CLIENT, State.FOLLOWING): (HELLO, [SERVER_HELLO]),
}
ALL_TYPES = gob_encoder.Encoder(list(dict.fromkeys((*codec.SERVER_KINDS, *codec.CLIENT_KINDS))), codec.ENCODER_NAMES)
"""Encodes messages of both sides, so that either end can send what it must not."""


def encode(*sent: messages.Message | None) -> bytes:
    return b"".join(ALL_TYPES.message(codec.ENVELOPE, message) for message in sent)


def receive_all(receiver: connection.Connection, data: bytes) -> list[messages.Message]:
    receiver.receive_data(data)
    received = []
    while (message := receiver.next_event()) is not None:
        received.append(message)
        if receiver.state is State.HELLO_RECEIVED:
            receiver.accept()
    return received


def make(role: connection.Role, state: State) -> connection.Connection:
    hello, path = PATHS[role, state]
    made = connection.Connection(role)
    if role is CLIENT:
        made.send_hello(hello)
    receive_all(made, ALL_TYPES.definitions + encode(*path))
    made.data_to_send()
    assert made.state is state
    return made


def known(role: connection.Role, kind: type[messages.Message]) -> bool:
    return role is CLIENT or codec.ENCODER_NAMES[kind][0] in codec.CLIENT_MESSAGE_TYPES


@given(
    st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 64).map(lambda bits: (1 << bits) - 1)),
    st.sampled_from(messages.SYNCER_TYPES),
    st.text(max_size=20),
)
def test_the_cached_answer_to_a_hello_has_the_same_bytes(number: int, feed: str, version: str) -> None:
    server = connection.Connection(SERVER)
    hello = messages.ClientHello(syncer_type=feed, supports_modern_policy_keys=True)
    server.receive_data(codec.CLIENT.definitions + codec.encode(hello, types=codec.CLIENT))
    assert server.next_event() == hello
    server.accept(version=version, connection_id=number)
    wanted = messages.ServerHello(version, feed, True, number)
    assert server.data_to_send() == codec.SERVER.definitions + codec.encode(wanted, types=codec.SERVER)


@pytest.mark.parametrize(
    ("role", "state", "kind"),
    [(role, state, kind) for (role, state), kind in itertools.product(PATHS, SAMPLES)],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.value,
)
def test_every_message_in_every_state(role: connection.Role, state: State, kind: type[messages.Message]) -> None:
    target = make(role, state)
    expected = connection._TRANSITIONS.get((role, state, kind))
    if expected is not None:
        assert receive_all(target, encode(SAMPLES[kind])) == [SAMPLES[kind]]
        assert target.state is (State.RESTARTING if expected is State.HELLO_RECEIVED else expected)
    elif (role, state) == (CLIENT, State.FOLLOWING) and kind is not messages.ServerHello:
        assert receive_all(target, encode(SAMPLES[kind])) == []
        assert target.state is State.FOLLOWING
    else:
        problem = f"unexpected {kind.__name__} while {state.value}"
        with pytest.raises(errors.RemoteProtocolError, match=problem if known(role, kind) else "is not registered"):
            receive_all(target, encode(SAMPLES[kind]))
        assert target.state is State.ERROR
        assert receive_all(target, encode(messages.Pong())) == []


def test_the_whole_table_is_tested() -> None:
    assert {(role, state) for role, state, _ in connection._TRANSITIONS} == set(PATHS)
    assert {kind for _, _, kind in connection._TRANSITIONS} == set(SAMPLES)


class Pair:
    """A client and a server that receive each other's messages immediately."""

    def __init__(self, hello: messages.ClientHello) -> None:
        self.client = connection.Connection(CLIENT)
        self.server = connection.Connection(SERVER)
        self.client.send_hello(hello)

    def to_server(self) -> list[messages.Message]:
        return receive_all(self.server, self.client.data_to_send())

    def to_client(self, *frames: bytes) -> list[messages.Message]:
        return receive_all(self.client, self.server.data_to_send() + b"".join(frames))


def test_a_compressed_session() -> None:
    pair, made = Pair(HELLO), encoder.TyphaEncoder(compress=True)
    assert pair.to_server() == [HELLO]
    assert pair.server.wire_format == encoder.SNAPPY
    assert repr(pair.server) == "<Connection server restarting typha+snappy>"
    greeting = pair.server.data_to_send()
    assert snappy.IDENTIFIER not in greeting
    assert receive_all(pair.client, greeting) == [messages.ServerHello("", "bgp", True), connection.RESTART]
    assert pair.to_server() == [messages.Ack()]
    assert pair.to_client(made.make_ping(1)) == [messages.Ping(timestamps.from_unix_nanoseconds(1))]
    (pong,) = pair.to_server()
    assert isinstance(pong, messages.Pong)
    assert pair.to_client(made.snapshot_chunk(0, 0, [UPDATE])) == [messages.KeyValues((UPDATE,))]
    pair.client.receive_eof()
    pair.server.receive_eof()
    assert (pair.client.state, pair.server.state) == (State.CLOSED, State.CLOSED)


def test_a_plain_session() -> None:
    pair, made = Pair(PLAIN_HELLO), encoder.TyphaEncoder(compress=False)
    assert pair.to_server() == [PLAIN_HELLO]
    assert pair.server.wire_format == encoder.PLAIN
    frames = [made.snapshot_chunk(0, 0, [UPDATE]), made.status(1, common.SyncStatus.IN_SYNC).data]
    assert pair.to_client(*frames) == [
        *(messages.ServerHello("", "bgp", True), messages.KeyValues((UPDATE,)), messages.SyncStatus(2))
    ]
    assert pair.to_server() == []


def test_a_server_sends_nothing_before_it_accepts() -> None:
    server = connection.Connection(SERVER)
    server.receive_data(codec.CLIENT.definitions + codec.encode(HELLO, types=codec.CLIENT) + b"\xf0garbage")
    assert server.next_event() == HELLO
    assert server.next_event() is None
    assert server.data_to_send() == b""
    server.accept(version="v", connection_id=3)
    with pytest.raises(errors.RemoteProtocolError):
        server.next_event()


def test_misuse_is_a_local_error() -> None:
    for broken in (make(SERVER, State.HELLO), make(SERVER, State.FOLLOWING), make(CLIENT, State.FOLLOWING)):
        with pytest.raises(errors.LocalProtocolError):
            broken.accept()
        with pytest.raises(errors.LocalProtocolError):
            broken.send_hello(HELLO)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (HELLO, None),
        (messages.ClientHello(supports_modern_policy_keys=True), None),
        (messages.ClientHello(syncer_type="Felix", supports_modern_policy_keys=True), "unknown-feed"),
        (messages.ClientHello(syncer_type="bgp"), None),
        (messages.ClientHello(syncer_type="x" * 10_000), "unknown-feed"),
    ],
)
def test_refusals(hello: messages.ClientHello, reason: str | None) -> None:
    found = connection.refusal(hello, messages.SYNCER_TYPES)
    assert (found and found[0]) == reason
    assert found is None or len(found[1]) < 300


@pytest.mark.parametrize("algorithm", ["snappy", ""])
def test_a_client_accepts_any_number_of_restarts(algorithm: str) -> None:
    client = make(CLIENT, State.FOLLOWING)
    frame = snappy.compress if algorithm else bytes
    start = (snappy.IDENTIFIER if algorithm else b"") + frame(ALL_TYPES.definitions)
    restart = messages.DecoderRestart("again", algorithm)
    data = encode(restart)
    for _ in range(3):
        data += start + frame(encode(messages.KeyValues((UPDATE,)), restart))
    assert receive_all(client, data) == [restart, *[messages.KeyValues((UPDATE,)), restart] * 3]
    server = make(SERVER, State.HELLO)
    acks = connection.Connection(CLIENT)
    acks.send_hello(HELLO)
    answers = codec.make_server_decoder()
    answers.receive(acks.data_to_send() + client.data_to_send())
    assert [answers.next_value() for _ in range(6)] == [HELLO, *[messages.Ack()] * 4, decoder.NEED_DATA]
    assert server.state is State.HELLO


def test_a_restart_that_was_not_offered_is_refused() -> None:
    client = connection.Connection(CLIENT)
    client.send_hello(PLAIN_HELLO)
    with pytest.raises(errors.RemoteProtocolError, match="did not offer"):
        receive_all(client, ALL_TYPES.definitions + encode(SERVER_HELLO, connection.RESTART))


@pytest.mark.parametrize(
    ("hello", "problem"),
    [
        (messages.ServerHello("", "felix", True), "syncer type 'felix', not 'bgp'"),
        (messages.ServerHello("", "", True), "syncer type 'felix', not 'bgp'"),
        (messages.ServerHello("", "bgp", False), "too old"),
    ],
)
def test_a_client_refuses_the_wrong_server(hello: messages.ServerHello, problem: str) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        receive_all(make(CLIENT, State.HELLO), encode(hello))


def test_an_empty_envelope_is_ignored_by_clients_and_refused_by_servers() -> None:
    client = make(CLIENT, State.FOLLOWING)
    assert receive_all(client, encode(None) + encode(messages.SyncStatus(2))) == [messages.SyncStatus(2)]
    for target in (make(SERVER, State.HELLO), make(SERVER, State.FOLLOWING), make(CLIENT, State.HELLO)):
        with pytest.raises(errors.RemoteProtocolError, match="NoneType"):
            receive_all(target, encode(None))


def test_a_hello_of_100_megabytes_is_refused_at_its_length() -> None:
    server = connection.Connection(SERVER)
    with pytest.raises(errors.RemoteProtocolError) as info:
        receive_all(server, b"\xfc" + (100 * 1024 * 1024).to_bytes(4, "big"))
    assert info.value.reason is reasons.DisconnectReason.MESSAGE_TOO_LARGE


@given(st.binary(max_size=300), st.sampled_from(connection.Role), st.booleans())
def test_random_bytes_are_refused_or_incomplete(data: bytes, role: connection.Role, behind_hello: bool) -> None:
    target = make(role, State.FOLLOWING if behind_hello else State.HELLO)
    try:
        receive_all(target, data)
    except errors.RemoteProtocolError:
        assert target.state is State.ERROR


def test_a_hello_may_have_16_kib_and_later_messages_2() -> None:
    hello = messages.ClientHello(info="x" * 15_000)
    server = connection.Connection(SERVER)
    assert receive_all(server, codec.CLIENT.definitions + codec.encode(hello, types=codec.CLIENT)) == [hello]
    assert server.pending_bytes == 0
    with pytest.raises(errors.RemoteProtocolError, match="over the limit of 2048"):
        receive_all(server, b"\xfe\x08\x00")


def test_a_hello_with_too_many_algorithms_is_refused() -> None:
    hello = messages.ClientHello(supported_compression_algorithms=("",) * 65)
    with pytest.raises(errors.RemoteProtocolError, match="over the limit of 64"):
        receive_all(connection.Connection(SERVER), codec.CLIENT.definitions + codec.encode(hello, types=codec.CLIENT))


def test_nesting_of_messages_is_limited() -> None:
    """A revision may have any registered type, so it may contain updates whose revisions contain updates."""
    nested = b"\x06string\x0c\x01\x00\x00"
    name, struct = codec.ENCODER_NAMES[messages.KeyValues]
    for _ in range(1000):
        content = b"\x01\x01\x03" + nested + b"\0\0"
        nested = codec.SERVER.interface_start(name, struct) + scalars.encode_bytes(content)
    body = scalars.encode_int(codec.SERVER.id_of(codec.ENVELOPE)) + b"\x01" + nested + b"\0"
    client = make(CLIENT, State.HELLO)
    with pytest.raises(errors.RemoteProtocolError, match="nested interfaces"):
        receive_all(client, encode(SERVER_HELLO) + gob_encoder.frame(body))


def test_a_client_buffers_at_most_one_message() -> None:
    data = wire.load("streams/inproc-deltas-snappy.server.bin")
    client = connection.Connection(CLIENT)
    client.send_hello(messages.ClientHello(supports_decoder_restart=True))
    most = 0
    for start in range(0, len(data), 100):
        receive_all(client, data[start : start + 100])
        most = max(most, client.pending_bytes)
    assert most < 200_000
