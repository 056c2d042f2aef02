"""What clients say: first bytes, hello, pongs, and how a connection ends."""

import errno
import ssl
from collections.abc import Callable

import msgspec
import structlog

from protocol import errors
from protocol.reasons import DisconnectReason
from typha import clock
from typha.worker import client, policy, poller, protocol_adapters, transport
from typha.worker.channel import WorkerChannel
from typha.worker.stats import PING_SECONDS, WorkerStats

_log = structlog.get_logger("typha.connections")
_monotonic = clock.monotonic

_READ_BYTES = 64 * 1024
_READ_BYTES_LATER = 4 * 1024
"""Behind the hello there are only pongs: a peer that floods us with messages gets 2 ms of a turn, not 50."""
_CLOSE_LINES_PER_SECOND = 20
"""More than these are counted instead of logged: a storm must not be spent on log lines."""
_TAKES_NOTHING = {DisconnectReason.NO_PROGRESS, DisconnectReason.PONG_TIMEOUT}
_QUIET_REASONS = {DisconnectReason.CLIENT_CLOSED, DisconnectReason.SHUTTING_DOWN, DisconnectReason.REBALANCED}


class Connections:
    """Reads, answers and closes.

    `subscribed` is called with a client whose handshake is done, `acking` with one that is to acknowledge first.
    """

    def __init__(
        self,
        config: policy.WorkerConfig,
        limits: policy.Policy,
        client_poller: poller.AnyPoller[client.Client],
        bytes_through: transport.Transport,
        stats: WorkerStats,
        subscribed: Callable[[client.Client, str, str], None],
        acking: Callable[[client.Client], None],
    ) -> None:
        self._config = config
        self._policy = limits
        self._poller = client_poller
        self._transport = bytes_through
        self._stats = stats
        self._subscribed = subscribed
        self._acking = acking
        self.handshaking: dict[client.Client, None] = {}
        """In order of arrival."""
        self.closing: dict[client.Client, None] = {}
        """Refused or told goodbye, not closed yet; in order of refusal."""
        self._close_lines_second = 0
        self._close_lines = 0

    def withdraw(self, feeds: frozenset[str]) -> None:
        """From now on these feeds are unknown."""
        left = tuple(name for name in self._config.feeds if name not in feeds)
        self._config = msgspec.structs.replace(self._config, feeds=left)

    def opened(self, newcomer: client.Client) -> None:
        """A connection has been accepted."""
        self._stats.accepted += 1
        self.handshaking[newcomer] = None
        self._poller.add(newcomer)

    def readable(self, current: client.Client) -> None:
        """Reads once what is there, and acts on it; of a connection that is closing only the end is heard."""
        if current.is_closing():
            self._close_socket(current)
            return
        try:
            limit = _READ_BYTES if current.channel is None else _READ_BYTES_LATER
            data = self._transport.receive(current.socket, limit)
        except transport.WriteFirst:
            current.pinged_at = 0.0  # its pong may be what cannot be read; it lives, and its progress is watched
            current.begin_waiting(_monotonic())
            self._poller.watch_write_only(current)
            return
        except BlockingIOError:
            return
        except OSError as error:
            self.lost(current, error)
            return
        if not data:
            self.close(current, DisconnectReason.CLIENT_CLOSED)
            return
        try:
            self._hear(current, data)
        except errors.RemoteProtocolError as error:
            self._protocol_error(current, error)

    def _hear(self, current: client.Client, data: bytes) -> None:
        """Raises RemoteProtocolError."""
        adapter = current.adapter
        if adapter is None:
            begun = protocol_adapters.begin(data, self._config, current.number, self._policy)
            if isinstance(begun, protocol_adapters.Refusal) and begun.reason is DisconnectReason.BAD_PREFACE:
                self.close(current, begun.reason, detail=begun.text)
                return
            if isinstance(begun, protocol_adapters.Refusal):
                self._refuse(current, begun, self._policy.refusal_hold_seconds)
                return
            current.adapter = adapter = begun
        for answer in adapter.receive(data):
            self._act(current, answer)
            if current.is_closing():
                return

    def _protocol_error(self, current: client.Client, error: errors.RemoteProtocolError) -> None:
        if error.reason is DisconnectReason.BAD_PREFACE:
            self.close(current, error.reason, detail=str(error))
        else:
            self.farewell(current, error.reason, text=str(error))

    def _act(self, current: client.Client, answer: protocol_adapters.Answer) -> None:
        """Does what a message calls for."""
        if answer.is_pong:
            self._pong(current)
        elif answer.left:
            self.close(current, DisconnectReason.CLIENT_CLOSED, detail=answer.left)
        elif answer.refusal is not None:
            self._turn_away(current, answer.refusal)
        elif not answer.data or self._send_control(
            current, answer.data, DisconnectReason.NO_PROGRESS, ahead=answer.subscribe is not None
        ):
            self.handshaking.pop(current, None)
            if answer.subscribe is not None:
                current.pinged_at = 0.0
                current.become_held()
                self._subscribed(current, *answer.subscribe)
            elif answer.awaits_ack:
                current.pinged_at = _monotonic()  # the ack is due within the pong timeout, as a pong is
                self._acking(current)

    def _turn_away(self, current: client.Client, refusal: protocol_adapters.Refusal) -> None:
        """Refuses a good hello: with a goodbye where there is one, else by holding the connection for a while."""
        farewell = current.adapter.goodbye(refusal) if current.adapter else b""
        if not farewell:
            self._refuse(current, refusal, self._policy.refusal_hold_seconds)
        elif self._send_control(current, farewell, refusal.reason):
            self._refuse(current, refusal, self._policy.goodbye_linger_seconds)

    def _pong(self, current: client.Client) -> None:
        self._stats.pongs_received += 1
        asked_at = current.pinged_at or current.probed_at
        if asked_at and current.channel is not None:
            histograms = self._stats.feeds[current.channel.feed].histograms
            histograms[PING_SECONDS].record(_monotonic() - asked_at)
        current.pinged_at = current.probed_at = 0.0

    def send_ping(self, current: client.Client, ping: bytes) -> bool:
        """Sends a ping at a frame's end; False if it cannot be sent now.

        A socket without room for it is no error: the client has bytes to read, and its progress is watched from here.
        """
        try:
            sent = self._transport.write(current.fd, ping)
        except BlockingIOError:
            if self._transport.owed(current.fd):
                self._owe(current, ping)
            if current.begin_waiting(_monotonic()):
                self._poller.watch_write(current, True)
            return False
        except OSError as error:
            self.lost(current, error)
            return False
        if sent != len(ping):
            self.close(current, DisconnectReason.NO_PROGRESS, detail="no room for a whole ping")
            return False
        current.sent_at = _monotonic()
        return True

    @staticmethod
    def _owe(current: client.Client, ping: bytes) -> None:
        """The ping is sealed, and nothing may be sent before it: the client leaves the pass until it is."""
        current.owe(ping)
        channel = current.channel
        if channel is not None and current.index >= 0:
            current.blocked_offset = current.offset
            channel.remove_live(current)
            channel.away.add(current)

    def _send_control(
        self, current: client.Client, data: bytes, otherwise: DisconnectReason, *, ahead: bool = False
    ) -> bool:
        """Sends a small message at a frame's end; whoever has no room for it is closed for the reason given.

        One that goes `ahead` of a snapshot leaves with its first bytes, or a moment later if they are not there yet.
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

    def farewell(
        self, current: client.Client, reason: DisconnectReason, *, text: str, retry_after_milliseconds: int = 0
    ) -> None:
        """A goodbye where one can be said; a close where the protocol has none, or the client stands inside a frame."""
        refusal = protocol_adapters.Refusal(reason, text, retry_after_milliseconds)
        said = b""
        if current.adapter is not None and current.at_frame_end(self._transport):
            said = current.adapter.goodbye(refusal)
        if not said:
            self.close(current, reason, detail=text)
        elif self._send_control(current, said, reason):
            self._refuse(current, refusal, self._policy.goodbye_linger_seconds)

    def fell_behind(self, current: client.Client) -> None:
        """A client that has fallen out of the log cannot be caught up."""
        self.close(current, DisconnectReason.FELL_BEHIND, detail="what was deleted since then is not known any more")

    def _refuse(self, current: client.Client, refusal: protocol_adapters.Refusal, linger_seconds: float) -> None:
        self._leave(current, refusal.reason, refusal.text)
        self._poller.watch_end(current)
        current.close_at = _monotonic() + linger_seconds
        self.closing[current] = None
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
        """Closes refused connections whose time is over."""
        for current in list(self.closing):
            if current.close_at <= now:
                self._close_socket(current)

    def _leave(self, current: client.Client, reason: DisconnectReason, detail: str) -> None:
        """The connection counts no more from here on, though its socket may live a little longer."""
        current.become_closing(reason)
        self._stats.disconnects[reason] += 1
        self.handshaking.pop(current, None)
        channel = current.channel
        if channel is not None:
            channel.forget(current)
            channel.close_unread_snapshots()
        self._log_close(current, reason, detail, channel)

    def _log_close(
        self,
        current: client.Client,
        reason: DisconnectReason,
        detail: str,
        channel: WorkerChannel | None,
    ) -> None:
        if reason in _QUIET_REASONS:
            return
        now = _monotonic()
        if int(now) != self._close_lines_second:
            self._close_lines_second, self._close_lines = int(now), 0
        self._close_lines += 1
        if self._close_lines > _CLOSE_LINES_PER_SECOND:
            self._stats.close_lines_suppressed += 1
            return
        _log.info(
            "Connection ended",
            reason=reason.value,
            detail=detail,
            client=current.address,
            agent=current.adapter.agent if current.adapter else "",
            feed=channel.feed if channel else "",
            connection=current.number,
            seconds=round(now - current.connected_at, 3),
            other_ends_not_logged=self._stats.take_close_lines_suppressed(),
        )

    def _close_socket(self, current: client.Client) -> None:
        if not self._transport.release(current.fd):
            current.close_at = 0.0
            self.closing[current] = None  # tried again when the overdue ones are closed
            return
        self.closing.pop(current, None)
        self._poller.close(current, discard=current.reason in _TAKES_NOTHING)


def _reason_of(error: OSError) -> DisconnectReason:
    """Why a connection ends whose socket has failed."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return DisconnectReason.CLIENT_CLOSED
    if isinstance(error, ssl.SSLError):  # whose numbers are not the kernel's
        return DisconnectReason.TLS_FAILED
    return {
        errno.ETIMEDOUT: DisconnectReason.NO_PROGRESS,
        errno.ECONNRESET: DisconnectReason.CLIENT_CLOSED,
        errno.EPIPE: DisconnectReason.CLIENT_CLOSED,
    }.get(error.errno or 0, DisconnectReason.NETWORK_ERROR)
