"""The hub's half of catching up: blocks made in slices, shared, kept for a while, refused, and let go."""

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator

import pytest

from cache.state import catchup
from protocol import messages
from protocol.native import encoder
from protocol.typha import encoder as typha_encoder
from tests.harness import support
from typha.hub import catchup_scheduler, worker_link
from typha.hub.channel import HubChannel


class Worker(worker_link.WorkerLink):
    """A worker that only remembers what it was sent."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.blocks: list[tuple[int, int, int]] = []
        """(from, to, cut) of each."""
        self.refused: list[tuple[int, str]] = []

    def send_block(self, channel: HubChannel, block: catchup.Block) -> None:
        """Notes it, and that its file is there."""
        assert os.fstat(block.descriptor).st_size == block.length
        self.blocks.append((block.from_sequence, block.to_sequence, block.cut_sequence))

    def refuse_block(self, channel: HubChannel, from_sequence: int, reason: str) -> None:
        """Notes it."""
        self.refused.append((from_sequence, reason))


class Bench:
    """Channels of one feed, workers, and a maker."""

    def __init__(self) -> None:
        self.feed = support.raw_feed()
        self.feed.set_status(support.PODS, messages.SyncStatus.IN_SYNC)
        self.open: list[HubChannel] = []
        self.workers = [Worker(number) for number in range(2)]
        self.known: list[worker_link.WorkerLink] = list(self.workers)
        self.snapshots = catchup_scheduler.CatchUpScheduler(
            lambda channel: channel in self.open, lambda one: one in self.known
        )

    def put(self, *names: str, size: int = 10) -> None:
        """A batch, appended to every channel."""
        for name in names:
            self.feed.apply(support.pod(name, "x" * size + str(self.feed.store.sequence)))
        self.commit()

    def commit(self) -> None:
        """What has gathered is appended."""
        batch = self.feed.take()
        if batch is not None:
            for channel in self.open:
                channel.append(batch)

    def channel(self, *, typha: bool = False) -> HubChannel:
        """Another channel."""
        made = typha_encoder.TyphaEncoder(compress=True) if typha else encoder.NativeEncoder()
        self.open.append(HubChannel(len(self.open), self.feed, made, segment_bytes=1 << 16))
        return self.open[-1]

    def ask(self, channel: HubChannel, from_sequence: int, *, worker: int = 0, needed: int = 0) -> None:
        """A worker asks."""
        self.snapshots.request(
            channel, self.workers[worker], from_sequence=from_sequence, needed_sequence=max(needed, from_sequence)
        )

    def has_more_than(self, count: int) -> bool:
        """Whether the first worker has been sent more blocks."""
        return len(self.workers[0].blocks) > count

    def work(self) -> int:
        """Everything at once; the number of pieces it came in."""
        return sum(1 for _ in self.snapshots.steps())


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """No descriptor may be left behind."""
    before = support.open_descriptors()
    opened = Bench()
    opened.put(*(f"p{number}" for number in range(100)))
    yield opened
    opened.snapshots.close()
    for channel in opened.open:
        channel.close()
    assert support.open_descriptors() == before


async def test_one_block_for_all_who_ask_for_it(bench: Bench) -> None:
    channel, other = bench.channel(), bench.channel(typha=True)
    bench.put("p1", "p2")
    for worker in (0, 1, 0):
        bench.ask(channel, 100, worker=worker)
    bench.ask(other, 100)
    bench.work()
    assert [worker.blocks for worker in bench.workers] == [[(100, 102, 102)] * 2, [(100, 102, 102)]]
    assert bench.snapshots.blocks_made == 2
    bench.ask(channel, 100, worker=1)
    bench.work()
    assert (bench.snapshots.blocks_made, len(bench.workers[1].blocks)) == (2, 2)
    assert bench.snapshots.bytes_made == bench.snapshots.kept_bytes > 100


async def test_a_kept_block_is_made_anew_when_it_will_not_do(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = bench.channel()
    bench.put("p1")
    bench.ask(channel, 100)
    bench.work()
    bench.put("p2")
    bench.ask(channel, 100, needed=101)
    bench.work()
    assert bench.workers[0].blocks[-1] == (100, 101, 101)  # old, and good enough
    bench.ask(channel, 100, needed=102)
    bench.work()
    assert bench.workers[0].blocks[-1] == (100, 102, 102)
    bench.put("p3")
    monkeypatch.setattr(catchup_scheduler, "STALE_LOG_BYTES", 0)
    bench.ask(channel, 100)
    bench.work()
    assert bench.workers[0].blocks[-1] == (100, 103, 103)
    monkeypatch.setattr(catchup_scheduler, "STALE_LOG_BYTES", 1 << 30)
    for number in range(4, 12):
        bench.put(f"p{number}", size=20_000)
    channel.log.trim(channel.log.end)
    bench.ask(channel, 100)
    bench.work()
    assert bench.workers[0].blocks[-1][2] == 111  # the log behind the kept one is gone
    assert bench.snapshots.blocks_made == 4


async def test_what_is_refused_and_to_whom(bench: Bench) -> None:
    channel, typha = bench.channel(), bench.channel(typha=True)
    bench.put(*(f"p{number}" for number in range(51)))
    for one in (channel, typha):
        bench.ask(one, 100)
        bench.ask(one, 101)
    bench.work()
    assert bench.workers[0].refused == [(100, catchup_scheduler.SNAPSHOT_IS_CHEAPER)]
    assert [block[0] for block in bench.workers[0].blocks] == [101, 100, 101]
    for number in range(20):
        bench.feed.delete(support.pod(f"p{number}"))
    bench.commit()
    bench.feed.store.forget_deletions(160)
    for one in (channel, typha):
        bench.ask(one, 159)
        bench.ask(one, 160)
    bench.work()
    assert bench.workers[0].refused[1:] == [(159, catchup_scheduler.FORGOTTEN)] * 2
    assert [block[0] for block in bench.workers[0].blocks[3:]] == [160, 160]
    assert bench.snapshots.refused == 3


async def test_workers_and_channels_that_are_gone_get_nothing(bench: Bench) -> None:
    channel, dropped = bench.channel(), bench.channel()
    bench.put("p1")
    bench.ask(channel, 100, worker=0)
    bench.ask(channel, 100, worker=1)
    bench.ask(dropped, 100, worker=1)
    bench.known.remove(bench.workers[0])
    bench.open.remove(dropped)
    bench.work()
    assert (bench.workers[0].blocks, bench.workers[1].blocks) == ([], [(100, 101, 101)])
    assert bench.snapshots.blocks_made == 1
    dropped.close()


async def test_a_channel_that_goes_while_its_block_is_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "FRAME_TARGET_BYTES", 100)
    channel = bench.channel()
    bench.put(*(f"p{number}" for number in range(40)))
    bench.ask(channel, 100)
    steps = bench.snapshots.steps()
    next(steps)
    bench.open.remove(channel)
    assert list(steps)
    assert (bench.workers[0].blocks, bench.snapshots.kept_bytes) == ([], 0)
    channel.close()


async def test_what_is_kept_is_bounded_in_bytes_and_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup_scheduler, "KEPT_BYTES_MAX", 250_000)
    channel = bench.channel()
    bench.put(*(f"p{number}" for number in range(20)), size=10_000)
    for start in range(100, 120):
        bench.ask(channel, start)
    bench.work()
    assert bench.snapshots.kept_bytes <= 250_000
    made = bench.snapshots.blocks_made
    bench.ask(channel, 119)
    bench.work()
    assert bench.snapshots.blocks_made == made  # the last ones are kept
    bench.snapshots.forget_old()
    assert bench.snapshots.kept_bytes > 0
    monkeypatch.setattr(catchup_scheduler, "KEPT_SECONDS", -1.0)
    bench.snapshots.forget_old()
    assert bench.snapshots.kept_bytes == 0
    bench.ask(channel, 119)
    bench.work()
    monkeypatch.setattr(catchup_scheduler, "KEPT_SECONDS", 100.0)
    bench.open.remove(channel)
    bench.snapshots.forget_old()
    assert bench.snapshots.kept_bytes == 0
    channel.close()


async def test_the_hub_has_three_quarters_of_its_time_for_other_things(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup_scheduler, "SLICE_SECONDS", 0.001)
    channel = bench.channel(typha=True)
    bench.put(*(f"p{number}" for number in range(100)), size=20_000)
    task = asyncio.create_task(bench.snapshots.run(), name="catch-up maker")
    begun = asyncio.get_running_loop().time()
    sequence = 100
    while sequence < 200:
        bench.ask(channel, sequence)
        count = len(bench.workers[0].blocks)
        await support.eventually(functools.partial(bench.has_more_than, count))
        sequence = bench.workers[0].blocks[-1][1]
    elapsed = asyncio.get_running_loop().time() - begun
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert 0 < bench.snapshots.seconds < elapsed * 0.3 + 0.01


async def test_a_block_that_is_cancelled_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "FRAME_TARGET_BYTES", 100)
    monkeypatch.setattr(catchup_scheduler, "SLICE_SECONDS", 0.0)
    channel = bench.channel()
    bench.put(*(f"p{number}" for number in range(49)))
    bench.ask(channel, 100)
    task = asyncio.create_task(bench.snapshots.run(), name="catch-up maker")
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert bench.workers[0].blocks == []
    assert "waiting=0" in repr(bench.snapshots)
