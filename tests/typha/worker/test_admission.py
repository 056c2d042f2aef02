"""Storms: hellos newest first, snapshots a few at a time, and nobody left out."""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterable, Iterator

import msgspec
import pytest

from cache.state import cursor
from protocol import formats, messages, reasons
from protocol.native import encoder
from tests.harness.support import FAST, Peer, Stage, eventually, pod
from tests.typha.conftest import OpenStage
from typha.worker import admission, client, policy, transport
from typha.worker.channel import WorkerChannel

LIMITS = policy.Policy(
    snapshot_slots=3,
    snapshot_patience_seconds=0.5,
    snapshots_open_max=5,
    snapshot_stall_seconds=4.0,
    notsent_lowat_bytes=100,
    snapshot_unsent_bytes=1000,
    snapshots_deep_max=4,
)
SHORT_BYTES = 10
LONG_BYTES = 101
SMALL_BUFFER = 4096


def fill(stage: Stage) -> None:
    """Objects whose snapshot no small buffer takes."""
    stage.put(*(pod(f"p{number}", "x" * 20_000) for number in range(50)))
    stage.in_sync()


class Sockets:
    """What the gate's clients may have unsent, who has room, and how much each has acknowledged."""

    def __init__(self) -> None:
        self.limits: dict[client.Client, int] = {}
        self.roomy: set[client.Client] = set()
        self.acked: dict[transport.Connection, int] = {}
        self.looks = 0

    def with_room(self, clients: Iterable[client.Client]) -> list[client.Client]:
        """Those of them that are said to have some."""
        self.looks += 1
        return [one for one in clients if one in self.roomy]

    def limit_unsent(self, client: client.Client, count: int) -> None:
        """Keeps the number."""
        self.limits[client] = count

    def acked_bytes(self, connection: transport.Connection) -> int:
        """As was said, or nothing."""
        return self.acked.get(connection, 0)


class Gate:
    """Places, one channel with a snapshot, and clients on socket pairs; remembers who was let in."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.told: list[list[object]] = []
        self.sockets = Sockets()
        self.snapshots = admission.SnapshotSlots(LIMITS, self.sockets, self.sockets.acked_bytes, self._begin)
        self.channel = WorkerChannel("web", formats.make_encoder(encoder.PLAIN), self.told.append)
        self.file = self.make_snapshot(SHORT_BYTES)
        self.let_in: list[client.Client] = []

    def make_snapshot(self, length: int) -> cursor.SnapshotFile:
        """From now on newcomers get one of so many bytes."""
        self.file = cursor.SnapshotFile(-1, length=length, log_offset=0, sequence=1, status=messages.SyncStatus.IN_SYNC)
        self.channel.snapshot = self.file
        return self.file

    def _begin(self, held: client.Client, channel: WorkerChannel, snapshot: cursor.SnapshotFile) -> None:
        assert channel is self.channel
        held.become_snapshot(snapshot)
        held.snapshot_at = time.monotonic()
        self.let_in.append(held)

    def newcomer(self, number: int = 0) -> client.Client:
        """A client that is held from now on."""
        ends = socket.socketpair()
        for end in ends:
            self._stack.callback(end.close)
        made = client.Client(ends[0], "peer", number=number, slot=0, now=time.monotonic())
        made.become_held()
        self.channel.held[made] = None
        self.snapshots.wanted(self.channel)
        return made

    def finish(self, one: client.Client) -> None:
        """Its snapshot is sent."""
        one.position = self.file.length
        one.become_following()
        self.snapshots.sent(one)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate whose sockets are closed with the test."""
    with contextlib.ExitStack() as stack:
        yield Gate(stack)


def test_the_newest_comes_first_and_every_fourth_place_is_the_oldest_s(gate: Gate) -> None:
    waiting = [gate.newcomer(number) for number in range(12)]
    served: list[client.Client] = []
    while len(served) < len(waiting):
        gate.snapshots.let_in()
        assert len(gate.let_in) - len(served) <= LIMITS.snapshot_slots
        served.append(gate.let_in[len(served)])
        gate.finish(served[-1])
    assert [one.number for one in served] == [11, 10, 9, 0, 8, 7, 6, 1, 5, 4, 3, 2]
    gate.snapshots.let_in()
    assert not gate.snapshots.has_work


def test_newcomers_without_end_leave_nobody_waiting_for_ever(gate: Gate) -> None:
    early = [gate.newcomer(number) for number in range(50)]
    for number in range(4 * len(early)):
        gate.newcomer(100 + number)  # as many come as are served
        gate.snapshots.let_in()
        gate.finish(gate.let_in[number])
    assert {one.number for one in early} <= {one.number for one in gate.let_in}


def test_who_has_left_while_it_was_held_is_not_let_in(gate: Gate) -> None:
    stayed, left = gate.newcomer(1), gate.newcomer(2)
    left.become_closing(reasons.DisconnectReason.CLIENT_CLOSED)
    gate.channel.forget(left)
    gate.snapshots.let_in()
    assert gate.let_in == [stayed]


def test_places_come_back_from_the_stuck_and_the_gone(gate: Gate) -> None:
    waiting = [gate.newcomer(number) for number in range(6)]
    gate.snapshots.let_in()
    stuck, gone, quick = gate.let_in
    now = time.monotonic()
    stuck.begin_waiting(now)
    gone.become_closing(reasons.DisconnectReason.CLIENT_CLOSED)
    gate.snapshots.free_places(now)
    gate.snapshots.let_in()
    assert len(gate.let_in) == 4
    gate.snapshots.free_places(now + 2 * LIMITS.snapshot_patience_seconds)
    gate.snapshots.let_in()
    assert len(gate.let_in) == 5
    gate.finish(quick)
    gate.finish(stuck)  # it holds no place any more, and gives none back twice
    gate.snapshots.let_in()
    assert set(gate.let_in) == set(waiting)


def test_who_takes_a_little_now_and_then_does_not_keep_others_waiting(gate: Gate) -> None:
    limits = policy.Policy()
    for number in range(20):
        gate.newcomer(number)
    gate.snapshots.let_in()
    now = time.monotonic()

    def let_in_after(later: float) -> int:
        for one in gate.let_in:
            one.begin_waiting(now)
            one.snapshot_at, one.sent_at = now, now + later
        gate.snapshots.free_places(now + later)
        gate.snapshots.let_in()
        return len(gate.let_in)

    assert let_in_after(limits.snapshot_slot_seconds - 0.1) == LIMITS.snapshot_slots
    assert let_in_after(limits.snapshot_slot_seconds + 0.1) == LIMITS.snapshots_open_max
    assert let_in_after(limits.snapshot_open_seconds + 0.1) == LIMITS.snapshots_open_max + LIMITS.snapshot_slots


def test_those_in_the_middle_of_a_snapshot_are_limited_except_who_takes_nothing(gate: Gate) -> None:
    waiting = [gate.newcomer(number) for number in range(8)]
    now = time.monotonic()

    def all_full(later: float) -> None:
        for one in gate.let_in:
            one.begin_waiting(now)
        gate.snapshots.free_places(now + later)
        gate.snapshots.let_in()

    gate.snapshots.let_in()
    all_full(1.0)
    assert len(gate.let_in) == 5
    all_full(2.0)
    assert len(gate.let_in) == 5
    gate.let_in[0].sent_at = now + 3.0  # its link is slow, but it takes something
    all_full(5.0)
    assert len(gate.let_in) == 8
    assert set(gate.let_in) == set(waiting)


def test_a_place_is_held_until_the_peer_has_taken_most(gate: Gate) -> None:
    gate.make_snapshot(LONG_BYTES)
    waiting = [gate.newcomer(number) for number in range(5)]
    gate.snapshots.let_in()
    first, second, third = gate.let_in
    assert gate.sockets.limits == {first: 1000, second: 1000, third: 1000}
    gate.finish(first)
    gate.finish(second)
    assert gate.sockets.limits == {first: 100, second: 100, third: 1000}
    now = time.monotonic()
    gate.snapshots.free_places(now)
    assert not gate.snapshots.has_work
    assert gate.snapshots.wait_seconds == LIMITS.snapshot_drain_seconds
    gate.sockets.roomy = {second, third}  # the third has room, but its snapshot is not sent
    gate.snapshots.free_places(now + LIMITS.snapshot_drain_seconds / 2)
    assert gate.sockets.looks == 1
    gate.snapshots.free_places(now + 1.5 * LIMITS.snapshot_drain_seconds)
    gate.snapshots.let_in()
    assert len(gate.let_in) == 4
    gate.sockets.roomy = {first}
    gate.snapshots.free_places(now + 3 * LIMITS.snapshot_drain_seconds)
    gate.snapshots.let_in()
    assert set(gate.let_in) == set(waiting)
    assert gate.snapshots.wait_seconds == LIMITS.snapshot_patience_seconds  # nothing drains, but somebody may be slow
    for one in waiting:
        gate.snapshots.leave(one)
    assert gate.snapshots.wait_seconds is None


def test_who_does_not_take_what_the_kernel_holds_loses_its_place_and_counts_on(gate: Gate) -> None:
    gate.make_snapshot(LONG_BYTES)
    for number in range(7):
        gate.newcomer(number)
    gate.snapshots.let_in()
    stalled, slow, gone = gate.let_in
    for one in gate.let_in:
        gate.finish(one)
    now = time.monotonic()
    gate.sockets.acked[slow.socket] = 1
    gone.become_closing(reasons.DisconnectReason.CLIENT_CLOSED)
    gate.snapshots.free_places(now + LIMITS.snapshot_patience_seconds)
    gate.snapshots.let_in()
    assert len(gate.let_in) == 4  # for the one that is gone
    gate.snapshots.free_places(now + 2 * LIMITS.snapshot_patience_seconds)
    gate.snapshots.let_in()
    assert len(gate.let_in) == 5  # for the stalled one
    assert gate.sockets.limits[gate.let_in[3]] == gate.sockets.limits[gate.let_in[4]] == 1000
    gate.snapshots.free_places(now + 4 * LIMITS.snapshot_patience_seconds)
    gate.snapshots.let_in()
    assert len(gate.let_in) == 6  # for the slow one, that has taken nothing more
    assert gate.let_in[5] not in gate.sockets.limits, "more than four would have so much in the kernel"
    gate.sockets.roomy = {stalled, slow}
    gate.snapshots.free_places(now + 5 * LIMITS.snapshot_patience_seconds)
    for one in gate.let_in[3:6]:
        gate.snapshots.leave(one)
    gate.snapshots.let_in()
    assert gate.sockets.limits[gate.let_in[6]] == 1000


def test_without_a_snapshot_that_can_be_served_everybody_waits(gate: Gate) -> None:
    gate.channel.snapshot = None
    gate.newcomer()
    gate.snapshots.let_in()
    assert gate.let_in == []
    assert not gate.snapshots.has_work
    gate.channel.snapshot = gate.file
    gate.snapshots.wanted(gate.channel)
    gate.snapshots.let_in()
    assert len(gate.let_in) == 1


async def test_a_storm_is_served_a_few_at_a_time_and_the_others_are_pinged(open_stage: OpenStage) -> None:
    stage = await open_stage(
        msgspec.structs.replace(
            FAST,
            snapshot_slots=4,
            snapshot_patience_seconds=30.0,
            ping_interval_seconds=0.2,
            notsent_lowat_bytes=16384,
        )
    )
    fill(stage)
    peers = [await stage.subscribe(receive_buffer_bytes=SMALL_BUFFER) for _ in range(20)]
    clients = [await stage.client_of(peer) for peer in peers]
    await eventually(lambda: [one.state for one in clients].count(cursor.CursorState.HELD) == 16)
    await eventually(lambda: sum(one.waiting for one in clients) == 4)
    assert [one.state for one in clients].count(cursor.CursorState.SNAPSHOT) == 4
    held = [peer for peer, one in zip(peers, clients, strict=True) if one.state is cursor.CursorState.HELD]
    await asyncio.gather(*(peer.read_until(lambda: min(peer.pings for peer in held) >= 2) for peer in held))
    await stage.converged(*peers)
    assert stage.disconnects == {}
    assert {peer.snapshots for peer in peers} == {1}


async def test_clients_that_take_nothing_hold_no_places(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, snapshot_slots=2, snapshot_patience_seconds=0.05))
    fill(stage)
    stuck = [await stage.subscribe(receive_buffer_bytes=SMALL_BUFFER) for _ in range(4)]
    clients = [await stage.client_of(peer) for peer in stuck]
    await eventually(lambda: all(one.waiting for one in clients))
    good = await stage.subscribe()
    await stage.converged(good)
    assert {peer.snapshots for peer in stuck} == {0}
    await stage.converged(*stuck)


async def test_a_storm_of_whole_snapshots_is_served_in_turns(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = msgspec.structs.replace(FAST, snapshot_slots=2, snapshot_patience_seconds=30.0, snapshots_deep_max=3)
    stage = await open_stage(limits)
    fill(stage)
    looks: list[int] = []
    with_room = stage.server.poller.with_room

    def look(clients: Iterable[client.Client]) -> list[client.Client]:
        found = with_room(clients)
        looks.append(len(found))
        return found

    monkeypatch.setattr(stage.server.poller, "with_room", look)
    peers = [await stage.subscribe(receive_buffer_bytes=SMALL_BUFFER) for _ in range(8)]
    clients = [await stage.client_of(peer) for peer in peers]
    await eventually(lambda: [one.state for one in clients].count(cursor.CursorState.FOLLOWING) == 2)
    await eventually(lambda: len(looks) >= 3)
    assert not any(looks)
    live = [one for one in clients if one.state is cursor.CursorState.FOLLOWING]
    assert len(live) == 2, "the kernel has all of two snapshots, and nobody has taken one"
    for one in live:
        set_limit = one.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 4)
        assert int.from_bytes(set_limit, sys.byteorder) == limits.notsent_lowat_bytes
    await stage.converged(*peers)
    assert stage.disconnects == {}
    assert {peer.snapshots for peer in peers} == {1}


async def test_hellos_are_answered_newest_first(open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, hello_seconds=0.0))
    stage.in_sync()
    answered: list[client.Client] = []
    read = stage.server.connections.readable

    def readable(current: client.Client) -> None:
        answered.append(current)
        read(current)

    monkeypatch.setattr(stage.server.connections, "readable", readable)
    peers = [await stage.connect() for _ in range(6)]
    clients = [await stage.client_of(peer) for peer in peers]
    for peer in peers:  # no turn comes in between
        peer.say(messages.ClientHello(feed=stage.feed.name, agent="test"))
    await stage.converged(*peers)
    assert answered[:6] == clients[::-1]


async def test_who_has_given_up_waiting_is_not_answered(stage: Stage) -> None:
    def hung_up(peer: Peer) -> None:
        peer.say(messages.ClientHello(feed=stage.feed.name, agent="test"))
        peer.socket.shutdown(socket.SHUT_WR)

    quick, late = await stage.connect(), await stage.connect()
    (await stage.client_of(late)).connected_at -= 10.0
    hung_up(quick)
    hung_up(late)
    await quick.read_to_end()
    await late.read_to_end()
    assert quick.hello is not None
    assert not late.received
    assert stage.disconnects == {"client-closed": 2}
