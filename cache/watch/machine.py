"""The watch machine: lists and watches one resource type, and passes every difference to a sink. Pure.

The driver asks for the `next_action`, performs it, and reports the result. The time comes in with each call. The rules,
state by state:

    Empty          No request is in progress. List: by WatchList if this server has it, else page by page.
    ListPages      A list is in progress. Objects go to the sink as pages arrive. The machine remembers which known
                   objects it has not seen yet. After the last page: Sweeping. If the continue token expires, or the
                   list cannot continue for another reason: Empty, and list in another way. After other failures:
                   request the same page again, with fewer objects if it was too much.
    InitialEvents  The same within a watch, up to the end bookmark. If the stream breaks: Empty. If the bookmark does
                   not come: Empty, and this server has no WatchList.
    Sweeping       Delete, slice by slice, what the list did not contain. Then IN_SYNC.
    Watching       Events apply as they come and move the position forwards. If the stream breaks: watch again from the
                   position. If the position has expired (410): Empty. The known objects stay for the comparison.
    Polling        The type cannot be watched: list again after a while.
    Absent         The type is not installed (404, or 403 and the API server does not list it): in sync, without
                   objects. Look for it periodically. If all types of its API group are missing
                   (cache.watch.api_group): keep the known objects, but not in sync.

The ways to list are WatchList, pages, and the whole list in one answer. A list begins with the first of them. Whenever
one cannot be had, or failed several times without progress, the next way is tried, in a circle and with back-off. A
server may refuse limits, let every continue token expire, or give no page in time: no request is repeated for ever.
The same holds for a watch that brings nothing after each list: the lists go on as polls, without changes of the status.

After the first sync each list is at least as new as the position (NotOlderThan), so that it cannot go back in time.
The exception is a server that does not know this version any more, or does not know it yet. The machine then ignores
versions when it compares objects.
"""

import enum
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from cache import objects, resources
from cache.objects import Origin
from cache.watch import api_group, decoding, health, reflector, requests
from cache.watch.policy import Failure, WatchPolicy, classify, says_no_watch_list
from cache.watch.requests import NoticeKind, RequestKind
from cache.watch.states import Absent, Empty, InitialEvents, ListPages, Polling, State, Sweeping, Watching
from protocol.messages import SyncStatus

_RECHECK_SECONDS = 2.0
_GONE_RECHECK_SECONDS = 5.0
"""While all types of the group are missing. A group has some 20 types."""
_RENEWAL_SHARE = 0.9
"""A stream that reached this share of its timeoutSeconds ended because of them."""
_MAX_DETAIL_LENGTH = 400
_NOT_BY_THE_LIST = frozenset(
    {
        *(Failure.NETWORK, Failure.CREDENTIALS, Failure.UNAUTHORIZED, Failure.FORBIDDEN, Failure.NOT_FOUND),
        *(Failure.GONE, Failure.VERSION_TOO_LARGE),
    }
)
"""Failures that another way to list would not change, or that have rules of their own."""
_TOO_MUCH = frozenset({Failure.IDLE, Failure.DEADLINE, Failure.TRUNCATED, Failure.DISCONNECTED, Failure.MEMORY})
"""Failures that a smaller page may avoid."""
_NOT_BY_THE_VERSION = frozenset({Failure.THROTTLED, Failure.STARTING, Failure.MEMORY})
_NEVER_IN_THIS_WAY = frozenset({Failure.ENDLESS, Failure.REJECTED, Failure.UNSUPPORTED})


class _Way(enum.Enum):
    """How to list."""

    WATCH_LIST = "WatchList"
    PAGES = "pages"
    WHOLE = "whole list"


_Change: TypeAlias = Callable[[decoding.Envelope, bytes, Origin], str]
"""`Reflector.upsert` or `Reflector.remove`: applies an object, and returns its identity."""


class WatchMachine:
    """The machine of one resource type. It calls the sink directly, and starts with the status WAITING.

    `streaming` says whether the driver continues to read the stream that it reported by `accepted`. When it turns
    False, the driver closes the stream. The driver logs what `take_notices` returns.
    """

    def __init__(
        self,
        type: resources.ResourceType,
        sink: objects.WatchSink,
        *,
        policy: WatchPolicy,
        random: random.Random,
        now: float,
        group: api_group.ApiGroup | None = None,
    ) -> None:
        self.type = type
        self.counters = health.WatchCounters()
        self.streaming = False
        self._sink = sink
        self._policy = policy
        self._random = random
        self._notices: list[requests.Notice] = []
        self._requests = requests.RequestFactory(type, policy)
        self._reflector = reflector.Reflector(type, sink, counters=self.counters, objects_max=policy.objects_max)
        self._health = health.Health(
            policy=policy, counters=self.counters, notices=self._notices, random=random, now=now
        )
        self._state: State = Empty()
        self._status = SyncStatus.WAITING
        self._request: requests.Request | None = None
        self._page_limit = policy.page_limit
        self._fitting_limit = policy.page_limit
        """Limit of pages that are not too large."""
        self._ways_given_up = 0
        """Since the last complete list."""
        self._is_whole_too_large = False
        self._fruitless_lists = 0
        """Complete lists in a row whose watch brought nothing."""
        self._has_progressed = True
        """Whether the watch has brought something since the last complete list."""
        self._has_bookmarks = False
        """Whether the API server sends bookmarks, as far as is known."""
        self._has_bookmark = False
        """Whether this stream had one, apart from that at the end of the initial events."""
        self._absent_reason = ""
        self._forbidden = ""
        """The missing permission, until it is known whether the type is installed."""
        self._has_watch_list = policy.use_watch_list
        self._has_watch = True
        self._trusts_versions = True
        self._reload_due = False
        self._opened_at = now
        self._is_settled = False
        self._is_confirmed = False
        self._is_resuming = False
        self._missing_since: float | None = None
        self._is_forbidden = False
        self._relist_due = False
        self._group = group
        if group is not None:
            group.subscribe(self._on_group_gone)
        self._stalls = 0
        self._initial_breaks = 0
        self._backward_bookmarks = 0

    # What the driver reads.

    @property
    def state(self) -> State:
        """The current state, for tests and debugging."""
        return self._state

    @property
    def status(self) -> SyncStatus:
        """The status that the sink received last."""
        return self._status

    def is_unconfirmed(self, now: float) -> bool:
        """Return whether the API server can no longer confirm the known objects: it fails, or is silent for long."""
        confirmed_at = self.counters.last_confirmed
        if confirmed_at is None:
            return False  # no object is known, and the status says so
        failed_at = self._health.lost_contact_at
        is_failing = failed_at is not None and confirmed_at < failed_at
        return is_failing or now - confirmed_at > self._policy.unconfirmed_seconds

    @property
    def object_count(self) -> int:
        """The number of known live objects."""
        return len(self._reflector)

    @property
    def deadline(self) -> float | None:
        """While streaming: the latest time for the next `tick`. None if no deadline is set."""
        state = self._state
        if not self.streaming:
            return None
        if isinstance(state, InitialEvents):
            policy = self._policy
            return min(state.last_event_at + policy.initial_quiet_seconds, state.began_at + policy.initial_max_seconds)
        deadline = self._overtime_at
        if self._status is not SyncStatus.WAITING:
            deadline = min(deadline, self.lost_at)
        return deadline if self._is_settled else min(deadline, self._opened_at + self._policy.healthy_seconds)

    @property
    def lost_at(self) -> float:
        """Time at which the type counts as lost unless a request succeeds before. Call `tick` then."""
        return self._health.lost_at

    @property
    def _overtime_at(self) -> float:
        """Time at which to leave a watch that the server should have ended."""
        timeout_seconds = self._request.timeout_seconds if self._request is not None else 0
        return self._opened_at + timeout_seconds + self._policy.watch_overtime_seconds

    def take_notices(self) -> list[requests.Notice]:
        """Return the notices since the last call, oldest first."""
        notices = self._notices.copy()
        self._notices.clear()
        return notices

    def next_action(self, now: float) -> requests.Action:
        """Return the action to perform now. Do not call it while streaming."""
        while self.sweep(now):
            pass
        if self._forbidden:
            return requests.LookUp()
        if now < self._health.not_before:
            is_waiting = self._status is SyncStatus.WAITING
            until = self._health.not_before
            return requests.Pause(until if is_waiting else min(until, self._health.lost_at))
        if self._reload_due:
            self._reload_due = False
            return requests.ReloadCredentials()
        self._request = self._next_request()
        return self._request

    def _next_request(self) -> requests.Request:
        if self._relist_due and isinstance(self._state, Watching):
            self._state = Empty()
        state = self._state
        counters = self.counters
        if isinstance(state, ListPages):
            return self._requests.page(limit=self._page_limit, continue_token=state.continue_token)
        timeout = self._random.randint(self._policy.watch_seconds_min, self._policy.watch_seconds_max)
        has_bookmarks = self._has_bookmarks
        if isinstance(state, Watching):
            counters.watch_requests += 1
            position = self._reflector.position
            return self._requests.watch(position=position, timeout_seconds=timeout, has_bookmarks=has_bookmarks)
        counters.lists += 1
        not_older_than = self._reflector.position if self._trusts_versions else ""
        way = self._way()
        if way is _Way.WATCH_LIST:
            counters.watchlist_requests += 1
            return self._requests.watch_list(
                not_older_than=not_older_than, timeout_seconds=timeout, has_bookmarks=has_bookmarks
            )
        limit = 0 if way is _Way.WHOLE else self._page_limit
        return self._requests.page(limit=limit, not_older_than=not_older_than)

    def _way(self) -> _Way:
        ways = [_Way.WATCH_LIST] if self._has_watch_list and self._has_watch else []
        ways.append(_Way.PAGES)
        if not self._is_whole_too_large:
            ways.append(_Way.WHOLE)
        return ways[self._ways_given_up % len(ways)]

    # Good answers.

    def accepted(self, now: float) -> None:
        """The answer is 200. The body of a list follows as pages, that of a watch as lines."""
        if self._request is None or self._request.kind is RequestKind.LIST:
            return
        if self._relist_due and self._request.kind is RequestKind.WATCH:
            self._type_served(now)
            return
        self.streaming = True
        self._type_served(now)
        self._opened_at = now
        self._is_settled = False
        self._has_bookmark = False
        if self._request.kind is RequestKind.WATCH_LIST:
            self._begin_list()
            self._state = InitialEvents(dict.fromkeys(self._reflector.identities()), now, now)
        else:
            # The API server knows the version, and sends what came after it. One that breaks every stream confirms
            # nothing until a stream lives.
            self._is_confirmed = not self._health.is_troubled
            self._health.succeeded(now)

    def begin_page(self, now: float, page: decoding.ListPage) -> None:
        """A page of a list has arrived. Its items follow by `items`, then `end_page`."""
        self.counters.list_pages += 1
        self._type_served(now)
        if not isinstance(self._state, ListPages):
            self._begin_list()
            unseen = dict.fromkeys(self._reflector.identities())
            self._state = ListPages(unseen, page.resource_version, now, self._health.last_success)
        elif self._status is SyncStatus.WAITING:
            self._set_status(SyncStatus.RESYNC)
        self._health.succeeded(now)

    def items(self, page: decoding.ListPage, items: Sequence[msgspec.Raw]) -> None:
        """Process some of the page's items, in order.

        Raises:
            reflector.TooManyObjects: report it by `interrupted`.
        """
        assert isinstance(self._state, ListPages)
        unseen = self._state.unseen
        for item in items:
            try:
                envelope = decoding.decode_item(item)
            except decoding.InvalidObject as error:
                self._reflector.skip(error)  # and the sweep removes it, if it was known before
                continue
            identity = self._reflector.upsert(
                envelope, bytes(item), Origin.LIST, api_version=page.api_version, kind=page.kind
            )
            unseen.pop(identity, None)

    def end_page(self, now: float, page: decoding.ListPage) -> None:
        """All items of the page have been processed."""
        state = self._state
        assert isinstance(state, ListPages)
        if not page.continue_token:
            is_watchable = self._has_watch and page.resource_version not in ("", "0")
            then = Watching() if is_watchable else Polling()
            self._state = Sweeping(list(state.unseen), state.version, then)
        elif problem := self._endless(now, state, page):
            self.interrupted(now, Failure.ENDLESS, problem)
        else:
            state.continue_token = page.continue_token
            self._stalls = 0
            self._page_limit = min(self._fitting_limit, self._page_limit * 2)

    def _endless(self, now: float, state: ListPages, page: decoding.ListPage) -> str:
        """Return why the list has to end before its last page. Empty if it may go on."""
        policy = self._policy
        token = hash(page.continue_token)
        is_repeated = token in state.tokens
        state.tokens.add(token)
        state.size_bytes += page.size_bytes
        seen = len(self._reflector) - len(state.unseen)
        state.idle_pages = 0 if seen > state.seen else state.idle_pages + 1
        state.seen = seen
        if is_repeated:
            return "the list repeats a continue token and would never end"
        if state.idle_pages >= policy.idle_pages_max:
            return f"{state.idle_pages} pages of the list in a row without a new object"
        if len(state.tokens) >= policy.list_pages_max:
            return f"the list has more than {policy.list_pages_max} pages"
        if state.size_bytes > policy.list_bytes_max:
            return f"the list has more than {policy.list_bytes_max} bytes"
        if now - state.began_at > policy.list_max_seconds:
            return f"the list takes more than {policy.list_max_seconds:.0f} s"
        return ""

    def line(self, now: float, line: bytes) -> None:
        """Process a line of a watch."""
        if isinstance(self._state, Sweeping):
            while self.sweep(now):
                pass
        try:
            event = decoding.decode_line(line)
            match event.type:
                case "ADDED" | "MODIFIED":
                    self._on_object(now, event, self._reflector.upsert)
                case "DELETED":
                    self._on_object(now, event, self._reflector.remove)
                case "BOOKMARK":
                    self._on_bookmark(now, event)
                case "ERROR":
                    self._on_error(now, decoding.decode_status(event.raw))
                case _:
                    raise decoding.InvalidInput(f"unknown watch event {event.type[:40]!r}")
        except decoding.InvalidObject as error:
            self._on_bad_object(now, error)
        except decoding.InvalidInput as error:
            self._stream_failed(now, Failure.MALFORMED, str(error))
        except reflector.TooManyObjects as error:
            self._stream_failed(now, Failure.ENDLESS, self._at_path(str(error)))

    def stream_ended(self, now: float, *, is_truncated: bool) -> None:
        """The stream ended. `is_truncated`: within a line."""
        request = self._request
        lived = now - self._opened_at
        is_due = request is not None and lived >= request.timeout_seconds * _RENEWAL_SHARE
        while self.sweep(now):
            pass
        if is_due and not is_truncated and isinstance(self._state, Watching):
            self._renew(now)
        else:
            self._stream_failed(now, Failure.TRUNCATED, "the stream ended early")

    def _renew(self, now: float) -> None:
        self.streaming = False
        self.counters.renewals += 1
        self._health.healthy(now)

    def end_batch(self, now: float) -> None:
        """The driver has no more input at the moment."""
        if self._is_confirmed:
            self._is_confirmed = False
            self.counters.last_confirmed = now
            self._sink.confirmed(self.type)
        self._sink.batch_end()

    def tick(self, now: float) -> None:
        """Check the deadlines."""
        state = self._state
        deadline = self.deadline
        if deadline is not None and now >= deadline:
            if isinstance(state, InitialEvents):
                self._disable_watch_list("the end of the initial events never came")
            elif not self._is_settled and now >= self._opened_at + self._policy.healthy_seconds:
                self._is_settled = True
                self._is_confirmed = True
                self._watch_worked()
                self._health.healthy(now)
            elif now >= self._overtime_at and isinstance(state, Watching):
                self._renew(now)
        if self._status is not SyncStatus.WAITING and now >= self._health.lost_at:
            self._notice(NoticeKind.LOST, "error", seconds=self._policy.lost_seconds)
            self._set_status(SyncStatus.WAITING)
            self.streaming = False
            if not isinstance(state, ListPages):
                self._state = Empty()

    def sweep(self, now: float) -> bool:
        """Delete a slice of the objects that a complete list did not contain. Return whether more are left."""
        state = self._state
        if not isinstance(state, Sweeping):
            return False
        self._reflector.sweep(state.stale, count=self._policy.slice_items, version=state.version)
        if state.stale:
            return True
        self._synced(now, state)
        return False

    # Bad answers.

    def interrupted(self, now: float, failure: Failure, detail: str) -> None:
        """The request or its stream failed on the way, or its body is unusable."""
        if self.streaming:
            self._stream_failed(now, failure, self._at_path(detail) if failure is Failure.DEADLINE else detail)
            return
        self._missing_since = None
        if failure in (Failure.ENDLESS, Failure.DEADLINE):
            detail = self._at_path(detail)
        self._change_request(failure, detail)
        self._reload_due = failure is Failure.CREDENTIALS
        self._health.failed(now, failure, detail[:_MAX_DETAIL_LENGTH])

    def _at_path(self, detail: str) -> str:
        return f"{self._request.path}: {detail}" if self._request is not None else detail

    def _change_request(self, failure: Failure, detail: str) -> None:
        """Change what the next request asks for, where a repetition could fail for ever."""
        request = self._request
        if request is None or failure in _NOT_BY_THE_LIST:
            return
        if request.kind is RequestKind.WATCH:
            self._change_watch(failure, detail)
            return
        limit = int(request.query.get("limit", "0"))
        is_too_large = failure is Failure.TOO_LARGE
        if limit and (is_too_large or failure in _TOO_MUCH):
            self._page_limit = max(1, limit // 2)
        if limit and is_too_large:
            self._fitting_limit = self._page_limit
        elif is_too_large:
            self._is_whole_too_large = True
        if failure is Failure.MEMORY:
            return  # ours
        is_hopeless = failure in _NEVER_IN_THIS_WAY or (is_too_large and limit <= 1)
        if self._is_stalled() or is_hopeless:
            self._list_in_another_way(detail)

    def _change_watch(self, failure: Failure, detail: str) -> None:
        """List again if the version may be what the API server refuses.

        Where the watch has worked since the last list, or the API server only has too much to do, it does not.
        """
        is_by_the_answer = failure in (Failure.MALFORMED, Failure.TOO_LARGE)
        is_by_the_version = not self._has_progressed and failure not in _NOT_BY_THE_VERSION
        if failure is Failure.REJECTED or ((is_by_the_answer or is_by_the_version) and self._is_stalled()):
            self._relist(detail)

    def _list_in_another_way(self, detail: str) -> None:
        """Give up the list that is in progress."""
        state = self._state
        if isinstance(state, ListPages):
            self._health.last_success = state.last_success  # pages of a list without end are no success
            self._state = Empty()
        self._stalls = 0
        self._ways_given_up += 1
        self._page_limit = self._fitting_limit
        if self._ways_given_up < len(_Way):
            self._notice(NoticeKind.OTHER_WAY, "info", way=self._way().value, reason=detail[:_MAX_DETAIL_LENGTH])

    def _relist(self, detail: str) -> None:
        """Give up the position of the watch."""
        self._state = Empty()
        if self._has_progressed:
            return
        self._has_progressed = True  # until the list is complete: it counts once
        self._fruitless_lists += 1
        if self._fruitless_lists == self._policy.fruitless_lists_max:
            self._notice(NoticeKind.NO_WATCH, "warning", detail=detail)

    def refused(self, now: float, http_status: int, *, body: bytes, retry_after_seconds: float = 0.0) -> None:
        """The answer has a status other than 200. `body` is the beginning of its body."""
        request = self._request
        assert request is not None
        status = decoding.decode_status(body[: self._policy.max_error_bytes])
        detail = f"HTTP {http_status}: {status.message or status.reason}"[:_MAX_DETAIL_LENGTH]
        if request.kind is RequestKind.WATCH_LIST and says_no_watch_list(http_status, status):
            self._disable_watch_list(detail)
            return
        failure = classify(http_status, status)
        if failure is Failure.FORBIDDEN:
            self._forbidden = f"{_missing_rule(self.type, request)} ({detail})"
            return
        if failure is not Failure.NOT_FOUND:
            self._missing_since = None
        if failure is Failure.GONE or failure is Failure.VERSION_TOO_LARGE:
            self._on_version_refused(now, failure, detail)
        elif failure is Failure.NOT_FOUND:
            self._on_not_found(now)
        elif failure is Failure.UNSUPPORTED and request.kind is RequestKind.WATCH:
            self._has_watch = False
            self._state = Polling()
            self._health.pause(now, self._policy.poll_seconds)
            self._notice(NoticeKind.NO_WATCH, "warning", detail=detail)
        else:
            self._change_request(failure, detail)
            self._reload_due = failure is Failure.UNAUTHORIZED
            retry_after_seconds = retry_after_seconds or (status.details.retry_after_seconds if status.details else 0)
            self._health.failed(now, failure, detail, retry_after_seconds=retry_after_seconds)

    def looked_up(self, now: float, *, is_listed: bool | None, problem: str) -> None:
        """The API server lists the type, or not. None: it does not say, because of the problem."""
        detail, self._forbidden = self._forbidden, ""
        if is_listed is False:
            # What does not exist needs no permission. Rules are often made for newer or for older types.
            self._on_not_found(now, reason="it may not be read, and the API server does not list it")
            return
        self._missing_since = None
        if is_listed is None:
            detail += f"; whether the type is installed is unknown: {problem}"[:_MAX_DETAIL_LENGTH]
        if self._policy.is_optional:
            self._on_optional_forbidden(now, detail)
            return
        if self._group is not None:
            self._group.forbidden(self.type)
        self._health.failed(now, Failure.FORBIDDEN, detail)

    def _on_version_refused(self, now: float, failure: Failure, detail: str) -> None:
        """The server does not know the requested version: not any more (410), or not yet."""
        state = self._state
        had_version = "resourceVersion" in (self._request.query if self._request else {})
        was_relist = isinstance(state, (Empty, InitialEvents, Polling, Absent)) and had_version
        if failure is Failure.VERSION_TOO_LARGE or was_relist:
            self._trusts_versions = False
        if isinstance(state, Watching):
            if failure is Failure.GONE:
                self.counters.relists_410 += 1
            if not self._health.is_troubled:
                self._notice(NoticeKind.RELIST, "info", reason=detail)
        self.streaming = False
        self._is_resuming = False
        if isinstance(state, Watching):
            self._relist(detail)
        elif isinstance(state, ListPages):
            if self._is_whole_too_large:
                self._fitting_limit *= 2  # fewer pages may be through before the token expires
            self._list_in_another_way(detail)
        else:
            self._state = Empty()
            if not had_version and self._is_stalled():
                self._list_in_another_way(detail)
        if had_version or isinstance(state, (ListPages, Watching)):
            self._health.broke(now, failure, detail)
        else:
            self._health.failed(now, failure, detail)

    def _on_optional_forbidden(self, now: float, detail: str) -> None:
        """The type may not be read: in sync with what is known of it, which is nothing if it never could be read."""
        self.counters.errors[Failure.FORBIDDEN.value] += 1
        self._health.succeeded(now)
        if not self._is_forbidden:
            self._is_forbidden = True
            self._notice(NoticeKind.FORBIDDEN, "warning", detail=detail, known_objects=len(self._reflector))
        self._confirm_absent(now)
        self._set_status(SyncStatus.IN_SYNC)

    def _on_not_found(self, now: float, *, reason: str = "") -> None:
        self.counters.errors[Failure.NOT_FOUND.value] += 1
        self._health.answered(now)
        self._absent_reason = reason
        group = self._group
        if group is not None and group.missing(self.type):
            self._notice(NoticeKind.GROUP_GONE, "error", group=self.type.group)
        was_missing = self._missing_since is not None
        missing_since = now if self._missing_since is None else self._missing_since
        self._missing_since = missing_since
        if group is not None and group.is_gone:
            self._on_group_gone()
            self._health.pause(now, _GONE_RECHECK_SECONDS)
            return
        is_absent = isinstance(self._state, Absent) and self._status is SyncStatus.IN_SYNC
        if was_missing and is_absent:
            self._confirm_absent(now)
            return
        since = missing_since if group is None else max(missing_since, group.returned_at)
        # Without known objects one 404 is enough, unless the types of the group are just coming back.
        may_be_soon = len(self._reflector) == 0 and since == missing_since
        if may_be_soon or now - since >= self._policy.absent_grace_seconds:
            self._state = Sweeping(list(self._reflector.identities()), "", Absent())
        else:
            self._health.pause(now, _RECHECK_SECONDS)

    def _stream_failed(self, now: float, failure: Failure, detail: str) -> None:
        """Give up the stream, and decide where to continue."""
        while self.sweep(now):
            pass
        if failure is Failure.IDLE and isinstance(self._state, Watching) and not self._has_bookmark:
            if not self._has_bookmarks:  # silence is all that one can expect
                self._renew(now)
                return
            self._has_bookmarks = False
        self.streaming = False
        self.counters.stream_breaks += 1
        if isinstance(self._state, InitialEvents):
            self._state = Empty()
            self._initial_breaks += 1
            self._health.failed(now, failure, detail)
            if self._initial_breaks >= self._policy.initial_breaks_max:
                self._disable_watch_list(detail)
            return
        self._is_resuming = True
        if self._is_stalled():
            self._relist(detail)
        self._health.broke(now, failure, detail)

    def _is_stalled(self) -> bool:
        """Count a failure without progress. Return whether there were too many to continue from this point."""
        self._stalls += 1
        is_fruitless = self._fruitless_lists >= self._policy.fruitless_lists_max
        if self._stalls < self._policy.stalls_max and not (is_fruitless and isinstance(self._state, Watching)):
            return False
        self._stalls = 0
        self._is_resuming = False
        return True

    def _disable_watch_list(self, reason: str) -> None:
        self.streaming = False
        self._has_watch_list = False
        self._ways_given_up = 0
        if isinstance(self._state, InitialEvents):
            self._state = Empty()
        self._notice(NoticeKind.NO_WATCH_LIST, "info", reason=reason)

    # Events of a watch.

    def _on_object(self, now: float, event: decoding.WatchLine, change: _Change) -> None:
        state = self._state
        if isinstance(state, InitialEvents):
            state.unseen.pop(change(event.envelope, event.raw, Origin.INITIAL), None)
            self._initial_progress(now, state)
        else:
            change(event.envelope, event.raw, Origin.EVENT)
            self._reflector.advance(event.envelope.metadata.resource_version)
            self._progress(now)

    def _on_bad_object(self, now: float, error: decoding.InvalidObject) -> None:
        """Leave out an object. Its known state is out of date, so it counts as deleted."""
        identity = self._reflector.skip(error)
        if isinstance(self._state, InitialEvents):
            self._initial_progress(now, self._state)  # the sweep removes the object, if it was known before
        else:
            self._reflector.forget(identity, Origin.EVENT)
            self._progress(now)

    def _on_bookmark(self, now: float, event: decoding.WatchLine) -> None:
        self.counters.bookmarks += 1
        state = self._state
        version = event.envelope.metadata.resource_version
        if isinstance(state, InitialEvents):
            if decoding.ends_initial_events(event.raw):
                if not version:
                    raise decoding.InvalidInput("the bookmark that ends the initial events has no resourceVersion")
                self._state = Sweeping(list(state.unseen), version, Watching())
            self._health.succeeded(now)
            return
        self._has_bookmark = self._has_bookmarks = True
        if self._reflector.advance(version):
            self._progress(now)
        else:
            # A replica of the API server that lags behind also sends old versions for a moment.
            self._backward_bookmarks += 1
            if self._backward_bookmarks >= self._policy.backward_bookmarks_max:
                self._backward_bookmarks = 0
                self._on_version_refused(now, Failure.VERSION_TOO_LARGE, "the server's versions went back")

    def _on_error(self, now: float, status: decoding.Status) -> None:
        detail = f"watch error {status.code}: {status.message or status.reason}"[:_MAX_DETAIL_LENGTH]
        if status.says_expired or status.says_version_too_large:
            failure = Failure.GONE if status.says_expired else Failure.VERSION_TOO_LARGE
            self._on_version_refused(now, failure, detail)
        else:
            self._stream_failed(now, Failure.WATCH_ERROR, detail)

    def _initial_progress(self, now: float, state: InitialEvents) -> None:
        state.last_event_at = now
        self._health.succeeded(now)

    def _progress(self, now: float) -> None:
        self._is_confirmed = True
        self._watch_worked()
        self._backward_bookmarks = 0
        self._health.succeeded(now)
        if self._is_resuming:
            self._is_resuming = False
            self.counters.resumes += 1

    def _watch_worked(self) -> None:
        """The watch brought something, or has lived for a while. What fails later is not the fault of its version."""
        self._stalls = 0
        self._fruitless_lists = 0
        self._has_progressed = True

    # Lists, presence and status.

    def _begin_list(self) -> None:
        if not self._trusts_versions and self._reflector.position:
            self._reflector.distrust_versions()
        if isinstance(self._state, Absent):
            self._notice(NoticeKind.FOUND, "info")
        self._missing_since = None
        is_fruitless = self._fruitless_lists >= self._policy.fruitless_lists_max
        is_poll = isinstance(self._state, Polling) or (is_fruitless and self._status is SyncStatus.IN_SYNC)
        if not is_poll:  # between two polls no newer data exists, so a poll is not a resync
            self._set_status(SyncStatus.RESYNC)

    def _synced(self, now: float, state: Sweeping) -> None:
        self._state = state.then
        self._relist_due = False
        if isinstance(state.then, Absent):
            reason = {"reason": self._absent_reason} if self._absent_reason else {}
            self._notice(NoticeKind.ABSENT, "info", recheck_seconds=self._policy.absent_seconds, **reason)
            self._confirm_absent(now)
        else:
            self._reflector.move_to(state.version)
            self._trusts_versions = True
            self._stalls = self._initial_breaks = self._ways_given_up = 0
            self._page_limit = self._fitting_limit = self._policy.page_limit
            self._is_whole_too_large = self._has_progressed = False
            self._is_confirmed = True
            self._health.succeeded(now)
        if isinstance(state.then, Polling):
            self._health.healthy(now)
            self._health.pause(now, self._policy.poll_seconds)
        self._set_status(SyncStatus.IN_SYNC)

    def _type_served(self, now: float) -> None:
        self._missing_since = None
        self._is_forbidden = False
        if self._group is not None and self._group.served(self.type, now):
            self._notice(NoticeKind.GROUP_RETURNED, "info", group=self.type.group)

    def _on_group_gone(self) -> None:
        """No type of the group is served: keep the known objects, which may be out of date, and list again later."""
        self._relist_due = True
        if self._status is SyncStatus.IN_SYNC:
            self._set_status(SyncStatus.RESYNC)

    def _confirm_absent(self, now: float) -> None:
        self._is_confirmed = True
        self._health.healthy(now)
        self._health.pause(now, self._policy.absent_seconds)

    def _set_status(self, status: SyncStatus) -> None:
        if status is not self._status:
            self._status = status
            self._sink.status(self.type, status)

    def _notice(self, kind: NoticeKind, level: str, **fields: str | float) -> None:
        self._notices.append(requests.Notice(kind, level, fields))


def _missing_rule(type: resources.ResourceType, request: requests.Request) -> str:
    return (
        f'missing RBAC rule: verb "{request.kind.verb}" on resource "{type.resource}" '
        f'in API group "{type.group}" at the cluster scope'
    )
