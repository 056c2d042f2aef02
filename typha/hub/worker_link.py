"""One worker as the hub sees it: its link, what it is still to be told, and what it said last."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cache.state import catchup
from protocol import messages
from typha import clock
from typha.hub.channel import HubChannel
from typha.ipc import shared_counters
from typha.ipc.link import Link, LinkBroken

_monotonic = clock.monotonic


class HubSide(Protocol):
    """What a worker's messages may ask of the hub."""

    def wanted(self, feed: str, wire_format: str) -> None:
        """A client has come for this channel."""
        ...

    def stale(self, worker: "WorkerLink", channel: int) -> None:
        """A worker's newcomers wait for a newer snapshot of the channel of this number."""
        ...

    def block_wanted(self, worker: "WorkerLink", channel: int, from_sequence: int, needed_sequence: int) -> None:
        """Clients have fallen out of a channel's log, and need what has changed behind a sequence.

        Raises:
            ValueError: there is no such sequence.
        """
        ...


class WorkerLink:
    """Tells one worker things, without ever waiting for it. Ends of logs are coalesced while its socket is full.

    `broken` is called with what made the worker useless, perhaps several times; `watch_write` when its socket has
    become full (True: call `flush` as soon as it takes something) or empty again (False).
    """

    def __init__(
        self,
        number: int,
        link: Link,
        hub_side: HubSide,
        broken: Callable[[Exception], None],
        watch_write: Callable[[bool], None],
    ) -> None:
        self.number = number
        self.link = link
        self._hub_side = hub_side
        self._broken = broken
        self._watch_write = watch_write
        self._watching_write = False
        self._ends: dict[int, tuple[int, int, int, float]] = {}
        self._ends_told = 0
        self._ends_sent: shared_counters.SharedCounter | None = None
        self.ready = False
        self.heard_at = _monotonic()
        self.report: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<WorkerLink {self.number} ready={self.ready} active={self.active}>"

    def share_progress(self) -> None:
        """From now on `ends_under_way` is known."""
        self._ends_sent, descriptor = shared_counters.SharedCounter.create()
        try:
            self.tell(["progress"], descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Lets go of what is shared with it; the link is its maker's."""
        if self._ends_sent is not None:
            self._ends_sent.close()
            self._ends_sent = None

    @property
    def ends_under_way(self) -> int:
        """Messages with new ends of logs since it last had nothing left to send to clients that keep up."""
        return 0 if self._ends_sent is None else self._ends_told - self._ends_sent.value

    @property
    def active(self) -> int:
        """Open connections, as of its last report."""
        return int(self.report.get("active", 0))

    def channel_report(self, number: int) -> Mapping[str, Any]:
        """What it last said of a channel; empty if nothing."""
        channels: dict[int, Mapping[str, Any]] = self.report.get("channels", {})
        return channels.get(number, {})

    def tell(self, message: list[object], *descriptors: int) -> None:
        """Sends in order; a worker that takes no more is reported as broken."""
        try:
            self.link.send(message, *descriptors)
        except LinkBroken as error:
            self._broken(error)
        self._look_at_link()

    def open_channel(self, channel: HubChannel) -> None:
        """Tells all there is of a channel: its log as far as it is kept, its snapshot, its end."""
        log = channel.log
        self.tell(["channel", channel.number, *channel.key, log.start, log.start_sequence])
        if log.status_offset:
            self.status_told(channel, channel.feed.store.status)
        self.segments_begun(channel, list(log.segments))
        self.new_snapshot(channel)
        self.publish(channel, _monotonic())

    def status_told(self, channel: HubChannel, status: messages.SyncStatus) -> None:
        """The last frame of the log that tells a status tells this one; to be said before it is published.

        Never coalesced: a client between two of them must be known to have been told the first.
        """
        self.tell(["status", channel.number, channel.log.status_offset, int(status)])

    def segments_begun(self, channel: HubChannel, segments: list[Any]) -> None:
        """The log goes on in new files."""
        for segment in segments:
            self.tell(
                ["segment", channel.number, segment.base, segment.size],
                segment.descriptor,
                segment.index_descriptor,
            )

    def new_snapshot(self, channel: HubChannel) -> None:
        """There is a newer snapshot."""
        built = channel.snapshot
        if built is not None:
            place = [built.length, built.log_offset, built.sequence, int(built.status)]
            self.tell(["snapshot", channel.number, *place], built.descriptor)

    def publish(self, channel: HubChannel, now: float) -> None:
        """The log's end has moved; the newest end is what counts, however often this is called."""
        log = channel.log
        self._ends[channel.number] = (channel.number, log.end, channel.frames, now)

    def send_block(self, channel: HubChannel, block: catchup.Block) -> None:
        """The block it has asked for, behind everything of the log up to its cut."""
        self._end_now(channel)
        place = {
            "from_sequence": block.from_sequence,
            "to_sequence": block.to_sequence,
            "cut_sequence": block.cut_sequence,
            "length": block.length,
            "is_final": block.is_final,
            "log_offset": block.log_offset,
            "status": int(block.status),
            "updates": block.updates,
            "frames": block.frames,
        }
        self.tell(["block", channel.number, place], block.descriptor)

    def refuse_block(self, channel: HubChannel, from_sequence: int, reason: str) -> None:
        """There is no block for it; what it does instead is its own affair."""
        self._end_now(channel)
        self.tell(["no-block", channel.number, from_sequence, reason])

    def _end_now(self, channel: HubChannel) -> None:
        end = self._ends.pop(channel.number, None)
        if end is not None:
            self._ends_told += 1
            self.tell(["ends", [end]])

    def forget_channel(self, channel: HubChannel) -> None:
        """The channel is closed."""
        self._ends.pop(channel.number, None)
        self.tell(["drop-channel", channel.number])

    def flush(self) -> None:
        """Sends what waits: messages in order, and behind them the ends."""
        try:
            self.link.flush()
            if self._ends and not self.link.wants_write:
                self._ends_told += 1
                self.link.send(["ends", list(self._ends.values())])
                self._ends.clear()
        except LinkBroken as error:
            self._broken(error)
        self._look_at_link()

    def _look_at_link(self) -> None:
        if self.link.wants_write is not self._watching_write:
            self._watching_write = self.link.wants_write
            self._watch_write(self._watching_write)

    def hear(self) -> None:
        """Takes its messages."""
        try:
            for message, _ in self.link.receive():
                self.heard_at = _monotonic()
                self._handle(message)
        except Exception as error:  # whatever it is, this worker cannot be understood any more
            self._broken(error)

    def _handle(self, message: list[object]) -> None:
        match message:
            case ["stats", dict() as report]:
                self.report = {**report, "histograms": self.report.get("histograms", {})}
            case ["histograms", str(feed), dict() as histograms]:
                self.report.setdefault("histograms", {})[feed] = histograms
            case ["want", str(feed), str(wire_format)]:
                self._hub_side.wanted(feed, wire_format)
            case ["stale", int(channel)]:
                self._hub_side.stale(self, channel)
            case ["catch-up", int(number), int(from_sequence), int(needed_sequence)]:
                self._hub_side.block_wanted(self, number, from_sequence, needed_sequence)
            case ["ready", _]:
                self.ready = True
            case ["trimmed", _, _]:
                pass  # that it answers is what counts: the memory goes with its last descriptor
            case _:
                self._broken(ValueError(f"unknown message {message!r}"[:200]))
