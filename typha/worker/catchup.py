"""Catch-up in a worker: clients whose place the log no longer holds, and the blocks that they read.

The place of a client in its catch-up is its cursor's; here is what the worker must remember beside that. One block of a
start point serves all clients that stand there, so clients that fell behind together read the same few files. The hub
is asked for a block once, however many clients wait for it, and a block is closed when no client reads it.

Blocks are few, and slow readers in many places would keep all others waiting. So while a client waits for room, blocks
that have been read for long are left: each reader takes the rest of its frame along, which readers share, and asks for
the next block in its turn. Nothing is sent twice for that, and what is read next is newer.
"""

import os
from collections.abc import Iterable

from cache.state import files, resume
from protocol import formats, messages
from typha import clock
from typha.ipc import link
from typha.ipc import messages as ipc
from typha.observability import buckets
from typha.worker import client, policy, transport
from typha.worker.channel import WorkerChannel
from typha.worker.stats import WorkerStats

_monotonic = clock.monotonic

_NO_FRAME = memoryview(b"")

Key = tuple[WorkerChannel, int]
"""A channel and a start point."""


class CatchUp:
    """All clients of one worker that are CATCHING_UP; `Delivery` sends them the blocks that they get here."""

    def __init__(
        self, limits: policy.Policy, stats: WorkerStats, hub: link.Sender, bytes_through: transport.Transport
    ) -> None:
        self._limits = limits
        self._owed = bytes_through.owed
        self._blocks_max = limits.catch_up_blocks
        self._stats = stats
        self._hub = hub
        self._blocks: dict[Key, files.BlockFile] = {}
        """The newest block of each start point."""
        self._old_blocks: list[files.BlockFile] = []
        """Replaced blocks that clients still read."""
        self._readers: dict[files.BlockFile, dict[client.Client, float]] = {}
        """The clients that have begun a block and not finished it, and when; some may have left."""
        self._rests: dict[client.Client, bytes] = {}
        """The clients that left a block inside a frame, and that frame, which they share."""
        self._waiting: dict[Key, dict[client.Client, None]] = {}
        self._asked: set[Key] = set()

    def __repr__(self) -> str:
        return f"<CatchUp blocks={self._blocks_held} asked={len(self._asked)} waiting={len(self._waiting)}>"

    @property
    def _blocks_held(self) -> int:
        return len(self._blocks) + len(self._old_blocks)

    def begin(self, channel: WorkerChannel, current: client.Client, *, owed_bytes: int) -> None:
        """The log no longer holds this client's position; start catching up, and tell native clients so."""
        current.behind_since = _monotonic() - channel.age_of(current.offset, _monotonic())
        current.become_catching_up(channel.log, owed_bytes=owed_bytes)
        if current.greeting is not None:
            # It must not be told that its map is current before it has everything up to the moment of its arrival.
            current.need(current.greeting.sequence)
            current.greeting = None
        elif current.told is not None:
            current.told = current.told._replace(status=channel.status_told_at(current.offset, current.told))
        if formats.replaces_by_snapshot(channel.wire_format):
            current.owe(channel.status_frame(current.sequence, messages.SyncStatus.CATCHING_UP))
        self._stats.counts.catch_ups += 1

    def resume(
        self, channel: WorkerChannel, current: client.Client, sequence: int, present: client.StatusNotice
    ) -> None:
        """A held client has everything up to a sequence; catch it up to the present at least."""
        current.behind_since = _monotonic()
        start = resume.start_point(sequence, present.sequence)
        channel.owe_dictionary(current, present.offset)
        current.become_returning(start, needed_sequence=present.sequence, offset=present.offset)
        current.owe(channel.status_frame(start, messages.SyncStatus.CATCHING_UP))
        self._stats.counts.catch_ups += 1

    def find_block(self, channel: WorkerChannel, current: client.Client) -> bool:
        """Gives the client its next block. False if there is none yet: then it waits, and the hub is asked."""
        key = (channel, current.sequence)
        block = self._blocks.get(key)
        if block is not None and _is_of_use(block, channel, current):
            self._begin_reading(channel, current, block)
            return True
        self._waiting.setdefault(key, {})[current] = None
        self._ask(key)
        return False

    def _begin_reading(self, channel: WorkerChannel, current: client.Client, block: files.BlockFile) -> None:
        channel.forget_resumption(current)
        current.become_reading(block)
        self._readers.setdefault(block, {})[current] = _monotonic()

    def _ask(self, key: Key) -> None:
        """Asks the hub once, if there is room for another block."""
        if key in self._asked:
            return
        if self._blocks_held + len(self._asked) >= self._blocks_max:
            self._close_unread()
            if key in self._asked or self._blocks_held + len(self._asked) >= self._blocks_max:
                return
        self._asked.add(key)
        channel, from_sequence = key
        needed_sequence = max(one.needed_sequence for one in self._waiting[key])
        self._hub.send(ipc.WantBlock(channel.number, from_sequence, needed_sequence))

    def arrived(self, channel: WorkerChannel, block: files.BlockFile) -> list[client.Client]:
        """The hub has made a block; returns the clients that waited for it and can be sent it now."""
        key = (channel, block.from_sequence)
        self._asked.discard(key)
        replaced = self._blocks.get(key)
        if replaced is not None:
            self._old_blocks.append(replaced)
        self._blocks[key] = block
        served: list[client.Client] = []
        left: dict[client.Client, None] = {}
        for one in _still_there(self._waiting.pop(key, {}), key):
            if _is_of_use(block, channel, one):
                self._begin_reading(channel, one, block)
                served.append(one)
            else:
                left[one] = None  # it began to wait after the hub was asked, and needs a newer cut
        if left:
            self._waiting[key] = left
            self._ask(key)
        self._close_unread()
        return served

    def refused(self, channel: WorkerChannel, from_sequence: int) -> list[client.Client]:
        """The hub makes no block of this start point; returns the clients that waited for one."""
        key = (channel, from_sequence)
        self._asked.discard(key)
        found = list(_still_there(self._waiting.pop(key, {}), key))
        self._ask_more()
        return found

    def finish(self, channel: WorkerChannel, current: client.Client) -> None:
        """The block is sent whole: the client follows the log again, with a status if that is new, or reads on."""
        block = current.block
        if block is None:
            return
        stats = self._stats.feeds[channel.feed].counts
        stats.deliveries += block.updates
        self._readers.get(block, {}).pop(current, None)
        if block.is_final and block.log_offset >= channel.trim_offset:
            propagation_seconds = _monotonic() - current.behind_since
            stats.propagation.record(buckets.PROPAGATION_BOUNDS, propagation_seconds, 1)
            channel.owe_dictionary(current, block.log_offset)
            current.become_following()
            current.blocked_offset = current.offset
            is_native = formats.replaces_by_snapshot(channel.wire_format)
            if is_native or current.told is None or current.told.status is not block.status:
                current.owe(channel.status_frame(block.cut_sequence, block.status))
            current.told = client.StatusNotice(current.offset, block.cut_sequence, block.status, _NO_FRAME)
        else:
            current.become_waiting()
        if not block.readers:
            self._close_unread()

    def tidy(self) -> None:
        """Drops what only clients that have left needed; call it every second or so."""
        for key, waiting in list(self._waiting.items()):
            left = dict.fromkeys(_still_there(waiting, key))
            if left:
                self._waiting[key] = left
            else:
                del self._waiting[key]
        self._close_unread()
        self._rests = {one: rest for one, rest in self._rests.items() if one.tail is not None and one.tail.obj is rest}
        self._make_room()

    def _make_room(self) -> None:
        """While clients wait for room, blocks that are read for long are left: those with the fewest readers first."""
        wanted = len(self._waiting) - len(self._asked)
        if wanted <= 0 or not self._readers:
            return
        rest_bytes = sum({id(rest): len(rest) for rest in self._rests.values()}.values())
        latest = _monotonic() - self._limits.catch_up_patience_seconds
        slow = []
        for block, readers in self._readers.items():
            present = {one: begun for one, begun in readers.items() if one.block is block}
            if present and all(begun <= latest and not one.tail for one, begun in present.items()):
                slow.append((block, present))
        slow.sort(key=lambda pair: (len(pair[1]), min(pair[1].values())))
        for block, present in slow[:wanted]:
            if rest_bytes + block.length > self._limits.catch_up_rest_bytes:
                break
            rest_bytes += self._leave(block, present)
        self._close_unread()

    def _leave(self, block: files.BlockFile, readers: Iterable[client.Client]) -> int:
        """All readers leave the block where their frames end; returns the bytes that are kept for that."""
        frames: dict[tuple[int, int], bytes] = {}
        for current in readers:
            begin = block.boundary_before(current.position)
            end, sequence, updates = block.boundary_at(current.position + self._owed(current.fd))
            if current.channel is not None:
                self._stats.feeds[current.channel.feed].counts.deliveries += updates
            if (begin, end) not in frames:
                frames[begin, end] = os.pread(block.descriptor, end - begin, begin)
            frame = frames[begin, end]
            rest = memoryview(frame)[current.position - begin :]
            current.leave_block(sequence, rest)
            if rest:
                self._rests[current] = frame
        return sum(map(len, frames.values()))

    def _close_unread(self) -> None:
        for key, block in list(self._blocks.items()):
            if not block.readers:
                del self._blocks[key]
                self._close(block)
        for block in self._old_blocks:
            if not block.readers:
                self._close(block)
        self._old_blocks = [block for block in self._old_blocks if block.readers]
        self._ask_more()

    def _close(self, block: files.BlockFile) -> None:
        self._readers.pop(block, None)
        block.close()

    def _ask_more(self) -> None:
        """Asks for the blocks that there was no room for, in order of arrival, as far as there is room now."""
        if len(self._waiting) <= len(self._asked):
            return
        for key in list(self._waiting):
            if self._blocks_held + len(self._asked) >= self._blocks_max:
                return
            self._ask(key)

    def lowest_offset(self, channel: WorkerChannel) -> int:
        """The lowest offset of the log to which a block leads that clients read."""
        blocks = [*(block for key, block in self._blocks.items() if key[0] is channel), *self._old_blocks]
        return min((block.log_offset for block in blocks if block.is_final), default=channel.log.end)

    def drop(self, channel: WorkerChannel) -> None:
        """The channel is closed, and its clients are gone."""
        for key in [key for key in self._waiting if key[0] is channel]:
            del self._waiting[key]
        self._asked = {key for key in self._asked if key[0] is not channel}
        self._close_unread()

    def close(self) -> None:
        """Lets go of all files."""
        for block in [*self._blocks.values(), *self._old_blocks]:
            self._close(block)
        self._blocks.clear()
        self._old_blocks.clear()


def _is_of_use(block: files.BlockFile, channel: WorkerChannel, current: client.Client) -> bool:
    """Whether the block takes no key of the client back, and leads to a place that still exists."""
    is_new = block.cut_sequence >= current.needed_sequence
    return is_new and (not block.is_final or block.log_offset >= channel.trim_offset)


def _still_there(waiting: Iterable[client.Client], key: Key) -> Iterable[client.Client]:
    """The clients that wait for nothing else. One that still owes a sealed ping asks again after it."""
    return (one for one in waiting if one.awaits_block() and one.sequence == key[1])
