"""Builds catch-up blocks between other work, and keeps those that other workers may ask for next.

Workers ask by start point. Slow clients of one epoch ask for the same block, and then for the same next one, so a block
is kept for a little while. Between slices of work the scheduler rests three times as long as it has worked: catching up
takes a quarter of the hub's time at most, however many clients need it.
"""

import asyncio
from collections.abc import Generator, Iterator
from typing import NamedTuple

from cache.state import catchup, files, store
from protocol import formats
from typha import clock
from typha.hub import policy, shortages
from typha.hub.channel import HubChannel
from typha.hub.worker_link import WorkerLink

_monotonic = clock.monotonic


class _Kept(NamedTuple):
    block: files.BlockFile
    asked_at: float


class CatchUpScheduler:
    """`request` asks for a block; `run` builds them one after another, and sends each to all workers that asked."""

    def __init__(self, limits: policy.HubPolicy, lacking: shortages.Shortages) -> None:
        self._policy = limits
        self._shortages = lacking
        self._queue: dict[tuple[HubChannel, int], dict[WorkerLink, int]] = {}
        """(channel, start point) to the workers that have asked for it, each with the oldest cut that will do."""
        self._kept: dict[tuple[HubChannel, int], _Kept] = {}
        """In order of use."""
        self._answers = 0
        self._wake = asyncio.Event()
        self.blocks_made = 0
        self.bytes_made = 0
        self.seconds = 0.0
        """Spent on building."""
        self.refused = 0

    def __repr__(self) -> str:
        return f"<CatchUpScheduler waiting={len(self._queue)} kept={len(self._kept)} made={self.blocks_made}>"

    @property
    def has_work(self) -> bool:
        """Whether a worker waits for a block."""
        return bool(self._queue)

    @property
    def kept_bytes(self) -> int:
        """Size of all blocks that are kept here."""
        return sum(kept.block.length for kept in self._kept.values())

    def request(
        self,
        channel: HubChannel,
        worker: WorkerLink,
        *,
        from_sequence: int,
        needed_sequence: int,
    ) -> None:
        """The worker needs the block after a sequence, of a cut no older than `needed_sequence`.

        Raises:
            ValueError: it waits for more blocks than a worker ever needs.
        """
        if sum(worker in asking for asking in self._queue.values()) >= self._policy.wanted_blocks_max:
            raise ValueError(f"more than {self._policy.wanted_blocks_max} blocks are wanted")
        self._queue_up((channel, from_sequence), {worker: needed_sequence})
        self._wake.set()

    def wake(self) -> None:
        """Blocks can be cut that could not before."""
        if self._queue:
            self._wake.set()

    async def run(self) -> None:
        """Builds what is asked for, forever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            begun = _monotonic()
            for _ in self.steps():
                worked_seconds = _monotonic() - begun
                if worked_seconds > self._policy.slice_seconds:
                    await self._rest(worked_seconds)
                    begun = _monotonic()
            is_stuck = bool(self._queue)  # what is asked for during the rest may well be built
            await self._rest(_monotonic() - begun)
            if is_stuck:
                await asyncio.sleep(self._policy.retry_seconds)
                self._wake.set()

    async def _rest(self, worked_seconds: float) -> None:
        self.seconds += worked_seconds
        await asyncio.sleep(worked_seconds * self._policy.catch_up_rest_share)

    def steps(self) -> Iterator[None]:
        """Builds all that is asked for; yields where other work may be done.

        What cannot be built now stays asked for: a log that lacks a batch, and all if a resource is missing.
        """
        while (key := self._next()) is not None:
            asking = {worker: needed for worker, needed in self._queue.pop(key).items() if worker.is_attached}
            channel, from_sequence = key
            if not asking or not channel.is_open():
                continue
            block = self._find(key, max(asking.values()))
            try:
                if block is None:
                    difference = self._difference(channel, from_sequence)
                    if difference is not None:
                        block = yield from self._build(channel, difference)
            except shortages.ERRORS as error:
                self._shortages.note(shortages.Lacking.BLOCK, error, feed=channel.feed.name)
                self._queue_up(key, asking)
                return
            self._shortages.over(shortages.Lacking.BLOCK)
            if not channel.is_open():
                if block is not None and not self._is_kept(key, block):
                    block.close()
                continue
            if block is not None:
                self._keep(key, block)
            for worker in asking:
                self._answer(worker, channel, from_sequence, block)
            self._keep_within_bytes()
            yield

    def _queue_up(self, key: tuple[HubChannel, int], asking: dict[WorkerLink, int]) -> None:
        later = self._queue.setdefault(key, {})
        for worker, needed_sequence in asking.items():
            later[worker] = max(needed_sequence, later.get(worker, 0))

    def _next(self) -> tuple[HubChannel, int] | None:
        """The oldest request of the worker that was answered longest ago: no worker may keep others waiting."""
        keys = [key for key in self._queue if key[0].unwritten is None or not key[0].is_open()]
        return min(keys, key=lambda key: min(worker.answered for worker in self._queue[key]), default=None)

    def _difference(self, channel: HubChannel, from_sequence: int) -> store.Difference | None:
        """What changed after a sequence; None if deletions are forgotten, or a snapshot is cheaper."""
        content = channel.feed.store
        try:
            difference = content.changes_since(from_sequence)
        except store.Forgotten:
            return None
        is_much = len(difference.entries) > len(content) * self._policy.snapshot_is_cheaper_share
        return None if is_much and formats.replaces_by_snapshot(channel.encoder.name) else difference

    def _build(self, channel: HubChannel, difference: store.Difference) -> Generator[None, None, files.BlockFile]:
        builder = catchup.BlockBuilder(channel.encoder, difference, log_offset=channel.log.end)
        builder.block.status = channel.status
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
        worker: WorkerLink,
        channel: HubChannel,
        from_sequence: int,
        block: files.BlockFile | None,
    ) -> None:
        if not worker.is_attached:
            return
        self._answers += 1
        worker.answered = self._answers
        if block is None:
            self.refused += 1
            worker.refuse_block(channel, from_sequence)
        else:
            worker.send_block(channel, block)

    def _find(self, key: tuple[HubChannel, int], needed_sequence: int) -> files.BlockFile | None:
        """A kept block that will do."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        log, block = key[0].log, kept.block
        is_fresh = log.start <= block.log_offset and log.end - block.log_offset <= self._policy.stale_log_bytes
        return block if is_fresh and block.cut_sequence >= needed_sequence else None

    def _is_kept(self, key: tuple[HubChannel, int], block: files.BlockFile) -> bool:
        kept = self._kept.get(key)
        return kept is not None and kept.block is block

    def _keep(self, key: tuple[HubChannel, int], block: files.BlockFile) -> None:
        """The block is the last one used; it replaces an older one."""
        if not self._is_kept(key, block):
            self._forget(key)
        self._kept.pop(key, None)
        self._kept[key] = _Kept(block, _monotonic())

    def _keep_within_bytes(self) -> None:
        total = self.kept_bytes
        for key in list(self._kept):
            if total <= self._policy.kept_block_bytes_max:
                break
            total -= self._kept[key].block.length
            self._forget(key)

    def _forget(self, key: tuple[HubChannel, int]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.block.close()

    def forget_old(self) -> None:
        """Drops blocks that no worker has asked for lately, and those of closed channels."""
        oldest = _monotonic() - self._policy.kept_block_seconds
        for key, kept in list(self._kept.items()):
            if kept.asked_at < oldest or not key[0].is_open():
                self._forget(key)

    def close(self) -> None:
        """Lets go of all files."""
        for key in list(self._kept):
            self._forget(key)
