"""Both ends of a connection, connected without a network."""

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors, messages, reasons
from protocol.native import codec, connection, frames
from tests.fuzz import sessions
from tests.harness import dictionaries

CLIENT, SERVER = connection.Role.CLIENT, connection.Role.SERVER
State = connection.State

COMPRESSION = frozenset({"zstd", "zstd-dictionary"})
CLIENT_HELLO = messages.ClientHello(feed="pods", agent="test")
SERVER_HELLO = messages.ServerHello(version=1, feed="pods", incarnation=bytes(16), features=COMPRESSION)
RESUMING_FEATURES = frozenset({"resume", "chunk-digests"})
RESUMING_HELLO = messages.ClientHello(
    feed="pods",
    agent="test",
    features=RESUMING_FEATURES,
    resume=messages.ResumePosition(bytes(16), 0),
    chunk_digests=(0,),
)
RESUMING_ANSWER = messages.ServerHello(
    version=1, feed="pods", incarnation=bytes(16), features=RESUMING_FEATURES | COMPRESSION
)
BEGIN = messages.SnapshotBegin(sequence=5, keys=1, chunks=1)
CHUNK = messages.SnapshotChunk(0, 0, False, (messages.Update("/k", b"v", "1", 1),))
END = messages.SnapshotEnd(sequence=5, keys=1, digest=0)
IN_SYNC = messages.Status(5, messages.SyncStatus.IN_SYNC)
DELTA = messages.Updates(5, 6, (messages.Update("/k", None, "2", 3),))
GOODBYE = messages.Goodbye("shutting-down")

SAMPLES: dict[type[messages.Message], messages.Message] = {
    type(message): message
    for message in (
        *(CLIENT_HELLO, SERVER_HELLO, BEGIN, CHUNK, END),
        messages.SnapshotResume(sequence=5, keys=1, chunks=1, kept=b"\0"),
        *(messages.Updates(0, 0, ()), messages.Status(0, messages.SyncStatus.RESYNC)),
        *(messages.Ping(), messages.Pong(0), messages.Applied(0), GOODBYE),
        dictionaries.trained(1, 1000).message,
    )
}
FROM_CLIENTS = {messages.ClientHello, messages.Pong, messages.Applied, messages.Goodbye}
PATHS: dict[tuple[connection.Role, State], list[messages.Message]] = {
    (SERVER, State.HELLO): [],
    (SERVER, State.READY): [CLIENT_HELLO],
    (CLIENT, State.HELLO): [],
    (CLIENT, State.READY): [SERVER_HELLO],
    (CLIENT, State.RESUMING): [RESUMING_ANSWER],
    (CLIENT, State.SNAPSHOT): [SERVER_HELLO, messages.SnapshotBegin(0, 1, 1)],
    (CLIENT, State.FOLLOWING): [
        *(SERVER_HELLO, messages.SnapshotBegin(0, 1, 1), CHUNK, messages.SnapshotEnd(0, 1, 0)),
    ],
}


def frame(message: messages.Message) -> bytes:
    return frames.pack_frame(codec.encode(message))


def stream(*sent: messages.Message) -> bytes:
    return b"".join([frame(message) for message in sent])


def receive_all(receiver: connection.Connection, data: bytes) -> list[messages.Message]:
    receiver.receive_data(data)
    received = []
    while (message := receiver.next_event()) is not None:
        received.append(message)
    return received


def make(role: connection.Role, state: State) -> connection.Connection:
    made = connection.Connection(role)
    if state is State.RESUMING:
        made.send(RESUMING_HELLO)
        made.data_to_send()
    receive_all(made, frames.PREFACE + stream(*PATHS[role, state]))
    assert made.state is state
    return made


class Pair:
    """A client and a server that receive each other's messages immediately."""

    def __init__(self) -> None:
        self.client = connection.Connection(CLIENT)
        self.server = connection.Connection(SERVER)

    def send(self, sender: connection.Connection, *sent: messages.Message) -> list[messages.Message]:
        for message in sent:
            sender.send(message)
        return self.deliver(sender)

    def deliver(self, sender: connection.Connection) -> list[messages.Message]:
        receiver = self.server if sender is self.client else self.client
        return receive_all(receiver, sender.data_to_send())


def test_a_session_from_hello_to_goodbye() -> None:
    pair = Pair()
    assert pair.send(pair.client, CLIENT_HELLO) == [CLIENT_HELLO]
    assert pair.send(pair.server, SERVER_HELLO, messages.Ping()) == [SERVER_HELLO, messages.Ping()]
    assert pair.deliver(pair.client) == [messages.Pong(0)]
    pair.send(pair.server, BEGIN, CHUNK)
    assert repr(pair.client) == "<Connection client snapshot sequence=0>"
    assert pair.send(pair.server, END, IN_SYNC, DELTA) == [END, IN_SYNC, DELTA]
    assert repr(pair.client) == "<Connection client following sequence=6>"
    pair.send(pair.server, messages.Ping())
    assert pair.deliver(pair.client) == [messages.Pong(6)]
    assert pair.send(pair.server, GOODBYE) == [GOODBYE]
    assert pair.client.state is State.CLOSED
    with pytest.raises(errors.LocalProtocolError, match="closed"):
        pair.client.send(messages.Pong(6))


def test_the_preface_is_sent_once_and_first() -> None:
    pair = Pair()
    pair.client.send(CLIENT_HELLO)
    assert pair.client.data_to_send() == frames.PREFACE + frame(CLIENT_HELLO)
    assert pair.client.data_to_send() == b""
    pair.client.send(messages.Pong(0))
    assert pair.client.data_to_send() == frame(messages.Pong(0))


def test_a_client_receives_a_refusal() -> None:
    pair = Pair()
    pair.send(pair.client, CLIENT_HELLO)
    refusal = messages.Goodbye("unknown-feed", "no feed 'pods'")
    assert pair.send(pair.server, refusal) == [refusal]


def test_a_client_receives_the_refusal_of_an_invalid_hello() -> None:
    pair = Pair()
    with pytest.raises(errors.RemoteProtocolError):
        receive_all(pair.server, frames.PREFACE + frame(messages.Ping()))
    assert pair.send(pair.server, GOODBYE) == [GOODBYE]


@pytest.mark.parametrize(
    ("role", "state", "kind"),
    [(role, state, kind) for (role, state), kind in itertools.product(PATHS, SAMPLES)],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.value,
)
def test_every_message_in_every_state(role: connection.Role, state: State, kind: type[messages.Message]) -> None:
    target = make(role, state)
    expected = connection._TRANSITIONS.get((role, state, kind))
    message = SAMPLES[kind]
    if role is CLIENT and state is State.SNAPSHOT and kind is messages.SnapshotEnd:
        message = messages.SnapshotEnd(0, 1, 0)
    if expected is None:
        problem = f"message {codec.message_name(kind)} is not allowed in state {state.value}"
        if role is SERVER and kind not in FROM_CLIENTS:
            problem = "a message is not valid"
        with pytest.raises(errors.RemoteProtocolError, match=problem):
            receive_all(target, frame(message))
        assert target.state is State.ERROR
        assert receive_all(target, frame(messages.Ping())) == []
    else:
        assert receive_all(target, frame(message)) == [message]
        assert target.state is expected


def test_the_whole_table_is_tested() -> None:
    assert {(role, state) for role, state, _ in connection._TRANSITIONS} == set(PATHS)
    assert {kind for _, _, kind in connection._TRANSITIONS} == set(SAMPLES)


@pytest.mark.parametrize(
    ("offered", "agreed", "incarnation", "may_continue", "may_keep"),
    [
        ({"resume", "chunk-digests"}, {"resume", "chunk-digests"}, bytes(16), True, True),
        ({"resume", "chunk-digests"}, {"resume", "chunk-digests"}, b"another replica.", False, True),
        ({"resume", "chunk-digests"}, {"resume"}, bytes(16), True, False),
        ({"resume", "chunk-digests"}, {"chunk-digests"}, bytes(16), False, True),
        ({"resume", "chunk-digests"}, set(), bytes(16), False, False),
        ({"chunk-digests"}, {"resume", "chunk-digests"}, bytes(16), False, True),
        (set(), {"resume", "chunk-digests"}, bytes(16), False, False),
    ],
)
def test_a_client_resumes_only_as_both_have_agreed(
    offered: set[str], agreed: set[str], incarnation: bytes, may_continue: bool, may_keep: bool
) -> None:
    position = messages.ResumePosition(bytes(16), 7)
    for message, is_allowed, sequence in (
        (messages.Updates(7, 9, ()), may_continue, 9),
        (messages.Status(7, messages.SyncStatus.IN_SYNC), may_continue, 7),
        (messages.Status(3, messages.SyncStatus.CATCHING_UP), may_continue, 3),
        (messages.SnapshotResume(5, 1, 1, b"\1"), may_keep, 7 if may_continue else 0),
        (messages.SnapshotBegin(5, 1, 1), True, 7 if may_continue else 0),
    ):
        client = connection.Connection(CLIENT)
        client.send(
            messages.ClientHello("pods", "test", features=frozenset(offered), resume=position, chunk_digests=(0,))
        )
        answer = messages.ServerHello(version=1, feed="pods", incarnation=incarnation, features=frozenset(agreed))
        receive_all(client, frames.PREFACE + frame(answer))
        assert client.sequence == (7 if may_continue else 0)
        if is_allowed:
            assert receive_all(client, frame(message)) == [message]
            assert client.sequence == sequence
        else:
            with pytest.raises(errors.RemoteProtocolError):
                receive_all(client, frame(message))


def test_chunks_are_kept_only_of_the_map_in_the_hello() -> None:
    keeps = messages.SnapshotResume(5, 1, 1, b"\1")
    client = make(CLIENT, State.RESUMING)
    receive_all(client, frame(messages.Status(0, messages.SyncStatus.CATCHING_UP)))
    assert receive_all(client, frame(keeps)) == [keeps]
    client = make(CLIENT, State.RESUMING)
    receive_all(client, frame(messages.Updates(0, 1, ())))
    with pytest.raises(errors.RemoteProtocolError, match="snapshot-resume is not allowed in state following"):
        receive_all(client, frame(keeps))


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (messages.Updates(4, 6, ()), "updates from 4 to 6 do not continue 0"),
        (messages.Updates(1, 2, ()), "updates from 1 to 2 do not continue 0"),
        (messages.Status(1, messages.SyncStatus.IN_SYNC), "a status at 1 does not continue 0"),
        (messages.Status(1, messages.SyncStatus.CATCHING_UP), "a status at 1 does not continue 0"),
    ],
)
def test_data_must_be_contiguous(message: messages.Message, problem: str) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        receive_all(make(CLIENT, State.FOLLOWING), frame(message))


def test_updates_do_not_reduce_the_sequence() -> None:
    client = make(CLIENT, State.READY)
    receive_all(client, stream(BEGIN, CHUNK, END))
    with pytest.raises(errors.RemoteProtocolError, match="do not continue"):
        receive_all(client, frame(messages.Updates(5, 4, ())))


def test_catching_up_may_reduce_the_sequence() -> None:
    client = make(CLIENT, State.READY)
    receive_all(client, stream(BEGIN, CHUNK, END, IN_SYNC))
    with pytest.raises(errors.RemoteProtocolError, match="a status at 3 does not continue 5"):
        receive_all(client, frame(messages.Status(3, messages.SyncStatus.RESYNC)))
    client = make(CLIENT, State.READY)
    back = messages.Status(3, messages.SyncStatus.CATCHING_UP)
    again = messages.Updates(3, 9, DELTA.updates)
    assert receive_all(client, stream(BEGIN, CHUNK, END, IN_SYNC, back))[-1] == back
    assert client.sequence == 3
    assert receive_all(client, stream(again, messages.Status(9, messages.SyncStatus.CATCHING_UP)))[0] == again
    assert (client.sequence, client.state) == (9, State.FOLLOWING)


def test_a_snapshot_ends_with_its_own_sequence() -> None:
    client = make(CLIENT, State.READY)
    with pytest.raises(errors.RemoteProtocolError, match="a snapshot at 5 ends with sequence 6"):
        receive_all(client, stream(BEGIN, CHUNK, messages.SnapshotEnd(6, 1, 0)))


def test_a_second_snapshot_may_begin_at_any_sequence() -> None:
    client = make(CLIENT, State.FOLLOWING)
    receive_all(client, stream(BEGIN, CHUNK, END, IN_SYNC, DELTA))
    assert client.sequence == 6


def test_a_session_one_byte_at_a_time() -> None:
    data = sessions.native_server()
    whole = receive_all(connection.Connection(CLIENT), data)
    client = connection.Connection(CLIENT)
    received = [message for byte in data for message in receive_all(client, bytes([byte]))]
    assert len(whole) == 11
    assert received == whole


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"GET / HTTP/1.1", b"\x00typha\r\n", b"\x00TYPHB"])
def test_another_protocol_is_recognised_at_its_first_wrong_byte(data: bytes) -> None:
    with pytest.raises(errors.RemoteProtocolError, match="not the native protocol") as info:
        receive_all(connection.Connection(SERVER), data)
    assert info.value.reason is reasons.DisconnectReason.BAD_PREFACE


def test_a_hello_of_100_megabytes_is_refused_at_its_header() -> None:
    server = connection.Connection(SERVER)
    with pytest.raises(errors.RemoteProtocolError) as info:
        receive_all(server, frames.PREFACE + frames.HEADER.pack(100 * 1024 * 1024, 0))
    assert info.value.reason is reasons.DisconnectReason.MESSAGE_TOO_LARGE


def test_a_client_has_64_kib_for_its_hello_and_2_for_later_frames() -> None:
    digests = tuple([(1 << 64) - 1] * codec.MAX_CHUNK_DIGESTS)
    hello = messages.ClientHello(feed="pods", agent="test", chunk_digests=digests)
    server = connection.Connection(SERVER)
    assert receive_all(server, frames.PREFACE + frame(hello)) == [hello]
    assert receive_all(server, frame(messages.Goodbye("client-closed", "x" * codec.MAX_NAME_CHARS))) != []
    for state, over in ((State.HELLO, 64 * 1024 + 1), (State.READY, 2 * 1024 + 1)):
        with pytest.raises(errors.RemoteProtocolError) as info:
            receive_all(make(SERVER, state), frames.HEADER.pack(over, 0))
        assert info.value.reason is reasons.DisconnectReason.MESSAGE_TOO_LARGE


def test_a_partial_frame_keeps_nothing_of_the_hello_before_it() -> None:
    hello = messages.ClientHello(
        feed="pods", agent="test", chunk_digests=tuple([(1 << 64) - 1] * codec.MAX_CHUNK_DIGESTS)
    )
    data = frames.PREFACE + frame(hello) + frames.HEADER.pack(3, 0)
    tracemalloc.start()
    server = connection.Connection(SERVER)
    assert len(receive_all(server, data)) == 1
    before, _ = tracemalloc.get_traced_memory()
    del server
    held = before - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 5_000


def test_a_client_may_not_compress() -> None:
    packed = frames.pack_frame(bytes(1000), compressor=frames.make_compressor())
    with pytest.raises(errors.RemoteProtocolError, match="only a server compresses"):
        receive_all(connection.Connection(SERVER), frames.PREFACE + packed)


@pytest.mark.parametrize("held", [frames.PREFACE[:3], frames.PREFACE + b"\x00", frames.PREFACE + frame(GOODBYE)[:-1]])
def test_end_of_stream_inside_a_frame_is_an_error(held: bytes) -> None:
    client = connection.Connection(CLIENT)
    assert receive_all(client, held) == []
    with pytest.raises(errors.RemoteProtocolError, match="stream ended inside a frame"):
        client.receive_eof()


def test_end_of_stream_between_messages_is_not_an_error() -> None:
    client = make(CLIENT, State.FOLLOWING)
    client.receive_eof()
    client.receive_eof()
    assert client.state is State.CLOSED
    assert receive_all(client, frame(messages.Ping())) == []


@given(st.binary(max_size=300), st.sampled_from(connection.Role), st.booleans())
def test_random_bytes_are_refused_or_incomplete(data: bytes, role: connection.Role, behind_preface: bool) -> None:
    target = connection.Connection(role)
    try:
        receive_all(target, frames.PREFACE * behind_preface + data)
    except errors.RemoteProtocolError:
        assert target.state is State.ERROR
