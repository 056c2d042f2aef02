"""One worker: its clients, its channels, and the turns in which each gets its due.

A worker runs on an event loop, in a process of its own or inside the hub (`--workers 0`). The hub's messages arrive on
a link, the clients' bytes on one epoll. Both only put things where `Delivery`, `Connections` and `Keepalive` find them.
A turn works for a few milliseconds at most, then lets the loop turn once.
"""

import asyncio
import contextlib
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator

import msgspec
import structlog

from cache.feeds.calico import releases
from cache.state import files
from protocol import reasons, subscriptions
from typha import clock, open_files, settings
from typha.ipc import link, messages, shared_counters
from typha.observability import logs
from typha.worker import (
    admission,
    catchup,
    client,
    client_list,
    connections,
    delivery,
    departures,
    diagnosis,
    handshake_steps,
    handshakes,
    keepalive,
    policy,
    poller,
    protocol_adapters,
    rebalancing,
    tls,
    tls_transport,
    transport,
    trimming,
)
from typha.worker.channel import Channels, WorkerChannel
from typha.worker.stats import WorkerStats

_log = structlog.get_logger("typha.server")
_monotonic = clock.monotonic

_ID_BITS = 40
"""Connection ids have the worker's number above these bits, and a counter below."""
_ACCEPT_LESS_AMONG_OTHERS = 4
"""With other workers a turn accepts this many times fewer connections: with large helpings, chance gave one of four
workers a quarter less than its share of 2,000 connections."""
_CHORES_SECONDS = 0.25
"""Deadlines are checked at least this often. Other work by the clock joins the same wake-ups, which cost more than
it."""
_TRIM_AFTER = 250
"""Connections that end without a hello until memory is given back: the C library keeps what they have freed."""
_DEFECT_LINES_PER_SECOND = 20
"""A peer that finds a way to a defect must not fill the log. Each defect is counted as `server-error`."""
_SHORTAGE_PAUSE_SECONDS = 0.1
_SHORTAGE_LINE_SECONDS = 60.0
_SHORTAGE_GIVE_WAY = 4
"""Refused and silent connections that are closed for a message of the hub: a segment of the log takes four
descriptors."""


class _Unmapped(Exception):
    """A file of the hub cannot be mapped for lack of memory or descriptors."""


@contextlib.contextmanager
def _mapping() -> Iterator[None]:
    try:
        yield
    except (OSError, MemoryError) as error:
        raise _Unmapped(str(error) or type(error).__name__) from error


class Server:
    """One worker; `run` returns when it has drained, or raises what ended it."""

    def __init__(
        self,
        config: messages.WorkerConfig,
        limits: policy.Policy,
        listener: socket.socket,
        link_end: socket.socket,
        *,
        contexts: tls.Contexts | None = None,
        take_steps: handshake_steps.Steps = handshake_steps.take_steps,
        client_poller: poller.AnyPoller[client.Client] | None = None,
        bytes_through: transport.Transport | None = None,
    ) -> None:
        """Takes the link's end.

        Args:
            contexts: TLS for clients; None for plain text.
            take_steps: takes steps of TLS handshakes.
            client_poller, bytes_through: in place of real sockets.
        """
        self._policy = limits
        self._link = link.Link(link_end, messages.FOR_WORKER, self._watch_link)
        self._loop = asyncio.get_running_loop()
        self.stats = WorkerStats(name for name in config.feeds if name not in releases.PROJECTIONS)
        self.poller: poller.AnyPoller[client.Client] = client_poller or poller.Poller(
            listener,
            notsent_lowat_bytes=limits.notsent_lowat_bytes,
        )
        through_tls = tls_transport.TlsTransport() if contexts is not None else None
        self.transport: transport.Transport = bytes_through or through_tls or transport.PlainTransport()
        self.channels = Channels(self._link, limits)
        offer = protocol_adapters.Offer(
            frozenset(config.feeds),
            bytes.fromhex(config.incarnation),
            ping_interval_seconds=limits.ping_interval_seconds,
            max_frame_bytes=limits.max_frame_bytes,
            release_overrides=limits.release_overrides,
            has_room_for=self._has_room_for,
        )
        self.connections = connections.Connections(offer, limits, self.poller, self.transport, self.stats)
        self._handshakes: handshakes.TlsHandshakes | None = None
        if contexts is not None and through_tls is self.transport:
            self._handshakes = self._make_handshakes(contexts, through_tls, take_steps)
        self.catch_up = catchup.CatchUp(limits, self.stats, self._link, self.transport)
        self.delivery = delivery.Delivery(
            self.poller, self.transport, limits, self.stats, self.catch_up, self.connections
        )
        self.keepalive = keepalive.Keepalive(limits, self.poller, self.transport, self.connections, self.stats)
        self._hellos = admission.HelloQueue(limits)
        self._unheard: dict[client.Client, int] = {}
        """Clients that have said something which there was no time to read, with the poller's events; the oldest
        first."""
        self._next_id = config.number << _ID_BITS
        self._turn_scheduled = False
        self._chores_at = self._report_at = _monotonic()
        self._timer_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._client_list: client_list.ClientList | None = None
        """The answer that is being made."""
        self._description: deque[messages.DescriptionPart] = deque()
        self._share = 1 << 31
        """Connections above which none is accepted."""
        self._accept_batch = limits.accept_batch
        self._hub_waits = False
        """What the hub has said is not taken for a moment, for lack of descriptors or memory."""
        self._accept_lines = logs.LineLimit(1, seconds=_SHORTAGE_LINE_SECONDS)
        self._shortage_lines = logs.LineLimit(1, seconds=_SHORTAGE_LINE_SECONDS)
        self._publishes_heard = 0
        self._publishes_sent: shared_counters.SharedCounter | None = None
        """How many of them have been sent to all clients that keep up; the hub reads it."""
        self._trimmer = trimming.Trimmer(_TRIM_AFTER)
        self._departures = departures.Departures(self.poller, self.connections, limits)
        self._drain: messages.Drain | None = None
        self._drain_begun = asyncio.Event()
        self._finished = asyncio.Event()
        self._defect_lines = logs.LineLimit(_DEFECT_LINES_PER_SECOND)
        self._failure: BaseException | None = None

    def _make_handshakes(
        self, contexts: tls.Contexts, through_tls: tls_transport.TlsTransport, take_steps: handshake_steps.Steps
    ) -> handshakes.TlsHandshakes:
        return handshakes.TlsHandshakes(
            contexts,
            self.poller,
            through_tls,
            self.connections,
            self._policy,
            guarded=self._guarded,
            take_steps=take_steps,
        )

    async def run(self) -> None:
        """Serves until the hub says drain and all clients are gone.

        Raises:
            link.LinkBroken: the hub is gone.
            Exception: a defect; the worker is of no more use.
        """
        self._loop.add_reader(self._link.fileno(), self._guarded, self._link_readable)
        self._loop.add_reader(self.poller.fileno(), self._guarded, self._turn)
        self.poller.listen(True)
        try:
            self._link.send(messages.Ready())
            async with asyncio.TaskGroup() as tasks:
                draining = tasks.create_task(self._drain_clients(), name="drain")
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
            self.catch_up.close()
            self.channels.close()
            if self._publishes_sent is not None:
                self._publishes_sent.close()
            self._link.close()
        if self._failure is not None:
            raise self._failure

    def _guarded(self, action: Callable[[], None]) -> None:
        """Runs a callback of the loop; a failure ends the worker instead of being logged and forgotten."""
        if self._finished.is_set():
            return
        try:
            action()
        except BaseException as error:  # a panic of Rust is no Exception
            self._failure = error
            self._finished.set()

    # The hub's messages.

    def _watch_link(self, active: bool) -> None:
        if active:
            self._loop.add_writer(self._link.fileno(), self._guarded, self._link.flush)
        else:
            self._loop.remove_writer(self._link.fileno())

    def _link_readable(self) -> None:
        self._hear_hub()
        self._schedule_turn()

    def _hear_hub(self) -> bool:
        """Takes what the hub has said. False if something must wait for descriptors or memory; it is tried again."""
        if self._hub_waits:
            return False
        try:
            for message, descriptors in self._link.receive():
                try:
                    self._take(message, descriptors)
                except _Unmapped as error:
                    self._link.put_back(message, descriptors)
                    raise link.Starved(str(error)) from error
        except link.Starved as error:
            self._let_hub_wait(error)
        return not self._hub_waits

    def _let_hub_wait(self, error: link.Starved) -> None:
        """The hub's messages stay where they are for a moment. Connections without a hello give way to them."""
        self.stats.counts.shortages += 1
        if self._shortage_lines.allows():
            open_connections = len(self.poller.clients)
            _log.error("Cannot take the hub's messages for now", error=str(error), connections=open_connections)
        for _ in range(_SHORTAGE_GIVE_WAY):
            self.connections.make_room(None, str(error))
        self._hub_waits = True
        self._loop.remove_reader(self._link.fileno())
        self._loop.call_later(_SHORTAGE_PAUSE_SECONDS, self._guarded, self._hear_hub_again)

    def _hear_hub_again(self) -> None:
        self._hub_waits = False
        self._loop.add_reader(self._link.fileno(), self._guarded, self._link_readable)
        self._link_readable()  # a message that was put back makes no socket readable
        if self._hub_waits:
            self._report()  # the link's end is behind what waits there: only sending tells whether the hub still lives

    def _take(self, message: messages.ToWorker, descriptors: list[int]) -> None:
        match message:
            case messages.Publish():
                self._publish(message)
            case messages.NoteStatus():
                self.channels[message.channel].note_status(message.offset, message.status)
            case messages.AddSegment():
                log = self.channels[message.channel].log
                with _mapping():
                    log.add_segment(message.base, message.size_bytes, *descriptors)
            case messages.OfferSnapshot():
                [message.snapshot.descriptor] = descriptors
                self._map(message.snapshot)
                channel = self.channels[message.channel]
                channel.set_snapshot(message.snapshot, _monotonic())
                self.delivery.snapshot_arrived(channel)
            case messages.TrimLog():
                self._trim(self.channels[message.channel], message.before_offset)
            case messages.SendBlock():
                [message.block.descriptor] = descriptors
                self._map(message.block)
                for reader in self.catch_up.arrived(self.channels[message.channel], message.block):
                    self.delivery.go_on(reader)
            case messages.RefuseBlock():
                channel = self.channels[message.channel]
                for reader in self.catch_up.refused(channel, message.from_sequence):
                    self.delivery.cannot_catch_up(channel, reader)
            case messages.OpenChannel():
                self.channels.opened(message)
            case messages.RefuseChannel():
                self._refuse_channel(message)
            case messages.CloseChannel():
                self._close_channel(self.channels[message.channel])
            case messages.WithdrawFeeds():
                self._withdraw(frozenset(message.feeds))
            case messages.LimitConnections():
                self._share = message.connections
                self._accept_batch = max(1, self._policy.accept_batch // _ACCEPT_LESS_AMONG_OTHERS)
            case messages.SendAway():
                if self._drain is None:
                    rebalancing.send_away(
                        message.clients,
                        self.channels,
                        self.connections,
                        lambda current: current.at_frame_end(self.transport),
                    )
            case messages.ShareCounter():
                with _mapping():
                    self._publishes_sent = shared_counters.SharedCounter.attach(*descriptors)
            case messages.NoteConfirmed():
                self.connections.note_confirmed(message.confirmed_at, message.upstreams)
            case messages.HandOver():
                self._departures.hand_over(message)
            case messages.KeepClients():
                self._departures.keep()
            case messages.AwaitApplied():
                self.connections.convergence.expect(message.feed, message.sequence, _monotonic())
            case messages.ControlLog():
                self._control_log(message)
            case messages.ListClients():
                self._list_clients(message.request)
            case messages.Describe():
                self._describe(message.request)
            case messages.NoteDictionary():
                self.channels[message.channel].note_dictionary(message.offset, message.frame)
            case messages.Drain():
                self._drain = message
                self._drain_begun.set()

    def _map(self, file: files.SnapshotFile | files.BlockFile) -> None:
        """Now, where a lack of memory or descriptors is handled."""
        if isinstance(file, files.SnapshotFile) and file.common is not None:
            with _mapping():
                len(file.sections)
        if self.transport.send_file is None:
            with _mapping():
                len(file.view)

    def _control_log(self, message: messages.ControlLog) -> None:
        if message.debug is not None:
            logs.switch_debug(message.debug)
        if message.reopen:
            logs.reopen_file()
        if message.diagnose:
            diagnosis.write(self.connections, self.channels, self.poller.clients.values(), _monotonic())

    def _list_clients(self, request: int) -> None:
        """Begins an answer, in place of one that is not finished."""
        is_listing = self._client_list is not None
        clients = self.poller.clients
        self._client_list = client_list.ClientList(request, clients, self.transport, self._policy, _monotonic())
        if not is_listing:
            self._loop.call_soon(self._guarded, self._send_slice)

    def _send_slice(self) -> None:
        """The next part of the list of clients. What the hub needs of this worker comes first on the link."""
        now = _monotonic()
        if self._client_list is None or self._client_list.is_too_late(now):
            self._client_list = None
            return
        if not self._link.wants_write:
            sliced = self._client_list.next_slice(now)
            self._link.send(sliced)
            if sliced.is_last:
                self._client_list = None
                return
        self._loop.call_later(messages.SLICE_SECONDS, self._guarded, self._send_slice)

    def _describe(self, request: int) -> None:
        """Begins to describe this process, in place of a description that is not finished."""
        is_describing = bool(self._description)
        self._description = diagnosis.description(request)
        if not is_describing:
            self._send_description()

    def _send_description(self) -> None:
        if not self._link.wants_write:
            self._link.send(self._description.popleft())
        if self._description:
            self._loop.call_later(messages.SLICE_SECONDS, self._guarded, self._send_description)

    def _publish(self, message: messages.Publish) -> None:
        self._publishes_heard += 1
        for end in message.ends:
            channel = self.channels[end.channel]
            channel.publish(end.end, end.frames, end.times)
            self.delivery.channel_published(channel)

    def _tell_progress(self) -> None:
        """After sending: the hub learns whether the worker has finished what was published."""
        if self._publishes_sent is not None and not self.delivery.is_passing:
            self._publishes_sent.value = self._publishes_heard

    def _trim(self, channel: WorkerChannel, before_offset: int) -> None:
        """The hub frees segments; clients that still need them catch up by blocks instead."""
        channel.trim_offset = before_offset
        for reader in channel.behind(before_offset):
            self.delivery.fall_behind(channel, reader)
        channel.drop_log(before_offset)

    def _close_channel(self, channel: WorkerChannel) -> None:
        """As far as the hub knew, it had no clients. Those that came meanwhile are to connect again."""
        self.channels.remove(channel)
        for reader in channel.all_clients():
            self.connections.farewell(
                reader, reasons.DisconnectReason.FEED_REMOVED, text="the feed's wire format had become idle"
            )
        self.catch_up.drop(channel)
        channel.close()

    def _refuse_channel(self, message: messages.RefuseChannel) -> None:
        """Other workers' clients were first with other subscriptions. The next answers to hellos take note of those."""
        channel = self.channels.unopened(message)
        if channel is None:
            return
        self.channels.remove(channel)
        for reader in channel.all_clients():
            self.connections.farewell(
                reader, reasons.DisconnectReason.FEED_REMOVED, text="there are too many subscriptions"
            )

    def _withdraw(self, feeds: frozenset[str]) -> None:
        """Feeds that were expected do not come: clients that wait for them are refused, as all others from now on."""
        self.connections.withdraw(feeds)
        for channel in self.channels:
            if channel.feed in feeds:
                self.channels.remove(channel)
                for reader in channel.all_clients():
                    self._dismiss_unknown(reader, channel.feed)

    def _dismiss_unknown(self, reader: client.Client, feed: str) -> None:
        self.connections.farewell(reader, reasons.DisconnectReason.UNKNOWN_FEED, text=f"no feed {feed!r} here")

    # Turns.

    def _schedule_turn(self) -> None:
        """Schedule the next turn: now, or at the next deadline that no event will signal."""
        if self.delivery.has_work:
            if not self._turn_scheduled:
                self._turn_scheduled = True
                self._loop.call_soon(self._guarded, self._scheduled_turn)
            return
        due = min(self._chores_at, self.delivery.due_at)
        if due < self._timer_at:  # else the timer is early enough; a turn that is too early schedules the next one
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
        """Accepts connections, reads from clients, answers hellos, then delivers for a while."""
        begun = _monotonic()
        if begun >= self._chores_at:
            self._do_chores(begun)
        if self._hear_clients(begun + self._policy.read_seconds) and self._drain is None:
            self._accept()
        if self._hellos:
            # A newcomer may come from another worker, and must not be served less than it has been sent there.
            self._hear_hub()
        if self._hellos and not self._hub_waits:
            for newcomer, events, has_given_up in self._hellos.take(_monotonic() + self._policy.hello_seconds):
                if not has_given_up:
                    self._client_event(newcomer, events)
                elif self._is_open(newcomer):
                    self.connections.close(newcomer, reasons.DisconnectReason.CLIENT_CLOSED)
        self.delivery.run(_monotonic() + self._policy.pass_seconds)
        self._tell_progress()
        self._schedule_turn()
        self.stats.turns.record(_monotonic() - begun)

    def _is_open(self, current: client.Client) -> bool:
        """False for a client that was closed by what happened to another one in this turn."""
        return self.poller.clients.get(current.fd) is current

    def _hear_clients(self, deadline: float) -> bool:
        """Reads from clients that have said hello, and queues the others; whether connections wait to be accepted.

        At least one client is heard. Those that are not come first in the next turn, which follows at once, because
        the poller still has something to report.
        """
        ready, waiting = self.poller.poll()
        unheard = self._unheard
        for current, events in ready:
            pending = current.hello
            if pending is None:
                unheard[current] = events  # keeps its place if it has one
            elif pending.is_shaking and self._handshakes is not None:
                self._handshakes.ready(current, pending)
            else:
                self._hellos.add(current, pending, events)
        if self._handshakes is not None:
            self._handshakes.go_on()
        self._unheard = {}
        in_turn = iter(unheard.items())
        for current, events in in_turn:
            self._client_event(current, events)
            if _monotonic() > deadline:
                self._unheard = dict(in_turn)
        return waiting

    def _client_event(self, current: client.Client, events: int) -> None:
        if not self._is_open(current):
            return
        try:
            if events & poller.WRITE:
                self.delivery.writable(current)
            if events & ~poller.WRITE and self._is_open(current):
                greeted = self.connections.read(current)
                if greeted is not None:
                    self._greeted(current, greeted)
        except link.LinkBroken:
            raise
        except Exception as error:
            # One connection's defect must not harm the others (docs/architecture.md, rule 4).
            if self._defect_lines.allows():
                _log.exception("Defect on a connection", client=current.address, cursor=repr(current), error=str(error))
            if self._is_open(current):
                self.connections.close(current, reasons.DisconnectReason.SERVER_ERROR, detail=str(error))

    def _greeted(self, newcomer: client.Client, greeted: connections.Greeted) -> None:
        """A client's hello was good: from now on it is pinged, and, if that is all, held until it can be served."""
        self.keepalive.add(newcomer)
        match greeted:
            case protocol_adapters.Subscribed(feed=feed) if feed not in self.connections.offer.feeds:
                self._dismiss_unknown(newcomer, feed)  # withdrawn since its hello
            case protocol_adapters.Subscribed():
                newcomer.channel = self.channels.wanted(
                    greeted.feed, greeted.wire_format, greeted.subscription, asker=newcomer.host
                )
                newcomer.tag = greeted.tag
                if greeted.reports_positions:
                    progress = newcomer.channel.progress_of(newcomer)
                    self.connections.convergence.add(newcomer, greeted.feed, _monotonic(), progress)
                self.delivery.welcome(newcomer, newcomer.channel, greeted.resumption)

    def _has_room_for(self, feed: str, subscription: subscriptions.Subscription, address: str) -> bool:
        has_room = self.channels.has_room_for(feed, subscription, address)
        if not has_room:
            self.stats.feeds[feed].counts.subscriptions_declined += 1
        return has_room

    def _accept(self) -> None:
        if len(self.poller.clients) >= self._share:
            self._pause_accepting(self._policy.over_share_pause_seconds)
            return
        now = _monotonic()
        deadline = now + self._policy.accept_seconds
        for _ in range(self._accept_batch):
            try:
                accepted = self.poller.accept()
            except poller.OutOfResources as error:
                self._out_of_resources(error)
                return
            if accepted is None:
                return
            self._next_id += 1
            connection, address = accepted
            slot = self.keepalive.choose_slot()
            newcomer = client.Client(connection, address, number=self._next_id, slot=slot, now=now)
            if newcomer.hello is not None:
                self.connections.opened(newcomer, newcomer.hello)
            if self._handshakes is not None and newcomer.hello is not None:
                self._handshakes.begin(newcomer, newcomer.hello)
            if _monotonic() > deadline:
                return

    def _out_of_resources(self, error: poller.OutOfResources) -> None:
        """The reserve of descriptors is used up after all: connections without a hello make room for the service."""
        self.stats.accept_failures += 1
        if self._accept_lines.allows():
            _log.error("Cannot accept connections for now", error=str(error), open=len(self.poller.clients))
        for _ in range(self._policy.accept_batch):
            self.connections.make_room(None, str(error))
        self._pause_accepting(self._policy.out_of_resources_pause_seconds)

    def _pause_accepting(self, seconds: float) -> None:
        self.poller.listen(False)
        self._loop.call_later(seconds, self._guarded, self._resume_accepting)

    def _resume_accepting(self) -> None:
        # A few more until the hub says otherwise: no connection may wait because of an outdated limit.
        self._share = max(self._share, len(self.poller.clients) + self._policy.accept_batch)
        if self._drain is None:
            self.poller.listen(True)

    # What is due by the clock.

    def _do_chores(self, now: float) -> None:
        """Pings, deadlines, reports."""
        interval_seconds = self._policy.stats_interval_seconds
        chores_seconds = min(_CHORES_SECONDS, self.keepalive.wait_seconds, interval_seconds)
        self._chores_at = now + chores_seconds
        if not self.keepalive.tick(now):
            self._chores_at = now  # the next turn goes on
        self._departures.move(now)
        self.keepalive.expire_handshakes(now)
        self.connections.close_overdue(now)
        if self._handshakes is not None:
            self._handshakes.contexts.refresh(now)
            self._handshakes.look_after()
            self.stats.counts.tls_reload_failures = self._handshakes.contexts.failures
        self._trimmer.note(self.connections.ended_unproven, now)
        if now >= self._report_at - chores_seconds / 2:  # the nearest of the chores' times
            self._report_at = max(self._report_at + interval_seconds, now)
            self._report()

    def _report(self) -> None:
        self._link.flush()
        if self._link.wants_write:
            return  # the hub has not read the last report yet; the next one says the same and more
        now = _monotonic()
        self.catch_up.tidy()
        self.connections.log.write_left_out()
        self.stats.note_log_lines()
        self.stats.turns.rotate(now)
        closing = len(self.connections.closing)
        self._link.send(
            messages.Report(
                self.stats.counts,
                active=len(self.poller.clients) - closing,
                closing=closing,
                longest_turn_seconds=self.stats.turns.recent_seconds,
                longest_turn_seconds_ever=self.stats.turns.worst_seconds,
                channels={
                    number: channel.report(now, lowest_block_offset=self.catch_up.lowest_offset(channel))
                    for number, channel in self.channels.numbered()
                },
            )
        )
        for histograms in self.stats.histograms(now):
            self._link.send(histograms)
        newest = {channel.feed: channel.newest_sequence for _, channel in self.channels.numbered()}
        for applied in self.connections.convergence.reports(newest, now):
            self._link.send(applied)
        recent = self.stats.take_recent()
        if recent is not None:
            self._link.send(recent)

    # The end.

    async def _drain_clients(self) -> None:
        """Once the hub says so: closes client after client, each with a goodbye, and ends."""
        await self._drain_begun.wait()
        self.poller.close_listener()
        await self._departures.drain(self._drain or messages.Drain(0.0, 0.0))
        self._guarded(self._report)
        self._finished.set()


async def serve(config: messages.WorkerConfig, listener: socket.socket, link_end: socket.socket) -> None:
    """Runs a worker as its settings and the environment ask for; returns and raises as `Server.run`."""
    configured = settings.from_dict(config.settings)
    client_tls = tls.from_settings(configured, os.environ)
    contexts = tls.Contexts(client_tls) if client_tls is not None else None
    limit = open_files.raise_limit()
    connections_max = open_files.connections_max(
        configured, feeds=len(config.feeds), with_hub=config.number == 0, limit=limit
    )
    _log.info("Ready for connections", at_most=connections_max, open_files_limit=limit)
    limits = msgspec.structs.replace(policy.from_settings(configured), connections_max=connections_max)
    await Server(config, limits, listener, link_end, contexts=contexts).run()
