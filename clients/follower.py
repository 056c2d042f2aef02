"""Internal: follows a feed across reconnects, as an iterator of events. `follow` and `Follower` are public.

`Connected` and `Disconnected` describe the connection, `StatusChanged` how complete the data is, and `Batch` what has
changed. The following holds across reconnects, changes of server and catch-ups:

1. Applying the batches in order gives a map that a server had, after each batch. With the native protocol a digest
   verifies it; Typha's protocol has none. Between a status catching-up and the next status, each key moves to its
   newest value, and only the next status covers all of them together.
2. Batches contain real changes relative to the previous batches: never the same value twice, never the deletion of a
   key that still exists, never an empty map between two snapshots. The first batch is the whole map.
3. `StatusChanged` comes after the batches that it describes, and again after each `Connected`.
4. No failure of the network or a server ends the iterator. It ends when its task is cancelled or when it is closed
   (`contextlib.aclosing`), and closes its socket. It starts no task.

It reads from the socket only during iteration. The server disconnects a receiver that spends more than the pong timeout
on one batch; the receiver then reconnects. `Mirror` reads in the background instead.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from clients import addresses, connection, differ, errors, selecting
from clients.applied import Acknowledger
from protocol import errors as protocol_errors
from protocol import messages, subscriptions

Batch = differ.Batch


@dataclass(frozen=True, slots=True)
class Connected:
    """A server has accepted the hello. Data follows as soon as the server has some."""

    address: str
    hello: messages.ServerHello


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, or could not be established. The data so far remains valid, but may be out of date."""

    error: errors.ClientError
    retry_in_seconds: float


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """How complete the data is, as of the batches so far."""

    status: messages.SyncStatus


_FEATURES = frozenset(
    {
        messages.Feature.ZSTD,
        messages.Feature.ZSTD_DICTIONARY,
        messages.Feature.RESUME,
        messages.Feature.CHUNK_DIGESTS,
    }
)

Event: TypeAlias = Batch | StatusChanged | Connected | Disconnected


class Follower:
    """The object behind `follow`, for callers that need its digest or its counters."""

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
        agent_release: str = "",
        subscription: subscriptions.Subscription | None = None,
        reports_applied: bool = False,
    ) -> None:
        """The arguments and the ValueError are those of `follow`."""
        self._rotation = addresses.Rotation([servers] if isinstance(servers, str) else servers)
        wanted = None if subscription is None else selecting.checked(subscription, node)
        features = _FEATURES if wanted is None else _FEATURES | {messages.Feature.SUBSCRIPTIONS}
        if reports_applied:
            features |= {messages.Feature.POSITIONS}
        self.hello = messages.ClientHello(
            feed=feed,
            agent=agent,
            node=node,
            features=features if protocol is connection.Protocol.NATIVE else frozenset(),
            software=connection.software(protocol, agent_release),
            subscription=wanted,
        )
        self.connections = 0
        """Number of connections on which a server accepted the hello."""
        self.snapshots = 0
        """Number of snapshots received and verified."""
        self._tls = None if tls is None else connection.TlsSessions(tls)
        self._server_name = server_name
        self._timeouts = timeouts
        self._protocol = protocol
        self._differ = differ.Differ()
        self._selecting = None if wanted is None else selecting.Selecting(wanted, node)
        self._connected_at: float | None = None
        self._acknowledger = Acknowledger() if reports_applied else None
        self._is_catching_up = False

    def __repr__(self) -> str:
        return f"<Follower feed={self.hello.feed} server={self._rotation.current()} {self._differ!r}>"

    @property
    def digest(self) -> int:
        """State digest of the map that all batches so far add up to (docs/protocol.md, "State digest").

        With a subscription that the server does not know: of the whole feed.
        """
        return self._differ.digest

    @property
    def content(self) -> str:
        """What the map is a copy of: the feed, and its part if there is a subscription."""
        hello = self.hello
        part = "" if hello.subscription is None else f" {hello.subscription.label} {hello.node}"
        return f"{hello.feed}{part}"

    @property
    def keys(self) -> int:
        """Number of keys in that map."""
        return len(self._differ)

    @property
    def version(self) -> int:
        """How many batches have changed that map, with that of `restore`. For `applied`, if positions are reported."""
        return self._acknowledger.version if self._acknowledger is not None else 0

    def applied(self, version: int | None = None) -> None:
        """Tells the server that the changes up to a version have taken effect; by default, all that have come.

        Raises:
            RuntimeError: it was not asked to report that.
            ValueError: there is no such version.
        """
        if self._acknowledger is None:
            raise RuntimeError("`applied` needs `reports_applied=True`")
        self._acknowledger.applied(version)

    @property
    def position(self) -> messages.ResumePosition | None:
        """That of the map in the history of a server. None while it is a mixture of several moments."""
        return self._differ.position

    @property
    def chunks(self) -> int:
        """Into how many chunks the server split the map; 0 without a map, and after data that contradicted it."""
        return self._differ.chunks if self._differ.is_trusted else 0

    def restore(
        self, updates: Iterable[messages.Update], *, position: messages.ResumePosition | None, chunks: int
    ) -> None:
        """Begins with a map that an earlier process had. Call it before `events`; each update has a value."""
        known = list(updates)
        self._differ.restore(known, position=position, chunks=chunks)
        if self._acknowledger is not None and known:
            self._acknowledger.restored()
        if self._selecting is not None:
            for update in known:
                self._selecting.restore(update.key)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields events without end. Only one task may iterate at a time."""
        loop = asyncio.get_running_loop()
        while True:
            self._connected_at = None
            try:
                async with contextlib.aclosing(self._open_stream()) as received:
                    async for message in received:
                        for event in self._receive(message, now=loop.time()):
                            yield event
            except errors.ClientError as error:
                if isinstance(error, errors.BadServer):
                    self._differ.distrust()
                retry_in_seconds = self._plan_retry(error, now=loop.time())
                yield Disconnected(error, retry_in_seconds)
                await asyncio.sleep(retry_in_seconds)

    def _open_stream(self) -> AsyncGenerator[messages.Message, None]:
        self._differ.begin_connection()
        self._is_catching_up = False
        return connection.stream(
            self._rotation.current(),
            hello=self._differ.resuming(self.hello),
            tls=self._tls,
            server_name=self._server_name or self._rotation.trusted_host,
            timeouts=self._timeouts,
            protocol=self._protocol,
            acknowledger=self._acknowledger,
        )

    def _receive(self, message: messages.Message, *, now: float) -> list[Event]:
        if isinstance(message, messages.ServerHello):
            self._differ.receive(message)
            self.connections += 1
            self._connected_at = now
            return [Connected(self._rotation.current(), message)]
        events: list[Event] = []
        try:
            batch = self._differ.receive(message)
        except protocol_errors.RemoteProtocolError as error:
            raise errors.BadServer(self._rotation.current(), str(error)) from error
        if batch is not None and batch.from_snapshot:
            self.snapshots += 1
        if batch is not None and self._selecting is not None:
            batch = self._selecting.select(batch)
        if self._acknowledger is not None:
            self._note_position(self._acknowledger, message, has_changed=batch is not None and bool(batch.updates))
        if batch is not None:
            events.append(batch)
        if isinstance(message, messages.Status):
            events.append(StatusChanged(message.status))
        return events

    def _note_position(self, acknowledger: Acknowledger, message: messages.Message, *, has_changed: bool) -> None:
        """The map has moved on, except with what belongs to a snapshot that is not the map yet.

        During a catch-up it has reached no sequence: keys may lack changes until the next status (rule P2).
        """
        if isinstance(message, messages.Updates | messages.Status) and not self._differ.is_in_snapshot:
            if isinstance(message, messages.Status):
                self._is_catching_up = message.status is messages.SyncStatus.CATCHING_UP
            acknowledger.received(0 if self._is_catching_up else message.sequence, has_changed=has_changed)

    def _plan_retry(self, error: errors.ClientError, *, now: float) -> float:
        lived_seconds = 0.0 if self._connected_at is None else now - self._connected_at
        said = error if isinstance(error, errors.ServerGoodbye) else None
        return self._rotation.failed(
            now,
            lived_seconds=lived_seconds,
            retry_after_seconds=0.0 if said is None else said.retry_after_seconds,
            servers=() if said is None else said.servers,
        )


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
    agent_release: str = "",
    subscription: subscriptions.Subscription | None = None,
    reports_applied: bool = False,
) -> AsyncGenerator[Event, None]:
    """Yields the events of a feed without end, across reconnects.

    Wrap it in `contextlib.aclosing` if you leave the loop early. It reads only during iteration: a receiver that spends
    more than the server's pong timeout on one batch is disconnected, and reconnects.

    Args:
        servers: one `host:port` or several. It uses one at a time and switches to another after each failure. Names are
            resolved for each connection, and the addresses of a name are tried in random order.
        feed: the feed's name.
        agent: name of this program, for the server's log.
        node: name of the node that it runs on, if any.
        tls: connect by TLS with this context.
        server_name: the name in the server's certificate, if it differs from the host.
        timeouts: 10 s to connect, 10 s until the hello, 3 of the server's ping intervals without a message.
        protocol: the protocol to speak. With Typha's, the feed is the syncer type, and no digest verifies the map.
        agent_release: with Typha's protocol, the release of Calico whose agent this is, such as v3.31.7: the server
            sends what such agents understand. Default: the newest.
        subscription: the part of the feed that is wanted. A server that knows subscriptions sends only that; otherwise
            the rest is dropped here.
        reports_applied: tell the server what has been applied: an event is, once the next one is asked for. It has no
            effect with Typha's protocol.

    Raises:
        ValueError: immediately, if there is no address or one is malformed, or the subscription is.
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
        agent_release=agent_release,
        subscription=subscription,
        reports_applied=reports_applied,
    )
    return _acknowledged(follower) if reports_applied else follower.events()


async def _acknowledged(one: Follower) -> AsyncGenerator[Event, None]:
    async with contextlib.aclosing(one.events()) as events:
        async for event in events:
            yield event
            one.applied()
