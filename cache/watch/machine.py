"""The watch machine: lists and watches one resource type, and tells a sink what is different. Pure.

The driver asks for the `next_step`, carries it out, and feeds in what comes of it; time comes in with each call. The
rules, state by state:

    Empty          nothing is under way. List: by WatchList unless this server has none, else page by page.
    ListPages      a list is under way. Objects are handed on as pages arrive; those that were known before and have
                   not been seen yet are remembered. Its last page leads to Sweeping. An expired continue token, or
                   any answer that this list cannot survive: Empty. Other failures: the same page again.
    InitialEvents  the same within a watch, up to the end bookmark. If it breaks: Empty. If the bookmark does not
                   come: Empty, and this server has no WatchList.
    Sweeping       what the list did not contain is deleted, a slice at a time. Then IN_SYNC.
    Watching       events apply as they come and move the position on. If the stream breaks: watch again from the
                   position. If the position has expired (410): Empty; what is known is kept for the comparison.
    Polling        the type cannot be watched: list again after a while.
    Absent         the type is not installed (404): in sync, with nothing; looked for now and then. If none of its
                   family is (cache.watch.api_group), what is known is kept instead, and it is not in sync.

After the first sync each list is at least as new as the position (NotOlderThan), so that it cannot go back in time,
except where the server does not know that version any more or yet; then versions are not compared either.
"""

from collections.abc import Sequence

import msgspec

from cache import resources
from cache.objects import Origin
from cache.watch import core, decoding, requests
from cache.watch.policy import Failure, classify, says_no_watch_list
from cache.watch.requests import NoticeKind, RequestKind
from cache.watch.states import Empty, InitialEvents, ListPages, Polling, State, Sweeping, Watching
from protocol.messages import SyncStatus

# A stream that reached this part of its timeoutSeconds ended because of them.
_RENEWAL_SHARE = 0.9
_MAX_DETAIL_LENGTH = 400


class WatchMachine(core.WatchCore):
    """The machine of one resource type. The sink is called directly, and starts from the status WAITING.

    `streaming` says whether the driver should go on reading the stream that it reported as `accepted`; where it turns
    False the stream is to be closed.
    """

    # What the driver reads.

    @property
    def state(self) -> State:
        """The current state, for tests and debugging."""
        return self._state

    @property
    def status(self) -> SyncStatus:
        """What the sink was told last."""
        return self._status

    @property
    def object_count(self) -> int:
        """How many live objects are known."""
        return len(self._view)

    @property
    def deadline(self) -> float | None:
        """While streaming: when to call `tick` at the latest."""
        state = self._state
        if not self.streaming:
            return None
        if isinstance(state, InitialEvents):
            policy = self._policy
            return min(state.last_event_at + policy.initial_quiet_seconds, state.began_at + policy.initial_max_seconds)
        return None if self._is_settled else self._opened_at + self._policy.healthy_seconds

    def next_step(self, now: float) -> requests.Step:
        """What to do now. Not to be called while streaming."""
        while self.sweep(now):
            pass
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
        if isinstance(state, Watching):
            counters.watch_requests += 1
            return self._requests.watch(position=self._view.position, timeout_seconds=timeout)
        counters.lists += 1
        not_older_than = self._view.position if self._trusts_versions else ""
        if self._has_watch_list and self._has_watch:
            counters.watchlist_requests += 1
            return self._requests.watch_list(not_older_than=not_older_than, timeout_seconds=timeout)
        return self._requests.page(limit=self._page_limit, not_older_than=not_older_than)

    # Good answers.

    def accepted(self, now: float) -> None:
        """The request was answered with 200: a list's body follows as pages, a watch's as lines."""
        if self._request is None or self._request.kind is RequestKind.LIST:
            return
        if self._relist_due and self._request.kind is RequestKind.WATCH:
            self._present(now)
            return
        self.streaming = True
        self._present(now)
        self._opened_at = now
        self._is_settled = False
        if self._request.kind is RequestKind.WATCH_LIST:
            self._begin_list()
            self._state = InitialEvents(set(self._view.identities()), now, now)

    def begin_page(self, now: float, page: decoding.ListPage) -> None:
        """A page of a list is there; its items follow through `items`, then `end_page`."""
        self.counters.list_pages += 1
        self._present(now)
        if not isinstance(self._state, ListPages):
            self._begin_list()
            self._state = ListPages(set(self._view.identities()), page.resource_version, "")
        elif self._status is SyncStatus.WAITING:
            self._set_status(SyncStatus.RESYNC)
        self._health.succeeded(now)

    def items(self, page: decoding.ListPage, items: Sequence[msgspec.Raw]) -> None:
        """Some of the page's items, in order."""
        assert isinstance(self._state, ListPages)
        unseen = self._state.unseen
        for item in items:
            try:
                envelope = decoding.decode_item(item)
            except decoding.InvalidInput:
                envelope = decoding.Envelope()  # without an identity: left out, as one bad object
            identity = self._emitter.upsert(
                envelope, bytes(item), Origin.LIST, api_version=page.api_version, kind=page.kind
            )
            unseen.discard(identity)

    def end_page(self, now: float, page: decoding.ListPage) -> None:
        """All of the page's items were there."""
        state = self._state
        assert isinstance(state, ListPages)
        if page.continue_token and page.continue_token == state.continue_token:
            self._state = Empty()
            self._health.failed(now, Failure.MALFORMED, "the list goes on with the same continue token for ever")
        elif page.continue_token:
            state.continue_token = page.continue_token
        else:
            is_watchable = self._has_watch and page.resource_version not in ("", "0")
            then = Watching() if is_watchable else Polling()
            self._state = Sweeping(sorted(state.unseen), state.version, then)

    def line(self, now: float, line: bytes) -> None:
        """A line of a watch."""
        if isinstance(self._state, Sweeping):
            while self.sweep(now):
                pass
        try:
            event = decoding.decode_line(line)
            match event.type:
                case "ADDED" | "MODIFIED":
                    self._on_live(now, event)
                case "DELETED":
                    self._on_deleted(now, event)
                case "BOOKMARK":
                    self._on_bookmark(now, event)
                case "ERROR":
                    self._on_error(now, decoding.decode_status(event.raw))
                case _:
                    raise decoding.InvalidInput(f"unknown watch event {event.type[:40]!r}")
        except decoding.InvalidInput as error:
            self._break(now, Failure.MALFORMED, str(error))

    def stream_ended(self, now: float, *, is_truncated: bool) -> None:
        """The stream came to its end; `is_truncated` if in the middle of a line."""
        request = self._request
        lived = now - self._opened_at
        is_due = request is not None and lived >= request.timeout_seconds * _RENEWAL_SHARE
        while self.sweep(now):
            pass
        if is_due and not is_truncated and isinstance(self._state, Watching):
            self.streaming = False
            self.counters.renewals += 1
            self._health.healthy(now)
        else:
            self._break(now, Failure.TRUNCATED, "the stream ended early")

    def end_batch(self, now: float) -> None:
        """The driver has no more input right now."""
        if self._is_confirmed:
            self._is_confirmed = False
            self.counters.last_confirmed = now
            self._sink.confirmed(self.type)
        self._sink.batch_end()

    def tick(self, now: float) -> None:
        """Time has passed."""
        state = self._state
        deadline = self.deadline
        if deadline is not None and now >= deadline:
            if isinstance(state, InitialEvents):
                self._give_up_watch_list("the end of the initial events never came")
            else:
                self._is_settled = True
                self._health.healthy(now)
        if self._status is not SyncStatus.WAITING and now >= self._health.lost_at:
            self._notify(requests.Notice(NoticeKind.LOST, "error", {"seconds": self._policy.lost_seconds}))
            self._set_status(SyncStatus.WAITING)
            self.streaming = False
            if not isinstance(state, ListPages):
                self._state = Empty()

    # Bad answers.

    def interrupted(self, now: float, failure: Failure, detail: str) -> None:
        """The request, or the stream that it had opened, failed on the way, or its body could not be used."""
        if self.streaming:
            self._break(now, failure, detail)
            return
        self._missing_since = None
        if failure is Failure.TOO_LARGE:
            self._page_limit = max(1, self._page_limit // 2)
        if failure in (Failure.TOO_LARGE, Failure.MALFORMED) and self._stall():
            self._state = Empty()
        self._reload_due = failure is Failure.CREDENTIALS
        self._health.failed(now, failure, detail[:_MAX_DETAIL_LENGTH])

    def refused(self, now: float, http_status: int, *, body: bytes, retry_after_seconds: float = 0.0) -> None:
        """The request was answered with another status than 200; `body` is the beginning of the answer's body."""
        request = self._request
        assert request is not None
        status = decoding.decode_status(body[: self._policy.max_error_bytes])
        detail = f"HTTP {http_status}: {status.message or status.reason}"[:_MAX_DETAIL_LENGTH]
        if request.kind is RequestKind.WATCH_LIST and says_no_watch_list(http_status, status):
            self._give_up_watch_list(detail)
            return
        failure = classify(http_status, status)
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
            self._tell(NoticeKind.NO_WATCH, "warning", detail=detail)
        else:
            if failure is Failure.REJECTED:
                self._state = Empty()  # whatever is wrong with the request, the next one should be another
            self._reload_due = failure is Failure.UNAUTHORIZED
            if failure is Failure.FORBIDDEN:
                if self._family is not None:
                    self._family.refused(self.type)
                detail = f"{_missing_rule(self.type, request)} ({detail})"
            retry_after_seconds = retry_after_seconds or (status.details.retry_after_seconds if status.details else 0)
            self._health.failed(now, failure, detail, retry_after_seconds=retry_after_seconds)

    # Events of a watch.

    def _on_live(self, now: float, event: decoding.WatchLine) -> None:
        state = self._state
        if isinstance(state, InitialEvents):
            state.unseen.discard(self._emitter.upsert(event.envelope, event.raw, Origin.INITIAL))
            self._initial_progress(now, state)
        else:
            self._emitter.upsert(event.envelope, event.raw, Origin.EVENT)
            self._view.advance(event.envelope.metadata.resource_version)
            self._progress(now)

    def _on_deleted(self, now: float, event: decoding.WatchLine) -> None:
        state = self._state
        if isinstance(state, InitialEvents):
            state.unseen.discard(self._emitter.remove(event.envelope, event.raw, Origin.INITIAL))
            self._initial_progress(now, state)
        else:
            self._emitter.remove(event.envelope, event.raw, Origin.EVENT)
            self._view.advance(event.envelope.metadata.resource_version)
            self._progress(now)

    def _on_bookmark(self, now: float, event: decoding.WatchLine) -> None:
        self.counters.bookmarks += 1
        state = self._state
        version = event.envelope.metadata.resource_version
        if isinstance(state, InitialEvents):
            if decoding.ends_initial_events(event.raw):
                if not version:
                    raise decoding.InvalidInput("the bookmark that ends the initial events has no resourceVersion")
                self._state = Sweeping(sorted(state.unseen), version, Watching())
            self._health.succeeded(now)
        elif self._view.advance(version):
            self._progress(now)
        else:
            # A replica of the API server that lags behind says such things too, for a moment.
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
            self._break(now, Failure.WATCH_ERROR, detail)


def _missing_rule(type: resources.ResourceType, request: requests.Request) -> str:
    return (
        f'missing RBAC rule: verb "{request.kind.verb}" on resource "{type.resource}" '
        f'in API group "{type.group}" at the cluster scope'
    )
