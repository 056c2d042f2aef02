"""The actions that a watch machine asks its driver for, and the notices that the driver logs. Pure."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from cache import resources
from cache.watch.policy import WatchPolicy


class RequestKind(enum.Enum):
    """The answer to LIST is one body. The answer to the others is a stream of lines."""

    LIST = "list"
    WATCH_LIST = "watchlist"
    WATCH = "watch"

    @property
    def verb(self) -> str:
        """The RBAC verb that the request needs."""
        return "list" if self is RequestKind.LIST else "watch"


@dataclass(frozen=True, slots=True)
class Request:
    """A GET to send now. The driver reports the answer by `accepted` or `refused`, a failure by `interrupted`."""

    kind: RequestKind
    path: str
    query: Mapping[str, str]
    read_timeout_seconds: float
    """Close the connection after this long without a byte (cache.watch.policy.Failure.IDLE)."""
    answer_seconds: float
    """Limit for the whole answer of a list, and for the beginning of the answer of a watch (Failure.DEADLINE)."""
    timeout_seconds: int = 0
    """timeoutSeconds of a watch."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait until this time, then call `tick`."""

    until: float


@dataclass(frozen=True, slots=True)
class ReloadCredentials:
    """The API server rejected our credentials: load them again, then ask for the next action."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """The type may not be read: ask whether the API server lists it at all, and report it by `looked_up`."""


Action: TypeAlias = Request | Pause | ReloadCredentials | LookUp


class NoticeKind(enum.Enum):
    """Events that deserve a log line. The value is the line's text."""

    OUTAGE_BEGAN = "cannot list or watch a resource type"
    OUTAGE_ENDED = "can list and watch the resource type again"
    ACTION_NEEDED = "resource type cannot be read"
    LOST = "no data for too long, the resource type waits for a new list"
    ABSENT = "resource type is not installed"
    FORBIDDEN = "resource type may not be read; what is known of it is kept"
    FOUND = "resource type is installed"
    GROUP_GONE = "no resource type of the API group is served any more; known objects are kept, but are not in sync"
    GROUP_RETURNED = "the API group is served again"
    NO_WATCH_LIST = "the API server sends no initial events, using paged lists"
    NO_WATCH = "resource type cannot be watched, polling it"
    RELIST = "listing again"
    OTHER_WAY = "a list cannot be had this way, asking for it in another way"


@dataclass(frozen=True, slots=True)
class Notice:
    """One log line. `level` is info, warning or error."""

    kind: NoticeKind
    level: str
    fields: Mapping[str, str | int | float] = field(default_factory=dict)


class RequestFactory:
    """Builds the requests of one resource type."""

    def __init__(self, type: resources.ResourceType, policy: WatchPolicy) -> None:
        self._path = type.list_path
        self._policy = policy

    def page(self, *, limit: int, continue_token: str = "", not_older_than: str = "") -> Request:
        """Request a page of a list, or the whole list if the limit is 0.

        A continue token contains the list's version, so it excludes another one.
        """
        query = {"limit": str(limit)} if limit else {}
        if continue_token:
            query["continue"] = continue_token
        else:
            query |= _not_older_than(not_older_than)
        policy = self._policy
        return Request(RequestKind.LIST, self._path, query, policy.list_read_seconds, policy.page_seconds)

    def watch_list(self, *, not_older_than: str, timeout_seconds: int, has_bookmarks: bool) -> Request:
        """Request a watch that begins with all objects. Without a version the server sends its newest state."""
        query = {
            "watch": "true",
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(timeout_seconds),
        } | _not_older_than(not_older_than)
        return self._stream(RequestKind.WATCH_LIST, query, timeout_seconds, has_bookmarks=has_bookmarks)

    def watch(self, *, position: str, timeout_seconds: int, has_bookmarks: bool) -> Request:
        """Request a watch of the changes after a version."""
        query = {
            "watch": "true",
            "resourceVersion": position,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(timeout_seconds),
        }
        return self._stream(RequestKind.WATCH, query, timeout_seconds, has_bookmarks=has_bookmarks)

    def _stream(
        self, kind: RequestKind, query: Mapping[str, str], timeout_seconds: int, *, has_bookmarks: bool
    ) -> Request:
        policy = self._policy
        silent_seconds = policy.idle_seconds if has_bookmarks else policy.quiet_seconds
        return Request(kind, self._path, query, silent_seconds, policy.page_seconds, timeout_seconds)


def _not_older_than(version: str) -> dict[str, str]:
    if not version.strip("0"):  # no version, or 0, which means any version
        return {}
    return {"resourceVersion": version, "resourceVersionMatch": "NotOlderThan"}
