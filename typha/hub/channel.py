"""A channel (feed and wire format) as the hub sees it: it encodes, appends to the log and keeps a snapshot current."""

from typing import NamedTuple, TypeAlias

from cache.feeds import feed, selection
from cache.state import files, log, snapshot
from protocol import encoding, formats, messages, subscriptions
from protocol.native import dictionary
from protocol.native import encoder as native_encoder
from typha import clock
from typha.hub import policy
from typha.ipc import messages as ipc

_monotonic = clock.monotonic


class Unwritten(NamedTuple):
    """A batch that the store has and the log lacks."""

    batch: "Batch"
    times: ipc.UpdateTimes
    """Of the oldest update."""


class LoggedDictionary(NamedTuple):
    """A dictionary whose frame ends at `offset` of the log: it holds from there on."""

    offset: int
    frame: bytes


ChannelKey: TypeAlias = tuple[str, str, subscriptions.Subscription | None]
"""Feed, wire format, and subscription; None for the whole feed."""
Source: TypeAlias = feed.Feed | selection.Selection
"""What a channel encodes: a feed, or the part of one that a subscription selects."""
Batch: TypeAlias = feed.Batch | selection.SelectedBatch


class HubChannel:
    """One log and its newest snapshot. It is opened once its feed has been in sync, so there is something to cut."""

    def __init__(
        self,
        number: int,
        source: Source,
        encoder: encoding.Encoder,
        limits: policy.HubPolicy,
        *,
        asker: str = "",
    ) -> None:
        self.number = number
        self.asker = asker
        """The address of the client that has brought its subscription."""
        self.feed = source
        self.encoder = encoder
        self._policy = limits
        self.log = log.LogWriter(segment_bytes=limits.segment_bytes, sequence=source.store.sequence)
        self._knows_contact = formats.replaces_by_snapshot(encoder.name)
        """The clients are those of the native protocol, and learn when the API server is lost."""
        self.status = self.status_now
        """The status that a client has been told once it has read the whole log."""
        self.unwritten: Unwritten | None = None
        """What could not be appended. Until it is, the log is behind the store, and nothing can be cut."""
        self.snapshot: snapshot.Snapshot | None = None
        self.dictionaries: list[LoggedDictionary] = []
        """Those that readers of the log and of the newest snapshot may need, in order."""
        self._dictionary_encoder = (
            encoder if isinstance(encoder, native_encoder.NativeEncoder) and encoder.takes_dictionary else None
        )
        self._next_dictionary: dictionary.Compression | None = None
        """It holds from the next batch on."""
        self._is_open = True
        self.building = False
        self.idle_since: float | None = None
        """Monotonic time since which no worker has had a client of it."""
        self.snapshots_built = 0
        self._begun_at = 0.0
        self._cut_at = 0.0
        self._build_seconds = 0.0
        self._begun_total = 0
        self._has_newcomers = False
        """A client has begun the newest snapshot."""

    def __repr__(self) -> str:
        return f"<HubChannel {self.number} {self.feed.name} {self.encoder.name} {self.log!r} {self.snapshot!r}>"

    @property
    def key(self) -> ChannelKey:
        """Feed, wire format and subscription."""
        return self.feed.name, self.encoder.name, self.subscription

    @property
    def subscription(self) -> subscriptions.Subscription | None:
        """What selects its part of the feed."""
        return self.feed.subscription if isinstance(self.feed, selection.Selection) else None

    def is_open(self) -> bool:
        """Whether the hub still has the channel."""
        return self._is_open

    @property
    def frames(self) -> int:
        """Frames in the log's last segment."""
        return self.log.segments[-1].frames if self.log.segments else 0

    @property
    def status_now(self) -> messages.SyncStatus:
        """The status that the channel's clients should have."""
        return self.feed.confirmed_status if self._knows_contact else self.feed.store.status

    def contact_change(self) -> feed.Batch | None:
        """A batch without updates that tells clients what has changed between the API server and us; None for nothing.

        Typha's clients are told nothing of it, as by the original.
        """
        if self.unwritten is not None or self.status is self.status_now:
            return None
        return feed.Batch(self.feed.store.sequence, [], self.status_now)

    @property
    def takes_dictionary(self) -> bool:
        """Whether the clients understand dictionaries."""
        return self._dictionary_encoder is not None

    def offer_dictionary(self, trained: dictionary.Compression) -> None:
        """Frames are compressed with this dictionary from the next batch on."""
        if self.takes_dictionary:
            self._next_dictionary = trained

    def append(self, batch: Batch, times: ipc.UpdateTimes = ipc.UNKNOWN_TIMES) -> list[log.Segment]:
        """Encodes a batch and appends it: updates, then the status if it is another one for the channel's clients.

        A dictionary that has been offered comes before it.

        Returns the segments that were begun for it.

        Raises:
            OSError, MemoryError: nothing of it is in the log; it is `unwritten` until it is appended again.
        """
        self.unwritten = Unwritten(batch, times)
        introduced = self._introduce_dictionary()
        if isinstance(batch, selection.SelectedBatch):
            sequence = batch.sequence
            frames = self.encoder.selected(batch.previous_sequence, sequence, batch.parts)
        else:
            sequence = batch.previous_sequence + len(batch.updates)
            frames = self.encoder.updates(batch.previous_sequence, batch.updates) if batch.updates else []
        status = self.status if batch.status is None else self.status_now
        if status is not self.status:
            frames.append(self.encoder.status(sequence, status))
        begin = self.log.end
        segments = self.log.append([*introduced, *frames])
        if introduced:
            self._next_dictionary = None
            self._note_dictionary(LoggedDictionary(begin + len(introduced[0].data), introduced[0].data))
        self.status = status
        self.unwritten = None
        return segments

    def _introduce_dictionary(self) -> list[encoding.EncodedFrame]:
        if self._dictionary_encoder is None or self._next_dictionary is None:
            return []
        return [self._dictionary_encoder.use_dictionary(self._next_dictionary, self.log.sequence)]

    def _note_dictionary(self, logged: LoggedDictionary) -> None:
        """The log holds another dictionary; those that ended to hold before the log begins are forgotten."""
        self.dictionaries.append(logged)
        while len(self.dictionaries) > 1 and self.dictionaries[1].offset <= self.log.start:
            del self.dictionaries[0]

    def wants_snapshot(self) -> bool:
        """Whether it is time for a new snapshot."""
        limits = self._policy
        if self.building:
            return False
        if self.snapshot is None:
            return True
        if self.snapshot.log_offset < self.log.status_offset:
            return True  # newcomers must not meet a status of the past on their way to the present
        share = limits.snapshot_log_share if self._has_newcomers else limits.unread_snapshot_log_share
        share_bytes = max(limits.snapshot_log_bytes_min, int(self.snapshot.length * share))
        return self.log.end - self.snapshot.log_offset > min(share_bytes, limits.log_budget_bytes // 4)

    def note_newcomers(self, begun_total: int) -> None:
        """How many clients of all workers have begun a snapshot of it; a change means that there are newcomers."""
        if begun_total != self._begun_total:
            self._begun_total = begun_total
            self._has_newcomers = True

    def is_fresh(self, now: float) -> bool:
        """Whether newcomers must do with the newest snapshot, because it is young or another one costs too much."""
        limits = self._policy
        fresh_seconds = max(limits.snapshot_fresh_seconds, self._build_seconds / limits.rebuild_share_max)
        return self.snapshot is not None and now - self._cut_at < fresh_seconds

    def begin_snapshot(self) -> snapshot.SnapshotBuilder:
        """Cuts the store now. Call between two batches, run the builder's steps, then `end_snapshot`.

        Raises:
            OSError, MemoryError: there is no file or memory for it.
        """
        source = self.feed
        builder = snapshot.begin(
            self.encoder,
            source.store,
            log_offset=self.log.end,
            previous=self.snapshot,
            by_node=source.sections if isinstance(source, selection.Selection) and source.is_by_node else None,
        )
        builder.snapshot.status = self.status
        self.building = True
        self._begun_at = _monotonic()
        return builder

    def end_snapshot(self, built: snapshot.Snapshot) -> None:
        """The new snapshot replaces the last one."""
        self.building = False
        self._cut_at = self._begun_at
        self._build_seconds = _monotonic() - self._begun_at
        self.snapshots_built += 1
        self._has_newcomers = False
        if self.snapshot is not None:
            self.snapshot.close()
        self.snapshot = built

    @property
    def snapshot_file(self) -> files.SnapshotFile | None:
        """The newest snapshot as workers know it."""
        built = self.snapshot
        if built is None:
            return None
        return files.SnapshotFile(
            built.descriptor,
            length=built.length,
            log_offset=built.log_offset,
            sequence=built.sequence,
            status=built.status,
            keys=built.keys,
            chunks=0 if built.common else len(built.chunks),
            common=built.common,
        )

    def trim_limit(self, before_offset: int) -> int:
        """How much of the log may go: never what follows the newest snapshot."""
        return min(before_offset, self.snapshot.log_offset if self.snapshot else self.log.start)

    def close(self) -> None:
        """Lets go of all files."""
        self._is_open = False
        self.log.close()
        if self.snapshot is not None:
            self.snapshot.close()
