"""Messages between hub and worker: msgpack datagrams over a socketpair, with descriptors beside them.

Neither end ever blocks on the other. What can wait is coalesced by its sender (ends of logs, counters); what must
arrive in order is queued here, and a queue that grows past its limit means that the other end is gone or stuck.
"""

import array
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import msgpack

MAX_DATAGRAM_BYTES = 160 * 1024
"""Below the default socket buffer (208 KiB), so that an empty buffer takes any one message."""
MAX_DESCRIPTORS = 4
MAX_QUEUED = 20_000
"""A new worker is told of every segment of every channel at once: some hundreds. More than this is a stuck peer."""
_RECEIVE_BATCH = 256


class LinkBroken(Exception):
    """The other end is gone, or takes nothing any more."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that keep message boundaries."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (first, second):
        end.setblocking(False)
    return first, second


class Link:
    """One end. Call `receive` when the socket is readable, `flush` when it is writable and `wants_write` is set."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop."""
        return self.socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether messages wait for the socket to become writable."""
        return bool(self._queue)

    def send(self, message: Sequence[object], *descriptors: int) -> None:
        """Sends a message, or queues it behind those that wait; descriptors are duplicated, the caller keeps its own.

        Raises:
            LinkBroken: the other end is gone, or the queue is full.
        """
        data = msgpack.packb(message)
        if len(data) > MAX_DATAGRAM_BYTES or len(descriptors) > MAX_DESCRIPTORS:
            raise ValueError(f"message {message[0]!r} of {len(data)} bytes with {len(descriptors)} descriptors")
        if not self._queue and self._send(data, descriptors):
            return
        if len(self._queue) >= MAX_QUEUED:
            raise LinkBroken(f"{MAX_QUEUED} messages wait, and none is taken")
        self._queue.append((data, _duplicates(descriptors)))

    def flush(self) -> None:
        """Sends what waits, as far as the socket takes it."""
        while self._queue:
            data, descriptors = self._queue[0]
            if not self._send(data, descriptors):
                return
            self._queue.popleft()
            _close(descriptors)

    def _send(self, data: bytes, descriptors: tuple[int, ...]) -> bool:
        try:
            socket.send_fds(self.socket, [data], list(descriptors))
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkBroken(str(error)) from error
        return True

    def receive(self) -> Iterator[tuple[list[object], list[int]]]:
        """Messages that are there, each with its descriptors, which become the caller's.

        Raises:
            LinkBroken: the other end is gone.
        """
        for _ in range(_RECEIVE_BATCH):
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    MAX_DATAGRAM_BYTES, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError as error:
                raise LinkBroken(str(error)) from error
            if not data:
                raise LinkBroken("closed by the other end")
            descriptors = _descriptors(ancillary)
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                _close(descriptors)
                raise LinkBroken("a message was cut short (out of descriptors?)")
            yield msgpack.unpackb(data, strict_map_key=False), descriptors

    def close(self) -> None:
        """Closes the socket and all descriptors that wait."""
        for _, descriptors in self._queue:
            _close(descriptors)
        self._queue.clear()
        self.socket.close()


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _duplicates(descriptors: Iterable[int]) -> tuple[int, ...]:
    duplicates: list[int] = []
    try:
        for descriptor in descriptors:
            duplicates.append(os.dup(descriptor))
    except OSError as error:
        _close(duplicates)
        raise LinkBroken(f"cannot keep descriptors for a message that waits: {error}") from error
    return tuple(duplicates)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    received = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    return list(received)
