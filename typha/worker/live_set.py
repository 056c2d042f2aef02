"""The clients at the end of a log, laid out for the pass that sends them what is new.

A pass must touch little memory for each client: between two passes the kernel's own work has driven all of it out of
the caches. So what a pass reads and writes is not in the clients but here, in lists of which the same place belongs to
one client.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typha.worker import client


class LiveSet:
    """Clients in no order. While one is here, its `index` is its place, and its `offset` and `sent_at` stand here."""

    __slots__ = ("clients", "descriptors", "offsets", "sent_at")

    def __init__(self) -> None:
        self.clients: list[client.Client] = []
        self.descriptors: list[int] = []
        self.offsets: list[int] = []
        """Next byte of the log to send to each."""
        self.sent_at: list[float] = []
        """When each was last sent something."""

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
        """Takes a client out; returns the place that the last one takes for it, None if it was the last."""
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
