"""The hub: objects in from the watchers, updates out to every channel's log, and the ends of the logs to the workers.

Everything here is synchronous and runs on the hub's loop; what takes long (snapshots, catch-up blocks) is cut into
steps: `service` runs their makers.
"""

from collections import deque
from collections.abc import Callable, Iterable

import structlog

from cache import objects, resources
from cache.feeds import feed
from protocol import formats, messages
from typha import clock
from typha.hub import catchup_builder, coalescer, rejection_log, worker_handle
from typha.hub.channel import HubChannel
from typha.observability import quantiles

_log = structlog.get_logger("typha.hub")
_monotonic = clock.monotonic

CHANNEL_IDLE_SECONDS = 60.0
"""A channel without clients is encoded for nobody; after so long it is dropped."""
_TOMBSTONE_LOOKS = 10
"""Deletions are forgotten when so many looks in a row, a second apart, have found that nobody needs them."""


class Hub:
    """Feeds, channels and the workers that serve them. It is the watchers' sink."""

    def __init__(
        self,
        feeds: Iterable[feed.Feed],
        *,
        awaited: Iterable[str] = (),
        log_budget_bytes: int,
        segment_bytes: int,
        build_snapshot: Callable[[HubChannel], None],
    ) -> None:
        self.feeds: dict[str, feed.Feed] = {}
        self.awaited = tuple(awaited)
        """Feeds that may yet be added; until that is decided their clients are held."""
        self._by_type: dict[resources.ResourceType, list[feed.Feed]] = {}
        self.channels: dict[tuple[str, str], HubChannel] = {}
        self.workers: dict[int, worker_handle.WorkerHandle] = {}
        self.updates_refused: dict[str, int] = {}
        self.updates_total: dict[str, int] = {}
        self.batch_sizes: dict[str, quantiles.Histogram] = {}
        self._wanted: dict[tuple[str, str], None] = {}
        """Channels to be opened as soon as there is something to serve, in the order in which they were asked for."""
        self._next_channel = 1
        self._log_budget_bytes = log_budget_bytes
        self._segment_bytes = segment_bytes
        self._build_snapshot = build_snapshot
        self._refusal_log = rejection_log.RefusalLog()
        self._sequences_needed: dict[str, deque[int]] = {}
        """Of each feed, the lowest sequence from which a client may have to be caught up, as of the last looks."""
        self.catch_ups = catchup_builder.CatchUpMaker(
            lambda channel: self.channels.get(channel.key) is channel,
            lambda worker: self.workers.get(worker.number) is worker,
        )
        self.gathering = coalescer.Gathering(self._ends_under_way, self.commit)
        self._waiting = 0
        """Objects that have come since the last commit."""
        self._must_publish = False
        self.add_feeds(feeds)

    def add_feeds(self, feeds: Iterable[feed.Feed]) -> None:
        """More feeds, before anything of their types has come."""
        for source in feeds:
            self.feeds[source.name] = source
            self.updates_total[source.name] = 0
            self.batch_sizes[source.name] = quantiles.Histogram()
            for type in source.types:
                self._by_type.setdefault(type, []).append(source)
        self.awaited = tuple(name for name in self.awaited if name not in self.feeds)

    def withdraw_awaited(self) -> None:
        """The feeds that were awaited will not come: their clients are refused."""
        withdrawn, self.awaited = self.awaited, ()
        self._wanted = {key: None for key in self._wanted if key[0] in self.feeds}
        for worker in self.workers.values():
            worker.tell(["withdraw", list(withdrawn)])
            worker.flush()

    @property
    def names(self) -> list[str]:
        """Every feed that clients may ask for."""
        return [*self.feeds, *self.awaited]

    @property
    def types(self) -> list[resources.ResourceType]:
        """Every resource type that some feed takes, once."""
        return list(self._by_type)

    # The watchers' sink.

    def apply(self, event: objects.ObjectEvent) -> None:
        """An object is new or has changed."""
        self._waiting += 1
        for source in self._by_type[event.type]:
            refusal = source.apply(event)
            if refusal is not None:
                self._note_refusal(refusal)

    def delete(self, event: objects.ObjectEvent) -> None:
        """An object is gone."""
        self._waiting += 1
        for source in self._by_type[event.type]:
            source.delete(event)

    def status(self, type: resources.ResourceType, status: messages.SyncStatus) -> None:
        """A type's status has changed; nothing of it waits for company."""
        self._must_publish = True
        for source in self._by_type[type]:
            source.set_status(type, status)

    def confirmed(self, type: resources.ResourceType) -> None:
        """The watcher's own counters remember when; nothing to do here."""

    def batch_end(self) -> None:
        """Publishes what has come, now or with what comes while the workers are busy."""
        if self._must_publish or self.gathering.is_due(self._waiting):
            self.commit()

    def _note_refusal(self, refusal: feed.Rejection) -> None:
        self.updates_refused[refusal.reason] = self.updates_refused.get(refusal.reason, 0) + 1
        self._refusal_log.write(refusal)

    # Logs and workers.

    def commit(self) -> None:
        """Appends what every feed has gathered to its channels' logs, and tells the workers."""
        now = _monotonic()
        since = self.gathering.since or now
        self._waiting, self._must_publish = 0, False
        published = False
        for source in self.feeds.values():
            batch = source.take()
            if batch is None:
                continue
            self.updates_total[source.name] += len(batch.updates)
            self.batch_sizes[source.name].record(len(batch.updates))
            if batch.status is not None:
                _log.info(
                    "Feed status changed",
                    feed=source.name,
                    status=batch.status.label,
                    keys=len(source.store),
                    sequence=source.store.sequence,
                )
            for channel in self._channels_of(source):
                self._append(channel, batch, since)
                published = True
        self.gathering.published()
        if published:
            for worker in self.workers.values():
                worker.flush()
        if self._wanted:
            self._open_wanted()

    def _ends_under_way(self) -> int:
        return max((worker.ends_under_way for worker in self.workers.values()), default=0)

    def _channels_of(self, source: feed.Feed) -> list[HubChannel]:
        return [channel for channel in self.channels.values() if channel.feed is source]

    def _append(self, channel: HubChannel, batch: feed.Batch, now: float) -> None:
        appended = channel.append(batch)
        for worker in self.workers.values():
            if batch.status is not None:
                worker.status_told(channel, batch.status)
            worker.segments_begun(channel, appended.segments)
            worker.publish(channel, now)
        if channel.wants_snapshot(log_budget_bytes=self._log_budget_bytes):
            self._build_snapshot(channel)
        if appended.segments:
            self._keep_budget()

    def wanted(self, feed_name: str, wire_format: str) -> None:
        """A client has come for a channel; it is opened as soon as its feed has something to serve."""
        # A feed that has just been withdrawn may still be asked for: the worker has not heard yet.
        if feed_name in self.names and (feed_name, wire_format) not in self.channels:
            self._wanted[feed_name, wire_format] = None
            self._open_wanted()

    def stale(self, worker: worker_handle.WorkerHandle, channel: int) -> None:
        """A worker's newcomers wait for a newer snapshot; of a channel that was dropped they have been told."""
        for one in self.channels.values():
            if one.number != channel or one.building:
                continue
            if one.is_fresh(_monotonic()):
                worker.new_snapshot(one)
                worker.flush()
            else:
                self._build_snapshot(one)

    def block_wanted(
        self, worker: worker_handle.WorkerHandle, channel: int, from_sequence: int, needed_sequence: int
    ) -> None:
        """Slow clients need what has changed behind a sequence; of a channel that was dropped they have been told.

        Raises:
            ValueError: there is no such sequence.
        """
        for one in self.channels.values():
            if one.number != channel:
                continue
            if not 0 <= from_sequence <= needed_sequence <= one.feed.store.sequence:
                raise ValueError(f"catch-up from {from_sequence} to {needed_sequence}, which {one!r} has not")
            self.catch_ups.request(one, worker, from_sequence=from_sequence, needed_sequence=needed_sequence)

    def _open_wanted(self) -> None:
        for key in [key for key in self._wanted if key[0] in self.feeds and self.feeds[key[0]].synced_once]:
            del self._wanted[key]
            source = self.feeds[key[0]]
            channel = HubChannel(
                self._next_channel, source, formats.make_encoder(key[1]), segment_bytes=self._segment_bytes
            )
            self._next_channel += 1
            self.channels[key] = channel
            for worker in self.workers.values():
                worker.open_channel(channel)
                worker.flush()
            self._build_snapshot(channel)

    def add_worker(self, worker: worker_handle.WorkerHandle) -> None:
        """A worker has been started; it is told of everything there is."""
        self.workers[worker.number] = worker
        worker.share_progress()
        for channel in self.channels.values():
            worker.open_channel(channel)
        worker.flush()

    def remove_worker(self, number: int) -> None:
        """A worker has died."""
        worker = self.workers.pop(number, None)
        if worker is not None:
            worker.close()

    def snapshot_built(self, channel: HubChannel) -> None:
        """A new snapshot is ready for newcomers; what no one needs of the log may go."""
        for worker in self.workers.values():
            worker.new_snapshot(channel)
            worker.flush()
        if channel.wants_snapshot(log_budget_bytes=self._log_budget_bytes):
            self._build_snapshot(channel)
        self._keep_budget()

    def look_after_channels(self) -> None:
        """Drops what nobody uses: idle channels, and the parts of logs that every client has behind it.

        Where newcomers take a snapshot with much log behind it, the next ones get a newer one.
        """
        now = _monotonic()
        self.gathering.note_clients(max((worker.active for worker in self.workers.values()), default=0))
        for channel in list(self.channels.values()):
            reports = [worker.channel_report(channel.number) for worker in self.workers.values()]
            if any(report.get("clients", 1) for report in reports):
                channel.idle_since = None
            elif channel.idle_since is None:
                channel.idle_since = now
            elif now - channel.idle_since > CHANNEL_IDLE_SECONDS and not channel.building:
                self._drop(channel)
                continue
            channel.note_newcomers(sum(int(report.get("snapshots_begun", 0)) for report in reports))
            if channel.wants_snapshot(log_budget_bytes=self._log_budget_bytes):
                self._build_snapshot(channel)
            self._trim(channel, min([int(report.get("min_offset", 0)) for report in reports], default=0))
        for source in self.feeds.values():
            self._forget_deletions(source)
        self.catch_ups.forget_old()

    def _forget_deletions(self, source: feed.Feed) -> None:
        """Lets go of tombstones that no connected client needs.

        As of some seconds ago: a client that a report did not know of yet may have begun with the snapshot before.
        """
        needed = [source.store.sequence]
        for channel in self._channels_of(source):
            reports = [worker.channel_report(channel.number) for worker in self.workers.values()]
            needed += [int(report.get("min_sequence", 0)) for report in reports]
            needed.append(channel.snapshot.sequence if channel.snapshot is not None else 0)
        lately = self._sequences_needed.setdefault(source.name, deque(maxlen=_TOMBSTONE_LOOKS))
        lately.append(min(needed))
        if len(lately) == _TOMBSTONE_LOOKS:
            source.store.forget_deletions(min(lately))

    def _drop(self, channel: HubChannel) -> None:
        _log.info("Dropping a wire format without clients", feed=channel.feed.name, format=channel.encoder.name)
        del self.channels[channel.key]
        for worker in self.workers.values():
            worker.forget_channel(channel)
        channel.close()

    @property
    def log_bytes(self) -> int:
        """Bytes of all logs."""
        return sum(channel.log.used_bytes for channel in self.channels.values())

    def _keep_budget(self) -> None:
        """Takes the oldest segments of the largest log until all logs are within the budget."""
        for channel in sorted(self.channels.values(), key=lambda channel: -channel.log.used_bytes):
            while self.log_bytes > self._log_budget_bytes and len(channel.log.segments) > 1:
                if not self._trim(channel, channel.log.segments[0].end):
                    break
        # A log of one segment has nothing to give: a new snapshot would not change that, and ask for the next one.
        givers = [channel for channel in self.channels.values() if len(channel.log.segments) > 1]
        if givers and self.log_bytes > self._log_budget_bytes:
            largest = max(givers, key=lambda channel: channel.log.used_bytes)
            if not largest.building:
                self._build_snapshot(largest)

    def _trim(self, channel: HubChannel, before_offset: int) -> bool:
        start = channel.log.start
        channel.log.trim(channel.trim_limit(before_offset))
        if channel.log.start == start:
            return False
        for worker in self.workers.values():
            worker.tell(["trim", channel.number, channel.log.start])
            worker.flush()
        return True

    def close(self) -> None:
        """Lets go of all files."""
        self.catch_ups.close()
        for worker in self.workers.values():
            worker.close()
        for channel in self.channels.values():
            channel.close()
        self.channels.clear()
