"""Tests of loadtest.scenarios.real.relay."""

import asyncio

import pytest

from loadtest.scenarios.real import relay


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1000):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_relays_until_it_is_cut() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with relay.Relay("127.0.0.1", port) as between:
        reader, writer = await asyncio.open_connection("127.0.0.1", between.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert between.cut() == 1
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.transport.abort()
        again, writer = await asyncio.open_connection("127.0.0.1", between.port)
        writer.write(b"again")
        assert await again.readexactly(5) == b"again"
        writer.write_eof()
        assert await again.read() == b""
        writer.transport.abort()
    server.close()


async def test_a_target_that_is_down_ends_the_connection(free_port: int) -> None:
    async with relay.Relay("127.0.0.1", free_port) as between:
        reader, writer = await asyncio.open_connection("127.0.0.1", between.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.transport.abort()
