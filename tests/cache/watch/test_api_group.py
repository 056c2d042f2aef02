"""An API group that disappears as a whole: its objects stay, out of sync, until it is back."""

from cache import resources
from cache.watch import api_group
from protocol.messages import SyncStatus
from tests.harness.watch_harness import PODS, MachineDriver, bookmark, event

OTHER = resources.ResourceType.parse("v1/nodes")


def group_of_two() -> tuple[api_group.ApiGroup, MachineDriver]:
    """A group of two types, and a machine of one of them that is in sync with two objects."""
    group = api_group.ApiGroup([PODS, OTHER])
    driver = MachineDriver(group=group)
    driver.sync({"a/1": 5, "a/2": 6}, 9)
    group.served(OTHER, driver.now)
    driver.sink.take()
    return group, driver


def test_a_group_is_gone_when_its_last_type_is_missing() -> None:
    group = api_group.ApiGroup([PODS, OTHER])
    calls: list[bool] = []
    group.subscribe(lambda: calls.append(group.is_gone))
    assert PODS in group
    assert resources.ResourceType.parse("v1/secrets") not in group
    assert not group.missing(PODS)  # the state of the other type is unknown
    assert not group.served(OTHER, 1.0)
    group.forbidden(OTHER)
    assert not group.is_gone  # we lost the permission, but the type may still exist
    assert group.missing(OTHER)
    assert calls == [True]
    assert not group.missing(PODS)
    assert group.served(PODS, 7.0)
    assert (group.is_gone, group.returned_at, calls) == (False, 7.0, [True])


def test_objects_of_a_missing_group_are_kept_out_of_sync() -> None:
    group, driver = group_of_two()
    group.missing(OTHER)
    driver.ended()
    driver.request(within=1)
    driver.refused(404)
    assert driver.sink.take() == ["resync"]
    assert driver.notice_kinds() == ["GROUP_GONE"]
    for _ in range(200):  # a quarter of an hour
        assert driver.pause() == 5.0
        driver.request()
        driver.refused(404)
    assert driver.sink.take() == []
    assert len(driver.sink.map) == 2


def test_a_returning_group_is_listed_and_compared() -> None:
    group, driver = group_of_two()
    group.missing(OTHER)
    driver.ended()
    driver.request(within=1)
    driver.refused(404)
    driver.pause()
    assert "sendInitialEvents" in driver.request().query
    driver.accepted()
    driver.lines(event("ADDED", "a/1", 5), bookmark(12, ends_initial=True))
    assert driver.sink.take() == ["resync", "delete a/2", "in-sync"]
    assert driver.notice_kinds() == ["GROUP_GONE", "GROUP_RETURNED"]
    assert not group.is_gone


def test_a_type_that_does_not_return_with_its_group_becomes_empty() -> None:
    group, driver = group_of_two()
    group.missing(OTHER)
    driver.ended()
    driver.request(within=1)
    driver.refused(404)
    group.served(OTHER, driver.now)
    first = driver.now
    while driver.sink.current_status is not SyncStatus.IN_SYNC:
        driver.request(within=5)
        driver.refused(404)
    assert driver.now - first >= driver.policy.absent_grace_seconds
    assert sorted(driver.sink.take()) == ["delete a/1", "delete a/2", "in-sync", "resync"]


def test_a_watch_requested_before_the_group_went_is_not_used() -> None:
    group, driver = group_of_two()
    driver.ended()
    driver.request(within=1)
    driver.refused(404)
    request = driver.request(within=5)  # the machine takes the 404 for a temporary one
    assert "sendInitialEvents" not in request.query
    group.missing(OTHER)
    assert driver.sink.take() == ["resync"]
    driver.accepted()
    assert not driver.is_streaming()
    assert "sendInitialEvents" in driver.request(within=5).query


def test_a_type_without_objects_is_out_of_sync_with_its_group() -> None:
    group = api_group.ApiGroup([PODS, OTHER])
    driver = MachineDriver(group=group)
    group.served(OTHER, driver.now)
    driver.request()
    driver.refused(404)
    assert driver.sink.take() == ["in-sync"]
    group.missing(OTHER)
    assert driver.sink.take() == ["resync"]
    driver.request(within=driver.policy.absent_seconds)
    driver.refused(404)
    assert driver.sink.take() == []
    group.served(OTHER, driver.now)
    while driver.sink.current_status is not SyncStatus.IN_SYNC:
        driver.request(within=5)
        driver.refused(404)
    assert driver.sink.take() == ["in-sync"]
