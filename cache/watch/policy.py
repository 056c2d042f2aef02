"""The watcher's limits and times, the classes of failure, and the back-off after them. Pure."""

import enum
import random
from dataclasses import dataclass, field

from cache.watch import decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPolicy:
    """The watcher's limits and times. The defaults suit a real cluster; tests shorten the times."""

    use_watch_list: bool = True
    """Whether to try WatchList: one request without pages, which the API server answers from memory."""
    page_limit: int = 500
    """Items per list page. Kubernetes' own clients use 500. A page of 500 pods has about 3 MB."""
    slice_items: int = 200
    """Objects to process before other tasks run. With their conversion this takes about 10 ms."""
    slice_seconds: float = 0.005
    """The same as a time: objects may take a hundred times as long as usual."""
    sweep_rest_seconds: float = 0.01
    """Pause between two slices of deletions after a list. No network paces them, and agents must read all of them
    before anything newer: 20,000 a second leave agents time for the rest."""
    backoff_base_seconds: float = 0.5
    backoff_max_seconds: float = 30.0
    connect_backoff_max_seconds: float = 5.0
    """Limit while no connection can be made, and while the API server starts. Such tries cost almost nothing, and the
    watcher should notice within seconds that the API server is back."""
    retry_after_max_seconds: float = 60.0
    """Upper limit for Retry-After. Without it, a server that answers one hour would stop all updates for an hour."""
    healthy_seconds: float = 10.0
    """A stream that lives this long resets the back-off and ends the outage. A server that answers and then cuts every
    stream at once therefore gets fewer and fewer requests, and one log line."""
    watch_seconds_min: int = 300
    watch_seconds_max: int = 600
    """timeoutSeconds of a watch is a random number between these, as in client-go. Watches therefore end at different
    times, and move to new API servers."""
    idle_seconds: float = 90.0
    """A stream without a byte for this long is half open: bookmarks come every 60 to 75 s."""
    quiet_seconds: float = 120.0
    """The same while the API server sends no bookmarks. The watch is then renewed, which is no failure, and confirms
    the view soon enough for the alarm at 150 s."""
    list_read_seconds: float = 75.0
    """The API server itself ends a list after 60 s."""
    page_seconds: float = 120.0
    """Limit for the whole exchange of a list page, from the request to the last byte. It is above the API server's own
    limit, so that only a server or proxy that drips ever reaches it."""
    line_seconds: float = 60.0
    """Limit from the first to the last byte of one watch event. 16 MiB within it are 280 kB/s."""
    error_body_seconds: float = 5.0
    """Limit for the body of an error. It arrives with the headers; what is missing after this is not waited for."""
    watch_overtime_seconds: float = 30.0
    """A server that does not end a watch at its timeoutSeconds is left after this much more."""
    list_max_seconds: float = 900.0
    """Limit for all pages of one list. Continue tokens expire after 5 to 10 minutes, so no good list takes longer."""
    list_bytes_max: int = 4 * 1024 * 1024 * 1024
    """Limit for all pages of one list. etcd's recommended limit for a whole cluster is 8 GiB, in a format that takes
    more room."""
    list_pages_max: int = 50_000
    """Limit for the pages of one list, and so for the continue tokens to remember. With 500 items a page they hold 25
    million objects."""
    idle_pages_max: int = 100
    """Limit for pages in a row without an object that the list has not had. Good servers send none."""
    objects_max: int = 1_000_000
    """Limit for the objects of one type. Kubernetes supports 150,000 pods in a cluster; a server that makes up names
    without end must not fill the memory."""
    initial_quiet_seconds: float = 10.0
    """If a WatchList sends nothing for this long before its end bookmark, the server ignores sendInitialEvents. A
    server that supports it may first wait about 3 s for etcd's progress."""
    initial_max_seconds: float = 120.0
    """The same for a server that keeps sending events. 100,000 pods arrive within 20 s."""
    initial_breaks_max: int = 3
    """After this many broken WatchLists in a row, use paged lists, which keep the pages that have arrived."""
    stalls_max: int = 5
    """Failures at one version without progress before a new list (the original's number). After as many failures of
    a list, it is asked for in another way."""
    fruitless_lists_max: int = 3
    """After this many lists in a row whose watch brought nothing, a new list is no change of status: it is a poll."""
    backward_bookmarks_max: int = 3
    """After this many bookmarks in a row with an older version, the server's history went back: list again."""
    is_optional: bool = False
    """Whether a type that may not be read (403) is in sync nevertheless, with the objects that are known."""
    absent_seconds: float = 30.0
    """Time between two requests for a type that is not installed."""
    absent_grace_seconds: float = 10.0
    """Time for which a type must be missing before its known objects count as deleted. A starting API server, or a load
    balancer, may answer 404 for a moment."""
    poll_seconds: float = 5.0
    """Time between two lists of a type that cannot be watched (the original's number)."""
    unconfirmed_seconds: float = 150.0
    """After this long without a confirmation, native clients learn that the data may be old: bookmarks come every 60 to
    75 s, and streams without them are renewed after `quiet_seconds`."""
    lost_seconds: float = 600.0
    """Without a success for this long, the type is WAITING again (the original's number)."""
    max_line_bytes: int = 16 * 1024 * 1024
    """Limit for one object. etcd's limit is 1.5 MiB; some clusters raise it to 8 MiB."""
    max_page_bytes: int = 64 * 1024 * 1024
    """Limit for one list page, whose decoding is one step of 0.1 s. If 500 objects need more, the next pages have fewer
    objects."""
    max_split_bytes: int = 16 * 1024 * 1024
    """The same for a page with an object that cannot be decoded. Finding the object takes up to 0.2 s for each MiB."""
    max_error_bytes: int = 4096


class Failure(enum.Enum):
    """Classes of failure. The values are metric labels."""

    NETWORK = "network"
    """No connection can be made."""
    DISCONNECTED = "disconnected"
    """The API server, or a proxy, closed the connection instead of an answer."""
    IDLE = "idle"
    DEADLINE = "deadline"
    ENDLESS = "endless"
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
    STARTING = "starting"
    """A fresh API server is still reading the type from etcd. It answers 429 for some seconds."""
    SERVER_ERROR = "server-error"
    REJECTED = "rejected"
    WATCH_ERROR = "watch-error"
    CREDENTIALS = "credentials"
    MEMORY = "memory"
    """Ours: there was none left to decode or convert an object."""


def classify(http_status: int, status: decoding.Status) -> Failure:
    """Return the class of an HTTP answer other than 200."""
    if status.says_version_too_large:
        return Failure.VERSION_TOO_LARGE
    if http_status == 410 or status.says_expired:
        return Failure.GONE
    if http_status == 429 and "(re)initializing" in status.message:
        return Failure.STARTING
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
    """Return whether the answer to a WatchList means that the server does not support WatchList."""
    if http_status in (400, 405, 422):
        return True
    return http_status == 403 and "sendinitialevents" in status.message.lower()


_SHORT_BACKOFF = frozenset({Failure.NETWORK, Failure.STARTING})
"""These pass when the API server is back."""


@dataclass(slots=True)
class Backoff:
    """Exponential back-off. Jitter (half to all of the nominal delay) keeps watchers from retrying together."""

    policy: WatchPolicy
    random: random.Random
    tries: int = field(default=0, init=False)
    """Failures since the last healthy period."""

    def failed(self, failure: Failure, *, retry_after_seconds: float = 0.0) -> float:
        """Count a failure. Return the seconds to wait."""
        policy = self.policy
        limit = policy.connect_backoff_max_seconds if failure in _SHORT_BACKOFF else policy.backoff_max_seconds
        # Limit the exponent first: during a long outage `tries` grows for days.
        nominal = min(limit, policy.backoff_base_seconds * float(1 << min(self.tries, 16)))
        self.tries += 1
        wanted = min(max(0.0, retry_after_seconds), policy.retry_after_max_seconds)
        return max(nominal * self.random.uniform(0.5, 1.0), wanted * self.random.uniform(1.0, 1.1))

    def broke(self, failure: Failure) -> float:
        """Count a good stream that broke. Return the seconds to wait: none for the first one."""
        if self.tries == 0:
            self.tries = 1
            return 0.0
        return self.failed(failure)

    def healthy(self) -> None:
        """Reset the back-off: the next failure counts as the first one."""
        self.tries = 0
