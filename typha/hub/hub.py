"""The hub: objects come in from the watchers, updates go out to the logs of channels, and to the workers their ends.

What is synchronous here runs on the hub's loop. What takes long, snapshots and catch-up blocks, is cut into slices by
the schedulers; `catch_ups.run` and the methods `run_...` of the hub are to run beside the watchers.

A batch that cannot be written to a channel's log, for lack of a resource, is written later. Until then the feed gathers
what comes, and no snapshot or block of the channel is cut, because store and log do not agree.

A projection, the felix feed for agents of an older release, exists while it has clients. `run_projections` gives it the
newest feed's objects, in slices; from then on it follows that feed. A selection, the part of a feed that a subscription
selects, is made and dropped in the same way.

While another replica feeds this one, each feed is a followed one, projections included. `follow` and `unfollow` change
the source of all feeds in one step, and clients keep what they have.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import structlog

from cache import objects, resources, write_times
from cache.feeds import feed, followed, selection
from cache.feeds.calico import feed as calico_feed
from cache.feeds.calico import releases, syncers
from protocol import formats, messages, subscriptions
from protocol.native import dictionary
from typha import clock
from typha.hub import (
    catchup_scheduler,
    client_lists,
    coalescer,
    commit_times,
    convergence,
    conversions,
    dictionaries,
    policy,
    questions,
    recent,
    rejection_log,
    retention,
    shortages,
    snapshot_scheduler,
    worker_link,
)
from typha.hub.channel import Batch, ChannelKey, HubChannel, Source
from typha.ipc import messages as ipc
from typha.ipc import selections
from typha.observability import logs, quantiles

_log = structlog.get_logger("typha.hub")


class Tracer(Protocol):
    """Takes notice of each commit, see `typha.hub.tracing`."""

    def committed(self, workers: worker_link.WorkerLinks, began_at: float, updates: int, *, published: bool) -> None:
        """A commit of so many objects, begun at that monotonic time, is over and known to the workers."""


_monotonic = clock.monotonic
_STATUS_LINES_PER_MINUTE = 60
"""An upstream could change its status with every message."""
_COMMIT_BYTES = 16 * 1024 * 1024
"""Memory for a whole batch: its entries, its frames, and parts of chunks."""
_WRITE_AGE_SECONDS_MAX = 600.0
"""An older time belongs to an earlier write: what changed an object last noted no time, or the API server was away,
which `typha_watch_last_confirmed_seconds` shows."""
_COMMIT_BYTES_PER_KEY = 128
"""Memory for the store's dictionaries if they grow. The old ones are there until then."""


class Hub:
    """Feeds, channels and the workers that serve them. It is the watchers' sink."""

    def __init__(self, feeds: Iterable[feed.Feed], limits: policy.HubPolicy, *, awaited: Iterable[str] = ()) -> None:
        self._policy = limits
        self.feeds: dict[str, feed.Feed] = {}
        self.awaited = tuple(awaited)
        """Feeds that may yet be added; until that is decided their clients are held."""
        self._by_type: dict[resources.ResourceType, list[feed.Feed]] = {}
        self.channels: dict[ChannelKey, HubChannel] = {}
        self.selections: dict[tuple[str, subscriptions.Subscription], selection.Selection] = {}
        """By feed and subscription; while they have clients, or channels for them."""
        self._by_number: dict[int, HubChannel] = {}
        self.workers = worker_link.WorkerLinks()
        self.recent = recent.Recent()
        self.client_lists = client_lists.ClientLists(self.workers)
        self.descriptions: questions.Question[ipc.DescriptionPart] = questions.Question(self.workers, ipc.Describe)
        self.updates_refused: dict[str, int] = {}
        self.objects_skipped: dict[tuple[str, str], int] = {}
        """By resource type and reason."""
        self.updates_total: dict[str, int] = {}
        """By feed, as all below: updates that clients are sent."""
        self.batches_total: dict[str, int] = {}
        self.batch_sizes: dict[str, quantiles.Histogram] = {}
        self._batches_before: dict[str, int] = {}
        self.commit_times: dict[str, commit_times.CommitTimes] = {}
        """By feed."""
        self.convergence = convergence.Convergence(self.workers)
        self._confirmed_told: dict[str, float] = {}
        """When each feed was last confirmed, as workers know it."""
        self._upstreams: list[bytes] | None = None
        self._status_lines = logs.LineLimit(_STATUS_LINES_PER_MINUTE, seconds=60.0)
        self._wanted: dict[ChannelKey, str] = {}
        """Channels to be opened as soon as there is something to serve, in the order in which they were asked for."""
        self._seeds: dict[str | selection.Selection, Iterator[list[feed.Rejection] | None]] = {}
        """Projections, by name, and selections that do not have all objects yet."""
        self._has_seeds = asyncio.Event()
        self.older_types: asyncio.Queue[resources.ResourceType] = asyncio.Queue()
        """Types of which only projections have objects, to be watched from now on. Each comes once."""
        self._next_channel = 1
        self.rejection_log = rejection_log.RejectionLog()
        self.shortages = shortages.Shortages()
        self.snapshots = snapshot_scheduler.SnapshotScheduler(limits, self.shortages)
        self.catch_ups = catchup_scheduler.CatchUpScheduler(limits, self.shortages)
        self.retention = retention.Retention(self.channels, self.workers, self.snapshots, limits)
        self.coalescer = coalescer.Coalescer(limits)
        self.conversions = conversions.ConversionScheduler(limits)
        self.dictionaries = dictionaries.Dictionaries(limits)
        self.expensive_conversions: dict[str, int] = {}
        """By resource type."""
        self._batch_limits = feed.BatchLimits(limits.batch_changes_max, limits.batch_bytes_max, limits.batch_split_keys)
        self._uncommitted = 0
        """Objects that have come since the last commit."""
        self._received_at = self._written_at = 0.0
        """Of the first of them, and of the first that tells when it was written: monotonic times, or 0.0."""
        self._must_publish = False
        self._committed = asyncio.Event()
        self._is_short = False
        """There was no memory for the last commit."""
        self.tracer: Tracer | None = None
        """What follows commits, while tracing is on."""
        self.add_feeds(feeds)

    def add_feeds(self, feeds: Iterable[feed.Feed]) -> None:
        """Adds feeds, before anything of their types has come."""
        for source in feeds:
            self._add_feed(source)
            for type in source.types:
                self._by_type.setdefault(type, []).append(source)
        self.awaited = tuple(name for name in self.awaited if name not in self.feeds)

    def _add_feed(self, source: feed.Feed) -> None:
        self.feeds[source.name] = source
        self.updates_total.setdefault(source.name, 0)
        self.batches_total.setdefault(source.name, 0)
        self.batch_sizes.setdefault(source.name, quantiles.Histogram())
        self.commit_times[source.name] = commit_times.CommitTimes()

    def withdraw_awaited(self) -> None:
        """The awaited feeds do not come: their clients are refused."""
        withdrawn, self.awaited = self.awaited, ()
        self._wanted = {key: asker for key, asker in self._wanted.items() if key[0] in self.feeds}
        projected = releases.PROJECTIONS if syncers.FELIX in withdrawn else ()
        self.workers.send(ipc.WithdrawFeeds([*withdrawn, *projected]))

    @property
    def names(self) -> list[str]:
        """Every feed that clients may ask for by name."""
        return [*(name for name in self.feeds if name not in releases.PROJECTIONS), *self.awaited]

    @property
    def channel_names(self) -> list[str]:
        """The same, and the projections: agents get one by their release."""
        is_projected = syncers.FELIX in self.awaited or self._projected is not None or self._has_followed_projections
        return [*self.names, *(releases.PROJECTIONS if is_projected else ())]

    @property
    def _projected(self) -> calico_feed.CalicoFeed | None:
        """The feed that projections follow."""
        base = self.feeds.get(syncers.FELIX)
        return base if isinstance(base, calico_feed.CalicoFeed) else None

    @property
    def _has_followed_projections(self) -> bool:
        """Whether the replica that feeds this one makes projections."""
        base = self.feeds.get(syncers.FELIX)
        return isinstance(base, followed.FollowedFeed) and base.has_projections

    @property
    def followed_feeds(self) -> dict[str, followed.FollowedFeed]:
        """The feeds that another replica feeds, or is to feed."""
        return {name: one for name, one in self.feeds.items() if isinstance(one, followed.FollowedFeed)}

    def follow(self) -> None:
        """Another replica feeds all feeds from now on. No watcher may run, and no feed may be awaited."""
        for name, source in list(self.feeds.items()):
            if isinstance(source, calico_feed.Projection):
                source.close()
                self._seeds.pop(name, None)
            if not isinstance(source, followed.FollowedFeed):
                has_projections = isinstance(source, calico_feed.CalicoFeed) and name == syncers.FELIX
                self._replace(followed.FollowedFeed(name, has_projections=has_projections))
        self._by_type.clear()
        while not self.older_types.empty():
            self.older_types.get_nowait()

    def unfollow(self, feeds: Iterable[feed.Feed]) -> None:
        """Watchers feed all feeds from now on: these, of which each takes the place of a followed one or is new."""
        for source in feeds:
            if source.name in self.feeds:
                self._replace(source)
            else:
                self._add_feed(source)
            for type in source.types:
                self._by_type.setdefault(type, []).append(source)
        base = self._projected
        for name in self.followed_feeds:
            if name in releases.PROJECTIONS and base is not None:
                self._project(name, base)

    def _replace(self, new: feed.Feed) -> None:
        """Gives a feed another source. What the old one has not published is lost: the new one brings everything."""
        old = self.feeds[new.name]
        new.succeed(old)
        self.conversions.abandon(new.name)
        self.feeds[new.name] = new
        for channel in self.channels.values():
            if channel.feed is old:
                channel.feed = new
        for one in self.selections.values():
            if one.base is old:
                one.base = new
        self.retention.forget(old)
        _log.info("Feed has another source", feed=new.name, source=type(new).__name__, keys=len(new.store))

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

    def feeds_of(self, type: resources.ResourceType) -> list[feed.Feed]:
        """The feeds that take objects of a type, projections included."""
        return [source for source in self.feeds.values() if type in source.types]

    @property
    def types(self) -> list[resources.ResourceType]:
        """Every resource type that a feed takes, once."""
        return list(self._by_type)

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

    def confirmed(self, type: resources.ResourceType) -> None:
        """The watcher's own counters remember when."""

    def set_unconfirmed(
        self, type: resources.ResourceType, is_unconfirmed: bool, confirmed_at: float | None = None
    ) -> None:
        """Record whether the API server can no longer confirm a type, and when it last did. `look_after_channels` tells
        native clients."""
        for source in self._by_type[type]:
            source.set_unconfirmed(type, is_unconfirmed, confirmed_at)

    @property
    def stale_feeds(self) -> list[str]:
        """The feeds of which the API server can no longer confirm a part."""
        return [name for name, source in self.feeds.items() if source.is_stale]

    def _tell_confirmed(self) -> None:
        """Workers know, to a few seconds, when each feed was last confirmed: other replicas ask them."""
        confirmed_at = {name: at for name, source in self.feeds.items() if (at := source.confirmed_at) is not None}
        told = self._confirmed_told
        if confirmed_at.keys() == told.keys() and all(
            at - told[name] < self._policy.confirmed_told_seconds for name, at in confirmed_at.items()
        ):
            return
        self._confirmed_told = confirmed_at
        self.workers.send(ipc.NoteConfirmed(confirmed_at, self._upstreams))

    def set_upstreams(self, upstreams: Sequence[bytes] | None) -> None:
        """What other replicas are told of where this one's data comes from, see `protocol.messages.ServerHello`."""
        self._upstreams = None if upstreams is None else list(upstreams)
        self.workers.send(ipc.NoteConfirmed(self._confirmed_told, self._upstreams))
        self.workers.flush()

    def batch_end(self) -> None:
        """Publishes what has come, now or together with what comes while the workers are busy."""
        if self.coalescer.is_unfinished:
            return  # `run_coalescing` goes on each turn
        if self._must_publish or self.coalescer.is_due(self._uncommitted, self.workers.publishes_under_way):
            self.commit()

    async def run_dictionaries(self) -> None:
        """Trains the dictionaries that are due, forever."""
        while True:
            job = await self.dictionaries.next()
            try:
                made = await asyncio.to_thread(job.train)
            except (MemoryError, RuntimeError) as error:  # RuntimeError: no thread can be started
                self.dictionaries.failed(job, error)
            else:
                self.dictionary_trained(job, made)

    def dictionary_trained(self, job: dictionaries.Job, made: dictionary.Compression | None) -> None:
        """A dictionary is ready: it holds from the feed's next change on."""
        self.dictionaries.trained(job, made)
        if made is not None:
            for channel in self.channels.values():
                if channel.feed.name == job.source.name:
                    channel.offer_dictionary(made)

    def _look_at_dictionaries(self) -> None:
        used = {channel.feed.name for channel in self.channels.values() if channel.takes_dictionary}
        self.dictionaries.look(source for name, source in self.feeds.items() if name in used)

    @property
    def is_full(self) -> bool:
        """Whether a feed has gathered a whole batch."""
        return any(source.backlog >= self._policy.batch_changes_max for source in self.feeds.values())

    async def room(self) -> None:
        """Returns when there is room for a slice. So a flood waits in its own watcher, and not before other changes."""
        if self.is_full:
            self.batch_end()
        while self.is_full:
            self._committed.clear()
            await self._committed.wait()

    async def run_coalescing(self) -> None:
        """Publishes what has waited as soon as workers may be given more, forever."""
        while True:
            await self.coalescer.something_waits()
            while self.coalescer.since:
                await self.coalescer.pause()
                if self.coalescer.since and self.coalescer.is_over(self.workers.publishes_under_way):
                    self.commit()

    def _note_refusal(self, refusal: feed.Rejection) -> None:
        self.updates_refused[refusal.reason] = self.updates_refused.get(refusal.reason, 0) + 1
        self.rejection_log.write(refusal)

    def commit(self) -> None:
        """Appends what every feed has gathered to its channels' logs, and publishes it.

        Of very much, only a part: `run_coalescing` goes on with the rest in the next turn.
        """
        if not self._has_memory():
            self.coalescer.published()  # `look_after_channels` tries again
            return
        began_at = _monotonic()
        times = ipc.UpdateTimes(self._received_at or began_at, self._written_at)
        updates, self._uncommitted, self._must_publish = self._uncommitted, 0, False
        committed: list[feed.Feed] = []
        published = is_unfinished = False
        for source in self.feeds.values():
            selections = [one for one in self.selections.values() if one.base is source]
            channels = self._channels_of(source)
            channels_of_all = [*channels, *(channel for one in selections for channel in self._channels_of(one))]
            unwritten = [self._append(channel, *channel.unwritten) for channel in channels_of_all if channel.unwritten]
            published = published or any(unwritten)
            if not all(unwritten):
                continue  # the feed keeps what it has gathered
            batch = source.take(self._batch_limits)
            is_unfinished = is_unfinished or source.is_unfinished
            if batch is None:
                continue
            committed.append(source)
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
            for channel in channels:
                published = self._append(channel, batch, times) or published
            for one in selections:
                published = self._follow(one, batch, times) or published
        for channel in self.channels.values():
            change = channel.contact_change()
            if change is not None:
                if self._status_lines.allows():
                    _log.info(
                        "Status for native clients changed",
                        feed=channel.feed.name,
                        status=channel.status_now.label,
                        other_changes_not_logged=self._status_lines.take_suppressed(),
                    )
                published = self._append(channel, change, times) or published
        if not is_unfinished:
            self._received_at = self._written_at = 0.0
        self.coalescer.published(is_unfinished=is_unfinished)
        self._committed.set()
        if published:
            self.workers.flush()
        for source in committed:
            self.convergence.committed(self.commit_times[source.name], source.name)
        if self.tracer is not None and not is_unfinished:
            self.tracer.committed(self.workers, began_at, updates, published=published)
        if self._wanted:
            self._open_wanted()

    def _follow(self, one: selection.Selection, batch: feed.Batch, times: ipc.UpdateTimes) -> bool:
        """Passes a feed's batch on to a selection of it. Returns whether there is something to publish."""
        selected = one.follow(batch)
        if selected is None:
            return False
        appended = [self._append(channel, selected, times) for channel in self._channels_of(one)]
        return any(appended)

    def _has_memory(self) -> bool:
        """Whether there is memory for a commit: half a batch in a store would be lost for the logs."""
        keys = max((len(source.store) for source in self.feeds.values()), default=0)
        try:
            shortages.check_memory(_COMMIT_BYTES + _COMMIT_BYTES_PER_KEY * keys)
        except shortages.ERRORS as error:
            self.shortages.note(shortages.Lacking.COMMIT, error)
            self._is_short = True
            return False
        if self._is_short:
            self._is_short = False
            self.shortages.over(shortages.Lacking.COMMIT)
        return True

    def _channels_of(self, source: Source) -> list[HubChannel]:
        return [channel for channel in self.channels.values() if channel.feed is source]

    def _append(self, channel: HubChannel, batch: Batch, times: ipc.UpdateTimes) -> bool:
        """Appends a batch to the channel's log. False if a resource is missing: the channel remembers the batch."""
        was_behind = channel.unwritten is not None
        status_offset, logged = channel.log.status_offset, channel.dictionaries[-1:]
        try:
            segments = channel.append(batch, times)
        except shortages.ERRORS as error:
            self.shortages.note(shortages.Lacking.LOG, error, feed=channel.feed.name, format=channel.encoder.name)
            return False
        if was_behind:
            self.shortages.over(shortages.Lacking.LOG)
            self.snapshots.wake()
            self.catch_ups.wake()
        self.workers.publish(
            channel,
            segments,
            channel.status if channel.log.status_offset != status_offset else None,
            times,
            channel.dictionaries[-1] if channel.dictionaries[-1:] != logged else None,
        )
        if channel.wants_snapshot():
            self.snapshots.request(channel)
        if segments:
            self.retention.keep_budget()
        return True

    # Workers.

    def add_worker(self, worker: worker_link.WorkerLink) -> None:
        """A worker has been started; it is sent everything there is.

        Raises:
            OSError: there is nothing left to share a counter with it.
        """
        self.workers[worker.number] = worker
        worker.feeds = frozenset(self.channel_names)
        worker.share_counter()
        for channel in self.channels.values():
            worker.open_channel(channel)
        if self._confirmed_told or self._upstreams is not None:
            worker.send(ipc.NoteConfirmed(self._confirmed_told, self._upstreams))
        worker.flush()

    def remove_worker(self, number: int) -> None:
        """A worker has died."""
        worker = self.workers.pop(number, None)
        if worker is not None:
            worker.close()

    def hear(self, worker: worker_link.WorkerLink) -> None:
        """Takes a worker's messages, and does what it asks for. A worker that says what none may say is broken."""
        try:
            for request in worker.requests():
                match request:
                    case ipc.WantChannel():
                        self.want_channel(request.feed, request.wire_format, request.subscription, asker=request.asker)
                    case ipc.WantSnapshot():
                        self.want_snapshot(worker, request.channel)
                    case ipc.WantBlock():
                        self.want_block(worker, request)
                    case ipc.ReportRecent():
                        self.recent.take(worker.number, request)
                    case ipc.ClientSlice():
                        self.client_lists.take(worker, request)
                    case ipc.DescriptionPart():
                        self.descriptions.take(worker, request.request, [request], is_last=request.is_last)
        except Exception as error:  # whatever it is, this worker cannot be understood any more
            worker.fail(error)

    def want_channel(
        self,
        feed_name: str,
        wire_format: str,
        subscription: subscriptions.Subscription | None = None,
        *,
        asker: str = "",
    ) -> None:
        """Opens the channel as soon as its feed has something to serve. Of too many selections, it opens none.

        `asker` is the address of the client that brings the subscription.

        Raises:
            ValueError: the wire format has no subscriptions.
        """
        key = feed_name, wire_format, subscription
        # A worker may still ask for a feed that has just been withdrawn.
        if feed_name not in self.channel_names or key in self.channels:
            return
        if subscription is not None:
            if not formats.replaces_by_snapshot(wire_format) or feed_name in releases.PROJECTIONS:
                raise ValueError(f"a subscription of {feed_name} by {wire_format}")
            askers = self._askers()
            asker = askers.get((feed_name, subscription), asker)
            if (feed_name, subscription) not in askers and not selections.has_room(
                askers.values(), asker, places=self._policy.selections_max
            ):
                self.workers.send(ipc.RefuseChannel(feed_name, wire_format, subscription))
                return
        self._wanted[key] = asker
        self._open_wanted()

    def _open_wanted(self) -> None:
        for name, _, subscription in self._wanted:
            if name in releases.PROJECTIONS and name not in self.feeds:
                self._open_projection(name)
            if subscription is not None and name in self.feeds and (name, subscription) not in self.selections:
                self._open_selection(self.feeds[name], subscription)
        for key in list(self._wanted):
            source = self._source_of(key)
            if source is None or not source.synced_once:
                continue
            asker = self._wanted.pop(key)
            encoder = formats.make_encoder(key[1], max_frame_bytes=self._policy.max_frame_bytes)
            channel = HubChannel(self._next_channel, source, encoder, self._policy, asker=asker)
            self._next_channel += 1
            if formats.replaces_by_snapshot(key[1]):
                self.retention.resumable.add(key[0])
            self.channels[key] = self._by_number[channel.number] = channel
            known = self.dictionaries.of(key[0])
            if known is not None:
                channel.offer_dictionary(known)
            self.workers.open_channel(channel)
            self.snapshots.request(channel)
            self._look_at_dictionaries()

    def _source_of(self, key: ChannelKey) -> Source | None:
        name, _, subscription = key
        return self.feeds.get(name) if subscription is None else self.selections.get((name, subscription))

    # Selections.

    def _askers(self) -> dict[tuple[str, subscriptions.Subscription], str]:
        """Who has brought each subscription: the address of a client."""
        known = {key: channel.asker for key, channel in self.channels.items()} | self._wanted
        return {(name, wanted): asker for (name, _, wanted), asker in known.items() if wanted is not None}

    def _open_selection(self, base: feed.Feed, subscription: subscriptions.Subscription) -> None:
        opened = selection.Selection(base, subscription)
        _log.info("Beginning to serve a subscription", feed=base.name, subscription=subscription.label)
        self.selections[base.name, subscription] = opened
        self._seeds[opened] = opened.seed()
        self._has_seeds.set()

    def _close_unused_selections(self) -> None:
        used = {(name, subscription) for name, _, subscription in (*self.channels, *self._wanted)}
        for key, source in list(self.selections.items()):
            if key not in used:
                _log.info("No clients of a subscription are left", feed=key[0], subscription=key[1].label)
                del self.selections[key]
                self._seeds.pop(source, None)
                self.retention.forget(source)

    # Projections.

    def _open_projection(self, name: str) -> None:
        base = self._projected
        if base is not None:
            self._project(name, base)
        elif self._has_followed_projections:
            self._add_feed(followed.FollowedFeed(name))
        if name in self.feeds:
            release = releases.BY_FEED[name].value
            _log.info("Beginning to serve agents of an older release", feed=name, release=release)

    def _project(self, name: str, base: calico_feed.CalicoFeed) -> None:
        projection = calico_feed.Projection(base, releases.BY_FEED[name])
        if name in self.feeds:
            self._replace(projection)
        else:
            self._add_feed(projection)
        self._seeds[name] = projection.seed()
        self._has_seeds.set()
        for type in base.older_types:
            if type in projection.types and type not in self._by_type:
                self._by_type[type] = [base]
                self.older_types.put_nowait(type)

    async def run_projections(self) -> None:
        """Gives projections and selections what their feed has, a slice in each turn, forever."""
        while True:
            await self._has_seeds.wait()
            self.take_over()
            self.batch_end()
            await asyncio.sleep(0)
            await self.room()

    @property
    def is_taking_over(self) -> bool:
        """Whether a projection or selection does not have all objects yet."""
        return bool(self._seeds)

    def take_over(self) -> None:
        """Gives each projection and selection the next slice."""
        for name, seed in list(self._seeds.items()):
            try:
                rejections = next(seed)
            except StopIteration:
                self._seeds.pop(name, None)
                self._must_publish = True
            else:
                for rejection in rejections or ():
                    self._note_refusal(rejection)
        if not self._seeds:
            self._has_seeds.clear()
        self._open_wanted()

    def _close_unused_projections(self) -> None:
        used = {key[0] for key in (*self.channels, *self._wanted)}
        for name, source in list(self.feeds.items()):
            if name in releases.PROJECTIONS and name not in used:
                _log.info("No agents of an older release are left", feed=name, release=releases.BY_FEED[name].value)
                del self.feeds[name]
                self._seeds.pop(name, None)
                self.retention.forget(source)
                if isinstance(source, calico_feed.Projection):
                    source.close()

    def want_snapshot(self, worker: worker_link.WorkerLink, number: int) -> None:
        """A worker's newcomers wait for a newer snapshot. If the channel is closed, the worker is about to hear it."""
        channel = self._by_number.get(number)
        if channel is None or channel.building:
            return
        if channel.is_fresh(_monotonic()):
            worker.offer_snapshot(channel)
            worker.flush()
        else:
            self.snapshots.request(channel)

    def want_block(self, worker: worker_link.WorkerLink, request: ipc.WantBlock) -> None:
        """Slow clients need what changed after a sequence. If the channel is closed, the worker is about to hear it.

        Raises:
            ValueError: there is no such sequence, or the worker waits for too many blocks.
        """
        channel = self._by_number.get(request.channel)
        if channel is None:
            return
        from_sequence, needed_sequence = request.from_sequence, request.needed_sequence
        if not 0 <= from_sequence <= needed_sequence <= channel.feed.store.sequence:
            raise ValueError(f"catch-up from {from_sequence} to {needed_sequence}, which {channel!r} has not")
        self.catch_ups.request(channel, worker, from_sequence=from_sequence, needed_sequence=needed_sequence)

    # Snapshots, logs and history.

    async def run_snapshots(self) -> None:
        """Builds the snapshots that are asked for, forever."""
        while True:
            self.snapshot_built(await self.snapshots.build_next())

    def snapshot_built(self, channel: HubChannel) -> None:
        """A new snapshot is ready for newcomers; the log that only the old one needed may go."""
        self.workers.offer_snapshot(channel)
        if channel.wants_snapshot():
            self.snapshots.request(channel)
        self.retention.keep_budget()

    def look_after_channels(self) -> None:
        """Closes idle channels, and frees the parts of logs and history that no client needs. Call it every second.

        Where newcomers take a snapshot with much log after it, the next ones get a newer one.
        """
        now = _monotonic()
        self._note_quiet_feeds()
        self._look_at_dictionaries()
        self._tell_confirmed()
        self.convergence.look(now)
        channels = self.channels.values()
        if self._is_short or any(one.unwritten is not None or one.contact_change() is not None for one in channels):
            self.commit()
        self.coalescer.note_clients(self.workers.clients_max)
        for channel in list(self.channels.values()):
            reports = self.workers.channel_reports(channel)
            if any(report is None or report.clients for report in reports):
                channel.idle_since = None
            elif channel.idle_since is None:
                channel.idle_since = now
            elif now - channel.idle_since > self._policy.channel_idle_seconds and not channel.building:
                self._close_channel(channel)
                continue
            channel.note_newcomers(sum(report.snapshots_begun for report in reports if report is not None))
            if channel.wants_snapshot():
                self.snapshots.request(channel)
            needed = [0 if report is None else report.min_offset for report in reports]
            self.retention.trim(channel, min(needed, default=0))
        self._close_unused_selections()
        self._close_unused_projections()
        for source in self.feeds.values():
            self.retention.forget_deletions(source)
        for one in self.selections.values():
            self.retention.forget_deletions(one)
        self.catch_ups.forget_old()

    def _note_quiet_feeds(self) -> None:
        """A feed without a batch for a second counts one of no updates, so that the sizes decay, as in the original."""
        for name, batches in self.batches_total.items():
            if self._batches_before.get(name) == batches:
                self.batch_sizes[name].record(0)
            self._batches_before[name] = batches

    def _close_channel(self, channel: HubChannel) -> None:
        _log.info("Dropping a wire format without clients", feed=channel.feed.name, format=channel.encoder.name)
        del self.channels[channel.key], self._by_number[channel.number]
        self.workers.close_channel(channel)
        channel.close()

    def close(self) -> None:
        """Lets go of all files."""
        self.conversions.close()
        self.catch_ups.close()
        for worker in self.workers.values():
            worker.close()
        for channel in self.channels.values():
            channel.close()
        self.channels.clear()
        self._by_number.clear()
