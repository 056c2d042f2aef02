"""Frames of the two wire formats, decoded by our client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import encoding
from protocol import messages as common
from protocol.native import encoder as native_encoder
from protocol.typha import connection, encoder, messages, timestamps
from tests.harness import strategies

FORMATS = [encoder.SNAPPY, encoder.PLAIN]


def make(wire_format: str) -> encoding.Encoder:
    return encoder.TyphaEncoder(compress=wire_format == encoder.SNAPPY)


def follow(wire_format: str) -> connection.Connection:
    """A client after the handshake."""
    client = connection.Connection(connection.Role.CLIENT)
    server = connection.Connection(connection.Role.SERVER)
    takes_snappy = wire_format == encoder.SNAPPY
    client.send_hello(
        messages.ClientHello(supports_decoder_restart=takes_snappy, supported_compression_algorithms=("snappy",))
    )
    for _ in range(2):
        server.receive_data(client.data_to_send())
        while server.next_event() is not None:
            pass
        if server.state is connection.State.HELLO_RECEIVED:
            assert server.accept() == wire_format
        client.receive_data(server.data_to_send())
        while client.next_event() is not None:
            pass
    return client


def receive(client: connection.Connection, data: bytes) -> list[messages.Message]:
    client.receive_data(data)
    received = []
    while (message := client.next_event()) is not None:
        received.append(message)
    assert not received or client.pending_bytes == 0, "incomplete messages or chunks"
    return received


def as_received(updates: list[common.Update]) -> list[common.Update]:
    return [update._replace(value=update.value or None) for update in updates]


def carried(received: list[messages.Message]) -> list[common.Update]:
    assert all(isinstance(message, messages.KeyValues) for message in received)
    return [update for message in received if isinstance(message, messages.KeyValues) for update in message.updates]


@pytest.mark.parametrize("wire_format", FORMATS)
@given(updates=st.lists(strategies.updates, max_size=20))
def test_updates_and_chunks_reach_the_client(wire_format: str, updates: list[common.Update]) -> None:
    made, client = make(wire_format), follow(wire_format)
    frames = made.updates(7, updates)
    assert carried([message for frame in frames for message in receive(client, frame.data)]) == as_received(updates)
    assert [frame.sequence for frame in frames] == ([7 + len(updates)] if updates else [])
    assert carried(receive(client, made.snapshot_chunk(3, 0, iter(updates)))) == as_received(updates)


@pytest.mark.parametrize("wire_format", FORMATS)
def test_messages_are_limited_in_updates_and_bytes(wire_format: str) -> None:
    made, client = make(wire_format), follow(wire_format)
    small = [common.Update(f"/k/{number}", b"v", "1", 1) for number in range(201)]
    frames = made.updates(0, small)
    assert [frame.sequence for frame in frames] == [100, 200, 201]
    large = [common.Update(f"/k/{number}", bytes(100_000), "1", 1) for number in range(5)]
    assert [frame.sequence for frame in made.updates(0, large)] == [2, 4, 5]
    huge = [common.Update("/k", bytes(1_000_000), "1", 1)]
    (frame,) = made.updates(0, huge)
    assert carried(receive(client, frame.data)) == huge
    received = receive(client, made.snapshot_chunk(0, 0, small))
    assert [len(message.updates) for message in received if isinstance(message, messages.KeyValues)] == [100, 100, 1]


@pytest.mark.parametrize("wire_format", FORMATS)
def test_changes_skip_sequences_and_have_the_same_limits(wire_format: str) -> None:
    made, client = make(wire_format), follow(wire_format)
    changes = [(10 * number, common.Update(f"/k/{number}", b"v", "1", 2)) for number in range(1, 202)]
    frames = list(made.changes(5, iter(changes), end_sequence=3000))
    assert [frame.sequence for frame in frames] == [1000, 2000, 3000]
    assert carried([message for frame in frames for message in receive(client, frame.data)]) == [u for _, u in changes]
    assert list(made.changes(5, iter(()), end_sequence=3000)) == []
    large = [(number, common.Update(f"/k/{number}", bytes(100_000), "1", 2)) for number in range(5)]
    assert [frame.sequence for frame in made.changes(0, iter(large), end_sequence=4)] == [1, 3, 4]


@pytest.mark.parametrize("wire_format", FORMATS)
def test_the_other_messages_reach_the_client(wire_format: str) -> None:
    made, client = make(wire_format), follow(wire_format)
    assert made.snapshot_begin(5, keys=1, chunks=1) == made.snapshot_end(5, keys=1, digest=1) == b""
    assert made.snapshot_chunk(0, 0, []) == b""
    assert made.updates(5, []) == []
    assert receive(client, made.make_ping(12)) == [messages.Ping(timestamps.from_unix_nanoseconds(12))]
    for status, expected in ((0, 0), (1, 1), (2, 2), (3, 1)):
        frame = made.status(9, common.SyncStatus(status))
        assert frame.sequence == 9
        assert receive(client, frame.data) == [messages.SyncStatus(expected)]


@pytest.mark.parametrize("wire_format", FORMATS)
def test_a_frame_is_the_same_for_every_client(wire_format: str) -> None:
    updates = [common.Update("/k", b"v" * 300, "1", 1)]
    first, second = make(wire_format), make(wire_format)
    assert first.updates(0, updates) == first.updates(0, updates) == second.updates(0, updates)
    assert first.make_ping(1) == second.make_ping(1)


def test_the_native_ping_is_a_constant() -> None:
    made: encoding.Encoder = native_encoder.NativeEncoder()
    assert made.make_ping(1) == made.make_ping(2) == native_encoder.NativeEncoder().ping


@pytest.mark.parametrize("value", [b"x", b"x" * 200_000, bytes(range(256)) * 300])
def test_the_length_before_compression_is_known(value: bytes) -> None:
    updates = [common.Update(f"/k/{number}", value, "1", 1) for number in range(3)]
    plain, compressed = (make(name).snapshot_chunk(0, 0, updates) for name in (encoder.PLAIN, encoder.SNAPPY))
    assert make(encoder.PLAIN).raw_length(plain) == make(encoder.SNAPPY).raw_length(compressed) == len(plain)
