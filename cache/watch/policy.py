"""The watcher's numbers, how failures are told apart, and how long to wait after them. Pure."""

import enum
import random
from dataclasses import dataclass, field

from cache.watch import decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPolicy:
    """The watcher's limits and times. The defaults suit a cluster; tests shorten the times."""

    use_watch_list: bool = True
    """Whether to try WatchList: one request, no pages, and the API server answers it from memory."""
    page_limit: int = 500
    """Items per list page: the API server's own clients use 500; a page of pods is then some 3 MB."""
    slice_items: int = 200
    """Objects handled before other tasks get their turn: about 10 ms with the conversion behind it."""
    backoff_base_seconds: float = 0.5
    backoff_max_seconds: float = 30.0
    connect_backoff_max_seconds: float = 5.0
    """Limit while nobody answers: a refused connection costs nobody anything, and an API server that comes back should
    not wait half a minute for us."""
    retry_after_max_seconds: float = 60.0
    """Retry-After is obeyed up to this: a server that says an hour would make us blind for an hour."""
    healthy_seconds: float = 10.0
    """A stream that lived this long resets the back-off and ends the outage; a server that answers and then cuts
    each stream at once is therefore asked less and less often, and logged once."""
    watch_seconds_min: int = 300
    watch_seconds_max: int = 600
    """timeoutSeconds of a watch, drawn between these (as client-go does): the load moves to new API servers in time."""
    idle_seconds: float = 90.0
    """A stream without a byte for this long is half open: bookmarks come each 60 to 75 s."""
    list_read_seconds: float = 75.0
    """The API server gives up on a list after 60 s itself."""
    initial_quiet_seconds: float = 10.0
    """A WatchList that says nothing for this long without its end bookmark comes from a server that ignores
    sendInitialEvents; one that supports it may wait some 3 s for etcd's progress first."""
    initial_max_seconds: float = 120.0
    """The same for a server that keeps talking: 100,000 pods arrive within 20 s."""
    initial_breaks_max: int = 3
    """WatchLists that break this often in a row are given up for paged lists, which keep what they have got."""
    stalls_max: int = 5
    """Failures at one version without progress before everything is listed again (the original's number)."""
    backward_bookmarks_max: int = 3
    """Bookmarks in a row that are older than the last version: the server's history went back, list again."""
    absent_seconds: float = 30.0
    """How often a type that is not installed is looked for."""
    absent_grace_seconds: float = 10.0
    """How long a type with objects must be missing before they count as gone: an API server that starts, or a load
    balancer, may answer 404 for a moment."""
    poll_seconds: float = 5.0
    """How often a type that cannot be watched is listed (the original's number)."""
    lost_seconds: float = 600.0
    """Without success for this long the type is WAITING again (the original's number)."""
    max_line_bytes: int = 16 * 1024 * 1024
    """One object: etcd's limit is 1.5 MiB, raised to 8 MiB by some."""
    max_page_bytes: int = 256 * 1024 * 1024
    """One list page; where 500 objects need more, the next pages are made smaller."""
    max_error_bytes: int = 4096


class Failure(enum.Enum):
    """Classes of failure; the names are metric labels."""

    NETWORK = "network"
    IDLE = "idle"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    TOO_LARGE = "too-large"
    GONE = "gone"
    VERSION_TOO_LARGE = "version-too-large"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    UNSUPPORTED = "unsupported"
    THROTTLED = "throttled"
    SERVER_ERROR = "server-error"
    REJECTED = "rejected"
    WATCH_ERROR = "watch-error"
    CREDENTIALS = "credentials"


def classify(http_status: int, status: decoding.Status) -> Failure:
    """The failure that an HTTP answer other than 200 means."""
    if status.says_version_too_large:
        return Failure.VERSION_TOO_LARGE
    if http_status == 410 or status.says_expired:
        return Failure.GONE
    by_code = {
        401: Failure.UNAUTHORIZED,
        403: Failure.FORBIDDEN,
        404: Failure.NOT_FOUND,
        405: Failure.UNSUPPORTED,
        429: Failure.THROTTLED,
    }
    if http_status >= 500:
        return Failure.SERVER_ERROR
    return by_code.get(http_status, Failure.REJECTED)


def says_no_watch_list(http_status: int, status: decoding.Status) -> bool:
    """Whether the answer to a WatchList means that the server has no such thing, rather than that it failed."""
    if http_status in (400, 405, 422):
        return True
    return http_status == 403 and "sendinitialevents" in status.message.lower()


@dataclass(slots=True)
class Backoff:
    """Exponential, with jitter: half to all of the nominal delay, so that watchers drift apart."""

    policy: WatchPolicy
    random: random.Random
    tries: int = field(default=0, init=False)
    """Failures since the last healthy spell."""

    def failed(self, failure: Failure, *, retry_after_seconds: float = 0.0) -> float:
        """Counts a failure; returns the seconds to wait."""
        policy = self.policy
        limit = policy.connect_backoff_max_seconds if failure is Failure.NETWORK else policy.backoff_max_seconds
        # The exponent is limited before it is computed: tries may grow for days.
        nominal = min(limit, policy.backoff_base_seconds * float(1 << min(self.tries, 16)))
        self.tries += 1
        wanted = min(max(0.0, retry_after_seconds), policy.retry_after_max_seconds)
        return max(nominal * self.random.uniform(0.5, 1.0), wanted * self.random.uniform(1.0, 1.1))

    def broke(self, failure: Failure) -> float:
        """The same for a stream that broke after it had been good: the first one is resumed at once."""
        if self.tries == 0:
            self.tries = 1
            return 0.0
        return self.failed(failure)

    def healthy(self) -> None:
        """A healthy spell is over: the next failure is a first one."""
        self.tries = 0
