"""Makes snapshots between other work: a few milliseconds, then the loop turns once."""

import asyncio
from collections.abc import Callable

import structlog

from typha import clock
from typha.hub.channel import HubChannel

_log = structlog.get_logger("typha.snapshots")
_monotonic = clock.monotonic

SLICE_SECONDS = 0.005


class SnapshotScheduler:
    """`request` asks for a channel's snapshot, `run` makes them one after another.

    A cut may be taken at any time, for a store changes only where its feed's batch is taken for the log. `done` is
    called with each channel that has a new snapshot.
    """

    def __init__(
        self,
        done: Callable[[HubChannel], None],
        is_open: Callable[[HubChannel], bool],
    ) -> None:
        self._done = done
        self._is_open = is_open
        self._queue: dict[HubChannel, None] = {}
        self._wake = asyncio.Event()

    def request(self, channel: HubChannel) -> None:
        """The channel wants a snapshot; asking twice changes nothing."""
        self._queue[channel] = None
        self._wake.set()

    async def run(self) -> None:
        """Makes what is asked for, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                channel = next(iter(self._queue))
                del self._queue[channel]
                if self._is_open(channel):
                    await self._make(channel)

    async def _make(self, channel: HubChannel) -> None:
        begun = _monotonic()
        builder = channel.begin_snapshot()
        try:
            slice_end = _monotonic() + SLICE_SECONDS
            for _ in builder.steps():
                if _monotonic() > slice_end:
                    await asyncio.sleep(0)
                    slice_end = _monotonic() + SLICE_SECONDS
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
        self._done(channel)
