"""Writes what feeds have gathered to their stores, and to the logs of their channels. The hub says when.

A batch that cannot be written to a channel's log, for lack of a resource, is written later. Until then the feed gathers
what comes, and no snapshot or block of the channel is cut, because store and log do not agree.
"""

from collections.abc import Mapping
from typing import NamedTuple

import structlog

from cache.feeds import feed, selection
from typha import clock
from typha.hub import (
    catchup_scheduler,
    channels,
    commit_times,
    derived,
    policy,
    retention,
    shortages,
    snapshot_scheduler,
    worker_link,
)
from typha.hub.channel import Batch, HubChannel
from typha.ipc import messages as ipc
from typha.observability import logs, quantiles

_log = structlog.get_logger("typha.hub")
_monotonic = clock.monotonic
_STATUS_LINES_PER_MINUTE = 60
"""An upstream could change its status with every message."""
_COMMIT_BYTES = 16 * 1024 * 1024
"""Memory for a whole batch: its entries, its frames, and parts of chunks."""
_COMMIT_BYTES_PER_KEY = 128
"""Memory for the store's dictionaries if they grow. The old ones are there until then."""


class Published(NamedTuple):
    """What a commit has done."""

    feeds: list[feed.Feed]
    """Those that have had a batch."""
    has_news: bool
    """Whether a log is longer now."""
    is_unfinished: bool
    """Whether a feed has more than one batch takes."""


class Publisher:
    """Takes a batch of each feed and appends it to logs. All that it is given are the hub's, and change."""

    def __init__(
        self,
        feeds: Mapping[str, feed.Feed],
        opened: channels.Channels,
        followers: derived.DerivedFeeds,
        workers: worker_link.WorkerLinks,
        limits: policy.HubPolicy,
        *,
        lacking: shortages.Shortages,
        snapshots: snapshot_scheduler.SnapshotScheduler,
        catch_ups: catchup_scheduler.CatchUpScheduler,
        kept: retention.Retention,
    ) -> None:
        self._feeds = feeds
        self._channels = opened
        self._derived = followers
        self._workers = workers
        self._shortages = lacking
        self._snapshots = snapshots
        self._catch_ups = catch_ups
        self._retention = kept
        self._batch_limits = feed.BatchLimits(limits.batch_changes_max, limits.batch_bytes_max, limits.batch_split_keys)
        self.updates_total: dict[str, int] = {}
        """By feed, as all below: updates that clients are sent."""
        self.batches_total: dict[str, int] = {}
        self.batch_sizes: dict[str, quantiles.Histogram] = {}
        self.commit_times: dict[str, commit_times.CommitTimes] = {}
        self._batches_before: dict[str, int] = {}
        self._status_lines = logs.LineLimit(_STATUS_LINES_PER_MINUTE, seconds=60.0)
        self._is_short = False
        """There was no memory for the last commit."""

    def add_feed(self, name: str) -> None:
        """Begins to count what a feed sends. Of a feed that comes back, the counts go on."""
        self.updates_total.setdefault(name, 0)
        self.batches_total.setdefault(name, 0)
        self.batch_sizes.setdefault(name, quantiles.Histogram())
        self.commit_times[name] = commit_times.CommitTimes()

    def note_quiet_feeds(self) -> None:
        """A feed without a batch for a second counts one of no updates, so that the sizes decay, as in the original."""
        for name, batches in self.batches_total.items():
            if self._batches_before.get(name) == batches:
                self.batch_sizes[name].record(0)
            self._batches_before[name] = batches

    @property
    def must_try_again(self) -> bool:
        """Whether there is something to publish that nothing else will publish soon."""
        return self._is_short or any(
            one.unwritten is not None or one.contact_change() is not None for one in self._channels.values()
        )

    def has_memory(self) -> bool:
        """Whether there is memory for a commit: half a batch in a store would be lost for the logs."""
        keys = max((len(source.store) for source in self._feeds.values()), default=0)
        try:
            shortages.check_memory(_COMMIT_BYTES + _COMMIT_BYTES_PER_KEY * keys)
        except shortages.ERRORS as error:
            self._shortages.note(shortages.Lacking.COMMIT, error)
            self._is_short = True
            return False
        if self._is_short:
            self._is_short = False
            self._shortages.over(shortages.Lacking.COMMIT)
        return True

    def publish(self, times: ipc.UpdateTimes) -> Published:
        """Takes one batch of every feed, and appends it to the logs of its channels and selections.

        Workers hear of it with their next flush. Of very much, a batch is only a part.
        """
        committed: list[feed.Feed] = []
        has_news = is_unfinished = False
        for source in self._feeds.values():
            selections = self._derived.selections_of(source)
            channels = self._channels.of(source)
            channels_of_all = [*channels, *(channel for one in selections for channel in self._channels.of(one))]
            unwritten = [self._append(channel, *channel.unwritten) for channel in channels_of_all if channel.unwritten]
            has_news = has_news or any(unwritten)
            if not all(unwritten):
                continue  # the feed keeps what it has gathered
            batch = source.take(self._batch_limits)
            is_unfinished = is_unfinished or source.is_unfinished
            if batch is None:
                continue
            committed.append(source)
            self._note(source, batch)
            for channel in channels:
                has_news = self._append(channel, batch, times) or has_news
            for one in selections:
                has_news = self._follow(one, batch, times) or has_news
        has_news = self._publish_contact(times) or has_news
        return Published(committed, has_news, is_unfinished)

    def _note(self, source: feed.Feed, batch: feed.Batch) -> None:
        self.updates_total[source.name] += len(batch.updates)
        self.batches_total[source.name] += 1
        self.batch_sizes[source.name].record(len(batch.updates))
        self.commit_times[source.name].note(source.store.sequence, _monotonic())
        if batch.status is not None:
            _log.info(
                "Feed status changed",
                feed=source.name,
                status=batch.status.label,
                keys=len(source.store),
                sequence=source.store.sequence,
            )

    def _follow(self, one: selection.Selection, batch: feed.Batch, times: ipc.UpdateTimes) -> bool:
        """Passes a feed's batch on to a selection of it. Returns whether there is something to publish."""
        selected = one.follow(batch)
        if selected is None:
            return False
        appended = [self._append(channel, selected, times) for channel in self._channels.of(one)]
        return any(appended)

    def _publish_contact(self, times: ipc.UpdateTimes) -> bool:
        """Tells native clients whether the API server confirms what they have. Returns whether one is told."""
        has_news = False
        for channel in self._channels.values():
            change = channel.contact_change()
            if change is None:
                continue
            if self._status_lines.allows():
                _log.info(
                    "Status for native clients changed",
                    feed=channel.feed.name,
                    status=channel.status_now.label,
                    other_changes_not_logged=self._status_lines.take_suppressed(),
                )
            has_news = self._append(channel, change, times) or has_news
        return has_news

    def _append(self, channel: HubChannel, batch: Batch, times: ipc.UpdateTimes) -> bool:
        """Appends a batch to the channel's log. False if a resource is missing: the channel remembers the batch."""
        was_behind = channel.unwritten is not None
        status_offset, logged = channel.log.status_offset, channel.dictionaries[-1:]
        try:
            segments = channel.append(batch, times)
        except shortages.ERRORS as error:
            self._shortages.note(shortages.Lacking.LOG, error, feed=channel.feed.name, format=channel.encoder.name)
            return False
        if was_behind:
            self._shortages.over(shortages.Lacking.LOG)
            self._snapshots.wake()
            self._catch_ups.wake()
        self._workers.publish(
            channel,
            segments,
            channel.status if channel.log.status_offset != status_offset else None,
            times,
            channel.dictionaries[-1] if channel.dictionaries[-1:] != logged else None,
        )
        if channel.wants_snapshot():
            self._snapshots.request(channel)
        if segments:
            self._retention.keep_budget()
        return True
