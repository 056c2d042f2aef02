"""The watch machine in virtual time: lists, watches, and what goes wrong between it and the API server."""

from typing import Any

import pytest

from cache.watch import policy, requests
from cache.watch.policy import Failure
from cache.watch.requests import RequestKind
from protocol.messages import SyncStatus
from tests.harness.watch_harness import MachineDriver, bookmark, error_event, event, json_bytes, pod, pod_list, status


def without_watch_list() -> MachineDriver:
    driver = MachineDriver()
    driver.request()
    driver.refused(
        422, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
    )
    driver.notice_kinds()
    return driver


def test_the_first_list_is_a_watch_that_begins_with_everything() -> None:
    driver = MachineDriver()
    request = driver.request()
    assert request.kind is RequestKind.WATCH_LIST
    assert request.path == "/api/v1/pods"
    assert request.query["sendInitialEvents"] == "true"
    assert request.query["resourceVersionMatch"] == "NotOlderThan"
    assert request.query["allowWatchBookmarks"] == "true"
    assert "resourceVersion" not in request.query
    assert 300 <= int(request.query["timeoutSeconds"]) <= 600
    assert driver.sink.take() == []
    driver.accepted()
    driver.lines(event("ADDED", "a/1", 5), event("ADDED", "a/2", 3))
    assert driver.sink.take() == ["resync", "initial a/1@5", "initial a/2@3"]
    assert driver.sink.confirmations == 0
    driver.lines(bookmark(9, ends_initial=True))
    assert driver.sink.take() == ["in-sync"]
    assert driver.sink.confirmations == 1
    driver.lines(event("MODIFIED", "a/1", 10), event("DELETED", "a/2", 11), bookmark(12))
    assert driver.sink.take() == ["event a/1@10", "delete a/2"]
    assert driver.counters.last_confirmed == driver.now


def test_raw_is_the_object_as_written() -> None:
    driver = MachineDriver()
    driver.request()
    driver.accepted()
    metadata = b'{"name":"x","namespace":"a","resourceVersion":"5"}'
    raw = b'{"kind":"Pod","apiVersion":"v1", "metadata":' + metadata + b',"z":"\\u00e9}"}'
    driver.lines(b'{"type":"ADDED","object":' + raw + b"}")
    driver.lines(b' {"object" : ' + raw.replace(b'"5"', b'"6"') + b', "type":"ADDED"}')
    assert [event.raw for event in driver.sink.events] == [raw, raw.replace(b'"5"', b'"6"')]


def test_without_watch_list_the_machine_lists_pages() -> None:
    driver = without_watch_list()
    request = driver.request()
    assert request.kind is RequestKind.LIST
    assert request.query == {"limit": "500"}
    driver.page(pod_list({"a/1": 5}, 9, token="more"))
    assert driver.sink.take() == ["resync", "list a/1@5"]
    assert driver.request().query == {"limit": "500", "continue": "more"}
    driver.page(pod_list({"a/2": 6}, 9))
    assert driver.sink.take() == ["list a/2@6", "in-sync"]
    request = driver.request()
    assert request.kind is RequestKind.WATCH
    assert request.query["resourceVersion"] == "9"
    assert "sendInitialEvents" not in request.query
    assert (driver.counters.lists, driver.counters.list_pages) == (2, 2)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (422, "Invalid"),
        (400, "bad parameter"),
        (403, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"),
    ],
)
def test_watch_list_is_tried_once(code: int, message: str) -> None:
    driver = MachineDriver()
    driver.request()
    driver.refused(code, "Invalid", message)
    assert driver.notice_kinds() == ["NO_WATCH_LIST"]
    assert driver.request().kind is RequestKind.LIST
    driver.page(pod_list({}, 9))
    driver.request()
    driver.refused(410, "Expired")
    assert driver.request().kind is RequestKind.LIST


def test_a_silent_server_that_ignores_send_initial_events_is_detected() -> None:
    driver = MachineDriver()
    driver.request()
    driver.accepted()
    driver.now += 1
    driver.lines(event("ADDED", "a/1", 5))
    assert driver.machine.deadline == driver.now + driver.policy.initial_quiet_seconds
    driver.now += driver.policy.initial_quiet_seconds
    driver.tick()
    assert not driver.is_streaming()
    assert driver.notice_kinds() == ["NO_WATCH_LIST"]
    assert driver.request().kind is RequestKind.LIST
    driver.page(pod_list({"a/1": 5}, 9))
    assert driver.sink.take() == ["resync", "initial a/1@5", "in-sync"]
    assert driver.counters.objects_unchanged == 1


def test_a_busy_server_that_ignores_send_initial_events_is_detected() -> None:
    driver = MachineDriver()
    driver.request()
    driver.accepted()
    began_at = driver.now
    version = 5
    while driver.is_streaming():
        driver.now += 5
        version += 1
        driver.lines(event("MODIFIED", "a/1", version))
        driver.tick()
    assert driver.now - began_at == driver.policy.initial_max_seconds
    assert driver.request().kind is RequestKind.LIST


def test_broken_initial_events_restart_and_then_give_way_to_pages() -> None:
    driver = MachineDriver()
    for _ in range(driver.policy.initial_breaks_max):
        assert driver.request(within=60).kind is RequestKind.WATCH_LIST
        driver.accepted()
        driver.lines(event("ADDED", "a/1", 5))
        driver.ended(is_truncated=True)
    assert driver.request(within=60).kind is RequestKind.LIST
    assert driver.notice_kinds() == ["OUTAGE_BEGAN", "NO_WATCH_LIST"]


def test_a_broken_stream_resumes_at_once_from_the_last_version() -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5}, 9)
    driver.stay_healthy()
    driver.lines(event("MODIFIED", "a/1", 12))
    driver.ended(is_truncated=True)
    request = driver.request(within=0)
    assert (request.kind, request.query["resourceVersion"]) == (RequestKind.WATCH, "12")
    driver.accepted()
    assert driver.counters.resumes == 0
    driver.lines(event("MODIFIED", "a/1", 12), event("MODIFIED", "a/1", 13))
    assert driver.sink.take() == ["event a/1@12", "event a/1@13"]
    assert (driver.counters.resumes, driver.counters.stream_breaks, driver.counters.objects_unchanged) == (1, 1, 1)
    assert driver.notice_kinds() == []


def test_a_stream_that_reached_its_timeout_is_renewed() -> None:
    driver = MachineDriver()
    request = driver.request()
    driver.accepted()
    driver.lines(bookmark(9, ends_initial=True))
    driver.now += request.timeout_seconds - 1
    driver.ended()
    assert driver.request(within=0).query["resourceVersion"] == "9"
    assert (driver.counters.renewals, driver.counters.stream_breaks) == (1, 0)


def test_a_server_that_cuts_every_stream_causes_back_off_and_one_log_line() -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5}, 9)
    driver.stay_healthy()
    pauses = []
    for version in range(10, 22):
        driver.lines(event("MODIFIED", "a/1", version))
        driver.ended(is_truncated=True)
        before = driver.now
        assert driver.request(within=30).kind is RequestKind.WATCH
        pauses.append(driver.now - before)
        driver.accepted()
    assert pauses[0] == 0.0
    assert pauses[1] <= 1.0
    assert pauses[-1] >= 15.0
    assert driver.notice_kinds() == ["OUTAGE_BEGAN"]
    driver.lines(event("MODIFIED", "a/1", 30))
    assert driver.notice_kinds() == []
    driver.stay_healthy()
    assert driver.notice_kinds() == ["OUTAGE_ENDED"]
    assert driver.sink.current_status is SyncStatus.IN_SYNC


@pytest.mark.parametrize("how", ["http", "event"])
def test_410_lists_again_and_sends_differences_only(how: str) -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5, "a/2": 6, "a/3": 7}, 9)
    driver.stay_healthy()
    if how == "http":
        driver.ended()
        driver.request()
        driver.refused(410, "Expired", "too old resource version: 9 (50)")
    else:
        driver.lines(error_event(410, "Expired"))
        assert not driver.is_streaming()
    assert driver.sink.take() == []
    request = driver.request(within=1)
    assert request.kind is RequestKind.WATCH_LIST
    assert request.query["resourceVersion"] == "9"
    driver.accepted()
    driver.lines(event("ADDED", "a/1", 5), event("ADDED", "a/3", 20), event("ADDED", "a/4", 21))
    assert driver.sink.take() == ["resync", "initial a/3@20", "initial a/4@21"]
    driver.lines(bookmark(30, ends_initial=True))
    assert driver.sink.take() == ["delete a/2", "in-sync"]
    assert driver.sink.map == {"a/1": "5", "a/3": "20", "a/4": "21"}
    assert driver.counters.relists_410 == 1
    assert driver.counters.objects_swept == 1
    assert driver.notice_kinds() == ["RELIST"]
    assert driver.sink.events[-1].raw is None


def test_an_expired_continue_token_restarts_the_list() -> None:
    driver = without_watch_list()
    driver.request()
    driver.page(pod_list({"a/1": 5, "a/2": 5}, 9, token="old"))
    driver.request()
    driver.refused(410, "Expired", "The provided continue parameter is too old")
    request = driver.request(within=0)
    assert request.query == {}
    driver.page(pod_list({"a/2": 5}, 12))
    assert driver.sink.take() == ["resync", "list a/1@5", "list a/2@5", "delete a/1", "in-sync"]


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        (410, "Expired", "too old"),
        (410, "Expired", "Too large resource version"),
        (504, "Timeout", "Too large resource version: 9, current: 5"),
    ],
)
def test_a_list_whose_version_is_unknown_is_repeated_without_version(code: int, reason: str, message: str) -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5}, 9)
    driver.stay_healthy()
    driver.lines(error_event(410, "Expired"))
    assert driver.request(within=1).query["resourceVersion"] == "9"
    driver.refused(code, reason, message)
    request = driver.request(within=1)
    assert "resourceVersion" not in request.query
    driver.accepted()
    # After the history went back, the same version may have other content.
    driver.lines(event("ADDED", "a/1", 5), bookmark(6, ends_initial=True))
    assert driver.sink.take() == ["resync", "initial a/1@5", "in-sync"]
    driver.stay_healthy()
    driver.ended(is_truncated=True)
    assert driver.request().query["resourceVersion"] == "6"


def test_bookmarks_that_go_back_confirm_nothing_and_lead_to_a_new_list() -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 50}, 90)
    driver.stay_healthy()
    confirmations = driver.sink.confirmations
    for _ in range(driver.policy.backward_bookmarks_max - 1):
        driver.lines(bookmark(40))
    assert driver.is_streaming()
    driver.lines(bookmark(41))
    assert not driver.is_streaming()
    assert driver.sink.confirmations == confirmations
    assert "resourceVersion" not in driver.request(within=1).query


def test_a_type_that_is_not_installed_is_in_sync_and_rechecked() -> None:
    driver = MachineDriver()
    driver.request()
    driver.refused(404)
    assert driver.sink.take() == ["in-sync"]
    assert driver.notice_kinds() == ["ABSENT"]
    for _ in range(3):
        assert driver.pause() == driver.policy.absent_seconds
        assert driver.request().kind is RequestKind.WATCH_LIST
        driver.refused(404)
    assert driver.sink.take() == []
    assert driver.notice_kinds() == []
    assert driver.sink.confirmations == 4
    driver.pause()
    driver.request()
    driver.accepted()
    driver.lines(event("ADDED", "a/1", 5), bookmark(6, ends_initial=True))
    assert driver.sink.take() == ["resync", "initial a/1@5", "in-sync"]
    assert driver.notice_kinds() == ["FOUND"]


def test_an_uninstalled_type_loses_its_objects_but_not_by_a_temporary_404() -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5, "a/2": 6}, 9)
    driver.ended()
    driver.request(within=1)
    driver.refused(404)
    assert driver.sink.take() == []
    driver.request(within=3)
    driver.accepted()  # the 404 was temporary
    driver.lines(bookmark(10))
    driver.ended()
    driver.request(within=5)
    first = driver.now
    driver.refused(404)
    while not driver.sink.log:
        driver.request(within=5)
        driver.refused(404)
    assert driver.now - first >= driver.policy.absent_grace_seconds
    assert sorted(driver.sink.take()) == ["delete a/1", "delete a/2"]
    assert driver.sink.current_status is SyncStatus.IN_SYNC


def test_forbidden_names_the_missing_rule_once_and_keeps_trying() -> None:
    driver = MachineDriver()
    message = 'pods is forbidden: User "x" cannot watch resource "pods" in API group "" at the cluster scope'
    for _ in range(4):
        driver.request(within=30)
        driver.refused(403, "Forbidden", message)
    assert driver.sink.take() == []
    [notice] = driver.notices
    assert notice.kind is requests.NoticeKind.ACTION_NEEDED
    assert notice.level == "error"
    assert 'missing RBAC rule: verb "watch" on resource "pods" in API group ""' in str(notice.fields["detail"])
    assert driver.counters.errors["forbidden"] == 4
    driver.request(within=30)
    driver.accepted()
    driver.lines(bookmark(9, ends_initial=True))
    driver.stay_healthy()
    assert driver.notice_kinds() == ["ACTION_NEEDED", "OUTAGE_ENDED"]


def test_unauthorized_loads_the_credentials_again_before_the_next_try() -> None:
    driver = MachineDriver()
    driver.request()
    driver.refused(401, "Unauthorized")
    driver.pause()
    assert isinstance(driver.action(), requests.ReloadCredentials)
    assert driver.request().kind is RequestKind.WATCH_LIST


def test_credentials_that_cannot_be_loaded_are_loaded_again_after_a_pause() -> None:
    driver = MachineDriver()
    driver.request()
    driver.refused(401)
    driver.pause()
    assert isinstance(driver.action(), requests.ReloadCredentials)
    driver.failed(Failure.CREDENTIALS, "token file /x: No such file or directory")
    assert driver.pause() > 0
    assert isinstance(driver.action(), requests.ReloadCredentials)


@pytest.mark.parametrize("in_body", [False, True])
def test_retry_after_is_respected_within_limits(in_body: bool) -> None:
    def refuse(driver: MachineDriver, seconds: int) -> float:
        driver.request(within=100)
        if in_body:
            driver.refused(429, "TooManyRequests", retryAfterSeconds=seconds)
        else:
            driver.refused(429, "TooManyRequests", retry_after=seconds)
        return driver.pause()

    driver = MachineDriver()
    assert 7 <= refuse(driver, 7) <= 7.7
    assert 60 <= refuse(driver, 3600) <= 66
    assert driver.counters.errors["throttled"] == 2


def test_back_off_grows_with_jitter_to_a_limit_that_is_shorter_without_connection() -> None:
    def pauses(failure: Failure) -> list[float]:
        driver = MachineDriver()
        result = []
        for _ in range(12):
            driver.request()
            driver.failed(failure)
            result.append(driver.pause())
        assert len(set(result)) == 12
        return result

    slow = pauses(Failure.SERVER_ERROR)
    assert 0.25 <= slow[0] <= 0.5
    assert 15 <= slow[-1] <= 30
    assert max(pauses(Failure.NETWORK)) <= 5


def test_an_outage_changes_the_status_after_600_s() -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5}, 9)
    driver.stay_healthy()
    last_success = driver.now
    driver.failed(Failure.NETWORK, "reset")
    while driver.sink.current_status is SyncStatus.IN_SYNC:
        driver.request(within=30)
        driver.failed()
        driver.pause()
        assert driver.now - last_success < 700
    assert driver.now - last_success == pytest.approx(600)
    assert driver.sink.take() == ["waiting"]
    assert driver.notice_kinds() == ["OUTAGE_BEGAN", "LOST"]
    assert driver.sink.map == {"a/1": "5"}
    request = driver.request(within=30)
    assert (request.kind, request.query["resourceVersion"]) == (RequestKind.WATCH_LIST, "9")
    driver.accepted()
    driver.lines(event("ADDED", "a/1", 5), bookmark(70, ends_initial=True))
    assert driver.sink.take() == ["resync", "in-sync"]


def test_broken_json_resumes_and_lists_again_after_five_failures_at_one_version() -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5}, 9)
    kinds = []
    for _ in range(driver.policy.stalls_max):
        assert driver.is_streaming()
        driver.lines(b'{"type":"MODIFIED","object":{"metadata":')
        assert not driver.is_streaming()
        kinds.append(driver.request(within=30).kind)
        driver.accepted()
    assert kinds == [RequestKind.WATCH] * 4 + [RequestKind.WATCH_LIST]
    assert driver.counters.errors["malformed"] == 5
    assert driver.sink.map == {"a/1": "5"}


def test_other_watch_errors_resume() -> None:
    driver = MachineDriver()
    driver.sync({}, 9)
    driver.stay_healthy()
    driver.lines(error_event(500, "InternalError"))
    assert driver.request().kind is RequestKind.WATCH
    assert driver.counters.errors["watch-error"] == 1


def test_a_broken_page_is_repeated_and_a_huge_one_made_smaller() -> None:
    driver = without_watch_list()
    driver.request()
    driver.page(pod_list({"a/1": 5}, 9, token="more"))
    driver.request()
    driver.failed(Failure.MALFORMED, "broken list")
    assert driver.request(within=1).query == {"limit": "500", "continue": "more"}
    driver.failed(Failure.TOO_LARGE, "the list page is larger")
    assert driver.request(within=2).query == {"limit": "250", "continue": "more"}
    driver.page(pod_list({"a/2": 6}, 9))
    assert driver.sink.map == {"a/1": "5", "a/2": "6"}


SMALL = policy.WatchPolicy(
    use_watch_list=False, idle_pages_max=7, list_pages_max=20, list_bytes_max=2000, objects_max=30, list_max_seconds=60
)


@pytest.mark.parametrize(
    ("tokens", "names", "pages", "what"),
    [
        ("aaaa", "x", 2, "repeats a continue token"),
        ("abab", "xyzuv", 3, "repeats a continue token"),
        ("abcda", "xyzuv", 5, "repeats a continue token"),
        ("new", "x", 8, "7 pages of the list in a row without a new object"),
        ("new", "", 7, "7 pages of the list in a row without a new object"),
        ("new", "xxxxxyyyyyy", 11, "more than 2000 bytes"),
        ("new", "new", 11, "more than 2000 bytes"),
    ],
)
def test_a_list_that_never_ends_is_given_up(tokens: str, names: str, pages: int, what: str) -> None:
    driver = MachineDriver(policy=SMALL)
    for number in range(pages):
        request = driver.request()
        assert ("continue" in request.query) is (number > 0)
        token = str(number) if tokens == "new" else tokens[number]
        name = f"n{number}" if names == "new" else names[number % len(names)] if names else ""
        driver.page(pod_list({f"a/{name}": 5} if name else {}, 9, token=token))
    other_way, notice = driver.notices
    assert other_way.fields["way"] == "whole list"
    assert notice.kind.name == "OUTAGE_BEGAN"
    assert notice.fields["failure"] == "endless"
    assert "/api/v1/pods: " in str(notice.fields["detail"])
    assert what in str(notice.fields["detail"])
    assert driver.pause() > 0
    assert driver.request().query == {}
    assert driver.counters.errors["endless"] == 1
    driver.page(pod_list({"a/x": 5}, 9))
    assert driver.sink.current_status is SyncStatus.IN_SYNC
    assert driver.sink.map == {"a/x": "5"}


def test_a_list_of_too_many_pages_or_minutes_is_given_up() -> None:
    for seconds, pages, what in ((1.0, 20, "more than 20 pages"), (8.0, 9, "takes more than 60 s")):
        driver = MachineDriver(policy=policy.WatchPolicy(use_watch_list=False, list_pages_max=20, list_max_seconds=60))
        for number in range(pages):
            assert driver.notices == []
            driver.request()
            driver.now += seconds
            driver.page(pod_list({f"a/{number}": 5}, 9, token=str(number)))
        _, notice = driver.notices
        assert what in str(notice.fields["detail"])


def test_pages_of_a_list_without_end_are_no_success() -> None:
    driver = MachineDriver(policy=policy.WatchPolicy(use_watch_list=False, list_max_seconds=60))
    driver.request()
    driver.page(pod_list({"a/1": 5}, 9))
    synced_at = driver.now
    driver.request()
    driver.refused(410, "Expired")
    number = 0
    while "waiting" not in driver.sink.log:
        number += 1
        driver.request(within=60)
        driver.now += 7.0
        driver.page(pod_list({f"a/{number}": 5}, 9, token=str(number)))
        assert driver.now < synced_at + 700


def test_more_objects_than_the_limit_are_an_error() -> None:
    driver = MachineDriver(policy=policy.WatchPolicy(objects_max=3))
    driver.sync({"a/1": 5, "a/2": 6}, 9)
    driver.lines(event("ADDED", "a/3", 10), event("MODIFIED", "a/1", 11))
    assert driver.is_streaming()
    driver.lines(event("ADDED", "a/4", 12))
    assert not driver.is_streaming()
    assert sorted(driver.sink.map) == ["a/1", "a/2", "a/3"]
    [notice] = driver.notices
    assert (notice.fields["failure"], notice.fields["detail"]) == ("endless", "/api/v1/pods: more than 3 objects")


def test_a_watch_that_the_server_does_not_end_is_left_and_renewed() -> None:
    driver = MachineDriver()
    request = driver.request()
    driver.accepted()
    driver.lines(bookmark(9, ends_initial=True))
    version = 9
    while driver.is_streaming():
        driver.now += 30
        version += 1
        driver.lines(event("MODIFIED", "a/1", version))
        driver.tick()
        assert driver.now <= 1000 + request.timeout_seconds + 60
    assert driver.now >= 1000 + request.timeout_seconds + driver.policy.watch_overtime_seconds
    assert driver.request(within=0).query["resourceVersion"] == str(version)
    assert (driver.counters.renewals, driver.counters.stream_breaks) == (1, 0)


def test_a_stream_without_any_event_is_lost_after_600_s() -> None:
    driver = MachineDriver(policy=policy.WatchPolicy(watch_seconds_min=5000, watch_seconds_max=5000))
    driver.sync({"a/1": 5}, 9)
    driver.stay_healthy()
    settled_at = driver.now
    while driver.is_streaming():
        deadline = driver.machine.deadline
        assert deadline is not None
        driver.now = deadline
        driver.tick()
    assert driver.now == settled_at + driver.policy.lost_seconds
    assert driver.sink.take() == ["waiting"]


def test_a_type_that_cannot_be_watched_is_polled_without_status_changes() -> None:
    driver = MachineDriver()
    driver.request()
    driver.refused(405, "MethodNotAllowed")
    driver.request()
    driver.page(pod_list({"a/1": 5}, 9))
    driver.request()
    driver.refused(405, "MethodNotAllowed")
    assert driver.notice_kinds() == ["NO_WATCH_LIST", "NO_WATCH"]
    driver.sink.take()
    assert driver.pause() == driver.policy.poll_seconds
    assert driver.request().kind is RequestKind.LIST
    driver.page(pod_list({"a/2": 10}, 11))
    assert driver.pause() == driver.policy.poll_seconds
    assert driver.sink.take() == ["list a/2@10", "delete a/1"]


def test_each_object_without_usable_name_is_left_out_and_reported() -> None:
    driver = MachineDriver()
    driver.sync({}, 9)
    bad: list[dict[str, Any]] = [{}, {"name": "x/y"}, {"name": "n" * 254}, {"name": "x", "resourceVersion": "9" * 129}]
    for metadata in bad:
        driver.lines(b'{"type":"ADDED","object":' + str({"metadata": metadata}).replace("'", '"').encode() + b"}")
    assert driver.is_streaming()
    assert driver.sink.take() == []
    assert driver.counters.objects_rejected == 4
    assert [skipped.name for skipped in driver.sink.skipped_objects] == ["", "x/y", "n" * 80, "x"]
    assert {skipped.reason for skipped in driver.sink.skipped_objects} == {"no-identity"}


def bad_object(name: str, version: int) -> bytes:
    return b'{"metadata":{"name":"%s","namespace":"a","resourceVersion":"%d"},"x":NaN}' % (name.encode(), version)


@pytest.mark.parametrize("type", ["ADDED", "MODIFIED", "DELETED"])
def test_a_bad_object_of_a_watch_is_absent_and_the_stream_goes_on(type: str) -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5, "a/2": 6}, 9)
    for name in "134":
        driver.lines(b'{"type":"%s","object":%s}' % (type.encode(), bad_object(name, 10)))
    driver.lines(event("MODIFIED", "a/2", 11))
    assert driver.is_streaming()
    assert driver.sink.take() == ["delete a/1", "event a/2@11"]
    assert driver.sink.current_status is SyncStatus.IN_SYNC
    assert [(skipped.name, skipped.reason) for skipped in driver.sink.skipped_objects] == [
        ("1", "undecodable"),
        ("3", "undecodable"),
        ("4", "undecodable"),
    ]
    assert driver.counters.stream_breaks == 0
    driver.lines(event("MODIFIED", "a/1", 12))
    assert driver.sink.take() == ["event a/1@12"]


def test_a_bad_object_of_initial_events_is_swept_at_their_end() -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5, "a/2": 6}, 9)
    driver.lines(error_event(410, "Expired"))
    driver.request(within=1)
    driver.accepted()
    driver.lines(b'{"type":"ADDED","object":%s}' % bad_object("1", 20), event("ADDED", "a/2", 6))
    assert driver.sink.take() == ["resync"]
    driver.lines(bookmark(30, ends_initial=True))
    assert driver.sink.take() == ["delete a/1", "in-sync"]


def test_a_bad_object_of_a_page_is_swept_and_the_type_is_in_sync() -> None:
    driver = without_watch_list()
    driver.request()
    driver.page(pod_list({"a/1": 5, "a/2": 6}, 9))
    driver.sink.take()
    driver.request()
    driver.refused(410, "Expired")
    driver.request(within=1)
    driver.split_page(pod_list({"a/2": 6}, 19).replace(b'"items":[', b'"items":[' + bad_object("1", 10) + b","))
    assert driver.sink.take() == ["resync", "delete a/1", "in-sync"]
    assert [skipped.name for skipped in driver.sink.skipped_objects] == ["1"]


@pytest.mark.parametrize(
    ("member", "wrong"), [("kind", "Node"), ("kind", "Table"), ("apiVersion", "v2"), ("apiVersion", "apps/v1")]
)
def test_objects_of_another_kind_are_left_out(member: str, wrong: str) -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5, "a/2": 6}, 9)
    alien = {**pod("a/1", 10), member: wrong}
    unnamed = {key: value for key, value in pod("a/2", 13).items() if key not in ("kind", "apiVersion")}
    events = [("MODIFIED", alien), ("ADDED", alien), ("DELETED", alien)]
    driver.lines(*(json_bytes({"type": type, "object": value}) for type, value in events))
    assert driver.sink.take() == []
    assert [(skipped.name, skipped.reason) for skipped in driver.sink.skipped_objects] == [("1", "wrong-kind")] * 3
    assert wrong in driver.sink.skipped_objects[0].detail
    assert driver.is_streaming()
    driver.lines(event("MODIFIED", "a/1", 11), json_bytes({"type": "DELETED", "object": unnamed}))
    assert driver.sink.take() == ["event a/1@11", "delete a/2"]
    assert len(driver.sink.skipped_objects) == 3


def test_items_of_another_kind_in_a_list_are_left_out_and_swept() -> None:
    driver = without_watch_list()
    driver.request()
    driver.page(pod_list({"a/1": 5, "a/2": 6}, 9))
    driver.sink.take()
    driver.request()
    driver.refused(410, "Expired")
    driver.request(within=1)
    alien = json_bytes({**pod("a/1", 10), "kind": "Secret"})
    driver.page(pod_list({"a/2": 6}, 19).replace(b'"items":[', b'"items":[' + alien + b","))
    assert driver.sink.take() == ["resync", "delete a/1", "in-sync"]
    assert [skipped.reason for skipped in driver.sink.skipped_objects] == ["wrong-kind"]


def test_a_sweep_works_in_slices_and_comes_before_other_events() -> None:
    driver = MachineDriver(policy=policy.WatchPolicy(slice_items=2))
    driver.sync({f"a/{index}": 5 for index in range(5)}, 9)
    driver.lines(error_event(410, "Gone"))
    driver.request(within=1)
    driver.accepted()
    driver.machine.line(driver.now, bookmark(20, ends_initial=True))
    assert driver.machine.sweep(driver.now)
    assert len(driver.sink.map) == 3
    assert driver.sink.current_status is SyncStatus.RESYNC
    driver.machine.line(driver.now, event("ADDED", "a/0", 21))
    assert driver.sink.map == {"a/0": "21"}
    assert driver.sink.take()[-2:] == ["in-sync", "event a/0@21"]


def test_an_unreadable_error_body_is_shortened_for_the_log() -> None:
    driver = MachineDriver()
    driver.request()
    driver.machine.refused(driver.now, 503, body=b"<html>" + b"x" * 100_000)
    [notice] = driver.notices
    assert len(str(notice.fields["detail"])) <= 400
    assert "HTTP 503: <html>" in str(notice.fields["detail"])
    assert status(503)


def test_an_optional_type_that_may_not_be_read_is_in_sync_and_keeps_what_is_known() -> None:
    driver = MachineDriver(policy=policy.WatchPolicy(is_optional=True))
    driver.request()
    driver.refused(403, "Forbidden", "no")
    assert driver.sink.take() == ["in-sync"]
    [notice] = driver.notices
    assert notice.kind is requests.NoticeKind.FORBIDDEN
    assert 'missing RBAC rule: verb "watch" on resource "pods"' in str(notice.fields["detail"])
    assert driver.pause() == driver.policy.absent_seconds
    driver.request()
    driver.refused(403, "Forbidden", "no")
    assert driver.notices == [notice]
    driver.pause()
    driver.sync({"a/1": 5}, 9)
    driver.sink.take()
    driver.ended()
    for _ in range(50):  # half an hour, in which a type that is missed would be lost
        driver.request(within=driver.policy.absent_seconds)
        driver.refused(403, "Forbidden", "no")
    assert driver.sink.take() == []
    assert driver.sink.map.keys() == {"a/1"}
    assert driver.machine.status is SyncStatus.IN_SYNC


def test_objects_are_unconfirmed_while_the_api_server_fails_or_is_silent() -> None:
    driver = MachineDriver()
    assert not driver.machine.is_unconfirmed(driver.now)  # waiting says it all
    driver.sync({"a/1": 5}, 9)
    assert not driver.machine.is_unconfirmed(driver.now + driver.policy.unconfirmed_seconds)
    assert driver.machine.is_unconfirmed(driver.now + driver.policy.unconfirmed_seconds + 1)
    driver.now += 1
    driver.ended(is_truncated=True)
    assert not driver.machine.is_unconfirmed(driver.now)  # a stream may break
    driver.request()
    driver.failed()
    assert driver.machine.is_unconfirmed(driver.now)
    driver.request(within=60)
    driver.accepted()
    driver.lines(bookmark(12))
    assert not driver.machine.is_unconfirmed(driver.now)
