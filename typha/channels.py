"""A worker's channels: what the hub says of them, and which clients go where."""

from collections.abc import Callable

from cache import cursor
from protocol import formats, messages, reasons
from typha import channel_view, client, clock, delivery, sessions

_monotonic = clock.monotonic
_ENCODERS = {name: formats.make_encoder(name) for name in formats.NAMES}


class UnknownMessage(Exception):
    """The hub said something that this worker does not understand: they are not of one version."""


class Channels:
    """Channels by number (the hub's) and by name (feed, wire format); clients may want one that is not there yet."""

    def __init__(
        self,
        worker_delivery: delivery.Delivery,
        worker_sessions: sessions.Sessions,
        tell: Callable[[list[object]], None],
    ) -> None:
        self._delivery = worker_delivery
        self._sessions = worker_sessions
        self._tell = tell
        self._by_number: dict[int, channel_view.ChannelView] = {}
        self._by_name: dict[tuple[str, str], channel_view.ChannelView] = {}
        self._withdrawn: frozenset[str] = frozenset()

    def subscribe(self, newcomer: client.Client, feed: str, wire_format: str) -> None:
        """A client has said what it wants; it is held until there is something to serve."""
        if feed in self._withdrawn:  # its hello came before the withdrawal
            self._dismiss(newcomer, feed)
            return
        channel = self._by_name.get((feed, wire_format))
        if channel is None:
            # A view without files, until the hub has made the channel: its clients are held and get pings.
            channel = channel_view.ChannelView(feed, _ENCODERS[wire_format], self._tell)
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
            case ["segment", int(number), int(base), int(size_bytes), int(status_offset)]:
                data_descriptor, index_descriptor = descriptors
                channel = self._by_number[number]
                channel.log.add_segment(base, size_bytes, data_descriptor, index_descriptor)
                channel.status_offset = status_offset  # the base publishes what is before it, a status perhaps
            case ["ends", list(ends)]:
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
            case ["trim", int(number), int(before_offset)]:
                self._trim(self._by_number[number], before_offset)
            case ["drop-channel", int(number)]:
                self._drop(self._by_number.pop(number))
            case ["withdraw", list(feeds)]:
                self._withdraw(frozenset(feeds))
            case _:
                raise UnknownMessage(repr(message)[:200])

    def _open(self, number: int, feed: str, wire_format: str, start: int, start_sequence: int) -> None:
        channel = self._by_name.get((feed, wire_format))
        if channel is None:
            channel = channel_view.ChannelView(feed, _ENCODERS[wire_format], self._tell)
            self._by_name[feed, wire_format] = channel
        channel.open(number, start=start, start_sequence=start_sequence)
        self._by_number[number] = channel

    def _trim(self, channel: channel_view.ChannelView, before_offset: int) -> None:
        """The hub wants segments back; whoever still needs them is caught up by a snapshot instead."""
        channel.trim_offset = before_offset
        following = cursor.CursorState.FOLLOWING
        behind = [
            reader
            for readers in (channel.away, channel.following)
            for reader in readers
            if reader.state is following and reader.offset < before_offset
        ]
        for reader in behind:
            self._delivery.fall_behind(channel, reader)
        channel.log.drop(before_offset)
        self._tell(["trimmed", channel.number, channel.log.start])

    def _drop(self, channel: channel_view.ChannelView) -> None:
        """Nobody had been using it, as far as the hub knew; whoever came in the meantime is sent to come again."""
        del self._by_name[channel.feed, channel.wire_format]
        for reader in channel.all_clients():
            self._sessions.farewell(
                reader, reasons.DisconnectReason.FEED_REMOVED, text="the feed's wire format had become idle"
            )
        channel.close()

    def _withdraw(self, feeds: frozenset[str]) -> None:
        """Feeds that were hoped for will not come: whoever waits for them is refused like everybody from now on."""
        self._withdrawn = feeds
        self._sessions.withdraw(feeds)
        for key in [key for key in self._by_name if key[0] in feeds]:
            channel = self._by_name.pop(key)
            for reader in channel.all_clients():
                self._dismiss(reader, channel.feed)

    def _dismiss(self, reader: client.Client, feed: str) -> None:
        self._sessions.farewell(reader, reasons.DisconnectReason.UNKNOWN_FEED, text=f"no feed {feed!r} here")

    def report(self, now: float) -> dict[int, dict[str, object]]:
        """Per channel: clients by state, the lowest offset that is needed, and the worst lag."""
        return {number: channel.report(now) for number, channel in self._by_number.items()}

    def close(self) -> None:
        """Lets go of all files."""
        for channel in self._by_number.values():
            channel.close()
