"""Slow clients of both protocols, on real sockets: they fall out of the log, and catch up by blocks."""

import asyncio
import base64
import random
from collections.abc import Callable, Coroutine

import msgspec
import pytest

from cache.state.cursor import CursorState
from protocol import messages
from tests.harness import typha_peer, worker_stand
from tests.harness.worker_stand import FAST, HUB_LIMITS, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage
from typha.ipc import messages as ipc
from typha.worker import client, policy

pytestmark = pytest.mark.slow

WAITING, RESYNC, IN_SYNC, CATCHING_UP = messages.SyncStatus
SMALL_BUFFER = 4096
KIBIBYTE = 1024
PATIENT = msgspec.structs.replace(FAST, notsent_lowat_bytes=16 * KIBIBYTE, ping_interval_seconds=30.0)
"""The kernel takes little for a client that does not read, and the client gets no ping."""
SMALL_LOG = msgspec.structs.replace(HUB_LIMITS, log_budget_bytes=512 * KIBIBYTE, segment_bytes=64 * KIBIBYTE)

Join = Callable[[WorkerStand], Coroutine[None, None, worker_stand.Peer]]


async def native(stage: WorkerStand) -> worker_stand.Peer:
    return await stage.subscribe(receive_buffer_bytes=SMALL_BUFFER)


async def native_zstd(stage: WorkerStand) -> worker_stand.Peer:
    return await stage.subscribe(features=frozenset({"zstd"}), receive_buffer_bytes=SMALL_BUFFER)


async def typha(stage: WorkerStand) -> worker_stand.Peer:
    return await typha_peer.join(stage, receive_buffer_bytes=SMALL_BUFFER)


async def typha_plain(stage: WorkerStand) -> worker_stand.Peer:
    return await typha_peer.join(stage, typha_peer.PLAIN_HELLO, receive_buffer_bytes=SMALL_BUFFER)


all_kinds = pytest.mark.parametrize("join", [native, native_zstd, typha, typha_plain])


def noise(seed: int, size: int) -> str:
    """Text that does not compress."""
    return base64.b85encode(random.Random(seed).randbytes(size * 4 // 5)).decode()


async def opened(open_stage: OpenStage, limits: policy.Policy = PATIENT, *, keys: int = 400) -> WorkerStand:
    """In sync, with small objects, and room in the log for half a megabyte."""
    stage = await open_stage(limits, feed_name=typha_peer.FELIX, hub_limits=SMALL_LOG)
    stage.put(*(pod(f"p{number}", number) for number in range(keys)))
    stage.in_sync()
    return stage


async def stall(stage: WorkerStand, slow: worker_stand.Peer) -> client.Client:
    """Changes an object until the client, which does not read, stands inside a frame; returns the server's end."""
    if isinstance(slow, typha_peer.TyphaPeer):
        slow.is_loose = True
    stalled = await stage.client_of(slow)
    version = 1_000_000
    while not stalled.waiting:
        version += 1
        stage.put(pod("filler", noise(version, 30_000), version=version))
        await asyncio.sleep(0.002)
    return stalled


async def take_the_log_back(stage: WorkerStand, *stalled: client.Client) -> None:
    """Changes four objects until the log no longer holds the clients' positions."""
    number = 2
    while any(one.state is not CursorState.CATCHING_UP for one in stalled):
        number += 1
        assert number < 500
        stage.put(pod(f"large-{number % 4}", noise(number, 20_000), version=number))
        await asyncio.sleep(0.001)


async def fall_out(stage: WorkerStand, slow: worker_stand.Peer) -> client.Client:
    """Stalls a client that is in sync until the log no longer holds its position; returns the server's end."""
    stalled = await stall(stage, slow)
    await take_the_log_back(stage, stalled)
    return stalled


@all_kinds
async def test_a_client_that_falls_out_of_the_log_is_caught_up_by_keys(open_stage: OpenStage, join: Join) -> None:
    stage = await opened(open_stage)
    slow = await join(stage)
    await stage.converged(slow)
    fallen = await fall_out(stage, slow)
    stage.put(*(pod(f"p{number}", "changed", version=9) for number in range(50)), pod("new"), pod("brief"))
    for name in ("p60", "p61", "brief"):
        stage.delete(name)
    before = slow.updates
    await stage.converged(slow)
    assert slow.snapshots <= 1
    assert set(slow.deleted) >= {"p60", "p61"}
    is_native = not isinstance(slow, typha_peer.TyphaPeer)
    assert slow.told == ([IN_SYNC, CATCHING_UP, IN_SYNC] if is_native else [IN_SYNC])
    assert slow.updates - before < 100
    if isinstance(slow, typha_peer.TyphaPeer):
        assert set(slow.types[-50:]) <= {messages.UpdateType.UPDATED, messages.UpdateType.DELETED}
    assert stage.server.stats.counts.catch_ups == 1
    assert stage.disconnects == {}
    await eventually(lambda: fallen.state is CursorState.FOLLOWING)
    if isinstance(slow, typha_peer.TyphaPeer):
        slow.is_loose = False
    stage.put(pod("last"))
    stage.delete("p70")
    await stage.converged(slow)


@pytest.mark.parametrize(
    ("during", "told"),
    [
        ([RESYNC, IN_SYNC], [IN_SYNC]),
        ([RESYNC], [IN_SYNC, RESYNC]),
        ([RESYNC, IN_SYNC, RESYNC, IN_SYNC, RESYNC], [IN_SYNC, RESYNC]),
        ([], [IN_SYNC]),
    ],
)
async def test_a_typha_client_is_told_a_status_only_if_it_is_news(
    open_stage: OpenStage, during: list[messages.SyncStatus], told: list[messages.SyncStatus]
) -> None:
    stage = await opened(open_stage)
    slow = await typha(stage)
    await stage.converged(slow)
    await fall_out(stage, slow)
    for status in during:
        stage.hub.status(worker_stand.PODS, status)
        stage.commit()
    await slow.read_until(lambda: slow.entries == stage.content)
    await slow.read_until(lambda: slow.told == told)
    stage.in_sync()
    stage.put(pod("last"))
    await stage.converged(slow)
    assert slow.told == (told if told[-1] is IN_SYNC else [*told, IN_SYNC])


async def test_a_status_that_came_with_the_log_counts_as_told(open_stage: OpenStage) -> None:
    """The log has told it "resync". The "in sync" is in the part of the log that it has lost."""
    stage = await opened(open_stage)
    slow = await typha(stage)
    await stage.converged(slow)
    stage.hub.status(worker_stand.PODS, RESYNC)
    stage.commit()
    await slow.read_until(lambda: slow.told == [IN_SYNC, RESYNC])
    await fall_out(stage, slow)
    stage.in_sync()
    await stage.converged(slow)
    assert slow.told == [IN_SYNC, RESYNC, IN_SYNC]


async def test_native_clients_are_always_told_how_it_ended(open_stage: OpenStage) -> None:
    stage = await opened(open_stage)
    slow = await native(stage)
    await stage.converged(slow)
    await fall_out(stage, slow)
    stage.hub.status(worker_stand.PODS, RESYNC)
    stage.commit()
    await slow.read_until(lambda: slow.told == [IN_SYNC, CATCHING_UP, RESYNC])
    assert slow.entries == stage.content
    stage.in_sync()
    await stage.converged(slow)


async def test_clients_that_fell_out_together_share_their_blocks(open_stage: OpenStage) -> None:
    stage = await opened(open_stage)
    slow = [await native(stage) for _ in range(8)]
    await stage.converged(*slow)
    stalled = [await stall(stage, one) for one in slow]
    await take_the_log_back(stage, *stalled)
    assert len({one.sequence for one in stalled}) <= 3
    await stage.converged(*slow)
    assert stage.server.stats.counts.catch_ups >= 8
    assert stage.hub.catch_ups.blocks_made <= 8


@all_kinds
async def test_waiting_for_a_block_costs_no_client_its_connection(open_stage: OpenStage, join: Join) -> None:
    """While the hub hangs, pings go on, and a client that leaves is forgotten."""
    limits = msgspec.structs.replace(PATIENT, ping_interval_seconds=0.4)
    stage = await opened(open_stage, limits)
    slow, leaver = await join(stage), await join(stage)
    await stage.converged(slow, leaver)
    stage.holds_blocks = True
    await fall_out(stage, slow)
    await fall_out(stage, leaver)
    silent_from = slow.pings
    await slow.read_until(lambda: slow.pings >= silent_from + 3)
    assert slow.longest_silence_seconds < 20
    leaver.close()
    await eventually(lambda: stage.disconnects == {"client-closed": 1})
    assert slow.entries != stage.content
    stage.holds_blocks = False
    stage.make_blocks()
    await stage.converged(slow)
    assert slow.snapshots <= 1


@all_kinds
async def test_more_start_points_than_blocks_take_turns(open_stage: OpenStage, join: Join) -> None:
    limits = msgspec.structs.replace(PATIENT, catch_up_blocks=1)
    stage = await opened(open_stage, limits)
    slow = [await join(stage) for _ in range(4)]
    await stage.converged(*slow)
    for one in slow:
        await fall_out(stage, one)  # each in another part of the log
    assert len(stage.server.catch_up._blocks) + len(stage.server.catch_up._asked) <= 1
    await stage.converged(*slow)
    assert len(stage.server.catch_up._waiting) == 0
    assert stage.disconnects == {}


async def test_forgotten_deletions_end_a_typha_client_and_cost_a_native_one_a_snapshot(open_stage: OpenStage) -> None:
    stage = await opened(open_stage)
    old, lost = await native(stage), await typha(stage)
    await stage.converged(old, lost)
    stage.holds_blocks = True
    for one in (old, lost):
        await fall_out(stage, one)
    for number in range(100):
        stage.delete(f"p{number}")
    stage.feed.store.forget_deletions(stage.feed.store.sequence)
    stage.holds_blocks = False
    stage.make_blocks()
    await stage.converged(old)
    assert (old.snapshots, old.told) == (2, [IN_SYNC, CATCHING_UP, IN_SYNC])
    await lost.read_to_end()
    assert stage.disconnects == {"fell-behind": 1}


async def test_where_most_keys_have_changed_native_clients_get_a_snapshot(open_stage: OpenStage) -> None:
    stage = await opened(open_stage)
    slow, patient = await native(stage), await typha(stage)
    await stage.converged(slow, patient)
    for one in (slow, patient):
        await fall_out(stage, one)
    stage.put(*(pod(f"p{number}", "changed", version=5) for number in range(300)))
    await stage.converged(slow, patient)
    assert slow.snapshots == 2
    assert slow.told == [IN_SYNC, CATCHING_UP, IN_SYNC]
    assert patient.told == [IN_SYNC]
    assert stage.disconnects == {}


@all_kinds
async def test_the_log_goes_again_while_a_client_reads_its_blocks(open_stage: OpenStage, join: Join) -> None:
    stage = await opened(open_stage)
    slow = await join(stage)
    await stage.converged(slow)
    fallen = await fall_out(stage, slow)
    stage.put(*(pod(f"p{number}", noise(number, 10_000), version=5) for number in range(60)))
    for number in range(20):
        stage.delete(f"p{number + 100}")
        for _ in range(5):
            slow.read(3000)
            await asyncio.sleep(0.001)
        for version in range(10):
            stage.put(pod(f"large-{version % 4}", noise(number * 10 + version, 20_000), version=number * 10 + version))
    assert fallen.state is CursorState.CATCHING_UP
    await stage.converged(slow)
    is_native = not isinstance(slow, typha_peer.TyphaPeer)
    assert slow.told == ([IN_SYNC, CATCHING_UP, IN_SYNC] if is_native else [IN_SYNC])
    assert stage.server.stats.counts.catch_ups == 1
    assert stage.disconnects == {}


@all_kinds
async def test_a_client_whose_snapshot_lost_its_log_catches_up_and_is_in_sync_only_then(
    open_stage: OpenStage, join: Join
) -> None:
    stage = await opened(open_stage, keys=10)
    stage.put(*(pod(f"p{number}", noise(number, 10_000), version=5) for number in range(200)))
    slow = await join(stage)
    if isinstance(slow, typha_peer.TyphaPeer):
        slow.is_loose = True
    if join is typha:
        await slow.read_until(lambda: len(slow.received) > 100)  # it has sent its ACK
    reader = await stage.client_of(slow)
    await eventually(lambda: reader.state is CursorState.SNAPSHOT and reader.waiting)
    at_arrival = stage.content
    for number in range(200):
        stage.put(pod(f"large-{number % 4}", noise(number, 20_000), version=number + 2))
    stage.delete("p7")
    assert reader.state is CursorState.SNAPSHOT
    await slow.read_until(lambda: slow.told and slow.told[-1] is IN_SYNC)
    assert slow.entries.keys() >= at_arrival.keys() - {"/core/v1/pods/default/p7"}
    await stage.converged(slow)
    is_native = not isinstance(slow, typha_peer.TyphaPeer)
    assert slow.told == ([CATCHING_UP, IN_SYNC] if is_native else [IN_SYNC])
    assert slow.snapshots == (1 if is_native else 0)
    assert stage.disconnects == {}


async def test_slow_clients_that_left_hold_no_files(open_stage: OpenStage) -> None:
    stage = await opened(open_stage)
    before = worker_stand.descriptors_before()
    for round_number in range(3):
        slow = await native(stage)
        await stage.converged(slow)
        await fall_out(stage, slow)
        stage.put(*(pod(f"p{number}", noise(number, 5000), version=round_number + 9) for number in range(100)))
        for _ in range(50):
            slow.read(2000)
            await asyncio.sleep(0.001)
        slow.close()
        await eventually(lambda: not stage.server.poller.clients)
    stage.server.catch_up.tidy()
    stage.hub.catch_ups.close()
    assert stage.server.catch_up._blocks_held == 0
    assert worker_stand.open_descriptors() < before + 7 * 12  # the log's budget allows this many segments


@all_kinds
async def test_a_client_that_has_fallen_out_is_seen_to_lag(open_stage: OpenStage, join: Join) -> None:
    stage = await opened(open_stage)
    slow = await join(stage)
    await stage.converged(slow)
    stage.holds_blocks = True
    await fall_out(stage, slow)
    number = stage.channel.number

    def report() -> ipc.ChannelReport:
        return stage.handle.report.channels.get(number, ipc.ChannelReport())

    await eventually(lambda: report().catching_up)
    await eventually(lambda: report().lag_seconds > 0.2)
    assert report().lag_bytes > 300 * KIBIBYTE
    assert report().min_offset == stage.channel.log.end
    stage.holds_blocks = False
    stage.make_blocks()
    await stage.converged(slow)
    await eventually(lambda: not report().catching_up)
    await eventually(lambda: report().lag_bytes == 0)


async def test_a_closed_channel_takes_its_waiting_clients_and_blocks_along(open_stage: OpenStage) -> None:
    stage = await opened(open_stage)
    slow = await native(stage)
    await stage.converged(slow)
    stage.holds_blocks = True
    await fall_out(stage, slow)
    await slow.read_until(lambda: stage.hub.catch_ups.has_work)
    stage.hub._close_channel(stage.channel)
    await slow.read_to_end()
    assert slow.goodbye is not None
    assert slow.goodbye.reason == "feed-removed"
    stage.holds_blocks = False
    stage.make_blocks()
    assert (stage.hub.catch_ups.blocks_made, stage.server.catch_up._waiting) == (0, {})
    newcomer = await stage.subscribe()
    await stage.converged(newcomer)
