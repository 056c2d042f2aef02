"""Slow clients in a worker: who has fallen out of the log, which blocks they wait for, and what they were told.

A client's place in its catch-up is its cursor's; here is what its worker must remember beside that. One block of a
start point serves everybody who stands there, so clients that fell behind together read the same few files. The hub is
asked for a block once, however many wait for it, and a block goes when nobody reads it.

Blocks are few, and slow readers in many places would keep all others waiting. So while somebody waits for room, blocks
that have been read for long are left: each reader takes the rest of its frame along, which readers share, and asks for
the block behind it in its turn. Nothing is sent twice for it, and what is read next is newer.
"""

import os
from collections.abc import Callable, Iterable

from cache.state import cursor
from protocol import formats, messages
from typha import clock
from typha.worker import client, policy
from typha.worker.channel import WorkerChannel
from typha.worker.stats import WorkerStats

_monotonic = clock.monotonic

Key = tuple[WorkerChannel, int]
"""A channel and a start point."""


class CatchUp:
    """All clients of one worker that are CATCHING_UP; `Delivery` sends them what this gives them to read."""

    def __init__(
        self,
        limits: policy.Policy,
        stats: WorkerStats,
        tell: Callable[[list[object]], None],
        owed: Callable[[int], int],
    ) -> None:
        """`owed` is the transport's."""
        self._limits = limits
        self._owed = owed
        self._blocks_max = limits.catch_up_blocks
        self._stats = stats
        self._tell = tell
        self._blocks: dict[Key, cursor.BlockFile] = {}
        """The newest of each start point."""
        self._old_blocks: list[cursor.BlockFile] = []
        """Replaced, and still read by somebody."""
        self._readers: dict[cursor.BlockFile, dict[client.Client, float]] = {}
        """Who has begun a block and not ended it, and when; some may have left."""
        self._rests: dict[client.Client, bytes] = {}
        """Who has left a block inside a frame, and the bytes of it that it shares with others."""
        self._waiting: dict[Key, dict[client.Client, None]] = {}
        self._asked: set[Key] = set()

    def __repr__(self) -> str:
        return f"<CatchUp blocks={self._blocks_held} asked={len(self._asked)} waiting={len(self._waiting)}>"

    @property
    def _blocks_held(self) -> int:
        return len(self._blocks) + len(self._old_blocks)

    def begin(self, channel: WorkerChannel, current: client.Client, *, owed_bytes: int) -> None:
        """The log goes from under the client's feet; it is owed what `become_catching_up` says, and a word on it."""
        current.behind_since = _monotonic() - channel.age_of(current.offset, _monotonic())
        current.become_catching_up(channel.log, owed_bytes=owed_bytes)
        if current.greeting is not None:
            # It has not been told that what it has is the present, and must not be before it has what it came for.
            current.need(current.greet_sequence)
            current.greeting = None
        elif current.told_status is not None:
            current.told_status = channel.status_told_at(current.offset, current.told_offset, current.told_status)
        if formats.replaces_by_snapshot(channel.wire_format):
            current.owe(channel.status_frame(current.sequence, messages.SyncStatus.CATCHING_UP))
        self._stats.catch_ups += 1

    def find_block(self, channel: WorkerChannel, current: client.Client) -> bool:
        """Gives the client the next block to read if it is there; it waits otherwise, and the hub is asked."""
        key = (channel, current.sequence)
        block = self._blocks.get(key)
        if block is not None and _is_of_use(block, channel, current):
            self._begin_reading(current, block)
            return True
        self._waiting.setdefault(key, {})[current] = None
        self._ask(key)
        return False

    def _begin_reading(self, current: client.Client, block: cursor.BlockFile) -> None:
        current.become_reading(block)
        self._readers.setdefault(block, {})[current] = _monotonic()

    def _ask(self, key: Key) -> None:
        """Asks the hub, once, if there is room for another block."""
        if key in self._asked:
            return
        if self._blocks_held + len(self._asked) >= self._blocks_max:
            self._close_unread()
            if key in self._asked or self._blocks_held + len(self._asked) >= self._blocks_max:
                return
        self._asked.add(key)
        channel, from_sequence = key
        needed_sequence = max(one.needed_sequence for one in self._waiting[key])
        self._tell(["catch-up", channel.number, from_sequence, needed_sequence])

    def arrived(self, channel: WorkerChannel, block: cursor.BlockFile) -> list[client.Client]:
        """The hub has made a block; who has waited for it, and can be sent it now."""
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
                self._begin_reading(one, block)
                served.append(one)
            else:
                left[one] = None  # it came after the hub was asked, and needs a newer cut
        if left:
            self._waiting[key] = left
            self._ask(key)
        self._close_unread()
        return served

    def refused(self, channel: WorkerChannel, from_sequence: int) -> list[client.Client]:
        """The hub makes no block of this start point; who has waited for one."""
        key = (channel, from_sequence)
        self._asked.discard(key)
        found = list(_still_there(self._waiting.pop(key, {}), key))
        self._ask_more()
        return found

    def finish(self, channel: WorkerChannel, current: client.Client) -> None:
        """The client's block is sent whole: it follows the log again, with a status if that is news, or reads on."""
        block = current.block
        if block is None:
            return
        self._stats.feeds[channel.feed].deliveries += block.updates
        self._readers.get(block, {}).pop(current, None)
        if block.is_final and block.log_offset >= channel.trim_offset:
            current.become_following()
            current.blocked_offset = current.offset
            is_native = formats.replaces_by_snapshot(channel.wire_format)
            if is_native or current.told_status is not block.status:
                current.owe(channel.status_frame(block.cut_sequence, block.status))
            current.told_offset, current.told_status = current.offset, block.status
        else:
            current.become_waiting()
        if not block.readers:
            self._close_unread()

    def tidy(self) -> None:
        """Lets go of what those who have left were the last to need; call it now and then."""
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
        """While somebody waits for room, the blocks that have been read for long are left: those of fewest first."""
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

    def _leave(self, block: cursor.BlockFile, readers: Iterable[client.Client]) -> int:
        """All readers leave the block where their frames end; how many bytes are kept for that."""
        frames: dict[tuple[int, int], bytes] = {}
        for current in readers:
            begin = block.boundary_before(current.position)
            end, sequence, updates = block.boundary_at(current.position + self._owed(current.fd))
            if current.channel is not None:
                self._stats.feeds[current.channel.feed].deliveries += updates
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

    def _close(self, block: cursor.BlockFile) -> None:
        self._readers.pop(block, None)
        os.close(block.descriptor)

    def _ask_more(self) -> None:
        """There is room again, perhaps: those who could not be asked for come next, in order of arrival."""
        if len(self._waiting) <= len(self._asked):
            return
        for key in list(self._waiting):
            if self._blocks_held + len(self._asked) >= self._blocks_max:
                return
            self._ask(key)

    def lowest_offset(self, channel: WorkerChannel) -> int:
        """The lowest offset of the log to which a block leads that somebody reads."""
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


def _is_of_use(block: cursor.BlockFile, channel: WorkerChannel, current: client.Client) -> bool:
    """Whether it takes the client no key back, and leads to what is still there."""
    is_new = block.cut_sequence >= current.needed_sequence
    return is_new and (not block.is_final or block.log_offset >= channel.trim_offset)


def _still_there(waiting: Iterable[client.Client], key: Key) -> Iterable[client.Client]:
    """Those who have nothing else to send; who has (a ping that TLS has sealed) asks again behind it."""
    return (one for one in waiting if one.awaits_block() and one.sequence == key[1])
