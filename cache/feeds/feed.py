"""A feed: takes objects of several resource types, and gives updates and one status. Pure.

Watchers pass objects, and the status of each type, to the feed; several feeds may share a watcher. The feed converts
an object at once, so that a rejection can name it. The store changes only in `take`, which returns everything since
the last call as one batch: first the updates, then the status if it changed. A status therefore never comes before its
data. A cut of the store always contains exactly the batches taken so far, even while a watcher is within a batch.

A feed may succeed another one of the same name: it keeps the store, and so what clients have. Until all its types are
in sync it only writes what differs, and the status stays; then it deletes the keys that no object has.
"""

import abc
import sys
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from cache import objects, resources
from cache.feeds import raw
from cache.state import store
from protocol import messages
from protocol.native import codec


class Batch(NamedTuple):
    """The updates after `previous_sequence`, and the new status, if it changed."""

    previous_sequence: int
    updates: list[messages.Update]
    status: messages.SyncStatus | None


class BatchLimits(NamedTuple):
    """The most that one batch takes of what a feed has gathered. The rest stays for the next one."""

    changes: int = sys.maxsize
    value_bytes: int = sys.maxsize
    """The batch ends with the change that reaches this."""
    split_keys: int = sys.maxsize
    """Keys that the store moves to new chunks meanwhile."""


EVERYTHING = BatchLimits()


class _Change(NamedTuple):
    """A change that the next batch makes to a key. `value` None deletes the key."""

    key: str
    value: bytes | None
    revision: str


class HeldItem(NamedTuple):
    """A key that an object has in a feed."""

    key: str
    note: str = ""
    """Why the key has no value, or another one than the object gives it; empty if it is as it should be."""


class Rejection(NamedTuple):
    """An object, or a part of it, that the feed cannot send. That part is missing in the feed."""

    feed: str
    key: str
    reason: str
    """A short code, used as a metric label: invalid-object, value-too-large, key-too-long."""
    detail: str
    is_carried: bool = False
    """Whether the object is sent nevertheless, as the original does. It may not mean what its author intended."""


def combined_status(statuses: dict[resources.ResourceType, messages.SyncStatus]) -> messages.SyncStatus:
    """In sync or waiting if all types are, else a resync (docs/reference/typha-behaviour.md, section 11)."""
    distinct = set(statuses.values())
    return distinct.pop() if len(distinct) == 1 else messages.SyncStatus.RESYNC


class Feed(abc.ABC):
    """The common part of all feeds. Subclasses convert the objects."""

    def __init__(
        self, name: str, types: Iterable[resources.ResourceType], store_limits: store.StoreLimits | None = None
    ) -> None:
        self.name = name
        self.store = store.Store(store_limits)
        self.rejected = 0
        """Number of rejections. An object counts each time that it comes."""
        self.skipped = 0
        """Number of changes that did not change anything in the feed."""
        self.synced_once = False
        """Whether a batch had every type in sync. From then on the feed has data to serve."""
        self._changes: deque[Any] = deque()
        """What the next batches write, oldest first, in the form of the subclass."""
        self._statuses = dict.fromkeys(types, messages.SyncStatus.WAITING)
        self._status = messages.SyncStatus.WAITING
        self._unconfirmed: set[resources.ResourceType] = set()
        self.last_confirmed: float | None = None
        """When the API server last confirmed one of the types."""
        self._is_reconciling = False
        """Whether the store may have keys of the feed before this one that no object has."""

    @property
    def types(self) -> list[resources.ResourceType]:
        """The resource types of the feed."""
        return list(self._statuses)

    def apply(self, event: objects.ObjectEvent) -> Rejection | None:
        """Process a new or changed object. A rejection names it; what cannot be sent is removed from the feed."""
        return self.adopt(event, self.convert(event))

    def may_take_long(self, event: objects.ObjectEvent) -> bool:
        """Return whether `convert` may take more than some milliseconds, and may run in another thread."""
        return False

    @abc.abstractmethod
    def convert(self, event: objects.ObjectEvent) -> Any:
        """Convert an object, without a change of the feed. Failures are outcomes, too.

        Raises:
            MemoryError: the object may be good.
        """

    @abc.abstractmethod
    def adopt(self, event: objects.ObjectEvent, outcome: Any) -> Rejection | None:
        """Process the outcome of `convert`."""

    @abc.abstractmethod
    def delete(self, event: objects.ObjectEvent) -> None:
        """Process the deletion of an object."""

    @abc.abstractmethod
    def held_items(self, type: resources.ResourceType, namespace: str, name: str) -> list[HeldItem]:
        """Return the keys that an object of one of the feed's types has now, in the order in which they are sent."""

    def owner_of(self, key: str) -> tuple[str, str] | None:
        """Return kind and name (`namespace/name`) of the object that a value comes from, if the key does not say it."""
        return None

    @abc.abstractmethod
    def _write(self, change: Any) -> messages.Update | None:
        """Write one change to the store. Return its update for clients, if there is one."""

    @property
    def backlog(self) -> int:
        """The number of changes that no batch has taken yet."""
        return len(self._changes)

    @property
    def is_unfinished(self) -> bool:
        """Whether the last batch left something for the next one."""
        return bool(self._changes) or self.store.is_splitting

    def set_status(self, type: resources.ResourceType, status: messages.SyncStatus) -> None:
        """Set the status of one type. The feed's status combines the statuses of all types."""
        self._statuses[type] = status
        self._status = combined_status(self._statuses)

    def set_unconfirmed(
        self, type: resources.ResourceType, is_unconfirmed: bool, confirmed_at: float | None = None
    ) -> None:
        """Record whether the API server can no longer confirm the objects of a type, and when it last did."""
        if confirmed_at is not None:
            self.last_confirmed = max(confirmed_at, self.last_confirmed or confirmed_at)
        if is_unconfirmed and type in self._statuses:
            self._unconfirmed.add(type)
        else:
            self._unconfirmed.discard(type)

    def succeed(self, old: "Feed") -> None:
        """Take the place of another feed of the same name, before anything has come. Clients keep what they have."""
        self.store = old.store
        self.rejected, self.skipped, self.synced_once = old.rejected, old.skipped, old.synced_once
        self.last_confirmed = old.last_confirmed
        self._status = old.store.status
        self._is_reconciling = bool(old.store.sequence)

    @property
    def confirmed_status(self) -> messages.SyncStatus:
        """The store's status, for clients that are to know about a lost API server.

        Instead of in-sync it is waiting if no type is confirmed, and resync if some types are.
        """
        status = self.store.status
        return self._contact if status is messages.SyncStatus.IN_SYNC else status

    @property
    def _contact(self) -> messages.SyncStatus:
        """What confirms that a complete store is current: in-sync for all types, resync for some, waiting for none."""
        if self._is_reconciling:
            return messages.SyncStatus.WAITING
        if not self._unconfirmed:
            return messages.SyncStatus.IN_SYNC
        is_lost = self._unconfirmed >= self._statuses.keys()
        return messages.SyncStatus.WAITING if is_lost else messages.SyncStatus.RESYNC

    @property
    def is_stale(self) -> bool:
        """Whether there is data to serve, and the API server can no longer confirm a part of it."""
        return self.synced_once and (self._is_reconciling or bool(self._unconfirmed))

    @property
    def confirmed_at(self) -> float | None:
        """When the API server last confirmed an object type of the feed; None while a part of the data is unconfirmed
        or incomplete."""
        return self.last_confirmed if self.confirmed_status is messages.SyncStatus.IN_SYNC else None

    def take(self, limits: BatchLimits = EVERYTHING) -> Batch | None:
        """Write the store. Return what has happened since the last call, or None if clients see no change.

        The status comes with the batch that leaves no change behind.
        """
        previous_sequence = self.store.sequence
        updates = self._write_changes(limits)
        self.store.advance_split(limits.split_keys)
        if self._is_reconciling and not self._changes and self._is_complete:
            self._is_reconciling = False
            self._delete_what_no_object_has()
        if self._changes or self._is_reconciling:
            return Batch(previous_sequence, updates, None) if updates else None
        status = None if self.store.status is self._status else self._status
        self.store.status = self._status
        self.synced_once = self.synced_once or self._status is messages.SyncStatus.IN_SYNC
        if not updates and status is None:
            return None
        return Batch(previous_sequence, updates, status)

    @property
    def _is_complete(self) -> bool:
        """Whether all types are in sync."""
        return combined_status(self._statuses) is messages.SyncStatus.IN_SYNC

    @abc.abstractmethod
    def _delete_what_no_object_has(self) -> None:
        """Add the deletion of each key in the store that no object of this feed has to the changes."""

    def _write_changes(self, limits: BatchLimits) -> list[messages.Update]:
        """Write the oldest changes. Return the updates for clients. The store's sequence grows by their number."""
        changes, updates = self._changes, []
        left, left_bytes = min(limits.changes, len(changes)), limits.value_bytes
        count = left
        while left and left_bytes > 0:
            left -= 1
            update = self._write(changes.popleft())
            if update is not None:
                updates.append(update)
                left_bytes -= len(update.value or b"")
        self.skipped += count - left - len(updates)
        return updates


class RawFeed(Feed):
    """A feed of raw objects. See `cache.feeds.raw` for its keys and values."""

    def __init__(
        self, spec: raw.FeedSpec, *, max_value_bytes: int, store_limits: store.StoreLimits | None = None
    ) -> None:
        super().__init__(spec.name, [resource.type for resource in spec.resources], store_limits)
        self._fields = {resource.type: resource.fields for resource in spec.resources}
        self._max_value_bytes = max_value_bytes
        self._held: set[str] = set()
        """The keys that objects have, while the store may have others."""

    def convert(self, event: objects.ObjectEvent) -> bytes | raw.InvalidObject:
        """See Feed."""
        try:
            return raw.object_value(
                event.raw or b"", api_version=event.api_version, kind=event.kind, fields=self._fields[event.type]
            )
        except raw.InvalidObject as error:
            return error

    def adopt(self, event: objects.ObjectEvent, outcome: bytes | raw.InvalidObject) -> Rejection | None:
        """See Feed. If the object is rejected, its key is deleted."""
        key = raw.object_key(event.type, event.namespace, event.name)
        if isinstance(outcome, raw.InvalidObject):
            return self._reject(key, event, "invalid-object", str(outcome))
        value = outcome
        if len(value) > self._max_value_bytes:
            return self._reject(key, event, "value-too-large", f"{len(value)} bytes, limit {self._max_value_bytes}")
        if len(key) > codec.MAX_KEY_CHARS:
            return self._reject(key, event, "key-too-long", f"{len(key)} characters, limit {codec.MAX_KEY_CHARS}")
        if self._is_reconciling:
            self._held.add(key)
        self._changes.append(_Change(key, value, event.resource_version))
        return None

    def delete(self, event: objects.ObjectEvent) -> None:
        """Process the deletion of an object."""
        key = raw.object_key(event.type, event.namespace, event.name)
        self._held.discard(key)
        self._changes.append(_Change(key, None, event.resource_version))

    def held_items(self, type: resources.ResourceType, namespace: str, name: str) -> list[HeldItem]:
        """See Feed."""
        key = raw.object_key(type, namespace, name)
        return [HeldItem(key)] if key in self.store else []

    def _write(self, change: _Change) -> messages.Update | None:
        if change.value is None:
            return self.store.delete(change.key, change.revision)
        return self.store.put(change.key, change.value, change.revision)

    def _delete_what_no_object_has(self) -> None:
        held, self._held = self._held, set()
        self._changes.extend(_Change(one.key, None, one.revision) for one in self.store if one.key not in held)

    def _reject(self, key: str, event: objects.ObjectEvent, reason: str, detail: str) -> Rejection:
        self.rejected += 1
        self._held.discard(key)
        self._changes.append(_Change(key, None, event.resource_version))
        return Rejection(self.name, key, reason, detail)
