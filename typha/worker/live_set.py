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

    __slots__ = ("clients", "descriptors", "offsets", "sent_at")

    def __init__(self) -> None:
        self.clients: list[client.Client] = []
        self.descriptors: list[int] = []
        self.offsets: list[int] = []
        """Next byte of the log to send to each."""
        self.sent_at: list[float] = []
        """When each was last sent something, in monotonic seconds."""

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

    def remove(self, reader: "client.Client") -> int | None:
        """Takes a client out. Returns the place that the last client moves to, None if it was the last."""
        index, offset, sent_at = reader.index, reader.offset, reader.sent_at
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

    def note_sent(self, index: int, count: int, offset: int, now: float) -> None:
        """`count` clients from `index` on have been sent everything before `offset`.

        One number and one time are shared by all of them, so nothing is allocated and they stay in the cache.
        """
        self.offsets[index : index + count] = [offset] * count
        self.sent_at[index : index + count] = [now] * count
