"""A channel (feed and wire format) as a worker sees it: log, newest snapshot, and the clients that read them."""

import bisect
from collections import deque
from collections.abc import Iterator

import structlog

from cache.state import cursor, files, log, resume
from protocol import digest, encoding, formats, messages, subscriptions
from protocol.native import encoder as native_encoder
from protocol.typha import messages as typha_messages
from typha import clock
from typha.ipc import link, selections
from typha.ipc import messages as ipc
from typha.worker import client, convergence, live_set, policy, protocol_adapters

_log = structlog.get_logger("typha.channel")
_monotonic = clock.monotonic

_NOTE_SECONDS = 60.0
"""How often it is logged that there are too many subscriptions: a fleet of 5,000 may ask at once."""
_COARSE_SECONDS = 1.0
_PUBLISH_TIMES = 1024
"""How many publish times are kept, to tell how many seconds a lagging client is behind."""
_ENCODERS = {name: formats.make_encoder(name) for name in formats.NAMES}


class WorkerChannel:
    """The worker's end of a channel. A client of it is in one of `live`, `held` and `away`."""

    def __init__(
        self,
        feed: str,
        encoder: encoding.Encoder,
        hub: link.Sender,
        limits: policy.Policy,
        subscription: subscriptions.Subscription | None = None,
        *,
        asker: str = "",
    ) -> None:
        self._hub = hub
        self.asker = asker
        """The address of the client that has brought the subscription; of the hub's word once it is open."""
        self._policy = limits
        self.number = -1
        """The hub's number for it; -1 until the hub has opened it, and there is something to serve."""
        self.feed = feed
        self.subscription = subscription
        """What part of the feed it has; None for all of it."""
        self.is_by_node = subscription is not None and bool(subscription.own_node)
        """Whether frames may be for the clients of one node."""
        self.wire_format = encoder.name
        self._encoder = encoder
        self.log = log.LogReader()
        self.snapshot: files.SnapshotFile | None = None
        self._snapshot_at = 0.0
        self._awaits_newer = False
        """The hub has been asked for a newer snapshot; no client begins the old one."""
        self.live = live_set.LiveSet()
        """Clients that have been sent everything, or are about to be by a pass."""
        self.held: dict[client.Client, None] = {}
        """Clients that wait for a snapshot, in order of arrival."""
        self.away: set[client.Client] = set()
        """Clients that are in a snapshot, behind in the log, or catching up."""
        self.flush_index = 0
        """Where an interrupted pass over `live` goes on."""
        self.run: tuple[int, int] | None = None
        """Where frames are for the clients of some node: the run that the pass is sending, its end and tag."""
        self.rescan = False
        """A client before `flush_index` may not be at the log's end: one that the pass had not reached moved there, or
        one was sent no more than its segment of the log had."""
        self.status_offset = 0
        """End of the last status in the log."""
        self.snapshots_begun = 0
        """By how many clients since the worker's start."""
        self._statuses: deque[tuple[int, messages.SyncStatus]] = deque()
        """The statuses in the log as far as it is kept, and the last one before: (end offset, status)."""
        self._dictionaries: deque[tuple[int, bytes]] = deque()
        """The dictionaries in the log, and the last one before: (end offset, frame)."""
        self._greeting = client.StatusNotice(-1, 0, messages.SyncStatus.WAITING, memoryview(b""))
        self._status_frame: tuple[int, messages.SyncStatus, bytes] = (-1, messages.SyncStatus.WAITING, b"")
        self._ping: tuple[int, bytes] = (-1, b"")
        self._before: tuple[int, int] = (-1, 0)
        """The last answer of `sequence_before`: most clients wait for the same frame."""
        self.trim_offset = 0
        """Offset before which the hub frees the log."""
        self._published_to = 0
        """End of the log at the last publish."""
        self._publish_ends: deque[int] = deque(maxlen=_PUBLISH_TIMES)
        self._publish_times: deque[ipc.UpdateTimes] = deque(maxlen=_PUBLISH_TIMES)
        self._coarse_ends: deque[int] = deque(maxlen=_PUBLISH_TIMES)
        """One publish a second, for clients that are further behind."""
        self._coarse_times: deque[ipc.UpdateTimes] = deque(maxlen=_PUBLISH_TIMES)
        self._old_snapshots: list[files.SnapshotFile] = []
        self._resumptions: dict[client.Client, protocol_adapters.Resumption] = {}
        """What clients have that have not been sent anything yet."""
        self._digests = 0
        """How many of chunks are kept for that."""

    def __repr__(self) -> str:
        return f"<WorkerChannel {self.feed} {self.wire_format} {self.log!r} live={len(self.live)}>"

    def open(self, number: int, *, start: int, start_sequence: int, start_updates: int = 0) -> None:
        """The hub has opened the channel; its log begins here."""
        self.number = number
        self.log = log.LogReader(start=start, start_sequence=start_sequence, start_updates=start_updates)
        self.live.floor = start if self.is_by_node else 0
        self._published_to = start

    @property
    def newest_sequence(self) -> int:
        """The newest sequence that a client can have reached; 0 before there is something to serve.

        A snapshot may be offered a moment before the log up to it is published.
        """
        logged = self.log.sequence_at(self.log.end)
        return logged if self.snapshot is None else max(logged, self.snapshot.sequence)

    def progress_of(self, reader: client.Client) -> convergence.Progress | None:
        """How far a client that says what it has applied is; None where its own word is all."""
        return None if self.subscription is None else _Progress(self, reader)

    def all_clients(self) -> list[client.Client]:
        """All clients of it."""
        return [*self.live, *self.held, *self.away]

    def publish(self, end: int, frames: int, times: ipc.UpdateTimes) -> None:
        """The log has grown; `times` are those of the oldest update."""
        self.log.publish(end, frames)
        self._published_to = self.log.end
        self._publish_ends.append(self.log.end)
        self._publish_times.append(times)
        if not self._coarse_times or times.received_at - self._coarse_times[-1].received_at >= _COARSE_SECONDS:
            self._coarse_ends.append(self.log.end)
            self._coarse_times.append(times)

    @property
    def is_between_batches(self) -> bool:
        """Whether a client at the end of the log has a whole map. Of a selection, frames of a batch are no such places.

        A new segment makes the one before it readable up to its end, which may be inside a batch.
        """
        return self.last_batch_end == self.log.end

    @property
    def last_batch_end(self) -> int:
        """The last place in the log at which a batch has ended, for a selection; the end of the log otherwise."""
        return self.log.end if self.subscription is None else min(self._published_to, self.log.end)

    def times_of(self, offset: int) -> ipc.UpdateTimes | None:
        """The times of the first update after `offset`; None at the end of the log."""
        if offset >= self.log.end or not self._publish_ends:
            return None
        place = bisect.bisect_right(self._publish_ends, offset)
        if place == 0:  # published by the oldest of them, or before
            coarse_place = bisect.bisect_right(self._coarse_ends, offset)
            if coarse_place < len(self._coarse_times):
                oldest, coarse = self._publish_times[0], self._coarse_times[coarse_place]
                return coarse if coarse.received_at < oldest.received_at else oldest
        return self._publish_times[min(place, len(self._publish_times) - 1)]

    def age_of(self, offset: int, now: float) -> float:
        """Seconds since the first update after `offset` came; 0.0 at the end of the log."""
        times = self.times_of(offset)
        return 0.0 if times is None else now - times.received_at

    def lag_of(self, times: ipc.UpdateTimes) -> float:
        """Seconds between an update and the newest one that is published."""
        return self._publish_times[-1].received_at - times.received_at if self._publish_times else 0.0

    def publishes_between(self, begin: int, end: int) -> int:
        """How many publishes end in this part of the log, its end included; those of long ago are not known."""
        ends = self._publish_ends
        return bisect.bisect_right(ends, end) - bisect.bisect_right(ends, begin)

    # Snapshots.

    def set_snapshot(self, snapshot: files.SnapshotFile, now: float) -> None:
        """A newer snapshot; the previous one is kept while clients read it."""
        if self.snapshot is not None:
            self._old_snapshots.append(self.snapshot)
        self.snapshot = snapshot
        self._snapshot_at = now
        self._awaits_newer = False
        self.close_unread_snapshots()

    def renew_snapshot(self, now: float) -> None:
        """Asks for a newer snapshot if the log after this one would lead newcomers through too much of the past."""
        if (
            self.snapshot is not None
            and not self._awaits_newer
            and self._encoder.in_key_order
            and self.log.end > self.snapshot.log_offset
            and now - self._snapshot_at > self._policy.snapshot_fresh_seconds
        ):
            self._awaits_newer = True
            self._hub.send(ipc.WantSnapshot(self.number))

    def close_unread_snapshots(self) -> None:
        """Closes replaced snapshots without readers."""
        for snapshot in self._old_snapshots:
            if snapshot.readers == 0:
                snapshot.close()
        self._old_snapshots = [snapshot for snapshot in self._old_snapshots if snapshot.readers]

    @property
    def servable_snapshot(self) -> files.SnapshotFile | None:
        """The newest snapshot, if the log after it is complete, short enough, and holds no status.

        A status between the snapshot and the present would make a newcomer take a map of the past for the present.
        """
        snapshot = self.snapshot
        if snapshot is None or self._awaits_newer or snapshot.log_offset < max(self.trim_offset, self.status_offset):
            return None
        if not self.is_between_batches:
            return None
        return snapshot

    # What clients have that come back.

    def expect(self, newcomer: client.Client, resumption: protocol_adapters.Resumption) -> None:
        """Keeps what a client has until it is served. Too many digests are not kept: it gets a whole snapshot."""
        digests = resumption.digests
        if digests is not None:
            if self.snapshot is not None and self.snapshot.chunks:
                digests = digest.fold(digests, min(len(digests), self.snapshot.chunks))
            if self._digests + len(digests) > self._policy.chunk_digests_max:
                digests = None
        self._digests += len(digests or ())
        self._resumptions[newcomer] = resumption._replace(digests=digests)

    def forget_resumption(self, reader: client.Client) -> None:
        """The client has been sent something, and what it has is not what it had any more; or it is gone."""
        known = self._resumptions.pop(reader, None)
        if known is not None:
            self._digests -= len(known.digests or ())

    def take_position(self, reader: client.Client) -> int | None:
        """The sequence of this incarnation up to which a client has everything. Told only once."""
        known = self._resumptions.get(reader)
        if known is None or known.sequence is None:
            return None
        self._resumptions[reader] = known._replace(sequence=None)
        return known.sequence

    def with_positions(self) -> list[client.Client]:
        """Clients whose position has not been taken."""
        return [reader for reader, known in self._resumptions.items() if known.sequence is not None]

    def take_pieces(self, reader: client.Client, snapshot: files.SnapshotFile) -> files.Pieces | None:
        """What the client lacks of a snapshot that it begins; None for all of it."""
        if snapshot.common is not None:
            return self._pieces_of_node(reader, snapshot, snapshot.common)
        known = self._resumptions.get(reader)
        self.forget_resumption(reader)
        if known is None or known.digests is None or not snapshot.chunks:
            return None
        return resume.pieces(snapshot, known.digests, native_encoder.snapshot_resume)

    def _pieces_of_node(
        self, reader: client.Client, snapshot: files.SnapshotFile, common: files.CommonPart
    ) -> files.Pieces:
        """The section of the client's node, and what is common to all."""
        encoder, sequence = self._encoder, snapshot.sequence
        section = snapshot.sections.get(reader.tag, files.NO_SECTION)
        keys, total = common.keys + section.keys, (common.digest + section.digest) % digest.MODULUS
        begin = encoder.snapshot_begin(sequence, keys=keys, chunks=common.chunks + 1)
        if not section.length:
            begin += encoder.snapshot_chunk(0, 0, ())
        end = encoder.snapshot_end(sequence, keys=keys, digest=total)
        return files.Pieces(
            [
                files.Piece(begin, 0, len(begin)),
                files.Piece(None, section.position, section.length),
                files.Piece(None, 0, common.length),
                files.Piece(end, 0, len(end)),
            ]
        )

    def present(self) -> client.StatusNotice | None:
        """The end of the log as it is published, and the status there; None before there is a snapshot."""
        snapshot, offset = self.snapshot, self.log.end
        if snapshot is None or snapshot.log_offset > offset or not self.is_between_batches:
            return None
        status = snapshot.status
        for status_offset, noted in reversed(self._statuses):
            if snapshot.log_offset < status_offset <= offset:
                status = noted
                break
        sequence = self.log.sequence_at(offset)
        return client.StatusNotice(offset, sequence, status, memoryview(self.status_frame(sequence, status)))

    def last_status_offset(self) -> int:
        """End of the last status in the log as it is published."""
        return next((offset for offset, _ in reversed(self._statuses) if offset <= self.log.end), 0)

    # Frames that are the same for several clients.

    def ping(self, unix_nanoseconds: int) -> bytes:
        """The ping frame of one moment."""
        if self._ping[0] != unix_nanoseconds:
            self._ping = (unix_nanoseconds, self._encoder.make_ping(unix_nanoseconds))
        return self._ping[1]

    def status_frame(self, sequence: int, status: messages.SyncStatus) -> bytes:
        """The status frame of one moment."""
        if self._status_frame[:2] != (sequence, status):
            self._status_frame = (sequence, status, self._encoder.status(sequence, status).data)
        return self._status_frame[2]

    def greeting(self, snapshot: files.SnapshotFile) -> client.StatusNotice:
        """Where a client that begins this snapshot now will have reached the present, and the status due there.

        The log after the snapshot holds no status, so the snapshot's own still holds.
        """
        offset = max(self.log.end, snapshot.log_offset)
        if self._greeting.offset != offset or self._greeting.sequence < snapshot.sequence:
            sequence = snapshot.sequence if offset == snapshot.log_offset else self.log.sequence_at(offset)
            frame = memoryview(self._encoder.status(sequence, snapshot.status).data)
            self._greeting = client.StatusNotice(offset, sequence, snapshot.status, frame)
        return self._greeting

    # Statuses in the log.

    def note_status(self, offset: int, status: messages.SyncStatus) -> None:
        """The log holds a status that ends there; it may be published a moment later."""
        self.status_offset = offset
        self._statuses.append((offset, status))

    def status_told_at(self, offset: int, told: client.StatusNotice) -> messages.SyncStatus:
        """The last status that a client at `offset` has been sent: by the log, or apart from it as `told`."""
        for status_offset, status in reversed(self._statuses):
            if status_offset <= told.offset:
                break
            if status_offset <= offset:
                return status
        return told.status

    # Dictionaries in the log.

    def note_dictionary(self, offset: int, frame: bytes) -> None:
        """The log holds a dictionary that ends there; it may be published a moment later."""
        self._dictionaries.append((offset, frame))

    def _dictionary_at(self, offset: int) -> bytes | None:
        """What a client needs to read the log from there."""
        return next((frame for end, frame in reversed(self._dictionaries) if end <= offset), None)

    def end_of_dictionary(self, offset: int) -> int | None:
        """Where the dictionary ends that begins at an offset of the log; None if none does, or it is not published."""
        ends = (end for end, frame in self._dictionaries if end - len(frame) == offset)
        return next((end for end in ends if end <= self.log.end), None)

    def owe_dictionary(self, reader: client.Client, offset: int) -> None:
        """A client goes on at an offset of the log: it owes the client what it does not have from where it left."""
        due = self._dictionary_at(offset)
        if due is not None and due is not self._dictionary_at(reader.offset):
            reader.owe(due)

    def drop_log(self, before_offset: int) -> None:
        """No client needs the log before an offset any more."""
        if self.subscription is not None and self.log.would_drop(before_offset):
            last = self.log.last_sequences(before_offset, without={end for end, _ in self._dictionaries})
            for reader in self.all_clients():
                if reader.applied is not None:
                    own = max(last.get(tag, 0) for tag in (subscriptions.COMMON, reader.tag))
                    reader.applied.forget(before_offset, own)
        self.log.drop(before_offset)
        while len(self._dictionaries) > 1 and self._dictionaries[1][0] <= self.log.start:
            self._dictionaries.popleft()
        while len(self._statuses) > 1 and self._statuses[1][0] <= self.log.start:
            self._statuses.popleft()

    # Clients.

    def add_live(self, reader: client.Client) -> None:
        """The client has been sent everything, or is about to be in a pass."""
        self.live.add(reader)
        self.away.discard(reader)

    def remove_live(self, reader: client.Client) -> None:
        """The client leaves the pass: it is behind from here on, or gone."""
        reader.blocked_offset = reader.offset
        filled = self.live.remove(reader)
        if filled is not None:
            self.rescan = self.rescan or filled < self.flush_index

    def leave_live(self, reader: client.Client) -> None:
        """The client falls out of the pass, and is away."""
        if reader.index >= 0:
            self.remove_live(reader)
        self.away.add(reader)

    def forget(self, reader: client.Client) -> None:
        """The client is gone, wherever it stood."""
        if reader.index >= 0:
            self.remove_live(reader)
        self.held.pop(reader, None)
        self.away.discard(reader)
        self.forget_resumption(reader)

    def pass_over(self, reader: client.Client) -> None:
        """Where frames are for the clients of some node: moves a client of the log on to the next one that it gets."""
        if not self.is_by_node or reader.tail:
            return
        limit = self.log.end if reader.greeting is None else reader.greeting.offset
        if self.log.start <= reader.offset < limit:  # after a snapshot, the log up to there may not be published yet
            reader.offset = self.log.next_of(reader.offset, reader.tag, limit)

    def behind(self, before_offset: int) -> list[client.Client]:
        """Clients that still have to read the log before an offset."""
        for reader in self.away:
            if reader.state is cursor.CursorState.FOLLOWING and reader.offset < before_offset:
                self.pass_over(reader)
        return [
            reader
            for readers in (self.away, self.live)
            for reader in readers
            if reader.state is cursor.CursorState.FOLLOWING and reader.offset < before_offset
        ]

    def report(self, now: float, *, lowest_block_offset: int) -> ipc.ChannelReport:
        """For the hub: clients, what they need of log and history, and the worst lag.

        Lag in bytes counts from where a client left the log if it is catching up, and from its last unanswered probe if
        it does not read what its host takes.
        """
        following, catching_up = cursor.CursorState.FOLLOWING, cursor.CursorState.CATCHING_UP
        behind = [reader.offset for reader in self.away if reader.state is following]
        lost = [reader for reader in self.away if reader.state is catching_up]
        snapshots = [s.log_offset for s in [*self._old_snapshots, self.snapshot] if s is not None and s.readers]
        slowest = min(behind, default=self.log.end)
        lowest = min([self.log.end, slowest, *snapshots, self.live.lowest_offset(self.log.end)])
        unread = [
            reader.liveness
            for readers in (self.live, self.away)
            for reader in readers
            if reader.liveness.has_unread_probe(now, self._policy.unread_seconds)
        ]
        slowest = min([slowest, *(reader.offset for reader in lost), *(one.probed_offset for one in unread)])
        lag_seconds = [self.age_of(slowest, now), *(now - reader.behind_since for reader in lost)]
        lag_seconds += [now - one.probed_at for one in unread]
        return ipc.ChannelReport(
            clients=len(self.live) + len(self.held) + len(self.away),
            held=len(self.held),
            snapshots_begun=self.snapshots_begun,
            min_offset=min(lowest, lowest_block_offset),
            lag_bytes=max(0, self.log.end - slowest),
            lag_seconds=max(0.0, *lag_seconds),
            catching_up=len(lost),
            min_sequence=min([self._sequence_needed(lowest), *(reader.sequence for reader in lost)]),
        )

    def sequence_before(self, offset: int) -> int:
        """Return the last sequence up to which nothing is in the frame at an offset; 0 if the log does not say.

        A batch may have a frame for each of several nodes that ends at the batch's sequence. Those that follow the
        first of them are of the same batch.
        """
        if self._before[0] != offset:
            first = self.log.first_offset_of(self.log.frame_at(offset)[2])
            is_known = first is not None and first > self.log.start
            before = self.log.sequence_at(self.log.frame_at(first - 1)[0]) if first is not None and is_known else 0
            self._before = offset, before
        return self._before[1]

    def _sequence_needed(self, lowest_offset: int) -> int:
        """The lowest sequence from which a reader of the log from that offset, or of a snapshot, may be caught up."""
        snapshots = [s.sequence for s in [*self._old_snapshots, self.snapshot] if s is not None]
        base = self.log.base_sequence_at(min(max(lowest_offset, self.log.start), self.log.end))
        return min([base, *snapshots])

    def close(self) -> None:
        """Lets go of all files."""
        self.log.close()
        for snapshot in [*self._old_snapshots, *([self.snapshot] if self.snapshot else [])]:
            snapshot.close()
        self._old_snapshots.clear()
        self.snapshot = None


class _Progress:
    """Where in the log the next frame is that a client with a subscription has not applied.

    A look goes on where the last one ended, or where the log begins.
    """

    __slots__ = ("_channel", "_forgotten", "_offset", "_reader", "_sequence")

    def __init__(self, channel: WorkerChannel, reader: client.Client) -> None:
        self._channel = channel
        self._reader = reader
        self._sequence = 0
        self._offset: int | None = None
        """Everything before it is applied, if `_forgotten` is; None before the first position."""
        self._forgotten = 0
        """The last sequence that the client has to apply of what the log has no more."""

    def forget(self, before_offset: int, last: int) -> None:
        """See `convergence.Progress`."""
        self._forgotten = max(self._forgotten, last)
        self._offset = max(self._offset or 0, before_offset)

    def __call__(self, sequence: int) -> int:
        log = self._channel.log
        if sequence != self._sequence:
            self._sequence = sequence
            found = log.offset_up_to(sequence)
            self._offset = max(found, self._offset or 0) if found is not None else self._offset
        if not sequence or self._offset is None or sequence < self._forgotten:
            return sequence
        # Behind the last whole batch there may be a part of the next one: what is missing of it may be for the reader.
        whole = self._channel.last_batch_end
        if self._offset < whole:
            self._offset = log.next_of(self._offset, self._reader.tag, whole)
            while (end := self._channel.end_of_dictionary(self._offset)) is not None:  # nothing in it is applied
                self._offset = log.next_of(end, self._reader.tag, whole)
        if self._offset >= whole:
            return convergence.EVERYTHING if whole == log.end else max(sequence, log.sequence_at(whole))
        return max(sequence, self._channel.sequence_before(self._offset))


class Channels:
    """A worker's channels, by number (the hub's) and by name (feed, wire format, subscription)."""

    def __init__(self, hub: link.Sender, limits: policy.Policy) -> None:
        self._hub = hub
        self._policy = limits
        self._by_number: dict[int, WorkerChannel] = {}
        self._by_name: dict[tuple[str, str, subscriptions.Subscription | None], WorkerChannel] = {}
        self._without_room = 0
        """Clients since the last note whose subscription was one too many."""
        self._next_note_at = 0.0

    def __getitem__(self, number: int) -> WorkerChannel:
        return self._by_number[number]

    def __iter__(self) -> Iterator[WorkerChannel]:
        return iter(list(self._by_name.values()))

    def wanted(
        self, feed: str, wire_format: str, subscription: subscriptions.Subscription | None = None, *, asker: str = ""
    ) -> WorkerChannel:
        """The channel of that name. If the hub has not opened it yet, it is asked to, and clients can only be held.

        `asker` is the address of a client that brings a subscription.
        """
        channel = self._by_name.get((feed, wire_format, subscription))
        if channel is None:
            channel = self._add(feed, wire_format, subscription, asker)
            self._hub.send(ipc.WantChannel(feed, wire_format, subscription, asker))
        return channel

    def has_room_for(self, feed: str, subscription: subscriptions.Subscription, asker: str) -> bool:
        """Whether a client may have this subscription: others have it, or there is room for one more of its address."""
        askers = {(name, one): channel.asker for (name, _, one), channel in self._by_name.items() if one is not None}
        has_room = (feed, subscription) in askers or selections.has_room(askers.values(), asker)
        if not has_room:
            self._note_without_room(feed, subscription, asker)
        return has_room

    def _note_without_room(self, feed: str, subscription: subscriptions.Subscription, asker: str) -> None:
        self._without_room += 1
        now = _monotonic()
        if now >= self._next_note_at:
            _log.warning(
                "Too many different subscriptions, sending the whole feed",
                feed=feed,
                subscription=typha_messages.printable(subscription.label, ipc.TEXT_CHARS_MAX),
                address=asker,
                at_most=selections.SELECTIONS_MAX,
                clients=self._without_room,
            )
            self._next_note_at, self._without_room = now + _NOTE_SECONDS, 0

    def opened(self, message: ipc.OpenChannel) -> None:
        """The hub has opened a channel."""
        name = message.feed, message.wire_format, message.subscription
        channel = self._by_name.get(name) or self._add(*name)
        channel.asker = message.asker
        channel.open(
            message.channel,
            start=message.start,
            start_sequence=message.start_sequence,
            start_updates=message.start_updates,
        )
        self._by_number[message.channel] = channel

    def _add(
        self, feed: str, wire_format: str, subscription: subscriptions.Subscription | None, asker: str = ""
    ) -> WorkerChannel:
        channel = WorkerChannel(feed, _ENCODERS[wire_format], self._hub, self._policy, subscription, asker=asker)
        self._by_name[feed, wire_format, subscription] = channel
        return channel

    def unopened(self, message: ipc.RefuseChannel) -> WorkerChannel | None:
        """The channel that the hub refuses to open, if it is waited for."""
        channel = self._by_name.get((message.feed, message.wire_format, message.subscription))
        return channel if channel is not None and channel.number < 0 else None

    def remove(self, channel: WorkerChannel) -> None:
        """The channel is closed, or never opened; its clients and files are the caller's affair."""
        del self._by_name[channel.feed, channel.wire_format, channel.subscription]
        self._by_number.pop(channel.number, None)

    def numbered(self) -> list[tuple[int, WorkerChannel]]:
        """The channels that the hub has opened."""
        return list(self._by_number.items())

    def close(self) -> None:
        """Lets go of all files."""
        for channel in self._by_number.values():
            channel.close()
