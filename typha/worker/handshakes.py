"""TLS handshakes, in a thread of their own: one costs a millisecond, and clients come in thousands.

The peers' addresses take turns, and of each address the oldest connection goes first, so that nobody is kept out by
what another address sends. Connections that have hung up when their turn comes are passed over: nothing is done for a
client that has given up. The wait is not counted as the client's time. Few handshakes are under way at once, because an
unfinished one holds some 50 kB, and a finished one half of that. While steps run in the thread nothing else touches
their connections: the poller is silent about them, and a close that is due waits until the steps end.
"""

import asyncio
import collections
import concurrent.futures
import socket
from collections import OrderedDict, deque
from collections.abc import Callable

import structlog

from protocol.reasons import DisconnectReason
from typha import clock
from typha.observability import logs
from typha.worker import client, connections, handshake_steps, policy, poller, tls, tls_transport, trimming

_log = structlog.get_logger("typha.handshakes")

_TRIM_AFTER = 50
"""Handshakes that have ended, and pieces that clients with a full socket have taken at last, until memory is given
back, once no handshake is waiting: such a piece is at most 32 kB."""
_PLACES = 128
"""Handshakes under way before another one begins. Most of them wait for their peer: 5,000 agents whose two processes
answered after 0.2 s were let in at 128 a second through 32 places, and twice as fast through these."""
_HANDSHAKE_BYTES = 50_000
"""What OpenSSL holds for an unfinished handshake. Together they are less than `Policy.unproven_bytes_max`."""
_PLACE_SECONDS = 1.0
"""A peer that has not gone on for longer is slow by itself, and keeps no place from others."""
_PLACE_SECONDS_MIN = 0.25
"""The same while hardly any handshake is finished: 512 a second may begin, and stop."""
_BEGUN_MAX = 1024
"""Handshakes that have begun, with a place or without: some 50 MB. For another one, the address with the most loses the
one that has been silent for longest."""
_SILENT_SECONDS = 1.0
"""A handshake with a more recent sign of life is not closed for another one."""
_STEPS_AT_ONCE = 8
"""The way into the thread and back costs a tenth of a step by OpenSSL, and more of one by rustls. A close that is due
waits for this many at most: 2 to 8 ms."""
_CONTINUED_AT_ONCE = 6
"""Of these, while others may begin: peers that send a byte at a time must not keep all others out."""
_LOOKS_AT_ONCE = 64
"""Connections looked at in one go: a fleet that has given up is closed in pieces of some 2 ms."""
_DEFECT_LINES_PER_SECOND = 5
"""With their tracebacks."""


class _Queue:
    """Connections whose step may run. Addresses take turns; the oldest of each goes first."""

    def __init__(self) -> None:
        self._by_host: OrderedDict[str, deque[client.Client]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_host)

    def add(self, current: client.Client) -> None:
        self._by_host.setdefault(current.host, deque()).append(current)

    def take(self) -> client.Client:
        host, waiting = self._by_host.popitem(last=False)
        current = waiting.popleft()
        if waiting:
            self._by_host[host] = waiting
        return current


class TlsHandshakes:
    """Takes connections through their handshake, and closes those that do not get through.

    Args:
        guarded: runs what is to be done at the end of a step, unless the worker has ended.
        take_steps: takes a step of each, in the thread.
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
        take_steps: handshake_steps.Steps,
    ) -> None:
        self.contexts = contexts
        self._poller = client_poller
        self._transport = bytes_through
        self._connections = worker_connections
        self._guarded = guarded
        self._take_steps = take_steps
        self._given_up_after_seconds = limits.handshake_given_up_seconds
        self._loop = asyncio.get_running_loop()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tls-handshake")
        self._thread.submit(int)  # starts it: later there may be no thread left, and clients that would be cut
        self._ended = 0
        """Handshakes that have come to their end."""
        self._trimmer = trimming.Trimmer(_TRIM_AFTER, self._thread.submit)
        self._defect_lines = logs.LineLimit(_DEFECT_LINES_PER_SECOND)
        self._new = _Queue()
        """Connections whose first step may run."""
        self._continued = _Queue()
        """Connections whose next step may run."""
        self._begun: dict[client.Client, handshake_steps.Handshake] = {}
        """Connections that have taken a step."""
        self._begun_by_host: collections.Counter[str] = collections.Counter()
        self._places: dict[client.Client, float] = {}
        """Those that hold a place, and when the last step was; the latest last."""
        self._slow: dict[client.Client, float] = {}
        """Those that hold no place any more, and when the last step was; the latest last."""
        self._finishing = 1.0
        """The share of recent handshakes that got through, roughly: 0.0 to 1.0."""

    def begin(self, newcomer: client.Client, pending: client.PendingHello) -> None:
        """A connection has been accepted."""
        pending.is_shaking = True
        self._poller.watch_handshake(newcomer, wants_write=False)

    def ready(self, current: client.Client, pending: client.PendingHello) -> None:
        """The connection has bytes or room: the next step of its handshake may run, once `go_on` is called."""
        if not pending.queued_at:
            pending.begin_queueing(clock.monotonic())
            (self._continued if current in self._begun else self._new).add(current)

    def go_on(self) -> None:
        """Begins steps, if none is under way. One call for all that is ready: the way into the thread costs 0.1 ms."""
        if self._transport.stepping or not (self._new or self._continued):
            return
        now = clock.monotonic()
        self._free_places(now)
        batch: dict[client.Client, handshake_steps.Handshake] = {}
        for _ in range(_LOOKS_AT_ONCE):
            if len(batch) == _STEPS_AT_ONCE:
                break
            may_begin = bool(self._new) and len(self._places) < _PLACES
            if self._continued and (len(batch) < _CONTINUED_AT_ONCE or not may_begin):
                current = self._continued.take()
            elif may_begin and self._has_room(now):
                current = self._new.take()
            else:
                break  # no connection is left, or there is no place
            if current.hello is None:  # closed
                self._forget(current)
            elif self._has_given_up(current, current.hello):
                detail = "while it waited for its TLS handshake"
                self._connections.close(current, DisconnectReason.CLIENT_CLOSED, detail=detail)
                self._forget(current)
            elif isinstance(current.socket, socket.socket):
                self._take_place(current, now)
                batch[current] = self._begun.get(current) or self._begin(current, current.socket)
        else:
            if not batch:
                self._loop.call_soon(self._guarded, self.go_on)
        if batch:
            self._begin_steps(batch)

    def _has_given_up(self, current: client.Client, pending: client.PendingHello) -> bool:
        waited_seconds = clock.monotonic() - pending.queued_at
        return waited_seconds > self._given_up_after_seconds and self._poller.has_hung_up(current)

    def _take_place(self, current: client.Client, now: float) -> None:
        self._places.pop(current, None)
        self._slow.pop(current, None)
        self._places[current] = now

    def _free_places(self, now: float) -> None:
        """Places are in order of the last step, so the first recent one ends the look."""
        patience_seconds = max(_PLACE_SECONDS_MIN, _PLACE_SECONDS * self._finishing)
        while self._places:
            current, stepped_at = next(iter(self._places.items()))
            if current.is_closing():
                self._forget(current)
            elif now - stepped_at < patience_seconds:
                return
            else:
                del self._places[current]
                self._slow[current] = stepped_at
                if current.hello is not None and not current.hello.queued_at:
                    self._finishing -= self._finishing / 64

    def _has_room(self, now: float) -> bool:
        """Whether one more handshake may begin, for which another one may have to go."""
        if len(self._begun) < _BEGUN_MAX:
            return True
        host, _ = self._begun_by_host.most_common(1)[0]
        for current, stepped_at in self._slow.items():
            if now - stepped_at < _SILENT_SECONDS:
                return False
            if current.host == host and current.hello is not None and not current.hello.queued_at:
                detail = "the TLS handshake is not done, and others wait"
                self._connections.close(current, DisconnectReason.HANDSHAKE_TIMEOUT, detail=detail)
                self._forget(current)
                return True
        return False

    def _forget(self, current: client.Client) -> None:
        """The handshake has come to its end, if it had begun."""
        self._places.pop(current, None)
        self._slow.pop(current, None)
        if self._begun.pop(current, None) is not None:
            host = current.host
            self._begun_by_host[host] -= 1
            if not self._begun_by_host[host]:
                del self._begun_by_host[host]
            self._ended += 1

    def _begin(self, newcomer: client.Client, connection: socket.socket) -> handshake_steps.Handshake:
        begun = self._begun[newcomer] = handshake_steps.Handshake(connection, self.contexts.make_session)
        self._begun_by_host[newcomer.host] += 1
        return begun

    def _begin_steps(self, batch: dict[client.Client, handshake_steps.Handshake]) -> None:
        self._transport.stepping = frozenset(current.fd for current in batch)
        handshakes = list(batch.values())
        steps = self._thread.submit(self._take_steps, handshakes, self.contexts.client_tls)
        steps.add_done_callback(
            lambda future: self._loop.call_soon_threadsafe(
                self._guarded, lambda: self._stepped(batch, _verdicts(future, len(batch)))
            )
        )

    def _stepped(
        self, batch: dict[client.Client, handshake_steps.Handshake], verdicts: list[handshake_steps.Verdict]
    ) -> None:
        self._transport.stepping = frozenset()
        now = clock.monotonic()
        for (current, handshake), verdict in zip(batch.items(), verdicts, strict=True):
            if current.hello is None:  # closed meanwhile
                self._forget(current)
                continue
            current.hello.end_queueing(now)
            if verdict.defect is not None and self._defect_lines.allows():
                _log.error(
                    "Defect in a TLS handshake",
                    client=current.address,
                    exc_info=verdict.defect,
                    other_defects_not_logged=self._defect_lines.take_suppressed(),
                )
            if verdict.reason is not None:
                self._connections.close(current, verdict.reason, detail=verdict.detail)
                self._forget(current)
            elif verdict.done and handshake.session is not None:
                current.hello.is_shaking = False
                self._connections.hold(current, 0)
                self._transport.opened(current.socket, handshake.session)
                self._poller.watch_read(current)
                self._forget(current)
                self._finishing += (1.0 - self._finishing) / 32  # it may have lost its place before
            else:
                self._take_place(current, now)
                self._poller.watch_handshake(current, wants_write=verdict.wants_write)
                self._connections.hold(current, _HANDSHAKE_BYTES)
        self.go_on()

    def look_after(self) -> None:
        """To be called several times a second: begins handshakes that waited for a place, and gives memory back.

        The C library keeps the memory that a storm has freed, in pieces between live ones: 15 kB for each of 400
        clients that came together, and 19 kB for each of 200 that had stopped reading for a while.
        """
        self.go_on()
        if self._transport.stepping:
            return
        for current in [current for current in self._begun if current.is_closing()]:
            self._forget(current)
        if not self._new:
            self._trimmer.note(self._ended + self._transport.freed_pieces, clock.monotonic())

    def close(self) -> None:
        """Waits for a running step; to be called once nothing is read from connections any more."""
        self._thread.shutdown()


def _verdicts(
    steps: concurrent.futures.Future[list[handshake_steps.Verdict]], count: int
) -> list[handshake_steps.Verdict]:
    """Those of the steps. If the call itself has failed, as for lack of memory, nobody knows how far each has come."""
    failure = steps.exception()  # that of a panic in Rust is no Exception
    if failure is None:
        return steps.result()
    return [
        handshake_steps.Verdict(
            reason=DisconnectReason.SERVER_ERROR, detail=str(failure) or repr(failure), defect=failure
        )
    ] * count
