"""The clients at the end of a log, laid out for the pass that sends them what is new.

Between two passes the kernel's own work evicts everything from the CPU caches, so a pass must touch little memory for
each client. What it reads and writes is therefore not in the clients but here, in lists where one index is one client.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typha.worker import client


class LiveSet:
    """Clients in no order. While one is here, `index` is its place, and its `offset` and `sent_at` are held here."""

    __slots__ = ("by_tag", "clients", "descriptors", "floor", "offsets", "sent_at")

    def __init__(self) -> None:
        self.clients: list[client.Client] = []
        self.descriptors: list[int] = []
        self.offsets: list[int] = []
        """Next byte of the log to send to each."""
        self.sent_at: list[float] = []
        """When each was last sent something, in monotonic seconds."""
        self.floor = 0
        """Where frames are for the clients of some node: each client has been sent what it gets before this offset, and
        is not touched for anything else. Its own offset may be lower."""
        self.by_tag: dict[int, dict[client.Client, None]] = {}
        """There, the clients by the tag of their node."""

    def __len__(self) -> int:
        return len(self.clients)

    def __iter__(self) -> Iterator["client.Client"]:
        return iter(self.clients)

    def add(self, reader: "client.Client") -> None:
        """Takes a client in."""
        self.clients.append(reader)
        self.descriptors.append(reader.fd)
        self.offsets.append(reader.offset)
        self.sent_at.append(reader.sent_at)
        reader.index = len(self.clients) - 1
        if reader.tag:
            self.by_tag.setdefault(reader.tag, {})[reader] = None

    def remove(self, reader: "client.Client") -> int | None:
        """Takes a client out. Returns the place that the last client moves to, None if it was the last."""
        index, offset, sent_at = reader.index, reader.offset, reader.sent_at
        if reader.tag:
            peers = self.by_tag[reader.tag]
            del peers[reader]
            if not peers:
                del self.by_tag[reader.tag]
        last = self.clients.pop()
        columns = self.descriptors.pop(), self.offsets.pop(), self.sent_at.pop()
        reader.index = -1
        reader.offset, reader.sent_at = offset, sent_at
        if last is reader:
            return None
        self.clients[index] = last
        self.descriptors[index], self.offsets[index], self.sent_at[index] = columns
        last.index = index
        return index

    def offset_at(self, index: int) -> int:
        """Next byte of the log to send to the client at a place."""
        return max(self.offsets[index], self.floor)

    def raise_offsets(self) -> None:
        """Writes the floor to the clients below it, so that a run of clients has one offset."""
        floor = self.floor
        self.offsets[:] = [floor if offset < floor else offset for offset in self.offsets]

    def lowest_offset(self, default: int) -> int:
        """The lowest of these offsets, or a default if there are no clients."""
        return max(self.floor, min(self.offsets, default=default))

    def note_sent(self, index: int, count: int, offset: int, now: float) -> None:
        """`count` clients from `index` on have been sent everything before `offset`.

        One number and one time are shared by all of them, so nothing is allocated and they stay in the cache.
        """
        self.offsets[index : index + count] = [offset] * count
        self.sent_at[index : index + count] = [now] * count
