"""A worker as a whole: what the hub tells it and hears of it, draining, and what ends it."""

import asyncio
import functools
import time

import msgspec
import pytest
import structlog

from protocol import messages
from tests.harness import full_transport, worker_stand
from tests.harness.worker_stand import FAST, FEED, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage
from typha import clock
from typha.ipc import link
from typha.ipc import messages as ipc
from typha.worker import poller, transport

pytestmark = pytest.mark.slow


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


async def test_the_hub_hears_how_things_are(stage: WorkerStand) -> None:
    peer = await stage.subscribe()
    silent = await stage.connect()
    await stage.converged(peer)
    await eventually(lambda: stage.handle.report.active == 2)
    await eventually(lambda: stage.channel.number in stage.handle.report.channels)  # which may come a report later
    assert stage.handle.ready
    await eventually(lambda: stage.handle.report.channels[stage.channel.number].held == 0)  # in the next report
    report = stage.handle.report.channels[stage.channel.number]
    assert report.clients == 1
    assert report.min_offset == stage.channel.log.end
    assert len(stage.server.connections.handshaking) == 1
    silent.close()
    await eventually(lambda: stage.handle.report.counts.disconnects == {"client-closed": 1})
    assert stage.handle.report.counts.accepted == 2
    stage.put(pod("a", "new", version=3))
    await stage.converged(peer)
    await eventually(lambda: stage.handle.report.counts.feeds[FEED].deliveries == 1)
    await eventually(lambda: stage.handle.histograms.get(FEED))


async def test_the_hub_sees_when_all_clients_have_been_sent_the_newest(stage: WorkerStand) -> None:
    await stage.converged(await stage.subscribe())
    for versions in ([10], [11, 12, 13], [14]):
        for version in versions:
            stage.put(pod("a", version, version=version))
        assert stage.handle.publishes_under_way == len(versions)
        await eventually(lambda: not stage.handle.publishes_under_way)


async def test_the_hub_hears_how_far_the_slowest_is(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, notsent_lowat_bytes=16384, ping_interval_seconds=30.0))
    stage.in_sync()
    slow = await stage.subscribe(receive_buffer_bytes=4096)
    await stage.converged(slow)
    blocked = await stage.block(slow)
    await eventually(lambda: 1 in stage.handle.report.channels)
    await eventually(lambda: stage.handle.report.channels[1].lag_bytes == stage.channel.log.end - blocked.offset > 0)
    report = stage.handle.report.channels[1]
    assert report.min_offset == blocked.offset
    assert report.lag_seconds > 0


async def test_what_the_hub_could_not_take_goes_to_it_as_soon_as_it_can(open_stage: OpenStage) -> None:
    """While the hub stands still, clients wait for channels and blocks; they do not wait for the next report too."""
    stage = await open_stage(msgspec.structs.replace(FAST, stats_interval_seconds=600.0))
    stage.in_sync()
    stage.loop.remove_reader(stage.link.fileno())
    while not stage.server._link.wants_write:
        stage.server._link.send(ipc.Ready())
    peer = await stage.subscribe()
    await peer.read_until(lambda: peer.hello is not None)
    assert stage.server._link.wants_write
    stage.loop.add_reader(stage.link.fileno(), stage._hear)
    await stage.converged(peer)
    assert not stage.server._link.wants_write


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_time")
async def test_draining_says_goodbye_to_each_in_time_and_closes_the_listener(stage: WorkerStand) -> None:
    peers = [await stage.subscribe() for _ in range(20)]
    await stage.converged(*peers)
    typing = await stage.connect()
    await stage.client_of(typing)
    begun = clock.monotonic()
    ended: list[float] = []

    async def follow(peer: worker_stand.Peer) -> None:
        await peer.read_until(lambda: peer.goodbye)
        ended.append(clock.monotonic() - begun)
        peer.close()

    stage.handle.send(ipc.Drain(1.0, 10.0))
    await asyncio.gather(typing.read_to_end(), *(follow(peer) for peer in peers))
    await asyncio.wait_for(stage.task, 180)
    assert stage.disconnects == {"shutting-down": 21}
    for peer in peers:
        assert peer.goodbye is not None
        assert (peer.goodbye.reason, peer.goodbye.retry_after_milliseconds > 0) == ("shutting-down", True)
        assert peer.entries == stage.content
    assert max(ended) < 1.0 + 0.2
    assert ended[10] > 0.3  # one after the other
    with pytest.raises(OSError, match="Bad file descriptor"):
        stage.listener.getsockname()
    stage.hub.hear(stage.handle)
    assert stage.handle.report.counts.disconnects == {"shutting-down": 21}


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_time")
async def test_few_clients_are_drained_with_short_pauses(stage: WorkerStand) -> None:
    peers = [await stage.subscribe() for _ in range(3)]
    await stage.converged(*peers)
    begun = clock.monotonic()
    stage.handle.send(ipc.Drain(300.0, 0.05))
    await asyncio.gather(*(peer.read_to_end() for peer in peers))
    await asyncio.wait_for(stage.task, 180)
    assert clock.monotonic() - begun < 5


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_time")
async def test_draining_without_clients_ends_at_once(stage: WorkerStand) -> None:
    stage.handle.send(ipc.Drain(300, 10))
    await asyncio.wait_for(stage.task, 2)


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_time")
async def test_clients_of_other_workers_count_for_the_pace_of_a_drain(stage: WorkerStand) -> None:
    peers = [await stage.subscribe() for _ in range(3)]
    await stage.converged(*peers)
    begun = clock.monotonic()
    stage.handle.send(ipc.Drain(300.0, 1.0, others=17))
    await asyncio.gather(*(peer.read_to_end() for peer in peers))
    await asyncio.wait_for(stage.task, 180)
    assert 18 < clock.monotonic() - begun < 22


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_time")
async def test_a_worker_that_hears_late_of_the_drain_ends_in_time(stage: WorkerStand) -> None:
    peers = [await stage.subscribe() for _ in range(3)]
    await stage.converged(*peers)
    begun = clock.monotonic()
    stage.handle.send(ipc.Drain(300.0, 300.0, sent_at=begun - 270.0))
    await asyncio.gather(*(peer.read_to_end() for peer in peers))
    await asyncio.wait_for(stage.task, 180)
    assert 25 < clock.monotonic() - begun < 30


async def test_a_drained_client_that_does_not_read_delays_no_other(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, notsent_lowat_bytes=16384, ping_interval_seconds=30.0))
    stage.in_sync()
    slow, good = await stage.subscribe(receive_buffer_bytes=4096), await stage.subscribe()
    await stage.converged(slow, good)
    await stage.block(slow)
    stage.handle.send(ipc.Drain(0.2, 0.1))
    await good.read_to_end()
    assert good.goodbye is not None
    await asyncio.wait_for(stage.task, worker_stand.TIMEOUT_SECONDS)
    assert stage.disconnects == {"shutting-down": 2}


async def test_without_its_hub_the_worker_ends(stage: WorkerStand) -> None:
    peer = await stage.subscribe()
    await stage.converged(peer)
    stage.hang_up()
    with pytest.raises(link.LinkBroken):
        await asyncio.wait_for(stage.task, worker_stand.TIMEOUT_SECONDS)
    await peer.read_to_end()


async def test_a_message_that_makes_no_sense_ends_the_worker(stage: WorkerStand) -> None:
    stage.link.send(["frobnicate", 1])
    with pytest.raises(msgspec.ValidationError, match="frobnicate"):
        await asyncio.wait_for(stage.task, worker_stand.TIMEOUT_SECONDS)


class DefectiveTransport(full_transport.FullTransport):
    """Receiving fails for one connection, with an error that no socket raises."""

    def __init__(self) -> None:
        super().__init__()
        self.victim: transport.Connection | None = None
        self.is_broken = False

    def receive(self, connection: transport.Connection, limit: int, /) -> bytes:
        """As a plain socket, or the defect."""
        if self.is_broken or connection is self.victim:
            raise ZeroDivisionError("a defect")
        return transport.PlainTransport.receive(connection, limit)


async def test_a_defect_on_one_connection_ends_that_connection(open_stage: OpenStage) -> None:
    defective = DefectiveTransport()
    stage = await open_stage(bytes_through=defective)
    stage.put(*(pod(name, "x") for name in ("a", "b", "c")))
    stage.in_sync()
    good, bad = await stage.subscribe(), await stage.subscribe()
    await stage.converged(good, bad)
    defective.victim = (await stage.client_of(bad)).socket
    bad.say(messages.Pong(0))
    await bad.read_to_end()
    assert stage.disconnects == {"server-error": 1}
    stage.put(pod("z"))
    await stage.converged(good)


async def test_defects_on_many_connections_are_logged_up_to_a_number_a_second(open_stage: OpenStage) -> None:
    defective = DefectiveTransport()
    stage = await open_stage(bytes_through=defective)
    stage.put(pod("a"))
    stage.in_sync()
    peers = [await stage.subscribe() for _ in range(30)]
    await stage.converged(*peers)
    defective.is_broken = True
    stopped_at = clock.monotonic()
    with (
        clock.replaced(monotonic=lambda: stopped_at, time_ns=time.time_ns),
        structlog.testing.capture_logs() as lines,
    ):
        for peer in peers:
            peer.say(messages.Pong(0))
        for peer in peers:
            await peer.read_to_end()
    assert stage.disconnects == {"server-error": 30}
    assert [line["event"] for line in lines].count("Defect on a connection") == 20


class Panic(BaseException):
    """As Rust's is."""


@pytest.mark.parametrize("kind", [ZeroDivisionError, Panic])
async def test_a_defect_of_the_worker_itself_ends_it(
    kind: type[BaseException], stage: WorkerStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(deadline: float) -> None:
        raise kind("a defect")

    monkeypatch.setattr(stage.server.delivery, "run", broken)
    await stage.connect()
    with pytest.raises(kind):
        await asyncio.wait_for(stage.task, worker_stand.TIMEOUT_SECONDS)


async def test_out_of_descriptors_connections_wait(open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, out_of_resources_pause_seconds=0.1))
    stage.in_sync()
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


async def test_a_worker_over_its_share_leaves_connections_to_the_others(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, over_share_pause_seconds=0.2))
    stage.in_sync()
    peers = [await stage.subscribe() for _ in range(5)]
    await stage.converged(*peers)
    stage.handle.send(ipc.LimitConnections(5))
    await eventually(lambda: stage.server._share == 5)
    begun = time.monotonic()
    late = await stage.subscribe()
    await stage.converged(late)  # no other worker accepts it, so this one does after a pause
    assert time.monotonic() - begun >= 0.2


async def test_after_the_end_nothing_is_left(open_stage: OpenStage) -> None:
    before = worker_stand.descriptors_before()
    stage = worker_stand.WorkerStand(FAST)
    async with stage.running():
        stage.in_sync()
        peers = [await stage.subscribe(features=frozenset({"zstd"} if n % 2 else set())) for n in range(10)]
        await stage.converged(*peers)
        stage.put(pod("a"))
        await stage.converged(*peers)
    assert worker_stand.open_descriptors() == before


async def test_clients_of_a_closed_channel_are_told_to_come_again(stage: WorkerStand) -> None:
    live = await stage.subscribe()
    await stage.converged(live)
    stage.hub._close_channel(stage.channel)
    await live.read_to_end()
    assert live.goodbye is not None
    assert live.goodbye.reason == "feed-removed"
    assert stage.disconnects == {"feed-removed": 1}
    again = await stage.subscribe()
    await stage.converged(again)
    stage.put(pod("new"))
    await stage.converged(again)


async def test_closed_channels_leave_no_descriptor(stage: WorkerStand) -> None:
    counts: list[int] = []
    for _ in range(4):
        peer = await stage.subscribe()
        await stage.converged(peer)
        stage.put(pod("a", "grow", version=len(counts) + 5))
        await stage.converged(peer)
        peer.close()
        await eventually(lambda: not stage.server.poller.clients)
        stage.hub._close_channel(stage.channel)
        await eventually(lambda: not stage.server.channels.numbered())
        counts.append(worker_stand.open_descriptors())
    assert len(set(counts)) == 1


async def test_held_clients_of_a_channel_without_a_snapshot_wait_for_the_next_one(open_stage: OpenStage) -> None:
    stage = await open_stage()
    stage.in_sync()
    stage.holds_snapshots = True
    peer = await stage.subscribe()
    await peer.read_until(lambda: peer.pings)
    channel = (await stage.client_of(peer)).channel
    assert channel is not None
    assert list(channel.held) == [await stage.client_of(peer)]
    stage.put(pod("a"))
    await asyncio.sleep(0)
    assert peer.snapshots == 0
    stage.holds_snapshots = False
    stage.make_snapshots()
    await stage.converged(peer)
    assert not channel.held


async def test_clients_of_a_feed_that_will_not_come_are_refused_then_and_later(open_stage: OpenStage) -> None:
    stage = await open_stage()
    held = await stage.subscribe()
    await held.read_until(lambda: held.pings)
    stage.handle.send(ipc.WithdrawFeeds([FEED]))
    for refused in (held, await stage.subscribe()):
        await refused.read_to_end()
        assert refused.goodbye is not None
        assert refused.goodbye.reason == "unknown-feed"
    assert stage.hub.channels == {}


async def test_clients_are_handed_over_and_newcomers_stay(stage: WorkerStand) -> None:
    stage.put(pod("a"))
    old = [await stage.subscribe() for _ in range(5)]
    await stage.converged(*old)
    stage.handle.send(ipc.HandOver(0.5, ["10.0.0.2:5473"]))
    await eventually(lambda: stage.server._departures._leavers)
    newcomer = await stage.subscribe()
    await stage.converged(newcomer)
    for peer in old:
        await peer.read_to_end()
        assert peer.goodbye is not None
        assert (peer.goodbye.reason, peer.goodbye.retry_after_milliseconds) == ("rebalanced", 0)
        assert peer.goodbye.servers == ("10.0.0.2:5473",)
    assert stage.disconnects == {"rebalanced": 5}
    stage.handle.send(ipc.HandOver(1000.0, []))
    await eventually(lambda: stage.server._departures._leavers)
    stage.handle.send(ipc.KeepClients())
    await eventually(lambda: not stage.server._departures._leavers)
    stage.put(pod("b"))
    await stage.converged(newcomer)
