"""Every message between the hub and a worker. Both ends are started from the same release, so there are no versions.

| message | to | sent | promise |
| --- | --- | --- | --- |
| `ShareCounter` | worker | first; with 1 descriptor | the worker counts finished `Publish` messages there |
| `OpenChannel` | worker | when a channel is opened, and to a new worker | precedes all else about the channel |
| `RefuseChannel` | worker | in answer to `WantChannel` | there are too many subscriptions; its clients connect again |
| `AddSegment` | worker | before the first `Publish` into it; with 2 descriptors | the file does not move or shrink |
| `NoteStatus` | worker | before the `Publish` that makes it visible | never coalesced: a worker knows every status |
| `NoteDictionary` | worker | before the `Publish` that makes it visible | never coalesced: newcomers need it |
| `Publish` | worker | after a commit; ends are coalesced while the link is full | all before the end is readable |
| `OfferSnapshot` | worker | when a snapshot is built; with 1 descriptor | replaces the channel's previous one |
| `SendBlock` | worker | in answer to `WantBlock`; with 1 descriptor | all of the log up to its cut is published |
| `RefuseBlock` | worker | in answer to `WantBlock` | the worker closes the client or sends a snapshot |
| `TrimLog` | worker | when the hub frees segments | the worker lets go of them at once |
| `CloseChannel` | worker | when a channel had no clients for a while | nothing follows about the channel |
| `WithdrawFeeds` | worker | once it is decided that feeds do not come | their clients are refused from then on |
| `LimitConnections` | worker | four times a second among several workers | above the limit the worker accepts none |
| `NoteConfirmed` | worker | when a feed is confirmed again, or no more; other upstreams | replaces the last one |
| `HandOver` | worker | when only other replicas are fresh | clients leave over a time; others may come |
| `KeepClients` | worker | when that is over | the clients that are left stay |
| `AwaitApplied` | worker | after a `Publish`, for one change at a time | the answer is in a `ReportApplied` |
| `SendAway` | worker | while other replicas have room | the worker asks so many clients to go, if it can |
| `ControlLog` | worker | when an operator asks for it by a signal to the hub | the worker's log does as the hub's |
| `ListClients` | worker | when an operator asks who is connected, once a second at most | replaces an unanswered one |
| `Describe` | worker | when an operator makes an archive for support | replaces an unanswered one |
| `Drain` | worker | once, at the end | the worker closes its clients and ends |
| `Ready` | hub | first | the worker serves |
| `WantChannel` | hub | when a client asks for a channel that is not open | the hub opens it once its feed is in sync |
| `WantSnapshot` | hub | when newcomers need a newer snapshot | the hub answers with `OfferSnapshot` |
| `WantBlock` | hub | when clients have fallen out of the log | the hub answers with a block or refuses |
| `Report` | hub | every second | the worker is alive; numbers are totals |
| `ReportHistograms` | hub | after a `Report`, one for each feed | apart, because together they may exceed a datagram |
| `ReportApplied` | hub | after a `Report`, for each feed with clients that report positions | counts as of now |
| `ReportRecent` | hub | after a `Report`, if there is something | all deliveries since the last one, the newest ends |
| `ClientSlice` | hub | in answer to `ListClients`, one slice after another | each client that stays is in one slice |
| `DescriptionPart` | hub | in answer to `Describe`, one part after another | no secrets |

Descriptors travel beside the message in the order named here, and become the receiver's.

A worker faces the network, so the hub takes nothing from it that could harm another part of the service: the types
below are checked for every message, and descriptors beside one are refused.
"""

import math
import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from cache.state import cursor, files
from protocol import formats, messages, reasons, subscriptions
from typha.observability import buckets, quantiles

ENDS_REPORTED_MAX = 50
"""Ends that a worker reports each second: more than anybody reads. The totals count all of them."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""Sums of these have a few bits more at most."""
Connections: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
WireFormat: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(map(re.escape, formats.NAMES))})\Z")]
TEXT_CHARS_MAX = 253
"""What a client says of itself is cut to this. The longest name of a Kubernetes node has as many characters."""
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
SLICE_BYTES = 8 * 1024
"""A slice of the client list has about this many bytes, some 60 clients. Making it takes half a millisecond."""
SLICE_SECONDS = 0.01
"""Between two slices, and between two parts of a description. With the longest texts, a worker that answers both
questions sends 3.3 MB a second: less than what makes it a flood (`hub.worker_link.BYTES_PER_SECOND_MAX`)."""
LIST_SECONDS_MAX = 5.0
"""A list that takes longer is not finished: nobody waits for it any more."""
HistogramName: TypeAlias = Literal[
    "typha_ping_latency",
    "typha_client_snapshot_send_secs",
    "typha_client_latency_secs",
    "typha_client_write_latency_secs",
    "typha_next_breadcrumb_latency_secs",
    "typha_kvs_per_msg",
]
"""The histograms of a feed, by the names of their metrics."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is started with, as JSON on its standard input."""

    number: int
    feeds: tuple[str, ...]
    """The feeds that clients may ask for."""
    incarnation: str
    """32 hexadecimal digits."""
    settings: dict[str, Any]
    """As `typha.settings.to_dict` gives them, but only those that a worker uses."""


class _Message(msgspec.Struct, tag=True, array_like=True, forbid_unknown_fields=True):
    """Travels as an array: the class's name, then the fields in order."""


class ShareCounter(_Message):
    """The descriptor beside it is an `ipc.shared_counters.SharedCounter`."""


class OpenChannel(_Message):
    """A channel and where its log begins: offset, and the sequence that a client has reached there."""

    channel: int
    feed: str
    wire_format: str
    start: int
    start_sequence: int
    start_updates: int = 0
    """Number of updates in the log before its beginning."""
    subscription: subscriptions.Subscription | None = None
    """What part of the feed it has; None for all of it."""
    asker: Text = ""
    """The address of the client that has brought the subscription, without its port; of IPv6, its network."""


class RefuseChannel(_Message):
    """The channel is not opened."""

    feed: str
    wire_format: str
    subscription: subscriptions.Subscription | None = None


class AddSegment(_Message):
    """The log goes on in another file, from offset `base`. Descriptors: the segment's and its index's."""

    channel: int
    base: int
    size_bytes: int


class NoteStatus(_Message):
    """The frame of the log that ends at `offset` carries this status."""

    channel: int
    offset: int
    status: messages.SyncStatus


class NoteDictionary(_Message):
    """The frame of the log that ends at `offset` is this one, with a dictionary for the frames after it."""

    channel: int
    offset: int
    frame: bytes


class UpdateTimes(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """When an update came, and when it was written, both by the monotonic clock."""

    received_at: float
    written_at: float = 0.0
    """As far as the object tells, and by the API server's clock; 0.0 if it is unknown."""


UNKNOWN_TIMES = UpdateTimes(0.0)


class LogEnd(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """The newest end of one channel's log."""

    channel: int
    end: int
    frames: int
    """Frames in the last segment."""
    times: "UpdateTimes"
    """Of the oldest update that is new."""


class Publish(_Message):
    """Logs have grown."""

    ends: list[LogEnd]


class OfferSnapshot(_Message):
    """Newcomers get this snapshot. Descriptor: its file."""

    channel: int
    snapshot: files.SnapshotFile


class SendBlock(_Message):
    """The block that was asked for. Descriptor: its file."""

    channel: int
    block: files.BlockFile


class RefuseBlock(_Message):
    """There is no block that begins there."""

    channel: int
    from_sequence: int


class TrimLog(_Message):
    """The log before this offset goes."""

    channel: int
    before_offset: int


class CloseChannel(_Message):
    """The channel is gone; a client that came meanwhile is to connect again."""

    channel: int


class WithdrawFeeds(_Message):
    """These feeds were expected and do not come."""

    feeds: list[str]


class LimitConnections(_Message):
    """The worker's share of all connections."""

    connections: int


class NoteConfirmed(_Message):
    """When the API server last confirmed each feed, by the monotonic clock. A feed that is not named is stale, or not
    complete."""

    confirmed_at: dict[str, float]
    upstreams: list[bytes] | None = None
    """See `protocol.messages.ServerHello`."""


class HandOver(_Message):
    """Say goodbye to the clients that are connected now, over `seconds`. The worker goes on serving."""

    seconds: float
    servers: list[str]
    """The replicas that are fresh, for clients whose goodbye can name them."""


class KeepClients(_Message):
    """What is left of `HandOver` is called off."""


class AwaitApplied(_Message):
    """When have all clients of the feed that report positions, and are connected now, applied this sequence?

    Replaces what was asked before.
    """

    feed: str
    sequence: int


class SendAway(_Message):
    """Other replicas have room: so many clients are to go, those that are cheapest to move."""

    clients: int


class ControlLog(_Message):
    """What signals ask of the log: the level debug or that of the settings (None for no change), the file opened again,
    a diagnosis."""

    debug: bool | None = None
    reopen: bool = False
    diagnose: bool = False


class ListClients(_Message):
    """Which clients are connected? The answer has the same number."""

    request: int


class Describe(_Message):
    """Where do your tasks and threads stand, and what have you logged? The answer has the same number."""

    request: int


class Drain(_Message):
    """Say goodbye to all clients within `seconds`. Those of all workers together are at most `interval_seconds_max`
    apart."""

    seconds: float
    interval_seconds_max: float
    others: int = 0
    """Connections of the other workers."""
    sent_at: float = math.inf
    """By the monotonic clock. A worker that is late, because it is busy, has less time."""
    phase: float = 0.0
    """Part of an interval, below 1, by which this worker is earlier than the first one: workers take turns."""


class Ready(_Message):
    """The worker serves."""


class WantChannel(_Message):
    """A client has asked for a channel that the worker does not know."""

    feed: str
    wire_format: WireFormat
    subscription: subscriptions.Subscription | None = None
    asker: Text = ""
    """The client's address, as in `OpenChannel`."""


SNAPSHOT_FRESH_SECONDS = 1.0
"""How old a snapshot may be for newcomers of a format in key order, the original's number. Newcomers must not be led
through the past: Felix keeps an old order of policies that changed, or came and went, before it was in sync."""


class WantSnapshot(_Message):
    """The channel's newcomers wait for a newer snapshot, because the newest is older than `SNAPSHOT_FRESH_SECONDS`."""

    channel: Count


class WantBlock(_Message):
    """Clients need what changed after `from_sequence`, by a block whose cut is `needed_sequence` or later."""

    channel: Count
    from_sequence: Count
    needed_sequence: Count


class FeedCounts(msgspec.Struct, forbid_unknown_fields=True):
    """Totals of one feed over all wire formats since the worker's start. A worker counts in the same record."""

    deliveries: Count = 0
    """Updates times clients, snapshots left out."""
    bytes_sent: Count = 0
    sends: Count = 0
    """Writes to clients that had been sent everything before."""
    late_sends: Count = 0
    """Writes to clients that were behind in the log."""
    snapshots_sent: Count = 0
    """Whole ones and those in part."""
    resumed: Count = 0
    """Clients that went on from their position, without a snapshot."""
    snapshots_in_part: Count = 0
    """Snapshots of which clients had some chunks, and were sent the others."""
    subscriptions_declined: Count = 0
    """Hellos whose subscription was one too many."""
    propagation: buckets.BucketCounts = msgspec.field(default_factory=buckets.BucketCounts)
    """Seconds from the receipt of an update to its write to a client."""
    propagation_from_write: buckets.BucketCounts = msgspec.field(default_factory=buckets.BucketCounts)
    """Seconds from the write of an object to that to a client, where the object tells when it was written."""

    def add(self, other: "FeedCounts") -> None:
        """Adds another worker's totals."""
        self.deliveries += other.deliveries
        self.bytes_sent += other.bytes_sent
        self.sends += other.sends
        self.late_sends += other.late_sends
        self.snapshots_sent += other.snapshots_sent
        self.resumed += other.resumed
        self.snapshots_in_part += other.snapshots_in_part
        self.subscriptions_declined += other.subscriptions_declined
        self.propagation.add(other.propagation)
        self.propagation_from_write.add(other.propagation_from_write)

    @property
    def is_sane(self) -> bool:
        """Whether the histograms have the right buckets."""
        return self.propagation.is_of(buckets.PROPAGATION_BOUNDS) and self.propagation_from_write.is_of(
            buckets.WRITE_BOUNDS
        )


class WorkerCounts(msgspec.Struct, forbid_unknown_fields=True):
    """Totals since the worker's start. A worker counts in the same record."""

    accepted: Count = 0
    catch_ups: Count = 0
    tls_reload_failures: Count = 0
    shortages: Count = 0
    """Messages of the hub that had to wait, because the worker lacked descriptors or memory."""
    log_errors: Count = 0
    """Log lines that the worker's process could not write."""
    log_lines_dropped: Count = 0
    disconnects: dict[reasons.DisconnectReason, Count] = {}
    feeds: dict[str, FeedCounts] = {}

    def add(self, other: "WorkerCounts") -> None:
        """Adds another worker's totals."""
        self.accepted += other.accepted
        self.catch_ups += other.catch_ups
        self.tls_reload_failures += other.tls_reload_failures
        self.shortages += other.shortages
        self.log_errors += other.log_errors
        self.log_lines_dropped += other.log_lines_dropped
        for reason, count in other.disconnects.items():
            self.disconnects[reason] = self.disconnects.get(reason, 0) + count
        for feed, counts in other.feeds.items():
            self.feeds.setdefault(feed, FeedCounts()).add(counts)


class ChannelReport(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One channel's clients, and what of its history they need."""

    clients: Connections = 0
    held: Connections = 0
    """Clients that wait for a snapshot."""
    snapshots_begun: Count = 0
    """Since the worker's start."""
    min_offset: Count = 0
    """The lowest offset of the log that a client or snapshot needs."""
    lag_bytes: Count = 0
    """Of the slowest client, while it catches up those of the log since it was in it."""
    lag_seconds: Seconds = 0.0
    """Of the slowest client."""
    catching_up: Connections = 0
    min_sequence: Count = 0
    """The lowest sequence from which a client may have to be caught up."""


class Report(_Message):
    """What a worker tells every second."""

    counts: WorkerCounts
    active: Connections = 0
    """Open connections that are not closing."""
    closing: Connections = 0
    """Refused connections, and those told goodbye, that are still open."""
    longest_turn_seconds: Seconds = 0.0
    """Of the last minute."""
    longest_turn_seconds_ever: Seconds = 0.0
    channels: Annotated[dict[int, ChannelReport], msgspec.Meta(max_length=4096)] = {}


class ReportHistograms(_Message):
    """One feed's histograms by metric name, each as `observability.quantiles.Histogram.to_list` gives it."""

    feed: str
    histograms: dict[HistogramName, Annotated[list[Count], msgspec.Meta(max_length=quantiles.LIST_LENGTH_MAX)]]


class ReportApplied(_Message):
    """What the clients of one feed that report positions have applied."""

    feed: str
    reporting: Connections
    """Clients that report positions."""
    applied: Connections
    """Those of them that have applied everything up to now, a moment for the report left aside."""
    lowest: Count
    """The lowest sequence up to which one of them has applied everything; a very large one if nothing is left."""
    reached: Count = 0
    """The sequence of the last `AwaitApplied` that is settled."""
    reached_at: Seconds = 0.0
    """When the last of the clients had applied it, by the monotonic clock; 0.0 if there was nobody to wait for."""


class End(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """A connection that has ended. Node and address are the peer's own words."""

    at: Seconds
    """By the monotonic clock."""
    node: Text
    address: Text
    feed: Text
    """Empty before the hello."""
    reason: reasons.DisconnectReason
    age_seconds: Seconds


class ReportRecent(_Message):
    """What has happened since the last one."""

    latency: Annotated[list[Count], msgspec.Meta(max_length=quantiles.LIST_LENGTH_MAX)]
    """Of deliveries over all feeds, as `observability.quantiles.Histogram.to_list` gives it."""
    ends: Annotated[list[End], msgspec.Meta(max_length=ENDS_REPORTED_MAX)]
    """The newest, oldest first."""


class ConnectedClient(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """One connection of a worker, as of now."""

    number: Count
    """Of the connection; unique in the service."""
    address: Text
    node: Text
    """What the client calls its host. For a native client: what it calls itself."""
    version: Text
    info: Text
    tls_name: Text
    """The common name of the client's certificate, or else its first URI."""
    release: Text
    """The release of Calico whose data a Felix agent gets."""
    feed: Text
    wire_format: Text
    state: cursor.CursorState
    lag_bytes: Count
    """Bytes of the log after its position. Of a client that does not read: since it was last seen to."""
    lag_seconds: Seconds
    """For how long it has not had what was published."""
    sequence: Count
    """Everything up to it has been written to the client's socket. 0 before the end of its snapshot."""
    bytes_sent: Count
    """By the kernel's count, with TLS and without what was sent again."""
    age_seconds: Seconds
    applied: Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)] = -1
    """The sequence that the client says it has applied; -1 for a client that does not report positions."""
    subscription: Text = ""
    """In short; empty for the whole feed."""


class ClientSlice(_Message):
    """A part of the answer to `ListClients`."""

    request: Count
    clients: Annotated[list[ConnectedClient], msgspec.Meta(max_length=1000)]
    is_last: bool


DESCRIPTION_CHARS = 4 * 1024
"""Of one part, which has up to four bytes for each."""
DESCRIPTION_PARTS_MAX = 128


class DescriptionPart(_Message):
    """A part of the answer to `Describe`."""

    request: Count
    pid: Count
    text: Annotated[str, msgspec.Meta(max_length=DESCRIPTION_CHARS)]
    is_last: bool


ToWorker: TypeAlias = (
    ShareCounter
    | OpenChannel
    | RefuseChannel
    | AddSegment
    | NoteStatus
    | NoteDictionary
    | Publish
    | OfferSnapshot
    | SendBlock
    | RefuseBlock
    | TrimLog
    | CloseChannel
    | WithdrawFeeds
    | LimitConnections
    | NoteConfirmed
    | HandOver
    | KeepClients
    | AwaitApplied
    | SendAway
    | ControlLog
    | ListClients
    | Describe
    | Drain
)
ToHub: TypeAlias = (
    Ready
    | WantChannel
    | WantSnapshot
    | WantBlock
    | Report
    | ReportHistograms
    | ReportApplied
    | ReportRecent
    | ClientSlice
    | DescriptionPart
)

FOR_WORKER: "msgspec.msgpack.Decoder[ToWorker]" = msgspec.msgpack.Decoder(ToWorker)
FOR_HUB: "msgspec.msgpack.Decoder[ToHub]" = msgspec.msgpack.Decoder(ToHub)
