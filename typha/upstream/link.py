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
from typha.upstream import choice, limits

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
_UPDATE_TYPES = range(256)
"""One byte in Typha's protocol; later releases may have more types than this one."""
_TTL_END = 1 << 63
_DATA_SECONDS_MAX = 30.0
"""Without data before the feed is in sync. A busy upstream that builds a snapshot of a million keys takes less."""
_CONNECTIONS_MAX = 3
"""Connections in turn that may end before the feed is in sync. One may be cut by chance, or by a drain."""


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
        room: limits.Room,
        max_value_bytes: int,
        make_context: Callable[[], ssl.SSLContext | None],
        distrust: Callable[[bytes], None],
    ) -> None:
        self.source = source
        self.upstream = upstream
        self._sink = sink
        self._room = room
        self._messages = limits.Pace(limits.MESSAGES_PER_SECOND)
        self._statuses = limits.Pace(limits.STATUSES_PER_SECOND)
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
        self._has_status = self._is_in_sync = False
        """What the upstream has said on the present connection."""
        self._heard_at = clock.monotonic()
        """When data came last, or a first connection was to be made. Pings and goodbyes are no data."""
        self._connections = 0
        """Those that the upstream has accepted since the feed was last in sync."""
        self._lines = logs.LineLimit(_LINES_PER_MINUTE, seconds=60.0)

    def gives_data(self, now: float, *, must_be_complete: bool) -> bool:
        """Whether the upstream keeps the feed in sync, or is on the way there.

        Args:
            must_be_complete: the upstream says elsewhere that the feed is complete, so it may not say `waiting` here.
        """
        if not self.is_connected or self._connections > _CONNECTIONS_MAX:
            return False
        is_honest = self._is_in_sync or (self._has_status and not must_be_complete)
        return is_honest or now - self._heard_at <= _DATA_SECONDS_MAX

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
                self.is_connected = self._has_status = self._is_in_sync = False
                self.source.lose()
                self._room.forget_snapshot(self.source.name)
            if clock.monotonic() - began_at > 2 * _RETRY_SECONDS_MAX:
                pause_seconds = _RETRY_SECONDS_MIN
            await asyncio.sleep(pause_seconds * random.uniform(0.8, 1.2))
            pause_seconds = min(2 * pause_seconds, _RETRY_SECONDS_MAX)

    def _note(self, error: Exception) -> None:
        if isinstance(error, errors.BadServer):
            self._differ.distrust()
            self._distrust(self.upstream.incarnation)
        if self._lines.allows():
            _log.warning(
                "Connection to the upstream ended",
                feed=self.source.name,
                upstream=self.upstream.address,
                error=str(error)[:500],
            )

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
                await self._messages.turn()
                if isinstance(message, messages.Status):
                    await self._statuses.turn()
                await self._sink.room()

    def _check(self, hello: messages.ServerHello) -> None:
        """Behind an address may be another replica than the one that was asked, or none that can feed replicas."""
        if messages.Feature.TIERS not in hello.features or hello.incarnation != self.upstream.incarnation:
            raise errors.ConnectionLost(self.upstream.address, "another replica has answered than the one to follow")
        self.is_connected = True
        self._connections += 1
        if self._connections == 1:
            self._heard_at = clock.monotonic()
        _log.info("Connected to the upstream", feed=self.source.name, upstream=self.upstream.address)

    def _take(self, message: messages.Message) -> None:
        is_plain = isinstance(message, messages.Updates) and not self._differ.is_in_snapshot
        self._check_room(message, is_plain=is_plain)
        batch = self._differ.receive(message)
        status = _status(message.status) if isinstance(message, messages.Status) else None
        # Not those that the batch has only refreshed: clients hold the value with the old revision (`Store.put`).
        updates: Sequence[messages.Update] = batch.updates if batch is not None else ()
        if is_plain and isinstance(message, messages.Updates):
            updates = message.updates  # with the types, and the invalid values, that clients of the upstream get
        if any(len(update.value or b"") > self._max_value_bytes for update in updates):
            raise protocol_errors.RemoteProtocolError("a value is larger than MaxFrameBytes allows here")
        if not all(map(_can_be_passed_on, updates)):
            raise protocol_errors.RemoteProtocolError("an update has a type, revision or time to live out of range")
        self._note_data(message, status)
        if batch is not None and batch.from_snapshot:
            self._room.forget_snapshot(self.source.name)
        if updates or status is not None:
            self._sink.receive(self.source, updates, status)

    def _check_room(self, message: messages.Message, *, is_plain: bool) -> None:
        if isinstance(message, messages.SnapshotBegin | messages.SnapshotResume):
            self._room.begin_snapshot(self.source.name, message.keys)
        elif isinstance(message, messages.SnapshotChunk | messages.Updates):
            self._room.take(self.source, message.updates, is_in_snapshot=not is_plain)

    def _note_data(self, message: messages.Message, status: messages.SyncStatus | None) -> None:
        if status is not None:
            self._has_status, self._is_in_sync = True, status is messages.SyncStatus.IN_SYNC
            if self._is_in_sync:
                self._connections = 0
        if self._is_in_sync or isinstance(message, messages.Updates | messages.SnapshotChunk):
            self._heard_at = clock.monotonic()


def _can_be_passed_on(update: messages.Update) -> bool:
    """Whether Typha's protocol has room for it, which says less than the native one."""
    return (
        update.update_type in _UPDATE_TYPES
        and -_TTL_END <= update.ttl < _TTL_END
        and len(update.revision) <= limits.REVISION_CHARS_MAX
        and len(update.v3_resource_version) <= limits.REVISION_CHARS_MAX
    )


def _status(status: messages.SyncStatus) -> messages.SyncStatus:
    """What it says of this replica's data: to be caught up is to be incomplete."""
    return messages.SyncStatus.RESYNC if status is messages.SyncStatus.CATCHING_UP else status
