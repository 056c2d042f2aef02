"""Carries messages between hub and worker: msgpack datagrams over a socketpair, with descriptors beside them.

Neither end ever blocks on the other. Messages that must arrive in order are queued here while the socket is full; a
queue that grows past its limit means that the other end is gone or stuck. `messages` says what travels.
"""

import array
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import msgspec

Received = TypeVar("Received")

MAX_DATAGRAM_BYTES = 160 * 1024
"""Below the default socket buffer (208 KiB), so that an empty buffer takes any one message."""
MAX_DESCRIPTORS = 4
MAX_QUEUED = 20_000
"""A new worker gets every segment of every channel at once: some hundreds of messages. More is a stuck peer."""
_RECEIVE_BATCH = 256


class LinkBroken(Exception):
    """The other end is gone, or takes nothing any more."""


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
        watch_write: called with True when messages begin to wait for the socket, and with False when none waits any
            more; between the two the event loop is to call `flush`.
    """

    def __init__(
        self,
        end: socket.socket,
        decoder: "msgspec.msgpack.Decoder[Received]",
        watch_write: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.socket = end
        self._decode = decoder.decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._watch_write = watch_write
        self._watching_write = False
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop."""
        return self.socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether messages wait for the socket to become writable."""
        return bool(self._queue)

    def send(self, message: object, *descriptors: int) -> None:
        """Sends a message, or queues it after those that wait. Descriptors are duplicated, the caller keeps its own.

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
        self._queue.append((data, _duplicates(descriptors)))
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
            _close(descriptors)
        self._look_at_queue()

    def _look_at_queue(self) -> None:
        if self.wants_write is not self._watching_write:
            self._watching_write = self.wants_write
            self._watch_write(self._watching_write)

    def _send(self, data: bytes, descriptors: tuple[int, ...]) -> bool:
        try:
            socket.send_fds(self.socket, [data], list(descriptors))
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkBroken(str(error)) from error
        return True

    def receive(self) -> Iterator[tuple[Received, list[int]]]:
        """The messages that are there, each with its descriptors, which become the caller's.

        Raises:
            LinkBroken: the other end is gone.
            msgspec.DecodeError, UnicodeDecodeError: a message that this end does not know; its descriptors are closed.
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
            try:
                message = self._decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                _close(descriptors)
                raise
            yield message, descriptors

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
