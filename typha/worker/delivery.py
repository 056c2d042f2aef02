"""Sending: the pass over the clients at the end of a log, and what everyone else is owed.

The hot path of the service. A pass writes the same view of shared memory to every client that has been sent all
before it; whoever's socket is full leaves the pass, and takes what has gathered when the socket takes bytes again. No
allocation, no log line and no metric object per delivery.
"""

import operator
from collections import deque
from collections.abc import Callable

from cache.state import cursor
from cache.state.cursor import CursorState
from protocol import formats
from typha import clock
from typha.worker import admission, catchup, client, policy, poller, slow_consumers, transport
from typha.worker.channel import WorkerChannel
from typha.worker.stats import LATENCY_SECONDS, SNAPSHOT_SECONDS, UPDATES_PER_MESSAGE, WRITE_SECONDS, WorkerStats

_monotonic = clock.monotonic
_CLOCK_EVERY = 16
"""Clients that are written to in one go, and then there is a look at the clock: after some 80 us."""


class Delivery:
    """Moves cursors forward.

    `lost` is called with a client whose socket failed, `give_up` with one that has fallen out of the log and cannot be
    caught up; both must close it.
    """

    def __init__(
        self,
        client_poller: poller.AnyPoller[client.Client],
        bytes_through: transport.Transport,
        limits: policy.Policy,
        stats: WorkerStats,
        worker_catch_up: catchup.CatchUp,
        lost: Callable[[client.Client, OSError], None],
        give_up: Callable[[client.Client], None],
    ) -> None:
        self._poller = client_poller
        self._write = bytes_through.write
        self._send_file = bytes_through.send_file
        self._owed = bytes_through.owed
        self._policy = limits
        self._stats = stats
        self._catch_up = worker_catch_up
        self._lost = lost
        self._give_up = give_up
        self._dirty: dict[WorkerChannel, None] = {}
        self._sending: deque[client.Client] = deque()
        self._slow_consumers = slow_consumers.SlowConsumers(limits)
        self.snapshots = admission.SnapshotSlots(limits, client_poller, bytes_through.acked_bytes, self._begin_snapshot)

    @property
    def has_work(self) -> bool:
        """Whether a pass is unfinished, or a client can be sent more at once, laggards apart."""
        return bool(self._dirty or self._sending) or self.snapshots.has_work

    @property
    def is_passing(self) -> bool:
        """Whether somebody at the end of a log has yet to be sent what is new."""
        return bool(self._dirty)

    @property
    def due_at(self) -> float:
        """When `run` is to be called though nothing has happened: a laggard may be sent more, or somebody get the place
        of one who has taken its snapshot. Infinity if never."""
        due = self._slow_consumers.due_at
        wait_seconds = self.snapshots.wait_seconds
        return due if wait_seconds is None else min(due, _monotonic() + wait_seconds)

    def channel_published(self, channel: WorkerChannel) -> None:
        """The channel's log has grown."""
        self._dirty[channel] = None
        # Those whom an unfinished pass has been to were given an older end: the pass goes round once more.
        channel.rescan = channel.rescan or channel.flush_index > 0

    def snapshot_arrived(self, channel: WorkerChannel) -> None:
        """Those who waited for a snapshot get this one, each in its turn."""
        self.snapshots.wanted(channel)

    def hold(self, current: client.Client, channel: WorkerChannel) -> None:
        """The client waits for its turn, and for a snapshot that can be served."""
        channel.held[current] = None
        self.snapshots.wanted(channel)

    def _begin_snapshot(self, held: client.Client, channel: WorkerChannel, snapshot: cursor.SnapshotFile) -> None:
        channel.away.add(held)
        channel.snapshots_begun += 1
        held.become_snapshot(snapshot)
        held.greet_offset, held.greet_sequence, held.greeting_status, held.greeting = channel.greeting(snapshot)
        held.snapshot_at = _monotonic()
        self._sending.append(held)

    def run(self, deadline: float) -> None:
        """Works until nothing is left or the deadline (monotonic seconds) has come.

        While both are busy, the ends of logs get half of the time, snapshots the rest; laggards get theirs beside it.
        """
        sending, snapshots = self._sending, self.snapshots
        now = _monotonic()
        snapshots.free_places(now)
        flush_deadline = (now + deadline) / 2 if sending or snapshots.has_work else deadline
        for channel in list(self._dirty):
            if self._flush(channel, flush_deadline):
                del self._dirty[channel]
            if _monotonic() > flush_deadline:
                break
        self._send_to_slow_consumers()
        while True:
            snapshots.let_in()
            if not sending:
                return
            current = sending.popleft()
            if self._poller.clients.get(current.fd) is current and not current.waiting:
                self.send_more(current)
            if _monotonic() > deadline:
                return

    def _send_to_slow_consumers(self) -> None:
        now = _monotonic()
        deadline = now + self._policy.slow_consumers_seconds
        while now < deadline and (current := self._slow_consumers.take(now)) is not None:
            if self._poller.clients.get(current.fd) is current and not current.waiting:
                sent = self.send_more(current)
                begun, now = now, _monotonic()
                self._slow_consumers.spent(begun, now, sent)

    def _flush(self, channel: WorkerChannel, deadline: float) -> bool:
        """One pass over the clients at the end of the log; False if it must go on later."""
        live = channel.live
        clients, offsets = live.clients, live.offsets
        log = channel.log
        end = log.end
        counters = self._stats.feeds[channel.feed]
        index = channel.flush_index
        now = _monotonic()
        view_offset, view_end, view, view_updates = -1, -1, memoryview(b""), 0
        sends = bytes_sent = deliveries = view_sends = whole_sends = 0
        while index < len(clients):
            offset = offsets[index]
            if offset != view_offset:
                if offset >= end:
                    index += 1
                    continue
                self._note_view(channel, view_offset, view_updates, view_sends)
                sends += view_sends
                bytes_sent += whole_sends * len(view)
                deliveries += whole_sends * view_updates
                view_sends = whole_sends = 0
                view = log.view(offset)
                view_offset, view_end = offset, offset + len(view)
                view_updates = log.sequence_at(view_end) - log.sequence_at(offset)
                channel.rescan = channel.rescan or view_end < end
            stop = index + _CLOCK_EVERY
            if offsets[index:stop].count(offset) < _CLOCK_EVERY:
                stop = index + 1
            whole, sent, error = self._write_each(live.descriptors[index:stop], view)
            # One number and one time for all of them: nothing is allocated, and it stays in the cache.
            offsets[index : index + whole] = [view_end] * whole
            live.sent_at[index : index + whole] = [now] * whole
            index += whole
            whole_sends += whole
            view_sends += whole
            if error is not None:
                self._lost(clients[index], error)
            elif index < stop:
                view_sends += 1
                bytes_sent += sent
                self._block(channel, clients[index], offset + sent, now)
            if _monotonic() > deadline:
                break
        self._note_view(channel, view_offset, view_updates, view_sends)
        sends += view_sends
        bytes_sent += whole_sends * len(view)
        deliveries += whole_sends * view_updates
        counters.sends += sends
        counters.bytes_sent += bytes_sent
        counters.deliveries += deliveries
        if sends:
            self._slow_consumers.note_pass(now, bytes_each=bytes_sent // sends, clients=len(clients))
            counters.histograms[WRITE_SECONDS].record((_monotonic() - now) / sends, sends)
        return self._end_pass(channel, index)

    def _write_each(self, descriptors: list[int], view: memoryview) -> tuple[int, int, OSError | None]:
        """Writes the same to each; returns to how many it went whole, and what of it the next one took, or its error.

        Nothing but the write is done for each client: what is done around it is done once for all of them.
        """
        write, wanted = self._write, len(view)
        places = iter(descriptors)
        sent = wanted
        failure = None
        try:
            for descriptor in places:
                sent = write(descriptor, view)
                if sent != wanted:
                    break
        except BlockingIOError:
            sent = 0
        except OSError as error:
            sent, failure = 0, error
        is_whole = failure is None and sent == wanted
        return len(descriptors) - operator.length_hint(places) - (not is_whole), sent, failure

    def _note_view(self, channel: WorkerChannel, offset: int, updates: int, sends: int) -> None:
        """So many clients were sent the same: once per pass as a rule, so the cost is not per client."""
        if sends:
            histograms = self._stats.feeds[channel.feed].histograms
            histograms[UPDATES_PER_MESSAGE].record(updates, sends)
            histograms[LATENCY_SECONDS].record(channel.age_of(offset, _monotonic()), sends)

    @staticmethod
    def _end_pass(channel: WorkerChannel, index: int) -> bool:
        if index < len(channel.live):
            channel.flush_index = index
            return False
        is_complete = not channel.rescan
        channel.flush_index = 0
        channel.rescan = False
        return is_complete

    def _block(self, channel: WorkerChannel, current: client.Client, offset: int, now: float) -> None:
        """The socket is full, it has taken all before `offset`: out of the pass, until it takes bytes again."""
        current.blocked_offset = current.offset
        channel.remove_live(current)
        current.offset, current.sent_at = offset, now
        channel.away.add(current)
        self._wait(current)

    def _wait(self, current: client.Client) -> None:
        if current.begin_waiting(_monotonic()):
            self._poller.watch_write(current, True)

    def writable(self, current: client.Client) -> None:
        """The socket takes bytes again; they are sent in a turn's time for sending, with everybody else's."""
        if current.waiting:
            current.waiting = False
            if self._slow_consumers.withdraw(current):
                self._sending.append(current)  # it could not be read before it is sent what is sealed (TLS)
            else:
                self._queue(current)

    def send_more(self, current: client.Client) -> int:
        """Sends a client that is in a snapshot or behind its share of what it is owed, and finds it its next place.

        Returns how many bytes it took.
        """
        try:
            sent, is_full = self._send_share(current)
        except BlockingIOError:
            self._wait(current)
            return 0
        except OSError as error:
            self._lost(current, error)
            return 0
        if sent and current.channel is not None:
            current.sent_at = _monotonic()
            counters = self._stats.feeds[current.channel.feed]
            counters.bytes_sent += sent
            counters.late_sends += current.state is CursorState.FOLLOWING
        if is_full:
            self._wait(current)
        elif current.watching_write:
            self._poller.watch_write(current, False)
        self._advance(current)
        return sent

    def _send_share(self, current: client.Client) -> tuple[int, bool]:
        """Bytes sent, and whether the socket took less than it was offered."""
        limit = self._policy.send_bytes
        if current.tail:
            count = len(current.tail)
            sent = self._write(current.fd, current.tail)
            current.tail = current.tail[sent:] or None
        elif current.state is CursorState.SNAPSHOT and current.snapshot is not None:
            count = min(current.snapshot.length - current.position, self._policy.snapshot_send_bytes)
            sent = self._send_file(current.fd, current.snapshot.descriptor, current.position, count)
            current.position += sent
        elif current.block is not None:
            count = min(current.block.length - current.position, limit)
            sent = self._send_file(current.fd, current.block.descriptor, current.position, count)
            current.position += sent
        elif current.state is CursorState.FOLLOWING and current.channel is not None:
            log = current.channel.log
            if current.offset >= log.end:
                return 0, False
            descriptor, position, count = log.file_range(current.offset)
            if current.greeting is not None:
                limit = min(limit, current.greet_offset - current.offset)
            count = min(count, limit)
            sent = self._send_file(current.fd, descriptor, position, count)
            current.offset += sent
        else:
            return 0, False
        return sent, sent < count

    def _advance(self, current: client.Client) -> None:
        channel = current.channel
        if channel is None:
            return
        if current.state is CursorState.SNAPSHOT and current.snapshot is not None:
            if current.position == current.snapshot.length:
                self._finish_snapshot(channel, current)
            else:
                self._queue(current)
        elif current.state is CursorState.CATCHING_UP:
            self.catch_up_on(channel, current)
        elif current.state is CursorState.FOLLOWING and current.index < 0:
            self._go_on(channel, current)

    def _queue(self, current: client.Client) -> None:
        """It can be sent more at once, unless its socket is full: then the poller says when."""
        if current.waiting:
            return
        if self._is_slow_consumer(current):
            if current.watching_write:  # it may wait for its turn, and would be reported again and again
                self._poller.watch_write(current, False)
            self._slow_consumers.add(current)
        else:
            self._sending.append(current)

    def _is_slow_consumer(self, current: client.Client) -> bool:
        if current.state is CursorState.FOLLOWING and current.channel is not None and current.greeting is None:
            return current.channel.log.end - current.offset > self._policy.slow_consumer_bytes
        return current.state is CursorState.CATCHING_UP

    def _finish_snapshot(self, channel: WorkerChannel, current: client.Client) -> None:
        current.become_following()
        self.snapshots.sent(current)
        channel.close_unread_snapshots()
        counters = self._stats.feeds[channel.feed]
        counters.snapshots_sent += 1
        counters.histograms[SNAPSHOT_SECONDS].record(_monotonic() - current.snapshot_at)
        current.blocked_offset = current.offset
        if current.offset < channel.trim_offset:
            self.fall_behind(channel, current)
        else:
            self._go_on(channel, current)

    def _go_on(self, channel: WorkerChannel, current: client.Client) -> None:
        """A client of the log that is not in the pass: it goes on, is told its status, or joins the pass."""
        if current.greeting is not None and current.offset == current.greet_offset and not current.tail:
            current.tail, current.greeting = current.greeting, None
            current.told_offset, current.told_status = current.offset, current.greeting_status
            if not current.waiting:  # a few bytes: another turn for them would cost more
                self.send_more(current)
                return
        if current.tail or current.offset < channel.log.end or current.greeting is not None:
            self._queue(current)
        else:
            self._count_behind(channel, current)
            current.held_up_seconds = 0.0
            channel.add_live(current)

    def _count_behind(self, channel: WorkerChannel, current: client.Client) -> None:
        log = channel.log
        begun = max(current.blocked_offset, log.start)
        self._stats.feeds[channel.feed].deliveries += log.sequence_at(current.offset) - log.sequence_at(begun)

    def fall_behind(self, channel: WorkerChannel, current: client.Client) -> None:
        """The log will not hold the client's offset any longer: it is caught up by keys."""
        if current.index >= 0:
            channel.remove_live(current)
        channel.away.add(current)
        self._catch_up.begin(channel, current, owed_bytes=self._owed(current.fd))
        self.catch_up_on(channel, current)

    def catch_up_on(self, channel: WorkerChannel, current: client.Client) -> None:
        """A client that is catching up has something to send, or is at the end of something."""
        while True:
            if current.block is not None and current.position == current.block.length:
                self._catch_up.finish(channel, current)
            if current.state is CursorState.FOLLOWING:
                self._go_on(channel, current)
                return
            if current.tail or (current.block is not None and current.position < current.block.length):
                self._queue(current)
                return
            if not self._catch_up.find_block(channel, current):
                return

    def cannot_catch_up(self, channel: WorkerChannel, current: client.Client) -> None:
        """There are no blocks for it: a new snapshot replaces what it holds, or it must come again."""
        if not formats.replaces_by_snapshot(channel.wire_format):
            self._give_up(current)
            return
        current.become_held()
        channel.away.discard(current)
        self.hold(current, channel)
