"""What a watch machine asks its driver for, and what it tells it to log. Pure."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from cache import resources
from cache.watch import view
from cache.watch.policy import WatchPolicy


class RequestKind(enum.Enum):
    """LIST answers with one body, the others with a stream of lines."""

    LIST = "list"
    WATCH_LIST = "watchlist"
    WATCH = "watch"

    @property
    def verb(self) -> str:
        """The RBAC verb the request needs."""
        return "list" if self is RequestKind.LIST else "watch"


@dataclass(frozen=True, slots=True)
class Request:
    """A GET to make now. The answer comes back by `accepted` or `refused`, a failure by `interrupted`."""

    kind: RequestKind
    path: str
    query: Mapping[str, str]
    read_timeout_seconds: float
    """Without a byte for this long the connection is given up (watch_policy.Failure.IDLE)."""
    timeout_seconds: int = 0
    """timeoutSeconds of a watch."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing to do before this time; then `tick`."""

    until: float


@dataclass(frozen=True, slots=True)
class ReloadCredentials:
    """The API server did not accept our credentials: load them again, then ask for the next step."""


Step: TypeAlias = Request | Pause | ReloadCredentials


class NoticeKind(enum.Enum):
    """What is worth a log line; the values are the events' names."""

    OUTAGE_BEGAN = "no view of a resource type"
    OUTAGE_ENDED = "view of a resource type restored"
    ACTION_NEEDED = "resource type cannot be read"
    LOST = "resource type lost for too long, waiting for a new list"
    ABSENT = "resource type is not installed"
    FOUND = "resource type is installed"
    FAMILY_GONE = "no resource type of the API group is served any more; what is known is kept, and not in sync"
    FAMILY_RETURNED = "the API group is served again"
    NO_WATCH_LIST = "no initial events from this API server, using lists"
    NO_WATCH = "resource type cannot be watched, polling"
    OBJECT_REJECTED = "object without a usable identity left out"
    RELIST = "listing again"


@dataclass(frozen=True, slots=True)
class Notice:
    """One log line: `level` is info, warning or error."""

    kind: NoticeKind
    level: str
    fields: Mapping[str, str | int | float] = field(default_factory=dict)


Notify: TypeAlias = Callable[[Notice], None]


class RequestFactory:
    """Builds the requests of one type."""

    def __init__(self, type: resources.ResourceType, policy: WatchPolicy) -> None:
        self._path = type.list_path
        self._policy = policy

    def page(self, *, limit: int, continue_token: str = "", not_older_than: str = "") -> Request:
        """A page of a list. A continue token excludes a version: the list's own is in it."""
        query = {"limit": str(limit)}
        if continue_token:
            query["continue"] = continue_token
        else:
            query |= _not_older_than(not_older_than)
        return Request(RequestKind.LIST, self._path, query, self._policy.list_read_seconds)

    def watch_list(self, *, not_older_than: str, timeout_seconds: int) -> Request:
        """A watch that begins with all objects; without a version the server gives its newest state."""
        query = {
            "watch": "true",
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(timeout_seconds),
        } | _not_older_than(not_older_than)
        return Request(RequestKind.WATCH_LIST, self._path, query, self._policy.idle_seconds, timeout_seconds)

    def watch(self, *, position: str, timeout_seconds: int) -> Request:
        """A watch of what comes after a version."""
        query = {
            "watch": "true",
            "resourceVersion": position,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(timeout_seconds),
        }
        return Request(RequestKind.WATCH, self._path, query, self._policy.idle_seconds, timeout_seconds)


def _not_older_than(version: str) -> dict[str, str]:
    if view.version_of(version) in ("", 0):
        return {}
    return {"resourceVersion": version, "resourceVersionMatch": "NotOlderThan"}
