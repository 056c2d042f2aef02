"""Servers that answer as replicas do, or in some other way, and say nothing more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from protocol import messages
from protocol.native import codec, frames

INCARNATION = b"x" * 16


@contextlib.asynccontextmanager
async def answering(*answer: bytes) -> AsyncIterator[str]:
    """A server that says this to everybody, and then nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(answer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def hello(
    *features: str,
    incarnation: bytes = INCARNATION,
    milliseconds: int | None = 2_000,
    upstreams: tuple[bytes, ...] | None = None,
    feed: str = "pods",
) -> bytes:
    """The preface and hello of a replica."""
    answer = messages.ServerHello(
        1, feed, incarnation, frozenset(features), confirmed_milliseconds=milliseconds, upstreams=upstreams
    )
    return frames.PREFACE + frames.pack_frame(codec.encode(answer))
