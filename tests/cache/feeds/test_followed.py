"""A feed that another replica feeds, and the change to and from feeds of objects. Clients keep what they have."""

import pytest

from cache import objects, resources
from cache.feeds import feed, followed, raw
from protocol import messages
from protocol.messages import SyncStatus, Update, UpdateType

PODS = resources.ResourceType("", "v1", "pods")


def update(key: str, value: bytes | None, revision: str = "1", kind: UpdateType = UpdateType.NEW) -> Update:
    return Update(key, value, revision, int(kind), "7", 5)


def following(*updates: Update) -> followed.FollowedFeed:
    """A feed that is in sync with these."""
    source = followed.FollowedFeed("web")
    source.receive(updates)
    source.receive_status(SyncStatus.IN_SYNC)
    source.take()
    return source


def watching() -> feed.RawFeed:
    return feed.RawFeed(raw.FeedSpec("web", (raw.ResourceSpec(PODS),)), max_value_bytes=1000)


def contact(source: feed.Feed) -> SyncStatus:
    return source.confirmed_status


def is_stale(source: feed.Feed) -> bool:
    return source.is_stale


def pod(name: str, version: str = "9") -> objects.ObjectEvent:
    content = b'{"metadata":{"name":"%s","namespace":"d"}}' % name.encode()
    return objects.ObjectEvent(PODS, "d", name, version, content, "v1", "Pod", objects.Origin.LIST)


def test_updates_go_on_as_they_came() -> None:
    source = followed.FollowedFeed("web")
    sent = [
        update("a", b"1"),
        update("b", None, "2", UpdateType.UPDATED),  # an invalid value, of a key that was never there
        update("a", b"2", "3", UpdateType.UPDATED),
        update("a", None, "", UpdateType.DELETED),
    ]
    source.receive(sent)
    batch = source.take()
    assert batch is not None
    assert batch.updates == sent
    assert source.store.sequence == len(sent)
    assert batch.status is None


def test_in_sync_comes_after_its_data_and_stays_for_clients_of_typhas_protocol() -> None:
    source = followed.FollowedFeed("web")
    source.receive([update("a", b"1"), update("b", b"1")])
    source.receive_status(SyncStatus.IN_SYNC)
    first = source.take(feed.BatchLimits(changes=1))
    assert first is not None
    assert first.status is None
    assert contact(source) is SyncStatus.WAITING
    second = source.take()
    assert second is not None
    assert second.status is SyncStatus.IN_SYNC
    assert contact(source) is SyncStatus.IN_SYNC
    for said, shown in ((SyncStatus.WAITING, SyncStatus.WAITING), (SyncStatus.RESYNC, SyncStatus.RESYNC)):
        source.receive_status(said)
        assert source.take() is None
        assert source.store.status is SyncStatus.IN_SYNC
        assert contact(source) is shown
        assert is_stale(source)


def test_what_comes_after_an_outage_is_not_current_before_all_of_it_is_taken() -> None:
    source = following(update("a", b"1"))
    source.lose()
    source.receive([update("a", b"2"), update("b", b"2")])
    source.receive_status(SyncStatus.IN_SYNC)
    source.take(feed.BatchLimits(changes=1))
    assert contact(source) is SyncStatus.WAITING
    source.take()
    assert contact(source) is SyncStatus.IN_SYNC


def test_a_lost_upstream_is_said_and_a_doubted_one_too() -> None:
    source = following(update("a", b"1"))
    source.confirm(5.0)
    source.confirm(4.0)
    assert source.last_confirmed == 5.0
    source.is_doubted = True
    assert contact(source) is SyncStatus.WAITING
    assert source.confirmed_at is None
    source.is_doubted = False
    assert contact(source) is SyncStatus.IN_SYNC
    source.lose()
    assert contact(source) is SyncStatus.WAITING
    assert len(source.store) == 1


def test_a_new_beginning_forgets_what_was_not_taken() -> None:
    source = following(update("a", b"1"))
    source.receive([update("a", None, "2", UpdateType.DELETED)])
    source.restart()
    assert source.take() is None
    assert "a" in source.store


def test_what_was_watched_is_followed_with_the_same_store() -> None:
    watched = watching()
    watched.apply(pod("a"))
    watched.set_status(PODS, SyncStatus.IN_SYNC)
    watched.take()
    source = followed.FollowedFeed("web")
    source.succeed(watched)
    assert source.store is watched.store
    assert source.synced_once
    assert contact(source) is SyncStatus.IN_SYNC
    assert source.take() is None


@pytest.mark.parametrize("at_once", [1, 100])
def test_what_was_followed_is_watched_and_only_what_is_gone_is_deleted(at_once: int) -> None:
    before = watching()
    for name in ("same", "gone", "changed"):
        before.apply(pod(name))
    before.set_status(PODS, SyncStatus.IN_SYNC)
    batch = before.take()
    assert batch is not None
    sent = {one.key: one for one in batch.updates}
    keys = list(sent)
    source = following(*(sent[key]._replace(value=b"{}") if "changed" in key else sent[key] for key in keys))

    now = watching()
    now.succeed(source)
    assert contact(now) is SyncStatus.WAITING
    assert is_stale(now)
    now.set_status(PODS, SyncStatus.RESYNC)
    for name in ("same", "new", "changed"):
        now.apply(pod(name))
    limits = feed.BatchLimits(changes=at_once)
    found: list[Update] = []
    for _ in range(8):
        part = now.take(limits)
        if part is not None:
            assert part.status is None
            found += part.updates
    assert [(one.key.rpartition("/")[2], one.update_type) for one in found] == [("new", 1), ("changed", 2)]
    assert len(now.store) == 4

    now.set_status(PODS, SyncStatus.IN_SYNC)
    deleted: list[Update] = []
    while (part := now.take(limits)) is not None or now.is_unfinished:
        deleted += [] if part is None else part.updates
    assert [(one.key.rpartition("/")[2], one.value) for one in deleted] == [("gone", None)]
    assert contact(now) is messages.SyncStatus.IN_SYNC
    assert not is_stale(now)
    assert now.store.status is SyncStatus.IN_SYNC
