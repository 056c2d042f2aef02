"""Builds snapshots between other work: a few milliseconds, then the loop turns once."""

import asyncio

import structlog

from typha import clock
from typha.hub import policy, shortages
from typha.hub.channel import HubChannel

_log = structlog.get_logger("typha.snapshots")
_monotonic = clock.monotonic


class SnapshotScheduler:
    """`request` asks for a channel's snapshot, `build_next` builds one after another.

    A cut may be taken at any time, because a store changes only where its feed's batch is taken for the log.
    """

    def __init__(self, limits: policy.HubPolicy, lacking: shortages.Shortages) -> None:
        self._slice_seconds = limits.slice_seconds
        self._retry_seconds = limits.retry_seconds
        self._shortages = lacking
        self._queue: dict[HubChannel, None] = {}
        self._wake = asyncio.Event()

    def request(self, channel: HubChannel) -> None:
        """The channel wants a snapshot; asking twice changes nothing."""
        self._queue[channel] = None
        self._wake.set()

    def wake(self) -> None:
        """A channel can be cut that could not before."""
        self._wake.set()

    def take(self) -> HubChannel | None:
        """The next open channel that wants a snapshot and can be cut; its request is gone."""
        for channel in list(self._queue):
            if channel.is_open() and channel.unwritten is not None:
                continue  # `wake` says when it can be
            del self._queue[channel]
            if channel.is_open():
                return channel
        return None

    async def build_next(self) -> HubChannel:
        """Builds the next snapshot that is asked for; returns its channel, which has it."""
        while True:
            while (channel := self.take()) is None:
                self._wake.clear()
                await self._wake.wait()
            try:
                await self._build(channel)
            except shortages.ERRORS as error:
                self._shortages.note(shortages.Lacking.SNAPSHOT, error, feed=channel.feed.name)
                self.request(channel)
                await asyncio.sleep(self._retry_seconds)
            else:
                self._shortages.over(shortages.Lacking.SNAPSHOT)
                return channel

    async def _build(self, channel: HubChannel) -> None:
        begun = _monotonic()
        builder = channel.begin_snapshot()
        try:
            slice_end = _monotonic() + self._slice_seconds
            for _ in builder.steps():
                if _monotonic() > slice_end:
                    await asyncio.sleep(0)
                    slice_end = _monotonic() + self._slice_seconds
        except BaseException:
            channel.building = False
            builder.abandon()
            raise
        channel.end_snapshot(builder.snapshot)
        _log.debug(
            "Snapshot made",
            feed=channel.feed.name,
            format=channel.encoder.name,
            keys=builder.snapshot.keys,
            bytes=builder.snapshot.length,
            chunks_encoded=builder.chunks_encoded,
            chunks_copied=builder.chunks_copied,
            milliseconds=round((_monotonic() - begun) * 1000, 1),
        )
