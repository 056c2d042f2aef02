"""A server for the tests of an agent: real sockets on loopback, data from dictionaries, and failures on demand.

    from clients import testing

    async with testing.Server(feeds={"pods": {"/core/v1/pods/default/web-1": b"{}"}}) as server:
        agent = asyncio.create_task(my_agent(server.address))
        await server.wait_clients(1)
        server.put("pods", "/core/v1/pods/default/web-2", b"{}")
        server.disconnect_all()

All methods except `start`, `stop` and `wait_*` are synchronous and take effect immediately. The server uses the same
implementation of the protocol as the service, but says nothing about the service's speed.
"""

import asyncio
import contextlib
import ssl
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

from protocol import digest, errors, messages, reasons
from protocol.native import codec, connection, frames

__all__ = ["Feed", "Server", "replicas"]

MAX_UNSENT_BYTES = 256 * 1024 * 1024
"""The server disconnects a client that does not read this much."""
_SUPPORTED_FEATURES = frozenset({messages.Feature.ZSTD, messages.Feature.POSITIONS})


class Feed:
    """The content of one feed: a map with a sequence number. Each change returns the message that announces it."""

    def __init__(
        self, content: Mapping[str, bytes], *, status: messages.SyncStatus, keys_per_frame: int, chunks: int
    ) -> None:
        self.status = status
        self.has_data = status is not messages.SyncStatus.WAITING
        """Whether clients get a snapshot: from the first status other than WAITING on."""
        self.sequence = 1
        self._keys_per_frame = keys_per_frame
        self._chunks = chunks
        self._entries: dict[str, messages.Update] = {}
        self._revision = 0
        self.replace(content)

    @property
    def content(self) -> dict[str, bytes]:
        """A copy of the map."""
        return {key: update.value for key, update in self._entries.items() if update.value is not None}

    @property
    def digest(self) -> int:
        """The map's state digest (docs/protocol.md, "State digest")."""
        return digest.state_digest(self.content.items())

    def replace(self, content: Mapping[str, bytes]) -> None:
        """Replaces the map, at a new sequence. Keys whose value stays the same keep their revision."""
        self.sequence += 1
        before = self._entries
        self._entries = {}
        for key, value in content.items():
            known = before.get(key)
            if known is not None and known.value == value:
                self._entries[key] = known
            else:
                self._entries[key] = self._make_update(key, value, messages.UpdateType.NEW)

    def put(self, key: str, value: bytes) -> messages.Updates:
        """Sets a key."""
        kind = messages.UpdateType.UPDATED if key in self._entries else messages.UpdateType.NEW
        self._entries[key] = self._make_update(key, value, kind)
        return self._make_delta(self._entries[key])

    def delete(self, key: str) -> messages.Updates:
        """Deletes a key.

        Raises:
            KeyError: the key does not exist.
        """
        del self._entries[key]
        return self._make_delta(self._make_update(key, None, messages.UpdateType.DELETED))

    def snapshot(self) -> Iterator[messages.Message]:
        """The messages of a complete snapshot, with the status at the end."""
        chunks: list[list[messages.Update]] = [[] for _ in range(self._chunks)]
        for update in self._entries.values():
            as_new = update._replace(update_type=int(messages.UpdateType.NEW))
            chunks[zlib.crc32(update.key.encode()) % self._chunks].append(as_new)
        keys = len(self._entries)
        yield messages.SnapshotBegin(self.sequence, keys, self._chunks)
        for index, updates in enumerate(chunks):
            yield from self._chunk(index, updates)
        yield messages.SnapshotEnd(self.sequence, keys, self.digest)
        yield messages.Status(self.sequence, self.status)

    def _chunk(self, index: int, updates: list[messages.Update]) -> Iterator[messages.Message]:
        total = digest.state_digest((update.key, update.value or b"") for update in updates)
        for start in range(0, max(len(updates), 1), self._keys_per_frame):
            end = start + self._keys_per_frame
            more = end < len(updates)
            yield messages.SnapshotChunk(index=index, digest=total, more=more, updates=tuple(updates[start:end]))

    def _make_update(self, key: str, value: bytes | None, kind: messages.UpdateType) -> messages.Update:
        self._revision += 1
        return messages.Update(key, value, str(self._revision), int(kind))

    def _make_delta(self, update: messages.Update) -> messages.Updates:
        self.sequence += 1
        return messages.Updates(self.sequence - 1, self.sequence, (update,))


class Server:
    """Serves feeds from dictionaries, and fails in the ways that a test asks for."""

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
        """With status WAITING, clients get no snapshot before `set_status`, like those of a service that starts."""
        self.feeds = {
            name: Feed(content, status=status, keys_per_frame=keys_per_frame, chunks=chunks)
            for name, content in feeds.items()
        }
        self.hellos: list[messages.ClientHello] = []
        """All hellos received, in order, accepted or not."""
        self.ping_interval_seconds = ping_interval_seconds
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._port = 0
        self._peers: set[_Peer] = set()
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
        """The server's address as `host:port`. The port stays the same across `stop` and `start`."""
        return f"127.0.0.1:{self._port}"

    @property
    def clients(self) -> int:
        """Number of open connections with an accepted hello."""
        return len(self._accepted())

    async def start(self) -> None:
        """Starts to listen, on the same port as before if the server ran before."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _Peer(self), "127.0.0.1", self._port, ssl=self._tls, reuse_address=True
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and closes all connections without a goodbye."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.disconnect_all()
        while self._peers:
            await self._wait_for_change()

    # Content.

    def put(self, feed: str, key: str, value: bytes) -> None:
        """Sets a key and sends the change to the feed's clients."""
        self._broadcast(feed, self.feeds[feed].put(key, value))

    def delete(self, feed: str, key: str) -> None:
        """Deletes a key and sends the change to the feed's clients.

        Raises:
            KeyError: the key does not exist.
        """
        self._broadcast(feed, self.feeds[feed].delete(key))

    def set_status(self, feed: str, status: messages.SyncStatus) -> None:
        """Sets the feed's status and sends it. The first status other than WAITING releases the snapshots.

        A later WAITING means that the server has lost its backend; newcomers still get a snapshot.
        """
        content = self.feeds[feed]
        content.status = status
        content.has_data = content.has_data or status is not messages.SyncStatus.WAITING
        for peer in self._accepted(feed):
            if content.has_data and not peer.has_snapshot:
                peer.send_all(content.snapshot())
            elif peer.has_snapshot:
                peer.send(messages.Status(content.sequence, status))

    def resnapshot(self, feed: str) -> None:
        """Sends a new snapshot to all clients of the feed, as the service may do to a client that fell behind."""
        for peer in self._accepted(feed):
            peer.send_all(self.feeds[feed].snapshot())

    def replace(self, feed: str, content: Mapping[str, bytes]) -> None:
        """Replaces a feed's content without notifying its clients, as if they had been disconnected meanwhile.

        Call `disconnect_all` or `resnapshot` before the next `put`.
        """
        self.feeds[feed].replace(content)

    # Failures.

    def disconnect_all(self) -> None:
        """Closes all connections without a goodbye."""
        for peer in list(self._peers):
            peer.abort()

    def goodbye(
        self,
        reason: str = reasons.DisconnectReason.SHUTTING_DOWN,
        text: str = "",
        *,
        retry_after_seconds: float = 0.0,
        servers: tuple[str, ...] = (),
    ) -> None:
        """Ends all connections with a goodbye, which may name other servers."""
        for peer in list(self._peers):
            peer.finish(messages.Goodbye(reason, text, round(retry_after_seconds * 1000), servers))

    def refuse(self, reason: str | None, text: str = "", *, retry_after_seconds: float = 0.0) -> None:
        """Refuses all further hellos with this goodbye. None accepts hellos again."""
        retry_after_milliseconds = round(retry_after_seconds * 1000)
        self._refusal = None if reason is None else messages.Goodbye(reason, text, retry_after_milliseconds)

    def stall(self) -> None:
        """Stops sending until `resume`. Connections stay open; changes, pings and answers to hellos are held back."""
        self._set_stalled(True)

    def resume(self) -> None:
        """Ends `stall` and sends what was held back."""
        self._set_stalled(False)

    def send_message(self, feed: str, message: messages.Message) -> None:
        """Sends any message to a feed's clients, for example one with a wrong digest."""
        self._broadcast(feed, message)

    def send_bytes(self, feed: str, data: bytes) -> None:
        """Sends any bytes to a feed's clients, for example half a frame."""
        for peer in self._accepted(feed):
            peer.send_bytes(data)

    # Waiting.

    async def wait_clients(self, count: int, *, timeout_seconds: float = 10.0) -> None:
        """Waits until exactly `count` clients are accepted.

        Raises:
            TimeoutError: `timeout_seconds` have passed.
        """
        async with asyncio.timeout(timeout_seconds):
            while self.clients != count:
                await self._wait_for_change()

    def applied(self, feed: str) -> list[int]:
        """The sequences that the feed's clients say they have applied; of those that report it."""
        return [peer.applied for peer in self._accepted(feed) if peer.applied is not None]

    async def wait_applied(self, feed: str, *, timeout_seconds: float = 10.0) -> None:
        """Waits until a client reports what it has applied, and all that do have applied everything.

        Raises:
            TimeoutError: `timeout_seconds` have passed.
        """
        async with asyncio.timeout(timeout_seconds):
            while not (found := self.applied(feed)) or min(found) < self.feeds[feed].sequence:
                await self._wait_for_change()

    async def wait_hellos(self, count: int, *, timeout_seconds: float = 10.0) -> None:
        """Waits until the server has received at least `count` hellos since its creation.

        Raises:
            TimeoutError: `timeout_seconds` have passed.
        """
        async with asyncio.timeout(timeout_seconds):
            while len(self.hellos) < count:
                await self._wait_for_change()

    # Called by the connections.

    def _add_peer(self, peer: "_Peer") -> None:
        self._peers.add(peer)
        if self._stalled:
            peer.hold()
        self._notify()

    def _remove_peer(self, peer: "_Peer") -> None:
        self._peers.discard(peer)
        self._notify()

    def _answer_hello(self, peer: "_Peer", hello: messages.ClientHello) -> None:
        self.hellos.append(hello)
        feed = self.feeds.get(hello.feed)
        if self._refusal is not None:
            peer.finish(self._refusal)
        elif connection.VERSION not in hello.versions:
            peer.finish(messages.Goodbye(reasons.DisconnectReason.UNSUPPORTED_VERSION, "version 1 is spoken here"))
        elif feed is None:
            peer.finish(messages.Goodbye(reasons.DisconnectReason.UNKNOWN_FEED, f"no feed {hello.feed!r}"))
        else:
            peer.accept(hello, connection_id=len(self.hellos))
            if feed.has_data:
                peer.send_all(feed.snapshot())
        self._notify()

    def _accepted(self, feed: str | None = None) -> list["_Peer"]:
        return [peer for peer in self._peers if peer.feed is not None and feed in (None, peer.feed)]

    def _broadcast(self, feed: str, message: messages.Message) -> None:
        for peer in self._accepted(feed):
            if peer.has_snapshot:
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


class _Peer(asyncio.Protocol):
    """The server's end of one connection."""

    def __init__(self, server: Server) -> None:
        self.feed: str | None = None
        """The feed of an accepted client; None before that and after the end."""
        self.has_snapshot = False
        """Whether a complete snapshot was sent, so that deltas may follow."""
        self.applied: int | None = None
        """What the client has applied; None if it does not report that."""
        self._server = server
        self._protocol = connection.Connection(connection.Role.SERVER)
        self._transport: asyncio.Transport | None = None
        self._held: bytearray | None = None
        self._finished = False
        self._ping_timer: asyncio.TimerHandle | None = None
        self._compressor = frames.make_compressor()
        self._compress = False

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server._add_peer(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        self.feed = None
        self._server._remove_peer(self)

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        try:
            while (message := self._protocol.next_event()) is not None:
                match message:
                    case messages.ClientHello():
                        self._server._answer_hello(self, message)
                    case messages.Applied():
                        self._note_applied(message.sequence)
                    case messages.Goodbye():
                        self.abort()
        except errors.RemoteProtocolError as error:
            self.finish(messages.Goodbye(error.reason, str(error)))

    def _note_applied(self, sequence: int) -> None:
        if self.applied is None or self.feed is None or sequence > self._server.feeds[self.feed].sequence:
            raise errors.RemoteProtocolError("a position that cannot be")
        self.applied = max(self.applied, sequence)
        self._server._notify()

    # Called by the server.

    def accept(self, hello: messages.ClientHello, *, connection_id: int) -> None:
        self.feed = hello.feed
        self._compress = messages.Feature.ZSTD in hello.features
        self.applied = 0 if messages.Feature.POSITIONS in hello.features else None
        answer = messages.ServerHello(
            version=connection.VERSION,
            feed=hello.feed,
            incarnation=bytes(16),
            features=hello.features & _SUPPORTED_FEATURES,
            not_supported=_requested_features(hello) - _SUPPORTED_FEATURES,
            software="clients.testing",
            connection_id=connection_id,
            ping_interval_milliseconds=max(1, round(self._server.ping_interval_seconds * 1000)),
            max_frame_bytes=frames.MAX_FRAME_BYTES,
        )
        self._protocol.send(answer)
        self.send_bytes(self._protocol.data_to_send())
        self._schedule_ping()

    def send(self, message: messages.Message) -> None:
        """Sends a message, compressed if the client asked for it."""
        self.has_snapshot = self.has_snapshot or isinstance(message, messages.SnapshotEnd)
        compressor = self._compressor if self._compress else None
        self.send_bytes(frames.pack_frame(codec.encode(message), compressor=compressor))

    def send_all(self, batch: Iterable[messages.Message]) -> None:
        for message in batch:
            self.send(message)

    def send_bytes(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
                self.abort()

    def finish(self, goodbye: messages.Goodbye) -> None:
        """Sends a goodbye and closes the connection after it."""
        self._protocol.send(goodbye)
        self.send_bytes(self._protocol.data_to_send())
        self._finished = True
        self._close_if_finished()

    def _close_if_finished(self) -> None:
        if self._finished and self._held is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def hold(self) -> None:
        """Holds back all further data until `release`."""
        if self._held is None:
            self._held = bytearray()

    def release(self) -> None:
        """Sends the data that was held back."""
        held, self._held = self._held, None
        if held:
            self.send_bytes(bytes(held))
        self._close_if_finished()

    def _schedule_ping(self) -> None:
        loop = asyncio.get_running_loop()
        self._ping_timer = loop.call_later(self._server.ping_interval_seconds, self._ping)

    def _ping(self) -> None:
        self.send(messages.Ping())
        self._schedule_ping()


def _requested_features(hello: messages.ClientHello) -> frozenset[str]:
    """The features that a hello names, and those that one of its members implies."""
    members = {
        messages.Feature.SUBSCRIPTIONS: hello.subscription,
        messages.Feature.RESUME: hello.resume,
        messages.Feature.CHUNK_DIGESTS: hello.chunk_digests,
    }
    return hello.features | {feature for feature, member in members.items() if member is not None}


@contextlib.asynccontextmanager
async def replicas(count: int, *, feeds: Mapping[str, Mapping[str, bytes]]) -> AsyncIterator[list[Server]]:
    """Runs several servers with the same content."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Server(feeds=feeds)) for _ in range(count)]
