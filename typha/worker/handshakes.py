"""TLS handshakes, in a thread of their own: one costs a millisecond, and clients come in thousands.

The oldest connection first, and without those that have hung up when their turn comes: in a storm that takes longer
than some clients wait, none starves, and nothing is done for a client that has given up. The wait is not counted as the
client's time. Few handshakes are under way at once, because an unfinished one holds some 50 kB, and a finished one half
of that. While steps run in the thread nothing else touches their connections: the poller is silent about them, and a
close that is due waits until the steps end.
"""

import asyncio
import concurrent.futures
import ctypes
import errno
import ssl
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import structlog

from protocol.reasons import DisconnectReason
from typha import clock
from typha.worker import client, connections, policy, poller, tls, tls_transport

_log = structlog.get_logger("typha.handshakes")

_TRIM_AFTER = 50
"""Handshakes after which memory is given back, once none is waiting."""
_PLACES = 128
"""Handshakes under way before another one begins. Most of them wait for their peer: 5,000 agents whose two processes
answered after 0.2 s were let in at 128 a second through 32 places, and twice as fast through these."""
_HANDSHAKE_BYTES = 50_000
"""What OpenSSL holds for an unfinished handshake."""
_PLACE_SECONDS = 1.0
"""A peer that has not gone on for longer is slow by itself, and keeps no place from others."""
_STEPS_AT_ONCE = 4
"""The way into the thread and back costs a tenth of a step. A close that is due waits for this many at most."""
_CONTINUED_AT_ONCE = 3
"""Of these, while others may begin: peers that send a byte at a time must not keep all others out."""
_LOOKS_AT_ONCE = 64
"""Connections looked at in one go: a fleet that has given up is closed in pieces of some 2 ms."""
_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST"}
"""What OpenSSL finds when the first bytes are not TLS."""


class Verdict(NamedTuple):
    """How far a step has brought a handshake."""

    wants_write: bool = False
    done: bool = False
    reason: DisconnectReason | None = None
    detail: str = ""


Step: TypeAlias = Callable[[ssl.SSLSocket, tls.ClientTls], Verdict]


class TlsHandshakes:
    """Takes connections through their handshake, and closes those that do not get through.

    Args:
        guarded: runs what is to be done at the end of a step, unless the worker has ended.
        take_step: takes one step, in the thread.
    """

    def __init__(
        self,
        contexts: tls.Contexts,
        client_poller: poller.AnyPoller[client.Client],
        bytes_through: tls_transport.TlsTransport,
        worker_connections: connections.Connections,
        limits: policy.Policy,
        *,
        guarded: Callable[[Callable[[], None]], None],
        take_step: Step,
    ) -> None:
        self.contexts = contexts
        self._poller = client_poller
        self._transport = bytes_through
        self._connections = worker_connections
        self._guarded = guarded
        self._take_step = take_step
        self._given_up_after_seconds = limits.handshake_given_up_seconds
        self._loop = asyncio.get_running_loop()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tls-handshake")
        self._done_since_trim = 0
        self._new: deque[client.Client] = deque()
        """Connections whose first step may run; the oldest first."""
        self._continued: deque[client.Client] = deque()
        """Connections whose next step may run."""
        self._under_way: dict[client.Client, float] = {}
        """Connections that have taken a step, and when the last one was; the latest last."""
        self._slow: dict[client.Client, None] = {}
        """Connections that have taken a step and hold no place any more."""

    def begin(self, newcomer: client.Client, pending: client.PendingHello) -> None:
        """A connection has been accepted."""
        pending.is_shaking = True
        self._poller.watch_handshake(newcomer, wants_write=False)

    def ready(self, current: client.Client, pending: client.PendingHello) -> None:
        """The connection has bytes or room: the next step of its handshake may run."""
        if not pending.queued_at:
            pending.begin_queueing(clock.monotonic())
            has_begun = current in self._under_way or current in self._slow
            (self._continued if has_begun else self._new).append(current)
        self._next()

    def _next(self) -> None:
        if self._transport.stepping:
            return
        self._free_places()
        batch: list[tuple[client.Client, ssl.SSLSocket]] = []
        for _ in range(_LOOKS_AT_ONCE):
            if len(batch) == _STEPS_AT_ONCE:
                break
            may_begin = bool(self._new) and len(self._under_way) < _PLACES
            if self._continued and (len(batch) < _CONTINUED_AT_ONCE or not may_begin):
                current = self._continued.popleft()
            elif may_begin:
                current = self._new.popleft()
            else:
                break  # no connection is left, or there is no place
            self._under_way.pop(current, None)
            self._slow.pop(current, None)
            if current.hello is None:  # closed
                continue
            if self._has_given_up(current, current.hello):
                detail = "while it waited for its TLS handshake"
                self._connections.close(current, DisconnectReason.CLIENT_CLOSED, detail=detail)
            elif isinstance(current.socket, ssl.SSLSocket):
                self._under_way[current] = clock.monotonic()
                batch.append((current, current.socket))
        else:
            if not batch:
                self._loop.call_soon(self._guarded, self._next)
        if batch:
            self._begin_steps(batch)

    def _has_given_up(self, current: client.Client, pending: client.PendingHello) -> bool:
        waited_seconds = clock.monotonic() - pending.queued_at
        return waited_seconds > self._given_up_after_seconds and self._poller.has_hung_up(current)

    def _free_places(self) -> None:
        """Places are in order of the last step, so the first recent one ends the look."""
        for current, stepped_at in list(self._under_way.items()):
            if not current.is_closing() and clock.monotonic() - stepped_at < _PLACE_SECONDS:
                return
            del self._under_way[current]
            self._slow[current] = None

    def _begin_steps(self, batch: list[tuple[client.Client, ssl.SSLSocket]]) -> None:
        self._transport.stepping = frozenset(current.fd for current, _ in batch)
        sockets = [connection for _, connection in batch]
        steps = self._loop.run_in_executor(self._thread, self._take_steps, sockets, self.contexts.client_tls)
        steps.add_done_callback(lambda future: self._guarded(lambda: self._stepped(batch, future.result())))

    def _stepped(self, batch: list[tuple[client.Client, ssl.SSLSocket]], verdicts: list[Verdict]) -> None:
        self._transport.stepping = frozenset()
        for (current, connection), verdict in zip(batch, verdicts, strict=True):
            self._under_way.pop(current, None)
            if current.hello is None:  # closed meanwhile
                continue
            current.hello.end_queueing(clock.monotonic())
            if verdict.reason is not None:
                self._connections.close(current, verdict.reason, detail=verdict.detail)
            elif verdict.done:
                current.hello.is_shaking = False
                self._connections.hold(current, 0)
                self._done_since_trim += 1
                self._transport.opened(connection)
                self._poller.watch_read(current)
            else:
                self._under_way[current] = clock.monotonic()
                self._poller.watch_handshake(current, wants_write=verdict.wants_write)
                self._connections.hold(current, _HANDSHAKE_BYTES)
        self._next()

    def _take_steps(self, batch: list[ssl.SSLSocket], client_tls: tls.ClientTls) -> list[Verdict]:
        """In the thread: one step of each."""
        return [self._take_step(connection, client_tls) for connection in batch]

    def look_after(self) -> None:
        """To be called several times a second: begins handshakes that waited for a place, and gives memory back.

        The C library keeps the memory that a storm has freed, in pieces between live ones: 15 kB for each of 400
        clients that came together.
        """
        self._next()
        for current in [current for current in self._slow if current.is_closing()]:
            del self._slow[current]
        if self._done_since_trim >= _TRIM_AFTER and not self._new and not self._transport.stepping:
            self._done_since_trim = 0
            self._thread.submit(_trim)

    def close(self) -> None:
        """Waits for a running step; to be called once nothing is read from connections any more."""
        self._thread.shutdown()


def _trim() -> None:
    """Some milliseconds, in the thread. A C library without this function does not need it either."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def take_step(connection: ssl.SSLSocket, client_tls: tls.ClientTls) -> Verdict:
    """In the thread: as much of the handshake as is possible without waiting."""
    try:
        connection.do_handshake()
        client_tls.check_peer(connection.getpeercert() or {})
    except ssl.SSLWantReadError:
        return Verdict()
    except ssl.SSLWantWriteError:
        return Verdict(wants_write=True)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as error:
        return Verdict(reason=DisconnectReason.CLIENT_CLOSED, detail=f"in the TLS handshake: {error}")
    except (OSError, tls.PeerRefused) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOTCONN:  # reset before it was accepted
            return Verdict(reason=DisconnectReason.CLIENT_CLOSED)
        return Verdict(reason=DisconnectReason.TLS_FAILED, detail=_describe(error))
    except Exception as error:  # one connection's defect must not harm the others (docs/architecture.md, rule 4)
        _log.exception("Defect in a TLS handshake", error=str(error))
        return Verdict(reason=DisconnectReason.SERVER_ERROR, detail=str(error))
    return Verdict(done=True)


def _describe(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
        return "the first bytes are not TLS"
    return str(error)
