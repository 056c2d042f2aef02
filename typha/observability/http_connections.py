"""The connections of an HTTP port: how many there are, how long they live, and what they cost the hub.

aiohttp parses requests and formats answers, but limits neither connections nor their lives. So this module owns the
sockets: it accepts at a limited rate, reads one request head of limited size, passes that head to aiohttp, and closes
the connection after the answer. All reads of all connections share one limited rate of steps.
"""

import asyncio
import collections
import contextlib
import functools
import re
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import structlog
from aiohttp import web

from typha import networks
from typha.observability import logs

_log = structlog.get_logger("typha.webserver")

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_DISCARDED_BYTES = 64 * 1024
_RECORD_HEADER_BYTES = 5


class Limits(NamedTuple):
    """The limits of one port. docs/decisions/http-ports.md has the measurements."""

    connections: int = 32
    """Scrapers and probes need one or two each."""
    head_bytes: int = 8 * 1024
    head_seconds: float = 10.0
    """From accept to the end of the request head, with the TLS handshake."""
    answer_seconds: float = 10.0
    """From the end of the request head until the kernel has taken the whole answer."""
    step_bytes: int = 8 * 1024
    step_seconds: float = 0.02
    """Between two steps of a port. A step reads once. It costs up to 0.5 ms, or 2 ms in a TLS handshake."""
    grace_seconds: float = 0.5
    """After a step, a connection keeps its place for this time."""
    grace_steps: int = 4
    """For so many steps. A TLS handshake with its request takes three or four, so peers that drip gain nothing."""
    grace_share: int = 4
    """And only if its address has at most this many connections."""
    accepts_per_turn: int = 8
    accept_seconds: float = 0.016
    """Between two turns that accept, so a port accepts at most 500 connections per second."""
    out_of_resources_seconds: float = 1.0
    tls_bytes: int = 32 * 1024
    """Encrypted bytes of a connection: a client's certificates, and the request head."""
    tls_records: int = 64
    """A client needs about ten. Records without data, such as key updates, cost 17 µs each."""
    unsent_bytes: int = 32 * 1024 * 1024
    """Answers that peers have not taken yet. Agents with the longest names make a list of clients as large as this."""
    log_seconds: float = 1.0
    """Between two log lines of a port about closed connections."""


DEFAULT_LIMITS = Limits()

TOO_MANY = "too-many-connections"
TIMEOUT = "timeout"
BAD_REQUEST = "bad-request"
TLS_FAILED = "tls-failed"
OUT_OF_RESOURCES = "out-of-resources"
FORBIDDEN = "forbidden"
"""On the admin socket only: the peer's user may not connect."""
REASONS = (TOO_MANY, TIMEOUT, BAD_REQUEST, TLS_FAILED, OUT_OF_RESOURCES)
"""Why the service closed a connection without the answer, or answered that the request is malformed."""


class _BadRecords(Exception):
    """The peer sends more TLS records, or more encrypted bytes, than a request needs."""


class _Ended(Exception):
    """The peer has ended its TLS session."""


def address_of(_connected: socket.socket, address: Any) -> str:
    """The address of a peer by TCP, without its port."""
    return networks.plain(address[0])


class HttpConnections:
    """Accepts the connections of one port, and gives turns to them. Answers come from a server of aiohttp.

    `peer_of` names the peer of an accepted connection. PermissionError: it may not connect.
    """

    def __init__(
        self,
        name: str,
        server: web.Server,
        refused: dict[str, int],
        limits: Limits = DEFAULT_LIMITS,
        *,
        peer_of: Callable[[socket.socket, Any], str] = address_of,
    ) -> None:
        self._peer_of = peer_of
        self._name = name
        self._server = server
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._open: dict[_Connection, None] = {}
        self._waiting: collections.deque[_Connection] = collections.deque()
        self._listeners: list[socket.socket] = []
        self._accept_timer: asyncio.TimerHandle | None = None
        self._step_timer: asyncio.TimerHandle | None = None
        self._lines = logs.LineLimit(1, seconds=limits.log_seconds)
        self.tls: ssl.SSLContext | None = None
        """The context of new connections. None means plain text."""
        self.steps = 0
        """Steps so far that read something."""
        self._refused = refused  # by reason; outlives the port

    def __repr__(self) -> str:
        return f"HttpConnections({self._name}, {len(self._open)} open, {len(self._waiting)} waiting for a step)"

    def __len__(self) -> int:
        return len(self._open)

    def listen(self, listeners: Iterable[socket.socket]) -> None:
        """Accept connections from these sockets, and own them."""
        self._listeners += listeners
        self._resume_accepting()

    async def close(self) -> None:
        """Close all sockets, and end the handlers."""
        for timer in (self._accept_timer, self._step_timer):
            if timer is not None:
                timer.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        for connection in list(self._open):
            connection.abort()
        await self._server.shutdown(timeout=1.0)

    def _resume_accepting(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept)

    def _accept(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
        pause_seconds = max(self._accept_from(listener) for listener in self._listeners)
        self._accept_timer = self._loop.call_later(pause_seconds, self._resume_accepting)

    def _accept_from(self, listener: socket.socket) -> float:
        """Accept a few connections. Returns for how long to accept no more."""
        for _ in range(self._limits.accepts_per_turn):
            victim = self._victim() if len(self._open) >= self._limits.connections else None
            if victim is None and len(self._open) >= self._limits.connections:
                return self._limits.step_seconds  # all have just spoken
            try:
                accepted, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError:  # it was closed before it was accepted
                continue
            except OSError as error:  # no descriptor or memory: give one back
                self._close_early(self._victim(), OUT_OF_RESOURCES, str(error))
                return self._limits.out_of_resources_seconds
            try:
                peer = self._peer_of(accepted, address)
            except PermissionError as error:
                accepted.close()
                self.note(FORBIDDEN, "", str(error))
                continue
            if victim is not None:
                self._close_early(victim, TOO_MANY, f"more than {self._limits.connections} connections")
            accepted.setblocking(False)
            self._open[_Connection(self, accepted, peer)] = None
        return self._limits.accept_seconds

    def _victim(self) -> "_Connection | None":
        """The connection to close for a new one: of the address that has the most, the oldest without a request.

        A connection that has just spoken is spared: it may be an honest one whose request is on its way.
        """
        counts = collections.Counter(connection.network for connection in self._open)
        share = self._limits.grace_share
        return min(
            (connection for connection in self._open if counts[connection.network] > share or not connection.is_spared),
            key=lambda connection: (-counts[connection.network], connection.is_answering),
            default=None,
        )

    def limit_unsent(self, newest: "_Connection") -> None:
        """Close those that take their answers slowly, the oldest first, if all answers are too much. The newest one has
        had no time yet."""
        unsent_bytes = sum(connection.unsent_bytes for connection in self._open)
        for connection in list(self._open):
            if unsent_bytes <= self._limits.unsent_bytes:
                break
            if connection is not newest and connection.unsent_bytes:
                unsent_bytes -= connection.unsent_bytes
                self._close_early(
                    connection, TOO_MANY, f"more than {self._limits.unsent_bytes} bytes wait for peers to read"
                )

    def _close_early(self, victim: "_Connection | None", reason: str, detail: str) -> None:
        self.note(reason, victim.address if victim else "", detail)
        if victim is not None:
            victim.abort()

    # What a connection uses.

    @property
    def limits(self) -> Limits:
        """The limits of the port."""
        return self._limits

    def make_handler(self, address: str) -> web.RequestHandler:
        """A protocol of aiohttp for one request. It never waits for a body or for another request."""
        return _Handler(
            self._server,
            functools.partial(self.note, BAD_REQUEST, address),
            loop=self._loop,
            access_log=None,
            keepalive_timeout=0,
            lingering_time=0,
            auto_decompress=False,
        )

    def want_step(self, connection: "_Connection") -> None:
        """The connection has something to read. It gets its step after those that came before."""
        self._waiting.append(connection)
        if self._step_timer is None:
            self._step()

    def forget(self, connection: "_Connection") -> None:
        """The connection is closed."""
        self._open.pop(connection, None)
        with contextlib.suppress(ValueError):
            self._waiting.remove(connection)

    def note(self, reason: str, address: str, detail: str) -> None:
        """Count a closed connection, and log it if the last line is long enough ago."""
        self._refused[reason] += 1
        if self._lines.allows():
            _log.warning(
                "Closed an HTTP connection",
                server=self._name,
                reason=reason,
                client=address,
                detail=detail,
                other_closes_not_logged=self._lines.take_suppressed(),
            )

    def _step(self) -> None:
        self._step_timer = None
        while self._waiting:
            if self._waiting.popleft().step():
                self.steps += 1
                self._step_timer = self._loop.call_later(self._limits.step_seconds, self._step)
                return


class _Connection(asyncio.Transport):
    """One connection with one request. aiohttp sees it as the transport of its protocol."""

    def __init__(self, owner: HttpConnections, connected: socket.socket, address: str) -> None:
        super().__init__({"peername": (address, 0)})
        self._owner = owner
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._tls = _Tls(owner.tls, owner.limits) if owner.tls else None
        self._head = bytearray()
        self._unsent = bytearray()
        self._handler: web.RequestHandler | None = None
        self._is_closed = False
        self._timer = self._loop.call_later(
            owner.limits.head_seconds, self._refuse, TIMEOUT, "no complete request within the time limit"
        )
        self._steps = 0
        self._waits_for_step = False
        self._spared_until = 0.0
        self.address = address
        self.network = networks.network_of(address)
        self._loop.add_reader(connected.fileno(), self._readable)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "answering" if self.is_answering else "reading"
        return f"_Connection({self.address}, {state})"

    @property
    def is_answering(self) -> bool:
        """Whether the request is complete."""
        return self._handler is not None

    @property
    def unsent_bytes(self) -> int:
        """What the kernel has not taken of the answer."""
        return len(self._unsent)

    @property
    def is_spared(self) -> bool:
        """Whether the connection keeps its place: it waits for a step, or has had one a moment ago."""
        if self._steps >= self._owner.limits.grace_steps:
            return False
        return self._waits_for_step or self._loop.time() < self._spared_until

    def _readable(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._waits_for_step = True
        self._owner.want_step(self)

    def step(self) -> bool:
        """Read once, and act on it. Returns False if there was nothing to act on."""
        self._waits_for_step = False
        self._steps += 1
        self._spared_until = self._loop.time() + self._owner.limits.grace_seconds
        try:
            data = self._socket.recv(self._owner.limits.step_bytes)
        except (BlockingIOError, InterruptedError):
            self._loop.add_reader(self._socket.fileno(), self._readable)
            return False
        except OSError:
            data = b""
        if not data:  # a peer that goes without a request, such as a TCP probe, is no fault
            self.abort()
            return False
        try:
            self._head += self._tls.opened(data) if self._tls else data
        except _Ended:
            self.abort()
            return True
        except (ssl.SSLError, _BadRecords) as error:
            self._send_handshake()
            self._refuse(TLS_FAILED, str(error))
            return True
        self._send_handshake()
        self._look_at_head()
        return True

    def _look_at_head(self) -> None:
        limits = self._owner.limits
        end = _HEAD_END.search(self._head)
        if end and end.end() <= limits.head_bytes:
            self._timer.cancel()
            self._timer = self._loop.call_later(
                limits.answer_seconds, self._refuse, TIMEOUT, "the peer did not take its answer within the time limit"
            )
            self._handler = self._owner.make_handler(self.address)
            self._handler.connection_made(self)
            self._handler.data_received(bytes(self._head[: end.end()]))
        elif len(self._head) > limits.head_bytes:
            self._owner.note(BAD_REQUEST, self.address, f"the request head has more than {limits.head_bytes} bytes")
            self.write(_TOO_LARGE)
            self.close()
        else:
            self._loop.add_reader(self._socket.fileno(), self._readable)

    def _send_handshake(self) -> None:
        """Send the handshake or an alert. It fits into the buffer of a new socket, or else the handshake fails."""
        said = self._tls.to_send() if self._tls else b""
        if said:
            with contextlib.suppress(OSError):
                self._socket.send(said)

    def _refuse(self, reason: str, detail: str) -> None:
        self._owner.note(reason, self.address, detail)
        self.abort()

    # What aiohttp calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep a part of the answer. `close` sends it."""
        if not self._is_closed:
            self._unsent += self._tls.sealed(bytes(data)) if self._tls else data

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._is_closed

    def close(self) -> None:
        """Send the answer, and close."""
        if self._is_closed:
            return
        if self._tls:
            self._unsent += self._tls.goodbye()
        self._send()
        self._owner.limit_unsent(self)

    def abort(self) -> None:
        """Close at once."""
        if self._is_closed:
            return
        self._is_closed = True
        self._unsent = bytearray()
        self._timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._owner.forget(self)
        if self._handler is not None:
            self._loop.call_soon(self._handler.connection_lost, None)

    def _send(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
            del self._unsent[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.abort()
            return
        if self._unsent:
            self._loop.add_writer(self._socket.fileno(), self._send)
            return
        # The kernel resets a connection with unread bytes, and the peer may lose the answer. This takes a small body.
        with contextlib.suppress(OSError):
            self._socket.recv(_DISCARDED_BYTES)
        self.abort()


class _Handler(web.RequestHandler):
    """aiohttp's protocol for one request. It logs nothing: aiohttp logs a traceback for every malformed request."""

    def __init__(self, server: web.Server, note: Callable[[str], None], **options: Any) -> None:
        super().__init__(server, **options)
        self._note = note

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a malformed request, and count it."""
        self._note((message or str(exc)).partition("\n")[0])
        return answer(status, b"bad request\n")

    def log_exception(self, *args: Any, **_options: Any) -> None:
        """Count what aiohttp would log with a traceback."""
        self._note(str(args[0]) if args else "")


def answer(status: int, body: bytes, content_type: str = "text/plain; charset=utf-8", **headers: str) -> web.Response:
    """A response after which the connection is closed. It does not name the versions of Python and aiohttp."""
    response = web.Response(
        status=status, body=body, headers={"Content-Type": content_type, "Server": "typha", **headers}
    )
    response.force_close()
    return response


class _Tls:
    """The TLS session of a server, in memory: what OpenSSL sees at a time, and in all, is limited."""

    def __init__(self, context: ssl.SSLContext, limits: Limits) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_established = False
        self._limits = limits
        self._received = bytearray()
        self._records = 0
        self._next_record = 0

    def opened(self, data: bytes) -> bytes:
        """Take encrypted bytes, and return the decrypted ones.

        Raises:
            ssl.SSLError: the handshake failed, or the session is broken.
            _Ended: the peer has ended the session.
            _BadRecords: there are too many bytes or records.
        """
        self._count(data)
        self._incoming.write(data)
        opened = bytearray()
        try:
            if not self._is_established:
                self._session.do_handshake()
                self._is_established = True
            while part := self._session.read(self._limits.step_bytes):
                opened += part
        except ssl.SSLWantReadError:
            return bytes(opened)
        if not opened:
            raise _Ended
        return bytes(opened)

    def sealed(self, data: bytes) -> bytes:
        """Encrypt."""
        self._session.write(data)
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """End the session."""
        with contextlib.suppress(ssl.SSLError):
            self._session.unwrap()  # it would wait for the peer's end, which nobody needs
        return self._outgoing.read()

    def to_send(self) -> bytes:
        """What OpenSSL has to say: a part of the handshake, or an alert."""
        return self._outgoing.read()

    def _count(self, data: bytes) -> None:
        self._received += data
        while len(self._received) - self._next_record >= _RECORD_HEADER_BYTES:
            length = self._received[self._next_record + 3 : self._next_record + _RECORD_HEADER_BYTES]
            self._next_record += _RECORD_HEADER_BYTES + int.from_bytes(length)
            self._records += 1
        if len(self._received) > self._limits.tls_bytes:
            raise _BadRecords(f"more than {self._limits.tls_bytes} encrypted bytes before the end of the request")
        if self._records > self._limits.tls_records:
            raise _BadRecords(f"more than {self._limits.tls_records} TLS records before the end of the request")
