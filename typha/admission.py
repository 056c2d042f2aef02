"""Storms: who is answered, and who gets its snapshot, when more have come than can be served at once.

Nobody is refused. Hellos are answered newest first, for whoever has waited longest is the likeliest to have given up.
Snapshots are given to a few clients at a time, so that those few are soon done; the others are held, which costs
nothing but their pings. A client whose socket stays full is slow by itself, and holds no place for others.
"""

from collections.abc import Callable
from typing import TypeAlias

from cache import cursor
from typha import channel_view, client, clock, policy, poller

_monotonic = clock.monotonic

_OLDEST_EVERY = 4
"""Of so many places one goes to who has waited longest: newcomers that never end must not leave anyone held forever."""
_GIVEN_UP_AFTER_SECONDS = 1.0
"""Whoever hung up without an answer for so long was tired of waiting; before, its hello may say more about it."""
_STUCK_LOOK_SECONDS = 0.02
_CLOCK_EVERY = 8
"""Hellos between two looks at the clock: less than a millisecond."""


class Hellos:
    """Connections whose first words are there and not read yet; newest first.

    `read` is called with each in its turn, `gave_up` with those that hung up while they waited.
    """

    def __init__(self, read: Callable[[client.Client, int], None], gave_up: Callable[[client.Client], None]) -> None:
        self._read = read
        self._gave_up = gave_up
        self._unread: dict[client.Client, int] = {}

    def add(self, newcomer: client.Client, events: int) -> None:
        """The poller says that there is something to read; saying it again changes nothing of the order."""
        self._unread[newcomer] = events

    def run(self, deadline: float) -> None:
        """Reads hellos until none is left or the deadline (monotonic seconds) has come; one at least."""
        unread = self._unread
        until_clock = 1
        while unread:
            newcomer, events = unread.popitem()
            now = _monotonic()
            if events & (poller.HANG_UP | poller.BROKEN) and now - newcomer.connected_at > _GIVEN_UP_AFTER_SECONDS:
                self._gave_up(newcomer)
            else:
                self._read(newcomer, events)
            until_clock -= 1
            if not until_clock:
                until_clock = _CLOCK_EVERY
                if _monotonic() > deadline:
                    return


Begin: TypeAlias = Callable[[client.Client, channel_view.ChannelView, cursor.SnapshotFile], None]


class Snapshots:
    """Places for clients that take their snapshot. Held clients stand in their channels; channels take turns here.

    Whoever's socket stays full loses its place, and goes on as its link allows. But all that are in the middle of a
    snapshot are limited, too: full kernel buffers are memory, and where the kernel runs out of that it drops what it
    has received, and connections stand still for seconds. Who takes nothing at all does not count, nor who has been at
    it for long with a full socket: however many read a little at a time, newcomers get their turn.

    `begin` is called with a client that is held no more, for it has got a place, and begins its snapshot.
    """

    def __init__(self, limits: policy.Policy, begin: Begin) -> None:
        self._places = limits.snapshot_places
        self._patience_seconds = limits.snapshot_patience_seconds
        self._place_seconds = limits.snapshot_place_seconds
        self._open_max = limits.snapshots_open_max
        self._stall_seconds = limits.snapshot_stall_seconds
        self._open_seconds = limits.snapshot_open_seconds
        self._begin = begin
        self._open: dict[client.Client, None] = {}
        self._holders: dict[client.Client, None] = {}
        self._channels: dict[channel_view.ChannelView, None] = {}
        self._begun = 0
        self._look_at = 0.0

    @property
    def has_work(self) -> bool:
        """Whether somebody may be let in now."""
        return bool(self._channels) and self._has_room()

    def _has_room(self) -> bool:
        return len(self._holders) < self._places and len(self._open) < self._open_max

    def wanted(self, channel: channel_view.ChannelView) -> None:
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
            self._holders[next_one] = None
            self._open[next_one] = None
            self._channels[channel] = None
            self._begin(next_one, channel, snapshot)

    def leave(self, holder: client.Client) -> None:
        """Its snapshot is sent, or it is gone."""
        self._holders.pop(holder, None)
        self._open.pop(holder, None)

    def free_stuck(self, now: float) -> None:
        """Takes the places of those who are gone, or whose sockets have been full for a while, if they are wanted."""
        if not self._channels or self._has_room() or now < self._look_at:
            return
        self._look_at = now + _STUCK_LOOK_SECONDS
        _drop_stuck(self._holders, sent_before=now - self._patience_seconds, begun_before=now - self._place_seconds)
        _drop_stuck(self._open, sent_before=now - self._stall_seconds, begun_before=now - self._open_seconds)


def _drop_stuck(clients: dict[client.Client, None], *, sent_before: float, begun_before: float) -> None:
    """Takes out who is gone, and those with full sockets that were last sent something, or begun, before a moment."""
    for one in list(clients):
        is_slow = one.waiting and (one.sent_at < sent_before or one.snapshot_at < begun_before)
        if is_slow or one.is_closing():
            del clients[one]
