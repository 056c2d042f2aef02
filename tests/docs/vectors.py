"""The test vectors of docs/protocol.md, as messages. `protocol_page` turns them into bytes and text."""

from typing import NamedTuple

import msgspec

from clients.conformance import wire
from protocol import digest, messages, subscriptions
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
"""Maps; the page shows the state digest of each."""


class Vector(NamedTuple):
    """A message, with its name on the page."""

    name: str
    message: messages.Message


CLIENT_HELLO = messages.ClientHello(
    feed="workloads", agent="my-agent", features=frozenset({"zstd"}), software="my-agent/1.0", node="n1"
)
FULL_HELLO = messages.ClientHello(
    feed="workloads",
    agent="my-agent",
    features=frozenset({"resume", "chunk-digests", "subscriptions"}),
    subscription=subscriptions.Subscription(namespaces=("default",)),
    resume=messages.ResumePosition(INCARNATION, 4711),
    chunk_digests=(0, 2**64 - 1),
)
SUBSCRIBING_HELLO = messages.ClientHello(
    feed="workloads",
    agent="my-agent",
    node="n1",
    features=frozenset({"subscriptions"}),
    subscription=subscriptions.Subscription(
        kinds=("core/v1/pods", "core/v1/services"),
        namespaces=("", "default"),
        prefixes=("/core/v1/",),
        own_node=True,
    ),
)
SUBSCRIBED_HELLO = messages.ServerHello(
    version=1,
    feed="workloads",
    incarnation=INCARNATION,
    features=frozenset({"subscriptions"}),
    connection_id=7,
    ping_interval_milliseconds=10_000,
    max_frame_bytes=frames.MAX_FRAME_BYTES,
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
    connection_id=2**64 - 1,
    ping_interval_milliseconds=500,
    max_frame_bytes=65_536,
)
FRESH_HELLO = msgspec.structs.replace(
    SERVER_HELLO, features=frozenset({"freshness"}), confirmed_milliseconds=2_500, connection_id=8
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
REDIRECT = messages.Goodbye("rebalanced", "not here", 0, ("10.0.0.2:5473", "[fd00::3]:5473"))

VECTORS = [
    Vector("client-hello", CLIENT_HELLO),
    Vector("client-hello with every member", FULL_HELLO),
    Vector("client-hello with a subscription", SUBSCRIBING_HELLO),
    Vector("server-hello", SERVER_HELLO),
    Vector("server-hello with a subscription in force", SUBSCRIBED_HELLO),
    Vector("server-hello that declines features", REFUSING_HELLO),
    Vector("server-hello of a feed that was confirmed 2.5 s ago", FRESH_HELLO),
    Vector("snapshot-begin", messages.SnapshotBegin(40, 2, 2)),
    Vector("snapshot-chunk", CHUNK_0),
    Vector("snapshot-chunk that continues in the next frame", messages.SnapshotChunk(0, CHUNK_0.digest, True, ())),
    Vector("snapshot-end", SNAPSHOT_END),
    Vector("updates", DELTA),
    Vector("updates with all six elements, an empty value and a ttl of one second", CALICO_DELTA),
    Vector("status in-sync", messages.Status(40, messages.SyncStatus.IN_SYNC)),
    Vector("ping", messages.Ping()),
    Vector("pong", messages.Pong(42)),
    Vector("goodbye", SHUTTING_DOWN),
    Vector("goodbye that names other servers", REDIRECT),
    Vector("applied", messages.Applied(42)),
    Vector("snapshot-resume that keeps the first of two chunks", messages.SnapshotResume(9, 2, 2, b"\x01")),
    Vector("dictionary", messages.Dictionary(wire.DICTIONARY_NUMBER, wire.DICTIONARY)),
    Vector("snapshot-resume that keeps chunks 1 and 9 of 16", messages.SnapshotResume(9, 0, 16, b"\x02\x02")),
]

ZSTD_FRAME = bytes.fromhex("0000000c 01 28b52ffd 20 02 110000 9108")
"""A ping in a zstd frame of one raw block. No server compresses a ping, but every client must be able to read one."""


class Step(NamedTuple):
    """What one side sends at one point of the annotated session."""

    sender: str
    data: bytes
    comment: str


def _step(sender: str, message: messages.Message, comment: str) -> Step:
    return Step(sender, frames.pack_frame(codec.encode(message)), comment)


SESSION = [
    Step("client", frames.PREFACE, "preface"),
    _step("client", CLIENT_HELLO, "client-hello: feed workloads, offers zstd"),
    Step("server", frames.PREFACE, "preface"),
    _step("server", SERVER_HELLO, "server-hello: version 1, zstd is in force, a ping at least every 10 s"),
    _step("server", messages.Ping(), "ping: the server has no data yet"),
    _step("client", messages.Pong(0), "pong: the client has received no data"),
    _step("server", messages.SnapshotBegin(40, 2, 2), "snapshot-begin: 2 keys in 2 chunks, at sequence 40"),
    _step("server", CHUNK_0, "snapshot-chunk: the pod"),
    _step("server", CHUNK_1, "snapshot-chunk: the node"),
    _step("server", SNAPSHOT_END, "snapshot-end: the client has reached 40"),
    _step(
        "server",
        messages.Status(40, messages.SyncStatus.IN_SYNC),
        "status in-sync: the snapshot is now the client's map",
    ),
    _step("server", DELTA, "updates, 40 to 42: the pod has changed, the node is deleted"),
    Step("server", ZSTD_FRAME, "ping, in a compressed frame as an example"),
    _step("client", messages.Pong(42), "pong: the client has received everything up to 42"),
    _step(
        "server",
        messages.Status(41, messages.SyncStatus.CATCHING_UP),
        "status catching-up: the client is too slow, and gets the newest value of each key that has changed since 41",
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
        "updates, 41 to 55: the node is back; a node that the client never had is deleted",
    ),
    _step("server", messages.Status(55, messages.SyncStatus.IN_SYNC), "status in-sync: current again"),
    _step("server", messages.SnapshotBegin(60, 1, 1), "snapshot-begin: the client is even slower, and gets a new map"),
    _step(
        "server",
        messages.SnapshotChunk(0, CHUNK_1.digest, False, (NODE_UPDATE,)),
        "snapshot-chunk: only the node; the pod is deleted because it is absent",
    ),
    _step("server", messages.SnapshotEnd(60, 1, CHUNK_1.digest), "snapshot-end"),
    _step("server", messages.Status(60, messages.SyncStatus.IN_SYNC), "status in-sync: current again"),
    _step(
        "server",
        SHUTTING_DOWN,
        "goodbye: the client may reconnect here after 1.5 s, or to another server at once; the server closes",
    ),
]


def _sent(sender: str, steps: list[Step]) -> bytes:
    return b"".join(step.data for step in steps if step.sender == sender)


UNKNOWN_FEED = messages.Goodbye("unknown-feed", "no feed 'workload' here", 30_000)
REFUSED_SESSION = [
    Step("client", frames.PREFACE, "preface"),
    _step("client", messages.ClientHello(feed="workload", agent="my-agent"), "client-hello: feed workload"),
    Step("server", frames.PREFACE, "preface"),
    _step(
        "server",
        UNKNOWN_FEED,
        "goodbye: there is no such feed, and the client may ask here again in 30 s; the server ends its direction",
    ),
]

_RESUMING = frozenset({"resume", "chunk-digests"})
NEW_POD_VALUE = b'{"kind":"Pod","x":1}'
NEW_POD_DIGEST = digest.state_digest([(POD, NEW_POD_VALUE)])
RESUMED_SESSION = [
    Step("client", frames.PREFACE, "preface"),
    _step(
        "client",
        messages.ClientHello(
            "workloads",
            "my-agent",
            features=_RESUMING,
            resume=messages.ResumePosition(INCARNATION, 40),
            chunk_digests=(CHUNK_0.digest, CHUNK_1.digest),
        ),
        "client-hello: the client has the map of sequence 40 in the session above, in 2 chunks",
    ),
    Step("server", frames.PREFACE, "preface"),
    _step(
        "server",
        msgspec.structs.replace(SERVER_HELLO, features=_RESUMING),
        "server-hello: resume is in force, and the incarnation is that of the position; the client has reached 40",
    ),
    _step("server", DELTA, "updates, 40 to 42: the pod has changed, the node is deleted"),
    _step("server", messages.Status(42, messages.SyncStatus.IN_SYNC), "status in-sync: the client's map is current"),
]
RESUMED_BY_DIGESTS = [
    Step("client", frames.PREFACE, "preface"),
    _step(
        "client",
        messages.ClientHello(
            "workloads",
            "my-agent",
            features=_RESUMING,
            resume=messages.ResumePosition(INCARNATION, 42),
            chunk_digests=(NEW_POD_DIGEST, 0),
        ),
        "client-hello: the client has the map of sequence 42; chunk 1 of 2 is empty",
    ),
    Step("server", frames.PREFACE, "preface"),
    _step(
        "server",
        msgspec.structs.replace(SERVER_HELLO, incarnation=bytes(range(16, 32)), features=_RESUMING),
        "server-hello: another incarnation, for which the position means nothing",
    ),
    _step(
        "server",
        messages.SnapshotResume(9, 2, 2, b"\x01"),
        "snapshot-resume: a map of 2 keys in 2 chunks, at sequence 9; the client keeps chunk 0",
    ),
    _step("server", CHUNK_1, "snapshot-chunk: chunk 1 has the node"),
    _step(
        "server",
        messages.SnapshotEnd(9, 2, digest.state_digest({POD: NEW_POD_VALUE, NODE: NODE_VALUE}.items())),
        "snapshot-end: the digest is that of the whole map",
    ),
    _step("server", messages.Status(9, messages.SyncStatus.IN_SYNC), "status in-sync: the new map is the client's"),
]

_AGREED = frames.PREFACE + frames.pack_frame(
    codec.encode(msgspec.structs.replace(SERVER_HELLO, features=frozenset({"zstd", "zstd-dictionary"})))
)
_WITH_DICTIONARY = _AGREED + frames.pack_frame(
    codec.encode(messages.Dictionary(wire.DICTIONARY_NUMBER, wire.DICTIONARY))
)
DICTIONARY_FRAME = wire.compressed_with(
    wire.DICTIONARY, 6, 40, 42, [[POD, NEW_POD_VALUE, "103", 2], [NODE, None, "104", 3]]
)
"""The delta of the session, compressed with the dictionary of the vectors."""
OWN_POD_VALUE = b'{"spec":{"nodeName":"n1"}}'
SERVICE = "/core/v1/services/default/web"
SERVICE_VALUE = b'{"kind":"Service"}'
_OWN_UPDATES = (
    messages.Update(POD, OWN_POD_VALUE, "101", messages.UpdateType.NEW),
    messages.Update(SERVICE, SERVICE_VALUE, "99", messages.UpdateType.NEW),
)
_OWN_DIGEST = digest.state_digest({POD: OWN_POD_VALUE, SERVICE: SERVICE_VALUE}.items())
_REPORTING = frozenset({"subscriptions", "positions"})
SUBSCRIBED_SESSION = [
    Step("client", frames.PREFACE, "preface"),
    _step(
        "client",
        messages.ClientHello(
            "workloads",
            "my-agent",
            node="n1",
            features=_REPORTING,
            subscription=subscriptions.Subscription(kinds=("core/v1/pods", "core/v1/services"), own_node=True),
        ),
        "client-hello: the Services and the pods of node n1; the client reports what it has applied",
    ),
    Step("server", frames.PREFACE, "preface"),
    _step("server", msgspec.structs.replace(SERVER_HELLO, features=_REPORTING), "server-hello: both are in force"),
    _step("server", messages.SnapshotBegin(40, 2, 1), "snapshot-begin: the selected part has 2 keys, at sequence 40"),
    _step("server", messages.SnapshotChunk(0, _OWN_DIGEST, False, _OWN_UPDATES), "snapshot-chunk: a pod and a Service"),
    _step("server", messages.SnapshotEnd(40, 2, _OWN_DIGEST), "snapshot-end: the digest is that of the part"),
    _step(
        "server",
        messages.Status(43, messages.SyncStatus.IN_SYNC),
        "status in-sync: the client has reached 43, because 41 to 43 are not for it",
    ),
    _step("client", messages.Applied(43), "applied: the part has taken effect"),
    _step(
        "server",
        messages.Updates(
            50,
            51,
            (messages.Update(SERVICE, b'{"kind":"Service","x":1}', "108", messages.UpdateType.UPDATED),),
        ),
        "updates, 50 to 51: the Service has changed; 44 to 50 are not for the client",
    ),
    _step("client", messages.Applied(51), "applied: the change, a second after the last one at the earliest"),
    _step(
        "server",
        messages.Updates(58, 59, (messages.Update(POD, None, "115", messages.UpdateType.DELETED),)),
        "updates, 58 to 59: the pod has a new node, or is deleted",
    ),
    _step("server", messages.Ping(), "ping"),
    _step("client", messages.Pong(59), "pong: the client has received everything up to 59, and has not applied it yet"),
]

BEFORE_CLIENT = {
    "nothing": b"",
    "preface": frames.PREFACE,
    "hello": _sent("server", SESSION[:4]),
    "agreed": _AGREED,
    "dictionary": _WITH_DICTIONARY,
    "snapshot": _sent("server", [*SESSION[:4], *SESSION[6:11]]),
}
"""What a server has sent before something that a client rejects."""
BEFORE_SERVER = {"nothing": b"", "preface": frames.PREFACE, "hello": _sent("client", SESSION[:2])}
"""What a client has sent before something that a server rejects."""
