"""A whole API group that goes is no empty world: what was known stays, out of sync, until it is back."""

from cache import resources
from cache.watch import api_group
from protocol.messages import SyncStatus
from tests.harness.watch_harness import PODS, Hand, bookmark, event

OTHER = resources.ResourceType.parse("v1/nodes")


def family_of_two() -> tuple[api_group.Family, Hand]:
    """A family of two types, and a machine of one of them that is in sync with two objects."""
    family = api_group.Family([PODS, OTHER])
    hand = Hand(family=family)
    hand.sync({"a/1": 5, "a/2": 6}, 9)
    family.served(OTHER, hand.now)
    hand.sink.take()
    return family, hand


def test_a_family_is_gone_when_the_last_type_is_known_to_be() -> None:
    family = api_group.Family([PODS, OTHER])
    told: list[bool] = []
    family.join(lambda: told.append(family.is_gone))
    assert PODS in family
    assert resources.ResourceType.parse("v1/secrets") not in family
    assert not family.missing(PODS)  # nothing is known of the other one yet
    assert not family.served(OTHER, 1.0)
    family.refused(OTHER)
    assert not family.is_gone  # somebody has taken our rights away: that alone says nothing
    assert family.missing(OTHER)
    assert told == [True]
    assert not family.missing(PODS)
    assert family.served(PODS, 7.0)
    assert (family.is_gone, family.returned_at, told) == (False, 7.0, [True])


def test_the_objects_of_a_family_that_is_gone_stay_out_of_sync() -> None:
    family, hand = family_of_two()
    family.missing(OTHER)
    hand.ended()
    hand.request(within=1)
    hand.refused(404)
    assert hand.sink.take() == ["resync"]
    assert hand.told() == ["FAMILY_GONE"]
    for _ in range(200):  # a quarter of an hour
        assert hand.pause() == 5.0
        hand.request()
        hand.refused(404)
    assert hand.sink.take() == []
    assert len(hand.sink.map) == 2


def test_a_family_that_returns_is_listed_and_compared() -> None:
    family, hand = family_of_two()
    family.missing(OTHER)
    hand.ended()
    hand.request(within=1)
    hand.refused(404)
    hand.pause()
    assert "sendInitialEvents" in hand.request().query
    hand.accepted()
    hand.lines(event("ADDED", "a/1", 5), bookmark(12, ends_initial=True))
    assert hand.sink.take() == ["resync", "delete a/2", "in-sync"]
    assert hand.told() == ["FAMILY_GONE", "FAMILY_RETURNED"]
    assert not family.is_gone


def test_a_type_that_does_not_return_with_its_family_is_empty_in_the_end() -> None:
    family, hand = family_of_two()
    family.missing(OTHER)
    hand.ended()
    hand.request(within=1)
    hand.refused(404)
    family.served(OTHER, hand.now)
    first = hand.now
    while hand.sink.current_status is not SyncStatus.IN_SYNC:
        hand.request(within=5)
        hand.refused(404)
    assert hand.now - first >= hand.policy.absent_grace_seconds
    assert sorted(hand.sink.take()) == ["delete a/1", "delete a/2", "in-sync", "resync"]


def test_a_watch_that_was_asked_for_before_the_family_went_is_not_trusted() -> None:
    family, hand = family_of_two()
    hand.ended()
    hand.request(within=1)
    hand.refused(404)
    request = hand.request(within=5)  # a passing one, it seems
    assert "sendInitialEvents" not in request.query
    family.missing(OTHER)
    assert hand.sink.take() == ["resync"]
    hand.accepted()
    assert not hand.is_streaming()
    assert "sendInitialEvents" in hand.request(within=5).query


def test_a_type_without_objects_is_out_of_sync_with_its_family() -> None:
    family = api_group.Family([PODS, OTHER])
    hand = Hand(family=family)
    family.served(OTHER, hand.now)
    hand.request()
    hand.refused(404)
    assert hand.sink.take() == ["in-sync"]
    family.missing(OTHER)
    assert hand.sink.take() == ["resync"]
    hand.request(within=hand.policy.absent_seconds)
    hand.refused(404)
    assert hand.sink.take() == []
    family.served(OTHER, hand.now)
    while hand.sink.current_status is not SyncStatus.IN_SYNC:
        hand.request(within=5)
        hand.refused(404)
    assert hand.sink.take() == ["in-sync"]
