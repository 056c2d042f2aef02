"""What clients say: first bytes, hello, pongs, and how a connection ends."""

import errno
import importlib.metadata
import time
from collections.abc import Callable

import structlog

from protocol import errors, messages
from protocol.native import connection as native
from protocol.native import encoder as native_encoder
from protocol.native import frames
from protocol.reasons import DisconnectReason
from typha import channel_view, client, policy, poller, worker_stats

_log = structlog.get_logger("typha.sessions")
_monotonic = time.monotonic

_READ_BYTES = 64 * 1024
_READ_BYTES_LATER = 4 * 1024
"""Behind the hello there are only pongs: a peer that floods us with messages gets 2 ms of a turn, not 50."""
_TLS_HANDSHAKE_BYTE = 0x16
_GOB_MARK = b"Envelope"
"""Every Typha client's first bytes are the gob definition of this type (spec of the wire, section 3)."""
_GOB_MARK_WITHIN_BYTES = 64
_FIRST_BYTES = 16
"""With fewer nothing is said of a foreign protocol: its first bytes may come in pieces."""
SOFTWARE = f"typha/{importlib.metadata.version('typha')}"
_SUPPORTED_FEATURES = frozenset({messages.Feature.ZSTD.value})
_RETRY_UNKNOWN_FEED_MILLISECONDS = 30_000
_CLOSE_LINES_PER_SECOND = 20
"""More than these are counted instead of logged: a storm must not be spent on log lines."""
_QUIET_REASONS = {DisconnectReason.CLIENT_CLOSED, DisconnectReason.SHUTTING_DOWN, DisconnectReason.REBALANCED}


class Sessions:
    """Reads, answers and closes. `subscribed` is called with a client whose hello was good."""

    def __init__(
        self,
        config: policy.WorkerConfig,
        limits: policy.Policy,
        client_poller: poller.Poller[client.Client],
        stats: worker_stats.WorkerStats,
        subscribed: Callable[[client.Client, str, str], None],
    ) -> None:
        self._config = config
        self._policy = limits
        self._poller = client_poller
        self._stats = stats
        self._subscribed = subscribed
        self._incarnation = bytes.fromhex(config.incarnation)
        self.handshaking: dict[client.Client, None] = {}
        """In order of arrival."""
        self.closing: dict[client.Client, None] = {}
        """Refused or told goodbye, not closed yet; in order of refusal."""
        self._close_lines_second = 0
        self._close_lines = 0

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
            data = current.socket.recv(_READ_BYTES if current.channel is None else _READ_BYTES_LATER)
        except BlockingIOError:
            return
        except OSError as error:
            self.lost(current, error)
            return
        if not data:
            self.close(current, DisconnectReason.CLIENT_CLOSED)
            return
        connection = current.connection
        connection.receive_data(data)
        if connection.state is native.State.PREFACE and not connection.next_bytes(1).startswith(frames.PREFACE[:1]):
            self._foreign(current, connection.next_bytes(_GOB_MARK_WITHIN_BYTES))
            return
        try:
            while not current.is_closing() and (message := connection.next_event()) is not None:
                self._handle(current, message)
        except errors.RemoteProtocolError as error:
            self._protocol_error(current, error)

    def _protocol_error(self, current: client.Client, error: errors.RemoteProtocolError) -> None:
        if error.reason is DisconnectReason.BAD_PREFACE:
            self.close(current, error.reason, detail=str(error))
        else:
            self.farewell(current, error.reason, text=str(error))

    def _foreign(self, current: client.Client, first: bytes) -> None:
        """A connection that does not speak the native protocol."""
        if first[0] == _TLS_HANDSHAKE_BYTE:
            self.hold_refused(current, "TLS, which is not configured here")
        elif _GOB_MARK in first:
            self.hold_refused(current, "Typha's protocol, which this version does not serve")
        elif len(first) >= _FIRST_BYTES:
            self.close(current, DisconnectReason.BAD_PREFACE, detail=f"first bytes {first[:16]!r}")

    def _handle(self, current: client.Client, message: messages.Message) -> None:
        match message:
            case messages.ClientHello():
                self._hello(current, message)
            case messages.Pong():
                self._pong(current)
            case messages.Goodbye():
                self.close(current, DisconnectReason.CLIENT_CLOSED, detail=f"goodbye: {message.reason}")

    def _pong(self, current: client.Client) -> None:
        self._stats.pongs_received += 1
        if current.pinged_at and current.channel is not None:
            histograms = self._stats.feeds[current.channel.feed].histograms
            histograms[worker_stats.PING_SECONDS].record(_monotonic() - current.pinged_at)
        current.pinged_at = 0.0

    def _hello(self, current: client.Client, hello: messages.ClientHello) -> None:
        self.handshaking.pop(current, None)
        current.agent = hello.agent
        if native.VERSION not in hello.versions:
            text = f"this server speaks version {native.VERSION} only"
            self.goodbye(current, DisconnectReason.UNSUPPORTED_VERSION, text=text)
            return
        if hello.feed not in self._config.feeds:
            text = f"no feed {hello.feed!r} here"
            self.goodbye(
                current,
                DisconnectReason.UNKNOWN_FEED,
                text=text,
                retry_after_milliseconds=_RETRY_UNKNOWN_FEED_MILLISECONDS,
            )
            return
        features = hello.features & _SUPPORTED_FEATURES
        current.connection.send(
            messages.ServerHello(
                version=native.VERSION,
                feed=hello.feed,
                incarnation=self._incarnation,
                features=features,
                not_supported=frozenset(_asked_for(hello) - _SUPPORTED_FEATURES),
                software=SOFTWARE,
                connection_id=current.number,
                ping_interval_milliseconds=int(self._policy.ping_interval_seconds * 1000),
                max_frame_bytes=self._policy.max_frame_bytes,
            )
        )
        if not self._send_control(current, current.connection.data_to_send(), DisconnectReason.NO_PROGRESS):
            return
        current.become_held()
        zstd = messages.Feature.ZSTD.value in features
        self._subscribed(current, hello.feed, native_encoder.ZSTD if zstd else native_encoder.PLAIN)

    def send_ping(self, current: client.Client, ping: bytes) -> bool:
        """Sends a ping at a frame's end; False if it cannot be sent now.

        A socket without room for it is no error: the client has bytes to read, and its progress is watched from here.
        """
        try:
            sent = current.socket.send(ping)
        except BlockingIOError:
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

    def _send_control(self, current: client.Client, data: bytes, otherwise: DisconnectReason) -> bool:
        """Sends a small message at a frame's end; whoever has no room for it is closed for the reason given."""
        try:
            sent = current.socket.send(data)
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

    def goodbye(
        self,
        current: client.Client,
        reason: DisconnectReason,
        *,
        text: str = "",
        retry_after_milliseconds: int = 0,
    ) -> None:
        """Tells a native client why and when to come back; it has a moment to read that. Only at a frame's end."""
        farewell = messages.Goodbye(reason.value, text[:500], retry_after_milliseconds)
        current.connection.send(farewell)
        if self._send_control(current, current.connection.data_to_send(), reason):
            self._refuse(current, reason, text, self._policy.goodbye_linger_seconds)

    def farewell(
        self, current: client.Client, reason: DisconnectReason, *, text: str, retry_after_milliseconds: int = 0
    ) -> None:
        """A goodbye where one can be said, a close where the client stands inside a frame."""
        if current.at_frame_end():
            self.goodbye(current, reason, text=text, retry_after_milliseconds=retry_after_milliseconds)
        else:
            self.close(current, reason, detail=text)

    def hold_refused(self, current: client.Client, detail: str) -> None:
        """Keeps a refused client of a protocol without back-off for a while, and silent, before it is closed."""
        self._refuse(current, DisconnectReason.UNSUPPORTED_PROTOCOL, detail, self._policy.refusal_hold_seconds)

    def _refuse(self, current: client.Client, reason: DisconnectReason, detail: str, linger_seconds: float) -> None:
        self._leave(current, reason, detail)
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
        reason = {
            errno.ETIMEDOUT: DisconnectReason.NO_PROGRESS,
            errno.ECONNRESET: DisconnectReason.CLIENT_CLOSED,
            errno.EPIPE: DisconnectReason.CLIENT_CLOSED,
        }.get(error.errno or 0, DisconnectReason.NETWORK_ERROR)
        self.close(current, reason, detail=str(error))

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
        channel: channel_view.ChannelView | None,
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
            agent=current.agent,
            feed=channel.feed if channel else "",
            connection=current.number,
            seconds=round(now - current.connected_at, 3),
            other_ends_not_logged=self._stats.take_close_lines_suppressed(),
        )

    def _close_socket(self, current: client.Client) -> None:
        self.closing.pop(current, None)
        self._poller.close(current)


def _asked_for(hello: messages.ClientHello) -> set[str]:
    """Features that the hello names or makes use of."""
    asked = set(hello.features)
    if hello.resume is not None:
        asked.add(messages.Feature.RESUME.value)
    if hello.chunk_digests is not None:
        asked.add(messages.Feature.CHUNK_DIGESTS.value)
    if hello.subscription is not None:
        asked.add(messages.Feature.SUBSCRIPTIONS.value)
    return asked
