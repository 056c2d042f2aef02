"""Follow a feed for ever: `async for event in follow.follow("typha:5473", feed="workloads", agent="my-agent")`.

Four kinds of event. `Connected` and `Disconnected` tell about the connection, `StatusChanged` how complete the data is,
and `Batch` what changed. Across reconnects, other servers and catch-ups the rules stay simple:

1. Applying every batch in order gives, after each of them, a map that a server had, verified by its digest (if it
   speaks the native protocol: Typha's has none). Between a status catching-up and the next one each key is on its way
   to its newest value, and only the next status vouches for all of them together.
2. Batches hold real differences to what this iterator gave before: never the same value again, never a deletion of a
   key that lives on, never an empty world between two snapshots. The first batch is the whole map.
3. `StatusChanged` follows the batches it speaks of, and is given anew after each `Connected`.
4. The iterator never ends and raises nothing for the network's or a server's sake. It ends when its task is cancelled
   or it is closed (`contextlib.aclosing`), and its socket with it. It starts no task.

It reads only while it is iterated over. A receiver that takes longer than the server's pong timeout for one batch is
cut off, and comes back by itself; `clients.mirror` reads in the background instead.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from clients import addresses, connection, differ, errors
from protocol import errors as protocol_errors
from protocol import messages

Batch = differ.Batch


@dataclass(frozen=True, slots=True)
class Connected:
    """A server has accepted the hello; data follows as soon as it has some."""

    address: str
    hello: messages.ServerHello


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, or none could be made. What was given so far holds, and grows old."""

    error: errors.ClientError
    retry_in_seconds: float


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """How complete the data is, as of the batches given so far."""

    status: messages.SyncStatus


Event: TypeAlias = Batch | StatusChanged | Connected | Disconnected


class Follower:
    """What `follow` iterates over, as an object, for those who want its digest or its counters."""

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        feed: str,
        agent: str,
        node: str = "",
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        timeouts: connection.Timeouts = connection.DEFAULT_TIMEOUTS,
        protocol: connection.Protocol = connection.Protocol.NATIVE,
    ) -> None:
        """See `follow`."""
        self.rotation = addresses.Rotation([servers] if isinstance(servers, str) else servers)
        self.hello = messages.ClientHello(
            feed=feed,
            agent=agent,
            node=node,
            features=frozenset({messages.Feature.ZSTD}),
            software=connection.SOFTWARE,
        )
        self.connections = 0
        """Connections on which a server accepted the hello."""
        self.snapshots = 0
        """Snapshots that were received and verified."""
        self._tls = tls
        self._server_name = server_name
        self._timeouts = timeouts
        self._protocol = protocol
        self._differ = differ.Differ()
        self._connected_at: float | None = None

    def __repr__(self) -> str:
        return f"<Follower feed={self.hello.feed} server={self.rotation.current()} {self._differ!r}>"

    @property
    def digest(self) -> int:
        """State digest of the map that all batches so far add up to."""
        return self._differ.digest

    @property
    def keys(self) -> int:
        """Number of keys of that map."""
        return len(self._differ)

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events, for ever; to be iterated over by one task at a time."""
        loop = asyncio.get_running_loop()
        while True:
            self._connected_at = None
            try:
                async with contextlib.aclosing(self._open_stream()) as received:
                    async for message in received:
                        for event in self._receive(message, now=loop.time()):
                            yield event
            except errors.ClientError as error:
                retry_in_seconds = self._plan_retry(error, now=loop.time())
                yield Disconnected(error, retry_in_seconds)
                await asyncio.sleep(retry_in_seconds)

    def _open_stream(self) -> AsyncGenerator[messages.Message, None]:
        self._differ.begin_connection()
        return connection.stream(
            self.rotation.current(),
            hello=self.hello,
            tls=self._tls,
            server_name=self._server_name,
            timeouts=self._timeouts,
            protocol=self._protocol,
        )

    def _receive(self, message: messages.Message, *, now: float) -> list[Event]:
        if isinstance(message, messages.ServerHello):
            self.connections += 1
            self._connected_at = now
            return [Connected(self.rotation.current(), message)]
        events: list[Event] = []
        try:
            batch = self._differ.receive(message)
        except protocol_errors.RemoteProtocolError as error:
            raise errors.BadServer(self.rotation.current(), str(error)) from error
        if batch is not None and batch.from_snapshot:
            self.snapshots += 1
        if batch is not None:
            events.append(batch)
        if isinstance(message, messages.Status):
            events.append(StatusChanged(message.status))
        return events

    def _plan_retry(self, error: errors.ClientError, *, now: float) -> float:
        lived_seconds = 0.0 if self._connected_at is None else now - self._connected_at
        retry_after_seconds = error.retry_after_seconds if isinstance(error, errors.ServerGoodbye) else 0.0
        return self.rotation.failed(now, lived_seconds=lived_seconds, retry_after_seconds=retry_after_seconds)


def follow(
    servers: str | Sequence[str],
    *,
    feed: str,
    agent: str,
    node: str = "",
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
    timeouts: connection.Timeouts = connection.DEFAULT_TIMEOUTS,
    protocol: connection.Protocol = connection.Protocol.NATIVE,
) -> AsyncGenerator[Event, None]:
    """Events of a feed, for ever; the module's text has the rules.

    Args:
        servers: one `host:port` or several; one is used at a time, and another after each failure. Names are resolved
            for each connection, and a name's addresses are tried in random order.
        feed: the feed's name.
        agent: who follows, for the server's log: a program's name, not a person's.
        node: the node that the agent runs on, if any.
        tls: connect by TLS with this context.
        server_name: the name that the server's certificate must have, if it is not the host.
        timeouts: connect 10 s, hello 10 s, silence 3 ping intervals of the server.
        protocol: what to speak; with Typha's, the feed is the syncer type, and no digest verifies the map.

    Raises:
        ValueError: at once, if there is no address, or one is malformed.
    """
    follower = Follower(
        servers,
        feed=feed,
        agent=agent,
        node=node,
        tls=tls,
        server_name=server_name,
        timeouts=timeouts,
        protocol=protocol,
    )
    return follower.events()
