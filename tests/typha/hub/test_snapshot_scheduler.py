"""Snapshots: built in slices, for open channels only."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from protocol import messages
from protocol.native import encoder
from tests.harness import worker_stand
from tests.harness.hub_stand import LIMITS
from typha.hub import policy, shortages, snapshot_scheduler
from typha.hub.channel import HubChannel

IMPATIENT = msgspec.structs.replace(LIMITS, slice_seconds=0.0)
"""Other work gets its turn after every step."""


class SnapshotStand:
    """Channels, a scheduler at work, and the channels whose snapshots it has built."""

    def __init__(self, limits: policy.HubPolicy) -> None:
        self.done: list[HubChannel] = []
        self.channels: list[HubChannel] = []
        self.scheduler = snapshot_scheduler.SnapshotScheduler(limits, shortages.Shortages())

    def add(self, keys: int) -> HubChannel:
        """Opens a channel of a feed with this many keys."""
        source = worker_stand.raw_feed()
        for number in range(keys):
            source.apply(worker_stand.pod(f"p{number}"))
        source.set_status(worker_stand.PODS, messages.SyncStatus.IN_SYNC)
        source.take()
        channel = HubChannel(len(self.channels), source, encoder.NativeEncoder(), LIMITS)
        self.channels.append(channel)
        return channel

    async def build(self) -> None:
        """Builds what is asked for, forever."""
        while True:
            self.done.append(await self.scheduler.build_next())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["SnapshotStand"]:
        """The scheduler at work; it is cancelled at the end, and may leave no channel in building."""
        task = asyncio.create_task(self.build(), name="snapshot scheduler")
        yield self
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        for channel in self.channels:
            assert not channel.building
            if channel.is_open():
                channel.close()


OpenStand = Callable[[policy.HubPolicy], Awaitable[SnapshotStand]]


@pytest.fixture
async def open_stand() -> AsyncIterator[OpenStand]:
    """Opens stands with limits of the test; when it ends, no descriptor may be left."""
    before = worker_stand.descriptors_before()
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(limits: policy.HubPolicy) -> SnapshotStand:
            return await stack.enter_async_context(SnapshotStand(limits).running())

        yield open_one
    assert worker_stand.open_descriptors() == before


@pytest.fixture
async def stand(open_stand: OpenStand) -> SnapshotStand:
    """A stand with the default limits."""
    return await open_stand(LIMITS)


async def test_a_snapshot_is_built_once_however_often_it_is_asked_for(stand: SnapshotStand) -> None:
    first, second = stand.add(10), stand.add(1000)
    for channel in (first, second, first):
        stand.scheduler.request(channel)
    await worker_stand.eventually(lambda: len(stand.done) == 2)
    assert stand.done == [first, second]
    assert second.snapshot is not None
    assert second.snapshot.keys == 1000
    stand.scheduler.request(first)
    await worker_stand.eventually(lambda: len(stand.done) == 3)
    assert first.snapshots_built == 2


async def test_other_work_gets_its_turns_while_a_snapshot_is_built(open_stand: OpenStand) -> None:
    stand = await open_stand(IMPATIENT)
    channel = stand.add(5000)
    stand.scheduler.request(channel)
    turns = 0
    while not stand.done:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= channel.feed.store.chunk_count


async def test_a_closed_channel_gets_no_snapshot(stand: SnapshotStand) -> None:
    closed, open_one = stand.add(10), stand.add(10)
    stand.scheduler.request(closed)
    stand.scheduler.request(open_one)
    closed.close()
    await worker_stand.eventually(lambda: stand.done)
    assert stand.done == [open_one]


async def test_a_snapshot_whose_build_is_cancelled_is_given_up(open_stand: OpenStand) -> None:
    stand = await open_stand(IMPATIENT)
    channel = stand.add(5000)
    stand.scheduler.request(channel)
    for _ in range(10):  # turns of the loop: the build has begun, and is far from done
        await asyncio.sleep(0)
    assert channel.building
    assert stand.done == []
