"""A worker's channels: what the hub says of them, and which clients go where."""

from collections.abc import Callable

from cache.state import cursor
from protocol import formats, messages, reasons
from typha import clock
from typha.ipc import shared_counters
from typha.worker import catchup, client, connections, delivery
from typha.worker.channel import WorkerChannel

_monotonic = clock.monotonic
_ENCODERS = {name: formats.make_encoder(name) for name in formats.NAMES}


class UnknownMessage(Exception):
    """The hub said something that this worker does not understand: they are not of one version."""


class Channels:
    """Channels by number (the hub's) and by name (feed, wire format); clients may want one that is not there yet."""

    def __init__(
        self,
        worker_delivery: delivery.Delivery,
        worker_connections: connections.Connections,
        worker_catch_up: catchup.CatchUp,
        tell: Callable[[list[object]], None],
    ) -> None:
        self._delivery = worker_delivery
        self._connections = worker_connections
        self._catch_up = worker_catch_up
        self._tell = tell
        self._by_number: dict[int, WorkerChannel] = {}
        self._by_name: dict[tuple[str, str], WorkerChannel] = {}
        self._withdrawn: frozenset[str] = frozenset()
        self._ends_heard = 0
        """Messages that have moved ends of logs."""
        self._ends_sent: shared_counters.SharedCounter | None = None
        """How many of them have been acted on, for the clients that keep up; the hub reads it."""

    def subscribe(self, newcomer: client.Client, feed: str, wire_format: str) -> None:
        """A client has said what it wants; it is held until there is something to serve."""
        if feed in self._withdrawn:  # its hello came before the withdrawal
            self._dismiss(newcomer, feed)
            return
        channel = self._by_name.get((feed, wire_format))
        if channel is None:
            # A view without files, until the hub has made the channel: its clients are held and get pings.
            channel = WorkerChannel(feed, _ENCODERS[wire_format], self._tell)
            self._by_name[feed, wire_format] = channel
            self._tell(["want", feed, wire_format])
        newcomer.channel = channel
        self._delivery.hold(newcomer, channel)

    def handle(self, message: list[object], descriptors: list[int]) -> None:
        """Acts on what the hub says.

        Raises:
            UnknownMessage: it makes no sense.
        """
        match message:
            case ["channel", int(number), str(feed), str(wire_format), int(start), int(start_sequence)]:
                self._open(number, feed, wire_format, start, start_sequence)
            case ["segment", int(number), int(base), int(size_bytes)]:
                data_descriptor, index_descriptor = descriptors
                self._by_number[number].log.add_segment(base, size_bytes, data_descriptor, index_descriptor)
            case ["status", int(number), int(offset), int(status)]:
                self._by_number[number].note_status(offset, messages.SyncStatus(status))
            case ["ends", list(ends)]:
                self._ends_heard += 1
                for number, *end in ends:
                    channel = self._by_number[number]
                    channel.publish(*end)
                    self._delivery.channel_published(channel)
            case ["snapshot", int(number), int(length), int(log_offset), int(sequence), int(status)]:
                snapshot = cursor.SnapshotFile(
                    descriptors[0],
                    length=length,
                    log_offset=log_offset,
                    sequence=sequence,
                    status=messages.SyncStatus(status),
                )
                channel = self._by_number[number]
                channel.set_snapshot(snapshot, _monotonic())
                self._delivery.snapshot_arrived(channel)
            case ["block", int(number), dict() as place]:
                place["status"] = messages.SyncStatus(place["status"])
                channel = self._by_number[number]
                for reader in self._catch_up.arrived(channel, cursor.BlockFile(descriptors[0], **place)):
                    self._delivery.catch_up_on(channel, reader)
            case ["no-block", int(number), int(from_sequence), str()]:
                channel = self._by_number[number]
                for reader in self._catch_up.refused(channel, from_sequence):
                    self._delivery.cannot_catch_up(channel, reader)
            case ["progress"]:
                self._ends_sent = shared_counters.SharedCounter.attach(descriptors[0])
            case ["trim", int(number), int(before_offset)]:
                self._trim(self._by_number[number], before_offset)
            case ["drop-channel", int(number)]:
                self._drop(self._by_number.pop(number))
            case ["withdraw", list(feeds)]:
                self._withdraw(frozenset(feeds))
            case _:
                raise UnknownMessage(repr(message)[:200])

    def tell_progress(self) -> None:
        """To be called behind sending: the hub learns whether the worker is done with what it has heard."""
        if self._ends_sent is not None and not self._delivery.is_passing:
            self._ends_sent.value = self._ends_heard

    def _open(self, number: int, feed: str, wire_format: str, start: int, start_sequence: int) -> None:
        channel = self._by_name.get((feed, wire_format))
        if channel is None:
            channel = WorkerChannel(feed, _ENCODERS[wire_format], self._tell)
            self._by_name[feed, wire_format] = channel
        channel.open(number, start=start, start_sequence=start_sequence)
        self._by_number[number] = channel

    def _trim(self, channel: WorkerChannel, before_offset: int) -> None:
        """The hub wants segments back; whoever still needs them is caught up by keys instead."""
        channel.trim_offset = before_offset
        live = cursor.CursorState.FOLLOWING
        behind = [
            reader
            for readers in (channel.away, channel.live)
            for reader in readers
            if reader.state is live and reader.offset < before_offset
        ]
        for reader in behind:
            self._delivery.fall_behind(channel, reader)
        channel.drop_log(before_offset)
        self._tell(["trimmed", channel.number, channel.log.start])

    def _drop(self, channel: WorkerChannel) -> None:
        """Nobody had been using it, as far as the hub knew; whoever came in the meantime is sent to come again."""
        del self._by_name[channel.feed, channel.wire_format]
        for reader in channel.all_clients():
            self._connections.farewell(
                reader, reasons.DisconnectReason.FEED_REMOVED, text="the feed's wire format had become idle"
            )
        self._catch_up.drop(channel)
        channel.close()

    def _withdraw(self, feeds: frozenset[str]) -> None:
        """Feeds that were hoped for will not come: whoever waits for them is refused like everybody from now on."""
        self._withdrawn = feeds
        self._connections.withdraw(feeds)
        for key in [key for key in self._by_name if key[0] in feeds]:
            channel = self._by_name.pop(key)
            for reader in channel.all_clients():
                self._dismiss(reader, channel.feed)

    def _dismiss(self, reader: client.Client, feed: str) -> None:
        self._connections.farewell(reader, reasons.DisconnectReason.UNKNOWN_FEED, text=f"no feed {feed!r} here")

    def report(self, now: float) -> dict[int, dict[str, float]]:
        """Per channel: clients by state, the lowest offset that is needed, and the worst lag."""
        self._catch_up.tidy()
        reports = {}
        for number, channel in self._by_number.items():
            report = channel.report(now)
            report["min_offset"] = min(report["min_offset"], self._catch_up.lowest_offset(channel))
            reports[number] = report
        return reports

    def close(self) -> None:
        """Lets go of all files."""
        self._catch_up.close()
        for channel in self._by_number.values():
            channel.close()
        if self._ends_sent is not None:
            self._ends_sent.close()
