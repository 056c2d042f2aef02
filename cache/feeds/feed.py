"""A feed: objects of several resource types in, updates and one status out. Pure.

A feed is told of objects and of each type's status by the watchers (which it may share with other feeds), and
converts them at once, so that a refusal names its object. The store changes only in `take`, which gives what has
happened since the last call as one batch: updates first, then the status if it changed, so that a status never
overtakes data. A cut of the store at any moment therefore holds exactly what the batches taken so far say, however
far a watcher is inside a batch of its own.
"""

import abc
from collections.abc import Iterable
from typing import NamedTuple

from cache import objects, resources
from cache.feeds import raw
from cache.state import store
from protocol import messages
from protocol.native import codec


class Batch(NamedTuple):
    """Consecutive updates that begin behind `previous_sequence`, and the new status, if there is one."""

    previous_sequence: int
    updates: list[messages.Update]
    status: messages.SyncStatus | None


class _Change(NamedTuple):
    """What the next batch does to a key; `value` is None to delete it."""

    key: str
    value: bytes | None
    revision: str


class Refusal(NamedTuple):
    """An object that the feed cannot carry, or not all of it; what it cannot carry is absent."""

    feed: str
    key: str
    reason: str
    """A short code, the metric's label: invalid-object, value-too-large, key-too-long."""
    detail: str
    is_carried: bool = False
    """It is carried even so, as the original does; its meaning may not be what its author thinks."""


def combined_status(statuses: dict[resources.ResourceType, messages.SyncStatus]) -> messages.SyncStatus:
    """One status of many: in sync or waiting if all are, else a resync (parity.md, section 11)."""
    distinct = set(statuses.values())
    return distinct.pop() if len(distinct) == 1 else messages.SyncStatus.RESYNC


class Feed(abc.ABC):
    """What all feeds have in common; the subclass converts."""

    def __init__(
        self, name: str, types: Iterable[resources.ResourceType], store_limits: store.StoreLimits | None = None
    ) -> None:
        self.name = name
        self.store = store.Store(store_limits)
        self.refused = 0
        """Objects that could not be carried, each time they came."""
        self.skipped = 0
        """Changes that changed nothing which the feed carries."""
        self.synced_once = False
        """True from the first batch with every type in sync: from then on there is something to serve."""
        self._statuses = dict.fromkeys(types, messages.SyncStatus.WAITING)
        self._status = messages.SyncStatus.WAITING

    @property
    def types(self) -> list[resources.ResourceType]:
        """The resource types it consists of."""
        return list(self._statuses)

    @abc.abstractmethod
    def apply(self, event: objects.ObjectEvent) -> Refusal | None:
        """An object is new or has changed; a refusal names it and takes away what cannot be carried."""

    @abc.abstractmethod
    def delete(self, event: objects.ObjectEvent) -> None:
        """An object is gone."""

    @abc.abstractmethod
    def _write_changes(self) -> list[messages.Update]:
        """Writes the store; the updates that clients are sent, as many as the store's sequence has grown by."""

    def set_status(self, type: resources.ResourceType, status: messages.SyncStatus) -> None:
        """One type's status; the feed's is what they all say together."""
        self._statuses[type] = status
        self._status = combined_status(self._statuses)

    def take(self) -> Batch | None:
        """Writes the store; what has happened since the last call, or None for nothing that a client can see."""
        previous_sequence = self.store.sequence
        updates = self._write_changes()
        status = None if self.store.status is self._status else self._status
        self.store.status = self._status
        self.synced_once = self.synced_once or self._status is messages.SyncStatus.IN_SYNC
        if not updates and status is None:
            return None
        return Batch(previous_sequence, updates, status)


class RawFeed(Feed):
    """A feed of raw objects; see `cache.feeds.raw` for keys and values."""

    def __init__(
        self, spec: raw.FeedSpec, *, max_value_bytes: int, store_limits: store.StoreLimits | None = None
    ) -> None:
        super().__init__(spec.name, [resource.type for resource in spec.resources], store_limits)
        self._fields = {resource.type: resource.fields for resource in spec.resources}
        self._max_value_bytes = max_value_bytes
        self._changes: list[_Change] = []

    def apply(self, event: objects.ObjectEvent) -> Refusal | None:
        """An object is new or has changed; a refusal names it and takes its key away."""
        key = raw.object_key(event.type, event.namespace, event.name)
        try:
            value = raw.object_value(
                event.raw or b"", api_version=event.api_version, kind=event.kind, fields=self._fields[event.type]
            )
        except raw.InvalidObject as error:
            return self._refuse(key, event, "invalid-object", str(error))
        if len(value) > self._max_value_bytes:
            return self._refuse(key, event, "value-too-large", f"{len(value)} bytes, limit {self._max_value_bytes}")
        if len(key) > codec.MAX_KEY_CHARS:
            return self._refuse(key, event, "key-too-long", f"{len(key)} characters, limit {codec.MAX_KEY_CHARS}")
        self._changes.append(_Change(key, value, event.resource_version))
        return None

    def delete(self, event: objects.ObjectEvent) -> None:
        """An object is gone."""
        key = raw.object_key(event.type, event.namespace, event.name)
        self._changes.append(_Change(key, None, event.resource_version))

    def _write_changes(self) -> list[messages.Update]:
        changes, self._changes = self._changes, []
        updates = [update for change in changes if (update := self._write(change)) is not None]
        self.skipped += len(changes) - len(updates)
        return updates

    def _write(self, change: _Change) -> messages.Update | None:
        if change.value is None:
            return self.store.delete(change.key, change.revision)
        return self.store.put(change.key, change.value, change.revision)

    def _refuse(self, key: str, event: objects.ObjectEvent, reason: str, detail: str) -> Refusal:
        self.refused += 1
        self._changes.append(_Change(key, None, event.resource_version))
        return Refusal(self.name, key, reason, detail)
