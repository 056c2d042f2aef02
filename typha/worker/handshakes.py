"""TLS handshakes, in a thread of their own: one costs a millisecond, and clients come in thousands.

The oldest first, and without those that have hung up when their turn comes: in a storm that takes longer than some wait
nobody starves, and nothing is done for who has given up. The wait is ours: it is not counted as the client's time. Few
are under way at once, for an unfinished handshake holds some 50 kB, and a whole one half of that. While steps run in
the thread nothing else touches their connections: the poller is silent about them, and a close that is due waits for
the steps' end.
"""

import asyncio
import concurrent.futures
import ctypes
import errno
import ssl
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import structlog

from protocol.reasons import DisconnectReason
from typha import clock
from typha.worker import client, poller, tls, tls_transport

_log = structlog.get_logger("typha.handshakes")

_GIVEN_UP_AFTER_SECONDS = 1.0
"""Whoever has waited for so long is looked at before its turn; at others a step says more about their end."""
_TRIM_AFTER = 50
"""Handshakes after which memory is given back, once none is waiting."""
_PLACES = 128
"""Handshakes under way before another is begun. Most of them wait for their peer: 5,000 agents whose two processes
answered after 0.2 s were let in at 128 a second through 32 places, and twice as fast through these."""
_PLACE_SECONDS = 1.0
"""A peer that has not gone on for so long is slow by itself, and holds no place for others."""
_STEPS_AT_ONCE = 4
"""Into the thread and back costs a tenth of a step; a close that is due waits for so many at most."""
_CONTINUED_AT_ONCE = 3
"""Of these, while others may begin: peers that send a byte at a time must not keep everybody out."""
_LOOKS_AT_ONCE = 64
"""At those whose turn it is: a fleet that has given up is closed in pieces of some 2 ms."""
_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST"}
"""What OpenSSL finds when the first bytes are not TLS."""


class Verdict(NamedTuple):
    """How far a step has brought a handshake."""

    wants_write: bool = False
    done: bool = False
    reason: DisconnectReason | None = None
    detail: str = ""


class Handshakes:
    """Takes connections through their handshake; `failed` is called for those that do not get through.

    `guarded` runs what is to be done at the end of a step, unless the worker has ended.
    """

    def __init__(
        self,
        contexts: tls.Contexts,
        client_poller: poller.AnyPoller[client.Client],
        bytes_through: tls_transport.TlsTransport,
        *,
        guarded: Callable[[Callable[[], None]], None],
        failed: Callable[[client.Client, DisconnectReason, str], None],
    ) -> None:
        self.contexts = contexts
        self._poller = client_poller
        self._transport = bytes_through
        self._guarded = guarded
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tls-handshake")
        self._done_since_trim = 0
        self._new: deque[client.Client] = deque()
        """Whose first step may run; the oldest first."""
        self._continued: deque[client.Client] = deque()
        """Whose next step may run."""
        self._under_way: dict[client.Client, float] = {}
        """Who has taken a step, and when the last one was; the latest last."""
        self._slow: dict[client.Client, None] = {}
        """Who has taken a step and holds no place any more."""

    def begin(self, newcomer: client.Client) -> None:
        """A connection has been accepted."""
        newcomer.shaking = True
        self._poller.watch_handshake(newcomer, wants_write=False)

    def ready(self, current: client.Client) -> None:
        """The connection has bytes or room: the next step of its handshake may run."""
        if not current.queued_at:
            current.begin_queueing(clock.monotonic())
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
                break  # nobody is left, or there is no place
            self._under_way.pop(current, None)
            self._slow.pop(current, None)
            if current.is_closing():
                continue
            if self._has_given_up(current):
                self._failed(current, DisconnectReason.CLIENT_CLOSED, "while it waited for its TLS handshake")
            elif isinstance(current.socket, ssl.SSLSocket):
                self._under_way[current] = clock.monotonic()
                batch.append((current, current.socket))
        else:
            if not batch:
                self._loop.call_soon(self._guarded, self._next)
        if batch:
            self._begin_steps(batch)

    def _has_given_up(self, current: client.Client) -> bool:
        waited_seconds = clock.monotonic() - current.queued_at
        return waited_seconds > _GIVEN_UP_AFTER_SECONDS and self._poller.has_hung_up(current)

    def _free_places(self) -> None:
        """Places are held in order of the last step, so the first that is recent ends the look."""
        for current, stepped_at in list(self._under_way.items()):
            if not current.is_closing() and clock.monotonic() - stepped_at < _PLACE_SECONDS:
                return
            del self._under_way[current]
            self._slow[current] = None

    def _begin_steps(self, batch: list[tuple[client.Client, ssl.SSLSocket]]) -> None:
        self._transport.stepping = frozenset(current.fd for current, _ in batch)
        connections = [connection for _, connection in batch]
        steps = self._loop.run_in_executor(self._thread, _take_steps, connections, self.contexts.client_tls)
        steps.add_done_callback(lambda future: self._guarded(lambda: self._stepped(batch, future.result())))

    def _stepped(self, batch: list[tuple[client.Client, ssl.SSLSocket]], verdicts: list[Verdict]) -> None:
        self._transport.stepping = frozenset()
        for (current, connection), verdict in zip(batch, verdicts, strict=True):
            self._under_way.pop(current, None)
            if current.is_closing():
                continue
            current.end_queueing(clock.monotonic())
            if verdict.reason is not None:
                self._failed(current, verdict.reason, verdict.detail)
            elif verdict.done:
                current.shaking = False
                self._done_since_trim += 1
                self._transport.opened(connection)
                self._poller.watch_read(current)
            else:
                self._under_way[current] = clock.monotonic()
                self._poller.watch_handshake(current, wants_write=verdict.wants_write)
        self._next()

    def look_after(self) -> None:
        """To be called now and then: begins what waited for a place, and gives memory back behind a storm.

        What a storm has freed the C library keeps, in pieces between what lives: 15 kB for each of 400 clients that
        came together.
        """
        self._next()
        for current in [current for current in self._slow if current.is_closing()]:
            del self._slow[current]
        if self._done_since_trim >= _TRIM_AFTER and not self._new and not self._transport.stepping:
            self._done_since_trim = 0
            self._thread.submit(_trim)

    def close(self) -> None:
        """Waits for a step that is running; to be called when nothing is heard any more."""
        self._thread.shutdown()


def _trim() -> None:
    """Some milliseconds, in the thread; a C library that has no such thing has no need of it either."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _take_steps(connections: list[ssl.SSLSocket], client_tls: tls.ClientTls) -> list[Verdict]:
    """In the thread: one step of each."""
    return [take_step(connection, client_tls) for connection in connections]


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
