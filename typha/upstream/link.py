"""One feed of an upstream: a native client whose map is the feed's store."""

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from cache.feeds import followed
from cache.kube import tls_contexts
from clients import connection, differ, errors
from protocol import errors as protocol_errors
from protocol import messages
from typha import clock
from typha.observability import logs
from typha.upstream import choice

_log = structlog.get_logger("typha.upstream")
AGENT = "typha-replica"
FEATURES = frozenset(
    {
        messages.Feature.ZSTD,
        messages.Feature.RESUME,
        messages.Feature.CHUNK_DIGESTS,
        messages.Feature.FRESHNESS,
        messages.Feature.TIERS,
    }
)
_RETRY_SECONDS_MIN = 0.25
_RETRY_SECONDS_MAX = 5.0
"""The choice leaves an upstream that accepts no connection for ten seconds."""
_LINES_PER_MINUTE = 6


class Sink(Protocol):
    """Takes what a link hears."""

    def receive(
        self, source: followed.FollowedFeed, updates: Sequence[messages.Update], status: messages.SyncStatus | None
    ) -> None:
        """Updates of a feed, and then perhaps a status."""

    async def room(self) -> None:
        """Return when there is room for more."""


class Link:
    """Keeps one feed as the upstream has it. Run `run` as a task; cancel it to leave the upstream."""

    def __init__(
        self,
        source: followed.FollowedFeed,
        upstream: choice.Upstream,
        sink: Sink,
        *,
        max_value_bytes: int,
        make_context: Callable[[], ssl.SSLContext | None],
        distrust: Callable[[bytes], None],
    ) -> None:
        self.source = source
        self.upstream = upstream
        self._sink = sink
        self._max_value_bytes = max_value_bytes
        self._make_context = make_context
        self._distrust = distrust
        self._differ = differ.Differ()
        source.restart()
        store = source.store
        if store.sequence:
            known = ((one.key, one.digest, one.revision) for one in store)
            self._differ.restore_known(known, chunks=store.chunk_count)
        self.is_connected = False
        """Whether the upstream has accepted the hello of the present connection."""
        self._lines = logs.LineLimit(_LINES_PER_MINUTE, seconds=60.0)

    async def run(self) -> None:
        """Follows the upstream, forever."""
        pause_seconds = _RETRY_SECONDS_MIN
        while True:
            began_at = clock.monotonic()
            try:
                await self._follow()
            except errors.ClientError as error:
                self._note(error)
            except tls_contexts.TlsUnusable as error:
                self._note(error)
            finally:
                self.is_connected = False
                self.source.lose()
            if clock.monotonic() - began_at > 2 * _RETRY_SECONDS_MAX:
                pause_seconds = _RETRY_SECONDS_MIN
            await asyncio.sleep(pause_seconds * random.uniform(0.8, 1.2))
            pause_seconds = min(2 * pause_seconds, _RETRY_SECONDS_MAX)

    def _note(self, error: Exception) -> None:
        if isinstance(error, errors.BadServer):
            self._differ.distrust()
            self._distrust(self.upstream.incarnation)
        if self._lines.allows():
            _log.warning("Connection to the upstream ended", feed=self.source.name, error=str(error)[:500])

    async def _follow(self) -> None:
        self._differ.begin_connection()
        hello = messages.ClientHello(self.source.name, AGENT, features=FEATURES, software=connection.SOFTWARE)
        opened = connection.stream(self.upstream.address, hello=self._differ.resuming(hello), tls=self._make_context())
        async with contextlib.aclosing(opened) as received:
            async for message in received:
                if isinstance(message, messages.ServerHello):
                    self._check(message)
                try:
                    self._take(message)
                except protocol_errors.RemoteProtocolError as error:
                    raise errors.BadServer(self.upstream.address, str(error)) from error
                await self._sink.room()

    def _check(self, hello: messages.ServerHello) -> None:
        """Behind an address may be another replica than the one that was asked, or none that can feed replicas."""
        if messages.Feature.TIERS not in hello.features or hello.incarnation != self.upstream.incarnation:
            raise errors.ConnectionLost(self.upstream.address, "another replica has answered than the one to follow")
        self.is_connected = True
        _log.info("Connected to the upstream", feed=self.source.name, upstream=self.upstream.address)

    def _take(self, message: messages.Message) -> None:
        is_plain = isinstance(message, messages.Updates) and not self._differ.is_in_snapshot
        batch = self._differ.receive(message)
        status = _status(message.status) if isinstance(message, messages.Status) else None
        updates: Sequence[messages.Update] = batch.updates if batch is not None else ()
        if is_plain and isinstance(message, messages.Updates):
            updates = message.updates  # with the types, and the invalid values, that clients of the upstream get
        if any(len(update.value or b"") > self._max_value_bytes for update in updates):
            raise protocol_errors.RemoteProtocolError("a value is larger than MaxFrameBytes allows here")
        if updates or status is not None:
            self._sink.receive(self.source, updates, status)


def _status(status: messages.SyncStatus) -> messages.SyncStatus:
    """What it says of this replica's data: to be caught up is to be incomplete."""
    return messages.SyncStatus.RESYNC if status is messages.SyncStatus.CATCHING_UP else status
