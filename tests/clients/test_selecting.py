"""A client's subscription: the same for the application whether the server selects or not."""

import json

import pytest

import clients
from clients import Mirror, Subscription, differ, selecting, testing
from protocol import messages
from tests.harness import worker_stand
from tests.harness.worker_stand import FAST, WorkerStand, pod

OWN = Subscription(kinds=("core/v1/pods", "core/v1/nodes"), own_node=True)
FEED = "web"


def key(name: str, resource: str = "pods") -> str:
    """A key of the feed."""
    return f"/core/v1/{resource}/default/{name}"


def value(node: str, filling: int = 0) -> bytes:
    """A pod's value."""
    return json.dumps({"spec": {"nodeName": node, "filling": filling}}).encode()


def changed(name: str, content: bytes | None) -> differ.Batch:
    """A batch of one update."""
    return differ.Batch((messages.Update(key(name), content, "1", 2),))


def test_a_key_that_is_selected_no_longer_is_deleted() -> None:
    one = selecting.Selecting(OWN, "n1")
    told = [
        one.select(changed("a", content))
        for content in (value("n2"), value("n1"), value("n1", 1), value("n2", 2), value("n2", 3), None, value("n1"))
    ]
    seen = [batch and [(update.update_type, update.value is None) for update in batch.updates] for batch in told]
    new, updated, deleted = (1, False), (2, False), (3, True)
    assert seen == [None, [new], [updated], [deleted], None, None, [new]]


def test_an_impossible_subscription_is_refused() -> None:
    with pytest.raises(ValueError, match="node"):
        clients.follow("localhost:1", feed=FEED, agent="test", subscription=Subscription(own_node=True))
    with pytest.raises(ValueError, match="kinds"):
        clients.follow("localhost:1", feed=FEED, agent="test", subscription=Subscription(kinds=()))
    with pytest.raises(ValueError, match="prefixes"):
        clients.follow("localhost:1", feed=FEED, agent="test", subscription=Subscription(prefixes=("a" * 2000,)))


async def test_a_server_without_subscriptions_changes_nothing_for_the_application() -> None:
    content = {key("a"): value("n1"), key("b"): value("n2"), key("c", "services"): value("n1")}
    async with testing.Server(feeds={FEED: content}) as server:
        lines: list[tuple[str, bool]] = []

        def note(changes: object) -> None:
            assert isinstance(changes, list)
            lines.extend((change.key, change.new is None) for change in changes)

        mirror = Mirror(server.address, feed=FEED, agent="test", node="n1", subscription=OWN, on_change=note)
        async with mirror:
            await mirror.wait_in_sync(timeout_seconds=worker_stand.TIMEOUT_SECONDS)
            assert set(mirror) == {key("a")}
            server.put(FEED, key("d"), value("n2"))
            server.put(FEED, key("b"), value("n1", 1))
            server.put(FEED, key("a"), value("n2", 1))
            await worker_stand.eventually(lambda: set(mirror) == {key("b")})
            server.disconnect_all()
            server.put(FEED, key("e"), value("n1"))
            await worker_stand.eventually(lambda: set(mirror) == {key("b"), key("e")})
        assert lines == [(key("a"), False), (key("b"), False), (key("a"), True), (key("e"), False)]


async def test_a_server_with_subscriptions_sends_the_selected_part() -> None:
    async with WorkerStand(FAST).running() as stage:
        stage.in_sync()
        stage.put(pod("a", {"nodeName": "n1"}), pod("b", {"nodeName": "n2"}))
        host, port = stage.address
        mirror = Mirror(f"{host}:{port}", feed=stage.feed.name, agent="test", node="n1", subscription=OWN)
        async with mirror:
            await mirror.wait_in_sync(timeout_seconds=worker_stand.TIMEOUT_SECONDS)
            assert set(mirror) == {key("a")}
            stage.put(pod("b", {"nodeName": "n1"}, version=2), pod("a", {"nodeName": "n2"}, version=2))
            await worker_stand.eventually(lambda: set(mirror) == {key("b")})
            assert stage.server.stats.feeds[stage.feed.name].counts.deliveries == 2
            current = next(iter(stage.server.poller.clients.values()))
            stage.server.connections.close(current, worker_stand.CLOSED)
            stage.put(pod("c", {"nodeName": "n1"}))
            await worker_stand.eventually(lambda: set(mirror) == {key("b"), key("c")})
        assert len(stage.hub.derived.selections) == 1


async def test_a_file_of_another_subscription_is_not_used(tmp_path: object) -> None:
    content = {key("a"): value("n1"), key("b"): value("n2")}
    path = f"{tmp_path}/state"
    async with testing.Server(feeds={FEED: content}) as server:
        for node, restored in (("n1", False), ("n1", True), ("n2", False)):
            mirror = Mirror(server.address, feed=FEED, agent="test", node=node, subscription=OWN, state_file=path)
            async with mirror:
                assert mirror.restored is restored
                await mirror.wait_in_sync(timeout_seconds=worker_stand.TIMEOUT_SECONDS)
                assert set(mirror) == {key("a" if node == "n1" else "b")}
