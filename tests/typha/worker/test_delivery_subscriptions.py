"""Clients that subscribe to a part of a feed, on real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from cache import objects
from cache.state import cursor
from protocol import messages, subscriptions
from protocol.subscriptions import Subscription
from tests.harness import worker_stand
from tests.harness.worker_stand import FAST, Peer, WorkerStand, eventually, pod
from typha.ipc.selections import SELECTIONS_MAX
from typha.worker import convergence

OWN_NODE = Subscription(own_node=True)
WEB = Subscription(prefixes=("/core/v1/pods/default/web-",))


@pytest.fixture
async def stage() -> AsyncIterator[WorkerStand]:
    """A feed in sync."""
    async with WorkerStand(FAST).running() as one:
        one.in_sync()
        yield one


def on(node: str, name: str, *, version: int = 1, filling: str = "") -> objects.ObjectEvent:
    """A pod that runs on a node."""
    return pod(name, {"nodeName": node, "filling": filling}, version=version)


async def test_clients_of_two_nodes_get_their_own_pods_and_what_is_common(stage: WorkerStand) -> None:
    stage.put(on("n1", "a"), on("n2", "b"), on("", "c"))
    one, two, whole = [await stage.subscribe(subscription=OWN_NODE, node=node) for node in ("n1", "n2")] + [
        await stage.subscribe()
    ]
    await stage.converged(one, two, whole)
    assert [len(peer.entries) for peer in (one, two, whole)] == [1, 1, 3]
    assert one.hello is not None
    assert one.hello.features == {"subscriptions"}
    stage.put(on("n2", "d"), on("n1", "a", version=2, filling="x"))
    await stage.converged(one, two, whole)
    assert (one.updates, two.updates) == (1, 1)
    assert stage.broken == []


async def test_a_pod_that_moves_leaves_one_node_and_comes_to_the_other(stage: WorkerStand) -> None:
    stage.put(on("", "a"))
    one, two = [await stage.subscribe(subscription=OWN_NODE, node=node) for node in ("n1", "n2")]
    await stage.converged(one, two)
    stage.put(on("n1", "a", version=2))
    await stage.converged(one, two)
    assert len(one.entries) == 1
    stage.put(on("n2", "a", version=3))
    await stage.converged(one, two)
    assert one.deleted == ["a"]
    assert len(two.entries) == 1
    stage.delete("a")
    await stage.converged(one, two)
    assert two.deleted == ["a"]


async def test_an_update_touches_the_clients_of_its_node_only(stage: WorkerStand) -> None:
    stage.put(*(on(f"n{number}", f"p{number}") for number in range(20)))
    peers = [await stage.subscribe(subscription=OWN_NODE, node=f"n{number}") for number in range(20)]
    await stage.converged(*peers)
    before = stage.server.stats.feeds[stage.feed.name].counts.sends
    stage.put(on("n7", "p7", version=2, filling="x"))
    await stage.converged(*peers)
    counts = stage.server.stats.feeds[stage.feed.name].counts
    assert counts.sends - before == 1
    assert counts.deliveries == 1


async def test_a_subscription_by_prefix_is_a_feed_of_its_own(stage: WorkerStand) -> None:
    stage.put(pod("web-1"), pod("db-1"))
    web, whole = await stage.subscribe(subscription=WEB), await stage.subscribe()
    await stage.converged(web, whole)
    stage.put(pod("web-2"), pod("db-2"), pod("web-1", "x", version=2))
    stage.put(pod("db-1", "y", version=2))
    stage.delete("web-2")
    await stage.converged(web, whole)
    assert web.updates == 3
    assert len(web.entries) == 1


async def test_the_store_of_a_subscription_has_the_same_values(stage: WorkerStand) -> None:
    stage.put(pod("web-1"), pod("db-1"))
    await stage.converged(await stage.subscribe(subscription=WEB))
    [selection] = stage.hub.derived.selections.values()
    key = "/core/v1/pods/default/web-1"
    assert selection.store.get(key) is stage.feed.store.get(key)


async def test_a_slow_client_of_a_node_gets_a_new_snapshot() -> None:
    small = msgspec.structs.replace(worker_stand.HUB_LIMITS, segment_bytes=1 << 16)
    async with WorkerStand(FAST, hub_limits=small).running() as stage:
        stage.in_sync()
        stage.put(on("n1", "a"), on("n2", "b"))
        slow = await stage.subscribe(subscription=OWN_NODE, node="n1", receive_buffer_bytes=4096)
        other = await stage.subscribe(subscription=OWN_NODE, node="n2")
        await stage.converged(slow, other)
        blocked = await stage.client_of(slow)
        version = 10
        while not blocked.waiting or blocked.offset >= stage.channel.log.segments[-1].base:
            version += 1
            stage.put(on("n1", "a", version=version, filling=str(version) * 10_000))
            await asyncio.sleep(0.002)
        stage.hub.snapshots.request(stage.channel)
        stage.make_snapshots()
        stage.hub.retention.trim(stage.channel, stage.channel.log.end)
        await eventually(lambda: blocked.state is cursor.CursorState.CATCHING_UP)
        await stage.converged(slow, other)
        assert slow.snapshots == 2
        assert other.snapshots == 1
        assert other.updates == 0


async def test_a_subscription_without_a_node_or_feature_is_not_in_force(stage: WorkerStand) -> None:
    stage.put(on("n1", "a"), on("n2", "b"))
    nameless = await stage.subscribe(subscription=OWN_NODE)
    await stage.converged(nameless)
    assert nameless.hello is not None
    assert nameless.hello.not_supported == {"subscriptions"}
    silent = await stage.connect()
    silent.say(messages.ClientHello(feed=stage.feed.name, agent="test", node="n1", subscription=OWN_NODE))
    await stage.converged(silent)
    assert silent.hello is not None
    assert silent.hello.not_supported == {"subscriptions"}


def part(number: int) -> Subscription:
    return Subscription(prefixes=(f"/core/v1/pods/default/{number}",))


async def bring(stage: WorkerStand, *parts: Subscription, host: str = "127.0.0.1") -> list[bool]:
    """Clients of one address with these subscriptions: whether each is in force."""
    found = []
    for one in parts:
        peer = await stage.subscribe(subscription=one, host=host)
        await stage.converged(peer)
        found.append(peer.hello is not None and "subscriptions" in peer.hello.features)
    return found


async def test_too_many_subscriptions_are_not_in_force(stage: WorkerStand) -> None:
    stage.put(pod("a"))
    for number in range(SELECTIONS_MAX):
        assert await bring(stage, part(number), host=f"127.0.0.{10 + number}") == [True]
    assert await bring(stage, part(97), part(98), part(0)) == [False, False, True]
    assert len(stage.hub.derived.selections) == SELECTIONS_MAX
    assert stage.server.stats.feeds[stage.feed.name].counts.subscriptions_declined == 2


async def test_one_address_leaves_room_for_others(stage: WorkerStand) -> None:
    stage.put(pod("a"))
    assert await bring(stage, *map(part, range(10))) == [True] * 8 + [False] * 2
    assert await bring(stage, *map(part, range(10, 15)), host="127.0.0.2") == [True] * 4 + [False]
    assert await bring(stage, part(20), part(21), host="127.0.0.3") == [True, True]
    assert await bring(stage, part(30), part(31), host="127.0.0.4") == [True, False]
    assert await bring(stage, part(0), part(30), host="127.0.0.5") == [True, True]


async def test_the_hub_counts_what_other_workers_ask_for() -> None:
    async with WorkerStand(FAST).running() as stage:  # not in sync yet, so the worker is told of no channel
        for number in range(8):
            stage.hub.want_channel(stage.feed.name, "native", part(number), asker="127.0.0.1")
        stage.hub.want_channel(stage.feed.name, "native+zstd", part(0), asker="127.0.0.1")
        refused = await stage.subscribe(subscription=WEB)
        await refused.read_to_end()
        assert refused.goodbye is not None
        assert refused.goodbye.reason == "feed-removed"
        stage.in_sync()
        assert await bring(stage, WEB) == [False]
        assert await bring(stage, WEB, host="127.0.0.2") == [True]


async def test_the_position_of_a_part_does_not_continue_the_whole_feed(stage: WorkerStand) -> None:
    """A client had a part; when it comes back, its subscription is one too many, and it gets everything."""
    resuming = frozenset({"resume", "chunk-digests", "subscriptions"})
    stage.put(pod("a"), pod("web-1"))
    for number in range(SELECTIONS_MAX):
        assert await bring(stage, part(number), host=f"127.0.0.{10 + number}") == [True]
    back = await stage.connect()
    position = messages.ResumePosition(stage.server.connections.offer.incarnation, stage.feed.store.sequence)
    back.say(
        messages.ClientHello(feed=stage.feed.name, agent="test", features=resuming, subscription=WEB, resume=position)
    )
    await stage.converged(back)
    assert back.hello is not None
    assert back.hello.not_supported == {"resume", "subscriptions"}
    assert len(back.entries) == 2


async def test_what_the_hub_does_not_open_ends_with_a_goodbye() -> None:
    async with WorkerStand(FAST).running() as stage:  # not in sync yet, so the worker is told of no channel
        for number in range(SELECTIONS_MAX):  # as if other workers had asked
            stage.hub.want_channel(stage.feed.name, "native", part(number), asker=f"127.0.0.{number}")
        peer = await stage.subscribe(subscription=WEB)
        await peer.read_to_end()
        assert peer.goodbye is not None
        assert peer.goodbye.reason == "feed-removed"
        stage.in_sync()
        again = await stage.subscribe(subscription=WEB)
        await stage.converged(again)
        assert again.hello is not None
        assert again.hello.not_supported == {"subscriptions"}
        assert stage.broken == []


async def test_a_subscription_without_clients_is_dropped(stage: WorkerStand) -> None:
    stage.put(on("n1", "a"))
    peer = await stage.subscribe(subscription=OWN_NODE, node="n1")
    await stage.converged(peer)
    assert len(stage.hub.derived.selections) == 1
    peer.close()
    number = stage.channel.number
    await eventually(lambda: number in stage.handle.report.channels)
    await eventually(lambda: not stage.handle.report.channels[number].clients)
    stage.hub.look_after_channels()
    [channel] = stage.hub.channels.values()
    assert channel.idle_since is not None
    channel.idle_since -= worker_stand.HUB_LIMITS.channel_idle_seconds
    stage.hub.look_after_channels()
    assert stage.hub.derived.selections == {}
    again = await stage.subscribe(subscription=OWN_NODE, node="n1")
    await stage.converged(again)


async def test_everything_is_the_feed_itself(stage: WorkerStand) -> None:
    stage.put(on("n1", "a"))
    peers = [await stage.subscribe(), await stage.subscribe(subscription=Subscription())]
    await stage.converged(*peers)
    assert peers[1].hello is not None
    assert peers[1].hello.features == {"subscriptions"}
    assert len(stage.hub.channels) == 1
    assert stage.hub.derived.selections == {}


async def test_a_foreign_feed_cannot_select_by_kind() -> None:
    async with WorkerStand(FAST, feed_name="felix").running() as stage:
        stage.in_sync()
        with contextlib.suppress(TimeoutError):
            peer = await stage.subscribe(subscription=Subscription(kinds=("core/v1/pods",)))
            await stage.converged(peer)
        assert peer.hello is not None
        assert peer.hello.not_supported == {"subscriptions"}


def test_a_tag_is_never_that_of_the_common_part() -> None:
    tags = {subscriptions.tag_of(f"n{number}") for number in range(10_000)}
    assert len(tags) == 10_000
    assert subscriptions.COMMON not in tags


async def test_a_client_has_applied_what_it_is_sent(stage: WorkerStand) -> None:
    """What other clients are sent is nothing that it could apply, however much that is."""
    positions = frozenset({"positions"})
    stage.put(on("n1", "a"), on("n2", "b"), pod("web-1"))
    one = await stage.subscribe(subscription=OWN_NODE, node="n1", features=positions)
    two = await stage.subscribe(subscription=OWN_NODE, node="n2", features=positions)
    web = await stage.subscribe(subscription=WEB, features=positions)
    whole = await stage.subscribe(features=positions)
    await stage.converged(one, two, web, whole)

    def up_to(peer: Peer) -> int:
        host, port = peer.socket.getsockname()
        [found] = [one for one in stage.server.poller.clients.values() if one.address == f"{host}:{port}"]
        assert found.applied is not None
        return found.applied.up_to()

    def say(peer: Peer) -> int:
        peer.say(messages.Applied(peer.connection.sequence))
        return peer.connection.sequence

    for peer in (one, two, web, whole):
        say(peer)
    await eventually(lambda: all(up_to(peer) == convergence.EVERYTHING for peer in (one, two, web)))
    assert up_to(whole) == stage.feed.store.sequence
    await eventually(lambda: stage.handle.applied.get(worker_stand.FEED) is not None)
    before = stage.feed.store.sequence
    for number in range(5):  # nothing of it concerns the first one
        stage.put(on("n2", "d", version=number + 10, filling=str(number)))
    await stage.converged(one, two, web, whole)
    assert up_to(one) == up_to(web) == convergence.EVERYTHING
    assert up_to(two) == up_to(whole) == before
    stage.put(on("n1", "a", version=20, filling="x"))
    await stage.converged(one, two, web, whole)
    assert up_to(one) == stage.feed.store.sequence - 1  # all but the last change
    say(two)
    say(one)
    await eventually(lambda: up_to(one) == up_to(two) == convergence.EVERYTHING)
    await eventually(lambda: stage.handle.applied[worker_stand.FEED].lowest == before)  # the whole one has not
    say(whole)
    await eventually(lambda: stage.handle.applied[worker_stand.FEED].lowest >= stage.feed.store.sequence)
    sequence = stage.feed.store.sequence
    stage.hub.convergence._next_at.clear()
    stage.hub.convergence._measured.clear()
    stage.put(on("n1", "a", version=21, filling="y"))
    await stage.converged(one, two, web, whole)
    await eventually(lambda: stage.server.connections.convergence._feeds[worker_stand.FEED].expected is not None)
    expected = stage.server.connections.convergence._feeds[worker_stand.FEED].expected
    assert expected is not None
    assert expected.sequence == sequence + 1
    assert len(expected.clients) == 2  # the client of the node, and the one that gets everything
    say(one)
    say(whole)
    await eventually(lambda: stage.handle.applied[worker_stand.FEED].reached == sequence + 1)
    assert stage.broken == []
