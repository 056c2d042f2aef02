"""Carries messages between hub and worker: msgpack datagrams over a socketpair, with descriptors beside them.

Neither end ever blocks on the other. Messages that must arrive in order are queued here while the socket is full; a
queue that grows past its limit means that the other end is gone or stuck. `messages` says what travels.

A lack of descriptors or kernel memory breaks no link. What cannot be sent stays in the queue, and what cannot be
received stays in the socket, until the next attempt.
"""

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import msgspec

from cache.state import memfile

Received = TypeVar("Received")

MAX_DATAGRAM_BYTES = 160 * 1024
"""Below the default socket buffer (208 KiB), so that an empty buffer takes any one message."""
MAX_DESCRIPTORS = 4
MAX_QUEUED = 20_000
"""A new worker gets every segment of every channel at once: some hundreds of messages. More is a stuck peer."""
_RECEIVE_BATCH = 256
_RECEIVE_BYTES = 256 * 1024
"""One call of `receive` takes no more messages after this many bytes: decoding them takes some 20 ms at worst."""
_SHORTAGES = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""The kernel lacks something, perhaps for a moment. The first: descriptors in all sockets of the user are as many as
one process may open."""


class LinkBroken(Exception):
    """The other end is gone, or takes nothing any more."""


class Starved(Exception):
    """This process has no numbers for the next message's descriptors. It stays in the socket."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that keep message boundaries."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (first, second):
        end.setblocking(False)
    return first, second


class Sender(Protocol):
    """Takes messages for the other end."""

    def send(self, message: object, /) -> None:
        """Sends, or queues; see `Link.send`."""
        ...


class Link(Generic[Received]):
    """One end. Call `receive` when the socket is readable, and `flush` when it is writable.

    Args:
        end: this process's end of `pair`; `close` closes it.
        decoder: of the messages that arrive here.
        max_descriptors: beside one message that arrives here; more break the link.
        watch_write: called with True when messages begin to wait for the socket, and with False when none waits any
            more; between the two the event loop is to call `flush`.
    """

    def __init__(
        self,
        end: socket.socket,
        decoder: "msgspec.msgpack.Decoder[Received]",
        watch_write: Callable[[bool], None] = lambda _: None,
        *,
        max_descriptors: int = MAX_DESCRIPTORS,
    ) -> None:
        self.socket = end
        self._decode = decoder.decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._watch_write = watch_write
        self._watching_write = False
        self._max_descriptors = max_descriptors
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._put_back: tuple[Received, list[int]] | None = None
        self._buffer = memoryview(bytearray(MAX_DATAGRAM_BYTES))
        self.received_bytes = 0
        self.shortage: OSError | None = None
        """Why the first message of the queue could not be sent, if the socket has room. Call `flush` now and then."""

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop."""
        return self.socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether messages wait to be sent."""
        return bool(self._queue)

    def send(self, message: object, *descriptors: int) -> None:
        """Sends a message, or queues it after those that wait.

        A queued message holds its descriptors, so the caller must close them with `memfile.close`.

        Raises:
            LinkBroken: the other end is gone, or the queue is full.
        """
        data = self._encode(message)
        if len(data) > MAX_DATAGRAM_BYTES or len(descriptors) > MAX_DESCRIPTORS:
            raise ValueError(f"{type(message).__name__} of {len(data)} bytes with {len(descriptors)} descriptors")
        if not self._queue and self._send(data, descriptors):
            return
        if len(self._queue) >= MAX_QUEUED:
            raise LinkBroken(f"{MAX_QUEUED} messages wait, and none is taken")
        self._queue.append((data, descriptors))
        for descriptor in descriptors:
            memfile.hold(descriptor)
        self._look_at_queue()

    def flush(self) -> None:
        """Sends what waits, as far as the socket takes it.

        Raises:
            LinkBroken: the other end is gone.
        """
        while self._queue:
            data, descriptors = self._queue[0]
            if not self._send(data, descriptors):
                break
            self._queue.popleft()
            _release(descriptors)
        self._look_at_queue()

    def _look_at_queue(self) -> None:
        waits_for_room = bool(self._queue) and self.shortage is None
        if waits_for_room is not self._watching_write:
            self._watching_write = waits_for_room
            self._watch_write(waits_for_room)

    def _send(self, data: bytes, descriptors: tuple[int, ...]) -> bool:
        try:
            socket.send_fds(self.socket, [data], list(descriptors))
        except BlockingIOError:
            self.shortage = None
            return False
        except OSError as error:
            if error.errno not in _SHORTAGES:
                raise LinkBroken(str(error)) from error
            self.shortage = error
            return False
        self.shortage = None
        return True

    def receive(self) -> Iterator[tuple[Received, list[int]]]:
        """The messages that are there, each with its descriptors, which become the caller's.

        Raises:
            LinkBroken: the other end is gone.
            Starved: this process has no numbers for the next message's descriptors; try again later.
            msgspec.DecodeError, UnicodeDecodeError: a message that this end does not know; its descriptors are closed.
        """
        if self._put_back is not None:
            again, self._put_back = self._put_back, None
            yield again
        limit_bytes = self.received_bytes + _RECEIVE_BYTES
        for _ in range(_RECEIVE_BATCH):
            try:
                descriptors = self._next_descriptors()
                size_bytes, _, flags, _ = self.socket.recvmsg_into([self._buffer])
            except BlockingIOError:
                return
            except OSError as error:
                raise LinkBroken(str(error)) from error
            self.received_bytes += size_bytes
            if not size_bytes:
                raise LinkBroken("closed by the other end")
            if flags & socket.MSG_TRUNC or (flags & socket.MSG_CTRUNC and not descriptors):
                _close(descriptors)
                raise LinkBroken("a message with too many bytes, or with unexpected descriptors")
            try:
                message = self._decode(self._buffer[:size_bytes])
            except (msgspec.DecodeError, UnicodeDecodeError):
                _close(descriptors)
                raise
            yield message, descriptors
            if self.received_bytes >= limit_bytes:
                return

    def _next_descriptors(self) -> list[int]:
        """New numbers for the descriptors of the next message, which stays in the socket until there are enough."""
        if not self._max_descriptors:
            return []  # the kernel drops them with the message
        room = socket.CMSG_SPACE(self._max_descriptors * 4)
        _, ancillary, flags, _ = self.socket.recvmsg(1, room, socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC)
        descriptors = _descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            _close(descriptors)
            if len(descriptors) >= self._max_descriptors:
                raise LinkBroken(f"a message with more than {self._max_descriptors} descriptors")
            raise Starved("no descriptors are left for those of a message")
        return descriptors

    def put_back(self, message: Received, descriptors: list[int]) -> None:
        """Makes a message that could not be handled the first of the next call of `receive`."""
        self._put_back = message, descriptors

    def close(self) -> None:
        """Closes the socket and all descriptors that wait."""
        for _, descriptors in self._queue:
            _release(descriptors)
        self._queue.clear()
        if self._put_back is not None:
            _close(self._put_back[1])
            self._put_back = None
        self.socket.close()


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _release(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        memfile.release(descriptor)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    received = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    return list(received)
