"""Clients that come back, on real sockets: in the log, by blocks, by digests; liars; many of them."""

import contextlib
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest

from clients import mirror
from protocol import messages, reasons
from tests.harness import worker_stand
from tests.harness.returning import Returning
from tests.harness.worker_stand import FAST, HUB_LIMITS, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage, OpenTlsStage

INCARNATION = bytes(16)
SMALL_LOG = msgspec.structs.replace(HUB_LIMITS, log_budget_bytes=2 * 1024 * 1024, segment_bytes=128 * 1024)
PODS = 600
PODS_DIGESTS = 8
KEY_2 = "/core/v1/pods/default/pod-2"


class ReturningPeer(worker_stand.Peer):
    """The socket of a returning client."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self.client = Returning(worker_stand.FEED)

    def _hear(self, data: bytes) -> bytes:
        self.client.receive(data)
        return self.client.connection.data_to_send()


async def come_back(stage: WorkerStand, client: Returning) -> ReturningPeer:
    """A new connection of the client, which has the map and is in sync at the end."""
    peer = await stage.join(ReturningPeer)
    peer.client = client
    peer.send(client.connect())
    await peer.read_until(lambda: client.status is messages.SyncStatus.IN_SYNC and client.entries == stage.content)
    assert client.differ.position == (INCARNATION, stage.feed.store.sequence)
    return peer


async def leave(stage: WorkerStand, peer: ReturningPeer) -> None:
    before = sum(stage.disconnects.values())
    peer.close()
    await eventually(lambda: sum(stage.disconnects.values()) > before)


def fill(stage: WorkerStand, *, version: int = 1, count: int = PODS) -> None:
    stage.put(*(pod(f"pod-{number}", "x" * 500, version=version) for number in range(count)))


@contextlib.asynccontextmanager
async def filled(open_stage: OpenStage, **arguments: object) -> AsyncIterator[WorkerStand]:
    """A service with some chunks of pods, all of whose snapshots are current."""
    stage = await open_stage(FAST, **arguments)
    fill(stage)
    stage.in_sync()
    yield stage
    assert stage.broken == []


def counts(stage: WorkerStand) -> tuple[int, int, int]:
    """Clients that resumed by position, snapshots in part, and all snapshots."""
    found = stage.server.stats.feeds[worker_stand.FEED].counts
    return found.resumed, found.snapshots_in_part, found.snapshots_sent


async def test_a_client_continues_in_the_log(open_stage: OpenStage) -> None:
    async with filled(open_stage) as stage:
        client = Returning(worker_stand.FEED)
        await leave(stage, await come_back(stage, client))
        stage.put(pod("pod-1", "new", version=2))
        stage.delete("pod-2")
        await come_back(stage, client)
        assert client.kinds[:3] == [messages.ServerHello, messages.Updates, messages.Updates]
        assert [[update.key for update in batch.updates] for batch in client.batches] == [
            ["/core/v1/pods/default/pod-1"],
            ["/core/v1/pods/default/pod-2"],
        ]
        assert counts(stage) == (1, 0, 1)
        assert stage.server.stats.feeds[worker_stand.FEED].counts.deliveries == 2
        stage.put(pod("pod-3", "newer", version=3))
        peer = await come_back(stage, client)
        assert client.kinds[-2:] == [messages.Updates, messages.Status]
        await leave(stage, peer)


async def test_a_client_that_has_missed_nothing_gets_a_status(open_stage: OpenStage) -> None:
    async with filled(open_stage) as stage:
        client = Returning(worker_stand.FEED)
        await leave(stage, await come_back(stage, client))
        await come_back(stage, client)
        assert client.kinds == [messages.ServerHello, messages.Status]
        assert client.batches == []
        assert client.received_bytes < 300


async def test_a_client_whose_place_the_log_has_lost_gets_blocks(open_stage: OpenStage) -> None:
    async with filled(open_stage, hub_limits=SMALL_LOG) as stage:
        client = Returning(worker_stand.FEED)
        stays = await come_back(stage, Returning(worker_stand.FEED))
        await leave(stage, await come_back(stage, client))
        for version in range(2, 100):
            stage.put(pod("pod-7", str(version).rjust(60_000, "y"), version=version))
            stays.read()
        stage.delete("pod-8")
        await stays.read_until(lambda: stays.client.entries == stage.content)
        await come_back(stage, client)
        assert client.kinds[:2] == [messages.ServerHello, messages.Status]
        assert messages.SnapshotBegin not in client.kinds
        assert client.received_bytes < 200_000
        assert counts(stage)[0] == 1


async def test_a_status_in_the_log_makes_no_old_map_current(open_stage: OpenStage) -> None:
    async with filled(open_stage) as stage:
        client = Returning(worker_stand.FEED)
        await leave(stage, await come_back(stage, client))
        stage.put(pod("pod-1", "older", version=2))
        for status in (messages.SyncStatus.RESYNC, messages.SyncStatus.IN_SYNC):
            stage.hub.status(worker_stand.PODS, status)
            stage.commit()
        stage.put(pod("pod-1", "newest", version=3))
        await come_back(stage, client)
        assert client.kinds[:2] == [messages.ServerHello, messages.Status]
        assert len(client.batches) == 1


def reincarnated(client: Returning) -> None:
    """What the client has is of another replica."""
    assert client.differ.position is not None
    client.differ.position = messages.ResumePosition(b"another replica.", client.differ.position.sequence)


@pytest.mark.parametrize("changed", [0, 1, PODS])
async def test_only_chunks_that_differ_are_sent(open_stage: OpenStage, changed: int) -> None:
    async with filled(open_stage) as stage:
        client = Returning(worker_stand.FEED)
        await leave(stage, await come_back(stage, client))
        whole_bytes = client.received_bytes
        fill(stage, version=2, count=0)
        stage.put(*(pod(f"pod-{number}", "new", version=2) for number in range(changed)))
        stage.hub.snapshots.request(stage.channel)
        stage.make_snapshots()
        reincarnated(client)
        await come_back(stage, client)
        if changed == PODS:
            assert messages.SnapshotBegin in client.kinds
            assert counts(stage) == (0, 0, 2)
        else:
            assert client.kinds[1] is messages.SnapshotResume
            assert client.kinds.count(messages.SnapshotChunk) == changed
            assert client.received_bytes < whole_bytes / 2
            assert sum(len(batch.updates) for batch in client.batches) == changed
            assert counts(stage) == (0, 1, 2)


async def test_pieces_through_tls(open_tls: OpenTlsStage) -> None:
    """With small buffers, so that pieces are sealed and cannot be sent."""
    stage = await open_tls()
    stage.put(*(pod(f"pod-{number}", "x" * 3000) for number in range(1000)))
    client = Returning(worker_stand.FEED)
    await leave(stage, await come_back(stage, client))
    stage.put(*(pod(f"pod-{number}", "y" * 3000, version=2) for number in range(0, 1000, 300)))
    stage.hub.snapshots.request(stage.channel)
    stage.make_snapshots()
    reincarnated(client)
    peer = await stage.join(ReturningPeer, receive_buffer_bytes=4096)
    peer.client = client
    peer.send(client.connect())
    await peer.read_until(lambda: client.status is messages.SyncStatus.IN_SYNC)
    assert client.entries == stage.content
    assert messages.SnapshotResume in client.kinds
    assert stage.disconnects == {"client-closed": 1}


async def test_lies_about_a_position_harm_nobody(open_stage: OpenStage) -> None:
    async with filled(open_stage) as stage:
        honest = await come_back(stage, Returning(worker_stand.FEED))
        newest = stage.feed.store.sequence
        for sequence in (0, 1, newest - 1, newest + 1, (1 << 64) - 1):
            client = Returning(worker_stand.FEED)
            peer = await stage.join(ReturningPeer)
            peer.client = client
            client.differ.chunks = 1
            client.differ.position = messages.ResumePosition(INCARNATION, sequence)
            peer.send(client.connect())
            await peer.read_until(lambda: client.status is messages.SyncStatus.IN_SYNC)  # noqa: B023
            has_lied_well = sequence == newest - 1
            assert has_lied_well or client.entries == stage.content, sequence
        await come_back(stage, honest.client)
        assert set(stage.disconnects) <= {"client-closed"}


async def test_a_client_that_is_refused_blocks_gets_pieces(open_stage: OpenStage) -> None:
    """The store does not know all deletions any more."""
    async with filled(open_stage, hub_limits=SMALL_LOG) as stage:
        client = Returning(worker_stand.FEED)
        await leave(stage, await come_back(stage, client))
        stage.delete("pod-8")
        stage.feed.store.tombstone_floor = stage.feed.store.sequence
        for status in (messages.SyncStatus.RESYNC, messages.SyncStatus.IN_SYNC):  # the log cannot be used either
            stage.hub.status(worker_stand.PODS, status)
            stage.commit()
        await come_back(stage, client)
        assert client.kinds[:3] == [messages.ServerHello, messages.Status, messages.SnapshotResume]
        assert sum(len(batch.updates) for batch in client.batches) == 1


async def test_a_map_that_is_not_what_its_digests_say_is_replaced_at_the_next_connection(open_stage: OpenStage) -> None:
    async with filled(open_stage) as stage:
        host, port = stage.address
        async with mirror.Mirror(f"{host}:{port}", feed=worker_stand.FEED, agent="mirror") as pods:
            await pods.wait_in_sync(timeout_seconds=worker_stand.TIMEOUT_SECONDS)
            known = pods._follower._differ
            known.position = messages.ResumePosition(b"another replica.", 7)
            known._known["/nobody/has/this"] = known._known.pop("/core/v1/pods/default/pod-1")._replace(revision="0")
            stage.put(pod("pod-2", "new", version=2))
            stage.hub.snapshots.request(stage.channel)
            stage.make_snapshots()
            await eventually(lambda: pods["/core/v1/pods/default/pod-2"].value == stage.content[KEY_2])
            for current in list(stage.server.poller.clients.values()):
                stage.server.connections.close(current, reasons.DisconnectReason.REBALANCED)
            await eventually(lambda: not pods.in_sync)
            await eventually(lambda: pods.in_sync)
            assert {key: entry.value for key, entry in pods.items()} == stage.content
            assert pods._follower.connections >= 2


async def test_clients_wait_with_their_digests_for_the_first_snapshot(open_stage: OpenStage) -> None:
    """There is room for the digests of two of them. The third gets a whole snapshot."""
    stage = await open_stage(msgspec.structs.replace(FAST, chunk_digests_max=2 * PODS_DIGESTS))
    fill(stage)
    stage.hub.commit()
    peers: list[ReturningPeer] = []
    for _ in range(3):
        peer = await stage.join(ReturningPeer)
        updates = [entry.as_update() for entry in stage.feed.store]
        peer.client.differ.restore(updates, position=None, chunks=PODS_DIGESTS)
        peer.client.entries = stage.content
        peer.send(peer.client.connect())
        await eventually(lambda: stage.hub.workers[1].report.active == len(peers) + 1)
        peers.append(peer)
    stage.in_sync()
    for peer in peers:
        client = peer.client
        await peer.read_until(lambda: client.status is messages.SyncStatus.IN_SYNC)  # noqa: B023
        assert client.entries == stage.content
    kinds = [kind for peer in peers for kind in peer.client.kinds]
    assert (kinds.count(messages.SnapshotResume), kinds.count(messages.SnapshotBegin)) == (2, 1)
    [channel] = stage.server.channels
    assert (channel._digests, channel._resumptions) == (0, {})
