"""What comes in: objects from watchers to the feeds that take them, and updates of another replica. Synchronous.

Nothing is published here. The feeds gather what comes, and this notes since when, until `batch_end` of the subclass.
"""

import abc
import asyncio
from collections.abc import Sequence

from cache import objects, resources, write_times
from cache.feeds import feed, followed
from protocol import messages
from typha import clock
from typha.hub import conversions, policy, rejection_log, shortages

_monotonic = clock.monotonic
_WRITE_AGE_SECONDS_MAX = 600.0
"""An older time belongs to an earlier write: what changed an object last noted no time, or the API server was away,
which `typha_watch_last_confirmed_seconds` shows."""


class Intake(abc.ABC):
    """The feeds, and the part of the watchers' sink that fills them."""

    def __init__(self, limits: policy.HubPolicy) -> None:
        self._policy = limits
        self.feeds: dict[str, feed.Feed] = {}
        self._by_type: dict[resources.ResourceType, list[feed.Feed]] = {}
        """The feeds that watchers fill. Projections are not among them: the feed that they follow gives them all."""
        self.shortages = shortages.Shortages()
        self.conversions = conversions.ConversionScheduler(limits)
        self.rejection_log = rejection_log.RejectionLog()
        self.updates_refused: dict[str, int] = {}
        """By reason."""
        self.objects_skipped: dict[tuple[str, str], int] = {}
        """By resource type and reason."""
        self.expensive_conversions: dict[str, int] = {}
        """By resource type."""
        self._uncommitted = 0
        """Objects that have come since the last commit."""
        self._received_at = self._written_at = 0.0
        """Of the first of them, and of the first that tells when it was written: monotonic times, or 0.0."""
        self._must_publish = False

    @abc.abstractmethod
    def batch_end(self) -> None:
        """Publishes what has come, now or later."""

    def feeds_of(self, type: resources.ResourceType) -> list[feed.Feed]:
        """The feeds that take objects of a type, projections included."""
        return [source for source in self.feeds.values() if type in source.types]

    @property
    def types(self) -> list[resources.ResourceType]:
        """Every resource type that a feed takes, once."""
        return list(self._by_type)

    @property
    def followed_feeds(self) -> dict[str, followed.FollowedFeed]:
        """The feeds that another replica feeds, or is to feed."""
        return {name: one for name, one in self.feeds.items() if isinstance(one, followed.FollowedFeed)}

    @property
    def stale_feeds(self) -> list[str]:
        """The feeds of which the API server can no longer confirm a part."""
        return [name for name, source in self.feeds.items() if source.is_stale]

    # The watchers' sink.

    def apply(self, event: objects.ObjectEvent) -> None:
        """An object is new or has changed."""
        self._uncommitted += 1
        if not self._written_at:
            self._note_times(event)
        for source in self._by_type[event.type]:
            if source.may_take_long(event):
                self.conversions.submit(source, event)
                continue
            if not self.conversions.is_idle:
                self._forget_conversion(source, event)
            refusal = source.apply(event)
            if refusal is not None:
                self._note_refusal(refusal)

    def delete(self, event: objects.ObjectEvent) -> None:
        """An object is gone."""
        self._uncommitted += 1
        self._received_at = self._received_at or _monotonic()
        for source in self._by_type[event.type]:
            if not self.conversions.is_idle:
                self._forget_conversion(source, event)
            source.delete(event)

    def _note_times(self, event: objects.ObjectEvent) -> None:
        """The first object of a batch waits longest, so its times stand for the batch; they cost too much for each."""
        now = _monotonic()
        self._received_at = self._received_at or now
        written_at = write_times.written_at(event)
        if written_at:
            age_seconds = max(0.0, clock.time_ns() / 1e9 - written_at)
            if age_seconds < _WRITE_AGE_SECONDS_MAX:
                self._written_at = now - age_seconds

    def skipped(self, skipped: objects.SkippedObject) -> None:
        """An object cannot be used at all: no feed gets to see it."""
        key = str(skipped.type), skipped.reason
        self.objects_skipped[key] = self.objects_skipped.get(key, 0) + 1
        self.rejection_log.write_skipped(skipped)

    def status(self, type: resources.ResourceType, status: messages.SyncStatus) -> None:
        """A type's status has changed. A status is published at once, with all before it.

        In sync waits for the conversion of objects that came before it.
        """
        self._must_publish = True
        for source in self._by_type[type]:
            self.conversions.drop_hold(source, type)
            if status is not messages.SyncStatus.IN_SYNC or not self.conversions.hold(source, type):
                source.set_status(type, status)

    def _forget_conversion(self, source: feed.Feed, event: objects.ObjectEvent) -> None:
        self.conversions.forget(source, event)
        self._release_statuses()

    def _release_statuses(self) -> None:
        for name, type in self.conversions.released():
            self.feeds[name].set_status(type, messages.SyncStatus.IN_SYNC)
            self._must_publish = True

    async def run_conversions(self) -> None:
        """Converts what may take long, forever."""
        while True:
            try:
                done = await self.conversions.convert_next()
            except MemoryError as error:
                self.shortages.note(shortages.Lacking.CONVERSION, error)
                await asyncio.sleep(self._policy.retry_seconds)
                continue
            self.shortages.over(shortages.Lacking.CONVERSION)
            self.converted(done)

    def converted(self, done: conversions.Conversion) -> None:
        """An object has been converted in the thread."""
        if done.seconds >= self._policy.named_conversion_seconds:
            type = str(done.event.type)
            self.expensive_conversions[type] = self.expensive_conversions.get(type, 0) + 1
            milliseconds = round(done.seconds * 1000)
            self.rejection_log.write_expensive(done.event, feed=done.source.name, milliseconds=milliseconds)
        if not done.is_outdated:
            self._uncommitted += 1
            self._received_at = min(self._received_at or done.received_at, done.received_at)
            refusal = done.source.adopt(done.event, done.outcome)
            if refusal is not None:
                self._note_refusal(refusal)
        self._release_statuses()
        self.batch_end()

    def set_unconfirmed(
        self, type: resources.ResourceType, is_unconfirmed: bool, confirmed_at: float | None = None
    ) -> None:
        """Record whether the API server can no longer confirm a type, and when it last did. `look_after_channels` tells
        native clients."""
        for source in self._by_type[type]:
            source.set_unconfirmed(type, is_unconfirmed, confirmed_at)

    def _note_refusal(self, refusal: feed.Rejection) -> None:
        self.updates_refused[refusal.reason] = self.updates_refused.get(refusal.reason, 0) + 1
        self.rejection_log.write(refusal)

    # From another replica.

    def receive(
        self, source: followed.FollowedFeed, updates: Sequence[messages.Update], status: messages.SyncStatus | None
    ) -> None:
        """Another replica has sent updates of a feed, and then perhaps a status."""
        self._uncommitted += len(updates)
        self._received_at = self._received_at or _monotonic()
        source.receive(updates)
        if status is not None:
            source.receive_status(status)
            self._must_publish = True
        self.batch_end()
