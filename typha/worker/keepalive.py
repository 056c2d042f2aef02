"""Keepalive: pings, and which clients are given up; a slot of clients at a time."""

import random

from protocol.reasons import DisconnectReason
from typha import clock
from typha.worker import client, connections, policy, poller, transport
from typha.worker.stats import WorkerStats

_TURNS_PER_INTERVAL = 8
_TURNS_OF_SLACK = 2
"""A client is pinged two turns before its silence would exceed the interval, after 6/8 to 7/8 of it. The loop may be
busy for a tenth of the interval, and still no client goes without bytes for longer than the interval."""
_TICKS_JOINED_MAX = 3
_WORTH_A_TICK = 256
"""Clients. Ticks of fewer are joined, because a wake-up costs as much as a look at this many. That delays a turn by two
ticks at most, a sixtieth of the interval."""
_TURNS_PER_PROBE = 4
"""A client that is sent data all the time is checked every half interval, and probed if its host's receive window has
narrowed: a client that stops reading is seen to lag within an interval. It is not closed for a missing answer, because
a slow client has much to read before the probe."""
_UNREAD_BYTES = 2048
"""How much narrower the window may be while a client that reads has just been sent something."""
_PING_BYTES_MAX = 256
"""A client gets at most one more ping between two looks. Its acknowledgement is no sign that the client reads."""


class Keepalive:
    """Call `tick` every `wait_seconds` or later; each client's turn comes eight times per ping interval."""

    def __init__(
        self,
        limits: policy.Policy,
        client_poller: poller.AnyPoller[client.Client],
        bytes_through: transport.Transport,
        worker_connections: connections.Connections,
        stats: WorkerStats,
    ) -> None:
        self._policy = limits
        self._poller = client_poller
        self._transport = bytes_through
        self._connections = worker_connections
        self._stats = stats
        self._slots: list[dict[client.Client, None]] = [{} for _ in range(limits.ping_slots)]
        self._turn = 0
        self._due: list[client.Client] = []
        """Clients of the present slot that have not had their turn."""
        self._unix_nanoseconds = 0
        """The moment that this tick's pings carry."""
        self._turn_seconds = limits.ping_interval_seconds / _TURNS_PER_INTERVAL
        self._probe_seconds = self._turn_seconds * _TURNS_PER_PROBE
        self._slack_seconds = self._turn_seconds * _TURNS_OF_SLACK
        self._tick_seconds = self._turn_seconds / limits.ping_slots
        self._next_at = 0.0

    @property
    def wait_seconds(self) -> float:
        """Seconds until the next `tick` is due: the more clients there are, the fewer."""
        clients_per_tick = 1 + len(self._poller.clients) // len(self._slots)
        return self._tick_seconds * max(1, min(_TICKS_JOINED_MAX, _WORTH_A_TICK // clients_per_tick))

    def choose_slot(self) -> int:
        """A slot for a newcomer, at random: clients that connected together are not pinged together."""
        return random.randrange(self._policy.ping_slots)

    def add(self, newcomer: client.Client) -> None:
        """From now on the client is pinged and watched."""
        self._slots[newcomer.slot][newcomer] = None

    def tick(self, now: float) -> bool:
        """The turns of all slots that are due; after a delay that is more than one, so that no client is left out.

        Returns False if the time of one turn was not enough: the next call goes on.
        """
        self._next_at = max(self._next_at, now - self._turn_seconds)
        self._unix_nanoseconds = clock.time_ns()
        deadline = clock.monotonic() + self._policy.keepalive_seconds
        while self._due or self._next_at <= now:
            if not self._due:
                self._next_at += self._tick_seconds
                self._due = list(self._slots[self._turn])
                self._turn = (self._turn + 1) % len(self._slots)
                continue
            current = self._due.pop()
            if current.is_closing() or self._poller.clients.get(current.fd) is not current:
                self._slots[current.slot].pop(current, None)
            else:
                self._look_after(current, now)
            if clock.monotonic() > deadline:
                return not self._due and self._next_at > now
        return True

    def expire_handshakes(self, now: float) -> None:
        """Closes connections whose hello is overdue. They are in order of arrival: the first one in time ends the look.

        Only the peer's own time counts: a connection that waits for the worker is passed over, and gets its time again.
        """
        overdue: list[client.Client] = []
        for current in self._connections.handshaking:
            is_young = now - current.connected_at < self._policy.handshake_timeout_seconds
            if is_young or len(overdue) == self._policy.expired_at_a_time:
                break
            if self._is_hello_overdue(current, now):
                overdue.append(current)
        for current in overdue:
            received = current.adapter.pending_bytes if current.adapter else 0
            detail = f"no complete hello, {received} bytes of one" if received else "not a byte of a hello"
            if current.hello is not None and current.hello.is_shaking:
                detail = "the TLS handshake is not done"
            self._connections.close(current, DisconnectReason.HANDSHAKE_TIMEOUT, detail=detail)

    def _is_hello_overdue(self, current: client.Client, now: float) -> bool:
        timeout_seconds = self._policy.handshake_timeout_seconds
        if now - current.connected_at >= timeout_seconds * self._policy.handshake_timeouts_max:
            return True
        pending = current.hello
        if pending is None or pending.own_seconds(now) < timeout_seconds:
            return False
        if not pending.queued_at and not self._poller.has_unread(current):
            return True
        pending.restart(now)  # it is the worker that is late
        return False

    def _look_after(self, current: client.Client, now: float) -> None:
        limits, liveness = self._policy, current.liveness
        if liveness.pinged_at and self._is_pong_overdue(current, now):
            detail = f"no pong for {now - liveness.pinged_at:.0f} s"
            self._connections.close(current, DisconnectReason.PONG_TIMEOUT, detail=detail)
            return
        if current.waiting:
            liveness.note_acked(self._transport.acked_bytes(current.socket), now)
            seconds = now - liveness.progress_at
            if seconds > limits.no_progress_timeout_seconds:
                detail = f"the peer's host has taken nothing for {seconds:.0f} s"
                self._connections.close(current, DisconnectReason.NO_PROGRESS, detail=detail)
            return
        silent_for = now - current.sent_at
        if silent_for + self._slack_seconds >= limits.ping_interval_seconds:
            if self._ping(current):
                liveness.await_pong(now)
        elif self._is_probe_due(current, now):
            self._probe(current, now)

    def _probe(self, current: client.Client, now: float) -> None:
        """Checks whether what the client has been sent arrives, and is read."""
        liveness = current.liveness
        liveness.note_acked(self._transport.acked_bytes(current.socket), now)
        if liveness.progress_at < now:
            # Nothing was acknowledged since the last look: the host may be gone, and then no pong comes either.
            if self._ping(current):
                liveness.await_pong(now)
        elif liveness.is_window_wide(self._transport.window_bytes(current.socket), unread_bytes=_UNREAD_BYTES):
            liveness.note_asked(now)  # a look costs 2 us, a ping and its pong 30
        elif self._ping(current):  # the host may take data for minutes that the client does not read
            liveness.await_probe(now, current.offset)

    def _is_pong_overdue(self, current: client.Client, now: float) -> bool:
        """Whether for too long neither a pong nor anything else has shown that the client reads."""
        if now - current.liveness.pinged_at < self._turn_seconds:
            return False  # as a rule the answer comes at once
        acked_bytes = self._transport.acked_bytes(current.socket)
        overdue_seconds = current.liveness.overdue_seconds(acked_bytes, now, ignored_bytes=_PING_BYTES_MAX)
        return overdue_seconds > self._policy.pong_timeout_seconds

    def _is_probe_due(self, current: client.Client, now: float) -> bool:
        """Whether the client is sent so much that it never needs a ping, and has not been asked for a while."""
        liveness = current.liveness
        was_sent_data = current.index >= 0 and current.sent_at > liveness.asked_at
        return was_sent_data and not liveness.probed_at and now - liveness.asked_at >= self._probe_seconds

    def _ping(self, current: client.Client) -> bool:
        if current.channel is None or not current.at_frame_end(self._transport):
            return False
        if not self._connections.send_ping(current, current.channel.ping(self._unix_nanoseconds)):
            return False
        self._stats.pings_sent += 1
        current.liveness.note_asked(current.sent_at)
        return True
