"""The messages of the native protocol, as immutable values. docs/protocol.md specifies them.

`protocol.Connection` turns them into bytes and back.
"""

import enum
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import msgspec

from protocol import subscriptions


class SyncStatus(enum.IntEnum):
    """How complete the data is that the server has sent."""

    WAITING = 0
    RESYNC = 1
    IN_SYNC = 2
    CATCHING_UP = 3

    @property
    def label(self) -> str:
        """The name in logs, in JSON and on the command line: waiting, resync, in-sync or catching-up."""
        return _STATUS_LABELS[self]


_STATUS_LABELS = {
    SyncStatus.WAITING: "waiting",
    SyncStatus.RESYNC: "resync",
    SyncStatus.IN_SYNC: "in-sync",
    SyncStatus.CATCHING_UP: "catching-up",
}


class UpdateType(enum.IntEnum):
    """What happened to a key, from the server's point of view. In a snapshot every key is new."""

    UNKNOWN = 0
    NEW = 1
    UPDATED = 2
    DELETED = 3


class Update(NamedTuple):
    """The change of one key. `value` is None if and only if the key is deleted; `b""` is an empty value."""

    key: str
    value: bytes | None
    revision: str
    update_type: int
    v3_resource_version: str = ""
    ttl: int = 0
    """Time to live in nanoseconds; 0 means none."""


class Feature(enum.StrEnum):
    """Optional parts of the protocol. A server lists those features of a hello that it does not support."""

    ZSTD = "zstd"
    RESUME = "resume"
    CHUNK_DIGESTS = "chunk-digests"
    SUBSCRIPTIONS = "subscriptions"
    POSITIONS = "positions"
    FRESHNESS = "freshness"
    ZSTD_DICTIONARY = "zstd-dictionary"
    TIERS = "tiers"


class ResumePosition(NamedTuple):
    """A position in the history of one incarnation of a server."""

    incarnation: bytes
    """16 random bytes, different for each start of a server."""
    sequence: int


class ClientHello(msgspec.Struct, frozen=True):
    """The client's first message: its identity, its features, and the feed that it asks for."""

    feed: str
    agent: str
    versions: tuple[int, ...] = (1,)
    features: frozenset[str] = frozenset()
    software: str = ""
    node: str = ""
    subscription: subscriptions.Subscription | None = None
    resume: ResumePosition | None = None
    """What the client's map is, if it has one. It counts with the feature `resume` only."""
    chunk_digests: tuple[int, ...] | None = None
    """The digests of the chunks of the client's map, a power of two of them. Count with `chunk-digests` only."""


class ServerHello(msgspec.Struct, frozen=True):
    """The server's answer: the agreed version and features. A snapshot follows as soon as the feed has data."""

    version: int
    feed: str
    incarnation: bytes
    features: frozenset[str] = frozenset()
    not_supported: frozenset[str] = frozenset()
    software: str = ""
    connection_id: int = 0
    ping_interval_milliseconds: int = 0
    max_frame_bytes: int = 0
    confirmed_milliseconds: int | None = None
    """How long ago the backend last confirmed the feed; None if it does not, or if the client has not asked."""
    upstreams: tuple[bytes, ...] | None = None
    """The incarnations of the servers that feed this one, nearest first, if `tiers` is in force: empty if it has none
    at present, None if it reads the backend itself."""


@dataclass(frozen=True, slots=True)
class SnapshotBegin:
    """Begins a snapshot: the map as of `sequence`, which replaces everything that the client has."""

    sequence: int
    keys: int
    chunks: int


@dataclass(frozen=True, slots=True)
class SnapshotResume:
    """Begins a snapshot for a client that has told the digests of its chunks: it keeps some of them."""

    sequence: int
    keys: int
    """Of the whole map, with those that the client keeps."""
    chunks: int
    """A power of two."""
    kept: bytes
    """A bit for each chunk, from the lowest bit of the first byte on: set if the client keeps the chunk."""

    def keeps(self, chunk: int) -> bool:
        """Whether the client keeps a chunk (< `chunks`)."""
        return bool(self.kept[chunk >> 3] & 1 << (chunk & 7))


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Some keys of chunk `index`. If `more` is True, the next frame continues the same chunk."""

    index: int
    digest: int
    more: bool
    updates: tuple[Update, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """Ends a snapshot. `digest` is the state digest of the whole snapshot."""

    sequence: int
    keys: int
    digest: int


@dataclass(frozen=True, slots=True)
class Updates:
    """A delta: changes in order that take a client from `previous_sequence` to `sequence`."""

    previous_sequence: int
    sequence: int
    updates: tuple[Update, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Status:
    """The feed's status as of `sequence`. It comes after the data that it describes."""

    sequence: int
    status: SyncStatus


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong. It has no content, so that one frame serves every client."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping. `sequence` is the last sequence that the client has received."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Applied:
    """The client has applied everything up to `sequence`: it has taken effect where the client works."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender's last message: the reason as a code and as text, and when to retry (0: no preference)."""

    reason: str
    text: str = ""
    retry_after_milliseconds: int = 0
    servers: tuple[str, ...] = ()
    """Other servers that the client may connect to instead, as HOST:PORT."""


@dataclass(frozen=True, slots=True)
class Dictionary:
    """A dictionary of zstd, for the frames that follow and name its number. It replaces the one before."""

    number: int
    data: bytes = field(repr=False)


Message: TypeAlias = (
    ClientHello
    | ServerHello
    | SnapshotBegin
    | SnapshotResume
    | SnapshotChunk
    | SnapshotEnd
    | Updates
    | Status
    | Ping
    | Pong
    | Goodbye
    | Applied
    | Dictionary
)
