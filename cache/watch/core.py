"""What a watch machine holds, and its transitions; the rules stand in cache/watch/machine.py. Pure."""

import random

from cache import objects, resources
from cache.watch import api_group, counters, health, reflector, requests
from cache.watch.policy import Failure, WatchPolicy
from cache.watch.requests import NoticeKind
from cache.watch.states import Absent, Empty, InitialEvents, ListPages, Polling, State, Sweeping, Watching
from protocol.messages import SyncStatus

_RECHECK_SECONDS = 2.0
_GONE_RECHECK_SECONDS = 5.0
"""While the whole family is missing; a family has some 20 types."""


class WatchCore:
    """State and transitions of the machine of one resource type."""

    def __init__(
        self,
        type: resources.ResourceType,
        sink: objects.WatchSink,
        *,
        policy: WatchPolicy,
        random: random.Random,
        notify: requests.Notify,
        now: float,
        family: api_group.Family | None = None,
    ) -> None:
        self.type = type
        self.counters = counters.WatchCounters()
        self.streaming = False
        self._sink = sink
        self._policy = policy
        self._random = random
        self._notify = notify
        self._requests = requests.RequestFactory(type, policy)
        self._emitter = reflector.Emitter(type, sink, counters=self.counters, notify=notify)
        self._view = self._emitter.view
        self._health = health.Health(policy=policy, counters=self.counters, notify=notify, random=random, now=now)
        self._state: State = Empty()
        self._status = SyncStatus.WAITING
        self._request: requests.Request | None = None
        self._page_limit = policy.page_limit
        self._has_watch_list = policy.use_watch_list
        self._has_watch = True
        self._trusts_versions = True
        self._reload_due = False
        self._opened_at = now
        self._is_settled = False
        self._is_confirmed = False
        self._is_resuming = False
        self._missing_since: float | None = None
        self._relist_due = False
        self._family = family
        if family is not None:
            family.join(self._doubt)
        self._stalls = 0
        self._initial_breaks = 0
        self._backward_bookmarks = 0

    def sweep(self, now: float) -> bool:
        """Deletes a slice of what a complete list did not contain; returns whether more is left to do."""
        state = self._state
        if not isinstance(state, Sweeping):
            return False
        self._emitter.sweep(state.doomed, count=self._policy.slice_items, version=state.version)
        if state.doomed:
            return True
        self._synced(now, state)
        return False

    def _begin_list(self) -> None:
        if not self._trusts_versions and self._view.position:
            self._view.distrust_versions()
        if isinstance(self._state, Absent):
            self._tell(NoticeKind.FOUND, "info")
        self._missing_since = None
        if not isinstance(self._state, Polling):  # the view is as good as it gets; nobody wants to hear of each poll
            self._set_status(SyncStatus.RESYNC)

    def _synced(self, now: float, state: Sweeping) -> None:
        self._state = state.then
        self._relist_due = False
        if isinstance(state.then, Absent):
            self._tell(NoticeKind.ABSENT, "info", looked_for_each_seconds=self._policy.absent_seconds)
            self._absent(now)
        else:
            self._view.move_to(state.version)
            self._trusts_versions = True
            self._stalls = self._initial_breaks = 0
            self._is_confirmed = True
            self._health.succeeded(now)
        if isinstance(state.then, Polling):
            self._health.healthy(now)
            self._health.pause(now, self._policy.poll_seconds)
        self._set_status(SyncStatus.IN_SYNC)

    def _break(self, now: float, failure: Failure, detail: str) -> None:
        """The stream is of no more use."""
        while self.sweep(now):
            pass
        self.streaming = False
        self.counters.stream_breaks += 1
        if isinstance(self._state, InitialEvents):
            self._state = Empty()
            self._initial_breaks += 1
            self._health.failed(now, failure, detail)
            if self._initial_breaks >= self._policy.initial_breaks_max:
                self._give_up_watch_list(detail)
            return
        self._is_resuming = True
        if self._stall():
            self._state = Empty()
        self._health.broke(now, failure, detail)

    def _stall(self) -> bool:
        """Counts a failure without progress; returns whether there were too many to go on from here."""
        self._stalls += 1
        if self._stalls < self._policy.stalls_max:
            return False
        self._stalls = 0
        self._is_resuming = False
        return True

    def _give_up_watch_list(self, reason: str) -> None:
        self.streaming = False
        self._has_watch_list = False
        if isinstance(self._state, InitialEvents):
            self._state = Empty()
        self._tell(NoticeKind.NO_WATCH_LIST, "info", reason=reason)

    def _set_status(self, status: SyncStatus) -> None:
        if status is not self._status:
            self._status = status
            self._sink.status(self.type, status)

    def _tell(self, kind: NoticeKind, level: str, **fields: str | float) -> None:
        self._notify(requests.Notice(kind, level, fields))

    def _on_version_refused(self, now: float, failure: Failure, detail: str) -> None:
        """The server does not know the version that was asked for: any more (410), or yet."""
        state = self._state
        had_version = "resourceVersion" in (self._request.query if self._request else {})
        was_relist = isinstance(state, (Empty, InitialEvents, Polling, Absent)) and had_version
        if failure is Failure.VERSION_TOO_LARGE or was_relist:
            self._trusts_versions = False
        if isinstance(state, Watching):
            if failure is Failure.GONE:
                self.counters.relists_410 += 1
            if not self._health.is_troubled:
                self._tell(NoticeKind.RELIST, "info", reason=detail)
        self.streaming = False
        self._is_resuming = False
        self._state = Empty()
        if had_version or isinstance(state, (ListPages, Watching)):
            self._health.broke(now, failure, detail)
        else:
            self._health.failed(now, failure, detail)

    def _on_not_found(self, now: float) -> None:
        self.counters.errors[Failure.NOT_FOUND.value] += 1
        self._health.succeeded(now)
        family = self._family
        if family is not None and family.missing(self.type):
            self._tell(NoticeKind.FAMILY_GONE, "error", group=self.type.group)
        was_missing = self._missing_since is not None
        missing_since = now if self._missing_since is None else self._missing_since
        self._missing_since = missing_since
        if family is not None and family.is_gone:
            self._doubt()
            self._health.pause(now, _GONE_RECHECK_SECONDS)
            return
        is_absent = isinstance(self._state, Absent) and self._status is SyncStatus.IN_SYNC
        if was_missing and is_absent:
            self._absent(now)
            return
        since = missing_since if family is None else max(missing_since, family.returned_at)
        # With nothing to lose, one answer is enough, unless all types of the family are just coming back.
        may_be_soon = len(self._view) == 0 and since == missing_since
        if may_be_soon or now - since >= self._policy.absent_grace_seconds:
            self._state = Sweeping(list(self._view.identities()), "", Absent())
        else:
            self._health.pause(now, _RECHECK_SECONDS)

    def _doubt(self) -> None:
        """No type of the family is served: what is known is kept, but may be no more."""
        self._relist_due = True
        if self._status is SyncStatus.IN_SYNC:
            self._set_status(SyncStatus.RESYNC)

    def _present(self, now: float) -> None:
        """The API server serves the type."""
        self._missing_since = None
        if self._family is not None and self._family.served(self.type, now):
            self._tell(NoticeKind.FAMILY_RETURNED, "info", group=self.type.group)

    def _absent(self, now: float) -> None:
        self._is_confirmed = True
        self._health.healthy(now)
        self._health.pause(now, self._policy.absent_seconds)

    def _initial_progress(self, now: float, state: InitialEvents) -> None:
        state.last_event_at = now
        self._health.succeeded(now)

    def _progress(self, now: float) -> None:
        self._is_confirmed = True
        self._stalls = 0
        self._backward_bookmarks = 0
        self._health.succeeded(now)
        if self._is_resuming:
            self._is_resuming = False
            self.counters.resumes += 1
