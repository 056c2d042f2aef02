"""Following a feed through failures of servers and connections."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from clients import connection, errors, follower, testing
from protocol import messages

FEEDS = {"pods": {"/a": b"1", "/b": b"2"}}
IN_SYNC = follower.StatusChanged(messages.SyncStatus.IN_SYNC)


class Transcript:
    """Reads events, and describes each as one line of text."""

    def __init__(self, events: AsyncGenerator[follower.Event, None]) -> None:
        self._events = events

    async def until(self, last: str) -> list[str]:
        lines = []
        async with asyncio.timeout(180):
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
    return " ".join(sorted(changes)) or "no change"


@contextlib.asynccontextmanager
async def following(
    *servers: testing.Server, feed: str = "pods", hello_seconds: float = 30.0
) -> AsyncGenerator[Transcript, None]:
    addresses = [server.address for server in servers]
    timeouts = connection.Timeouts(hello_seconds=hello_seconds)
    async with contextlib.aclosing(follower.follow(addresses, feed=feed, agent="test", timeouts=timeouts)) as events:
        yield Transcript(events)


async def test_snapshot_then_deltas() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as transcript:
        assert await transcript.until("in-sync") == ["connected", "/a=1 /b=2", "in-sync"]
        server.put("pods", "/c", b"3")
        server.put("pods", "/a", b"1")
        server.delete("pods", "/b")
        server.set_status("pods", messages.SyncStatus.RESYNC)
        assert await transcript.until("resync") == ["/c=3", "no change", "/b=None", "resync"]


async def test_a_reconnect_yields_only_changes() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as transcript:
        await transcript.until("in-sync")
        server.replace("pods", {"/b": b"2", "/c": b"3"})
        server.disconnect_all()
        expected = ["disconnected: ConnectionLost", "connected", "/a=None /c=3", "in-sync"]
        assert await transcript.until("in-sync") == expected


async def test_a_new_snapshot_yields_only_changes() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as transcript:
        await transcript.until("in-sync")
        server.resnapshot("pods")
        assert await transcript.until("in-sync") == ["no change", "in-sync"]
        server.replace("pods", {"/b": b"22"})
        server.resnapshot("pods")
        assert await transcript.until("in-sync") == ["/a=None /b=22", "in-sync"]


async def test_waiting_for_data() -> None:
    async with (
        testing.Server(feeds={"pods": {}}, status=messages.SyncStatus.WAITING, ping_interval_seconds=0.02) as server,
        following(server) as transcript,
    ):
        assert await transcript.until("connected") == ["connected"]
        server.replace("pods", {"/a": b"1"})
        server.set_status("pods", messages.SyncStatus.IN_SYNC)
        assert await transcript.until("in-sync") == ["/a=1", "in-sync"]


async def test_another_server_takes_over() -> None:
    async with testing.replicas(3, feeds=FEEDS) as servers, following(*servers) as transcript:
        for left in (2, 1, 0):
            await transcript.until("in-sync")
            [current] = [server for server in servers if server.clients]
            if left:
                await current.stop()
        assert all(len(server.hellos) == 1 for server in servers)


async def test_a_goodbye_switches_to_another_server() -> None:
    async with testing.replicas(2, feeds=FEEDS) as servers, following(*servers) as transcript:
        await transcript.until("in-sync")
        [current] = [server for server in servers if server.clients]
        current.goodbye("rebalanced", retry_after_seconds=60)
        expected = ["disconnected: ServerGoodbye", "connected", "no change", "in-sync"]
        assert await transcript.until("in-sync") == expected
        assert current.clients == 0


async def test_a_server_that_restarts_on_the_same_port() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as transcript:
        await transcript.until("in-sync")
        await server.stop()
        await transcript.until("disconnected: ConnectFailed")
        await server.start()
        assert (await transcript.until("in-sync"))[-3:] == ["connected", "no change", "in-sync"]


async def test_a_silent_server_is_disconnected() -> None:
    async with testing.Server(feeds=FEEDS, ping_interval_seconds=0.05) as server, following(server) as transcript:
        await transcript.until("in-sync")
        server.stall()
        await transcript.until("disconnected: ServerSilent")
        server.resume()
        assert (await transcript.until("in-sync"))[-2:] == ["no change", "in-sync"]


async def test_a_refusal_is_an_event_and_a_retry_follows() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server, feed="podz") as transcript:
        await transcript.until("disconnected: Refused")
        await transcript.until("disconnected: Refused")
        assert len(server.hellos) == 2


@pytest.mark.parametrize(
    "inconsistent",
    [
        messages.Updates(7, 8, ()),
        messages.Status(7, messages.SyncStatus.IN_SYNC),
        messages.SnapshotEnd(1, 0, 0),
        messages.ServerHello(version=1, feed="pods", incarnation=bytes(16)),
    ],
)
async def test_an_inconsistent_server_is_disconnected(inconsistent: messages.Message) -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as transcript:
        await transcript.until("in-sync")
        server.send_message("pods", inconsistent)
        expected = ["disconnected: BadServer", "connected", "no change", "in-sync"]
        assert await transcript.until("in-sync") == expected


async def test_a_snapshot_with_a_wrong_digest_changes_nothing() -> None:
    async with testing.Server(feeds=FEEDS) as server, following(server) as transcript:
        await transcript.until("in-sync")
        server.send_message("pods", messages.SnapshotBegin(50, 0, 0))
        server.send_message("pods", messages.SnapshotEnd(50, 0, 1))
        expected = ["disconnected: BadServer", "connected", "no change", "in-sync"]
        assert await transcript.until("in-sync") == expected


async def test_cancellation_closes_the_socket() -> None:
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


async def test_counters_and_digest() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        counted = follower.Follower(server.address, feed="pods", agent="test")
        async with contextlib.aclosing(counted.events()) as events:
            transcript = Transcript(events)
            await transcript.until("in-sync")
            server.disconnect_all()
            await transcript.until("in-sync")
            assert (counted.connections, counted.snapshots, counted.keys) == (2, 2, 2)
            assert counted.digest == server.feeds["pods"].digest


@pytest.mark.parametrize("servers", [[], [""], ["typha:port"], "::1"])
def test_bad_addresses_are_refused_immediately(servers: str | list[str]) -> None:
    with pytest.raises(ValueError, match="address"):
        follower.follow(servers, feed="pods", agent="test")


async def test_an_error_has_the_servers_address() -> None:
    async with testing.Server(feeds=FEEDS) as server:
        server.refuse("too-many-connections", "full")
        events = follower.follow(server.address, feed="pods", agent="test")
        async with contextlib.aclosing(events):
            event = await anext(events)
        assert isinstance(event, follower.Disconnected)
        assert isinstance(event.error, errors.Refused)
        assert str(event.error) == f"{server.address}: too-many-connections: full"


async def test_a_goodbye_can_send_the_client_to_a_server_that_it_does_not_know() -> None:
    async with testing.Server(feeds=FEEDS) as known, testing.Server(feeds=FEEDS) as unknown:
        events = follower.follow(known.address, feed="pods", agent="test")
        async with contextlib.aclosing(events):
            while not isinstance(await anext(events), follower.StatusChanged):
                pass
            known.goodbye("rebalanced", servers=("not an address", unknown.address))
            while not isinstance(event := await anext(events), follower.Connected):
                pass
            assert event.address == unknown.address
            unknown.disconnect_all()
            while not isinstance(event := await anext(events), follower.Connected):
                pass
            assert event.address == known.address
