"""Admission: whose hello is read, and who gets its snapshot, when more clients have come than can be served at once.

No client is refused. Hellos are read newest first, because the client that has waited longest is the likeliest to have
given up. Snapshots are sent to a few clients at a time, so that those are soon done; the others are held, which costs
nothing but their pings. A client whose socket stays full is slow by itself, and keeps no slot from others.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

import structlog

from cache.state import files
from typha import clock
from typha.observability import logs
from typha.worker import client, policy, poller, transport
from typha.worker.channel import WorkerChannel

_log = structlog.get_logger("typha.admission")
_monotonic = clock.monotonic

_OLDEST_EVERY = 4
"""One slot in this many goes to the client that has waited longest: an endless stream of newcomers must not keep a
client held forever."""
_GIVEN_UP_AFTER_SECONDS = 1.0
"""A client that hung up after this much waiting gave up; before, its hello may say more about why."""
_STUCK_LOOK_SECONDS = 0.02
_COSTLY_MAX = 1000
"""Addresses that are remembered for a costly hello."""
_COSTLY_LINE_SECONDS = 1.0
_ByHost: TypeAlias = collections.OrderedDict[str, dict[client.Client, int]]
"""Connections and the poller's events by address. In both, the last one comes first."""


class HelloQueue:
    """Connections whose first bytes have arrived and are not read yet.

    Addresses take turns: after one hello of an address come those of all others. An address whose hello was costly
    waits until no other waits.
    """

    def __init__(self, limits: policy.Policy) -> None:
        self._costly_seconds = limits.costly_hello_seconds
        self._unread: _ByHost = collections.OrderedDict()
        self._unread_of_costly: _ByHost = collections.OrderedDict()
        self._costly: dict[str, None] = {}
        """Addresses that have sent a costly hello, the latest last."""
        self._lines = logs.LineLimit(1, seconds=_COSTLY_LINE_SECONDS)

    def __len__(self) -> int:
        return sum(len(unread) for hosts in (self._unread, self._unread_of_costly) for unread in hosts.values())

    def __bool__(self) -> bool:
        return bool(self._unread or self._unread_of_costly)

    def add(self, newcomer: client.Client, pending: client.PendingHello, events: int) -> None:
        """The poller reports something to read; reporting it again does not change the order."""
        host = pending.host
        hosts = self._unread_of_costly if self._costly and host in self._costly else self._unread
        unread = hosts.get(host)
        if unread is None:
            unread = hosts[host] = {}
        if not pending.queued_at:
            pending.begin_queueing(_monotonic())
        unread[newcomer] = events

    def take(self, deadline: float) -> Iterator[tuple[client.Client, int, bool]]:
        """Connections to be read, newest first, until none is left or the deadline (monotonic seconds) has passed.

        At least one. With each come the poller's events, and whether the client has given up.
        """
        used = clock.cpu_seconds()
        now = _monotonic()
        while hosts := self._unread or self._unread_of_costly:
            host = next(reversed(hosts))
            unread = hosts[host]
            newcomer, events = unread.popitem()
            if not unread:
                del hosts[host]
            elif len(hosts) > 1:
                hosts.move_to_end(host, last=False)
            if newcomer.hello is not None:
                newcomer.hello.end_queueing(now)
            has_hung_up = bool(events & (poller.HANG_UP | poller.BROKEN))
            yield newcomer, events, has_hung_up and now - newcomer.connected_at > _GIVEN_UP_AFTER_SECONDS
            begun, now = now, _monotonic()
            if now - begun > self._costly_seconds:  # asking for the CPU time each time would cost too much
                before, used = used, clock.cpu_seconds()
                if used - before > self._costly_seconds:
                    self._note_costly(host, newcomer, used - before)
            if now > deadline:
                return

    def _note_costly(self, host: str, newcomer: client.Client, seconds: float) -> None:
        if self._lines.allows():
            _log.warning(
                "A hello was costly, those of its address wait behind all others",
                client=newcomer.address,
                agent=newcomer.adapter.agent if newcomer.adapter else "",
                cpu_seconds=round(seconds, 4),
            )
        if host in self._costly:
            return
        if len(self._costly) == _COSTLY_MAX:
            del self._costly[next(iter(self._costly))]
        self._costly[host] = None
        if host in self._unread:
            self._unread_of_costly[host] = self._unread.pop(host)


class Admitted(NamedTuple):
    """A client that has got a slot, and begins this snapshot, or the pieces of it that the client lacks."""

    client: client.Client
    channel: WorkerChannel
    snapshot: files.SnapshotFile
    pieces: files.Pieces | None


class Sockets(Protocol):
    """What is asked of a poller here."""

    def with_room(self, clients: Iterable[client.Client]) -> list[client.Client]: ...

    def limit_unsent(self, client: client.Client, count: int) -> None: ...


class SnapshotSlots:
    """Slots for clients that take their snapshot. Held clients stand in their channels; channels take turns here.

    The kernel is given whole snapshots where possible: in pieces, each with its wake-up, they cost half as much again.
    A slot is therefore freed not when the last byte is written but when the peer has taken most of it. All slots are
    checked together, every few milliseconds. How many clients have so much in the kernel has a limit of its own,
    whatever happens to their slots, because it is memory.

    A client whose socket stays full loses its slot, and goes on as its link allows. But the clients in the middle of a
    snapshot are limited, too: full kernel buffers are memory, and a kernel without memory drops what it has received,
    so that connections stand still for seconds. A client that takes nothing, or has been at it for long with a full
    socket, does not count towards this limit: however many clients read a little at a time, newcomers get their turn.
    """

    def __init__(self, limits: policy.Policy, sockets: Sockets, bytes_through: transport.Transport) -> None:
        self._policy = limits
        self._sockets = sockets
        self._acked_bytes = bytes_through.acked_bytes
        self._open: dict[client.Client, None] = {}
        """Clients in the middle of a snapshot."""
        self._holders: dict[client.Client, None] = {}
        """Clients that hold a slot."""
        self._deep: dict[client.Client, None] = {}
        """Clients that the kernel may still hold a whole snapshot for."""
        self._draining: dict[client.Client, None] = {}
        """Those of them whose snapshot is written, but for what the kernel holds."""
        self._channels: dict[WorkerChannel, None] = {}
        """Channels that may have clients to admit."""
        self._admitted = 0
        self._look_at = 0.0
        self._stuck_look_at = 0.0

    @property
    def has_work(self) -> bool:
        """Whether a client may be admitted now."""
        return bool(self._channels) and self._has_room()

    @property
    def wait_seconds(self) -> float | None:
        """Seconds until the next `free_slots`, which no event will signal; None if no client waits for a slot."""
        if not self._channels or self._has_room():
            return None
        limits = self._policy
        return limits.snapshot_drain_seconds if self._draining else limits.snapshot_patience_seconds

    def _has_room(self) -> bool:
        return len(self._holders) < self._policy.snapshot_slots and len(self._open) < self._policy.snapshots_open_max

    def wanted(self, channel: WorkerChannel) -> None:
        """The channel has held clients, or a snapshot for them."""
        self._channels[channel] = None

    def admit(self) -> Admitted | None:
        """The next client that gets a slot; None if there is no slot, or no client that can be served."""
        while self._channels and self._has_room():
            channel = next(iter(self._channels))
            del self._channels[channel]
            if channel.held:
                channel.renew_snapshot(_monotonic())
            snapshot = channel.servable_snapshot
            if snapshot is None or not channel.held:
                continue  # `wanted` is called when that changes
            self._admitted += 1
            if self._admitted % _OLDEST_EVERY:
                newcomer, _ = channel.held.popitem()
            else:
                newcomer = next(iter(channel.held))
                del channel.held[newcomer]
            pieces = channel.take_pieces(newcomer, snapshot)
            self._take_slot(newcomer, (pieces or snapshot).length)
            self._channels[channel] = None
            return Admitted(newcomer, channel, snapshot, pieces)
        return None

    def _take_slot(self, newcomer: client.Client, length: int) -> None:
        limits = self._policy
        self._draining.pop(newcomer, None)  # from an earlier snapshot
        self._holders[newcomer] = None
        self._open[newcomer] = None
        is_worth_it = length > limits.notsent_lowat_bytes
        if newcomer in self._deep or (is_worth_it and len(self._deep) < limits.snapshots_deep_max):
            self._deep[newcomer] = None
            self._sockets.limit_unsent(newcomer, limits.snapshot_unsent_bytes)

    def sent(self, holder: client.Client) -> None:
        """The kernel has the client's whole snapshot."""
        if holder not in self._deep:
            self.leave(holder)
            return
        self._sockets.limit_unsent(holder, self._policy.notsent_lowat_bytes)
        holder.liveness.restart_progress(_monotonic())
        self._draining[holder] = None

    def leave(self, holder: client.Client) -> None:
        """The client has taken its snapshot, or is gone."""
        self._holders.pop(holder, None)
        self._open.pop(holder, None)
        self._deep.pop(holder, None)
        self._draining.pop(holder, None)

    def free_slots(self, now: float) -> None:
        """Frees the slots of finished, gone or stalled clients if others are waiting."""
        if not self._channels or self._has_room() or now < self._look_at:
            return
        limits = self._policy
        self._look_at = now + limits.snapshot_drain_seconds
        self._leave_closed(self._draining)
        for one in self._sockets.with_room(self._draining):
            self.leave(one)
        if self._has_room() or now < self._stuck_look_at:
            return
        self._stuck_look_at = now + _STUCK_LOOK_SECONDS
        self._leave_closed(self._deep)
        self._drop_slow(
            self._holders, now, limits.snapshot_patience_seconds, begun_before=now - limits.snapshot_slot_seconds
        )
        self._drop_slow(self._open, now, limits.snapshot_stall_seconds, begun_before=now - limits.snapshot_open_seconds)

    def _leave_closed(self, clients: dict[client.Client, None]) -> None:
        for one in [one for one in clients if one.is_closing()]:
            self.leave(one)

    def _drop_slow(
        self, clients: dict[client.Client, None], now: float, patience_seconds: float, *, begun_before: float
    ) -> None:
        """Takes out clients that are gone, and those with full sockets that have stalled or began long ago."""
        for one in list(clients):
            if one.is_closing() or self._is_slow(one, now, patience_seconds, begun_before=begun_before):
                del clients[one]

    def _is_slow(self, one: client.Client, now: float, patience_seconds: float, *, begun_before: float) -> bool:
        quiet_before = now - patience_seconds
        if one not in self._draining:
            return one.waiting and (one.sent_at < quiet_before or one.snapshot_at < begun_before)
        liveness = one.liveness
        if liveness.progress_at < quiet_before:
            liveness.note_acked(self._acked_bytes(one.socket), now)
        return liveness.progress_at < quiet_before or one.snapshot_at < begun_before
