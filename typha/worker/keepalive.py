"""Pings, and who is given up on: the worker's clockwork, a slot of clients at a time."""

import random

from protocol.reasons import DisconnectReason
from typha import clock
from typha.worker import client, connections, policy, poller, transport
from typha.worker.stats import WorkerStats

_TURNS_PER_INTERVAL = 8
_TURNS_OF_SLACK = 2
"""A client is pinged two turns before its silence would exceed the interval, after 6/8 to 7/8 of it: the loop may be
busy for a tenth of the interval, and still nobody is silent for longer than the interval."""
_TICKS_JOINED_MAX = 3
_WORTH_A_TICK = 256
"""Clients. Ticks of fewer are joined: a wake-up costs as much as a look at so many. A turn is later by that, by two
ticks at most, a sixtieth of the interval."""
_TURNS_PER_PROBE = 4
"""A client that is sent data all the time is looked at each half interval, and pinged if its host's receive window has
narrowed: one that stops reading is seen to lag within an interval. It is not closed for that pong: whoever is slow has
much to read before it."""
_UNREAD_BYTES = 2048
"""By so much the window is narrower while a client that reads has just been sent something."""
_PING_BYTES_MAX = 256
"""Between two looks at a client it is sent one more ping at most, whose acknowledgement is no sign that it reads."""
_EXPIRED_AT_A_TIME = 200
"""Connections without a hello closed in one go: some 4 ms."""
_LONGEST_TIMEOUTS = 12
"""A connection without a hello ends after so many handshake timeouts, whoever was waited for: one that keeps us busy
with a byte at a time must not live for as long as it likes."""


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
        self._unix_nanoseconds = 0
        """The moment that this tick's pings tell."""
        self._turn_seconds = limits.ping_interval_seconds / _TURNS_PER_INTERVAL
        self._probe_seconds = self._turn_seconds * _TURNS_PER_PROBE
        self._slack_seconds = self._turn_seconds * _TURNS_OF_SLACK
        self._tick_seconds = self._turn_seconds / limits.ping_slots
        self._next_at = 0.0

    @property
    def wait_seconds(self) -> float:
        """How long nobody need call `tick`: the more clients there are, the shorter."""
        clients_per_tick = 1 + len(self._poller.clients) // len(self._slots)
        return self._tick_seconds * max(1, min(_TICKS_JOINED_MAX, _WORTH_A_TICK // clients_per_tick))

    def choose_slot(self) -> int:
        """A slot for a newcomer, at random: what connected together is not pinged together."""
        return random.randrange(self._policy.ping_slots)

    def add(self, newcomer: client.Client) -> None:
        """From now on the client is pinged and watched."""
        self._slots[newcomer.slot][newcomer] = None

    def tick(self, now: float) -> None:
        """The turns of all slots that are due: more than one after a delay, so that no client's turn comes late."""
        self._next_at = max(self._next_at, now - self._turn_seconds)
        self._unix_nanoseconds = clock.time_ns()
        while self._next_at <= now:
            self._next_at += self._tick_seconds
            self._tick(now)

    def _tick(self, now: float) -> None:
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        gone = []
        for current in slot:
            if current.is_closing() or self._poller.clients.get(current.fd) is not current:
                gone.append(current)
            else:
                self._look_after(current, now)
        for current in gone:
            slot.pop(current, None)

    def expire_handshakes(self, now: float) -> None:
        """Closes those whose hello is overdue; arrival order means that the first in time ends the look.

        Only the peer's own time counts: whoever waits for us is passed over, and has all its time anew.
        """
        overdue: list[client.Client] = []
        for current in self._connections.handshaking:
            if (
                now - current.connected_at < self._policy.handshake_timeout_seconds
                or len(overdue) == _EXPIRED_AT_A_TIME
            ):
                break
            if self._is_late(current, now):
                overdue.append(current)
            elif self._has_used_its_time(current, now):
                current.start_anew(now)  # it is we who are late
        for current in overdue:
            received = current.adapter.pending_bytes if current.adapter else 0
            detail = f"no complete hello, {received} bytes of one" if received else "not a byte of a hello"
            if current.shaking:
                detail = "the TLS handshake is not done"
            self._connections.close(current, DisconnectReason.HANDSHAKE_TIMEOUT, detail=detail)

    def _is_late(self, current: client.Client, now: float) -> bool:
        if now - current.connected_at >= self._policy.handshake_timeout_seconds * _LONGEST_TIMEOUTS:
            return True
        return self._has_used_its_time(current, now) and not current.queued_at and not self._poller.has_unread(current)

    def _has_used_its_time(self, current: client.Client, now: float) -> bool:
        return current.own_seconds(now) >= self._policy.handshake_timeout_seconds

    def _look_after(self, current: client.Client, now: float) -> None:
        limits = self._policy
        if current.pinged_at and self._is_pong_overdue(current, now):
            seconds = now - current.pinged_at
            self._connections.close(current, DisconnectReason.PONG_TIMEOUT, detail=f"no pong for {seconds:.0f} s")
            return
        if current.waiting:
            current.note_progress(self._transport.acked_bytes(current.socket), now)
            seconds = now - current.progress_at
            if seconds > limits.no_progress_timeout_seconds:
                detail = f"the peer's host has taken nothing for {seconds:.0f} s"
                self._connections.close(current, DisconnectReason.NO_PROGRESS, detail=detail)
            return
        silent_for = now - current.sent_at
        if silent_for + self._slack_seconds >= limits.ping_interval_seconds:
            if self._ping(current) and not current.pinged_at:
                current.pinged_at = now
        elif self._is_probe_due(current, now):
            self._probe(current, now)

    def _probe(self, current: client.Client, now: float) -> None:
        """Looks whether what the client has been sent arrives, and is read."""
        current.note_progress(self._transport.acked_bytes(current.socket), now)
        if current.progress_at < now:
            # Nothing has been acknowledged since the last look: its host may be gone, and then no pong comes either.
            if self._ping(current) and not current.pinged_at:
                current.pinged_at = now
        elif self._is_window_wide(current):
            current.asked_at = now
        elif self._ping(current):  # its host may take data for minutes that the client does not read
            current.probed_at, current.probed_offset = now, current.offset

    def _is_pong_overdue(self, current: client.Client, now: float) -> bool:
        """Whether neither a pong nor anything else has shown for too long that the client reads.

        What its host has acknowledged meanwhile is such a sign: a slow reader has all that to read before the ping.
        """
        if now - current.pinged_at < self._turn_seconds:
            return False  # it answers at once, as a rule
        acked = self._transport.acked_bytes(current.socket)
        if current.overdue_since < current.pinged_at:  # the first look: what came before it says nothing
            current.overdue_since = current.pinged_at
        elif acked - current.overdue_acked > _PING_BYTES_MAX:
            current.overdue_since = now
        current.overdue_acked = acked
        return now - current.overdue_since > self._policy.pong_timeout_seconds

    def _is_probe_due(self, current: client.Client, now: float) -> bool:
        """Whether a client is sent so much that it never needs a ping, and has not been asked for a while."""
        was_sent_data = current.index >= 0 and current.sent_at > current.asked_at
        return was_sent_data and not current.probed_at and now - current.asked_at >= self._probe_seconds

    def _is_window_wide(self, current: client.Client) -> bool:
        """Whether its host has as much room as ever: then the client reads, and need not be asked. A look costs 2 us,
        a ping and its pong 30."""
        window = self._transport.window_bytes(current.socket)
        current.widest_window = max(current.widest_window, window)
        return window > 0 and window > current.widest_window - _UNREAD_BYTES

    def _ping(self, current: client.Client) -> bool:
        if current.channel is None or not current.at_frame_end(self._transport):
            return False
        if not self._connections.send_ping(current, current.channel.ping(self._unix_nanoseconds)):
            return False
        self._stats.pings_sent += 1
        current.asked_at = current.sent_at
        return True
