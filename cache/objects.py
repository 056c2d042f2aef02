"""What a watcher hands on: objects as the API server wrote them, and what is known of their freshness. Pure."""

import enum
from typing import NamedTuple, Protocol

from cache.resources import ResourceType
from protocol.messages import SyncStatus


class Origin(enum.Enum):
    """How an object came to be known. INITIAL is a list that arrives as events (WatchList), and counts as one."""

    LIST = "list"
    INITIAL = "initial"
    EVENT = "event"


class ObjectEvent(NamedTuple):
    """One object, new, changed or gone.

    `raw` is the object's JSON exactly as the API server wrote it; items of a list of a built-in type lack apiVersion
    and kind, so both stand beside it. For a deletion it is the object's last state, or None where only the fact is
    known (the object was missing from a list).
    """

    type: ResourceType
    namespace: str
    name: str
    resource_version: str
    raw: bytes | None
    api_version: str
    kind: str
    origin: Origin


class WatchSink(Protocol):
    """Takes what the watchers find out. Called synchronously and in order; must not call back into the watcher."""

    def apply(self, event: ObjectEvent) -> None:
        """The object is new or differs from what was applied last; never the same resourceVersion twice in a row."""

    def delete(self, event: ObjectEvent) -> None:
        """The object, applied earlier, is gone."""

    def status(self, type: ResourceType, status: SyncStatus) -> None:
        """The type's status changed: WAITING (never complete, or lost too long), RESYNC (a list runs), IN_SYNC."""

    def confirmed(self, type: ResourceType) -> None:
        """The API server confirmed just now that the view of this type is current."""

    def batch_end(self) -> None:
        """No more input right now: what was applied since the last call may be published as one."""
