"""Storms of newcomers: hellos newest first, snapshots a few at a time, and every client is served."""

import asyncio
import contextlib
import select
import socket
import sys
import time
from collections.abc import Iterable, Iterator

import msgspec
import pytest
from structlog import testing

from cache.state import cursor, files
from protocol import formats, messages, reasons
from protocol.native import encoder
from tests.harness import full_transport
from tests.harness.worker_stand import FAST, Peer, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage
from typha import clock
from typha.worker import admission, client, policy, poller, transport
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


def fill(stage: WorkerStand) -> None:
    """Adds objects whose snapshot is larger than a small socket buffer."""
    stage.put(*(pod(f"p{number}", "x" * 20_000) for number in range(50)))
    stage.in_sync()


class NoHub:
    """A link's end; nothing is sent here."""

    def send(self, message: object, /) -> None:
        """Fails: no snapshot here is old enough to ask for a newer one."""
        pytest.fail(f"sent {message!r}")


class Sockets(full_transport.FullTransport):
    """In place of poller and transport: the test says which clients have room, and how much each has acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: dict[client.Client, int] = {}
        self.roomy: set[client.Client] = set()
        self.acked: dict[transport.Connection, int] = {}
        self.looks = 0

    def with_room(self, clients: Iterable[client.Client]) -> list[client.Client]:
        """Those of them that have room."""
        self.looks += 1
        return [one for one in clients if one in self.roomy]

    def limit_unsent(self, client: client.Client, count: int) -> None:
        """Keeps the number."""
        self.limits[client] = count

    def acked_bytes(self, connection: transport.Connection, /) -> int:
        """What the test has said, or 0."""
        return self.acked.get(connection, 0)


class SlotsStand:
    """Snapshot slots, one channel with a snapshot, and clients on socket pairs; remembers which were admitted."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.sockets = Sockets()
        self.slots = admission.SnapshotSlots(LIMITS, self.sockets, self.sockets)
        self.channel = WorkerChannel("web", formats.make_encoder(encoder.PLAIN), NoHub(), LIMITS)
        self.file = self.make_snapshot(SHORT_BYTES)
        self.admitted: list[client.Client] = []

    def make_snapshot(self, length: int) -> files.SnapshotFile:
        """From now on newcomers get a snapshot of this length in bytes."""
        self.file = files.SnapshotFile(-1, length=length, log_offset=0, sequence=1, status=messages.SyncStatus.IN_SYNC)
        self.channel.snapshot = self.file
        return self.file

    def admit(self) -> None:
        """Admits every client that gets a slot now; each begins its snapshot."""
        while (admitted := self.slots.admit()) is not None:
            newcomer, channel, snapshot, _ = admitted
            assert channel is self.channel
            assert snapshot is self.channel.snapshot
            newcomer.become_snapshot(snapshot)
            newcomer.snapshot_at = time.monotonic()
            self.admitted.append(newcomer)

    def newcomer(self, number: int = 0) -> client.Client:
        """A client that is held."""
        ends = socket.socketpair()
        for end in ends:
            self._stack.callback(end.close)
        made = client.Client(ends[0], "peer", number=number, slot=0, now=time.monotonic())
        made.become_held()
        self.channel.held[made] = None
        self.slots.wanted(self.channel)
        return made

    def finish(self, one: client.Client) -> None:
        """The client's whole snapshot is sent."""
        one.position = self.file.length
        one.become_following()
        self.slots.sent(one)


@pytest.fixture
def stand() -> Iterator[SlotsStand]:
    """Closes its sockets after the test."""
    with contextlib.ExitStack() as stack:
        yield SlotsStand(stack)


def test_the_newest_comes_first_and_every_fourth_slot_is_the_oldests(stand: SlotsStand) -> None:
    waiting = [stand.newcomer(number) for number in range(12)]
    served: list[client.Client] = []
    while len(served) < len(waiting):
        stand.admit()
        assert len(stand.admitted) - len(served) <= LIMITS.snapshot_slots
        served.append(stand.admitted[len(served)])
        stand.finish(served[-1])
    assert [one.number for one in served] == [11, 10, 9, 0, 8, 7, 6, 1, 5, 4, 3, 2]
    stand.admit()
    assert not stand.slots.has_work


def test_an_endless_stream_of_newcomers_leaves_no_client_waiting_forever(stand: SlotsStand) -> None:
    early = [stand.newcomer(number) for number in range(50)]
    for number in range(4 * len(early)):
        stand.newcomer(100 + number)  # one comes for each that is served
        stand.admit()
        stand.finish(stand.admitted[number])
    assert {one.number for one in early} <= {one.number for one in stand.admitted}


def test_a_client_that_left_while_it_was_held_is_not_admitted(stand: SlotsStand) -> None:
    stayed, left = stand.newcomer(1), stand.newcomer(2)
    left.become_closing(reasons.DisconnectReason.CLIENT_CLOSED)
    stand.channel.forget(left)
    stand.admit()
    assert stand.admitted == [stayed]


def test_slots_of_stalled_and_gone_clients_are_freed(stand: SlotsStand) -> None:
    waiting = [stand.newcomer(number) for number in range(6)]
    stand.admit()
    stuck, gone, quick = stand.admitted
    now = time.monotonic()
    stuck.begin_waiting(now)
    gone.become_closing(reasons.DisconnectReason.CLIENT_CLOSED)
    stand.slots.free_slots(now)
    stand.admit()
    assert len(stand.admitted) == 4
    stand.slots.free_slots(now + 2 * LIMITS.snapshot_patience_seconds)
    stand.admit()
    assert len(stand.admitted) == 5
    stand.finish(quick)
    stand.finish(stuck)  # it holds no slot any more, so it does not free one twice
    stand.admit()
    assert set(stand.admitted) == set(waiting)


def test_a_client_that_takes_a_little_now_and_then_does_not_keep_others_waiting(stand: SlotsStand) -> None:
    limits = policy.Policy()
    for number in range(20):
        stand.newcomer(number)
    stand.admit()
    now = time.monotonic()

    def admitted_after(later: float) -> int:
        for one in stand.admitted:
            one.begin_waiting(now)
            one.snapshot_at, one.sent_at = now, now + later
        stand.slots.free_slots(now + later)
        stand.admit()
        return len(stand.admitted)

    assert admitted_after(limits.snapshot_slot_seconds - 0.1) == LIMITS.snapshot_slots
    assert admitted_after(limits.snapshot_slot_seconds + 0.1) == LIMITS.snapshots_open_max
    assert admitted_after(limits.snapshot_open_seconds + 0.1) == LIMITS.snapshots_open_max + LIMITS.snapshot_slots


def test_clients_in_the_middle_of_a_snapshot_are_limited_but_not_by_those_that_take_nothing(stand: SlotsStand) -> None:
    waiting = [stand.newcomer(number) for number in range(8)]
    now = time.monotonic()

    def all_full(later: float) -> None:
        for one in stand.admitted:
            one.begin_waiting(now)
        stand.slots.free_slots(now + later)
        stand.admit()

    stand.admit()
    all_full(1.0)
    assert len(stand.admitted) == 5
    all_full(2.0)
    assert len(stand.admitted) == 5
    stand.admitted[0].sent_at = now + 3.0  # its link is slow, but it takes something
    all_full(5.0)
    assert len(stand.admitted) == 8
    assert set(stand.admitted) == set(waiting)


def test_a_slot_is_held_until_the_peer_has_taken_most(stand: SlotsStand) -> None:
    stand.make_snapshot(LONG_BYTES)
    waiting = [stand.newcomer(number) for number in range(5)]
    stand.admit()
    first, second, third = stand.admitted
    assert stand.sockets.limits == {first: 1000, second: 1000, third: 1000}
    stand.finish(first)
    stand.finish(second)
    assert stand.sockets.limits == {first: 100, second: 100, third: 1000}
    now = time.monotonic()
    stand.slots.free_slots(now)
    assert not stand.slots.has_work
    assert stand.slots.wait_seconds == LIMITS.snapshot_drain_seconds
    stand.sockets.roomy = {second, third}  # the third has room, but its snapshot is not sent
    stand.slots.free_slots(now + LIMITS.snapshot_drain_seconds / 2)
    assert stand.sockets.looks == 1
    stand.slots.free_slots(now + 1.5 * LIMITS.snapshot_drain_seconds)
    stand.admit()
    assert len(stand.admitted) == 4
    stand.sockets.roomy = {first}
    stand.slots.free_slots(now + 3 * LIMITS.snapshot_drain_seconds)
    stand.admit()
    assert set(stand.admitted) == set(waiting)
    assert stand.slots.wait_seconds == LIMITS.snapshot_patience_seconds  # nothing drains, but a client may be slow
    for one in waiting:
        stand.slots.leave(one)
    assert stand.slots.wait_seconds is None


def test_a_client_that_leaves_bytes_in_the_kernel_loses_its_slot_and_still_counts(stand: SlotsStand) -> None:
    stand.make_snapshot(LONG_BYTES)
    for number in range(7):
        stand.newcomer(number)
    stand.admit()
    stalled, slow, gone = stand.admitted
    for one in stand.admitted:
        stand.finish(one)
    now = time.monotonic()
    stand.sockets.acked[slow.socket] = 1
    gone.become_closing(reasons.DisconnectReason.CLIENT_CLOSED)
    stand.slots.free_slots(now + LIMITS.snapshot_patience_seconds)
    stand.admit()
    assert len(stand.admitted) == 4  # for the gone one
    stand.slots.free_slots(now + 2 * LIMITS.snapshot_patience_seconds)
    stand.admit()
    assert len(stand.admitted) == 5  # for the stalled one
    assert stand.sockets.limits[stand.admitted[3]] == stand.sockets.limits[stand.admitted[4]] == 1000
    stand.slots.free_slots(now + 4 * LIMITS.snapshot_patience_seconds)
    stand.admit()
    assert len(stand.admitted) == 6  # for the slow one, which has taken nothing more
    assert stand.admitted[5] not in stand.sockets.limits, "only four may have a whole snapshot in the kernel"
    stand.sockets.roomy = {stalled, slow}
    stand.slots.free_slots(now + 5 * LIMITS.snapshot_patience_seconds)
    for one in stand.admitted[3:6]:
        stand.slots.leave(one)
    stand.admit()
    assert stand.sockets.limits[stand.admitted[6]] == 1000


def test_without_a_snapshot_that_can_be_served_all_clients_wait(stand: SlotsStand) -> None:
    stand.channel.snapshot = None
    stand.newcomer()
    stand.admit()
    assert stand.admitted == []
    assert not stand.slots.has_work
    stand.channel.snapshot = stand.file
    stand.slots.wanted(stand.channel)
    stand.admit()
    assert len(stand.admitted) == 1


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


async def test_clients_that_take_nothing_hold_no_slots(open_stage: OpenStage) -> None:
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
    assert len(live) == 2, "the kernel has all of two snapshots, and no peer has taken one"
    for one in live:
        set_limit = one.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 4)
        assert int.from_bytes(set_limit, sys.byteorder) == limits.notsent_lowat_bytes
    await stage.converged(*peers)
    assert stage.disconnects == {}
    assert {peer.snapshots for peer in peers} == {1}


class QueueStand:
    """A queue of hellos, with clients on socket pairs, in virtual time."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.now = 1000.0
        self.used = 5.0
        stack.enter_context(
            clock.replaced(monotonic=lambda: self.now, time_ns=lambda: 0, cpu_seconds=lambda: self.used)
        )
        self.queue = admission.HelloQueue(LIMITS)

    def hello(self, number: int, events: int = select.EPOLLIN, *, host: str = "::1") -> client.Client:
        """A new client whose hello has arrived."""
        ends = socket.socketpair()
        for end in ends:
            self._stack.callback(end.close)
        made = client.Client(ends[0], f"{host}:4000", number=number, slot=0, now=self.now)
        self.report(made, events)
        return made

    def report(self, one: client.Client, events: int = select.EPOLLIN) -> None:
        """The poller reports the client."""
        assert one.hello is not None
        self.queue.add(one, one.hello, events)

    def taken(self, deadline: float) -> list[tuple[int, int, bool]]:
        """Numbers of the clients taken until the deadline, with events, and whether they have given up."""
        return [(one.number, events, has_given_up) for one, events, has_given_up in self.queue.take(deadline)]


@pytest.fixture
def queue() -> Iterator[QueueStand]:
    """Closes its sockets after the test."""
    with contextlib.ExitStack() as stack:
        yield QueueStand(stack)


def test_hellos_are_taken_newest_first_and_one_at_least(queue: QueueStand) -> None:
    hellos = [queue.hello(number) for number in range(20)]
    queue.report(hellos[3])  # does not change the order
    queue.now += 2.0
    assert [number for number, _, _ in queue.taken(queue.now - 1.0)] == [19]
    assert len(queue.queue) == 19
    first = hellos[0].hello
    assert first is not None
    assert first.own_seconds(queue.now) == 0.0
    assert [number for number, _, _ in queue.taken(queue.now + 1.0)] == list(range(18, -1, -1))
    assert not queue.queue
    queue.now += 1.0
    assert first.own_seconds(queue.now) == pytest.approx(1.0)  # the wait of 2 s is not the client's


def test_a_hello_that_hung_up_soon_is_read_and_a_late_one_has_given_up(queue: QueueStand) -> None:
    queue.hello(1, select.EPOLLIN)
    queue.hello(2, poller.HANG_UP)
    queue.hello(3, poller.BROKEN)
    queue.now += 1.5
    queue.hello(4, poller.HANG_UP)
    assert queue.taken(queue.now) == [
        (4, poller.HANG_UP, False),
        (3, poller.BROKEN, True),
        (2, poller.HANG_UP, True),
        (1, select.EPOLLIN, False),
    ]


def test_the_clock_is_looked_at_after_each_hello(queue: QueueStand) -> None:
    for number in range(20):
        queue.hello(number)
    taken = []
    for one, _, _ in queue.queue.take(queue.now + 0.0025):
        taken.append(one.number)
        queue.now += 0.001
    assert taken == [19, 18, 17]


def test_addresses_take_turns(queue: QueueStand) -> None:
    for number in range(3):
        queue.hello(number, host="10.0.0.1")
    queue.hello(10, host="10.0.0.2")
    for number in range(20, 22):
        queue.hello(number, host="10.0.0.3")
    assert [number for number, _, _ in queue.taken(queue.now + 1.0)] == [21, 10, 2, 20, 1, 0]


def test_an_address_whose_hello_was_costly_waits_behind_all_others(queue: QueueStand) -> None:
    for number in range(60):
        queue.hello(number, host="10.0.0.66")
    for number in range(100, 103):
        queue.hello(number, host="10.0.0.2")
    taken: list[int] = []

    def turn() -> None:
        """Each hello of the one address costs 60 ms; a turn may take 4."""
        for one, _, _ in queue.queue.take(queue.now + 0.004):
            taken.append(one.number)
            seconds = 0.06 if one.number < 100 else 0.001
            queue.now += seconds
            queue.used += seconds

    with testing.capture_logs() as lines:
        turn()
        turn()
        assert taken == [102, 59, 101, 100, 58]
        queue.hello(103, host="10.0.0.3")
        queue.hello(60, host="10.0.0.66")
        turn()
        turn()
        assert taken[5:] == [103, 60, 57]
    assert [line["client"] for line in lines] == ["10.0.0.66:4000"]
    assert lines[0]["cpu_seconds"] == pytest.approx(0.061)  # with the one before it in the same turn


def test_only_so_many_costly_addresses_are_remembered(queue: QueueStand) -> None:
    for number in range(3000):
        queue.hello(number, host=f"10.0.{number // 256}.{number % 256}")
        for _ in queue.queue.take(queue.now):
            queue.now += 0.01
            queue.used += 0.01
    assert len(queue.queue._costly) == 1000


def test_a_hello_during_which_the_machine_was_busy_is_not_costly(queue: QueueStand) -> None:
    queue.hello(1)
    for _ in queue.queue.take(queue.now):
        queue.now += 1.0
        queue.used += 0.0005
    assert not queue.queue._costly


class RecordingTransport(full_transport.FullTransport):
    """Plain sockets; remembers from which connections it was to receive, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[transport.Connection] = []

    def receive(self, connection: transport.Connection, limit: int, /) -> bytes:
        """As from a plain socket."""
        self.read.append(connection)
        return transport.PlainTransport.receive(connection, limit)


async def test_hellos_are_answered_newest_first(open_stage: OpenStage) -> None:
    recording = RecordingTransport()
    stage = await open_stage(msgspec.structs.replace(FAST, hello_seconds=0.0), bytes_through=recording)
    stage.in_sync()
    peers = [await stage.connect() for _ in range(6)]
    clients = [await stage.client_of(peer) for peer in peers]
    for peer in peers:  # the worker has no turn in between
        peer.say(messages.ClientHello(feed=stage.feed.name, agent="test"))
    await stage.converged(*peers)
    assert recording.read[:6] == [one.socket for one in clients[::-1]]


async def test_a_client_that_has_given_up_waiting_is_not_answered(stage: WorkerStand) -> None:
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
