"""One client of `clients.testing`: the protocol's server end on an asyncio transport."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from protocol import errors, messages
from protocol.native import codec, connection, frames

MAX_UNSENT_BYTES = 256 * 1024 * 1024
"""A test's client that reads nothing is cut off here."""


class Owner(Protocol):
    """What a peer tells its server."""

    def opened(self, peer: "Peer") -> None:
        """A connection is there."""

    def closed(self, peer: "Peer") -> None:
        """It is gone."""

    def answer(self, peer: "Peer", hello: messages.ClientHello) -> None:
        """Its hello has come: `accept` or `finish`."""


class Peer(asyncio.Protocol):
    """Sends messages, pings, and can be held back (`hold`, `release`)."""

    def __init__(self, owner: Owner, *, ping_interval_seconds: float) -> None:
        self.feed: str | None = None
        """The feed, once accepted."""
        self.following = False
        """It has been sent a snapshot."""
        self.pongs = 0
        self._owner = owner
        self._ping_interval_seconds = ping_interval_seconds
        self._protocol = connection.Connection(connection.Role.SERVER)
        self._transport: asyncio.Transport | None = None
        self._held: bytearray | None = None
        self._finished = False
        self._pinging: asyncio.TimerHandle | None = None
        self._compressor = frames.make_compressor()
        self._compress = False

    # From the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._owner.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._pinging is not None:
            self._pinging.cancel()
        self.feed = None
        self._owner.closed(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._protocol.receive_data(data)
        try:
            while (message := self._protocol.next_event()) is not None:
                match message:
                    case messages.ClientHello():
                        self._owner.answer(self, message)
                    case messages.Pong():
                        self.pongs += 1
                    case messages.Goodbye():
                        self.abort()
        except errors.RemoteProtocolError as error:
            self.finish(messages.Goodbye(error.reason, str(error)))

    # From the server.

    def accept(self, hello: messages.ClientHello, *, connection_id: int) -> None:
        """Answers the hello."""
        self.feed = hello.feed
        self._compress = messages.Feature.ZSTD in hello.features
        answer = messages.ServerHello(
            version=connection.VERSION,
            feed=hello.feed,
            incarnation=bytes(16),
            features=hello.features & {messages.Feature.ZSTD},
            not_supported=_asked_for(hello) - {messages.Feature.ZSTD},
            software="clients.testing",
            connection_id=connection_id,
            ping_interval_milliseconds=max(1, round(self._ping_interval_seconds * 1000)),
            max_frame_bytes=frames.MAX_FRAME_BYTES,
        )
        self._protocol.send(answer)
        self.send_bytes(self._protocol.data_to_send())
        self._schedule_ping()

    def send(self, message: messages.Message) -> None:
        """Sends a message; a snapshot's chunks go out compressed, if that was agreed on."""
        self.following = self.following or isinstance(message, messages.SnapshotEnd)
        compressor = self._compressor if self._compress else None
        self.send_bytes(frames.pack_frame(codec.encode(message), compressor=compressor))

    def send_all(self, batch: Iterable[messages.Message]) -> None:
        """Sends several messages."""
        for message in batch:
            self.send(message)

    def send_bytes(self, data: bytes) -> None:
        """Sends bytes as they are."""
        if self._held is not None:
            self._held += data
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
                self.abort()

    def finish(self, goodbye: messages.Goodbye) -> None:
        """Says goodbye and closes, once it is sent."""
        self._protocol.send(goodbye)
        self.send_bytes(self._protocol.data_to_send())
        self._finished = True
        self._close_if_finished()

    def _close_if_finished(self) -> None:
        if self._finished and self._held is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    def hold(self) -> None:
        """Holds back everything from now on."""
        if self._held is None:
            self._held = bytearray()

    def release(self) -> None:
        """Sends what was held back."""
        held, self._held = self._held, None
        if held:
            self.send_bytes(bytes(held))
        self._close_if_finished()

    def _schedule_ping(self) -> None:
        loop = asyncio.get_running_loop()
        self._pinging = loop.call_later(self._ping_interval_seconds, self._ping)

    def _ping(self) -> None:
        self.send(messages.Ping())
        self._schedule_ping()


def _asked_for(hello: messages.ClientHello) -> frozenset[str]:
    """Features named in the hello, or meant by one of its members."""
    members = {
        messages.Feature.SUBSCRIPTIONS: hello.subscription,
        messages.Feature.RESUME: hello.resume,
        messages.Feature.CHUNK_DIGESTS: hello.chunk_digests,
    }
    return hello.features | {feature for feature, member in members.items() if member is not None}
