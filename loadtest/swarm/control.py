"""The messages between a supervisor and its worker processes: one JSON object a line, over pipes."""

import dataclasses
import enum
import os
import sys
from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

from loadtest.swarm import histogram

WORKER_MODULE: Final = "loadtest.swarm.worker"
PUBLIC_MODULE: Final = "loadtest.swarm.public"
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""The digests and deletions of a process are one line."""
REPORT_INTERVAL_SECONDS: Final = 0.5


class Protocol(enum.Enum):
    """The protocol of an agent."""

    NATIVE = "native"
    TYPHA = "typha"


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files of an agent with a client certificate."""

    authority: str
    """Authority that has signed the service's certificate."""
    certificate: str
    key: str


class Agents(msgspec.Struct, frozen=True, kw_only=True):
    """Agents and how they connect: all of a swarm, or those of one process."""

    feed: str
    agents: int
    agents_at_first: int | None = None
    """Number of agents that connect at the start, the others with the first Reconnect; None for all."""
    ramp_per_second: float = 1000.0
    """New connections a second."""
    compressed: bool = True
    """With zstd, or with snappy in Typha's protocol."""
    tls: TlsFiles | None = None
    small_buffers: int = 0
    """Number of agents, the last ones, that have a small receive buffer."""
    small_buffer_bytes: int = 1
    """SO_RCVBUF of those; 1 gives the smallest possible buffer, through which a snapshot of megabytes takes minutes."""
    background: bool = False
    """Agents with small buffers, and one more of each protocol, run in background processes. These run only on idle
    CPUs, and all their agents count as impaired. In a cluster such agents have hosts of their own: what they do with a
    backlog takes no CPU from the service and other agents."""
    seed: int = 0


class Start(Agents, tag="start", frozen=True, kw_only=True):
    """Connect agents `first_index` .. `first_index + agents - 1`. The first message, sent once."""

    addresses: list[tuple[str, int]]
    first_index: int = 0
    protocol: Protocol = Protocol.NATIVE


class Impair(msgspec.Struct, tag="impair", kw_only=True):
    """The last `agents` agents read at most this many bytes a second (0: nothing) for a while."""

    agents: int
    bytes_per_second: int
    seconds: float


class Reconnect(msgspec.Struct, tag="reconnect"):
    """Every agent drops its connection and connects again, at the ramp's rate (0: all at once)."""

    ramp_per_second: float = 0.0


class Addresses(msgspec.Struct, tag="addresses"):
    """From now on agents connect to one of these at random. Connections that exist stay."""

    addresses: list[tuple[str, int]]


class SetMovedApart(msgspec.Struct, tag="set-moved-apart"):
    """All agents count as behaving again. From now on one that loses its connection counts as impaired."""


class Capture(msgspec.Struct, tag="capture"):
    """Remember the present map of every agent."""


class AskDigests(msgspec.Struct, tag="ask-digests", kw_only=True):
    """Answer with Digests, of the present maps or of the captured ones."""

    captured: bool = False
    without: list[str] = msgspec.field(default_factory=list)
    """Keys left out of digests and counts."""


class AskPaths(msgspec.Struct, tag="ask-paths"):
    """Answer with Paths."""


Command: TypeAlias = Start | Impair | Reconnect | Addresses | SetMovedApart | Capture | AskDigests | AskPaths


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Group:
    """Counters of the behaving or of the impaired agents of a process, since its start if nothing else is said.

    An agent that was impaired once stays in the group of the impaired. A class with slots, because agents count in it
    for every update.
    """

    bytes: int = 0
    frames: int = 0
    updates: int = 0
    deletions: int = 0
    snapshots: int = 0
    goodbyes: dict[str, int] = dataclasses.field(default_factory=dict)
    silence_ns: int = 0
    """The longest time since the last report in which the network brought nothing to a connection. It counts from the
    first byte that the agent sent, and includes silences that still last."""
    read_gap_ns: int = 0
    """The longest time since the last report between two reads of a connection; includes delays of the process."""
    latency: histogram.Histogram = dataclasses.field(default_factory=histogram.Histogram)
    """Since the last report: from the writer's mark to the return of the read, for updates written while in sync."""
    in_sync_after: histogram.Histogram = dataclasses.field(default_factory=histogram.Histogram)
    """Since the last report: from the connect to the first in-sync status."""
    back_after: histogram.Histogram = dataclasses.field(default_factory=histogram.Histogram)
    """Since the last report: from the loss of a connection that was in sync to the next in-sync status."""

    def reported(self) -> None:
        """Start the figures again that are since the last report."""
        self.silence_ns = self.read_gap_ns = 0
        for one in (self.latency, self.in_sync_after, self.back_after):
            one.clear()


class Stats(msgspec.Struct, tag="stats", kw_only=True):
    """The report of a process, every half second."""

    at_ns: int
    agents: int
    connected: int
    """Agents with a server-hello."""
    in_sync: int
    told_stale: int = 0
    """Connected agents that were told on this connection that the data is not confirmed: waiting or resync."""
    connects: int
    disconnects: dict[str, int]
    """By what the agent saw: eof, goodbye, protocol-error, or the name of an errno."""
    unserved: dict[str, int] = msgspec.field(default_factory=dict)
    """Of those, and of failed connects: connections that ended before they were in sync."""
    lost: int = 0
    """Of those: connections that had been in sync."""
    protocol_errors: list[str]
    """The first few, in words."""
    behaving: Group
    impaired: Group = msgspec.field(default_factory=Group)
    slowest_lag_seconds: float = 0.0
    """Of the connected, behaving agents: age of the first update that the slowest one lacks and another one has."""
    impaired_lag_seconds: float = 0.0
    """The same of the impaired agents."""
    distinct_states: int = 0
    distinct_frames: int = 0
    cpu_seconds: float


class AgentDigest(msgspec.Struct, array_like=True):
    """The proof of one agent."""

    name: str
    digest: int
    keys: int
    sequence: int
    in_sync: bool
    deletions: int


class Deletion(msgspec.Struct, array_like=True):
    """An object that an agent of the process saw deleted, and when the first agent did."""

    key: str
    uid: str
    first_seen_ns: int


class Digests(msgspec.Struct, tag="digests", kw_only=True):
    """The digest of every agent, and all deletions seen since the start."""

    agents: list[AgentDigest]
    deletions: list[Deletion]
    deletions_lost: int = 0


class Visit(msgspec.Struct, array_like=True):
    """One connection of an agent, or one try. Times are nanoseconds since 1970; 0 means never."""

    address: tuple[str, int]
    waited_ns: int
    """How long the agent waited before it, on purpose: its back-off, or what a goodbye asked for."""
    connected_ns: int = 0
    """The server's hello arrived."""
    in_sync_ns: int = 0
    ended_ns: int = 0
    end: str = ""
    """What the agent saw: eof, goodbye with its reason, or the name of an errno."""


class AgentPath(msgspec.Struct, array_like=True):
    """The connections of one agent, the oldest first."""

    name: str
    visits: list[Visit]
    left_out: int = 0
    """Later ones that were not recorded."""


class Paths(msgspec.Struct, tag="paths"):
    """The paths of all agents of a process."""

    agents: list[AgentPath]


class Failed(msgspec.Struct, tag="failed"):
    """The process cannot go on."""

    text: str


Report: TypeAlias = Stats | Digests | Paths | Failed

encode = msgspec.json.Encoder(enc_hook=histogram.Histogram.sparse).encode
decode_command = msgspec.json.Decoder(Command).decode
decode_report = msgspec.json.Decoder(Report, dec_hook=lambda kind, sparse: kind(sparse)).decode


def deletions_of(first_seen: Mapping[tuple[str, str], int]) -> list[Deletion]:
    """Deletions from (key, uid) -> when the first agent saw it."""
    return [Deletion(key, uid, first) for (key, uid), first in first_seen.items()]


def out_of_place(command: Command) -> Failed:
    """The report of a process that cannot obey a command at this point."""
    return Failed(text=f"{type(command).__name__} out of place")


def write_report(report: Report) -> None:
    """Write a report to standard output as a whole. Ends the process if the supervisor is gone."""
    view = memoryview(encode(report) + b"\n")
    try:
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]
    except BrokenPipeError:
        sys.exit("the supervisor is gone")
