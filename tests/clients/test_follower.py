"""Following a feed through everything that goes wrong."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from clients import connection, errors, follower, testing
from protocol import messages

FEEDS = {"pods": {"/a": b"1", "/b": b"2"}}
IN_SYNC = follower.StatusChanged(messages.SyncStatus.IN_SYNC)


class Story:
    """What a follower saw, as lines that read like one."""

    def __init__(self, events: AsyncGenerator[follower.Event, None]) -> None:
        self._events = events

    async def until(self, last: str) -> list[str]:
        lines = []
        async with asyncio.timeout(20):
            async for event in self._events:
                lines.append(describe(event))
                if lines[-1] == last:
                    break
        return lines


def describe(event: follower.Event) -> str:
    match event:
        case follower.Connected():
            return "connected"
        case follower.Disconnected():
            return f"disconnected: {type(event.error).__name__}"
        case follower.StatusChanged():
            return event.status.label
    changes = [f"{update.key}={update.value.decode() if update.value else None}" for update in event.updates]
    return " ".join(sorted(changes)) or "no difference"


@contextlib.asynccontextmanager
async def following(*servers: testing.Server, feed: str = "pods") -> AsyncGenerator[Story, None]:
    addresses = [server.address for server in servers]
    timeouts = connection.Timeouts(hello_seconds=0.2)
    async with contextlib.aclosing(follower.follow(addresses, feed=feed, agent="test", timeouts=timeouts)) as events:
        yield Story(events)


async def test_a_feed_from_its_snapshot_on() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as story:
        assert await story.until("in-sync") == ["connected", "/a=1 /b=2", "in-sync"]
        server.put("pods", "/c", b"3")
        server.put("pods", "/a", b"1")
        server.delete("pods", "/b")
        server.set_status("pods", messages.SyncStatus.RESYNC)
        assert await story.until("resync") == ["/c=3", "no difference", "/b=None", "resync"]


async def test_a_reconnect_shows_differences_only() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as story:
        await story.until("in-sync")
        server.replace("pods", {"/b": b"2", "/c": b"3"})
        server.disconnect_all()
        expected = ["disconnected: ConnectionLost", "connected", "/a=None /c=3", "in-sync"]
        assert await story.until("in-sync") == expected


async def test_a_catch_up_shows_differences_only() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as story:
        await story.until("in-sync")
        server.resnapshot("pods")
        assert await story.until("in-sync") == ["no difference", "in-sync"]
        server.replace("pods", {"/b": b"22"})
        server.resnapshot("pods")
        assert await story.until("in-sync") == ["/a=None /b=22", "in-sync"]


async def test_held_until_there_is_data() -> None:
    async with (
        testing.Server(feeds={"pods": {}}, status=messages.SyncStatus.WAITING, ping_interval_seconds=0.02) as server,
        following(server) as story,
    ):
        assert await story.until("connected") == ["connected"]
        server.replace("pods", {"/a": b"1"})
        server.set_status("pods", messages.SyncStatus.IN_SYNC)
        assert await story.until("in-sync") == ["/a=1", "in-sync"]


async def test_another_server_takes_over() -> None:
    async with testing.replicas(3, feeds=FEEDS) as servers, following(*servers) as story:
        for left in (2, 1, 0):
            await story.until("in-sync")
            [current] = [server for server in servers if server.clients]
            if left:
                await current.stop()
        assert all(len(server.hellos) == 1 for server in servers)


async def test_a_goodbye_sends_it_elsewhere() -> None:
    async with testing.replicas(2, feeds=FEEDS) as servers, following(*servers) as story:
        await story.until("in-sync")
        [current] = [server for server in servers if server.clients]
        current.goodbye("rebalanced", retry_after_seconds=60)
        expected = ["disconnected: ServerGoodbye", "connected", "no difference", "in-sync"]
        assert await story.until("in-sync") == expected
        assert current.clients == 0


async def test_a_server_that_comes_back_on_its_port() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as story:
        await story.until("in-sync")
        await server.stop()
        await story.until("disconnected: ConnectFailed")
        await server.start()
        assert (await story.until("in-sync"))[-3:] == ["connected", "no difference", "in-sync"]


async def test_silence_is_an_end() -> None:
    async with testing.Server(feeds=FEEDS, ping_interval_seconds=0.05) as server, following(server) as story:
        await story.until("in-sync")
        server.stall()
        await story.until("disconnected: ServerSilent")
        server.resume()
        assert (await story.until("in-sync"))[-2:] == ["no difference", "in-sync"]


async def test_a_refusal_is_an_event_and_not_the_end() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server, feed="podz") as story:
        await story.until("disconnected: Refused")
        await story.until("disconnected: Refused")
        assert len(server.hellos) == 2


@pytest.mark.parametrize(
    "lie",
    [
        messages.Updates(7, 8, ()),
        messages.Status(7, messages.SyncStatus.IN_SYNC),
        messages.SnapshotEnd(1, 0, 0),
        messages.ServerHello(version=1, feed="pods", incarnation=bytes(16)),
    ],
)
async def test_a_server_that_contradicts_itself_is_left(lie: messages.Message) -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as story:
        await story.until("in-sync")
        server.send_message("pods", lie)
        expected = ["disconnected: BadServer", "connected", "no difference", "in-sync"]
        assert await story.until("in-sync") == expected


async def test_a_snapshot_with_a_wrong_digest_changes_nothing() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as story:
        await story.until("in-sync")
        server.send_message("pods", messages.SnapshotBegin(50, 0, 0))
        server.send_message("pods", messages.SnapshotEnd(50, 0, 1))
        expected = ["disconnected: BadServer", "connected", "no difference", "in-sync"]
        assert await story.until("in-sync") == expected


async def test_a_cancelled_follower_leaves_nothing() -> None:
    async def follow_for_ever(server: testing.Server) -> None:
        async for _ in follower.follow(server.address, feed="pods", agent="test"):
            pass

    async with testing.Server(feeds=FEEDS) as server:
        for hellos in (1, 2, 3):
            task = asyncio.create_task(follow_for_ever(server), name="follower")
            await server.wait_hellos(hellos)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.wait_clients(0)


async def test_leaving_the_loop_closes_the_socket() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        async for event in follower.follow(server.address, feed="pods", agent="test"):
            if event == IN_SYNC:
                break
        await server.wait_clients(0)


async def test_a_follower_counts_and_verifies() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        counted = follower.Follower(server.address, feed="pods", agent="test")
        async with contextlib.aclosing(counted.events()) as events:
            story = Story(events)
            await story.until("in-sync")
            server.disconnect_all()
            await story.until("in-sync")
            assert (counted.connections, counted.snapshots, counted.keys) == (2, 2, 2)
            assert counted.digest == server.feeds["pods"].digest


@pytest.mark.parametrize("servers", [[], [""], ["typha:port"], "::1"])
def test_bad_addresses_are_refused_at_once(servers: str | list[str]) -> None:
    with pytest.raises(ValueError, match="address"):
        follower.follow(servers, feed="pods", agent="test")


async def test_an_error_says_where_it_happened() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        server.refuse("too-many-connections", "full")
        events = follower.follow(server.address, feed="pods", agent="test")
        async with contextlib.aclosing(events):
            event = await anext(events)
        assert isinstance(event, follower.Disconnected)
        assert isinstance(event.error, errors.Refused)
        assert str(event.error) == f"{server.address}: too-many-connections: full"
