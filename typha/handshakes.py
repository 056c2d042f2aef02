"""TLS handshakes, in a thread of their own: one costs a millisecond, and clients come in thousands.

The newest first: in a storm that takes longer than clients wait, those who came first have given up by the time that
it would be their turn. While a step runs in the thread nothing else touches the connection: the poller is silent about
it, and a close that is due waits for the step's end.
"""

import asyncio
import concurrent.futures
import ctypes
import errno
import ssl
from collections.abc import Callable
from typing import NamedTuple

import structlog

from protocol.reasons import DisconnectReason
from typha import client, clock, poller, tls, tls_transport

_log = structlog.get_logger("typha.handshakes")

_GIVEN_UP_SHARE = 0.8
"""Of the handshake timeout: whoever has been here longer than that is not worth a millisecond any more."""
_TRIM_AFTER = 50
"""Handshakes after which memory is given back, once none is waiting."""
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
        timeout_seconds: float,
        guarded: Callable[[Callable[[], None]], None],
        failed: Callable[[client.Client, DisconnectReason, str], None],
    ) -> None:
        self.contexts = contexts
        self._poller = client_poller
        self._transport = bytes_through
        self._patience_seconds = timeout_seconds * _GIVEN_UP_SHARE
        self._guarded = guarded
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tls-handshake")
        self._done_since_trim = 0
        self._ready: dict[client.Client, None] = {}
        """Whose next step may run; the newest last."""

    def begin(self, newcomer: client.Client) -> None:
        """A connection has been accepted."""
        newcomer.shaking = True
        self._poller.watch_handshake(newcomer, wants_write=False)

    def ready(self, current: client.Client) -> None:
        """The connection has bytes or room: the next step of its handshake may run."""
        self._ready[current] = None
        self._next()

    def _next(self) -> None:
        while self._ready and self._transport.stepping is None:
            current, _ = self._ready.popitem()
            if current.is_closing() or clock.monotonic() - current.connected_at > self._patience_seconds:
                continue  # it ends by the handshake timeout
            if isinstance(current.socket, ssl.SSLSocket):
                self._begin_step(current, current.socket)

    def _begin_step(self, current: client.Client, connection: ssl.SSLSocket) -> None:
        self._transport.stepping = current.fd
        step = self._loop.run_in_executor(self._thread, take_step, connection, self.contexts.client_tls)
        step.add_done_callback(
            lambda future: self._guarded(lambda: self._stepped(current, connection, future.result()))
        )

    def _stepped(self, current: client.Client, connection: ssl.SSLSocket, verdict: Verdict) -> None:
        self._transport.stepping = None
        if not current.is_closing():
            if verdict.reason is not None:
                self._failed(current, verdict.reason, verdict.detail)
            elif verdict.done:
                current.shaking = False
                self._done_since_trim += 1
                self._transport.opened(connection)
                self._poller.watch_read(current)
            else:
                self._poller.watch_handshake(current, wants_write=verdict.wants_write)
        self._next()

    def give_memory_back(self) -> None:
        """To be called now and then: what a storm of handshakes has freed goes back to the system.

        Without it the C library keeps it, in pieces between what lives: 15 kB for each of 400 clients that came
        together.
        """
        if self._done_since_trim >= _TRIM_AFTER and not self._ready and self._transport.stepping is None:
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
    except Exception as error:  # one connection's defect must not cost the others anything (design, rule 4)
        _log.exception("Defect in a TLS handshake", error=str(error))
        return Verdict(reason=DisconnectReason.SERVER_ERROR, detail=str(error))
    return Verdict(done=True)


def _describe(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
        return "the first bytes are not TLS"
    return str(error)
