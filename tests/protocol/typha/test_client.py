"""Typha's servers, as a client of native messages sees them."""

import pytest

from clients import differ
from protocol import digest, errors, messages
from protocol.typha import client, connection, encoder
from protocol.typha import messages as typha_messages
from tests import wire

HELLO = messages.ClientHello(feed="felix", agent="watch", node="node-a", software="1.2")
Update = messages.Update


def drain(ours: client.ClientConnection) -> list[messages.Message]:
    received = []
    while (message := ours.next_event()) is not None:
        received.append(message)
    return received


def connect() -> tuple[client.ClientConnection, list[messages.Message]]:
    """A client after the handshake with our server, and the messages that it has received."""
    ours, server = client.ClientConnection(), connection.Connection(connection.Role.SERVER)
    ours.send(HELLO)
    received = []
    for _ in range(2):
        server.receive_data(ours.data_to_send())
        while (message := server.next_event()) is not None:
            if isinstance(message, typha_messages.ClientHello):
                assert connection.refusal(message, typha_messages.SYNCER_TYPES) is None
                assert message.agent == "watch 1.2 node-a"
                assert server.accept(version="theirs", connection_id=5) == encoder.SNAPPY
        ours.receive_data(server.data_to_send())
        received += drain(ours)
    return ours, received


MADE = encoder.TyphaEncoder(compress=True)


def frames(updates: list[Update], *statuses: int) -> bytes:
    data = b"".join(frame.data for frame in MADE.updates(0, updates))
    return data + b"".join(MADE.status(0, messages.SyncStatus(status)).data for status in statuses)


def test_the_handshake() -> None:
    _, received = connect()
    hello = messages.ServerHello(version=1, feed="felix", incarnation=bytes(16), software="theirs", connection_id=5)
    assert received == [hello, messages.SnapshotBegin(0, 0, 0), messages.SnapshotEnd(0, 0, 0)]


@pytest.mark.parametrize(
    ("software", "is_modern"),
    [(client.NEWEST_VERSION, True), ("v3.32.1", True), ("v3.31.7", False), ("v3.29.7", False), ("1.2", True)],
)
def test_a_client_of_an_older_release_does_not_know_modern_policy_keys(software: str, is_modern: bool) -> None:
    ours, server = client.ClientConnection(), connection.Connection(connection.Role.SERVER)
    ours.send(messages.ClientHello(feed="felix", agent="watch", software=software))
    server.receive_data(ours.data_to_send())
    hello = server.next_event()
    assert isinstance(hello, typha_messages.ClientHello)
    assert (hello.version, hello.supports_modern_policy_keys) == (software, is_modern)


def test_statuses_begin_with_the_first_in_sync() -> None:
    ours, _ = connect()
    first, second = Update("/a", b"1", "1", 1), Update("/b", b"2", "2", 1)
    ours.receive_data(frames([first], 1) + MADE.make_ping(1) + frames([second], 2, 1) + frames([], 0, 2))
    assert drain(ours) == [
        messages.Updates(0, 1, (first,)),
        messages.Ping(),
        messages.Updates(1, 2, (second,)),
        *(messages.Status(2, messages.SyncStatus(status)) for status in (2, 1, 0, 2)),
    ]
    assert ours.pending_bytes == 0
    assert ours.data_to_send(), "no pong"
    assert repr(ours).endswith("sequence=2>")


def test_a_key_deleted_during_an_outage_is_found_at_the_next_in_sync() -> None:
    follower = differ.Differ()
    batches: list[differ.Batch] = []
    for content in ([Update("/a", b"1", "1", 1), Update("/b", b"2", "2", 1)], [Update("/b", b"3", "3", 1)]):
        ours, received = connect()
        follower.begin_connection()
        ours.receive_data(frames(content, 1, 2))
        batches += [batch for message in [*received, *drain(ours)] if (batch := follower.receive(message)) is not None]
    assert [{(update.key, update.value) for update in batch.updates} for batch in batches] == [
        {("/a", b"1"), ("/b", b"2")},
        {("/a", None), ("/b", b"3")},
    ]
    assert follower.digest == digest.state_digest([("/b", b"3")])


@pytest.mark.parametrize("stream", ["felix-snappy", "inproc-deltas-snappy"])
def test_the_original_is_followed(stream: str) -> None:
    ours, follower = client.ClientConnection(), differ.Differ()
    ours.send(HELLO)
    ours.receive_data(wire.load(f"streams/{stream}.server.bin"))
    for message in drain(ours):
        follower.receive(message)
    held: dict[str, bytes] = {}
    for line in wire.load_lines(f"streams/{stream}.jsonl"):
        if line["msg"] == "KV":
            held.pop(line["Key"], None)
            if line["Value"] is not None:
                held[line["Key"]] = line["Value"].encode()
    assert follower.digest == digest.state_digest(held.items())
    ours.receive_eof()


def test_only_a_hello_can_be_sent() -> None:
    with pytest.raises(errors.LocalProtocolError, match="Pong has no equivalent"):
        client.ClientConnection().send(messages.Pong(0))
