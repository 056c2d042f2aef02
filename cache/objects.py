"""What watchers pass to a sink: objects as the API server wrote them, and how fresh the data is. Pure."""

import enum
from typing import NamedTuple, Protocol

from cache.resources import ResourceType
from protocol.messages import SyncStatus


class Origin(enum.Enum):
    """Where an object came from. INITIAL is a list that arrives as events (WatchList), and counts as a list."""

    LIST = "list"
    INITIAL = "initial"
    EVENT = "event"


class ObjectEvent(NamedTuple):
    """One object that is new, changed or deleted.

    `raw` is the object's JSON exactly as the API server wrote it. List items of built-in types lack apiVersion and
    kind, so both are separate fields. For a deletion, `raw` is the object's last state. It is None if that state is
    unknown, because the object was missing from a list.
    """

    type: ResourceType
    namespace: str
    name: str
    resource_version: str
    raw: bytes | None
    api_version: str
    kind: str
    origin: Origin


class SkippedObject(NamedTuple):
    """One object that the API server sent, and that cannot be used. It counts as absent."""

    type: ResourceType
    namespace: str
    """As far as it is known, like the name."""
    name: str
    reason: str
    """A short code, used as a metric label: undecodable, no-identity, wrong-kind."""
    detail: str


class WatchSink(Protocol):
    """Receives what the watchers find. Calls are synchronous and in order. Must not call back into the watcher."""

    def apply(self, event: ObjectEvent) -> None:
        """The object is new or has changed. The same resourceVersion never comes twice in a row."""

    def delete(self, event: ObjectEvent) -> None:
        """An object that was applied before is deleted."""

    def skipped(self, skipped: SkippedObject) -> None:
        """An object is left out. If it was applied before, its deletion follows, at the end of a list at the latest."""

    def status(self, type: ResourceType, status: SyncStatus) -> None:
        """The type's status changed: WAITING (never complete, or lost for too long), RESYNC (a list runs), IN_SYNC."""

    def confirmed(self, type: ResourceType) -> None:
        """The API server has just confirmed that the known objects of this type are current."""

    def batch_end(self) -> None:
        """There is no more input at the moment: changes since the last call may be published as one batch."""

    async def room(self) -> None:
        """Return when there is room for another slice. Watchers wait for it after each of their slices."""
