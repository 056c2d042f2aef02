"""Whole sessions of the native protocol, as each side sends them."""

from protocol import digest, messages, subscriptions
from protocol.native import codec, connection, frames
from tests.harness import dictionaries


def native_client() -> bytes:
    """The bytes that a client sends in a session."""
    protocol = connection.Connection(connection.Role.CLIENT)
    hello = messages.ClientHello(
        feed="pods",
        agent="fuzz",
        features=frozenset(messages.Feature),
        resume=messages.ResumePosition(bytes(16), 7),
        chunk_digests=(1, 2**64 - 1),
        subscription=subscriptions.Subscription(kinds=("core/v1/pods",), namespaces=("", "default"), own_node=True),
    )
    later = (messages.Pong(0), messages.Applied(0), messages.Pong(9), messages.Applied(7))
    for message in (hello, *later, messages.Goodbye("client-closed")):
        protocol.send(message)
    return protocol.data_to_send()


def native_server() -> bytes:
    """The bytes that a server sends in a session."""
    pairs = [(f"/core/v1/pods/default/web-{number}", b'{"kind":"Pod"}' * 20) for number in range(20)]
    total = digest.state_digest(pairs)
    trained = dictionaries.trained(1, 1000)
    updates = tuple(messages.Update(key, value, "1", 1) for key, value in pairs)
    session: list[messages.Message] = [
        messages.ServerHello(
            version=1, feed="pods", incarnation=bytes(16), features=frozenset({"zstd", "zstd-dictionary"})
        ),
        messages.Ping(),
        trained.message,
        messages.SnapshotBegin(5, 20, 1),
        messages.SnapshotChunk(0, total, True, updates[:10]),
        messages.SnapshotChunk(0, total, False, updates[10:]),
        messages.SnapshotEnd(5, 20, total),
        messages.Status(5, messages.SyncStatus.IN_SYNC),
        messages.Updates(5, 6, (messages.Update("/k", None, "2", 3),)),
        messages.Goodbye("shutting-down", "bye", 1000),
    ]
    compressor = frames.make_compressor()
    packed = [frames.pack_frame(codec.encode(message), compressor=compressor) for message in session]
    packed.insert(-1, trained.pack_frame(codec.encode(messages.Updates(6, 7, updates[:1]))))
    return frames.PREFACE + b"".join(packed)


def native_server_of_a_part() -> bytes:
    """The same, of a server that sends a part of the feed, and asks what has been applied."""
    pairs = [("/core/v1/pods/default/web-1", b'{"spec":{"nodeName":"n1"}}'), ("/core/v1/services/default/s", b"{}")]
    total = digest.state_digest(pairs)
    features = frozenset({"subscriptions", "positions", "freshness"})
    session: list[messages.Message] = [
        messages.ServerHello(
            version=1, feed="pods", incarnation=bytes(16), features=features, confirmed_milliseconds=2500
        ),
        messages.SnapshotBegin(5, 2, 1),
        messages.SnapshotChunk(0, total, False, tuple(messages.Update(key, value, "1", 1) for key, value in pairs)),
        messages.SnapshotEnd(5, 2, total),
        messages.Status(7, messages.SyncStatus.IN_SYNC),
        messages.Updates(9, 11, (messages.Update(pairs[0][0], None, "2", 3),)),
        messages.Updates(20, 21, ()),
        messages.Status(21, messages.SyncStatus.CATCHING_UP),
        messages.Updates(23, 30, (messages.Update(*pairs[0], "3", 2),)),
        messages.Status(30, messages.SyncStatus.IN_SYNC),
    ]
    return frames.PREFACE + b"".join(frames.pack_frame(codec.encode(message)) for message in session)
