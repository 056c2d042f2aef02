"""The workers as the hub sees them: what each is still to be sent, and what it reported last."""

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from cache.state import files, log, memfile
from protocol import messages as protocol_messages
from typha import clock
from typha.hub.channel import HubChannel, LoggedDictionary
from typha.ipc import link, messages, shared_counters
from typha.observability import quantiles

_monotonic = clock.monotonic

MESSAGES_PER_SECOND_MAX = 5_000
"""A worker sends a few reports a second, and no more requests than the hub answers: some hundreds. More is a flood."""
BYTES_PER_SECOND_MAX = 4 * 1024 * 1024
"""A hundred times what a worker's reports on four feeds take. The hub decodes as much in 0.3 s at worst."""


class Flood(Exception):
    """A worker says more than any worker has to say."""


Request: TypeAlias = (
    messages.WantChannel
    | messages.WantSnapshot
    | messages.WantBlock
    | messages.ReportRecent
    | messages.ClientSlice
    | messages.DescriptionPart
)
"""What a worker asks of the hub, its answers to the hub's questions, and what the hub keeps for longer than the worker
lives."""


class WorkerLink:
    """Sends to one worker without ever waiting for it. While its socket is full, ends of logs are coalesced.

    Args:
        end: the hub's end of `link.pair`; its maker closes it.
        broken: called with what made the worker useless, perhaps several times.
        watch_write: as for `link.Link`; between its two calls the event loop is to call `flush`.
    """

    def __init__(
        self,
        number: int,
        end: socket.socket,
        broken: Callable[[Exception], None],
        watch_write: Callable[[bool], None],
    ) -> None:
        self.number = number
        self.link = link.Link(end, messages.FOR_HUB, watch_write, max_descriptors=0)
        self._broken = broken
        self.feeds: frozenset[str] = frozenset()
        """Those that it may report on."""
        self._ends: dict[int, messages.LogEnd] = {}
        self._publishes = 0
        self._publishes_sent: shared_counters.SharedCounter | None = None
        self.is_attached = True
        """False once the hub has removed it."""
        self.answered = 0
        """Number of the block that it was sent last, among those of all workers."""
        self.ready = False
        self.heard_at = _monotonic()
        self._second_began = self.heard_at
        self._second_began_bytes = self._heard_in_second = 0
        self._blocked_at: float | None = None
        self.report = messages.Report(messages.WorkerCounts())
        self.histograms: dict[str, dict[messages.HistogramName, list[int]]] = {}
        """By feed and metric name."""
        self.applied: dict[str, messages.ReportApplied] = {}
        """By feed: what clients say they have applied."""

    def __repr__(self) -> str:
        return f"<WorkerLink {self.number} ready={self.ready} active={self.report.active}>"

    def share_counter(self) -> None:
        """From now on `publishes_under_way` is known.

        Raises:
            OSError: there is no memory or descriptor for it.
        """
        self._publishes_sent, descriptor = shared_counters.SharedCounter.create()
        try:
            self.send(messages.ShareCounter(), descriptor)
        finally:
            memfile.close(descriptor)

    def close(self) -> None:
        """Lets go of what is shared with the worker; the link is its maker's."""
        self.is_attached = False
        if self._publishes_sent is not None:
            self._publishes_sent.close()
            self._publishes_sent = None

    @property
    def publishes_under_way(self) -> int:
        """Publishes since the worker last had sent everything to the clients that keep up."""
        return 0 if self._publishes_sent is None else self._publishes - self._publishes_sent.value

    @property
    def newest_publish(self) -> int:
        """Number of the message that has, or is about to have, the newest ends of logs. For `has_finished`."""
        return self._publishes + bool(self._ends)

    def has_finished(self, publish: int) -> bool:
        """Whether the worker has sent this publish, and all before it, to the clients that keep up."""
        return self._publishes_sent is None or self._publishes_sent.value >= publish

    # To the worker.

    def send(self, message: messages.ToWorker, *descriptors: int) -> None:
        """Sends in order; a worker that takes no more is reported as broken."""
        try:
            self.link.send(message, *descriptors)
        except (link.LinkBroken, MemoryError) as error:
            self._broken(error)

    def open_channel(self, channel: HubChannel) -> None:
        """All there is of a channel: its log as far as it is kept, its snapshot, its end."""
        log = channel.log
        feed, wire_format, subscription = channel.key
        self.send(
            messages.OpenChannel(
                channel.number,
                feed,
                wire_format,
                log.start,
                log.start_sequence,
                log.start_updates,
                subscription,
                channel.asker,
            )
        )
        if log.status_offset:
            self.note_status(channel, log.status)
        for logged in channel.dictionaries:
            self.note_dictionary(channel, logged)
        self.add_segments(channel, log.segments)
        self.offer_snapshot(channel)
        self.publish(channel, messages.UpdateTimes(_monotonic()))

    def note_status(self, channel: HubChannel, status: protocol_messages.SyncStatus) -> None:
        """The last status in the log, before it is published.

        Never coalesced: the worker must know that a client between two statuses has been sent the first.
        """
        self.send(messages.NoteStatus(channel.number, channel.log.status_offset, status))

    def note_dictionary(self, channel: HubChannel, logged: LoggedDictionary) -> None:
        """A dictionary in the log, before it is published: who goes on after it is to be sent it."""
        self.send(messages.NoteDictionary(channel.number, logged.offset, logged.frame))

    def add_segments(self, channel: HubChannel, segments: Iterable[log.Segment]) -> None:
        """The log goes on in new files."""
        for segment in segments:
            self.send(
                messages.AddSegment(channel.number, segment.base, segment.size),
                segment.descriptor,
                segment.index_descriptor,
            )

    def offer_snapshot(self, channel: HubChannel) -> None:
        """The channel's newest snapshot, if there is one."""
        file = channel.snapshot_file
        if file is not None:
            self.send(messages.OfferSnapshot(channel.number, file), file.descriptor)

    def publish(self, channel: HubChannel, times: messages.UpdateTimes) -> None:
        """The log's end has moved. `flush` sends the newest end, however often this was called."""
        waiting = self._ends.get(channel.number)
        if waiting is not None:  # its updates are the oldest of those that are new to the worker
            times = waiting.times
        self._ends[channel.number] = messages.LogEnd(channel.number, channel.log.end, channel.frames, times)

    def send_block(self, channel: HubChannel, block: files.BlockFile) -> None:
        """The block that the worker asked for, after everything of the log up to its cut."""
        self._publish_now(channel)
        self.send(messages.SendBlock(channel.number, block), block.descriptor)

    def refuse_block(self, channel: HubChannel, from_sequence: int) -> None:
        """There is no such block; the worker decides what its clients get instead."""
        self._publish_now(channel)
        self.send(messages.RefuseBlock(channel.number, from_sequence))

    def _publish_now(self, channel: HubChannel) -> None:
        end = self._ends.pop(channel.number, None)
        if end is not None:
            self._publishes += 1
            self.send(messages.Publish([end]))

    def close_channel(self, channel: HubChannel) -> None:
        """The channel is closed."""
        self._ends.pop(channel.number, None)
        self.send(messages.CloseChannel(channel.number))

    @property
    def blocked_seconds(self) -> float:
        """For how long the worker has not emptied its link; while the kernel lacks something, the worker is excused."""
        if not self.link.wants_write or self.link.shortage is not None:
            self._blocked_at = None
            return 0.0
        if self._blocked_at is None:
            self._blocked_at = _monotonic()
        return _monotonic() - self._blocked_at

    def flush(self) -> None:
        """Sends what waits: messages in order, then the ends of logs."""
        try:
            self.link.flush()
            if self._ends and not self.link.wants_write:
                self._publishes += 1
                self.link.send(messages.Publish(list(self._ends.values())))
                self._ends.clear()
        except (link.LinkBroken, MemoryError) as error:
            self._broken(error)

    # From the worker.

    def requests(self) -> Iterator[Request]:
        """Takes the worker's messages; yields those that are not about the worker itself.

        Raises:
            Exception: whatever it is, the worker is broken.
        """
        for message, _ in self.link.receive():
            self.heard_at = _monotonic()
            self._note_heard(self.heard_at)
            match message:
                case messages.Report():
                    if not message.counts.feeds.keys() <= self.feeds:
                        raise ValueError("a report on unknown feeds")
                    if not all(counts.is_sane for counts in message.counts.feeds.values()):
                        raise ValueError("a histogram with other buckets")
                    self.report = message
                case messages.ReportHistograms():
                    if message.feed not in self.feeds:
                        raise ValueError("histograms of an unknown feed")
                    for flat in message.histograms.values():
                        quantiles.check_list(flat)
                    self.histograms[message.feed] = message.histograms
                case messages.ReportApplied():
                    if message.feed not in self.feeds or message.applied > message.reporting:
                        raise ValueError("positions that cannot be")
                    self.applied[message.feed] = message
                case messages.ReportRecent():
                    if not {end.feed for end in message.ends} <= {"", *self.feeds}:
                        raise ValueError("an end on an unknown feed")
                    yield message
                case messages.Ready():
                    self.ready = True
                case _:
                    yield message

    def _note_heard(self, now: float) -> None:
        if now - self._second_began >= 1.0:
            self._second_began, self._second_began_bytes, self._heard_in_second = now, self.link.received_bytes, 0
        self._heard_in_second += 1
        heard_bytes = self.link.received_bytes - self._second_began_bytes
        if self._heard_in_second > MESSAGES_PER_SECOND_MAX or heard_bytes > BYTES_PER_SECOND_MAX:
            raise Flood(f"{self._heard_in_second} messages with {heard_bytes} bytes in a second")

    def fail(self, error: Exception) -> None:
        """What the worker says cannot be understood or granted: it is of no more use."""
        self._broken(error)


class WorkerLinks(dict[int, WorkerLink]):
    """All workers of a hub, by number. Each operation reaches all of them, and what can be sent is sent."""

    def send(self, message: messages.ToWorker) -> None:
        """The same message to all."""
        for worker in self.values():
            worker.send(message)
            worker.flush()

    def flush(self) -> None:
        """Sends what waits."""
        for worker in self.values():
            worker.flush()

    def open_channel(self, channel: HubChannel) -> None:
        """A channel has been opened."""
        for worker in self.values():
            worker.open_channel(channel)
            worker.flush()

    def publish(
        self,
        channel: HubChannel,
        segments: Iterable[log.Segment],
        status: protocol_messages.SyncStatus | None,
        times: messages.UpdateTimes,
        dictionary: LoggedDictionary | None = None,
    ) -> None:
        """The channel's log has grown, by a status and a dictionary if they are named; `flush` makes it known."""
        for worker in self.values():
            if status is not None:
                worker.note_status(channel, status)
            if dictionary is not None:
                worker.note_dictionary(channel, dictionary)
            worker.add_segments(channel, segments)
            worker.publish(channel, times)

    def offer_snapshot(self, channel: HubChannel) -> None:
        """The channel has a new snapshot."""
        for worker in self.values():
            worker.offer_snapshot(channel)
            worker.flush()

    def close_channel(self, channel: HubChannel) -> None:
        """The channel is closed."""
        for worker in self.values():
            worker.close_channel(channel)

    def channel_reports(self, channel: HubChannel) -> list[messages.ChannelReport | None]:
        """What each worker last reported of the channel; None for nothing yet."""
        return [worker.report.channels.get(channel.number) for worker in self.values()]

    @property
    def publishes_under_way(self) -> int:
        """Of the busiest worker."""
        return max((worker.publishes_under_way for worker in self.values()), default=0)

    @property
    def clients_max(self) -> int:
        """Client count of the busiest worker."""
        return max((worker.report.active for worker in self.values()), default=0)
