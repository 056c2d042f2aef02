"""An HTTP proxy that knows CONNECT, and absolute addresses without it. With or without TLS."""

import asyncio
import contextlib
import ssl
import urllib.parse
from collections.abc import AsyncIterator


class Proxy:
    """What the proxy was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[str] = []
        self.authorizations: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        self.requests.append(line)
        self.authorizations += [field.split(": ")[1] for field in fields if field.startswith("Proxy-Authorization")]
        method, target, _ = line.split(" ")
        address = target if method == "CONNECT" else urllib.parse.urlsplit(target).netloc
        host, _, port = address.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            far_writer.write(head)
        both = (
            asyncio.create_task(_copy(reader, far_writer), name="up"),
            asyncio.create_task(_copy(far_reader, writer), name="down"),
        )
        await asyncio.wait(both)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def running(context: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    """Run a proxy."""
    proxy = Proxy()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(proxy.serve(reader, writer), name="proxy"))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
