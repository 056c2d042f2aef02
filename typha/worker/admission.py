"""Storms: who is answered, and who gets its snapshot, when more have come than can be served at once.

Nobody is refused. Hellos are answered newest first, for whoever has waited longest is the likeliest to have given up.
Snapshots are given to a few clients at a time, so that those few are soon done; the others are held, which costs
nothing but their pings. A client whose socket stays full is slow by itself, and holds no place for others.
"""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from cache.state import cursor
from typha import clock
from typha.worker import client, policy, poller, transport
from typha.worker.channel import WorkerChannel

_monotonic = clock.monotonic

_OLDEST_EVERY = 4
"""Of so many places one goes to who has waited longest: newcomers that never end must not leave anyone held forever."""
_GIVEN_UP_AFTER_SECONDS = 1.0
"""Whoever hung up without an answer for so long was tired of waiting; before, its hello may say more about it."""
_STUCK_LOOK_SECONDS = 0.02
_CLOCK_EVERY = 8
"""Hellos between two looks at the clock: less than a millisecond."""


class HelloQueue:
    """Connections whose first words are there and not read yet; newest first.

    `read` is called with each in its turn, `gave_up` with those that hung up while they waited.
    """

    def __init__(self, read: Callable[[client.Client, int], None], gave_up: Callable[[client.Client], None]) -> None:
        self._read = read
        self._gave_up = gave_up
        self._unread: dict[client.Client, int] = {}

    def add(self, newcomer: client.Client, events: int) -> None:
        """The poller says that there is something to read; saying it again changes nothing of the order."""
        newcomer.begin_queueing(_monotonic())
        self._unread[newcomer] = events

    def run(self, deadline: float) -> None:
        """Reads hellos until none is left or the deadline (monotonic seconds) has come; one at least."""
        unread = self._unread
        until_clock = 1
        while unread:
            newcomer, events = unread.popitem()
            now = _monotonic()
            newcomer.end_queueing(now)
            if events & (poller.HANG_UP | poller.BROKEN) and now - newcomer.connected_at > _GIVEN_UP_AFTER_SECONDS:
                self._gave_up(newcomer)
            else:
                self._read(newcomer, events)
            until_clock -= 1
            if not until_clock:
                until_clock = _CLOCK_EVERY
                if _monotonic() > deadline:
                    return


Begin: TypeAlias = Callable[[client.Client, WorkerChannel, cursor.SnapshotFile], None]


class Sockets(Protocol):
    """What is asked of a poller here."""

    def with_room(self, clients: Iterable[client.Client]) -> list[client.Client]: ...

    def limit_unsent(self, client: client.Client, count: int) -> None: ...


class SnapshotSlots:
    """Places for clients that take their snapshot. Held clients stand in their channels; channels take turns here.

    The kernel is given whole snapshots where it can be: in pieces, each with its wake-up, they cost half as much again.
    So a place is given back not when the last byte is written but when the peer has taken most, which is looked at now
    and then for all of them together. How many have so much in the kernel is limited apart, whatever becomes of their
    places: it is memory.

    Whoever's socket stays full loses its place, and goes on as its link allows. But all that are in the middle of a
    snapshot are limited, too: full kernel buffers are memory, and where the kernel runs out of that it drops what it
    has received, and connections stand still for seconds. Who takes nothing at all does not count, nor who has been at
    it for long with a full socket: however many read a little at a time, newcomers get their turn.

    `begin` is called with a client that is held no more, for it has got a place, and begins its snapshot.
    """

    def __init__(
        self,
        limits: policy.Policy,
        sockets: Sockets,
        acked_bytes: Callable[[transport.Connection], int],
        begin: Begin,
    ) -> None:
        self._policy = limits
        self._sockets = sockets
        self._acked_bytes = acked_bytes
        self._begin = begin
        self._open: dict[client.Client, None] = {}
        self._holders: dict[client.Client, None] = {}
        self._deep: dict[client.Client, None] = {}
        """Who was allowed more in the kernel, and may have it there still."""
        self._draining: dict[client.Client, None] = {}
        """Those of them of whose snapshots nothing is left but what the kernel holds."""
        self._channels: dict[WorkerChannel, None] = {}
        self._begun = 0
        self._look_at = 0.0
        self._stuck_look_at = 0.0

    @property
    def has_work(self) -> bool:
        """Whether somebody may be let in now."""
        return bool(self._channels) and self._has_room()

    @property
    def wait_seconds(self) -> float | None:
        """After how long `free_places` is to be called, for nothing else will say that somebody has taken its snapshot,
        or is slow; None if nobody waits for a place."""
        if not self._channels or self._has_room():
            return None
        limits = self._policy
        return limits.snapshot_drain_seconds if self._draining else limits.snapshot_patience_seconds

    def _has_room(self) -> bool:
        return len(self._holders) < self._policy.snapshot_slots and len(self._open) < self._policy.snapshots_open_max

    def wanted(self, channel: WorkerChannel) -> None:
        """The channel has held clients, or a snapshot for them."""
        self._channels[channel] = None

    def let_in(self) -> None:
        """Begins snapshots as long as there are places, and somebody that can be served."""
        while self._channels and self._has_room():
            channel = next(iter(self._channels))
            del self._channels[channel]
            if channel.held:
                channel.renew_snapshot(_monotonic())
            snapshot = channel.servable_snapshot
            if snapshot is None or not channel.held:
                continue  # whatever changes that says so with `wanted`
            self._begun += 1
            if self._begun % _OLDEST_EVERY:
                next_one, _ = channel.held.popitem()
            else:
                next_one = next(iter(channel.held))
                del channel.held[next_one]
            self._take_place(next_one, snapshot)
            self._channels[channel] = None
            self._begin(next_one, channel, snapshot)

    def _take_place(self, newcomer: client.Client, snapshot: cursor.SnapshotFile) -> None:
        limits = self._policy
        self._draining.pop(newcomer, None)  # from a snapshot before
        self._holders[newcomer] = None
        self._open[newcomer] = None
        is_worth_it = snapshot.length > limits.notsent_lowat_bytes
        if newcomer in self._deep or (is_worth_it and len(self._deep) < limits.snapshots_deep_max):
            self._deep[newcomer] = None
            self._sockets.limit_unsent(newcomer, limits.snapshot_unsent_bytes)

    def sent(self, holder: client.Client) -> None:
        """The kernel has all of its snapshot."""
        if holder not in self._deep:
            self.leave(holder)
            return
        self._sockets.limit_unsent(holder, self._policy.notsent_lowat_bytes)
        holder.progress_at = _monotonic()
        self._draining[holder] = None

    def leave(self, holder: client.Client) -> None:
        """It has taken its snapshot, or is gone."""
        self._holders.pop(holder, None)
        self._open.pop(holder, None)
        self._deep.pop(holder, None)
        self._draining.pop(holder, None)

    def free_places(self, now: float) -> None:
        """Takes the places of those who have what they came for, are gone, or are slow, if they are wanted."""
        if not self._channels or self._has_room() or now < self._look_at:
            return
        limits = self._policy
        self._look_at = now + limits.snapshot_drain_seconds
        for one in [one for one in self._deep if one.is_closing()]:
            self.leave(one)
        for one in self._sockets.with_room(self._draining):
            self.leave(one)
        if self._has_room() or now < self._stuck_look_at:
            return
        self._stuck_look_at = now + _STUCK_LOOK_SECONDS
        self._drop_slow(
            self._holders, now, limits.snapshot_patience_seconds, begun_before=now - limits.snapshot_slot_seconds
        )
        self._drop_slow(self._open, now, limits.snapshot_stall_seconds, begun_before=now - limits.snapshot_open_seconds)

    def _drop_slow(
        self, clients: dict[client.Client, None], now: float, patience_seconds: float, *, begun_before: float
    ) -> None:
        """Takes out who is gone, and those with full sockets that have taken nothing for so long, or began long ago."""
        for one in list(clients):
            if one.is_closing() or self._is_slow(one, now, patience_seconds, begun_before=begun_before):
                del clients[one]

    def _is_slow(self, one: client.Client, now: float, patience_seconds: float, *, begun_before: float) -> bool:
        quiet_before = now - patience_seconds
        if one not in self._draining:
            return one.waiting and (one.sent_at < quiet_before or one.snapshot_at < begun_before)
        if one.progress_at < quiet_before:
            one.note_progress(self._acked_bytes(one.socket), now)
        return one.progress_at < quiet_before or one.snapshot_at < begun_before
