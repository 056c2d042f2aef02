"""The hub: objects come in from the watchers, updates go out to the logs of channels, and to the workers their ends.

What is synchronous here runs on the hub's loop. What takes long, snapshots and catch-up blocks, is cut into slices by
the schedulers; `catch_ups.run` and the methods `run_...` of the hub are to run beside the watchers.

An object goes to its feeds (`Hub.apply`), and waits there until `Hub.batch_end` decides to publish. `Hub.commit` then
has the `publisher` write stores and logs, and tells the workers. `channels` knows which wire formats are in use, and
`derived` makes the feeds that exist only while they have clients: projections and selections.

While another replica feeds this one, each feed is a followed one, projections included. `follow` and `unfollow` change
the source of all feeds in one step, and clients keep what they have.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog

from cache import resources
from cache.feeds import feed, followed
from cache.feeds.calico import feed as calico_feed
from cache.feeds.calico import releases, syncers
from protocol import formats, subscriptions
from protocol.native import dictionary
from typha import clock
from typha.hub import (
    catchup_scheduler,
    channels,
    client_lists,
    coalescer,
    confirmations,
    convergence,
    derived,
    dictionaries,
    intake,
    policy,
    publisher,
    questions,
    recent,
    retention,
    snapshot_scheduler,
    worker_link,
)
from typha.hub.channel import HubChannel
from typha.ipc import messages as ipc

_log = structlog.get_logger("typha.hub")


class Tracer(Protocol):
    """Takes notice of each commit, see `typha.hub.tracing`."""

    def committed(self, workers: worker_link.WorkerLinks, began_at: float, updates: int, *, published: bool) -> None:
        """A commit of so many objects, begun at that monotonic time, is over and known to the workers."""


_monotonic = clock.monotonic


class Hub(intake.Intake):
    """Feeds, channels and the workers that serve them. It is the watchers' sink."""

    def __init__(self, feeds: Iterable[feed.Feed], limits: policy.HubPolicy, *, awaited: Iterable[str] = ()) -> None:
        super().__init__(limits)
        self.awaited = tuple(awaited)
        """Feeds that may yet be added; until that is decided their clients are held."""
        self.derived = derived.DerivedFeeds()
        self.channels = channels.Channels(self.feeds, self.derived.selections, limits)
        self.workers = worker_link.WorkerLinks()
        self.recent = recent.Recent()
        self.client_lists = client_lists.ClientLists(self.workers)
        self.descriptions: questions.Question[ipc.DescriptionPart] = questions.Question(self.workers, ipc.Describe)
        self.convergence = convergence.Convergence(self.workers)
        self.confirmations = confirmations.Confirmations(self.feeds, self.workers, limits)
        self.older_types: asyncio.Queue[resources.ResourceType] = asyncio.Queue()
        """Types of which only projections have objects, to be watched from now on. Each comes once."""
        self.snapshots = snapshot_scheduler.SnapshotScheduler(limits, self.shortages)
        self.catch_ups = catchup_scheduler.CatchUpScheduler(limits, self.shortages)
        self.retention = retention.Retention(self.channels, self.workers, self.snapshots, limits)
        self.coalescer = coalescer.Coalescer(limits)
        self.dictionaries = dictionaries.Dictionaries(limits)
        self.publisher = publisher.Publisher(
            self.feeds,
            self.channels,
            self.derived,
            self.workers,
            limits,
            lacking=self.shortages,
            snapshots=self.snapshots,
            catch_ups=self.catch_ups,
            kept=self.retention,
        )
        self._committed = asyncio.Event()
        self.tracer: Tracer | None = None
        """What follows commits, while tracing is on."""
        self.add_feeds(feeds)

    # Sources.

    def add_feeds(self, feeds: Iterable[feed.Feed]) -> None:
        """Adds feeds, before anything of their types has come."""
        for source in feeds:
            self._add_feed(source)
            for type in source.types:
                self._by_type.setdefault(type, []).append(source)
        self.awaited = tuple(name for name in self.awaited if name not in self.feeds)

    def _add_feed(self, source: feed.Feed) -> None:
        self.feeds[source.name] = source
        self.publisher.add_feed(source.name)

    def withdraw_awaited(self) -> None:
        """The awaited feeds do not come: their clients are refused."""
        withdrawn, self.awaited = self.awaited, ()
        self.channels.withdraw_unknown()
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

    def follow(self) -> None:
        """Another replica feeds all feeds from now on. No watcher may run, and no feed may be awaited."""
        for name, source in list(self.feeds.items()):
            if isinstance(source, calico_feed.Projection):
                self.derived.end_projection(source)
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
        for channel in self.channels.of(old):
            channel.feed = new
        self.derived.rebase(old, new)
        self.retention.forget(old)
        _log.info("Feed has another source", feed=new.name, source=type(new).__name__, keys=len(new.store))

    def set_upstreams(self, upstreams: Sequence[bytes] | None) -> None:
        """What other replicas are told of where this one's data comes from, see `protocol.messages.ServerHello`."""
        self.confirmations.set_upstreams(upstreams)

    # Publishing.

    def confirmed(self, type: resources.ResourceType) -> None:
        """The watcher's own counters remember when."""

    def batch_end(self) -> None:
        """Publishes what has come, now or together with what comes while the workers are busy."""
        if self.coalescer.is_unfinished:
            return  # `run_coalescing` goes on each turn
        if self._must_publish or self.coalescer.is_due(self._uncommitted, self.workers.publishes_under_way):
            self.commit()

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

    def commit(self) -> None:
        """Appends what every feed has gathered to its channels' logs, and publishes it.

        Of very much, only a part: `run_coalescing` goes on with the rest in the next turn.
        """
        if not self.publisher.has_memory():
            self.coalescer.published()  # `look_after_channels` tries again
            return
        began_at = _monotonic()
        times = ipc.UpdateTimes(self._received_at or began_at, self._written_at)
        updates, self._uncommitted, self._must_publish = self._uncommitted, 0, False
        done = self.publisher.publish(times)
        if not done.is_unfinished:
            self._received_at = self._written_at = 0.0
        self.coalescer.published(is_unfinished=done.is_unfinished)
        self._committed.set()
        if done.has_news:
            self.workers.flush()
        for source in done.feeds:
            self.convergence.committed(self.publisher.commit_times[source.name], source.name)
        if self.tracer is not None and not done.is_unfinished:
            self.tracer.committed(self.workers, began_at, updates, published=done.has_news)
        if self.channels.wanted:
            self._open_wanted()

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
        self.confirmations.tell_new(worker)
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
        if subscription is not None and (
            not formats.replaces_by_snapshot(wire_format) or feed_name in releases.PROJECTIONS
        ):
            raise ValueError(f"a subscription of {feed_name} by {wire_format}")
        if not self.channels.want(key, asker):
            self.workers.send(ipc.RefuseChannel(feed_name, wire_format, subscription))
            return
        self._open_wanted()

    def _open_wanted(self) -> None:
        for name, _, subscription in self.channels.wanted:
            if name in releases.PROJECTIONS and name not in self.feeds:
                self._open_projection(name)
            if subscription is not None and name in self.feeds:
                self.derived.select(self.feeds[name], subscription)
        for channel in self.channels.open_wanted():
            if formats.replaces_by_snapshot(channel.encoder.name):
                self.retention.resumable.add(channel.feed.name)
            known = self.dictionaries.of(channel.feed.name)
            if known is not None:
                channel.offer_dictionary(known)
            self.workers.open_channel(channel)
            self.snapshots.request(channel)
            self._look_at_dictionaries()

    def want_snapshot(self, worker: worker_link.WorkerLink, number: int) -> None:
        """A worker's newcomers wait for a newer snapshot. If the channel is closed, the worker is about to hear it."""
        channel = self.channels.numbered(number)
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
        channel = self.channels.numbered(request.channel)
        if channel is None:
            return
        from_sequence, needed_sequence = request.from_sequence, request.needed_sequence
        if not 0 <= from_sequence <= needed_sequence <= channel.feed.store.sequence:
            raise ValueError(f"catch-up from {from_sequence} to {needed_sequence}, which {channel!r} has not")
        self.catch_ups.request(channel, worker, from_sequence=from_sequence, needed_sequence=needed_sequence)

    # Projections and selections.

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
        projection = self.derived.project(name, base)
        if name in self.feeds:
            self._replace(projection)
        else:
            self._add_feed(projection)
        for type in base.older_types:
            if type in projection.types and type not in self._by_type:
                self._by_type[type] = [base]
                self.older_types.put_nowait(type)

    async def run_projections(self) -> None:
        """Gives projections and selections what their feed has, a slice in each turn, forever."""
        while True:
            await self.derived.something_begins()
            self.take_over()
            self.batch_end()
            await asyncio.sleep(0)
            await self.room()

    def take_over(self) -> None:
        """Gives each projection and selection the next slice."""
        refused, is_one_done = self.derived.take_over()
        for refusal in refused:
            self._note_refusal(refusal)
        self._must_publish = self._must_publish or is_one_done
        self._open_wanted()

    def _close_unused(self) -> None:
        """Ends the selections and projections whose last client is gone."""
        used = self.channels.used
        for selected in self.derived.close_unused_selections(used):
            self.retention.forget(selected)
        names = {name for name, _ in used}
        for name, source in list(self.feeds.items()):
            if name in releases.PROJECTIONS and name not in names:
                _log.info("No agents of an older release are left", feed=name, release=releases.BY_FEED[name].value)
                del self.feeds[name]
                self.retention.forget(source)
                if isinstance(source, calico_feed.Projection):
                    self.derived.end_projection(source)

    # Dictionaries.

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
        self.publisher.note_quiet_feeds()
        self._look_at_dictionaries()
        self.confirmations.tell()
        self.convergence.look(now)
        if self.publisher.must_try_again:
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
        self._close_unused()
        for source in self.feeds.values():
            self.retention.forget_deletions(source)
        for one in self.derived.selections.values():
            self.retention.forget_deletions(one)
        self.catch_ups.forget_old()

    def _close_channel(self, channel: HubChannel) -> None:
        _log.info("Dropping a wire format without clients", feed=channel.feed.name, format=channel.encoder.name)
        self.workers.close_channel(channel)
        self.channels.remove(channel)

    def close(self) -> None:
        """Lets go of all files."""
        self.conversions.close()
        self.catch_ups.close()
        for worker in self.workers.values():
            worker.close()
        self.channels.close()
