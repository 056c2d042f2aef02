"""What the native protocol says, as plain immutable values; docs/protocol.md is their specification.

Nothing here knows bytes: `protocol.native.codec` turns a message into a frame's payload and back.
"""

import enum
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import msgspec


class SyncStatus(enum.IntEnum):
    """How complete the data is that a client has been sent."""

    WAITING = 0
    RESYNC = 1
    IN_SYNC = 2
    CATCHING_UP = 3

    @property
    def label(self) -> str:
        """The name used in logs, JSON and on the command line: waiting, resync, in-sync, catching-up."""
        return _STATUS_LABELS[self]


_STATUS_LABELS = {
    SyncStatus.WAITING: "waiting",
    SyncStatus.RESYNC: "resync",
    SyncStatus.IN_SYNC: "in-sync",
    SyncStatus.CATCHING_UP: "catching-up",
}


class UpdateType(enum.IntEnum):
    """What happened to a key, as the server saw it; in a snapshot everything is new."""

    UNKNOWN = 0
    NEW = 1
    UPDATED = 2
    DELETED = 3


class Update(NamedTuple):
    """One key's change; `value` is None if and only if the key is deleted (`b""` is a live, empty value)."""

    key: str
    value: bytes | None
    revision: str
    update_type: int
    v3_resource_version: str = ""
    ttl: int = 0
    """Nanoseconds, 0 for none."""


class Feature(enum.StrEnum):
    """Negotiable parts of the protocol; a server names those of a hello that it does not support."""

    ZSTD = "zstd"
    RESUME = "resume"
    CHUNK_DIGESTS = "chunk-digests"
    SUBSCRIPTIONS = "subscriptions"
    POSITIONS = "positions"


class ResumePosition(NamedTuple):
    """A place in the history of one incarnation of one server."""

    incarnation: bytes
    """16 bytes, random for each start of a server."""
    sequence: int


class ClientHello(msgspec.Struct, frozen=True):
    """The client's first message: what it is, what it can do and what it wants."""

    feed: str
    agent: str
    versions: tuple[int, ...] = (1,)
    features: frozenset[str] = frozenset()
    software: str = ""
    node: str = ""
    subscription: dict[str, object] | None = None
    resume: ResumePosition | None = None
    chunk_digests: tuple[int, ...] | None = None


class ServerHello(msgspec.Struct, frozen=True):
    """The server's answer: what was agreed on. A snapshot or nothing at all (data not ready) follows."""

    version: int
    feed: str
    incarnation: bytes
    features: frozenset[str] = frozenset()
    not_supported: frozenset[str] = frozenset()
    software: str = ""
    connection_id: int = 0
    ping_interval_milliseconds: int = 0
    max_frame_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotBegin:
    """Everything the client holds is about to be replaced by the map as of `sequence`."""

    sequence: int
    keys: int
    chunks: int


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Some of the keys of chunk `index`; `more` says that the next frame goes on with the same chunk."""

    index: int
    digest: int
    more: bool
    updates: tuple[Update, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The snapshot is complete; `digest` is the state digest of all of it."""

    sequence: int
    keys: int
    digest: int


@dataclass(frozen=True, slots=True)
class Updates:
    """Changes in order, that take a client from `previous_sequence` to `sequence`."""

    previous_sequence: int
    sequence: int
    updates: tuple[Update, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Status:
    """The feed's status as of `sequence`; follows the data it speaks of."""

    sequence: int
    status: SyncStatus


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong; a constant, so that one frame serves every client."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping; `sequence` is the last one that the client has received."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender's last message: why, in a code and in words, and when to try again."""

    reason: str
    text: str = ""
    retry_after_milliseconds: int = 0


Message: TypeAlias = (
    ClientHello | ServerHello | SnapshotBegin | SnapshotChunk | SnapshotEnd | Updates | Status | Ping | Pong | Goodbye
)
