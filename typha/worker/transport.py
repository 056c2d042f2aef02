"""How bytes get into a client's socket and out of it: plain, or through TLS. A worker has one kind for all clients.

`Delivery` and `Connections` know these operations, and not which kind it is.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol, TypeAlias

_TCP_INFO_BYTES = 136
_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_POSITION = 120
"""Position of tcpi_bytes_acked in struct tcp_info (Linux 4.1)."""
_BYTES_SENT = struct.Struct("=QQ")
_BYTES_SENT_POSITION = 200
"""Position of tcpi_bytes_sent and tcpi_bytes_retrans (Linux 4.19)."""
_TCP_INFO_WINDOW_BYTES = 232
_WINDOW = struct.Struct("=I")
_WINDOW_POSITION = 228
"""Position of tcpi_snd_wnd (Linux 5.4)."""
_SO_MEMINFO = 55
_MEMORY = struct.Struct("=9I")
"""What the kernel tells of a socket's memory (Linux 4.12)."""
_SEND_BUFFER_POSITION = 3
_QUEUED_POSITION = 5
_SIOCOUTQNSD = 0x894B
"""Asks how many bytes are unsent."""
_COUNT = struct.Struct("=i")


class Connection(Protocol):
    """What is needed of a client's non-blocking socket."""

    def fileno(self) -> int:
        """The descriptor."""
        ...

    def recv(self, count: int, /) -> bytes:
        """Bytes that have arrived."""
        ...

    def send(self, data: bytes, flags: int = 0, /) -> int:
        """Sends some of the bytes, from the first; returns how many."""
        ...

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
        """An option's value."""
        ...

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """Sets an option."""
        ...

    def shutdown(self, how: int, /) -> None:
        """Ends one direction, or both."""
        ...

    def close(self) -> None:
        """The descriptor's number is free from here on."""
        ...


SendFile: TypeAlias = Callable[[int, int, int, int], int]
"""Sends some of a file's bytes: descriptor, the file's descriptor, position, and how many at most. Returns how many."""


class Transport(Protocol):
    """Operations that never wait: BlockingIOError means "not now", any other OSError means "never again"."""

    def write(self, descriptor: int, data: bytes | memoryview, /) -> int:
        """Sends some of the bytes, from the first; returns how many."""
        ...

    def write_ahead(self, connection: Connection, data: bytes, /) -> int:
        """The same for bytes that more will follow: without these, the kernel may hold them back for some 200 ms."""
        ...

    @property
    def send_file(self) -> SendFile | None:
        """None if the bytes of files must pass through memory: then they are written from a mapping."""
        ...

    def receive(self, connection: Connection, count: int, /) -> bytes:
        """Bytes that have arrived, about `count` at most; empty at the end of the stream.

        Raises:
            RemoteProtocolError: the peer sends too much that brings none.
        """
        ...

    def owed(self, descriptor: int, /) -> int:
        """Bytes after the last one sent that TLS has sealed: exactly these must be offered next."""
        ...

    def acked_bytes(self, connection: Connection, /) -> int:
        """Bytes that the peer's host has acknowledged since the connection began."""
        ...

    def window_bytes(self, connection: Connection, /) -> int:
        """Bytes that the peer's host last had room for; 0 if that is not known."""
        ...

    def release(self, descriptor: int, /) -> bool:
        """Prepares the connection's close. False if it cannot be closed yet: ask again soon."""
        ...


def kernel_acked_bytes(connection: Connection) -> int:
    """As the kernel reports it."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    acked: int = _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_POSITION)[0]
    return acked


def kernel_sent_bytes(connection: Connection) -> int:
    """Bytes sent since the connection began, without those sent again; from an old kernel, those acknowledged.

    0 for a socket that is not TCP.
    """
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_WINDOW_BYTES)
    except OSError:
        return 0
    if len(info) < _TCP_INFO_WINDOW_BYTES:
        acked: int = _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_POSITION)[0]
        return acked
    sent: int
    again: int
    sent, again = _BYTES_SENT.unpack_from(info, _BYTES_SENT_POSITION)
    return max(0, sent - again)


def kernel_window_bytes(connection: Connection) -> int:
    """As the kernel reports it; 0 from a kernel that is too old."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_WINDOW_BYTES)
    if len(info) < _TCP_INFO_WINDOW_BYTES:
        return 0
    window: int = _WINDOW.unpack_from(info, _WINDOW_POSITION)[0]
    return window


def kernel_room_bytes(connection: Connection) -> int | None:
    """Bytes that the kernel takes before it says that the socket is full, or a few less; None if that is not known.

    It counts the memory of packets, of which some is not data, and it has a limit of its own for unsent bytes.
    """
    try:
        unsent: int
        limit: int
        [unsent] = _COUNT.unpack(fcntl.ioctl(connection.fileno(), _SIOCOUTQNSD, bytes(_COUNT.size)))
        [limit] = _COUNT.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _COUNT.size))
        memory = _MEMORY.unpack(connection.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMORY.size))
    except (OSError, struct.error):  # it is not TCP, or the kernel is old
        return None
    free: int = memory[_SEND_BUFFER_POSITION] - memory[_QUEUED_POSITION]
    free -= free // 16
    return min(free, limit - unsent) if limit > 0 else free


class PlainTransport:
    """The kernel's own calls."""

    write = staticmethod(os.write)
    send_file = staticmethod(os.sendfile)
    acked_bytes = staticmethod(kernel_acked_bytes)
    window_bytes = staticmethod(kernel_window_bytes)

    @staticmethod
    def write_ahead(connection: Connection, data: bytes, /) -> int:
        """Saves a packet, for which the peer would be woken: a tenth of a storm's cost."""
        return connection.send(data, socket.MSG_MORE)

    @staticmethod
    def receive(connection: Connection, count: int, /) -> bytes:
        """Bytes that have come."""
        return connection.recv(count)

    @staticmethod
    def owed(descriptor: int, /) -> int:
        """Nothing is ever half sent."""
        return 0

    @staticmethod
    def release(descriptor: int, /) -> bool:
        """Nothing is in the way."""
        return True
