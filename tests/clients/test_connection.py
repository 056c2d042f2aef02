"""One connection over real sockets: its messages, and the ways in which it ends."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from clients import connection, errors, testing
from protocol import messages
from protocol.native import codec, frames
from tests.harness import certificates

FEEDS = {"pods": {"/a": b"1", "/b": b"2"}}
HELLO = messages.ClientHello(feed="pods", agent="test", features=frozenset({"zstd"}))
PATIENT = connection.Timeouts(connect_seconds=30.0, hello_seconds=30.0)


async def read_until(received: AsyncIterator[messages.Message], kind: type[messages.Message]) -> list[messages.Message]:
    found = []
    async with asyncio.timeout(180):
        async for message in received:
            found.append(message)
            if isinstance(message, kind):
                break
    return found


async def read_to_the_end(
    address: str, *, hello: messages.ClientHello = HELLO, timeouts: connection.Timeouts = PATIENT
) -> None:
    async with asyncio.timeout(180):
        async for _ in connection.stream(address, hello=hello, timeouts=timeouts):
            pass


async def test_a_stream_yields_every_message_in_order() -> None:
    async with (
        testing.Server(feeds=FEEDS, chunks=1, ping_interval_seconds=0.3) as server,
        contextlib.aclosing(connection.stream(server.address, hello=HELLO)) as received,
    ):
        kinds = [type(message).__name__ for message in await read_until(received, messages.Ping)]
        assert kinds == ["ServerHello", "SnapshotBegin", "SnapshotChunk", "SnapshotEnd", "Status", "Ping"]
        await read_until(received, messages.Ping)
        assert server.hellos == [HELLO]


async def test_closing_the_stream_closes_the_socket() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        async with contextlib.aclosing(connection.stream(server.address, hello=HELLO)) as received:
            await read_until(received, messages.ServerHello)
            assert server.clients == 1
        await server.wait_clients(0)


@pytest.mark.parametrize("stalled", [False, True])
async def test_a_cancelled_reader_closes_the_socket(stalled: bool) -> None:
    async with testing.Server(feeds=FEEDS) as server:
        if stalled:
            server.stall()
        reader = asyncio.create_task(read_to_the_end(server.address), name="reader")
        await server.wait_hellos(1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await server.wait_clients(0)


async def test_connection_refused(free_port: int) -> None:
    with pytest.raises(errors.ConnectFailed, match="cannot connect"):
        await read_to_the_end(f"127.0.0.1:{free_port}")


async def test_an_unknown_name() -> None:
    with pytest.raises(errors.ConnectFailed, match="cannot resolve the name"):
        await read_to_the_end("name.invalid:5473")


async def test_a_refusal_carries_its_reason() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        with pytest.raises(errors.Refused) as info:
            await read_to_the_end(server.address, hello=messages.ClientHello(feed="podz", agent="test"))
        assert info.value.reason == "unknown-feed"
        server.refuse("from-the-future", "not now", retry_after_seconds=1.5)
        with pytest.raises(errors.Refused, match="from-the-future: not now") as info:
            await read_to_the_end(server.address)
        assert info.value.retry_after_seconds == 1.5


async def test_a_goodbye_is_not_a_refusal() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        async with contextlib.aclosing(connection.stream(server.address, hello=HELLO)) as received:
            await read_until(received, messages.Status)
            server.goodbye("shutting-down", "bye")
            with pytest.raises(errors.ServerGoodbye) as info:
                await read_until(received, messages.Ping)
        assert type(info.value) is errors.ServerGoodbye
        assert info.value.is_transient


async def test_a_close_without_goodbye() -> None:
    async with (
        testing.Server(feeds=FEEDS) as server,
        contextlib.aclosing(connection.stream(server.address, hello=HELLO)) as received,
    ):
        await read_until(received, messages.Status)
        server.disconnect_all()
        with pytest.raises(errors.ConnectionLost):
            await read_until(received, messages.Ping)


async def test_a_server_without_a_hello() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        server.stall()
        with pytest.raises(errors.ServerSilent, match=r"no hello for 0.1 s"):
            await read_to_the_end(server.address, timeouts=connection.Timeouts(hello_seconds=0.1))


async def test_a_server_that_goes_silent() -> None:
    async with (
        testing.Server(feeds=FEEDS, ping_interval_seconds=0.05) as server,
        contextlib.aclosing(connection.stream(server.address, hello=HELLO)) as received,
    ):
        await read_until(received, messages.Ping)
        server.stall()
        with pytest.raises(errors.ServerSilent, match=r"not even a ping for 0.15 s"):
            await read_until(received, messages.Goodbye)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"SSH-2.0-OpenSSH", "not the native protocol"),
        (frames.PREFACE + b"\x7f\xff\xff\xff\x00", "the limit is"),
        (
            frames.PREFACE
            + frames.pack_frame(codec.encode(messages.ServerHello(version=2, feed="pods", incarnation=bytes(16)))),
            "version 2, which was not offered",
        ),
        (
            frames.PREFACE
            + frames.pack_frame(codec.encode(messages.ServerHello(version=1, feed="podz", incarnation=bytes(16)))),
            "feed 'podz' instead of 'pods'",
        ),
    ],
)
async def test_a_server_that_violates_the_protocol(answer: bytes, problem: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(errors.BadServer, match=problem):
            await read_to_the_end(f"127.0.0.1:{port}")
        await asyncio.sleep(0.01)  # Lets the server's task read the end of the stream.


async def test_tls() -> None:
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "typha.example").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with testing.Server(feeds=FEEDS, tls=server_context) as server:
        for name in (None, "typha.example"):
            opened = connection.stream(server.address, hello=HELLO, tls=client_context, server_name=name)
            async with contextlib.aclosing(opened) as received:
                await read_until(received, messages.Status)
        strangers = [
            connection.stream(server.address, hello=HELLO, tls=client_context, server_name="another.example"),
            connection.stream(server.address, hello=HELLO, tls=ssl.create_default_context()),
        ]
        for stranger in strangers:
            with pytest.raises(errors.ConnectFailed, match="certificate"):
                await read_until(stranger, messages.Status)


async def test_a_session_of_tls_is_resumed_with_the_same_server_and_once() -> None:
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("typha.example", "other.example").configure_cert(server_context)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client_context)
    sessions = certificates.WatchedSessions(client_context)

    async def connect(server: testing.Server, name: str, kind: type[messages.Message] = messages.Status) -> None:
        opened = connection.stream(server.address, hello=HELLO, tls=sessions, server_name=name)
        async with contextlib.aclosing(opened) as received:
            await read_until(received, kind)

    name = "typha.example"
    async with (
        testing.Server(feeds=FEEDS, tls=server_context) as server,
        testing.Server(feeds=FEEDS, tls=server_context) as other,
    ):
        await connect(server, name)
        await connect(server, "other.example")  # a certificate is verified for one name
        await connect(other, name)
        assert sessions.resumed == [False] * 3
        await connect(server, name)
        await connect(server, name)
        await connect(other, name)
        assert sessions.resumed[3:] == [True] * 3
    async with testing.Server(feeds=FEEDS, tls=server_context) as server:
        with pytest.raises(errors.ConnectFailed):
            await connect(server, "wrong.example")
    assert len(sessions.resumed) == 6
