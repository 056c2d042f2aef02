"""A feed that another replica feeds: it takes that replica's updates and statuses, and converts nothing. Pure.

What clients are sent is what the other replica sends its own clients: keys, values, revisions and update types. Once
the feed has been complete, its status stays in-sync for Typha's clients, as during an outage of the API server. Native
ones learn from `confirmed_status` what the other replica says, and that it is lost.
"""

from collections.abc import Iterable

from cache import objects, resources
from cache.feeds import feed
from protocol import messages


class FollowedFeed(feed.Feed):
    """It has no resource types of its own, so no watcher knows it."""

    def __init__(self, name: str, *, has_projections: bool = False) -> None:
        super().__init__(name, ())
        self.has_projections = has_projections
        """Whether the other replica makes feeds of this one for agents of older releases."""
        self._said = self._in_force = messages.SyncStatus.WAITING
        """What the other replica has said last, and what it has said of the data that the store has."""
        self.is_doubted = False
        """Whether the other replica does not confirm any more what it has said."""
        self.backlog_bytes = 0
        """Keys and values of the changes that no batch has taken yet."""

    def succeed(self, old: feed.Feed) -> None:
        """See Feed. What the old feed has is current until something else is heard."""
        super().succeed(old)
        self._said = self._in_force = old.confirmed_status
        self._is_reconciling = False  # the first snapshot of the other replica comes as a difference

    def receive(self, updates: Iterable[messages.Update]) -> None:
        """Process updates of the other replica, in their order."""
        for update in updates:
            self._changes.append(update)
            self.backlog_bytes += _size(update)

    def receive_status(self, status: messages.SyncStatus) -> None:
        """Process a status of the other replica, after the updates that it describes."""
        self._said = status
        if status is messages.SyncStatus.IN_SYNC:
            self._status = status
        else:
            self._in_force = status

    def lose(self) -> None:
        """The other replica is lost. What there is stays."""
        self._said = self._in_force = messages.SyncStatus.WAITING

    def restart(self) -> None:
        """Begin with another replica: forget what no batch has taken, which it sends again."""
        self._changes.clear()
        self.backlog_bytes = 0
        self.lose()

    def confirm(self, at: float) -> None:
        """The API server has confirmed the data at that time, as the other replica says."""
        self.last_confirmed = max(at, self.last_confirmed or at)

    def take(self, limits: feed.BatchLimits = feed.EVERYTHING) -> feed.Batch | None:
        """See Feed."""
        batch = super().take(limits)
        if not self._changes:
            self._in_force = self._said
        return batch

    @property
    def _contact(self) -> messages.SyncStatus:
        is_current = self._in_force is messages.SyncStatus.IN_SYNC
        return messages.SyncStatus.WAITING if is_current and self.is_doubted else self._in_force

    @property
    def is_stale(self) -> bool:
        """See Feed."""
        return self.synced_once and self._contact is not messages.SyncStatus.IN_SYNC

    def set_status(self, type: resources.ResourceType, status: messages.SyncStatus) -> None:
        """See Feed. A watcher that has just ended may have left a status."""

    def convert(self, event: objects.ObjectEvent) -> None:
        """See Feed. No watcher has objects for this feed."""

    def adopt(self, event: objects.ObjectEvent, outcome: object) -> None:
        """See Feed. A conversion that has just ended may have left an outcome."""

    def delete(self, event: objects.ObjectEvent) -> None:
        """See Feed."""

    def held_items(self, type: resources.ResourceType, namespace: str, name: str) -> list[feed.HeldItem]:
        """See Feed. The replica that converts the objects knows."""
        return []

    def _delete_what_no_object_has(self) -> None:
        """It has no objects."""

    def _write(self, change: messages.Update) -> messages.Update | None:
        self.backlog_bytes -= _size(change)
        if change.value is None:
            if self.store.delete(change.key, change.revision) is None:
                self.store.sequence += 1  # as the other replica, which tells of invalid values of absent keys
            return change
        update = self.store.put(
            change.key, change.value, change.revision, v3_resource_version=change.v3_resource_version, ttl=change.ttl
        )
        if update is None or update.update_type == change.update_type:
            return update
        return update._replace(update_type=change.update_type)


def _size(update: messages.Update) -> int:
    return len(update.key) + len(update.value or b"")
