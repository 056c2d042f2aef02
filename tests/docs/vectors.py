"""Test vectors of docs/protocol.md as messages. `protocol_page` turns them into bytes and text."""

from typing import NamedTuple

from protocol import digest, messages
from protocol.native import codec, frames

INCARNATION = bytes(range(16))
POD = "/core/v1/pods/default/web-1"
POD_VALUE = b'{"kind":"Pod"}'
NODE = "/core/v1/nodes//n1"
NODE_VALUE = "é".encode()

PAIRS: list[dict[str, bytes]] = [
    {},
    {POD: POD_VALUE},
    {NODE: NODE_VALUE},
    {POD: POD_VALUE, NODE: NODE_VALUE},
    {NODE: b""},
]
"""Maps whose state digest is on the page."""


class Vector(NamedTuple):
    """A message and its name on the page."""

    name: str
    message: messages.Message


CLIENT_HELLO = messages.ClientHello(
    feed="workloads", agent="my-agent", features=frozenset({"zstd"}), software="my-agent/1.0", node="n1"
)
RESERVED_HELLO = messages.ClientHello(
    feed="workloads",
    agent="my-agent",
    features=frozenset({"resume", "chunk-digests", "subscriptions"}),
    subscription={"namespaces": ("default",)},
    resume=messages.ResumePosition(INCARNATION, 4711),
    chunk_digests=(0, 2**64 - 1),
)
SERVER_HELLO = messages.ServerHello(
    version=1,
    feed="workloads",
    incarnation=INCARNATION,
    features=frozenset({"zstd"}),
    software="typha",
    connection_id=7,
    ping_interval_milliseconds=10_000,
    max_frame_bytes=frames.MAX_FRAME_BYTES,
)
REFUSING_HELLO = messages.ServerHello(
    version=1,
    feed="workloads",
    incarnation=INCARNATION,
    not_supported=frozenset({"resume", "chunk-digests", "subscriptions"}),
)
POD_UPDATE = messages.Update(POD, POD_VALUE, "101", messages.UpdateType.NEW)
NODE_UPDATE = messages.Update(NODE, NODE_VALUE, "102", messages.UpdateType.NEW)
CHUNK_0 = messages.SnapshotChunk(0, digest.state_digest([(POD, POD_VALUE)]), False, (POD_UPDATE,))
CHUNK_1 = messages.SnapshotChunk(1, digest.state_digest([(NODE, NODE_VALUE)]), False, (NODE_UPDATE,))
SNAPSHOT_END = messages.SnapshotEnd(40, 2, digest.state_digest({POD: POD_VALUE, NODE: NODE_VALUE}.items()))
DELTA = messages.Updates(
    40,
    42,
    (
        messages.Update(POD, b'{"kind":"Pod","x":1}', "103", messages.UpdateType.UPDATED),
        messages.Update(NODE, None, "104", messages.UpdateType.DELETED),
    ),
)
CALICO_DELTA = messages.Updates(42, 43, (messages.Update("/k", b"", "105", 1, "9", 1_000_000_000),))
SHUTTING_DOWN = messages.Goodbye("shutting-down", "the server is draining", 1500)

VECTORS = [
    Vector("client-hello", CLIENT_HELLO),
    Vector("client-hello with every reserved member", RESERVED_HELLO),
    Vector("server-hello", SERVER_HELLO),
    Vector("server-hello that declines reserved features", REFUSING_HELLO),
    Vector("snapshot-begin", messages.SnapshotBegin(40, 2, 2)),
    Vector("snapshot-chunk", CHUNK_0),
    Vector("snapshot-chunk that goes on", messages.SnapshotChunk(0, CHUNK_0.digest, True, ())),
    Vector("snapshot-end", SNAPSHOT_END),
    Vector("updates", DELTA),
    Vector("updates with all six elements, an empty value and a ttl of one second", CALICO_DELTA),
    Vector("status in-sync", messages.Status(40, messages.SyncStatus.IN_SYNC)),
    Vector("ping", messages.Ping()),
    Vector("pong", messages.Pong(42)),
    Vector("goodbye", SHUTTING_DOWN),
]

ZSTD_FRAME = bytes.fromhex("0000000c 01 28b52ffd 20 02 110000 9108")
"""A ping in a zstd frame of one raw block; no server would compress that, and any client must read it."""


class Step(NamedTuple):
    """Something that one side sends in the annotated session."""

    sender: str
    data: bytes
    comment: str


def _step(sender: str, message: messages.Message, comment: str) -> Step:
    return Step(sender, frames.pack_frame(codec.encode(message)), comment)


SESSION = [
    Step("client", frames.PREFACE, "preface"),
    _step("client", CLIENT_HELLO, "hello: feed workloads, zstd offered"),
    Step("server", frames.PREFACE, "preface"),
    _step("server", SERVER_HELLO, "hello: version 1, zstd agreed, a ping at least every 10 s"),
    _step("server", messages.Ping(), "no data yet: the server keeps in touch"),
    _step("client", messages.Pong(0), "nothing received so far"),
    _step("server", messages.SnapshotBegin(40, 2, 2), "2 keys in 2 chunks, as of sequence 40"),
    _step("server", CHUNK_0, "the pod"),
    _step("server", CHUNK_1, "the node"),
    _step("server", SNAPSHOT_END, "complete; now the client takes it, and has reached 40"),
    _step("server", messages.Status(40, messages.SyncStatus.IN_SYNC), "and this is what the API server has"),
    _step("server", DELTA, "from 40 to 42: the pod changed, the node is gone"),
    Step("server", ZSTD_FRAME, "a ping, in a compressed frame for the sake of the example"),
    _step("client", messages.Pong(42), "everything up to 42 received"),
    _step(
        "server",
        messages.Status(41, messages.SyncStatus.CATCHING_UP),
        "too slow: what has changed since 41 comes again, as newest values",
    ),
    _step(
        "server",
        messages.Updates(
            41,
            55,
            (
                messages.Update(NODE, NODE_VALUE, "110", messages.UpdateType.UPDATED),
                messages.Update("/core/v1/nodes//n2", None, "111", messages.UpdateType.DELETED),
            ),
        ),
        "from 41 to 55: the node came back, and a node that the client never heard of is gone",
    ),
    _step("server", messages.Status(55, messages.SyncStatus.IN_SYNC), "current again"),
    _step("server", messages.SnapshotBegin(60, 1, 1), "slower still: the map is to be replaced"),
    _step(
        "server",
        messages.SnapshotChunk(0, CHUNK_1.digest, False, (NODE_UPDATE,)),
        "all there is now: the node. The pod is deleted, by its absence",
    ),
    _step("server", messages.SnapshotEnd(60, 1, CHUNK_1.digest), "complete"),
    _step("server", messages.Status(60, messages.SyncStatus.IN_SYNC), "current again"),
    _step("server", SHUTTING_DOWN, "come back in 1.5 s, or go elsewhere at once; then it closes"),
]
