"""Snapshots made in slices, and what happens to those that nobody wants any more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from protocol import messages
from protocol.native import encoder
from tests.harness import support
from typha.hub import snapshot_scheduler
from typha.hub.channel import HubChannel


class Channels:
    """Channels, which of them are open, and whose snapshots were made."""

    def __init__(self) -> None:
        self.done: list[HubChannel] = []
        self.open: list[HubChannel] = []
        self.snapshots = snapshot_scheduler.SnapshotScheduler(self.done.append, lambda channel: channel in self.open)

    def add(self, keys: int) -> HubChannel:
        """A channel with so many keys."""
        source = support.raw_feed()
        for number in range(keys):
            source.apply(support.pod(f"p{number}"))
        source.set_status(support.PODS, messages.SyncStatus.IN_SYNC)
        source.take()
        channel = HubChannel(len(self.open), source, encoder.NativeEncoder(), segment_bytes=1 << 16)
        self.open.append(channel)
        return channel


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    """A maker at work; its end may leave no descriptor."""
    before = support.open_descriptors()
    opened = Channels()
    task = asyncio.create_task(opened.snapshots.run(), name="snapshot maker")
    yield opened
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    for channel in opened.open:
        assert not channel.building
        channel.close()
    assert support.open_descriptors() == before


async def test_what_is_asked_for_is_made_once(channels: Channels) -> None:
    first, second = channels.add(10), channels.add(1000)
    for channel in (first, second, first):
        channels.snapshots.request(channel)
    await support.eventually(lambda: len(channels.done) == 2)
    assert channels.done == [first, second]
    assert second.snapshot is not None
    assert second.snapshot.keys == 1000
    channels.snapshots.request(first)
    await support.eventually(lambda: len(channels.done) == 3)
    assert first.snapshots_built == 2


async def test_others_get_their_turns_while_a_snapshot_is_made(
    channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_scheduler, "SLICE_SECONDS", 0.0)
    channel = channels.add(5000)
    channels.snapshots.request(channel)
    turns = 0
    while not channels.done:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= channel.feed.store.chunk_count


async def test_a_channel_that_was_closed_meanwhile_gets_none(channels: Channels) -> None:
    gone, there = channels.add(10), channels.add(10)
    channels.snapshots.request(gone)
    channels.snapshots.request(there)
    channels.open.remove(gone)
    await support.eventually(lambda: channels.done)
    assert channels.done == [there]
    gone.close()


async def test_a_snapshot_that_is_cancelled_is_given_up(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_scheduler, "SLICE_SECONDS", 0.0)
    channel = channels.add(5000)
    channels.snapshots.request(channel)
    for _ in range(10):  # turns of the loop: it is begun, and far from done
        await asyncio.sleep(0)
    assert channel.building
    assert channels.done == []
