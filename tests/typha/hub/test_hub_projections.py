"""Projections in the hub: they begin with the first client, while objects change, and go when nobody uses them."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import objects, resources
from cache.feeds.calico import feed, model, releases, syncers
from cache.feeds.calico.releases import Release
from protocol import formats, messages
from tests.harness import corpus
from tests.harness.hub_stand import LIMITS, HubStand, Worker
from typha import clock
from typha.hub.channel import HubChannel
from typha.ipc import messages as ipc

GROUP = syncers.Group.V1
WIRE_FORMAT = "typha+snappy"
NEWEST, OLDER = syncers.FELIX, releases.feed_name(Release.V3_31)
SPECS = {spec.name: spec for spec in syncers.specs(GROUP)}
TYPES = {
    (f"{source.type.group}/{source.type.version}".lstrip("/"), source.kind): source.type
    for source in SPECS[NEWEST].sources
}
ADMIN_TYPES = [syncers.ADMIN_POLICIES, syncers.BASELINE_POLICIES]
SLICES = 5
"""A projection of so many objects as `CalicoStand.put_policies` makes is seeded in this many steps at least."""
POLICIES = 200 * SLICES


class CalicoStand(HubStand):
    """A hub with feed felix, whose projections get their objects while the test lets the loop turn."""

    def __init__(self, *specs: syncers.FeedSpec) -> None:
        feeds = [feed.CalicoFeed(spec, max_value_bytes=1 << 20) for spec in specs or [SPECS[NEWEST]]]
        super().__init__(*feeds, limits=msgspec.structs.replace(LIMITS, log_budget_bytes=64 << 20))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["CalicoStand"]:
        """Projections are seeded, and large commits go on."""
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self.hub.run_projections(), name="projections"),
                tasks.create_task(self.hub.run_coalescing(), name="coalescing"),
            ]
            yield self
            for task in background:
                task.cancel()
        self.hub.close()
        for worker in self.workers:
            worker.close()

    @property
    def newest(self) -> feed.CalicoFeed:
        found = self.hub.feeds[NEWEST]
        assert isinstance(found, feed.CalicoFeed)
        return found

    def event(self, kind: str, name: str, spec: dict[str, Any], *, version: int = 1) -> objects.ObjectEvent:
        """An object of Calico's group, or an admin policy."""
        api_version = "policy.networking.k8s.io/v1alpha1" if "Admin" in kind else GROUP.value
        metadata = {"name": name, "resourceVersion": str(version)}
        raw = json.dumps({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec})
        found = corpus.event_of(raw.encode(), TYPES, objects.Origin.EVENT)
        assert found is not None
        return found

    def put_policies(self, *, count: int = POLICIES, version: int = 1) -> None:
        """Many global policies, in tier default by name and in fact."""
        for number in range(count):
            spec = {"selector": f"x == '{version}'", "tier": "default"}
            self.hub.apply(self.event("GlobalNetworkPolicy", f"p{number:04}", spec, version=version))
        self.hub.batch_end()

    async def settled(self) -> None:
        """Lets everything happen that needs no clock."""
        for _ in range(20 * SLICES):
            await asyncio.sleep(0)
        self.make_snapshots()

    def sync_newest(self) -> None:
        """All types are known, but for those that only older agents get."""
        self.sync(*self.hub.feeds[NEWEST].types)

    def sync_admin(self) -> list[object]:
        """The service watches what it has been asked to, and finds nothing. Returns the types."""
        asked = [self.hub.older_types.get_nowait() for _ in range(self.hub.older_types.qsize())]
        if asked:
            self.sync(*asked)
        return list(asked)

    async def open_older(self, name: str = OLDER) -> HubChannel:
        """A channel of an older release, as its first client gets it."""
        self.hub.want_channel(name, WIRE_FORMAT)
        self.sync_admin()
        await self.settled()
        return self.hub.channels[name, WIRE_FORMAT, None]

    def content(self, name: str = OLDER) -> dict[str, bytes]:
        """What a new client of a feed gets."""
        return {entry.key: entry.value for entry in self.hub.feeds[name].store}


def policy_key(number: int) -> str:
    return f"/calico/v1/policy/tier/default/policy/p{number:04}"


def closed_numbers(worker: Worker) -> list[int]:
    return [message.channel for message in worker.hear() if isinstance(message, ipc.CloseChannel)]


@contextlib.asynccontextmanager
async def in_sync() -> AsyncIterator[CalicoStand]:
    """A hub with many policies, in sync for agents of the newest release."""
    async with CalicoStand().running() as stand:
        stand.put_policies()
        stand.sync_newest()
        await stand.settled()
        yield stand


def test_the_wire_format_is_one_of_agents() -> None:
    assert WIRE_FORMAT in formats.NAMES


async def test_a_channel_is_opened_only_when_its_projection_has_everything() -> None:
    async with in_sync() as stand:
        worker = stand.add_worker()
        worker.say(ipc.WantChannel(OLDER, WIRE_FORMAT))
        assert stand.sync_admin() == ADMIN_TYPES
        await asyncio.sleep(0)
        types = [*stand.newest.types, *ADMIN_TYPES]
        for status in (messages.SyncStatus.RESYNC, messages.SyncStatus.IN_SYNC):  # an outage that is over
            for type in types:
                stand.hub.status(type, status)
        stand.hub.batch_end()
        seen = []
        while (OLDER, WIRE_FORMAT, None) not in stand.hub.channels:
            seen.append(sum(policy_key(number) in stand.content() for number in range(POLICIES)))
            assert not stand.hub.feeds[OLDER].synced_once
            await asyncio.sleep(0)
        assert len(set(seen)) > SLICES, "it came at once: this test shows nothing"
        assert all(policy_key(number) in stand.content() for number in range(POLICIES))
        assert worker.kinds() == [ipc.OpenChannel, ipc.Publish]


async def test_what_changes_while_a_projection_is_made_is_in_it() -> None:
    async with in_sync() as stand:
        stand.hub.want_channel(OLDER, WIRE_FORMAT)
        stand.sync_admin()
        for number in range(0, POLICIES, 7):
            await asyncio.sleep(0)
            changed = {"selector": "x == 'later'", "tier": "default"}
            stand.hub.apply(stand.event("GlobalNetworkPolicy", f"p{number:04}", changed, version=2))
            stand.hub.delete(stand.event("GlobalNetworkPolicy", f"p{POLICIES - 1 - number:04}", {}, version=3))
            stand.hub.batch_end()
        await stand.settled()
        seeded = stand.content()
        fresh = feed.Projection(stand.newest, Release.V3_31)
        for _ in fresh.seed():
            pass
        fresh.take()
        fresh.close()
        assert seeded == {entry.key: entry.value for entry in fresh.store}
        assert any(b"later" in value for value in seeded.values())
        assert not all(policy_key(number) in seeded for number in range(POLICIES))


async def test_a_status_while_a_projection_is_made_counts_at_its_end() -> None:
    async with in_sync() as stand:
        some_type = stand.hub.feeds[NEWEST].types[0]
        stand.hub.want_channel(OLDER, WIRE_FORMAT)
        stand.sync_admin()
        await asyncio.sleep(0)
        stand.hub.status(some_type, messages.SyncStatus.RESYNC)
        stand.hub.batch_end()
        await stand.settled()
        assert (OLDER, WIRE_FORMAT, None) not in stand.hub.channels
        assert (stand.hub.feeds[OLDER].synced_once, stand.hub.feeds[NEWEST].synced_once) == (False, True)
        stand.hub.status(some_type, messages.SyncStatus.IN_SYNC)
        stand.hub.batch_end()
        assert (OLDER, WIRE_FORMAT, None) in stand.hub.channels


async def test_older_agents_wait_until_admin_policies_are_known() -> None:
    async with in_sync() as stand:
        stand.hub.want_channel(OLDER, WIRE_FORMAT)
        await stand.settled()
        assert (OLDER, WIRE_FORMAT, None) not in stand.hub.channels
        stand.hub.apply(stand.event("AdminNetworkPolicy", "a", {"priority": 1, "subject": {"namespaces": {}}}))
        stand.hub.status(syncers.ADMIN_POLICIES, messages.SyncStatus.IN_SYNC)
        stand.hub.batch_end()
        assert (OLDER, WIRE_FORMAT, None) not in stand.hub.channels
        stand.hub.status(syncers.BASELINE_POLICIES, messages.SyncStatus.IN_SYNC)
        stand.hub.batch_end()
        assert (OLDER, WIRE_FORMAT, None) in stand.hub.channels
        assert [key for key in stand.content() if "kanp." in key]


async def test_unused_projections_go_and_come_again_with_everything() -> None:
    now = 1000.0
    with clock.replaced(monotonic=lambda: now, time_ns=time.time_ns):
        async with in_sync() as stand:
            worker = stand.add_worker()
            channel = await stand.open_older()
            worker.report(number=channel.number)
            stand.hub.look_after_channels()
            now += 61
            stand.hub.look_after_channels()
            assert closed_numbers(worker) == [channel.number]
            assert list(stand.hub.feeds) == [NEWEST]
            assert stand.newest.projections == []

            stand.put_policies(version=2)
            await stand.settled()
            again = await stand.open_older()
            assert again.number != channel.number
            assert stand.hub.older_types.empty(), "watched already"
            assert all(b"'2'" in stand.content()[policy_key(number)] for number in range(POLICIES))


async def test_a_projection_stays_while_one_of_its_wire_formats_has_clients() -> None:
    now = 1000.0
    with clock.replaced(monotonic=lambda: now, time_ns=time.time_ns):
        async with in_sync() as stand:
            worker = stand.add_worker()
            idle = await stand.open_older()
            stand.hub.want_channel(OLDER, "typha")
            used = stand.hub.channels[OLDER, "typha", None]
            channels = {idle.number: ipc.ChannelReport(), used.number: ipc.ChannelReport(clients=1)}
            worker.say(ipc.Report(ipc.WorkerCounts(), channels=channels))
            stand.hub.look_after_channels()
            now += 61
            stand.hub.look_after_channels()
            assert list(stand.hub.channels) == [(OLDER, "typha", None)]
            stand.put_policies(version=2)
            await stand.settled()
            assert b"'2'" in stand.content()[policy_key(0)]


async def test_a_worker_that_asks_for_what_was_just_closed_gets_it_anew() -> None:
    """Two workers: one had no client for a minute, and hears of a new one while the hub closes the channel."""
    now = 1000.0
    with clock.replaced(monotonic=lambda: now, time_ns=time.time_ns):
        async with in_sync() as stand:
            asking, other = stand.add_worker(1), stand.add_worker(2)
            channel = await stand.open_older()
            for worker in (asking, other):
                worker.report(number=channel.number)
            stand.hub.look_after_channels()
            now += 61
            stand.hub.look_after_channels()
            asking.say(ipc.WantChannel(OLDER, WIRE_FORMAT))  # as soon as it has heard of the end
            other.say(ipc.WantChannel(OLDER, WIRE_FORMAT))
            asking.say(ipc.WantSnapshot(channel.number))  # said before
            await stand.settled()
            for worker in (asking, other):
                opened = [message for message in worker.hear() if isinstance(message, ipc.OpenChannel)]
                assert [message.channel for message in opened] == [channel.number, channel.number + 1]
                assert not worker.broken
            assert policy_key(0) in stand.content()


async def test_a_projection_that_is_wanted_is_not_closed_before_it_is_in_sync() -> None:
    now = 1000.0
    with clock.replaced(monotonic=lambda: now, time_ns=time.time_ns):
        async with CalicoStand().running() as stand:
            worker = stand.add_worker()
            stand.put_policies()
            worker.say(ipc.WantChannel(OLDER, WIRE_FORMAT))
            for _ in range(3):
                now += 61
                stand.hub.look_after_channels()
                await stand.settled()
            assert OLDER in stand.hub.feeds
            stand.sync_newest()
            stand.sync_admin()
            await stand.settled()
            assert [type(message) for message in worker.hear()][:1] == [ipc.OpenChannel]
            assert policy_key(0) in stand.content()


async def test_a_worker_that_dies_while_a_projection_is_made_is_replaced_by_one_that_gets_it() -> None:
    async with in_sync() as stand:
        stand.add_worker(1).say(ipc.WantChannel(OLDER, WIRE_FORMAT))
        await asyncio.sleep(0)
        stand.hub.remove_worker(1)
        next_worker = stand.add_worker(2)
        next_worker.say(ipc.WantChannel(OLDER, WIRE_FORMAT))
        stand.sync_admin()
        await stand.settled()
        assert next_worker.kinds().count(ipc.OpenChannel) == 1
        assert all(policy_key(number) in stand.content() for number in range(POLICIES))


async def test_four_projections_at_once_share_one_conversion() -> None:
    async with in_sync() as stand:
        names = sorted(releases.PROJECTIONS)
        for name in names:
            stand.hub.want_channel(name, WIRE_FORMAT)
        assert stand.sync_admin() == ADMIN_TYPES
        await stand.settled()
        assert {name for name, _, _ in stand.hub.channels} == set(names)
        event = stand.event("GlobalNetworkPolicy", "one", {"selector": "all()"})
        sequences = {name: stand.hub.feeds[name].store.sequence for name in [NEWEST, *names]}
        stand.hub.apply(event)
        stand.hub.batch_end()
        assert {name: stand.hub.feeds[name].store.sequence - before for name, before in sequences.items()} == (
            dict.fromkeys(sequences, 1)
        )


@pytest.mark.parametrize("comes_first", ["agent", "policy"])
async def test_a_policy_that_older_agents_enforce_in_another_tier_is_named(comes_first: str) -> None:
    async with in_sync() as stand:
        doubtful = stand.event("GlobalNetworkPolicy", "sec.in-dev", {"selector": "all()", "tier": "dev"})
        if comes_first == "agent":
            await stand.open_older()
        stand.hub.apply(doubtful)
        stand.hub.batch_end()
        assert stand.hub.updates_refused == ({"doubtful": 1} if comes_first == "agent" else {})
        if comes_first == "policy":
            await stand.open_older()
        assert stand.hub.updates_refused == {"doubtful": 1}
        assert "/calico/v1/policy/tier/sec/policy/sec.in-dev" in stand.content()


async def test_what_the_newest_feed_refused_is_not_counted_again_for_a_projection() -> None:
    async with in_sync() as stand:
        stand.hub.apply(stand.event("GlobalNetworkPolicy", "bad", {"selector": "what is this"}))
        stand.hub.batch_end()
        counted = dict(stand.hub.updates_refused)
        assert sum(counted.values()) == 1
        await stand.open_older()
        assert stand.hub.updates_refused == counted


async def test_a_defect_of_a_projection_costs_one_object_in_it_alone() -> None:
    """No object is known that does this. Here a converter makes a value that is no text."""
    original = next(source for source in SPECS[NEWEST].sources if source.kind == "GlobalNetworkPolicy")

    def convert(event: objects.ObjectEvent) -> list[model.Item]:
        value = b'{"tier":"\xff",}' if event.name == "bad" else b'{"tier":"default",}'
        return [model.Item(f"/{event.name}", value, "1")]

    spec = syncers.FeedSpec(NEWEST, (original._replace(convert=convert),))
    async with CalicoStand(spec).running() as stand:
        for name in ("bad", "good"):
            stand.hub.apply(stand.event("GlobalNetworkPolicy", name, {}))
        stand.sync_newest()
        await stand.open_older()
        assert stand.hub.updates_refused == {feed.DEFECT: 1}
        stand.hub.apply(stand.event("GlobalNetworkPolicy", "bad", {}, version=2))
        stand.hub.batch_end()
        assert stand.hub.updates_refused == {feed.DEFECT: 2}
        assert list(stand.content(NEWEST)) == ["/bad", "/good"]
        assert list(stand.content()) == ["/calico/v1/policy/tier/default/policy/good"]


_KINDS = st.sampled_from(["GlobalNetworkPolicy", "AdminNetworkPolicy"])
_NAMES = st.integers(0, 1)
_WORKERS = st.integers(0, 1)
_STEPS = st.one_of(
    st.tuples(st.just("put"), _KINDS, _NAMES),
    st.tuples(st.just("delete"), _KINDS, _NAMES),
    st.tuples(st.just("status"), st.integers(0, 30), st.sampled_from(messages.SyncStatus)),
    st.tuples(st.just("outage"), st.just(0), st.just(0)),
    st.tuples(st.just("want"), _WORKERS, st.sampled_from(sorted(releases.PROJECTIONS))),
    st.tuples(st.just("report"), _WORKERS, st.integers(0, 1)),
    st.tuples(st.just("minute"), st.just(0), st.just(0)),
    st.tuples(st.just("turns"), st.integers(1, 60), st.just(0)),
    st.tuples(st.just("worker dies"), _WORKERS, st.just(0)),
)


_POLICIES = 250
"""More than a projection takes over in one step."""
_MODERN = {releases.feed_name(release) for release in Release if release.has_modern_policy_keys}


class _Heard:
    """A worker, and the channels that it knows."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.channels: dict[int, tuple[str, str]] = {}

    def hear(self) -> None:
        for message in self.worker.hear():
            if isinstance(message, ipc.OpenChannel):
                assert (message.feed, message.wire_format) not in self.channels.values()
                self.channels[message.channel] = message.feed, message.wire_format
            elif isinstance(message, ipc.CloseChannel):
                del self.channels[message.channel]
        assert not self.worker.broken

    def report(self, clients: int) -> None:
        channels = {number: ipc.ChannelReport(clients=clients) for number in self.channels}
        self.worker.say(ipc.Report(ipc.WorkerCounts(), active=clients, channels=channels))


@settings(max_examples=100)
@given(st.lists(_STEPS, min_size=15, max_size=60))
def test_whatever_happens_projections_end_with_what_a_new_one_has(steps: list[tuple[str, Any, Any]]) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[tuple[str, Any, Any]]) -> None:
    now = 1000.0
    with clock.replaced(monotonic=lambda: now, time_ns=time.time_ns):
        async with CalicoStand().running() as stand:
            types = list(dict.fromkeys(TYPES.values()))
            workers = [_Heard(stand.add_worker(number)) for number in (1, 2)]
            stand.put_policies(count=_POLICIES)
            stand.sync_newest()
            for number, (action, first, second) in enumerate(steps, 3):
                if action in ("put", "delete"):
                    spec = {"selector": f"x == '{number}'", "priority": 1, "subject": {"namespaces": {}}}
                    event = stand.event(first, f"p{second}", spec, version=number)
                    if event.type in stand.hub.types:  # else nobody watches it
                        (stand.hub.apply if action == "put" else stand.hub.delete)(event)
                elif action == "status" and types[first % len(types)] in stand.hub.types:
                    stand.hub.status(types[first % len(types)], second)
                elif action == "want":
                    workers[first].worker.say(ipc.WantChannel(second, WIRE_FORMAT))
                elif action == "report":
                    workers[first].report(second)
                elif action == "outage":
                    for status in (messages.SyncStatus.RESYNC, messages.SyncStatus.IN_SYNC):
                        for type in stand.hub.types:
                            stand.hub.status(type, status)
                elif action == "minute":
                    stand.hub.look_after_channels()
                    now += 61
                    stand.hub.look_after_channels()
                elif action == "worker dies":
                    stand.hub.remove_worker(workers[first].worker.handle.number)
                    workers[first] = _Heard(stand.add_worker(number))
                else:
                    for _ in range(first):
                        await asyncio.sleep(0)
                stand.hub.batch_end()
                for one in workers:
                    one.hear()
                _check_open(stand)
            await _check_all(stand, workers, types)


def _check_open(stand: CalicoStand) -> None:
    """No channel is open before its projection has everything, and no status is better than those of the types."""
    for channel in stand.hub.channels.values():
        projection = channel.feed
        assert isinstance(projection, feed.CalicoFeed)
        assert all(policy_key(number) in stand.content(projection.name) for number in (0, _POLICIES - 1)) or (
            projection.name in _MODERN
        )
        if projection.store.status is messages.SyncStatus.IN_SYNC and not stand.hub.coalescer.is_unfinished:
            statuses = {stand.newest.status_of(type) for type in projection.types}
            assert statuses == {messages.SyncStatus.IN_SYNC}


async def _check_all(stand: CalicoStand, workers: list[_Heard], types: list[resources.ResourceType]) -> None:
    """All is said: what is open is known to all workers, whole, and in sync."""
    asked = [stand.hub.older_types.get_nowait() for _ in range(stand.hub.older_types.qsize())]
    assert len(set(asked)) == len(asked), "watched twice"
    stand.sync(*(type for type in types if type in stand.hub.types))
    await stand.settled()
    assert {name for name, _, _ in stand.hub.channels} == set(stand.hub.feeds) - {NEWEST}
    assert stand.newest.projections == [source for name, source in stand.hub.feeds.items() if name != NEWEST]
    for one in workers:
        one.hear()
        assert one.channels == {channel.number: channel.key[:2] for channel in stand.hub.channels.values()}
    for projection in list(stand.newest.projections):
        assert projection.store.status is messages.SyncStatus.IN_SYNC
        fresh = feed.Projection(stand.newest, projection.release)
        for _ in fresh.seed():
            pass
        fresh.take()
        fresh.close()
        assert stand.content(projection.name) == {entry.key: entry.value for entry in fresh.store}
