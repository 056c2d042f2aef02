"""One worker's fan-out: its clients, its channels, and the turns in which they get their due.

Runs on an event loop, in a worker process of its own or inside the hub (`--workers 0`). It hears from the hub over a
link and from its clients over one epoll; both only put things where `Delivery`, `Sessions` and `Sweep` find them. A
turn works for a few milliseconds at most, then lets the loop turn once.
"""

import asyncio
import math
import random
import socket
from collections.abc import Callable

import structlog

from protocol import reasons
from typha import clock, settings
from typha.ipc.link import Link, LinkBroken
from typha.worker import (
    admission,
    catchup,
    channels,
    client,
    connections,
    delivery,
    handshakes,
    keepalive,
    policy,
    poller,
    stats,
    tls,
    tls_transport,
    transport,
)

_log = structlog.get_logger("typha.fanout")
_monotonic = clock.monotonic

_ID_BITS = 40
"""Connection ids: the worker's number above these bits, a counter below."""
_OUT_OF_RESOURCES_PAUSE_SECONDS = 1.0
"""How long nothing is accepted after the process has run out of descriptors."""
_ACCEPT_LESS_AMONG_OTHERS = 4
"""Where there are other workers a turn accepts so many times fewer: with large helpings chance gave one of four workers
a quarter less than its share of 2,000 connections."""
_OVER_SHARE_PAUSE_SECONDS = 0.05
"""How long a worker with more than its share leaves new connections to the others."""
_CHORES_SECONDS = 0.25
"""How often deadlines are looked at, at least; what else is done by the clock is done in the same wake-ups, which cost
more than what is done in them."""
_DRAIN_TIME_SHARE = 0.95
"""Of the drain's time, so that the last client leaves in time (docs/reference/typha-behaviour.md, section 8)."""
_DRAIN_JITTER = 0.05
_DRAIN_RETRY_MILLISECONDS = 500
_LINGER_LOOK_SECONDS = 0.02


class Fanout:
    """One worker; `run` returns when it has drained, or raises what ended it."""

    def __init__(
        self,
        config: policy.WorkerConfig,
        listener: socket.socket,
        link: Link,
        *,
        client_poller: poller.AnyPoller[client.Client] | None = None,
        bytes_through: transport.Transport | None = None,
    ) -> None:
        limits = policy.from_settings(settings.from_dict(config.settings))
        self._config = config
        self._policy = limits
        self._link = link
        self._watching_link = False
        self._loop = asyncio.get_running_loop()
        self.stats = stats.WorkerStats(config.feeds)
        contexts = tls.Contexts(config.client_tls) if config.client_tls is not None else None
        self.poller: poller.AnyPoller[client.Client] = client_poller or poller.Poller(
            listener,
            notsent_lowat_bytes=limits.notsent_lowat_bytes,
            wrap=contexts.wrap if contexts is not None else None,
        )
        self.transport: transport.Transport = bytes_through or transport.PlainTransport()
        self._handshakes: handshakes.Handshakes | None = None
        if contexts is not None and bytes_through is None:
            self._handshakes = self._make_handshakes(contexts)
        self.sessions = connections.Sessions(
            config, limits, self.poller, self.transport, self.stats, self._subscribed, self._acking
        )
        self.catch_up = catchup.CatchUp(limits, self.stats, self._tell, self.transport.owed)
        self.delivery = delivery.Delivery(
            self.poller,
            self.transport,
            limits,
            self.stats,
            self.catch_up,
            self.sessions.lost,
            self.sessions.fell_behind,
        )
        self.sweep = keepalive.Sweep(limits, self.poller, self.transport, self.sessions, self.stats)
        self.channels = channels.Channels(self.delivery, self.sessions, self.catch_up, self._tell)
        self._hellos = admission.Hellos(self._client_event, self._gave_up)
        self._next_id = config.number << _ID_BITS
        self._turn_scheduled = False
        self._chores_at = self._report_at = _monotonic()
        self._timer_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._has_heard_hub = False
        """In this turn: everybody who is answered in it was here before."""
        self._share = 1 << 31
        self._accept_batch = limits.accept_batch
        self._draining: tuple[float, float] | None = None
        self._drain_begun = asyncio.Event()
        self._finished = asyncio.Event()
        self._failure: Exception | None = None

    def _make_handshakes(self, contexts: tls.Contexts) -> handshakes.Handshakes:
        through_tls = tls_transport.TlsTransport()
        self.transport = through_tls
        return handshakes.Handshakes(
            contexts,
            self.poller,
            through_tls,
            guarded=self._guarded,
            failed=lambda current, reason, detail: self.sessions.close(current, reason, detail=detail),
        )

    async def run(self) -> None:
        """Serves until the hub says drain and all clients are gone.

        Raises:
            ipc.LinkBroken: the hub is gone.
            Exception: a defect; the worker is of no more use.
        """
        self._loop.add_reader(self._link.fileno(), self._guarded, self._hear_hub)
        self._loop.add_reader(self.poller.fileno(), self._guarded, self._turn)
        self.poller.listen(True)
        try:
            self._tell(["ready", self._config.number])
            async with asyncio.TaskGroup() as tasks:
                draining = tasks.create_task(self._drain(), name="drain")
                self._schedule_turn()
                await self._finished.wait()
                draining.cancel()
        finally:
            self._finished.set()
            self._stop_timer()
            self._loop.remove_reader(self._link.fileno())
            self._loop.remove_writer(self._link.fileno())
            self._loop.remove_reader(self.poller.fileno())
            if self._handshakes is not None:
                self._handshakes.close()
            for descriptor in self.poller.clients:
                self.transport.release(descriptor)
            self.poller.close_all()
            self.channels.close()
            self._link.close()
        if self._failure is not None:
            raise self._failure

    def _guarded(self, action: Callable[[], None]) -> None:
        """Runs a callback of the loop; a failure ends the worker instead of being logged and forgotten."""
        if self._finished.is_set():
            return
        try:
            action()
        except Exception as error:
            self._failure = error
            self._finished.set()

    def _tell(self, message: list[object]) -> None:
        """A message for the hub; what does not fit its socket goes as soon as it does."""
        self._link.send(message)
        self._look_at_link()

    def _flush_link(self) -> None:
        self._link.flush()
        self._look_at_link()

    def _look_at_link(self) -> None:
        if self._link.wants_write is self._watching_link:
            return
        self._watching_link = self._link.wants_write
        if self._watching_link:
            self._loop.add_writer(self._link.fileno(), self._guarded, self._flush_link)
        else:
            self._loop.remove_writer(self._link.fileno())

    def _hear_hub(self) -> None:
        for message, descriptors in self._link.receive():
            match message:
                case ["share", int(share)]:
                    self._share = share
                    self._accept_batch = max(1, self._policy.accept_batch // _ACCEPT_LESS_AMONG_OTHERS)
                case ["drain", int() | float() as seconds, int() | float() as interval_seconds]:
                    self._draining = (float(seconds), float(interval_seconds))
                    self._drain_begun.set()
                case _:
                    self.channels.handle(message, descriptors)
        self._schedule_turn()

    def _schedule_turn(self) -> None:
        """The next turn is at once if there is work, else when the first thing is due of which nothing else tells."""
        if self.delivery.has_work:
            if not self._turn_scheduled:
                self._turn_scheduled = True
                self._loop.call_soon(self._guarded, self._scheduled_turn)
            return
        due = min(self._chores_at, self.delivery.due_at)
        if due < self._timer_at:  # else what stands is early enough: who looks too early looks again
            self._stop_timer()
            self._timer_at = due
            self._timer = self._loop.call_later(max(0.0, due - _monotonic()), self._guarded, self._timed_turn)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf

    def _scheduled_turn(self) -> None:
        self._turn_scheduled = False
        self._turn()

    def _timed_turn(self) -> None:
        self._stop_timer()
        self._turn()

    def _turn(self) -> None:
        """Accepts connections, hears clients, answers hellos, then delivers for a while."""
        begun = _monotonic()
        self._has_heard_hub = False
        if begun >= self._chores_at:
            self._do_chores(begun)
        if self._hear_clients() and self._draining is None:
            self._accept()
        self._hellos.run(_monotonic() + self._policy.hello_seconds)
        self.delivery.run(_monotonic() + self._policy.pass_seconds)
        self.channels.tell_progress()
        self._schedule_turn()
        self.stats.turns.note(_monotonic() - begun)

    def _hear_clients(self) -> bool:
        """Hears those that were taken in, and notes who has said hello; whether connections wait to be accepted."""
        ready, waiting = self.poller.poll()
        handshaking = self.sessions.handshaking
        for current, events in ready:
            if current.shaking and self._handshakes is not None:
                self._handshakes.ready(current)
            elif current in handshaking:
                self._hellos.add(current, events)
            else:
                self._client_event(current, events)
        return waiting

    def _gave_up(self, newcomer: client.Client) -> None:
        if self.poller.clients.get(newcomer.fd) is newcomer:
            self.sessions.close(newcomer, reasons.DisconnectReason.CLIENT_CLOSED)

    def _client_event(self, current: client.Client, events: int) -> None:
        if self.poller.clients.get(current.fd) is not current:
            return  # closed by what happened to another client in this turn
        try:
            if events & poller.WRITE:
                self.delivery.writable(current)
            if events & ~poller.WRITE and self.poller.clients.get(current.fd) is current:
                self.sessions.readable(current)
        except LinkBroken:
            raise
        except Exception as error:
            # One connection's defect must not cost the others anything (docs/architecture.md, rule 4).
            _log.exception("Defect on a connection", client=current.address, cursor=repr(current), error=str(error))
            if self.poller.clients.get(current.fd) is current:
                self.sessions.close(current, reasons.DisconnectReason.SERVER_ERROR, detail=str(error))

    def _accept(self) -> None:
        if len(self.poller.clients) >= self._share:
            self._pause_accepting(_OVER_SHARE_PAUSE_SECONDS)
            return
        now = _monotonic()
        for _ in range(self._accept_batch):
            try:
                accepted = self.poller.accept()
            except poller.OutOfResources as error:
                self.stats.accept_failures += 1
                _log.error("Cannot accept connections for now", error=str(error), open=len(self.poller.clients))
                self._pause_accepting(_OUT_OF_RESOURCES_PAUSE_SECONDS)
                return
            if accepted is None:
                return
            self._next_id += 1
            connection, address = accepted
            newcomer = client.Client(connection, address, number=self._next_id, slot=self.sweep.choose_slot(), now=now)
            self.sessions.opened(newcomer)
            if self._handshakes is not None:
                self._handshakes.begin(newcomer)

    def _pause_accepting(self, seconds: float) -> None:
        self.poller.listen(False)
        self._loop.call_later(seconds, self._guarded, self._resume_accepting)

    def _resume_accepting(self) -> None:
        # Until the hub says otherwise, a few more: nobody may be left waiting for a stale number.
        self._share = max(self._share, len(self.poller.clients) + self._policy.accept_batch)
        if self._draining is None:
            self.poller.listen(True)

    def _acking(self, newcomer: client.Client) -> None:
        self.sweep.add(newcomer)

    def _subscribed(self, newcomer: client.Client, feed: str, wire_format: str) -> None:
        if not self._has_heard_hub:  # what other workers' clients may have been sent before this one came here
            self._has_heard_hub = True
            self._hear_hub()
        self.sweep.add(newcomer)
        self.channels.subscribe(newcomer, feed, wire_format)

    def _do_chores(self, now: float) -> None:
        """What is due by the clock: pings, deadlines, reports."""
        interval_seconds = self._policy.stats_interval_seconds
        chores_seconds = min(_CHORES_SECONDS, self.sweep.wait_seconds, interval_seconds)
        self._chores_at = now + chores_seconds
        self.sweep.tick(now)
        self._look_at_deadlines(now)
        if now >= self._report_at - chores_seconds / 2:  # the nearest of the chores' times
            self._report_at = max(self._report_at + interval_seconds, now)
            self._report()

    def _look_at_deadlines(self, now: float) -> None:
        self.sweep.expire_handshakes(now)
        self.sessions.close_overdue(now)
        if self._handshakes is not None:
            self._handshakes.contexts.refresh(now)
            self._handshakes.look_after()
            self.stats.tls_reload_failures = self._handshakes.contexts.failures

    def _report(self) -> None:
        self._flush_link()
        if self._link.wants_write:
            return  # the hub has not read the last report yet; the next one says the same and more
        self._tell(
            [
                "stats",
                {
                    **self.stats.counters(),
                    "active": len(self.poller.clients) - len(self.sessions.closing),
                    "handshaking": len(self.sessions.handshaking),
                    "closing": len(self.sessions.closing),
                    **self.stats.longest_turns(_monotonic()),
                    "channels": self.channels.report(_monotonic()),
                },
            ]
        )
        for feed, histograms in self.stats.histograms(_monotonic()).items():
            self._tell(["histograms", feed, histograms])  # apart: all feeds' together may be more than a datagram

    async def _drain(self) -> None:
        """Closes client after client over the time that is given, in random order, each with a goodbye."""
        await self._drain_begun.wait()
        begun = _monotonic()
        seconds, interval_seconds_max = self._draining or (0.0, 0.0)
        self.poller.close_listener()
        for current in list(self.sessions.handshaking):
            self.sessions.close(current, reasons.DisconnectReason.SHUTTING_DOWN)
        remaining = [c for c in self.poller.clients.values() if not c.is_closing()]
        random.shuffle(remaining)
        interval_seconds = min(interval_seconds_max, seconds * _DRAIN_TIME_SHARE / max(1, len(remaining)))
        dismissed = 0
        for current in remaining:
            if self._has_left(current):
                continue
            dismissed += 1
            due = begun + interval_seconds * (dismissed + random.uniform(-_DRAIN_JITTER, _DRAIN_JITTER))
            await asyncio.sleep(max(0.0, due - _monotonic()))
            self._dismiss(current)
        for _ in range(int(self._policy.goodbye_linger_seconds / _LINGER_LOOK_SECONDS)):
            if not self.sessions.closing:  # who hears the goodbye closes first
                break
            await asyncio.sleep(_LINGER_LOOK_SECONDS)
        self._guarded(self._report)
        self._finished.set()

    def _has_left(self, current: client.Client) -> bool:
        return self.poller.clients.get(current.fd) is not current or current.is_closing()

    def _dismiss(self, current: client.Client) -> None:
        if not self._has_left(current):
            self.sessions.farewell(
                current,
                reasons.DisconnectReason.SHUTTING_DOWN,
                text="the server is shutting down",
                retry_after_milliseconds=_DRAIN_RETRY_MILLISECONDS,
            )
