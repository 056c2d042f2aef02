"""A server for tests of agents: real sockets on loopback, data from dictionaries, and trouble on demand.

    async with testing.Server(feeds={"pods": {"/core/v1/pods/default/web-1": b"{}"}}) as server:
        agent = asyncio.create_task(my_agent(server.address))
        server.put("pods", "/core/v1/pods/default/web-2", b"{}")
        server.disconnect_all()

All methods but `async with` and the `wait_*` ones are synchronous and take effect at once. It speaks the protocol by
`protocol.native.connection`, as the service does, and is no model of its speed.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self

from clients import testing_feed, testing_peer
from protocol import messages, reasons


class Server:
    """Serves feeds out of dictionaries; see the module's text."""

    def __init__(
        self,
        *,
        feeds: Mapping[str, Mapping[str, bytes]],
        status: messages.SyncStatus = messages.SyncStatus.IN_SYNC,
        ping_interval_seconds: float = 10.0,
        keys_per_frame: int = 100,
        chunks: int = 4,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Feeds in status WAITING hold their clients, as the service does before its first sync."""
        self.feeds = {
            name: testing_feed.Feed(content, status=status, keys_per_frame=keys_per_frame, chunks=chunks)
            for name, content in feeds.items()
        }
        self.hellos: list[messages.ClientHello] = []
        """Hellos received, in order, accepted or not."""
        self.ping_interval_seconds = ping_interval_seconds
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._port = 0
        self._peers: set[testing_peer.Peer] = set()
        self._refusal: messages.Goodbye | None = None
        self._stalled = False
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`; the port stays the same over `stop` and `start`."""
        return f"127.0.0.1:{self._port}"

    @property
    def clients(self) -> int:
        """Connections that were accepted and are open."""
        return len(self._accepted())

    async def start(self) -> None:
        """Listens; on the same port as before, if it ran before."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._make_peer, "127.0.0.1", self._port, ssl=self._tls, reuse_address=True
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes everything, without a goodbye."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.disconnect_all()
        while self._peers:
            await self._wait_for_change()

    # What the feeds hold.

    def put(self, feed: str, key: str, value: bytes) -> None:
        """Sets a key, and sends the change to the feed's clients."""
        self._broadcast(feed, self.feeds[feed].put(key, value))

    def delete(self, feed: str, key: str) -> None:
        """Deletes a key, and sends the deletion.

        Raises:
            KeyError: there is no such key.
        """
        self._broadcast(feed, self.feeds[feed].delete(key))

    def set_status(self, feed: str, status: messages.SyncStatus) -> None:
        """Sets the feed's status and sends it; the first that is not WAITING gives held clients their snapshot."""
        content = self.feeds[feed]
        released = content.status is messages.SyncStatus.WAITING and status is not messages.SyncStatus.WAITING
        content.status = status
        for peer in self._accepted(feed):
            if released and not peer.following:
                peer.send_all(content.snapshot())
            elif peer.following:
                peer.send(messages.Status(content.sequence, status))

    def resnapshot(self, feed: str) -> None:
        """Sends everybody a new snapshot in place of deltas, as the service does to a client that fell behind."""
        for peer in self._accepted(feed):
            peer.send_all(self.feeds[feed].snapshot())

    def replace(self, feed: str, content: Mapping[str, bytes]) -> None:
        """Replaces a feed's content without a word to its clients, as if they had been elsewhere meanwhile.

        Connect them anew (`disconnect_all`) or `resnapshot` before the next `put`.
        """
        self.feeds[feed].replace(content)

    # Trouble.

    def disconnect_all(self) -> None:
        """Cuts every connection, without a goodbye."""
        for peer in list(self._peers):
            peer.abort()

    def goodbye(
        self,
        reason: str = reasons.DisconnectReason.SHUTTING_DOWN,
        text: str = "",
        *,
        retry_after_seconds: float = 0.0,
    ) -> None:
        """Ends every connection with a goodbye."""
        for peer in list(self._peers):
            peer.finish(messages.Goodbye(reason, text, round(retry_after_seconds * 1000)))

    def refuse(self, reason: str | None, text: str = "", *, retry_after_seconds: float = 0.0) -> None:
        """Answers the hellos to come with this goodbye; None accepts them again."""
        retry_after_milliseconds = round(retry_after_seconds * 1000)
        self._refusal = None if reason is None else messages.Goodbye(reason, text, retry_after_milliseconds)

    def stall(self) -> None:
        """Falls silent: connections stand, changes and pings are held back, hellos stay unanswered, until `resume`."""
        self._set_stalled(True)

    def resume(self) -> None:
        """Ends `stall`; what was held back is sent."""
        self._set_stalled(False)

    def send_message(self, feed: str, message: messages.Message) -> None:
        """Sends any message to a feed's clients, for example one with a wrong digest."""
        self._broadcast(feed, message)

    def send_bytes(self, feed: str, data: bytes) -> None:
        """Sends any bytes to a feed's clients, for example half a frame."""
        for peer in self._accepted(feed):
            peer.send_bytes(data)

    # What tests wait for.

    async def wait_clients(self, count: int, *, timeout_seconds: float = 10.0) -> None:
        """Waits until exactly `count` clients are accepted.

        Raises:
            TimeoutError: it did not happen in time.
        """
        async with asyncio.timeout(timeout_seconds):
            while self.clients != count:
                await self._wait_for_change()

    async def wait_hellos(self, count: int, *, timeout_seconds: float = 10.0) -> None:
        """Waits until at least `count` hellos have come since the start.

        Raises:
            TimeoutError: it did not happen in time.
        """
        async with asyncio.timeout(timeout_seconds):
            while len(self.hellos) < count:
                await self._wait_for_change()

    # What its connections call.

    def opened(self, peer: testing_peer.Peer) -> None:
        """A connection is there."""
        self._peers.add(peer)
        if self._stalled:
            peer.hold()
        self._notify()

    def closed(self, peer: testing_peer.Peer) -> None:
        """A connection is gone."""
        self._peers.discard(peer)
        self._notify()

    def answer(self, peer: testing_peer.Peer, hello: messages.ClientHello) -> None:
        """A hello has come."""
        self.hellos.append(hello)
        feed = self.feeds.get(hello.feed)
        if self._refusal is not None:
            peer.finish(self._refusal)
        elif 1 not in hello.versions:
            peer.finish(messages.Goodbye(reasons.DisconnectReason.UNSUPPORTED_VERSION, "version 1 is spoken here"))
        elif feed is None:
            peer.finish(messages.Goodbye(reasons.DisconnectReason.UNKNOWN_FEED, f"no feed {hello.feed!r}"))
        else:
            peer.accept(hello, connection_id=len(self.hellos))
            if feed.status is not messages.SyncStatus.WAITING:
                peer.send_all(feed.snapshot())
        self._notify()

    def _make_peer(self) -> testing_peer.Peer:
        return testing_peer.Peer(self, ping_interval_seconds=self.ping_interval_seconds)

    def _accepted(self, feed: str | None = None) -> list[testing_peer.Peer]:
        return [peer for peer in self._peers if peer.feed is not None and feed in (None, peer.feed)]

    def _broadcast(self, feed: str, message: messages.Message) -> None:
        for peer in self._accepted(feed):
            if peer.following:
                peer.send(message)

    def _set_stalled(self, stalled: bool) -> None:
        self._stalled = stalled
        for peer in list(self._peers):
            if stalled:
                peer.hold()
            else:
                peer.release()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_for_change(self) -> None:
        await self._changed.wait()


@contextlib.asynccontextmanager
async def replicas(count: int, *, feeds: Mapping[str, Mapping[str, bytes]]) -> AsyncIterator[list[Server]]:
    """Several servers with the same content."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Server(feeds=feeds)) for _ in range(count)]
