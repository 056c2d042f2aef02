"""Tells which interfaces of this network namespace appear, change or go."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

_NETLINK_ROUTE = 0
_LINK_GROUP = 1
_NEW_LINK, _DELETED_LINK = 16, 17
_HEADER = struct.Struct("=IHHII")
_INTERFACE_MESSAGE_BYTES = 16
_ATTRIBUTE = struct.Struct("=HH")
_INTERFACE_NAME = 3
_RECEIVE_BYTES = 1 << 16
_MESSAGES_AT_ONCE = 100
"""The rest waits for the loop's next turn, so that a storm of events delays nothing else."""


class LinkEvents:
    """Calls back with the names of interfaces, or with None if the kernel has dropped events."""

    def __init__(self, on_change: Callable[[str | None], None]) -> None:
        self._on_change = on_change
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
        self._socket.bind((0, _LINK_GROUP))
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._receive)

    def close(self) -> None:
        """Ends the calls."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MESSAGES_AT_ONCE):
                try:
                    received = self._socket.recv(_RECEIVE_BYTES)
                except BlockingIOError:
                    raise
                except OSError:  # ENOBUFS: events came faster than they were read.
                    self._on_change(None)
                    return
                for name in names_in(received):
                    self._on_change(name)


def names_in(received: bytes) -> list[str]:
    """The interfaces that a datagram of the kernel speaks of."""
    names = []
    offset = 0
    while offset + _HEADER.size <= len(received):
        length, kind, *_ = _HEADER.unpack_from(received, offset)
        if length < _HEADER.size:
            break
        if kind in (_NEW_LINK, _DELETED_LINK):
            name = _attribute(received[offset + _HEADER.size + _INTERFACE_MESSAGE_BYTES : offset + length])
            if name is not None:
                names.append(name)
        offset += (length + 3) & ~3
    return names


def _attribute(attributes: bytes) -> str | None:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(attributes):
        size, kind = _ATTRIBUTE.unpack_from(attributes, offset)
        if kind == _INTERFACE_NAME:
            return attributes[offset + _ATTRIBUTE.size : offset + size].rstrip(b"\0").decode(errors="replace")
        offset += max((size + 3) & ~3, _ATTRIBUTE.size)
    return None
