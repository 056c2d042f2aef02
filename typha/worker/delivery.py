"""Sending: the pass over the clients at the end of a log, and what every other client is sent.

The hot path of the service. A pass writes the same view of shared memory to every client that has been sent everything
before it. A client whose socket is full leaves the pass, and takes what has accumulated when its socket takes bytes
again. Nothing is allocated, logged or observed for a single delivery.

A client outside the pass reads one thing after another: a snapshot, catch-up blocks, the log, and small frames for it
alone. `serve` sends a share of what it reads now, and `_advance` decides what it reads next.
"""

import bisect
import operator
from collections import deque

from cache.state import files
from cache.state.cursor import CursorState
from protocol import formats, subscriptions
from typha import clock
from typha.observability import buckets
from typha.worker import (
    admission,
    catchup,
    client,
    connections,
    policy,
    poller,
    protocol_adapters,
    slow_consumers,
    transport,
)
from typha.worker.channel import WorkerChannel
from typha.worker.stats import (
    LATENCY_SECONDS,
    SNAPSHOT_SECONDS,
    UPDATES_PER_MESSAGE,
    WAIT_SECONDS,
    WRITE_SECONDS,
    FeedStats,
    WorkerStats,
)

_monotonic = clock.monotonic
_CLOCK_EVERY = 16
"""Clients that are written to between two looks at the clock: some 80 us."""
_PIECES_AT_ONCE = 64
"""Pieces of a snapshot that a client is sent in its turn: some 300 us, as long as 2 MB in one piece."""
_TIMED_EVERY = 64
"""Writes of a pass for which the time of one stands: noting the time of each would cost a tenth of a write."""
_bucket = bisect.bisect_left
_PROPAGATION_BOUNDS, _WRITE_BOUNDS = buckets.PROPAGATION_BOUNDS, buckets.WRITE_BOUNDS


class Delivery:
    """Moves cursors forward."""

    def __init__(
        self,
        client_poller: poller.AnyPoller[client.Client],
        bytes_through: transport.Transport,
        limits: policy.Policy,
        stats: WorkerStats,
        worker_catch_up: catchup.CatchUp,
        worker_connections: connections.Connections,
    ) -> None:
        self._poller = client_poller
        self._write = bytes_through.write
        self._send_file = bytes_through.send_file
        self._owed = bytes_through.owed
        self._policy = limits
        self._stats = stats
        self._catch_up = worker_catch_up
        self._connections = worker_connections
        self._dirty: dict[WorkerChannel, None] = {}
        """Channels whose live set has not been sent everything."""
        self._sending: deque[client.Client] = deque()
        self._slow_consumers = slow_consumers.SlowConsumers(limits)
        self.slots = admission.SnapshotSlots(limits, client_poller, bytes_through)

    @property
    def has_work(self) -> bool:
        """Whether a pass is unfinished, or a client can be sent more at once; slow consumers left out."""
        return bool(self._dirty or self._sending) or self.slots.has_work

    @property
    def is_passing(self) -> bool:
        """Whether a client at the end of a log has yet to be sent what is new."""
        return bool(self._dirty)

    @property
    def due_at(self) -> float:
        """When `run` is due without an event: for a slow consumer, or to free a slot. Infinity if never."""
        due = self._slow_consumers.due_at
        wait_seconds = self.slots.wait_seconds
        return due if wait_seconds is None else min(due, _monotonic() + wait_seconds)

    def channel_published(self, channel: WorkerChannel) -> None:
        """The channel's log has grown."""
        self._dirty[channel] = None
        if channel.held and channel.subscription is not None:
            self.slots.wanted(channel)
        # Clients that an unfinished pass has been to were given an older end: the pass goes round once more.
        channel.rescan = channel.rescan or channel.flush_index > 0

    def snapshot_arrived(self, channel: WorkerChannel) -> None:
        """Clients that waited for a snapshot get this one, each in its turn, unless they can go on without."""
        for current in channel.with_positions():
            if current in channel.held and self._resume(channel, current):
                del channel.held[current]
        self.slots.wanted(channel)

    def welcome(
        self, newcomer: client.Client, channel: WorkerChannel, resumption: protocol_adapters.Resumption | None
    ) -> None:
        """A client asks for the channel. It goes on where it was, or waits for a snapshot."""
        if resumption is not None:
            channel.expect(newcomer, resumption)
            if self._resume(channel, newcomer):
                return
        self.hold(newcomer, channel)

    def hold(self, current: client.Client, channel: WorkerChannel) -> None:
        """The client waits for its turn, and for a snapshot that can be served."""
        channel.held[current] = None
        self.slots.wanted(channel)

    def run(self, deadline: float) -> None:
        """Works until nothing is left or the deadline (monotonic seconds) has passed.

        While both are busy, the ends of logs get half of the time and snapshots the rest. Slow consumers get their
        share beside it.
        """
        sending = self._sending
        now = _monotonic()
        self.slots.free_slots(now)
        flush_deadline = (now + deadline) / 2 if sending or self.slots.has_work else deadline
        for channel in list(self._dirty):
            if self._flush(channel, flush_deadline):
                del self._dirty[channel]
            if _monotonic() > flush_deadline:
                break
        self._send_to_slow_consumers()
        while True:
            while (admitted := self.slots.admit()) is not None:
                self._begin_snapshot(admitted)
            if not sending:
                return
            current = sending.popleft()
            if self._poller.clients.get(current.fd) is current and not current.waiting:
                self.serve(current)
            if _monotonic() > deadline:
                return

    def _send_to_slow_consumers(self) -> None:
        now = _monotonic()
        deadline = now + self._policy.slow_consumers_seconds
        while now < deadline and (current := self._slow_consumers.take(now)) is not None:
            if self._poller.clients.get(current.fd) is current and not current.waiting:
                if current.channel is not None:
                    waited_seconds = self._slow_consumers.waited_seconds
                    self._stats.feeds[current.channel.feed].histograms[WAIT_SECONDS].record(waited_seconds)
                sent = self.serve(current)
                begun, now = now, _monotonic()
                self._slow_consumers.spent(begun, now, sent)

    # The pass over a live set.

    def _flush(self, channel: WorkerChannel, deadline: float) -> bool:
        """One pass over the clients at the end of the log; False if it must go on later."""
        if channel.is_by_node:
            return self._flush_runs(channel, deadline)
        return self._flush_to(channel, channel.log.end, deadline)

    def _flush_runs(self, channel: WorkerChannel, deadline: float) -> bool:
        """As `_flush`, where frames are for the clients of some node: those of a run of frames get it, then the next.

        A client that gets nothing of a run is not touched: `LiveSet.floor` moves on for all.
        """
        live, log = channel.live, channel.log
        while live.floor < log.end:
            if not live.clients:
                live.floor, channel.run = log.end, None
                break
            if channel.run is None:
                channel.run = log.run_at(max(live.floor, log.start))
                live.raise_offsets()
            end, tag = channel.run
            if tag != subscriptions.COMMON:
                self._flush_node(channel, end, tag)
            elif not self._flush_to(channel, end, deadline):
                return False
            live.floor, channel.run = end, None
            if _monotonic() > deadline:
                break
        return live.floor >= log.end

    def _flush_node(self, channel: WorkerChannel, end: int, tag: int) -> None:
        """Sends a run of frames to the clients of its node, of which there are few."""
        live, log = channel.live, channel.log
        for current in list(live.by_tag.get(tag, ())):
            offset, now = current.offset, _monotonic()
            if offset >= end:
                continue
            view = log.view(offset)[: end - offset]
            updates = log.updates_at(end) - log.updates_at(offset)
            whole, sent, error, write_seconds = self._write_each([current.fd], view)
            stats = self._stats.feeds[channel.feed]
            stats.histograms[WRITE_SECONDS].record(write_seconds)
            stats.counts.sends += 1
            stats.counts.bytes_sent += len(view) if whole else sent
            if error is not None:
                self._connections.lost(current, error)
            elif whole:
                live.note_sent(current.index, 1, end, now)
                stats.counts.deliveries += updates
                age_seconds = channel.age_of(offset, _monotonic())
                stats.counts.propagation.record(_PROPAGATION_BOUNDS, age_seconds, 1)
            else:
                self._leave_pass(channel, current, offset + sent, now)
            self._note_view(channel, offset, end, updates, 1)

    def _flush_to(self, channel: WorkerChannel, end: int, deadline: float) -> bool:
        """Sends the log up to an offset to the clients at its end; False if that must go on later."""
        live = channel.live
        clients, offsets = live.clients, live.offsets
        log = channel.log
        stats = self._stats.feeds[channel.feed]
        writes, propagation = stats.histograms[WRITE_SECONDS], stats.counts.propagation
        index = channel.flush_index
        ages = propagation.counts_of(buckets.PROPAGATION_BOUNDS)
        ages_seconds = view_received_at = write_seconds = 0.0
        now = _monotonic()
        view_offset, view_end, view, view_updates = -1, -1, memoryview(b""), 0
        sends = bytes_sent = deliveries = view_sends = whole_sends = untimed = 0
        while index < len(clients):
            offset = offsets[index]
            if offset != view_offset:
                if offset >= end:
                    index += 1
                    continue
                self._note_view(channel, view_offset, view_end, view_updates, view_sends)
                sends += view_sends
                bytes_sent += whole_sends * len(view)
                deliveries += whole_sends * view_updates
                view_sends = whole_sends = 0
                view = log.view(offset)[: end - offset]
                view_offset, view_end = offset, offset + len(view)
                view_times = channel.times_of(offset)
                view_received_at = now if view_times is None else view_times.received_at
                view_updates = log.updates_at(view_end) - log.updates_at(offset)
                channel.rescan = channel.rescan or view_end < end
            stop = index + _CLOCK_EVERY
            if offsets[index:stop].count(offset) < _CLOCK_EVERY:
                stop = index + 1
            whole, sent, error, write_seconds = self._write_each(live.descriptors[index:stop], view)
            live.note_sent(index, whole, view_end, now)
            index += whole
            whole_sends += whole
            view_sends += whole
            if error is not None:
                self._connections.lost(clients[index], error)
            elif index < stop:
                view_sends += 1
                bytes_sent += sent
                self._leave_pass(channel, clients[index], offset + sent, now)
            untimed += whole or 1
            if untimed >= _TIMED_EVERY:
                writes.record(write_seconds, untimed)
                untimed = 0
            age_seconds = (sent_at := _monotonic()) - view_received_at
            ages[_bucket(_PROPAGATION_BOUNDS, age_seconds)] += whole
            ages_seconds += age_seconds * whole
            if sent_at > deadline:
                break
        if untimed:
            writes.record(write_seconds, untimed)
        propagation.seconds += max(0.0, ages_seconds)
        self._note_view(channel, view_offset, view_end, view_updates, view_sends)
        sends += view_sends
        bytes_sent += whole_sends * len(view)
        deliveries += whole_sends * view_updates
        stats.counts.sends += sends
        stats.counts.bytes_sent += bytes_sent
        stats.counts.deliveries += deliveries
        if sends:
            self._slow_consumers.note_pass(now, bytes_each=bytes_sent // sends, clients=len(clients))
        return self._end_pass(channel, index)

    def _write_each(self, descriptors: list[int], view: memoryview) -> tuple[int, int, OSError | None, float]:
        """Writes the same bytes to each. Returns how many took all of them, then what the next one took, or its error,
        and what the first write took in seconds.

        Nothing but the write is done for each client; everything else is done once for all of them.
        """
        write, wanted = self._write, len(view)
        places = iter(descriptors)
        sent = wanted
        failure = None
        begun, first_seconds = _monotonic(), -1.0
        try:
            sent = write(next(places), view)
            first_seconds = _monotonic() - begun
            if sent == wanted:
                for descriptor in places:
                    sent = write(descriptor, view)
                    if sent != wanted:
                        break
        except BlockingIOError:
            sent = 0
        except OSError as error:
            sent, failure = 0, error
        is_whole = failure is None and sent == wanted
        whole = len(descriptors) - operator.length_hint(places) - (not is_whole)
        return whole, sent, failure, first_seconds if first_seconds >= 0 else _monotonic() - begun

    def _note_view(self, channel: WorkerChannel, offset: int, end: int, updates: int, sends: int) -> None:
        """This many clients were sent the same bytes. Called about once a pass, so it costs nothing per client."""
        if sends:
            stats = self._stats.feeds[channel.feed]
            stats.histograms[UPDATES_PER_MESSAGE].record(updates, sends)
            # A client that had been sent everything waits for the first publish, and finds the others there.
            stats.counts.late_sends += sends * max(0, channel.publishes_between(offset, end) - 1)
            self._note_lag(channel, stats, offset, sends)
            self._stats.recent_latency.record(channel.age_of(offset, _monotonic()), sends)

    @staticmethod
    def _note_lag(channel: WorkerChannel, stats: FeedStats, offset: int, sends: int) -> None:
        """This many clients that stood at `offset` have been sent what is there. Must be known before the log goes on.

        What they were sent last lags by nothing, so it is the oldest update that counts.
        """
        times = channel.times_of(offset)
        if times is None:
            return
        stats.histograms[LATENCY_SECONDS].record(max(0.0, channel.lag_of(times)), sends)
        if times.written_at:
            stats.counts.propagation_from_write.record(_WRITE_BOUNDS, _monotonic() - times.written_at, sends)

    @staticmethod
    def _end_pass(channel: WorkerChannel, index: int) -> bool:
        if index < len(channel.live):
            channel.flush_index = index
            return False
        is_complete = not channel.rescan
        channel.flush_index = 0
        channel.rescan = False
        return is_complete

    def _leave_pass(self, channel: WorkerChannel, current: client.Client, offset: int, now: float) -> None:
        """The socket is full and has taken everything before `offset`: the client leaves the live set."""
        channel.leave_live(current)
        current.offset, current.sent_at = offset, now
        self._wait(current)

    # All other clients.

    def writable(self, current: client.Client) -> None:
        """The socket takes bytes again; the client is served in the time for sending, like all others."""
        if current.waiting:
            current.waiting = False
            self._queue(current)

    def serve(self, current: client.Client) -> int:
        """Sends a client its share of what it reads, and moves on to what it reads next. Returns the bytes it took."""
        total = 0
        while True:
            offset, begun = current.offset, _monotonic()
            try:
                sent, is_full = self._send_share(current)
            except BlockingIOError:
                self._wait(current)
                return total
            except OSError as error:
                self._connections.lost(current, error)
                return total
            total += sent
            if sent and current.channel is not None:
                self._note_sent(current.channel, current, sent, offset, begun)
            if is_full:
                self._wait(current)
            elif current.watching_write:
                self._poller.watch_write(current, False)
            if not self._advance(current):
                return total

    def _note_sent(self, channel: WorkerChannel, current: client.Client, sent: int, offset: int, begun: float) -> None:
        """A client outside the pass, which stood at `offset`, was sent some bytes of what it reads."""
        current.sent_at = _monotonic()
        stats = self._stats.feeds[channel.feed]
        stats.counts.bytes_sent += sent
        if current.state is not CursorState.FOLLOWING:
            return
        stats.histograms[WRITE_SECONDS].record(current.sent_at - begun)
        stats.counts.late_sends += current.offset > offset
        if channel.is_by_node:
            log = channel.log
            stats.counts.deliveries += log.updates_at(current.offset) - log.updates_at(current.offset - sent)
        # A newcomer on its way to the present takes what others were sent before it came.
        if current.offset > offset and current.greeting is None:
            times = channel.times_of(offset)
            if times is not None:
                stats.counts.propagation.record(_PROPAGATION_BOUNDS, current.sent_at - times.received_at, 1)
                self._note_lag(channel, stats, offset, 1)

    def _send_share(self, current: client.Client) -> tuple[int, bool]:
        """Bytes sent of what the client reads now, and whether the socket took less than it was offered."""
        if current.tail:
            count = len(current.tail)
            sent = self._write(current.fd, current.tail)
        elif current.snapshot is not None and current.pieces is not None:
            return self._send_pieces(current, current.snapshot, current.pieces)
        elif current.snapshot is not None:
            count = min(current.snapshot.length - current.position, self._policy.snapshot_send_bytes)
            sent = self._send_part(current, current.snapshot, current.position, count)
        elif current.block is not None:
            count = min(current.block.length - current.position, self._policy.send_bytes)
            sent = self._send_part(current, current.block, current.position, count)
        elif current.state is CursorState.FOLLOWING and current.channel is not None:
            channel = current.channel
            channel.pass_over(current)
            log, offset = channel.log, current.offset
            if offset >= log.end:
                return 0, False
            descriptor, position, count = log.file_range(offset)
            if channel.is_by_node:
                count = min(count, log.end_of_own(offset, current.tag) - offset)
            count = min(count, self._policy.send_bytes)
            if current.greeting is not None:
                count = min(count, current.greeting.offset - offset)
            if self._send_file is None:
                sent = self._write(current.fd, log.view(offset)[:count])
            else:
                sent = self._send_file(current.fd, descriptor, position, count)
        else:
            return 0, False
        current.note_sent(sent)
        return sent, sent < count

    def _send_pieces(self, current: client.Client, file: files.SnapshotFile, pieces: files.Pieces) -> tuple[int, bool]:
        """As `_send_share`, for a client that reads pieces of a snapshot. BlockingIOError if it takes nothing."""
        total = 0
        for _ in range(_PIECES_AT_ONCE):
            left = self._policy.snapshot_send_bytes - total
            if current.position == pieces.length or left <= 0:
                break
            piece = pieces.at(current.position)
            count = min(piece.length, left)
            try:
                if piece.data is not None:
                    sent = self._write(current.fd, piece.data[:count])
                else:
                    sent = self._send_part(current, file, piece.position, count)
            except BlockingIOError:
                if not total:
                    raise
                return total, True
            current.note_sent(sent)
            total += sent
            if sent < count:
                return total, True
        return total, False

    def _send_part(
        self, current: client.Client, file: files.SnapshotFile | files.BlockFile, position: int, count: int
    ) -> int:
        """Bytes of the file that were sent, of `count` from a position."""
        if self._send_file is None:
            return self._write(current.fd, file.view[position : position + count])
        return self._send_file(current.fd, file.descriptor, position, count)

    def _advance(self, current: client.Client) -> bool:
        """Decides what the client reads next: it is queued, waits for a block, or joins the live set.

        True if a few bytes are to be sent in the same turn, because another turn would cost more than they do.
        """
        channel = current.channel
        while channel is not None:
            if current.state is CursorState.SNAPSHOT and current.snapshot is not None:
                if current.position < current.read_length:
                    self._queue(current)
                    return False
                self._finish_snapshot(channel, current)
            elif current.state is CursorState.CATCHING_UP:
                if current.block is not None and current.position == current.block.length:
                    self._catch_up.finish(channel, current)
                elif current.tail or current.block is not None:
                    self._queue(current)
                    return False
                elif channel.is_by_node:  # a block would have the changes of all nodes
                    self.cannot_catch_up(channel, current)
                    return False
                elif not self._catch_up.find_block(channel, current):
                    return False
            elif current.state is CursorState.FOLLOWING and current.index < 0:
                return self._follow(channel, current)
            else:
                return False
        return False

    def _follow(self, channel: WorkerChannel, current: client.Client) -> bool:
        """A client of the log outside the live set: it reads on, gets its status, or joins. As `_advance`."""
        channel.pass_over(current)
        greeting = current.greeting
        if greeting is not None and current.offset == greeting.offset and not current.tail:
            current.owe(greeting.frame)
            current.told, current.greeting = greeting, None
            if not current.waiting:
                return True
        if current.tail or current.offset < channel.log.end or current.greeting is not None:
            self._queue(current)
            return False
        log = channel.log
        begun = max(current.blocked_offset, log.start)
        if not channel.is_by_node:  # else each send has been counted
            counts = self._stats.feeds[channel.feed].counts
            counts.deliveries += log.updates_at(current.offset) - log.updates_at(begun)
        current.held_up_seconds = 0.0
        channel.add_live(current)
        return False

    def _queue(self, current: client.Client) -> None:
        """The client can be sent more at once, unless its socket is full: then the poller says when."""
        if current.waiting:
            return
        if self._is_slow_consumer(current):
            if current.watching_write:  # it may wait for its turn, and epoll would report it over and over
                self._poller.watch_write(current, False)
            self._slow_consumers.add(current)
        else:
            self._sending.append(current)

    def _is_slow_consumer(self, current: client.Client) -> bool:
        if current.state is CursorState.FOLLOWING and current.channel is not None and current.greeting is None:
            return current.channel.log.end - current.offset > self._policy.slow_consumer_bytes
        return current.state is CursorState.CATCHING_UP

    def _wait(self, current: client.Client) -> None:
        if current.begin_waiting(_monotonic()):
            self._poller.watch_write(current, True)

    # What changes the thing that a client reads.

    def _begin_snapshot(self, admitted: admission.Admitted) -> None:
        newcomer, channel, snapshot, pieces = admitted
        channel.away.add(newcomer)
        channel.snapshots_begun += 1
        channel.owe_dictionary(newcomer, snapshot.log_offset)
        newcomer.become_snapshot(snapshot, pieces)
        self._stats.feeds[channel.feed].counts.snapshots_in_part += pieces is not None
        newcomer.greeting = channel.greeting(snapshot)
        newcomer.snapshot_at = _monotonic()
        self._sending.append(newcomer)

    def _resume(self, channel: WorkerChannel, current: client.Client) -> bool:
        """Lets a held client go on from its position, if it has one that exists: in the log, or by catch-up blocks.

        A status in the log after the position would make the client take a map of the past for the present.
        """
        present = channel.present()
        sequence = channel.take_position(current) if present is not None else None
        if present is None or sequence is None or sequence > present.sequence:
            return False
        channel.away.add(current)
        log = channel.log  # of a selection, what follows may have been sent in part when the client left
        offset = log.offset_of(sequence) if channel.subscription is None else log.first_offset_of(sequence)
        if offset is not None and offset >= max(channel.trim_offset, channel.last_status_offset()):
            channel.forget_resumption(current)
            channel.owe_dictionary(current, offset)
            current.become_resumed(offset, sequence)
            current.greeting = present
            current.blocked_offset = offset
        else:
            self._catch_up.resume(channel, current, sequence, present)
        self._stats.feeds[channel.feed].counts.resumed += 1
        self._sending.append(current)
        return True

    def _finish_snapshot(self, channel: WorkerChannel, current: client.Client) -> None:
        """The snapshot is sent whole: the client follows the log, or catches up if its place there is gone."""
        current.become_following()
        self.slots.sent(current)
        channel.close_unread_snapshots()
        stats = self._stats.feeds[channel.feed]
        stats.counts.snapshots_sent += 1
        stats.histograms[SNAPSHOT_SECONDS].record(_monotonic() - current.snapshot_at)
        current.blocked_offset = current.offset
        if current.offset < channel.trim_offset:
            self._begin_catch_up(channel, current)

    def _begin_catch_up(self, channel: WorkerChannel, current: client.Client) -> None:
        channel.leave_live(current)
        self._catch_up.begin(channel, current, owed_bytes=self._owed(current.fd))

    def fall_behind(self, channel: WorkerChannel, current: client.Client) -> None:
        """The log will not hold the client's offset any longer: it catches up by blocks."""
        self._begin_catch_up(channel, current)
        self.go_on(current)

    def go_on(self, current: client.Client) -> None:
        """What a client that catches up waited for has arrived."""
        if self._advance(current):
            self.serve(current)

    def cannot_catch_up(self, channel: WorkerChannel, current: client.Client) -> None:
        """There are no blocks for the client: a new snapshot replaces what it holds, or it must connect again."""
        if not formats.replaces_by_snapshot(channel.wire_format):
            self._connections.fell_behind(current)
            return
        current.become_held()
        channel.away.discard(current)
        self.hold(current, channel)
