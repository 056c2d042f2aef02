"""Makes catch-up blocks, and keeps those that others may ask for next. Between other work, as snapshots are made.

Workers ask by start point. Slow clients of one epoch ask for the same block, and for the same one behind it, so what
has been made is kept for a little while. Between slices of work the maker rests three times as long as it has worked:
catching up takes a quarter of the hub's time at most, whoever needs it.
"""

import asyncio
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from cache.state import catchup, store
from protocol import formats
from typha import clock
from typha.hub import worker_link
from typha.hub.channel import HubChannel

_monotonic = clock.monotonic

SLICE_SECONDS = 0.005
REST_SHARE = 3.0
"""Rest for each second of work."""
KEPT_BYTES_MAX = 8 * 1024 * 1024
KEPT_SECONDS = 10.0
"""How long a block is kept that nobody asks for."""
STALE_LOG_BYTES = 1024 * 1024
"""A block is made anew when the log has grown by so much behind its cut: what changed again would be sent twice."""
SNAPSHOT_IS_CHEAPER_SHARE = 0.5
"""Of the keys: where more have changed, a client that can take a snapshot gets one, which is made for newcomers too."""

FORGOTTEN = "forgotten"
SNAPSHOT_IS_CHEAPER = "snapshot-is-cheaper"


class _Kept(NamedTuple):
    block: catchup.Block
    asked_at: float


class CatchUpScheduler:
    """`request` asks for a block, `run` makes them one after another and sends each to all who have asked.

    `is_open` and `is_known` say whether a channel and a worker still exist.
    """

    def __init__(
        self,
        is_open: Callable[[HubChannel], bool],
        is_known: Callable[[worker_link.WorkerLink], bool],
    ) -> None:
        self._is_open = is_open
        self._is_known = is_known
        self._queue: dict[tuple[HubChannel, int], dict[worker_link.WorkerLink, int]] = {}
        """(channel, start point) to who has asked for it, with the oldest cut that will do."""
        self._kept: dict[tuple[HubChannel, int], _Kept] = {}
        """In order of use."""
        self._wake = asyncio.Event()
        self.blocks_made = 0
        self.bytes_made = 0
        self.seconds = 0.0
        """Spent on it."""
        self.refused = 0

    def __repr__(self) -> str:
        return f"<CatchUpScheduler waiting={len(self._queue)} kept={len(self._kept)} made={self.blocks_made}>"

    @property
    def has_work(self) -> bool:
        """Whether somebody waits for a block."""
        return bool(self._queue)

    @property
    def kept_bytes(self) -> int:
        """Size of all blocks that are kept here."""
        return sum(kept.block.length for kept in self._kept.values())

    def request(
        self,
        channel: HubChannel,
        worker: worker_link.WorkerLink,
        *,
        from_sequence: int,
        needed_sequence: int,
    ) -> None:
        """The worker needs the block behind a sequence, of no older cut than `needed_sequence`."""
        asking = self._queue.setdefault((channel, from_sequence), {})
        asking[worker] = max(needed_sequence, asking.get(worker, 0))
        self._wake.set()

    async def run(self) -> None:
        """Makes what is asked for, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            begun = _monotonic()
            for _ in self.steps():
                worked_seconds = _monotonic() - begun
                if worked_seconds > SLICE_SECONDS:
                    await self._rest(worked_seconds)
                    begun = _monotonic()
            await self._rest(_monotonic() - begun)

    async def _rest(self, worked_seconds: float) -> None:
        self.seconds += worked_seconds
        await asyncio.sleep(worked_seconds * REST_SHARE)

    def steps(self) -> Iterator[None]:
        """Makes all that is asked for; yields where other work may be done."""
        while self._queue:
            key = next(iter(self._queue))
            asking = self._queue.pop(key)
            channel, from_sequence = key
            if not self._is_open(channel):
                continue
            block = self._find(key, max(asking.values()))
            refusal = ""
            if block is None:
                difference, refusal = self._look(channel, from_sequence)
                if difference is not None:
                    block = yield from self._make(channel, difference)
            if not self._is_open(channel):
                if block is not None and not self._is_kept(key, block):
                    block.close()
                continue
            if block is not None:
                self._keep(key, block)
            for worker in asking:
                self._answer(worker, channel, from_sequence, block, refusal)
            self._keep_within_bytes()
            yield

    def _look(self, channel: HubChannel, from_sequence: int) -> tuple[store.Difference | None, str]:
        """What has changed, or why no block is made of it."""
        content = channel.feed.store
        try:
            difference = content.changes_since(from_sequence)
        except store.Forgotten:
            return None, FORGOTTEN
        is_much = len(difference.entries) > len(content) * SNAPSHOT_IS_CHEAPER_SHARE
        if is_much and formats.replaces_by_snapshot(channel.encoder.name):
            return None, SNAPSHOT_IS_CHEAPER
        return difference, ""

    def _make(self, channel: HubChannel, difference: store.Difference) -> Generator[None, None, catchup.Block]:
        builder = catchup.BlockBuilder(channel.encoder, difference, log_offset=channel.log.end)
        try:
            yield from builder.steps()
        except BaseException:
            builder.abandon()
            raise
        self.blocks_made += 1
        self.bytes_made += builder.block.length
        return builder.block

    def _answer(
        self,
        worker: worker_link.WorkerLink,
        channel: HubChannel,
        from_sequence: int,
        block: catchup.Block | None,
        refusal: str,
    ) -> None:
        if not self._is_known(worker):
            return
        if block is None:
            self.refused += 1
            worker.refuse_block(channel, from_sequence, refusal)
        else:
            worker.send_block(channel, block)

    def _find(self, key: tuple[HubChannel, int], needed_sequence: int) -> catchup.Block | None:
        """A block that was made before and will do."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        log, block = key[0].log, kept.block
        is_fresh = log.start <= block.log_offset and log.end - block.log_offset <= STALE_LOG_BYTES
        return block if is_fresh and block.cut_sequence >= needed_sequence else None

    def _is_kept(self, key: tuple[HubChannel, int], block: catchup.Block) -> bool:
        kept = self._kept.get(key)
        return kept is not None and kept.block is block

    def _keep(self, key: tuple[HubChannel, int], block: catchup.Block) -> None:
        """The block is the last one used; it takes the place of an older one."""
        if not self._is_kept(key, block):
            self._forget(key)
        self._kept.pop(key, None)
        self._kept[key] = _Kept(block, _monotonic())

    def _keep_within_bytes(self) -> None:
        total = self.kept_bytes
        for key in list(self._kept):
            if total <= KEPT_BYTES_MAX:
                break
            total -= self._kept[key].block.length
            self._forget(key)

    def _forget(self, key: tuple[HubChannel, int]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.block.close()

    def forget_old(self) -> None:
        """Lets go of blocks that nobody has asked for lately, and of those of closed channels."""
        oldest = _monotonic() - KEPT_SECONDS
        for key, kept in list(self._kept.items()):
            if kept.asked_at < oldest or not self._is_open(key[0]):
                self._forget(key)

    def close(self) -> None:
        """Lets go of all files."""
        for key in list(self._kept):
            self._forget(key)
