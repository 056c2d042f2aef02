"""What a client and a server must reject, each with the rule. docs/protocol.md shows the bytes."""

import struct
from typing import Final, NamedTuple

from clients.conformance import wire
from clients.conformance.wire import frame, framed

VERIFYING: Final = "verifying"
ZSTD: Final = "zstd"
POSITIONS: Final = "positions"
RESUME: Final = "resume"
DIGESTS: Final = "chunk-digests"
DICTIONARIES: Final = "zstd-dictionary"
SUBSCRIPTIONS: Final = "subscriptions"


class ToClient(NamedTuple):
    """What a server sends, and a client must reject."""

    rule: str
    name: str
    after: str
    """What the server has sent before: nothing, its preface, also its hello, or also a snapshot and its status.

    With "agreed", the hello has put `zstd-dictionary` in force; with "dictionary", the kit's has followed it.
    """
    data: bytes
    needs: str = ""
    """The clients that must reject it: verifying ones, those with zstd, or all."""


class ToServer(NamedTuple):
    """What a client sends, and a server must reject."""

    rule: str
    name: str
    after: str
    """What the client has sent before: nothing, its preface, or also its hello."""
    data: bytes
    reason: str
    """Of the server's goodbye; empty for none."""


_DIGEST = wire.digest(wire.MAP)
_ONE = {wire.POD: wire.POD_VALUE}
UNKNOWN_TYPE: Final = 99
"""Of a message that no version of the protocol has."""
_SKIPPABLE = bytes.fromhex("502a4d1800000000")
_ZSTD_PING = bytes.fromhex("28b52ffd20021100009108")


_13: Final = wire.DICTIONARY_TYPE
_DICTIONARY = frame(_13, wire.DICTIONARY_NUMBER, wire.DICTIONARY)
_ZSTD_DICTIONARY_PING = framed(bytes.fromhex("28b52ffd2107021100009108"), 1)


def _hello(feed: object = "workloads", **members: object) -> bytes:
    return wire.client_hello(feed, **members)


TO_CLIENTS: Final = (
    ToClient("H3", "another preface", "nothing", b"\0TYPHO\r\n"),
    ToClient("E5", "a version that was not offered", "preface", wire.server_hello("workloads", version=2)),
    ToClient("E5", "another feed", "preface", wire.server_hello("another")),
    ToClient("M2", "a hello without its incarnation", "preface", wire.server_hello("workloads", incarnation=None)),
    ToClient("M2", "an incarnation of 15 bytes", "preface", wire.server_hello("workloads", incarnation=bytes(15))),
    ToClient("M2", "a hello whose feed is bin", "preface", wire.server_hello(b"workloads")),
    ToClient(
        "M4",
        "a member whose name is a number",
        "preface",
        wire.frame(
            wire.SERVER_HELLO, {7: None, "version": 1, "feed": "workloads", "incarnation": bytes(16), "features": []}
        ),
    ),
    ToClient("O1", "a ping before the hello", "preface", frame(wire.PING)),
    ToClient(
        "F2",
        "a length above the announced limit",
        "preface",
        wire.server_hello("workloads", max_frame_bytes=65_536) + struct.pack(">I", 65_537),
    ),
    ToClient("F2", "a length of 0", "hello", bytes(4)),
    ToClient("F2", "a length above 16 MiB", "hello", struct.pack(">I", wire.MAX_FRAME_BYTES + 1)),
    ToClient("F3", "unknown flags", "hello", framed(wire.payload([wire.PING]), 2)),
    ToClient("F4", "no msgpack", "hello", framed(b"\xc1")),
    ToClient("F4", "a byte after the message", "hello", framed(wire.payload([wire.PING]) + b"\xc0")),
    ToClient("F4", "an incomplete message", "hello", framed(b"\x92\x08")),
    ToClient("M2", "an unknown message", "hello", frame(UNKNOWN_TYPE)),
    ToClient("M2", "a missing element", "hello", frame(wire.BEGIN, 40, 2)),
    ToClient("M2", "text for a count", "hello", frame(wire.BEGIN, 40, "2", 2)),
    ToClient("M2", "a float for a count", "hello", frame(wire.BEGIN, 40.0, 2, 2)),
    ToClient("M2", "a negative count", "hello", frame(wire.BEGIN, -1, 0, 0)),
    ToClient("O1", "a second hello", "hello", wire.server_hello("workloads")),
    ToClient("O1", "updates before a snapshot", "hello", frame(wire.UPDATES, 0, 1, [])),
    ToClient("O1", "a status before a snapshot", "hello", wire.status(0)),
    ToClient("O1", "a chunk outside a snapshot", "hello", wire.chunk(0, _ONE)),
    ToClient("O1", "a pong", "hello", frame(wire.PONG, 0)),
    ToClient("O1", "applied", "hello", frame(wire.APPLIED, 0)),
    ToClient(
        "O1", "a status inside a snapshot", "hello", frame(wire.BEGIN, 40, 1, 1) + wire.chunk(0, _ONE) + wire.status(40)
    ),
    ToClient(
        "D4",
        "a nil value in a snapshot",
        "hello",
        frame(wire.BEGIN, 40, 0, 1) + frame(wire.CHUNK, 0, 0, False, [wire.update(wire.POD, None, 1)]),
    ),
    ToClient(
        "O4",
        "a snapshot that ends with another sequence",
        "hello",
        frame(wire.BEGIN, 40, 1, 1) + wire.chunk(0, _ONE) + frame(wire.END, 41, 1, wire.digest(_ONE)),
    ),
    ToClient(
        "L1",
        "a key of 4,097 characters",
        "snapshot",
        frame(wire.UPDATES, 40, 41, [wire.update("k" * 4097, b"", 1)]),
    ),
    ToClient("M2", "an update whose value is text", "snapshot", frame(wire.UPDATES, 40, 41, [["/k", "text", "1", 1]])),
    ToClient("M2", "an update of three elements", "snapshot", frame(wire.UPDATES, 40, 41, [["/k", b"", "1"]])),
    ToClient("M2", "an unknown status", "snapshot", wire.status(40, 9)),
    ToClient("O1", "a chunk outside a snapshot", "snapshot", wire.chunk(0, _ONE)),
    ToClient("O1", "the end of no snapshot", "snapshot", frame(wire.END, 40, 2, _DIGEST)),
    ToClient("O11", "updates that leave out a sequence", "snapshot", frame(wire.UPDATES, 41, 42, [])),
    ToClient("O11", "updates to a lower sequence", "snapshot", frame(wire.UPDATES, 40, 39, [])),
    ToClient("O11", "a status with another sequence", "snapshot", wire.status(41)),
    ToClient("O12", "catching-up from a higher sequence", "snapshot", wire.status(41, wire.CATCHING_UP)),
    ToClient(
        "F7",
        "a compressed frame without its content size",
        "hello",
        framed(bytes.fromhex("28b52ffd00581100009108"), 1),
        ZSTD,
    ),
    ToClient(
        "F7",
        "a compressed frame of too much content",
        "hello",
        framed(bytes.fromhex("28b52ffda0010000011100009108"), 1),
        ZSTD,
    ),
    ToClient(
        "F7",
        "a compressed frame with a wrong content size",
        "hello",
        framed(bytes.fromhex("28b52ffd20031100009108"), 1),
        ZSTD,
    ),
    ToClient("F7", "a compressed frame with a byte after it", "hello", framed(_ZSTD_PING + b"\0", 1), ZSTD),
    ToClient("F7", "two compressed frames in one", "hello", framed(_ZSTD_PING + _ZSTD_PING, 1), ZSTD),
    ToClient("F7", "a skippable zstd frame after the frame", "hello", framed(_ZSTD_PING + _SKIPPABLE, 1), ZSTD),
    ToClient("Z1", "a dictionary that was not agreed on", "hello", _DICTIONARY),
    ToClient("Z3", "a dictionary that is none", "agreed", frame(_13, 7, bytes(256)), DICTIONARIES),
    ToClient("Z3", "half a dictionary", "agreed", frame(_13, 7, wire.DICTIONARY[:100]), DICTIONARIES),
    ToClient("Z3", "a dictionary with another number", "agreed", frame(_13, 8, wire.DICTIONARY), DICTIONARIES),
    ToClient("Z3", "a dictionary with number 0", "agreed", frame(_13, 0, wire.DICTIONARY), DICTIONARIES),
    ToClient(
        "Z3",
        "a dictionary of 65,537 bytes",
        "agreed",
        frame(_13, 7, wire.DICTIONARY + bytes(65_537 - len(wire.DICTIONARY))),
        DICTIONARIES,
    ),
    ToClient("Z4", "a frame that needs a dictionary which did not come", "agreed", _ZSTD_DICTIONARY_PING, DICTIONARIES),
    ToClient(
        "Z4",
        "a frame that names another dictionary",
        "dictionary",
        framed(bytes.fromhex("28b52ffd2108021100009108"), 1),
        DICTIONARIES,
    ),
    ToClient(
        "Z4",
        "a frame with a dictionary and too much content",
        "dictionary",
        framed(bytes.fromhex("28b52ffda107010000011100009108"), 1),
        DICTIONARIES,
    ),
    ToClient(
        "O1",
        "a snapshot that keeps chunks of a client that has told no digests",
        "hello",
        frame(wire.RESUME, 40, 2, 2, b"\x03"),
    ),
    ToClient("O1", "a snapshot that keeps chunks, after another", "snapshot", frame(wire.RESUME, 40, 2, 2, b"\x03")),
    ToClient(
        "V1",
        "a chunk without its digest",
        "hello",
        frame(wire.BEGIN, 40, 1, 1) + wire.chunk(0, _ONE, of=wire.MAP),
        VERIFYING,
    ),
    ToClient(
        "V2",
        "a map without its digest",
        "hello",
        frame(wire.BEGIN, 40, 1, 1) + wire.chunk(0, _ONE) + frame(wire.END, 40, 1, _DIGEST),
        VERIFYING,
    ),
    ToClient(
        "V2",
        "a map with a key less than announced",
        "hello",
        frame(wire.BEGIN, 40, 2, 1) + wire.chunk(0, _ONE) + frame(wire.END, 40, 2, wire.digest(_ONE)),
        VERIFYING,
    ),
    ToClient(
        "V3",
        "a key twice",
        "hello",
        frame(wire.BEGIN, 40, 2, 2)
        + wire.chunk(0, _ONE)
        + wire.chunk(1, _ONE)
        + frame(wire.END, 40, 2, 2 * wire.digest(_ONE) % 2**64),
        VERIFYING,
    ),
    ToClient(
        "V4",
        "chunks that do not ascend",
        "hello",
        frame(wire.BEGIN, 40, 0, 2) + wire.chunk(1, {}) + wire.chunk(0, {}),
        VERIFYING,
    ),
    ToClient(
        "V4", "a chunk that was not announced", "hello", frame(wire.BEGIN, 40, 0, 1) + wire.chunk(1, {}), VERIFYING
    ),
    ToClient(
        "V4",
        "a chunk inside another",
        "hello",
        frame(wire.BEGIN, 40, 1, 2) + wire.chunk(0, {}, more=True, of=_ONE) + wire.chunk(1, _ONE),
        VERIFYING,
    ),
    ToClient(
        "V4",
        "a snapshot that ends inside a chunk",
        "hello",
        frame(wire.BEGIN, 40, 0, 1) + wire.chunk(0, {}, more=True) + frame(wire.END, 40, 0, 0),
        VERIFYING,
    ),
)

TO_SERVERS: Final = (
    ToServer("H3", "another preface", "nothing", b"\0TYPHO\r\n", ""),
    ToServer("F2", "a length of 0", "preface", bytes(4), "protocol-error"),
    ToServer("F2", "a length above 64 KiB", "preface", struct.pack(">I", 65_537), "message-too-large"),
    ToServer("F3", "unknown flags", "preface", framed(_hello()[5:], 2), "protocol-error"),
    ToServer("F6", "a compressed hello", "preface", framed(_ZSTD_PING, 1), "protocol-error"),
    ToServer("F4", "no msgpack", "preface", framed(b"\xc1"), "protocol-error"),
    ToServer("F4", "a byte after the message", "preface", framed(_hello()[5:] + b"\xc0"), "protocol-error"),
    ToServer("M2", "a hello without its feed", "preface", _hello(feed=None), "protocol-error"),
    ToServer("M2", "a float for a version", "preface", _hello(versions=[1.0]), "protocol-error"),
    ToServer("M2", "a boolean for a version", "preface", _hello(versions=[True]), "protocol-error"),
    ToServer("M2", "no version", "preface", _hello(versions=[]), "protocol-error"),
    ToServer("M2", "a feed that is bin", "preface", _hello(feed=b"workloads"), "protocol-error"),
    ToServer("M2", "a feed that is nil", "preface", framed(b"\x92\x01\x81\xa4feed\xc0"), "protocol-error"),
    ToServer(
        "M4",
        "a member whose name is a number",
        "preface",
        framed(b"\x92\x01\x84\x07\xc0" + _hello()[8:]),
        "protocol-error",
    ),
    ToServer(
        "M2",
        "a subscription with a count for a boolean",
        "preface",
        _hello(subscription={"own_node": 1}),
        "protocol-error",
    ),
    ToServer("M2", "a subscription that is an array", "preface", _hello(subscription=["pods"]), "protocol-error"),
    ToServer("S1", "a subscription without a kind", "preface", _hello(subscription={"kinds": []}), "protocol-error"),
    ToServer("L1", "65 namespaces", "preface", _hello(subscription={"namespaces": ["n"] * 65}), "protocol-error"),
    ToServer(
        "L1",
        "a prefix of 1,025 characters",
        "preface",
        _hello(subscription={"prefixes": ["/" * 1025]}),
        "protocol-error",
    ),
    ToServer("L1", "65 features", "preface", _hello(features=["f"] * 65), "protocol-error"),
    ToServer("L1", "4,097 chunk digests", "preface", _hello(chunk_digests=[0] * 4097), "protocol-error"),
    ToServer(
        "R3",
        "three chunk digests",
        "preface",
        _hello(features=["chunk-digests"], chunk_digests=[0, 1, 2]),
        "protocol-error",
    ),
    ToServer("L1", "an agent of 1,025 characters", "preface", _hello(agent="a" * 1025), "protocol-error"),
    ToServer("O1", "a pong before the hello", "preface", frame(wire.PONG, 0), "protocol-error"),
    ToServer(
        "O1", "a goodbye before the hello", "preface", frame(wire.GOODBYE, "client-closed", "", 0), "protocol-error"
    ),
    ToServer("E1", "no version in common", "preface", _hello(versions=[2, 3]), "unsupported-version"),
    ToServer("G1", "an unknown feed", "preface", wire.client_hello("there-is-no-such-feed"), "unknown-feed"),
    ToServer("F2", "a length above 2 KiB", "hello", struct.pack(">I", 2049), "message-too-large"),
    ToServer("F2", "a length of 0 later", "hello", bytes(4), "protocol-error"),
    ToServer("F6", "a compressed pong", "hello", framed(_ZSTD_PING, 1), "protocol-error"),
    ToServer("M2", "an unknown message", "hello", frame(UNKNOWN_TYPE), "protocol-error"),
    ToServer("O1", "applied before the hello", "preface", frame(wire.APPLIED, 0), "protocol-error"),
    ToServer("M2", "a pong without its sequence", "hello", frame(wire.PONG), "protocol-error"),
    ToServer("P1", "applied without positions", "hello", frame(wire.APPLIED, 0), "protocol-error"),
    ToServer("O1", "a second hello", "hello", _hello(), "protocol-error"),
    ToServer("M2", "a server's message", "hello", frame(wire.PING), "protocol-error"),
)
