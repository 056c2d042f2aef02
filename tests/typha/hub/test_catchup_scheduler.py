"""Catch-up blocks in the hub: built in slices, shared, kept for a while, refused, and closed."""

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import pytest

from cache.state import files
from protocol import messages
from protocol.native import encoder
from protocol.typha import encoder as typha_encoder
from tests.harness import worker_stand
from tests.harness.hub_stand import LIMITS
from typha import clock
from typha.hub import catchup_scheduler, policy, shortages, worker_link
from typha.hub.channel import HubChannel


class RecordingWorker(worker_link.WorkerLink):
    """A worker without a link: it keeps what the scheduler sends to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_attached = True
        self.answered = 0
        self.blocks: list[tuple[int, int, int]] = []
        """(from, to, cut) of each block."""
        self.refused: list[int] = []
        """The start points of blocks that it does not get."""

    def send_block(self, channel: HubChannel, block: files.BlockFile) -> None:
        """Keeps the block's sequences, and checks that its file exists."""
        assert os.fstat(block.descriptor).st_size == block.length
        self.blocks.append((block.from_sequence, block.to_sequence, block.cut_sequence))

    def refuse_block(self, channel: HubChannel, from_sequence: int) -> None:
        """Keeps the start point."""
        self.refused.append(from_sequence)


class CatchUpStand:
    """Channels of one feed with 100 objects, two workers, and a scheduler."""

    def __init__(self, limits: policy.HubPolicy) -> None:
        self.limits = limits
        self.feed = worker_stand.raw_feed()
        self.feed.set_status(worker_stand.PODS, messages.SyncStatus.IN_SYNC)
        self.channels: list[HubChannel] = []
        self.workers = [RecordingWorker(number) for number in range(2)]
        self.scheduler = catchup_scheduler.CatchUpScheduler(limits, shortages.Shortages())
        self.put(*(f"p{number}" for number in range(100)))

    def put(self, *names: str, size: int = 10) -> None:
        """Appends a batch of objects to every channel."""
        for name in names:
            self.feed.apply(worker_stand.pod(name, "x" * size + str(self.feed.store.sequence)))
        self.commit()

    def commit(self) -> None:
        """Appends the updates that the feed has gathered."""
        batch = self.feed.take()
        if batch is not None:
            for channel in self.channels:
                if channel.is_open():
                    channel.append(batch)

    def channel(self, *, typha: bool = False, zstd: bool = False) -> HubChannel:
        """Opens another channel."""
        made = typha_encoder.TyphaEncoder(compress=True) if typha else encoder.NativeEncoder(zstd=zstd)
        self.channels.append(HubChannel(len(self.channels), self.feed, made, self.limits))
        return self.channels[-1]

    def ask(self, channel: HubChannel, from_sequence: int, *, worker: int = 0, needed: int = 0) -> None:
        """A worker asks for a block."""
        self.scheduler.request(
            channel, self.workers[worker], from_sequence=from_sequence, needed_sequence=max(needed, from_sequence)
        )

    def has_more_than(self, count: int) -> bool:
        """Whether the first worker has been sent more than `count` blocks."""
        return len(self.workers[0].blocks) > count

    def work(self) -> int:
        """Builds all blocks that are asked for; returns the number of steps."""
        return sum(1 for _ in self.scheduler.steps())

    def close(self) -> None:
        """Closes all files."""
        self.scheduler.close()
        for channel in self.channels:
            if channel.is_open():
                channel.close()


OpenStand = Callable[[policy.HubPolicy], CatchUpStand]


@pytest.fixture
def open_stand() -> Iterator[OpenStand]:
    """Opens stands with limits of the test; when it ends, no descriptor may be left."""
    before = worker_stand.descriptors_before()
    with contextlib.ExitStack() as stack:

        def open_one(limits: policy.HubPolicy) -> CatchUpStand:
            return stack.enter_context(contextlib.closing(CatchUpStand(limits)))

        yield open_one
    assert worker_stand.open_descriptors() == before


@pytest.fixture
def stand(open_stand: OpenStand) -> CatchUpStand:
    """A stand with the default limits."""
    return open_stand(LIMITS)


@contextlib.asynccontextmanager
async def running(stand: CatchUpStand) -> AsyncIterator[None]:
    """The scheduler runs in a task until the end of the block, and is cancelled there."""
    task = asyncio.create_task(stand.scheduler.run(), name="catch-up scheduler")
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_all_workers_that_ask_get_the_same_block(stand: CatchUpStand) -> None:
    channel, other = stand.channel(), stand.channel(typha=True)
    stand.put("p1", "p2")
    for worker in (0, 1, 0):
        stand.ask(channel, 100, worker=worker)
    stand.ask(other, 100)
    stand.work()
    assert [worker.blocks for worker in stand.workers] == [[(100, 102, 102)] * 2, [(100, 102, 102)]]
    assert stand.scheduler.blocks_made == 2
    stand.ask(channel, 100, worker=1)
    stand.work()
    assert (stand.scheduler.blocks_made, len(stand.workers[1].blocks)) == (2, 2)
    assert stand.scheduler.bytes_made == stand.scheduler.kept_bytes > 100


async def test_a_kept_block_is_replaced_when_it_is_too_old(open_stand: OpenStand) -> None:
    stand = open_stand(msgspec.structs.replace(LIMITS, stale_log_bytes=300_000))
    channel = stand.channel()
    stand.put("p1")
    stand.ask(channel, 100)
    stand.work()
    stand.put("p2")
    stand.ask(channel, 100, needed=101)
    stand.work()
    assert stand.workers[0].blocks[-1] == (100, 101, 101)  # old, and good enough
    stand.ask(channel, 100, needed=102)
    stand.work()
    assert stand.workers[0].blocks[-1] == (100, 102, 102)
    stand.put("p3", size=300_000)  # the log has grown too much since the cut
    stand.ask(channel, 100)
    stand.work()
    assert stand.workers[0].blocks[-1] == (100, 103, 103)
    cut = channel.log.end
    for number in range(4, 12):
        stand.put(f"p{number}", size=20_000)
    channel.log.trim(channel.log.end)
    assert channel.log.end - 300_000 < cut < channel.log.start  # the log after the kept block is gone
    stand.ask(channel, 100)
    stand.work()
    assert stand.workers[0].blocks[-1][2] == 111
    assert stand.scheduler.blocks_made == 4


async def test_a_block_is_refused_if_a_snapshot_is_cheaper_or_deletions_are_forgotten(stand: CatchUpStand) -> None:
    channel, typha = stand.channel(), stand.channel(typha=True)
    stand.put(*(f"p{number}" for number in range(51)))
    for one in (channel, typha):
        stand.ask(one, 100)
        stand.ask(one, 101)
    stand.work()
    assert stand.workers[0].refused == [100]  # a snapshot is cheaper
    assert [block[0] for block in stand.workers[0].blocks] == [101, 100, 101]
    for number in range(20):
        stand.feed.delete(worker_stand.pod(f"p{number}"))
    stand.commit()
    stand.feed.store.forget_deletions(160)
    for one in (channel, typha):
        stand.ask(one, 159)
        stand.ask(one, 160)
    stand.work()
    assert stand.workers[0].refused[1:] == [159] * 2  # deletions are forgotten
    assert [block[0] for block in stand.workers[0].blocks[3:]] == [160, 160]
    assert stand.scheduler.refused == 3


async def test_removed_workers_and_closed_channels_get_nothing(stand: CatchUpStand) -> None:
    channel, closed = stand.channel(), stand.channel()
    stand.put("p1")
    stand.ask(channel, 100, worker=0)
    stand.ask(channel, 100, worker=1)
    stand.ask(closed, 100, worker=1)
    stand.workers[0].is_attached = False
    closed.close()
    stand.work()
    assert (stand.workers[0].blocks, stand.workers[1].blocks) == ([], [(100, 101, 101)])
    assert stand.scheduler.blocks_made == 1


async def test_a_channel_that_is_closed_while_its_block_is_built(stand: CatchUpStand) -> None:
    channel = stand.channel(zstd=True)
    stand.put(*(f"p{number}" for number in range(40)), size=50_000)
    stand.ask(channel, 100)
    steps = stand.scheduler.steps()
    next(steps)
    channel.close()
    assert list(steps)
    assert (stand.workers[0].blocks, stand.scheduler.kept_bytes) == ([], 0)


async def test_kept_blocks_are_bounded_in_bytes_and_time(open_stand: OpenStand) -> None:
    now = 1000.0
    stand = open_stand(msgspec.structs.replace(LIMITS, kept_block_bytes_max=250_000))
    scheduler = stand.scheduler
    channel = stand.channel()
    stand.put(*(f"p{number}" for number in range(20)), size=10_000)
    with clock.replaced(monotonic=lambda: now, time_ns=time.time_ns):
        for start in range(100, 120):
            stand.ask(channel, start)
        stand.work()
        assert scheduler.kept_bytes <= 250_000
        made = scheduler.blocks_made
        stand.ask(channel, 119)
        stand.work()
        assert scheduler.blocks_made == made  # the last blocks are kept
        now += LIMITS.kept_block_seconds
        scheduler.forget_old()
        assert scheduler.kept_bytes > 0
        now += 1.0
        scheduler.forget_old()
        assert scheduler.kept_bytes == 0
        stand.ask(channel, 119)
        stand.work()
        assert scheduler.kept_bytes > 0
        channel.close()
        scheduler.forget_old()
        assert scheduler.kept_bytes == 0


async def test_the_hub_has_three_quarters_of_its_time_for_other_work(open_stand: OpenStand) -> None:
    stand = open_stand(msgspec.structs.replace(LIMITS, slice_seconds=0.001))
    channel = stand.channel(typha=True)
    stand.put(*(f"p{number}" for number in range(100)), size=20_000)
    async with running(stand):
        begun = asyncio.get_running_loop().time()
        sequence = 100
        while sequence < 200:
            stand.ask(channel, sequence)
            count = len(stand.workers[0].blocks)
            await worker_stand.eventually(functools.partial(stand.has_more_than, count))
            sequence = stand.workers[0].blocks[-1][1]
        elapsed_seconds = asyncio.get_running_loop().time() - begun
    assert 0 < stand.scheduler.seconds < elapsed_seconds * 0.3 + 0.01


async def test_what_is_asked_for_during_the_rest_is_no_failure_to_be_tried_again_later(open_stand: OpenStand) -> None:
    limits = msgspec.structs.replace(LIMITS, slice_seconds=10.0, catch_up_rest_share=1000.0, retry_seconds=1e6)
    stand = open_stand(limits)
    channel = stand.channel(typha=True)
    stand.put("p1", "p2")
    async with running(stand):
        stand.ask(channel, 100)
        await worker_stand.eventually(lambda: stand.has_more_than(0))
        stand.ask(channel, 101)  # the scheduler rests for a thousand times as long as it has worked
        await worker_stand.eventually(lambda: stand.has_more_than(1))


async def test_a_block_whose_build_is_cancelled_is_given_up(open_stand: OpenStand) -> None:
    stand = open_stand(msgspec.structs.replace(LIMITS, slice_seconds=0.0))
    channel = stand.channel(zstd=True)
    stand.put(*(f"p{number}" for number in range(49)), size=40_000)
    stand.ask(channel, 100)
    async with running(stand):
        for _ in range(5):
            await asyncio.sleep(0)
        assert "waiting=0" in repr(stand.scheduler)  # the build has begun
    assert stand.workers[0].blocks == []
    assert "waiting=0" in repr(stand.scheduler)
