"""One worker's fan-out as a whole: admission, draining, and what ends it."""

import asyncio
import functools
import time

import msgspec
import pytest

from protocol import messages
from tests.harness import support
from tests.harness.support import FAST, FEED, Stage, eventually, pod
from tests.typha.conftest import OpenStage
from typha.ipc import link
from typha.worker import channels, client, poller, server


async def test_clients_that_come_before_the_first_sync_are_held_and_served_in_one_go(open_stage: OpenStage) -> None:
    stage = await open_stage()
    stage.put(pod("a"))
    early = [await stage.subscribe() for _ in range(5)]
    for peer in early:
        await peer.read_until(functools.partial(getattr, peer, "hello"))
    await early[0].read_until(lambda: early[0].pings)
    assert early[0].snapshots == 0
    assert stage.hub.channels == {}
    stage.in_sync()
    await stage.converged(*early)
    assert {peer.status for peer in early} == {messages.SyncStatus.IN_SYNC}


async def test_the_hub_hears_how_things_are(stage: Stage) -> None:
    peer = await stage.subscribe()
    silent = await stage.connect()
    await stage.converged(peer)
    await eventually(lambda: stage.handle.report.get("active") == 2)
    assert stage.handle.ready
    assert stage.handle.active == 2
    report = stage.handle.channel_report(stage.channel.number)
    assert report["clients"] == 1
    assert report["held"] == 0
    assert report["min_offset"] == stage.channel.log.end
    assert stage.handle.report["handshaking"] == 1
    silent.close()
    await eventually(lambda: stage.handle.report["disconnects"] == {"client-closed": 1})
    assert stage.handle.report["accepted"] == 2
    stage.put(pod("a", "new", version=3))
    await stage.converged(peer)
    await eventually(lambda: stage.handle.report["feeds"][FEED]["deliveries"] == 1)
    assert stage.handle.report["histograms"][FEED]


async def test_the_hub_sees_when_everybody_has_been_sent_the_last(stage: Stage) -> None:
    await stage.converged(await stage.subscribe())
    for versions in ([10], [11, 12, 13], [14]):
        for version in versions:
            stage.put(pod("a", version, version=version))
        assert stage.handle.ends_under_way == len(versions)
        await eventually(lambda: not stage.handle.ends_under_way)


async def test_the_hub_hears_how_far_the_slowest_is(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, notsent_lowat_bytes=16384, ping_interval_seconds=30.0))
    stage.in_sync()
    slow = await stage.subscribe(receive_buffer_bytes=4096)
    await stage.converged(slow)
    blocked = await stage.block(slow)
    await eventually(lambda: stage.handle.channel_report(1).get("lag_bytes") == stage.channel.log.end - blocked.offset)
    report = stage.handle.channel_report(1)
    assert report["min_offset"] == blocked.offset
    assert report["lag_seconds"] > 0


async def test_what_the_hub_could_not_take_goes_to_it_as_soon_as_it_can(open_stage: OpenStage) -> None:
    """Behind a hub that stood still clients wait for channels and catch-ups: not until the next report."""
    stage = await open_stage(msgspec.structs.replace(FAST, stats_interval_seconds=600.0))
    stage.in_sync()
    stage.loop.remove_reader(stage.link.fileno())
    while not stage.server._link.wants_write:
        stage.server._tell(["trimmed", 1, 0])
    peer = await stage.subscribe()
    await peer.read_until(lambda: peer.hello is not None)
    assert stage.server._link.wants_write
    stage.loop.add_reader(stage.link.fileno(), stage._hear)
    await stage.converged(peer)
    assert not stage.server._link.wants_write


async def test_draining_says_goodbye_to_each_in_time_and_closes_the_listener(stage: Stage) -> None:
    peers = [await stage.subscribe() for _ in range(20)]
    await stage.converged(*peers)
    typing = await stage.connect()
    await stage.client_of(typing)
    begun = time.monotonic()
    ended: list[float] = []

    async def follow(peer: support.Peer) -> None:
        await peer.read_until(lambda: peer.goodbye)
        ended.append(time.monotonic() - begun)
        peer.close()

    stage.handle.tell(["drain", 1.0, 10.0])
    await asyncio.gather(typing.read_to_end(), *(follow(peer) for peer in peers))
    await asyncio.wait_for(stage.task, 10)
    assert stage.disconnects == {"shutting-down": 21}
    for peer in peers:
        assert peer.goodbye is not None
        assert (peer.goodbye.reason, peer.goodbye.retry_after_milliseconds > 0) == ("shutting-down", True)
        assert peer.entries == stage.content
    assert max(ended) < 1.0 + 0.2
    assert ended[10] > 0.3  # one after the other
    with pytest.raises(OSError, match="Bad file descriptor"):
        stage.listener.getsockname()
    stage.handle.hear()
    assert stage.handle.report["disconnects"] == {"shutting-down": 21}


async def test_few_clients_are_drained_with_short_pauses(stage: Stage) -> None:
    peers = [await stage.subscribe() for _ in range(3)]
    await stage.converged(*peers)
    begun = time.monotonic()
    stage.handle.tell(["drain", 300.0, 0.05])
    await asyncio.gather(*(peer.read_to_end() for peer in peers))
    await asyncio.wait_for(stage.task, 10)
    assert time.monotonic() - begun < 5


async def test_draining_without_clients_ends_at_once(stage: Stage) -> None:
    stage.handle.tell(["drain", 300, 10])
    await asyncio.wait_for(stage.task, 2)


async def test_a_drained_client_that_does_not_read_holds_nobody_up(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, notsent_lowat_bytes=16384, ping_interval_seconds=30.0))
    stage.in_sync()
    slow, good = await stage.subscribe(receive_buffer_bytes=4096), await stage.subscribe()
    await stage.converged(slow, good)
    await stage.block(slow)
    stage.handle.tell(["drain", 0.2, 0.1])
    await good.read_to_end()
    assert good.goodbye is not None
    await asyncio.wait_for(stage.task, 5)
    assert stage.disconnects == {"shutting-down": 2}


async def test_without_its_hub_the_fan_out_ends(stage: Stage) -> None:
    peer = await stage.subscribe()
    await stage.converged(peer)
    stage.hang_up()
    with pytest.raises(link.LinkBroken):
        await asyncio.wait_for(stage.task, 5)
    await peer.read_to_end()


async def test_a_message_that_makes_no_sense_ends_the_fan_out(stage: Stage) -> None:
    stage.handle.tell(["frobnicate", 1])
    with pytest.raises(channels.UnknownMessage, match="frobnicate"):
        await asyncio.wait_for(stage.task, 5)


async def test_a_defect_on_one_connection_ends_that_connection(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = await stage.subscribe(), await stage.subscribe()
    await stage.converged(good, bad)
    victim = await stage.client_of(bad)
    readable = stage.server.connections.readable

    def broken(current: client.Client) -> None:
        if current is victim:
            raise ZeroDivisionError("a defect")
        readable(current)

    monkeypatch.setattr(stage.server.connections, "readable", broken)
    bad.say(messages.Pong(0))
    await bad.read_to_end()
    assert stage.disconnects == {"server-error": 1}
    stage.put(pod("z"))
    await stage.converged(good)


async def test_a_defect_in_the_fan_out_itself_ends_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(deadline: float) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(stage.server.delivery, "run", broken)
    await stage.connect()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(stage.task, 5)


async def test_out_of_descriptors_connections_wait(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_OUT_OF_RESOURCES_PAUSE_SECONDS", 0.1)
    accept = stage.server.poller.accept
    failures = 3

    def failing() -> object:
        nonlocal failures
        if failures:
            failures -= 1
            raise poller.OutOfResources("Too many open files")
        return accept()

    monkeypatch.setattr(stage.server.poller, "accept", failing)
    peer = await stage.subscribe()
    await stage.converged(peer)
    assert stage.server.stats.accept_failures == 3


async def test_a_worker_over_its_share_leaves_connections_to_the_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_OVER_SHARE_PAUSE_SECONDS", 0.2)
    peers = [await stage.subscribe() for _ in range(5)]
    await stage.converged(*peers)
    stage.handle.tell(["share", 5])
    await eventually(lambda: stage.server._share == 5)
    begun = time.monotonic()
    late = await stage.subscribe()
    await stage.converged(late)  # there are no others: it comes in after a pause
    assert time.monotonic() - begun >= 0.2


async def test_after_the_end_nothing_is_left(open_stage: OpenStage) -> None:
    before = support.open_descriptors()
    stage = support.Stage(FAST)
    async with stage.running():
        stage.in_sync()
        peers = [await stage.subscribe(features=frozenset({"zstd"} if n % 2 else set())) for n in range(10)]
        await stage.converged(*peers)
        stage.put(pod("a"))
        await stage.converged(*peers)
    assert support.open_descriptors() == before
