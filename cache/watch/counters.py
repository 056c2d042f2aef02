"""What a watcher counts: plain integers, read by whoever exports them. Pure."""

from dataclasses import dataclass, field

from cache.watch.policy import Failure


def _no_errors() -> dict[str, int]:
    return {failure.value: 0 for failure in Failure}


@dataclass(slots=True)
class WatchCounters:
    """Counters of one resource type; all but the times only rise."""

    lists: int = 0
    """Lists begun, as pages or as WatchList."""
    list_pages: int = 0
    watch_requests: int = 0
    watchlist_requests: int = 0
    renewals: int = 0
    """Watches that went on after they had reached their timeoutSeconds."""
    stream_breaks: int = 0
    """Watches that ended early, by the server, the network or us (half open, broken JSON)."""
    resumes: int = 0
    """Broken watches that went on from the last version: counted at the first event or bookmark that follows."""
    relists_410: int = 0
    """Lists begun again because the last version had expired."""
    events: int = 0
    """Objects read: list items, initial events and events."""
    bookmarks: int = 0
    objects_unchanged: int = 0
    """Objects read whose version was known already."""
    objects_rejected: int = 0
    """Objects without a usable identity, left out."""
    objects_swept: int = 0
    """Objects that were missing from a new list and so count as deleted."""
    outages: int = 0
    errors: dict[str, int] = field(default_factory=_no_errors)
    """Failure class -> count."""
    last_confirmed: float | None = None
    """Time (the driver's monotonic clock, seconds) at which the API server last confirmed the view; None = never."""
