"""What goes wrong between a watcher and its API server, as transcripts: missing types, refusals, outages, bad input."""

from typing import Any

import pytest

from cache.watch import policy, requests
from cache.watch.policy import Failure
from cache.watch.requests import RequestKind
from protocol.messages import SyncStatus
from tests.harness.watch_harness import Hand, bookmark, error_event, event, pod_list, status

LIST_ONLY = {"a/1": 5, "a/2": 6}


def without_watch_list() -> Hand:
    hand = Hand()
    hand.request()
    hand.refused(
        422, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
    )
    hand.told()
    return hand


def test_a_type_that_is_not_installed_is_in_sync_and_looked_for() -> None:
    hand = Hand()
    hand.request()
    hand.refused(404)
    assert hand.sink.take() == ["in-sync"]
    assert hand.told() == ["ABSENT"]
    for _ in range(3):
        assert hand.pause() == hand.policy.absent_seconds
        assert hand.request().kind is RequestKind.WATCH_LIST
        hand.refused(404)
    assert hand.sink.take() == []
    assert hand.told() == []
    assert hand.sink.confirmations == 4
    hand.pause()
    hand.request()
    hand.accepted()
    hand.lines(event("ADDED", "a/1", 5), bookmark(6, ends_initial=True))
    assert hand.sink.take() == ["resync", "initial a/1@5", "in-sync"]
    assert hand.told() == ["FOUND"]


def test_a_type_that_is_uninstalled_loses_its_objects_but_not_by_a_passing_404() -> None:
    hand = Hand()
    hand.sync({"a/1": 5, "a/2": 6}, 9)
    hand.ended()
    hand.request(within=1)
    hand.refused(404)
    assert hand.sink.take() == []
    hand.request(within=3)
    hand.accepted()  # it was a passing one
    hand.lines(bookmark(10))
    hand.ended()
    hand.request(within=5)
    first = hand.now
    hand.refused(404)
    while not hand.sink.log:
        hand.request(within=5)
        hand.refused(404)
    assert hand.now - first >= hand.policy.absent_grace_seconds
    assert sorted(hand.sink.take()) == ["delete a/1", "delete a/2"]
    assert hand.sink.current_status is SyncStatus.IN_SYNC


def test_forbidden_names_the_missing_rule_once_and_goes_on_waiting() -> None:
    hand = Hand()
    message = 'pods is forbidden: User "x" cannot watch resource "pods" in API group "" at the cluster scope'
    for _ in range(4):
        hand.request(within=30)
        hand.refused(403, "Forbidden", message)
    assert hand.sink.take() == []
    [notice] = hand.notices
    assert notice.kind is requests.NoticeKind.ACTION_NEEDED
    assert notice.level == "error"
    assert 'missing RBAC rule: verb "watch" on resource "pods" in API group ""' in str(notice.fields["detail"])
    assert hand.counters.errors["forbidden"] == 4
    hand.request(within=30)
    hand.accepted()
    hand.lines(bookmark(9, ends_initial=True))
    hand.stay_healthy()
    assert hand.told() == ["ACTION_NEEDED", "OUTAGE_ENDED"]


def test_unauthorized_loads_the_credentials_again_before_the_next_try() -> None:
    hand = Hand()
    hand.request()
    hand.refused(401, "Unauthorized")
    hand.pause()
    assert isinstance(hand.step(), requests.ReloadCredentials)
    assert hand.request().kind is RequestKind.WATCH_LIST


def test_credentials_that_cannot_be_loaded_are_loaded_again_after_a_pause() -> None:
    hand = Hand()
    hand.request()
    hand.refused(401)
    hand.pause()
    assert isinstance(hand.step(), requests.ReloadCredentials)
    hand.failed(Failure.CREDENTIALS, "token file /x: No such file or directory")
    assert hand.pause() > 0
    assert isinstance(hand.step(), requests.ReloadCredentials)


@pytest.mark.parametrize("in_body", [False, True])
def test_retry_after_is_obeyed_within_bounds(in_body: bool) -> None:
    def refuse(hand: Hand, seconds: int) -> float:
        hand.request(within=100)
        if in_body:
            hand.refused(429, "TooManyRequests", retryAfterSeconds=seconds)
        else:
            hand.refused(429, "TooManyRequests", retry_after=seconds)
        return hand.pause()

    hand = Hand()
    assert 7 <= refuse(hand, 7) <= 7.7
    assert 60 <= refuse(hand, 3600) <= 66
    assert hand.counters.errors["throttled"] == 2


def test_back_off_grows_to_its_limit_with_jitter_and_shorter_while_nobody_answers() -> None:
    def pauses(failure: Failure) -> list[float]:
        hand = Hand()
        result = []
        for _ in range(12):
            hand.request()
            hand.failed(failure)
            result.append(hand.pause())
        assert len(set(result)) == 12
        return result

    slow = pauses(Failure.SERVER_ERROR)
    assert 0.25 <= slow[0] <= 0.5
    assert 15 <= slow[-1] <= 30
    assert max(pauses(Failure.NETWORK)) <= 5


def test_an_outage_leaves_the_status_alone_until_it_is_lost_for_600_s() -> None:
    hand = Hand()
    hand.sync({"a/1": 5}, 9)
    hand.stay_healthy()
    last_success = hand.now
    hand.failed(Failure.NETWORK, "reset")
    while hand.sink.current_status is SyncStatus.IN_SYNC:
        hand.request(within=30)
        hand.failed()
        hand.pause()
        assert hand.now - last_success < 700
    assert hand.now - last_success == pytest.approx(600)
    assert hand.sink.take() == ["waiting"]
    assert hand.told() == ["OUTAGE_BEGAN", "LOST"]
    assert hand.sink.map == {"a/1": "5"}
    request = hand.request(within=30)
    assert (request.kind, request.query["resourceVersion"]) == (RequestKind.WATCH_LIST, "9")
    hand.accepted()
    hand.lines(event("ADDED", "a/1", 5), bookmark(70, ends_initial=True))
    assert hand.sink.take() == ["resync", "in-sync"]


def test_broken_json_resumes_and_after_five_times_at_one_version_lists_again() -> None:
    hand = Hand()
    hand.sync({"a/1": 5}, 9)
    kinds = []
    for _ in range(hand.policy.stalls_max):
        assert hand.is_streaming()
        hand.lines(b'{"type":"MODIFIED","object":{"metadata":')
        assert not hand.is_streaming()
        kinds.append(hand.request(within=30).kind)
        hand.accepted()
    assert kinds == [RequestKind.WATCH] * 4 + [RequestKind.WATCH_LIST]
    assert hand.counters.errors["malformed"] == 5
    assert hand.sink.map == {"a/1": "5"}


def test_other_watch_errors_resume() -> None:
    hand = Hand()
    hand.sync({}, 9)
    hand.stay_healthy()
    hand.lines(error_event(500, "InternalError"))
    assert hand.request().kind is RequestKind.WATCH
    assert hand.counters.errors["watch-error"] == 1


def test_a_broken_page_is_read_again_and_a_huge_one_in_smaller_parts() -> None:
    hand = without_watch_list()
    hand.request()
    hand.page(pod_list({"a/1": 5}, 9, token="more"))
    hand.request()
    hand.failed(Failure.MALFORMED, "broken list")
    assert hand.request(within=1).query == {"limit": "500", "continue": "more"}
    hand.failed(Failure.TOO_LARGE, "the list page is larger")
    assert hand.request(within=2).query == {"limit": "250", "continue": "more"}
    hand.page(pod_list({"a/2": 6}, 9))
    assert hand.sink.map == {"a/1": "5", "a/2": "6"}


def test_a_list_that_never_ends_is_given_up() -> None:
    hand = without_watch_list()
    for _ in range(2):
        hand.request()
        hand.page(pod_list({}, 9, token="same"))
    assert hand.request(within=1).query == {"limit": "500"}


def test_a_type_that_cannot_be_watched_is_polled_without_status_changes() -> None:
    hand = Hand()
    hand.request()
    hand.refused(405, "MethodNotAllowed")
    hand.request()
    hand.page(pod_list({"a/1": 5}, 9))
    hand.request()
    hand.refused(405, "MethodNotAllowed")
    assert hand.told() == ["NO_WATCH_LIST", "NO_WATCH"]
    hand.sink.take()
    assert hand.pause() == hand.policy.poll_seconds
    assert hand.request().kind is RequestKind.LIST
    hand.page(pod_list({"a/2": 10}, 11))
    assert hand.pause() == hand.policy.poll_seconds
    assert hand.sink.take() == ["list a/2@10", "delete a/1"]


def test_objects_without_identity_are_left_out_and_told_once() -> None:
    hand = Hand()
    hand.sync({}, 9)
    bad: list[dict[str, Any]] = [{}, {"name": "x/y"}, {"name": "n" * 254}, {"name": "x", "resourceVersion": "9" * 129}]
    for metadata in bad:
        hand.lines(b'{"type":"ADDED","object":' + str({"metadata": metadata}).replace("'", '"').encode() + b"}")
    assert hand.is_streaming()
    assert hand.sink.take() == []
    assert hand.counters.objects_rejected == 4
    assert hand.told() == ["OBJECT_REJECTED"]


def test_a_sweep_goes_slice_by_slice_and_comes_before_anything_else() -> None:
    hand = Hand(policy=policy.WatchPolicy(slice_items=2))
    hand.sync({f"a/{index}": 5 for index in range(5)}, 9)
    hand.lines(error_event(410, "Gone"))
    hand.request(within=1)
    hand.accepted()
    hand.machine.line(hand.now, bookmark(20, ends_initial=True))
    assert hand.machine.sweep(hand.now)
    assert len(hand.sink.map) == 3
    assert hand.sink.current_status is SyncStatus.RESYNC
    hand.machine.line(hand.now, event("ADDED", "a/0", 21))
    assert hand.sink.map == {"a/0": "21"}
    assert hand.sink.take()[-2:] == ["in-sync", "event a/0@21"]


def test_an_unreadable_error_body_is_cut_and_told() -> None:
    hand = Hand()
    hand.request()
    hand.machine.refused(hand.now, 503, body=b"<html>" + b"x" * 100_000)
    [notice] = hand.notices
    assert len(str(notice.fields["detail"])) <= 400
    assert "HTTP 503: <html>" in str(notice.fields["detail"])
    assert status(503)
