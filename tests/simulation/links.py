"""The socketpair between hub and worker, in memory: ordered datagrams with descriptors, and little room."""

import array
import errno
import os
import socket
from collections import deque
from typing import Any, NamedTuple

from tests.simulation import process


class _Datagram(NamedTuple):
    sent_at: float
    data: bytes
    descriptors: tuple[int, ...]


class Way:
    """One direction."""

    def __init__(self, room_datagrams: int) -> None:
        self.room_datagrams = room_datagrams
        self.queue: deque[_Datagram] = deque()
        self.is_closed_by_sender = False
        self.is_closed_by_receiver = False

    def drop(self) -> None:
        """Discard the queued datagrams, and close their descriptors."""
        while self.queue:
            for descriptor in self.queue.popleft().descriptors:
                os.close(descriptor)


class End(socket.socket):
    """One end. Implements the methods of a socket that `typha.ipc.link.Link` uses."""

    def __init__(self, owner: process.Process, into: Way, out: Way) -> None:
        self.owner = owner
        self.into = into
        self.out = out
        self.other: End | None = None
        self._number = owner.open(self)
        self._closed = False

    def fileno(self) -> int:
        """The descriptor in the loop of its process."""
        return self._number

    def is_readable(self) -> bool:
        """Whether a datagram has arrived, or none ever will."""
        if self.into.queue:
            return self.into.queue[0].sent_at <= self.owner.world.time
        return self.into.is_closed_by_sender

    def is_writable(self) -> bool:
        """Whether there is room for a datagram, or the receiver is gone."""
        return self.out.is_closed_by_receiver or len(self.out.queue) * 2 <= self.out.room_datagrams

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        """Send a datagram with its descriptors, whole or not at all."""
        if self._number < 0 or not self.owner.is_alive:
            raise OSError(errno.EBADF, "closed")
        if self.out.is_closed_by_receiver:
            raise BrokenPipeError(errno.EPIPE, "peer is closed")
        if len(self.out.queue) >= self.out.room_datagrams:
            raise BlockingIOError(errno.EAGAIN, "no room")
        descriptors = tuple(os.dup(number) for _, _, numbers in ancdata for number in numbers)
        data = b"".join(bytes(buffer) for buffer in buffers)
        now = self.owner.world.time
        self.out.queue.append(_Datagram(now, data, descriptors))
        if self.other is not None:
            self.owner.world.at(now, self.other.owner.wake)
        return len(data)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        """Look at the next datagram. The caller owns duplicates of its descriptors."""
        assert flags & socket.MSG_PEEK
        datagram = self._next()
        ancillary = []
        if datagram is not None and datagram.descriptors:
            numbers = array.array("i", [os.dup(descriptor) for descriptor in datagram.descriptors])
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes()))
        return b"" if datagram is None else datagram.data[:bufsize], ancillary, 0, None

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> tuple[int, list[Any], int, Any]:
        """Receive the next datagram, and drop its descriptors."""
        datagram = self._next()
        if datagram is None:
            return 0, [], 0, None
        self.into.queue.popleft()
        if self.other is not None:
            self.other.owner.wake()
        for descriptor in datagram.descriptors:
            os.close(descriptor)
        buffers[0][: len(datagram.data)] = datagram.data
        return len(datagram.data), [], 0, None

    def _next(self) -> _Datagram | None:
        """The next datagram; None if there will not be one."""
        if self._number < 0 or not self.owner.is_alive:
            raise OSError(errno.EBADF, "closed")
        if not self.is_readable():
            raise BlockingIOError(errno.EAGAIN, "no datagram")
        return self.into.queue[0] if self.into.queue else None

    def setblocking(self, flag: bool) -> None:
        """Ignored: it never blocks."""

    def close(self) -> None:
        """Close this end. The other end becomes readable."""
        if self._number < 0:
            return
        self._number = -1
        self._closed = True
        self.out.is_closed_by_sender = True
        self.into.is_closed_by_receiver = True
        self.into.drop()
        if self.other is not None:
            self.other.owner.wake()


def pair(ours: process.Process, theirs: process.Process, *, room_datagrams: int) -> tuple[End, End]:
    """Create two connected ends."""
    there, back = Way(room_datagrams), Way(room_datagrams)
    first, second = End(ours, back, there), End(theirs, there, back)
    first.other, second.other = second, first
    return first, second
