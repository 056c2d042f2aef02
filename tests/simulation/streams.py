"""The client's end of simulated connections, as asyncio streams: a replica's clients and questions run unchanged.

The reader is asyncio's own. The writer has the methods that the clients use.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import Any, cast

from tests.simulation import network, process, transports
from tests.simulation import world as worlds

_READ_BYTES = 64 * 1024
_SYN_SECONDS = 127.0
"""The kernel tries to connect for so long."""

Dial = Callable[[process.Process, str], "network.Connection | None"]
"""Connects a process to an address, and returns the connection; None if packets get lost.

It raises OSError if nothing listens there, or there is no way.
"""


class _Transport:
    """The socket of a client in its process: what `asyncio.Transport` is to the clients."""

    def __init__(self, connection: network.Connection, owner: process.Process, *, is_tls: bool) -> None:
        self.connection = connection
        self.owner = owner
        self.reader = asyncio.StreamReader(limit=_READ_BYTES, loop=owner.loop.as_loop)
        self.reader.set_transport(cast("asyncio.Transport", self))
        self._records = transports.RecordReader() if is_tls else None
        self._unsent = bytearray()
        self._is_paused = self._is_over = False
        self._number = owner.open(self)
        owner.loop.add_reader(self._number, self._read)
        owner.loop.add_writer(self._number, self._flush)
        owner.on_exit.append(self._closed_by_kernel)
        connection.on_client_event = owner.wake
        connection.up.on_room = owner.wake

    # A file in the loop of its process.

    def is_readable(self) -> bool:
        """Whether bytes, the end or a reset have arrived."""
        down = self.connection.down
        has_come = bool(down.arrived) or down.is_ended or self.connection.is_reset
        return has_come and not self._is_paused and not self._is_over

    def is_writable(self) -> bool:
        """Whether what has waited can be sent."""
        return bool(self._unsent) and self.connection.up.room > 0

    def _read(self) -> None:
        down = self.connection.down
        if self.connection.is_reset:
            self._is_over = True
            self.reader.set_exception(ConnectionResetError(errno.ECONNRESET, "reset"))
        elif down.arrived:
            data = down.read(_READ_BYTES)
            self.reader.feed_data(data if self._records is None else self._records.receive(data))
        elif down.is_ended:
            self._is_over = True
            self.reader.feed_eof()

    def _flush(self) -> None:
        del self._unsent[: self.connection.up.write(bytes(self._unsent))]

    # A transport.

    def pause_reading(self) -> None:
        """Called by the reader if its buffer is full."""
        self._is_paused = True

    def resume_reading(self) -> None:
        """Called by the reader when there is room again."""
        self._is_paused = False

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return len(self._unsent)

    def abort(self) -> None:
        """Close at once. Unread bytes reset the connection."""
        if self._number in self.owner.files and self.owner.is_alive:
            self.owner.loop.remove_reader(self._number)
            self.owner.loop.remove_writer(self._number)
            del self.owner.files[self._number]
            self.owner.on_exit.remove(self._closed_by_kernel)
            self._close()

    def _closed_by_kernel(self) -> None:
        self._close()

    def _close(self) -> None:
        connection = self.connection
        connection.on_client_event = connection.up.on_room = _ignore
        if not connection.is_reset:
            connection.close_client(is_reset=bool(connection.down.arrived))


class Writer:
    """What `asyncio.StreamWriter` is to the clients."""

    def __init__(self, transport: _Transport) -> None:
        self.transport = transport
        self._is_closing = False

    def write(self, data: bytes) -> None:
        """Send the bytes, now or when there is room."""
        self.transport._unsent += data
        self.transport._flush()

    def is_closing(self) -> bool:
        """Whether it has been closed."""
        return self._is_closing

    def get_extra_info(self, _: str) -> None:
        """Nothing is known."""

    def close(self) -> None:
        """Close after what is left has been sent, which is never much here."""
        self._is_closing = True
        self.transport.abort()


def _ignore() -> None:
    pass


def opener(world: worlds.World, dial: Dial, *, is_tls: bool) -> Callable[..., Any]:
    """What takes the place of `asyncio.open_connection`."""

    async def open_connection(host: str, port: int, **_: object) -> tuple[asyncio.StreamReader, Writer]:
        owner = world.current
        if owner is None:
            raise worlds.Violation("a connection outside of any process")
        connection = dial(owner, f"{host}:{port}")
        if connection is None:
            await asyncio.sleep(_SYN_SECONDS)
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        transport = _Transport(connection, owner, is_tls=is_tls)
        try:
            await asyncio.sleep(2 * connection.up.link.latency_seconds)
        except BaseException:
            transport.abort()
            raise
        return transport.reader, Writer(transport)

    return open_connection
