"""A feed's map, kept up to date in the background.

    async with mirror.Mirror("typha:5473", feed="workloads", agent="my-agent") as pods:
        await pods.wait_in_sync(timeout_seconds=60)
        print(len(pods), pods["/core/v1/pods/default/web-1"].value)
        async for changes in pods.changes():
            for key, old, new in changes: ...

The map is always one that a server had: snapshots are built on the side, verified and swapped in as real differences,
and an outage leaves the last map standing (`connected` and `status` tell).
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from clients import connection, follow
from protocol import messages


class Entry(NamedTuple):
    """One live key's value and what travels beside it."""

    value: bytes
    revision: str
    v3_resource_version: str = ""
    ttl: int = 0
    """Nanoseconds, 0 for none."""


class Change(NamedTuple):
    """A key's real difference: `old` is None if it is new, `new` if it is gone."""

    key: str
    old: Entry | None
    new: Entry | None


OnChange = Callable[[Sequence[Change]], None]


class _Waiter:
    """One `changes()` iterator: per key the value it has last seen, until it looks again."""

    __slots__ = ("seen", "wakeup")

    def __init__(self, keys: Iterator[str]) -> None:
        self.seen: dict[str, Entry | None] = dict.fromkeys(keys)
        self.wakeup = asyncio.Event()
        if self.seen:
            self.wakeup.set()


class Mirror(Mapping[str, Entry]):
    """A read-only mapping from key to `Entry`, filled by a task of its own between `async with` and its end.

    `on_change` is called, in order, with the changes of each batch, after the map has them; it must not block. What it
    raises ends the mirror, and comes out of the `async with` block and of whatever waits for the mirror.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        feed: str,
        agent: str,
        node: str = "",
        on_change: OnChange | None = None,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        timeouts: connection.Timeouts = connection.DEFAULT_TIMEOUTS,
        protocol: connection.Protocol = connection.Protocol.NATIVE,
    ) -> None:
        """The arguments are those of `follow.follow`, and its ValueError."""
        self._follower = follow.Follower(
            servers,
            feed=feed,
            agent=agent,
            node=node,
            tls=tls,
            server_name=server_name,
            timeouts=timeouts,
            protocol=protocol,
        )
        self._on_change = on_change
        self._entries: dict[str, Entry] = {}
        self._waiters: set[_Waiter] = set()
        self._in_sync = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.status = messages.SyncStatus.WAITING
        """The last status received; of the past if not `connected`."""
        self.connected = False
        self.last_disconnect: follow.Disconnected | None = None

    def __repr__(self) -> str:
        return f"<Mirror keys={len(self)} {self.status.label} connected={self.connected} {self._follower!r}>"

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    # A mirror is a place, not a value: Mapping's comparison by content would make it unhashable.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def digest(self) -> int:
        """State digest of the map (docs/protocol.md, section 5)."""
        return self._follower.digest

    @property
    def in_sync(self) -> bool:
        """Connected, and told so by the server."""
        return self._in_sync.is_set()

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("a mirror runs once")
        self._task = asyncio.create_task(self._run(), name=f"mirror {self._follower.hello.feed}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = self._running_task()
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (failure := task.exception()) is not None and failure is not error:
            raise failure

    async def wait_in_sync(self, *, timeout_seconds: float | None = None) -> None:
        """Waits until the map is complete and current, as the server says.

        Raises:
            TimeoutError: it was not within `timeout_seconds`; `last_disconnect` may tell why.
        """
        async with asyncio.timeout(timeout_seconds):
            await self._wait(self._in_sync)

    async def changes(self) -> AsyncGenerator[list[Change], None]:
        """Lists of real differences, one for each key, since the last list; the first one is the whole map as new.

        A consumer that is slower than the feed gets the newest value of each key and misses what lay between: held
        for it is at most one entry a key. It need not look at the lists: the mirror itself is at least as new.
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
        """Waits for an event of the running mirror; raises what ended the mirror if that comes first."""
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

    async def _run(self) -> None:
        async with contextlib.aclosing(self._follower.events()) as events:
            async for event in events:
                match event:
                    case follow.Batch():
                        self._apply(event)
                    case follow.StatusChanged():
                        self.status = event.status
                        self._set_in_sync(event.status is messages.SyncStatus.IN_SYNC)
                    case follow.Connected():
                        self.connected = True
                    case follow.Disconnected():
                        self.connected = False
                        self.last_disconnect = event
                        self._set_in_sync(False)

    def _set_in_sync(self, in_sync: bool) -> None:
        if in_sync:
            self._in_sync.set()
        else:
            self._in_sync.clear()

    def _apply(self, batch: follow.Batch) -> None:
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


def _value(entry: Entry | None) -> bytes | None:
    return None if entry is None else entry.value
