"""Channels of a worker: wanted, opened, trimmed, dropped."""

import asyncio

import pytest

from protocol import formats, messages
from protocol.native import encoder
from tests.harness import support, typha_peer
from tests.harness.support import FEED, Stage, eventually, pod
from tests.typha.conftest import OpenStage
from typha.hub import channel as hub_channel
from typha.worker import channel as channel_view


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
    live = await stage.subscribe()
    await stage.converged(live)
    stage.hub._drop(stage.channel)
    await live.read_to_end()
    assert live.goodbye is not None
    assert live.goodbye.reason == "feed-removed"
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
        await eventually(lambda: not stage.server.poller.clients)
        stage.hub._drop(stage.channel)
        await eventually(lambda: not stage.server.channels._by_number)
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


async def changed_stage(open_stage: OpenStage) -> Stage:
    """A snapshot of two objects, one of which then changes while the other goes; a follower of Typha's protocol."""
    stage = await open_stage(feed_name=typha_peer.FELIX)
    stage.put(pod("kept"), pod("gone"))
    stage.in_sync()
    await stage.converged(await typha_peer.join(stage))
    stage.put(pod("kept", "changed", version=2))
    stage.delete("gone")
    return stage


async def test_newcomers_of_typhas_protocol_are_not_led_through_the_past(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_view, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(hub_channel, "REBUILD_SHARE_MAX", 1e9)
    stage = await changed_stage(open_stage)
    newcomers = [await typha_peer.join(stage) for _ in range(3)]
    await stage.converged(*newcomers)
    assert [newcomer.types for newcomer in newcomers] == [[messages.UpdateType.NEW]] * 3
    assert stage.channel.snapshots_built == 2
    await stage.converged(await typha_peer.join(stage))
    assert stage.channel.snapshots_built == 2  # nothing is behind this one


async def test_snapshots_of_the_last_second_serve_all_newcomers(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_view, "FRESH_SECONDS", 3600.0)
    stage = await changed_stage(open_stage)
    newcomer = await typha_peer.join(stage)
    await stage.converged(newcomer)
    kinds = messages.UpdateType
    assert newcomer.types == [kinds.NEW, kinds.NEW, kinds.UPDATED, kinds.DELETED]
    assert stage.channel.snapshots_built == 1


async def test_the_hub_may_think_that_a_snapshot_has_cost_too_much_to_make_it_anew(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_channel, "REBUILD_SHARE_MAX", 1e-9)
    stage = await changed_stage(open_stage)
    [view] = stage.server.channels._by_number.values()
    view._snapshot_at -= 2 * channel_view.FRESH_SECONDS
    newcomers = [await typha_peer.join(stage) for _ in range(3)]
    await stage.converged(*newcomers)
    assert stage.channel.snapshots_built == 1


async def test_newcomers_of_the_native_protocol_take_any_snapshot(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_view, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(hub_channel, "REBUILD_SHARE_MAX", 1e9)
    await stage.converged(await stage.subscribe())
    stage.put(pod("a", "changed", version=99))
    await stage.converged(await stage.subscribe())
    assert stage.channel.snapshots_built == 1


def test_how_old_what_a_client_lacks_is_far_back_too() -> None:
    channel = channel_view.WorkerChannel("web", formats.make_encoder(encoder.PLAIN), lambda message: None)
    channel.open(1, start=0, start_sequence=0)
    for number in range(4000):  # 200 s at 20 a second
        channel.publish(100 * (number + 1), number + 1, 1000.0 + number / 20)
    now = 1200.0
    assert channel.age_of(400_000, now) == 0.0
    assert channel.age_of(399_900, now) == pytest.approx(0.05)
    assert channel.age_of(390_000, now) == pytest.approx(5.0, abs=0.06)
    for offset in (0, 100, 50_000, 250_000):
        assert channel.age_of(offset, now) == pytest.approx(200.0 - offset / 2000, abs=1.1)
