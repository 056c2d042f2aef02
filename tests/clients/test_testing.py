"""The test server: failures on demand and refusals. The other tests in this folder cover the rest."""

import asyncio
import contextlib

import pytest

from clients import connection, errors, mirror, testing
from protocol import messages

FEEDS = {"pods": {"/a": b"1"}, "nodes": {}}


async def test_feeds_are_separate() -> None:
    async with (
        testing.Server(feeds=FEEDS) as server,
        mirror.Mirror(server.address, feed="pods", agent="one") as pods,
        mirror.Mirror(server.address, feed="nodes", agent="two") as nodes,
    ):
        await asyncio.gather(pods.wait_in_sync(timeout_seconds=180), nodes.wait_in_sync(timeout_seconds=10))
        server.put("nodes", "/n1", b"")
        await anext(nodes.changes())
        assert set(nodes) == {"/n1"}
        assert set(pods) == {"/a"}
        assert sorted(hello.agent for hello in server.hellos) == ["one", "two"]


async def test_data_held_back_by_a_stall_is_sent_later() -> None:
    async with testing.Server(feeds=FEEDS) as server, mirror.Mirror(server.address, feed="pods", agent="a") as pods:
        await pods.wait_in_sync(timeout_seconds=180)
        changes = pods.changes()
        await anext(changes)
        server.stall()
        server.put("pods", "/b", b"2")
        server.resume()
        assert [change.key for change in await anext(changes)] == ["/b"]
        await changes.aclose()


async def test_a_goodbye_is_held_back_by_a_stall() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        hello = messages.ClientHello(feed="pods", agent="a")
        async with contextlib.aclosing(connection.stream(server.address, hello=hello)) as received:
            await anext(received)
            server.stall()
            server.goodbye("rebalanced")
            server.resume()
            with pytest.raises(errors.ServerGoodbye):
                async for _ in received:
                    pass


async def test_reserved_features_are_declined() -> None:
    reserved = frozenset({"resume", "chunk-digests", "subscriptions"})
    hello = messages.ClientHello(feed="pods", agent="a", features=reserved | {"zstd", "positions", "unheard-of"})
    async with (
        testing.Server(feeds=FEEDS) as server,
        contextlib.aclosing(connection.stream(server.address, hello=hello)) as received,
    ):
        answer = await anext(received)
    assert isinstance(answer, messages.ServerHello)
    assert answer.features == {"zstd", "positions"}
    assert answer.not_supported == reserved | {"unheard-of"}


async def test_a_reserved_member_is_declined_like_its_feature() -> None:
    hello = messages.ClientHello(feed="pods", agent="a", resume=messages.ResumePosition(bytes(16), 1), chunk_digests=())
    async with testing.Server(feeds=FEEDS) as server:
        received = connection.stream(server.address, hello=hello)
        async with contextlib.aclosing(received):
            answer = await anext(received)
    assert isinstance(answer, messages.ServerHello)
    assert answer.not_supported == {"resume", "chunk-digests"}


async def test_an_unknown_protocol() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        reader, writer = await asyncio.open_connection(*server.address.split(":"))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert b"bad-preface" in await reader.read()
        writer.close()
        await writer.wait_closed()
        with pytest.raises(TimeoutError):
            await server.wait_clients(1, timeout_seconds=0.01)
        with pytest.raises(TimeoutError):
            await server.wait_hellos(1, timeout_seconds=0.01)


async def test_unknown_versions_are_refused() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        hello = messages.ClientHello(feed="pods", agent="a", versions=(2, 3))
        with pytest.raises(errors.Refused, match="unsupported-version"):
            await anext(connection.stream(server.address, hello=hello))


async def test_raw_bytes_are_sent_unchanged() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        hello = messages.ClientHello(feed="pods", agent="a")
        async with contextlib.aclosing(connection.stream(server.address, hello=hello)) as received:
            await anext(received)
            server.send_bytes("pods", b"\x00\x00\x00\x00\x00")
            with pytest.raises(errors.BadServer, match="length 0"):
                async for _ in received:
                    pass
