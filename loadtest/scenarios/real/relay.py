"""A TCP relay in front of an API server. It can cut connections while the API server runs on.

So watches break while their history is intact, and must be resumed. TLS passes through unchanged.
"""

import asyncio
import contextlib
import socket
import struct
from typing import Final, Self

READ_BYTES: Final = 256 * 1024


class Relay:
    """Relays from its own port to another one; an async context manager."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._port = 0
        self._flows = asyncio.Event()
        self._flows.set()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        await self._listen(0)
        return self

    async def _listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", port)

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        self._flows.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> int:
        """Reset all connections; returns their number."""
        count = len(self._writers) // 2
        for writer in list(self._writers):
            _reset(writer)
        return count

    def shut(self) -> None:
        """Reset all connections; new ones are refused until `open`."""
        assert self._server is not None
        self._port = self.port
        self._server.close()
        self.cut()

    async def open(self) -> None:
        """Listen on the same port again."""
        await self._listen(self._port)

    def silence(self) -> None:
        """From now on nothing is passed on, and nothing is ended: as on a network that drops packets.

        Connections are still accepted, as by a host of which only the process is out of reach.
        """
        self._flows.clear()

    def resume(self) -> None:
        """What has waited is passed on."""
        self._flows.set()

    def target(self) -> tuple[str, int] | None:
        """Where a new connection goes; None to reset it."""
        return self._target

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("relayed connection")
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flows.wait()
        assert self._server is not None
        target = self.target() if self._server.is_serving() else None
        if target is None:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*target)
        except OSError:  # nobody listens there
            _reset(writer)
            return
        ends = {writer, far_writer}
        self._writers |= ends
        copies = [
            asyncio.create_task(self._copy(reader, far_writer), name="relay to the API server"),
            asyncio.create_task(self._copy(far_reader, writer), name="relay from the API server"),
        ]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.close()  # buffered data is still sent
            self._writers -= ends
            for copy in copies:
                copy.cancel()
            await asyncio.wait(copies)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        await self._flows.wait()  # the other side does not hear of an end either


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset, and drop buffered data."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
