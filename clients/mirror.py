"""Internal: a copy of a feed, kept current by a background task. `Mirror` is public.

The map is always one that a server had. A snapshot is received and verified apart from the map, and then applied as its
difference to the map. During an outage the last map stays; `connected` and `status` show the outage. With a file, it
also stays over the end of the process: the next one begins with it.
"""

import asyncio
import contextlib
import os
import pathlib
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

from clients import connection, follower, statefile
from protocol import messages, subscriptions

SAVE_INTERVAL_SECONDS = 60.0
"""A crash loses what came since: the next process then asks for a minute of changes."""


class Entry(NamedTuple):
    """The value of a key, and its metadata."""

    value: bytes
    revision: str
    v3_resource_version: str = ""
    ttl: int = 0
    """Time to live in nanoseconds; 0 means none."""


class Change(NamedTuple):
    """The change of a key: `old` is None for a new key, `new` is None for a deleted one."""

    key: str
    old: Entry | None
    new: Entry | None


OnChange = Callable[[Sequence[Change]], None]
OnEvent = Callable[[follower.Event], None]


class _Waiter:
    """State of one `changes()` iterator."""

    __slots__ = ("seen", "wakeup")

    def __init__(self, keys: Iterator[str]) -> None:
        self.seen: dict[str, Entry | None] = dict.fromkeys(keys)
        """Keys that have changed since the last list, with the entry that the consumer saw last."""
        self.wakeup = asyncio.Event()
        if self.seen:
            self.wakeup.set()


class Mirror(Mapping[str, Entry]):
    """A read-only mapping from key to `Entry`. A background task keeps it current inside the `async with` block.

    The mirror calls `on_change` with the changes of each batch, in order, after it has applied them, and `on_event`
    with each event, as `follow` yields them. The callbacks must not block. An exception from one ends the mirror; the
    `async with` block and all waiting methods raise it.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        feed: str,
        agent: str,
        node: str = "",
        on_change: OnChange | None = None,
        on_event: OnEvent | None = None,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        timeouts: connection.Timeouts = connection.DEFAULT_TIMEOUTS,
        protocol: connection.Protocol = connection.Protocol.NATIVE,
        subscription: subscriptions.Subscription | None = None,
        reports_applied: bool = False,
        state_file: str | os.PathLike[str] | None = None,
        save_interval_seconds: float = SAVE_INTERVAL_SECONDS,
    ) -> None:
        """The other arguments and the ValueError are those of `follow`. With `reports_applied`, call `applied`.

        Args:
            state_file: keep the map in this file, and begin with what it has. It holds everything that the feed says,
                and only its owner may read it.
            save_interval_seconds: how often the file is written, if the map has changed; and at the end.
        """
        self._follower = follower.Follower(
            servers,
            feed=feed,
            agent=agent,
            node=node,
            tls=tls,
            server_name=server_name,
            timeouts=timeouts,
            protocol=protocol,
            subscription=subscription,
            reports_applied=reports_applied,
        )
        self._on_change = on_change
        self._on_event = on_event
        self._state_file = None if state_file is None else pathlib.Path(state_file)
        self._save_interval_seconds = save_interval_seconds
        self._saved: object = None
        """What tells the state in the file from others."""
        self.restored = False
        """Whether the mirror began with the map in its file. It may be old until the mirror is in sync."""
        self.state_file_error: Exception | None = None
        """Why the file could not be read, or last could not be written."""
        self._entries: dict[str, Entry] = {}
        self._waiters: set[_Waiter] = set()
        self._in_sync = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.status = messages.SyncStatus.WAITING
        """The last status received. It may be out of date while `connected` is False."""
        self.connected = False
        """Whether a server has accepted the hello of the current connection."""
        self.last_disconnect: follower.Disconnected | None = None
        """Why the last connection ended, or could not be established."""

    def __repr__(self) -> str:
        return f"<Mirror keys={len(self)} {self.status.label} connected={self.connected} {self._follower!r}>"

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    # Mirrors compare by identity: Mapping's comparison by content would make them unhashable.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def digest(self) -> int:
        """State digest of the map (docs/protocol.md, section 5)."""
        return self._follower.digest

    @property
    def in_sync(self) -> bool:
        """Whether the mirror is connected and the server says that the data is complete and current."""
        return self._in_sync.is_set()

    @property
    def version(self) -> int:
        """How many times the map has changed, if `reports_applied` is set: what is read now is of this version."""
        return self._follower.version

    def applied(self, version: int | None = None) -> None:
        """Tells the server that a version of the map has taken effect, by default the present one.

        Read `version` together with the map or the list of changes, apply it, then call this. What follows without a
        change counts as applied, also on later connections. It sends at most one message a second.

        Raises:
            RuntimeError: `reports_applied` is not set.
            ValueError: there is no such version.
        """
        self._follower.applied(version)

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("a mirror can be started only once")
        if self._state_file is not None:
            await asyncio.to_thread(self._restore, self._state_file)
        self._task = asyncio.create_task(self._run(), name=f"mirror {self._follower.hello.feed}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = self._running_task()
        task.cancel()
        await asyncio.wait([task])
        await self._save()
        if not task.cancelled() and (failure := task.exception()) is not None and failure is not error:
            raise failure

    async def wait_in_sync(self, *, timeout_seconds: float | None = None) -> None:
        """Waits until the server says that the map is complete and current.

        Raises:
            TimeoutError: `timeout_seconds` have passed. `last_disconnect` may say why.
        """
        async with asyncio.timeout(timeout_seconds):
            await self._wait(self._in_sync)

    async def wait_ended(self) -> NoReturn:
        """Waits until the mirror ends, which it does only by an exception of a callback, and raises that."""
        await self._wait(asyncio.Event())
        raise AssertionError("nothing sets that event")

    async def changes(self) -> AsyncGenerator[list[Change], None]:
        """Yields lists of changes since the previous list, one per key. The first list has every key as new.

        A consumer that is slower than the feed gets the newest value of each key and misses the values in between, so
        the mirror keeps at most one entry per key for it. The mirror itself is always at least as new as the lists.
        """
        waiter = _Waiter(iter(self._entries))
        self._waiters.add(waiter)
        try:
            while True:
                await self._wait(waiter.wakeup)
                waiter.wakeup.clear()
                seen, waiter.seen = waiter.seen, {}
                found = [Change(key, old, self._entries.get(key)) for key, old in seen.items()]
                different = [change for change in found if _value(change.old) != _value(change.new)]
                if different:
                    yield different
        finally:
            self._waiters.discard(waiter)

    def _running_task(self) -> asyncio.Task[None]:
        if self._task is None:
            raise RuntimeError("the mirror is not running: use `async with`")
        return self._task

    async def _wait(self, event: asyncio.Event) -> None:
        """Waits for an event while the mirror runs. If the mirror ends first, raises the exception that ended it."""
        task = self._running_task()
        if event.is_set() and not task.done():
            return
        waiting = asyncio.create_task(event.wait(), name="mirror waiter")
        try:
            await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
        if task.done():
            task.result()
            raise RuntimeError("the mirror has ended")

    def _restore(self, path: pathlib.Path) -> None:
        """Takes the map of the file, if it has one. In a thread, before anything else."""
        try:
            state = statefile.read(path, self._follower.content)
        except (OSError, ValueError) as error:
            self.state_file_error = error
            return
        if state is None:
            return
        updates = [messages.Update(one.key, one.value, one.revision, messages.UpdateType.NEW) for one in state.entries]
        position = state.position
        resumed = None if position is None else messages.ResumePosition(position.incarnation, position.sequence)
        self._follower.restore(updates, position=resumed, chunks=state.chunks)
        for one in state.entries:
            self._entries[one.key] = Entry(one.value, one.revision, one.v3_resource_version, one.ttl)
        self.restored = True

    async def _save(self) -> None:
        """Writes the file, if there is one and the map is another one than in it."""
        path, chunks, position = self._state_file, self._follower.chunks, self._follower.position
        now = (position, chunks, self.digest)
        if path is None or not chunks or now == self._saved:
            return
        entries = dict(self._entries)  # of this moment, and of the position
        try:
            await asyncio.to_thread(_write, path, self._follower.content, position, chunks, entries)
        except (OSError, ValueError) as error:
            self.state_file_error = error
        else:
            self.state_file_error = None
            self._saved = now

    async def _save_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._save_interval_seconds)
            await self._save()

    async def _run(self) -> None:
        saving = asyncio.create_task(self._save_regularly(), name="mirror's file") if self._state_file else None
        try:
            await self._follow()
        finally:
            if saving is not None:
                saving.cancel()
                await asyncio.wait([saving])

    async def _follow(self) -> None:
        async with contextlib.aclosing(self._follower.events()) as events:
            async for event in events:
                match event:
                    case follower.Batch():
                        self._apply(event)
                    case follower.StatusChanged():
                        self.status = event.status
                        self._set_in_sync(event.status is messages.SyncStatus.IN_SYNC)
                    case follower.Connected():
                        self.connected = True
                    case follower.Disconnected():
                        self.connected = False
                        self.last_disconnect = event
                        self._set_in_sync(False)
                if self._on_event is not None:
                    self._on_event(event)

    def _set_in_sync(self, in_sync: bool) -> None:
        if in_sync:
            self._in_sync.set()
        else:
            self._in_sync.clear()

    def _apply(self, batch: follower.Batch) -> None:
        entries = self._entries
        changes = []
        for update in batch.updates:
            old = entries.get(update.key)
            if update.value is None:
                new = None
                entries.pop(update.key, None)
            else:
                new = Entry(update.value, update.revision, update.v3_resource_version, update.ttl)
                entries[update.key] = new
            changes.append(Change(update.key, old, new))
        for update in batch.refreshed:
            if update.value is not None:
                entries[update.key] = Entry(update.value, update.revision, update.v3_resource_version, update.ttl)
        for waiter in self._waiters:
            for change in changes:
                waiter.seen.setdefault(change.key, change.old)
            waiter.wakeup.set()
        if changes and self._on_change is not None:
            self._on_change(changes)


def _write(
    path: pathlib.Path,
    feed: str,
    position: messages.ResumePosition | None,
    chunks: int,
    entries: Mapping[str, Entry],
) -> None:
    at = None if position is None else statefile.Position(position.incarnation, position.sequence)
    kept = [statefile.Entry(key, *entry) for key, entry in entries.items()]
    statefile.write(path, statefile.State(feed, at, chunks, kept))


def _value(entry: Entry | None) -> bytes | None:
    return None if entry is None else entry.value
