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


async def test_a_silent_relay_ends_nothing_and_passes_on_what_has_waited() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with relay.Relay("127.0.0.1", server.sockets[0].getsockname()[1]) as between:
        old, old_writer = await asyncio.open_connection("127.0.0.1", between.port)
        old_writer.write(b"hello")
        assert await old.readexactly(5) == b"hello"
        between.silence()
        old_writer.write(b"again")
        new, new_writer = await asyncio.open_connection("127.0.0.1", between.port)
        new_writer.write(b"newcomer")
        waiting = [asyncio.create_task(reader.readexactly(5), name="reader") for reader in (old, new)]
        done, _ = await asyncio.wait(waiting, timeout=0.2)
        assert not done
        between.resume()
        assert [await one for one in waiting] == [b"again", b"newco"]
        for writer in (old_writer, new_writer):
            writer.transport.abort()
    server.close()


async def test_a_silent_relay_can_be_closed() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with relay.Relay("127.0.0.1", server.sockets[0].getsockname()[1]) as between:
        between.silence()
        reader, writer = await asyncio.open_connection("127.0.0.1", between.port)
        writer.write(b"hello")
        await asyncio.sleep(0)
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.transport.abort()
    server.close()
