"""Connections: what clients say (first bytes, hello, pongs), what they are answered, and how connections end."""

import contextlib
import errno
import itertools
import socket
import ssl
from collections.abc import Callable
from typing import TypeAlias

import structlog

from protocol import errors
from protocol.reasons import DisconnectReason
from typha import clock
from typha.ipc import messages
from typha.observability import logs
from typha.worker import client, convergence, policy, poller, protocol_adapters, transport
from typha.worker.stats import PING_SECONDS, WorkerStats

_log = structlog.get_logger("typha.connections")
_monotonic = clock.monotonic

_READ_BYTES = 64 * 1024
_READ_BYTES_LATER = 4 * 1024
"""After the hello there are only pongs: a peer that floods a worker with messages gets 2 ms of a turn, not 50."""
_CLOSE_LINES_PER_SECOND = 20
"""Further ends of connections are counted and not logged: a storm must not spend its time on log lines."""
_USUAL_LINES = 200
_USUAL_LINES_SECONDS = 10.0
"""The same for hellos, and for ends that are everyday business: the clients of 50 nodes at once, and 20 a second for
ever. A line costs some 100 us, and one that is left out 1 us."""
_AGENT_CHARS_MAX = 200
_CONNECTION_BYTES = 1024
"""What a connection without a hello takes, apart from bytes that it has sent: measured, a thousand take 1 MB."""
_SAME_HOST_MAX = 16
"""While there is no room, connections without a hello of an address that has more of them go first."""
_LOOKS_FOR_ROOM = 64
"""Connections that are looked at for one to be closed."""
_RETRY_FULL_MILLISECONDS = 10_000
_AGENT_VERSIONS_MAX = 100
"""Versions of agents that are logged. An agent may say anything."""
_DISCARDED_BYTES_MAX = 1024 * 1024
"""What is read of a client, and thrown away, after its goodbye. Unread bytes would make the kernel reset the
connection, and the client would lose the goodbye."""
_TAKES_NOTHING = {DisconnectReason.NO_PROGRESS, DisconnectReason.PONG_TIMEOUT}
_QUIET_REASONS = {DisconnectReason.CLIENT_CLOSED, DisconnectReason.SHUTTING_DOWN, DisconnectReason.REBALANCED}


Greeted: TypeAlias = protocol_adapters.Subscribed | protocol_adapters.AckAwaited
"""A hello was good, and has been answered."""


class ConnectionLog:
    """A log line for each hello and for each end of a connection, up to a number of lines. Counts the others.

    Ends with a cause that somebody may want to remove have a limit of their own: everyday business hides none of them.
    """

    def __init__(self, now: Callable[[], float] = clock.monotonic) -> None:
        self._now = now
        self._ends = logs.LineLimit(_CLOSE_LINES_PER_SECOND, now=now)
        self._usual_ends = logs.LineLimit(_USUAL_LINES, seconds=_USUAL_LINES_SECONDS, now=now)
        self._hellos = logs.LineLimit(_USUAL_LINES, seconds=_USUAL_LINES_SECONDS, now=now)

    @property
    def suppressed(self) -> int:
        """Ends with a cause that were not logged since the last line."""
        return self._ends.suppressed

    def write_hello(self, current: client.Client, said: protocol_adapters.Introduction) -> None:
        """A client's hello was good."""
        if not self._hellos.allows():
            return
        agent = {"node": said.node[:_AGENT_CHARS_MAX], "version": said.version[:_AGENT_CHARS_MAX]}
        _log.info(
            "Client connected",
            client=current.address,
            connection=current.number,
            agent=current.adapter.agent if current.adapter else "",
            protocol=said.protocol,
            syncer=said.syncer,
            feed=said.feed,
            **{name: text for name, text in agent.items() if text},
        )

    def write_end(self, current: client.Client, reason: DisconnectReason, detail: str) -> None:
        """The connection has ended."""
        is_usual = reason in _QUIET_REASONS
        agent = current.adapter.agent if current.adapter else ""
        if _is_nobodys_business(current, reason) and not logs.is_enabled("debug"):
            return
        limit = self._usual_ends if is_usual else self._ends
        if not limit.allows():
            return
        fields: dict[str, object] = {} if is_usual else {"other_ends_not_logged": limit.take_suppressed()}
        _log.info(
            "Connection ended",
            reason=reason.value,
            detail=detail,
            client=current.address,
            agent=agent,
            feed=current.channel.feed if current.channel else "",
            connection=current.number,
            seconds=round(self._now() - current.connected_at, 3),
            bytes_sent=transport.kernel_sent_bytes(current.socket),
            **fields,
        )

    def write_left_out(self) -> None:
        """Says how many lines are missing, once there may be lines again. To be called every second or so."""
        limits = {"hellos": self._hellos, "usual_ends": self._usual_ends, "other_ends": self._ends}
        found = {
            name: limit.take_suppressed()
            for name, limit in limits.items()
            if limit.suppressed and not limit.left_seconds
        }
        if found:
            _log.info("Connections that were not logged", **found)


class Connections:
    """Reads, answers and closes."""

    def __init__(
        self,
        offer: protocol_adapters.Offer,
        limits: policy.Policy,
        client_poller: poller.AnyPoller[client.Client],
        bytes_through: transport.Transport,
        stats: WorkerStats,
    ) -> None:
        self.offer = offer
        self._policy = limits
        self._poller = client_poller
        self._transport = bytes_through
        self._stats = stats
        self.log = ConnectionLog()
        self.handshaking: dict[client.Client, None] = {}
        """Clients without a complete hello, in order of arrival."""
        self.closing: dict[client.Client, int] = {}
        """Clients that were refused or told goodbye and are not closed yet, in that order, and how many bytes more are
        read of each: none of those that are held silently."""
        self._handshaking_hosts: dict[str, int] = {}
        """How many of `handshaking` each address has."""
        self._held: dict[client.Client, int] = {}
        """Bytes of unfinished messages and handshakes; who began first comes first."""
        self._held_bytes = 0
        self._agent_versions: set[protocol_adapters.AgentVersion] = set()
        self.convergence = convergence.Convergence()
        self.ended_unproven = 0
        """Connections that have ended without a hello."""

    def withdraw(self, feeds: frozenset[str]) -> None:
        """From now on these feeds are unknown."""
        self.offer = self.offer._replace(feeds=self.offer.feeds - feeds)

    def note_confirmed(self, confirmed_at: dict[str, float], upstreams: list[bytes] | None) -> None:
        """When the backend last confirmed each feed, and through whom; what clients are told that ask for it."""
        path = None if upstreams is None else tuple(upstreams)
        self.offer = self.offer._replace(confirmed_at=confirmed_at, upstreams=path)

    def opened(self, newcomer: client.Client, pending: client.PendingHello) -> None:
        """A connection has been accepted. Without room for it, another one or the newcomer itself is closed."""
        self._stats.counts.accepted += 1
        self.handshaking[newcomer] = None
        self._handshaking_hosts[pending.host] = self._handshaking_hosts.get(pending.host, 0) + 1
        self._poller.add(newcomer)
        if len(self._poller.clients) > self._policy.connections_max:
            self.make_room(newcomer, f"{self._policy.connections_max} connections are open, and no more may be")
        if newcomer in self.handshaking and self.unproven_bytes > self._policy.unproven_bytes_max:
            self._free_memory(newcomer)

    def _proved(self, current: client.Client) -> None:
        """The connection counts as one without a hello no more: it has said hello, or is closing."""
        pending, current.hello = current.hello, None
        if pending is not None and current in self.handshaking:
            del self.handshaking[current]
            self._handshaking_hosts[pending.host] -= 1
            if not self._handshaking_hosts[pending.host]:
                del self._handshaking_hosts[pending.host]

    # Room.

    @property
    def unproven_bytes(self) -> int:
        """What connections take that have no hello, or have sent a part of a message."""
        return len(self.handshaking) * _CONNECTION_BYTES + self._held_bytes

    def hold(self, current: client.Client, count: int) -> None:
        """The worker holds this many bytes for a message or handshake of the client that is not complete.

        If all hold too much together, those are closed that began first: a real message is there at once.
        """
        before = self._held.get(current, 0)
        if count == before:
            return
        self._held_bytes += count - before
        if count:
            self._held[current] = count
        else:
            del self._held[current]
        if count > before and self.unproven_bytes > self._policy.unproven_bytes_max:
            self._free_memory(current)

    def _free_memory(self, newcomer: client.Client) -> None:
        limit = self._policy.unproven_bytes_max
        detail = f"unfinished hellos and messages take {limit} bytes, and may take no more"
        while self._held and self.unproven_bytes > limit:
            self.close(next(iter(self._held)), DisconnectReason.TOO_MANY_CONNECTIONS, detail=detail)
        if self.unproven_bytes > limit:
            self._close_silent(newcomer, detail)

    def make_room(self, newcomer: client.Client | None, detail: str) -> None:
        """Closes a connection that is refused already, else one without a hello that is silent, else the newcomer."""
        if self.closing:
            self._close_socket(next(iter(self.closing)))
        else:
            self._close_silent(newcomer, detail)

    def _close_silent(self, newcomer: client.Client | None, detail: str) -> None:
        """The oldest goes first, but an address with many connections without a hello loses them before others do."""
        chosen = newcomer
        for current in itertools.islice(self.handshaking, _LOOKS_FOR_ROOM):
            pending = current.hello
            if pending is None or pending.queued_at or current is newcomer:
                continue
            if self._handshaking_hosts[pending.host] > _SAME_HOST_MAX:
                chosen = current
                break
            if chosen is newcomer:
                chosen = current
        if chosen is not None:
            self.close(chosen, DisconnectReason.TOO_MANY_CONNECTIONS, detail=detail)

    @property
    def _is_full(self) -> bool:
        """Whether there is no place for another client; some are kept for connections without a hello."""
        places = self._policy.connections_max
        clients = len(self._poller.clients) - len(self.handshaking) - len(self.closing)
        return clients >= places - max(1, int(places * self._policy.newcomers_share))

    # What clients say.

    def read(self, current: client.Client) -> Greeted | None:
        """Reads what has arrived, once, and acts on it. Returns what becomes of the client, if its hello was good.

        Of a connection that is closing only the end matters.
        """
        if current.is_closing():
            self._discard(current)
            return None
        try:
            data = self._receive(current)
            return self._hear(current, data) if data else None
        except errors.RemoteProtocolError as error:
            if error.reason is DisconnectReason.BAD_PREFACE:
                self.close(current, error.reason, detail=str(error))
            else:
                self.farewell(current, error.reason, text=str(error))
            return None

    def _discard(self, current: client.Client) -> None:
        """Throws away what a client sends after its goodbye; closes the connection at its end, or after too much."""
        try:
            discarded = len(current.socket.recv(_READ_BYTES)) if self.closing.get(current) else 0
        except BlockingIOError:
            return
        except OSError:
            discarded = 0
        self.closing[current] = max(0, self.closing.get(current, 0) - discarded)
        if not discarded or not self.closing[current]:
            self._close_socket(current)

    def _receive(self, current: client.Client) -> bytes:
        """What has arrived; empty if that is nothing or the connection is closed now. Raises RemoteProtocolError."""
        limit = _READ_BYTES if current.channel is None else _READ_BYTES_LATER
        try:
            data = self._transport.receive(current.socket, limit)
        except BlockingIOError:  # a part of a TLS record
            current.liveness.note_incomplete_read()
            return b""
        except OSError as error:
            self.lost(current, error)
            return b""
        if not data:
            self.close(current, DisconnectReason.CLIENT_CLOSED)
        return data

    def _hear(self, current: client.Client, data: bytes) -> Greeted | None:
        """As `read`. Raises RemoteProtocolError."""
        if current.adapter is None:
            begun = protocol_adapters.begin(data, self.offer, current.number, current.host)
            if isinstance(begun, protocol_adapters.Refused):
                if begun.reason is DisconnectReason.BAD_PREFACE:
                    self.close(current, begun.reason, detail=begun.text)
                else:
                    self._refuse(current, begun, self._policy.refusal_hold_seconds)
                return None
            current.adapter = begun
        outcome: Greeted | None = None
        is_complete = False
        for event in current.adapter.receive(data):
            is_complete = True
            match event:
                case protocol_adapters.Ponged():
                    self._note_pong(current)
                case protocol_adapters.Applied():
                    self._note_applied(current, event.sequence)
                case protocol_adapters.Left():
                    self.close(current, DisconnectReason.CLIENT_CLOSED, detail=event.text)
                case protocol_adapters.Refused():
                    self._turn_away(current, event)
                case protocol_adapters.Subscribed() | protocol_adapters.AckAwaited():
                    if self._answer_hello(current, event):
                        outcome = event
            if current.is_closing():
                return None
        if not is_complete:
            current.liveness.note_incomplete_read()
        part_bytes = current.adapter.pending_bytes
        if part_bytes or current in self._held:
            self.hold(current, part_bytes)
        return None if current.is_closing() else outcome

    def _answer_hello(self, current: client.Client, event: Greeted) -> bool:
        """Sends the answer to a good hello; False if the client has no room for it, or there is none for the client."""
        if current.hello is not None and self._is_full:
            text = "this server has as many clients as it can serve"
            refusal = protocol_adapters.Refused(DisconnectReason.TOO_MANY_CONNECTIONS, text, _RETRY_FULL_MILLISECONDS)
            self._turn_away(current, refusal, answer=event.data)
            return False
        if event.introduction is not None:
            self.log.write_hello(current, event.introduction)
        is_subscribed = isinstance(event, protocol_adapters.Subscribed)
        if event.data and not self._send_control(
            current, event.data, DisconnectReason.NO_PROGRESS, ahead=is_subscribed
        ):
            return False
        self._proved(current)
        current.liveness.note_greeted()
        if isinstance(event, protocol_adapters.Subscribed):
            self._note_version(event.agent_version)
            current.liveness.excuse_pong()
            current.become_held()
        else:
            current.liveness.await_pong(_monotonic())  # the acknowledgement is due within the pong timeout
        return True

    def _note_version(self, found: protocol_adapters.AgentVersion | None) -> None:
        """Logs each version that agents have once, and what such agents get."""
        if found is None or found in self._agent_versions or len(self._agent_versions) >= _AGENT_VERSIONS_MAX:
            return
        self._agent_versions.add(found)
        _log.info("First agent of its version", version=found.version, gets=found.release.value, reason=found.reason)

    def _turn_away(self, current: client.Client, refusal: protocol_adapters.Refused, *, answer: bytes = b"") -> None:
        """Refuses a good hello: by a goodbye where the protocol has one, else by holding the connection for a while.

        The `answer` to the hello, if it was made already, goes before the goodbye.
        """
        farewell = current.adapter.goodbye(refusal) if current.adapter else b""
        if not farewell:
            self._refuse(current, refusal, self._policy.refusal_hold_seconds)
        elif self._send_control(current, answer + farewell, refusal.reason):
            self._refuse(current, refusal, self._policy.refusal_hold_seconds, is_told=True)

    def _note_pong(self, current: client.Client) -> None:
        self._stats.pongs_received += 1
        asked_at = current.liveness.note_pong()
        if asked_at and current.channel is not None:
            self._stats.feeds[current.channel.feed].histograms[PING_SECONDS].record(_monotonic() - asked_at)

    def _note_applied(self, current: client.Client, sequence: int) -> None:
        channel = current.channel
        if channel is not None:
            newest = channel.newest_sequence
            self.convergence.note(current, channel.feed, sequence, newest=newest, now=_monotonic())

    # What clients are sent beside their feed.

    def send_ping(self, current: client.Client, ping: bytes) -> bool:
        """Sends a ping at a frame's end; False if it cannot be sent now.

        A socket without room for it is no error: the client has bytes to read, and its progress is watched from here.
        """
        try:
            sent = self._transport.write(current.fd, ping)
        except BlockingIOError:
            if self._transport.owed(current.fd):
                # The ping is sealed, and nothing may be sent before it: the client leaves the pass until it is sent.
                current.owe(ping)
                current.liveness.note_pinged()
                if current.channel is not None and current.index >= 0:
                    current.channel.leave_live(current)
            if current.begin_waiting(_monotonic()):
                self._poller.watch_write(current, True)
            return False
        except OSError as error:
            self.lost(current, error)
            return False
        if sent != len(ping):
            self.close(current, DisconnectReason.NO_PROGRESS, detail="no room for a whole ping")
            return False
        current.liveness.note_pinged()
        current.sent_at = _monotonic()
        return True

    def _send_control(
        self, current: client.Client, data: bytes, otherwise: DisconnectReason, *, ahead: bool = False
    ) -> bool:
        """Sends a small message at a frame's end; a client without room for it is closed for the reason given.

        A message that goes `ahead` of a snapshot leaves in one packet with its first bytes, or a moment later alone.
        """
        try:
            if ahead:
                sent = self._transport.write_ahead(current.socket, data)
            else:
                sent = self._transport.write(current.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lost(current, error)
            return False
        if sent != len(data):
            self.close(current, otherwise, detail="no room for a last message")
            return False
        current.sent_at = _monotonic()
        return True

    # How connections end.

    def farewell(
        self,
        current: client.Client,
        reason: DisconnectReason,
        *,
        text: str,
        retry_after_milliseconds: int = 0,
        servers: tuple[str, ...] = (),
    ) -> None:
        """A goodbye where one can be sent; a close if the protocol has none, or the client stands inside a frame."""
        refusal = protocol_adapters.Refused(reason, text, retry_after_milliseconds, servers)
        said = b""
        if current.adapter is not None and current.at_frame_end(self._transport):
            said = current.adapter.goodbye(refusal)
        if not said:
            self.close(current, reason, detail=text)
        elif self._send_control(current, said, reason):
            self._refuse(current, refusal, self._policy.goodbye_linger_seconds, is_told=True)

    def fell_behind(self, current: client.Client) -> None:
        """A client that has fallen out of the log cannot catch up."""
        self.close(current, DisconnectReason.FELL_BEHIND, detail="what was deleted since then is not known any more")

    def _refuse(
        self,
        current: client.Client,
        refusal: protocol_adapters.Refused,
        linger_seconds: float,
        *,
        is_told: bool = False,
    ) -> None:
        """Keeps the connection for a while. A client that was told goodbye sees the end of the stream at once."""
        self._leave(current, refusal.reason, refusal.text)
        current.close_at = _monotonic() + linger_seconds
        if is_told:
            self._poller.watch_read(current)
            self.closing[current] = _DISCARDED_BYTES_MAX
            self._transport.release(current.fd)
            with contextlib.suppress(OSError):  # it has gone already
                current.socket.shutdown(socket.SHUT_WR)
        else:
            self._poller.watch_end(current)
            self.closing[current] = 0
        if len(self.closing) > self._policy.max_held_refusals:
            self._close_socket(next(iter(self.closing)))

    def lost(self, current: client.Client, error: OSError) -> None:
        """The socket failed."""
        if current.is_closing():
            self._close_socket(current)
            return
        self.close(current, _reason_of(error), detail=str(error))

    def close(self, current: client.Client, reason: DisconnectReason, *, detail: str = "") -> None:
        """Ends a connection at once."""
        if not current.is_closing():
            self._leave(current, reason, detail)
        self._close_socket(current)

    def close_overdue(self, now: float) -> None:
        """Closes refused connections whose time is over, a limited number at once."""
        overdue = [current for current in self.closing if current.close_at <= now]
        for current in overdue[: self._policy.expired_at_a_time]:
            self._close_socket(current)

    def _leave(self, current: client.Client, reason: DisconnectReason, detail: str) -> None:
        """From here on the connection counts no more, though its socket may live a little longer."""
        current.become_closing(reason)
        self.ended_unproven += current in self.handshaking
        self._proved(current)
        self.hold(current, 0)
        self._stats.note_disconnect(reason)
        if current.channel is not None:
            self.convergence.remove(current, current.channel.feed, _monotonic())
            current.channel.forget(current)
            current.channel.close_unread_snapshots()
        self.log.write_end(current, reason, detail)
        self._note_end(current, reason)
        current.adapter = None  # with what it holds of a message: the connection may be held for a while

    def _note_end(self, current: client.Client, reason: DisconnectReason) -> None:
        if _is_nobodys_business(current, reason):
            return
        now = _monotonic()
        self._stats.ends.append(
            messages.End(
                now,
                current.adapter.identity.node if current.adapter else "",
                current.address,
                current.channel.feed if current.channel else "",
                reason,
                max(0.0, now - current.connected_at),
            )
        )

    def _close_socket(self, current: client.Client) -> None:
        if not self._transport.release(current.fd):
            current.close_at = 0.0
            self.closing[current] = 0  # `close_overdue` tries again
            return
        self.closing.pop(current, None)
        self._poller.close(current, discard=current.reason in _TAKES_NOTHING)


def _is_nobodys_business(current: client.Client, reason: DisconnectReason) -> bool:
    """Whether the connection never said hello, and left by itself: probes of the port do that all day."""
    is_known = current.channel is not None or (current.adapter is not None and current.adapter.agent)
    return reason in _QUIET_REASONS and not is_known


def _reason_of(error: OSError) -> DisconnectReason:
    """The reason for closing a connection whose socket has failed."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return DisconnectReason.CLIENT_CLOSED
    if isinstance(error, ssl.SSLError):  # whose numbers are not the kernel's
        return DisconnectReason.TLS_FAILED
    return {
        errno.ETIMEDOUT: DisconnectReason.NO_PROGRESS,
        errno.ECONNRESET: DisconnectReason.CLIENT_CLOSED,
        errno.EPIPE: DisconnectReason.CLIENT_CLOSED,
    }.get(error.errno or 0, DisconnectReason.NETWORK_ERROR)
