"""Channels of a worker: wanted, opened, trimmed, dropped."""

import asyncio

from tests.typha import support
from tests.typha.conftest import OpenStage
from tests.typha.support import FEED, Stage, eventually, pod


async def test_a_format_is_wanted_by_its_first_client_and_once(stage: Stage) -> None:
    assert stage.hub.channels == {}
    peers = [await stage.subscribe() for _ in range(3)]
    await stage.converged(*peers)
    assert list(stage.hub.channels) == [(FEED, "native")]
    peers.append(await stage.subscribe(features=frozenset({"zstd"})))
    await stage.converged(*peers)
    assert len(stage.hub.channels) == 2
    assert stage.hub._next_channel == 3


async def test_clients_of_a_dropped_channel_are_sent_to_come_again(stage: Stage) -> None:
    following = await stage.subscribe()
    await stage.converged(following)
    stage.hub._drop(stage.channel)
    await following.read_to_end()
    assert following.goodbye is not None
    assert following.goodbye.reason == "feed-removed"
    assert stage.disconnects == {"feed-removed": 1}
    again = await stage.subscribe()
    await stage.converged(again)
    stage.put(pod("new"))
    await stage.converged(again)


async def test_dropped_channels_leave_no_descriptor(stage: Stage) -> None:
    counts: list[int] = []
    for _ in range(4):
        peer = await stage.subscribe()
        await stage.converged(peer)
        stage.put(pod("a", "grow", version=len(counts) + 5))
        await stage.converged(peer)
        peer.close()
        await eventually(lambda: not stage.fanout.poller.clients)
        stage.hub._drop(stage.channel)
        await eventually(lambda: not stage.fanout.channels._by_number)
        counts.append(support.open_descriptors())
    assert len(set(counts)) == 1


async def test_held_clients_of_a_channel_without_a_snapshot_wait_for_the_next_one(open_stage: OpenStage) -> None:
    stage = await open_stage()
    stage.in_sync()
    stage.holds_snapshots = True
    peer = await stage.subscribe()
    await peer.read_until(lambda: peer.pings)
    view = (await stage.client_of(peer)).channel
    assert view is not None
    assert list(view.held) == [await stage.client_of(peer)]
    stage.put(pod("a"))
    await asyncio.sleep(0)
    assert peer.snapshots == 0
    stage.holds_snapshots = False
    stage.make_snapshots()
    await stage.converged(peer)
    assert not view.held


async def test_clients_of_a_feed_that_will_not_come_are_refused_then_and_later(open_stage: OpenStage) -> None:
    stage = await open_stage()
    held = await stage.subscribe()
    await held.read_until(lambda: held.pings)
    stage.handle.tell(["withdraw", [FEED]])
    for refused in (held, await stage.subscribe()):
        await refused.read_to_end()
        assert refused.goodbye is not None
        assert refused.goodbye.reason == "unknown-feed"
    assert stage.hub.channels == {}
