"""What a supervisor and its worker processes say to each other: one JSON object a line, over pipes."""

import enum
from typing import TypeAlias

import msgspec

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Digests and deletions of a process come as one line."""


class Protocol(enum.Enum):
    """What an agent speaks."""

    NATIVE = "native"
    TYPHA = "typha"


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files of an agent that shows a certificate."""

    authority: str
    """What the service's certificate is checked against."""
    certificate: str
    key: str


class Start(msgspec.Struct, tag="start", kw_only=True):
    """Connect agents `first_index` .. `first_index + agents - 1`; the first message, once."""

    addresses: list[tuple[str, int]]
    feed: str
    agents: int
    agents_at_first: int | None = None
    """So many connect now, the others with the first Reconnect; None for all."""
    first_index: int = 0
    ramp_per_second: float = 1000.0
    """New connections a second of this process."""
    protocol: Protocol = Protocol.NATIVE
    compressed: bool = True
    """With zstd, or snappy in Typha's protocol."""
    tls: TlsFiles | None = None
    """TLS with this certificate; None for plain TCP."""
    small_buffers: int = 0
    """So many of the last agents have a small receive buffer."""
    small_buffer_bytes: int = 1
    """SO_RCVBUF of those; 1 gives the smallest possible one, through which a snapshot of megabytes takes minutes."""
    apart: bool = False
    """All agents of the process count as impaired, and it runs only while nobody else wants the CPU: the agents that it
    stands for are on hosts of their own, and what those do with a backlog takes nothing from the service and others."""
    seed: int = 0


class Impair(msgspec.Struct, tag="impair", kw_only=True):
    """The last `agents` agents read at most so many bytes a second (0: nothing at all) for a while."""

    agents: int
    bytes_per_second: int
    seconds: float


class Reconnect(msgspec.Struct, tag="reconnect"):
    """Every agent drops its connection; they connect again at the ramp's rate (0: all at once)."""

    ramp_per_second: float = 0.0


class Capture(msgspec.Struct, tag="capture"):
    """Remember what every agent holds now."""


class AskDigests(msgspec.Struct, tag="ask-digests", kw_only=True):
    """Answer with Digests: of what the agents hold now, or held when it was captured."""

    captured: bool = False
    without: list[str] = msgspec.field(default_factory=list)
    """Keys that are left out of digests and counts."""


class Stop(msgspec.Struct, tag="stop"):
    """Close everything and end."""


Command: TypeAlias = Start | Impair | Reconnect | Capture | AskDigests | Stop


class GroupStats(msgspec.Struct, kw_only=True):
    """Counts since the start of the agents that behave, or of the impaired. Histograms: since the last report.

    An impaired agent is so for good: what it reads once it may read again is counted with the impaired.
    """

    bytes: int = 0
    frames: int = 0
    updates: int = 0
    deletions: int = 0
    snapshots: int = 0
    goodbyes: dict[str, int] = msgspec.field(default_factory=dict)
    latency: list[tuple[int, int]] = msgspec.field(default_factory=list)
    in_sync_after: list[tuple[int, int]] = msgspec.field(default_factory=list)
    back_after: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """From the loss of a connection to in-sync again."""
    silence_seconds: float = 0.0
    """Since the last report: the longest time in which the network brought nothing to a connection, from the first byte
    that it was sent on, those included that go on."""
    read_gap_seconds: float = 0.0
    """The same between two reads: with the delays of the process itself."""


class Stats(msgspec.Struct, tag="stats", kw_only=True):
    """A process's report, every half a second. What it does not know of its agents is left as it is."""

    at_ns: int
    agents: int
    connected: int
    """With a server-hello."""
    in_sync: int
    connects: int
    disconnects: dict[str, int]
    """By what the agent saw: eof, goodbye, protocol-error, or the name of an errno."""
    unserved: dict[str, int] = msgspec.field(default_factory=dict)
    """Of those: connections that ended before they were in sync, and connects that failed."""
    lost: int = 0
    """Of those: connections that had been in sync."""
    protocol_errors: list[str]
    """The first few, in words."""
    behaving: GroupStats
    impaired: GroupStats = msgspec.field(default_factory=GroupStats)
    slowest_lag_seconds: float = 0.0
    """Of the connected, unimpaired agents: age of the first update that the slowest lacks and another has."""
    impaired_lag_seconds: float = 0.0
    """The same of the impaired."""
    highest_sequence: int = 0
    distinct_states: int = 0
    distinct_frames: int = 0
    cpu_seconds: float


class AgentDigest(msgspec.Struct, array_like=True):
    """One agent's proof."""

    name: str
    digest: int
    keys: int
    sequence: int
    in_sync: bool
    deletions: int


class Deletion(msgspec.Struct, array_like=True):
    """An object that some agent of the process saw deleted; when the first of them did."""

    key: str
    uid: str
    first_seen_ns: int


class Digests(msgspec.Struct, tag="digests", kw_only=True):
    """Every agent's digest, and all deletions seen since the start."""

    agents: list[AgentDigest]
    deletions: list[Deletion]
    deletions_lost: int


class Failed(msgspec.Struct, tag="failed"):
    """The worker cannot go on."""

    text: str


Report: TypeAlias = Stats | Digests | Failed

encode = msgspec.json.Encoder().encode
decode_command = msgspec.json.Decoder(Command).decode
decode_report = msgspec.json.Decoder(Report).decode
