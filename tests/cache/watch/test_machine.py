"""The machine's story, state by state, in virtual time."""

import pytest

from cache.watch.requests import RequestKind
from protocol.messages import SyncStatus
from tests.harness.watch_harness import Hand, bookmark, error_event, event, pod_list

LIST_ONLY = {"a/1": 5, "a/2": 6}


def without_watch_list() -> Hand:
    hand = Hand()
    hand.request()
    hand.refused(
        422, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
    )
    hand.told()
    return hand


def test_the_first_list_is_a_watch_that_begins_with_everything() -> None:
    hand = Hand()
    request = hand.request()
    assert request.kind is RequestKind.WATCH_LIST
    assert request.path == "/api/v1/pods"
    assert request.query["sendInitialEvents"] == "true"
    assert request.query["resourceVersionMatch"] == "NotOlderThan"
    assert request.query["allowWatchBookmarks"] == "true"
    assert "resourceVersion" not in request.query
    assert 300 <= int(request.query["timeoutSeconds"]) <= 600
    assert hand.sink.take() == []
    hand.accepted()
    hand.lines(event("ADDED", "a/1", 5), event("ADDED", "a/2", 3))
    assert hand.sink.take() == ["resync", "initial a/1@5", "initial a/2@3"]
    assert hand.sink.confirmations == 0
    hand.lines(bookmark(9, ends_initial=True))
    assert hand.sink.take() == ["in-sync"]
    assert hand.sink.confirmations == 1
    hand.lines(event("MODIFIED", "a/1", 10), event("DELETED", "a/2", 11), bookmark(12))
    assert hand.sink.take() == ["event a/1@10", "delete a/2"]
    assert hand.counters.last_confirmed == hand.now


def test_raw_is_the_object_as_written() -> None:
    hand = Hand()
    hand.request()
    hand.accepted()
    metadata = b'{"name":"x","namespace":"a","resourceVersion":"5"}'
    raw = b'{"kind":"Pod","apiVersion":"v1", "metadata":' + metadata + b',"z":"\\u00e9}"}'
    hand.lines(b'{"type":"ADDED","object":' + raw + b"}")
    hand.lines(b' {"object" : ' + raw.replace(b'"5"', b'"6"') + b', "type":"ADDED"}')
    assert [event.raw for event in hand.sink.events] == [raw, raw.replace(b'"5"', b'"6"')]


def test_without_watch_list_pages_are_read() -> None:
    hand = without_watch_list()
    request = hand.request()
    assert request.kind is RequestKind.LIST
    assert request.query == {"limit": "500"}
    hand.page(pod_list({"a/1": 5}, 9, token="more"))
    assert hand.sink.take() == ["resync", "list a/1@5"]
    assert hand.request().query == {"limit": "500", "continue": "more"}
    hand.page(pod_list({"a/2": 6}, 9))
    assert hand.sink.take() == ["list a/2@6", "in-sync"]
    request = hand.request()
    assert request.kind is RequestKind.WATCH
    assert request.query["resourceVersion"] == "9"
    assert "sendInitialEvents" not in request.query
    assert (hand.counters.lists, hand.counters.list_pages) == (2, 2)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (422, "Invalid"),
        (400, "bad parameter"),
        (403, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"),
    ],
)
def test_a_server_without_watch_list_is_asked_once(code: int, message: str) -> None:
    hand = Hand()
    hand.request()
    hand.refused(code, "Invalid", message)
    assert hand.told() == ["NO_WATCH_LIST"]
    assert hand.request().kind is RequestKind.LIST
    hand.page(pod_list({}, 9))
    hand.request()
    hand.refused(410, "Expired")
    assert hand.request().kind is RequestKind.LIST


def test_a_server_that_ignores_send_initial_events_is_found_out_by_its_silence() -> None:
    hand = Hand()
    hand.request()
    hand.accepted()
    hand.now += 1
    hand.lines(event("ADDED", "a/1", 5))
    assert hand.machine.deadline == hand.now + hand.policy.initial_quiet_seconds
    hand.now += hand.policy.initial_quiet_seconds
    hand.tick()
    assert not hand.is_streaming()
    assert hand.told() == ["NO_WATCH_LIST"]
    assert hand.request().kind is RequestKind.LIST
    hand.page(pod_list({"a/1": 5}, 9))
    assert hand.sink.take() == ["resync", "initial a/1@5", "in-sync"]
    assert hand.counters.objects_unchanged == 1


def test_a_server_that_ignores_send_initial_events_and_never_falls_silent_is_found_out_too() -> None:
    hand = Hand()
    hand.request()
    hand.accepted()
    began_at = hand.now
    version = 5
    while hand.is_streaming():
        hand.now += 5
        version += 1
        hand.lines(event("MODIFIED", "a/1", version))
        hand.tick()
    assert hand.now - began_at == hand.policy.initial_max_seconds
    assert hand.request().kind is RequestKind.LIST


def test_initial_events_that_break_begin_anew_and_give_way_to_lists() -> None:
    hand = Hand()
    for _ in range(hand.policy.initial_breaks_max):
        assert hand.request(within=60).kind is RequestKind.WATCH_LIST
        hand.accepted()
        hand.lines(event("ADDED", "a/1", 5))
        hand.ended(is_truncated=True)
    assert hand.request(within=60).kind is RequestKind.LIST
    assert hand.told() == ["OUTAGE_BEGAN", "NO_WATCH_LIST"]


def test_a_broken_stream_is_resumed_at_once_from_the_last_version() -> None:
    hand = Hand()
    hand.sync({"a/1": 5}, 9)
    hand.stay_healthy()
    hand.lines(event("MODIFIED", "a/1", 12))
    hand.ended(is_truncated=True)
    request = hand.request(within=0)
    assert (request.kind, request.query["resourceVersion"]) == (RequestKind.WATCH, "12")
    hand.accepted()
    assert hand.counters.resumes == 0
    hand.lines(event("MODIFIED", "a/1", 12), event("MODIFIED", "a/1", 13))
    assert hand.sink.take() == ["event a/1@12", "event a/1@13"]
    assert (hand.counters.resumes, hand.counters.stream_breaks, hand.counters.objects_unchanged) == (1, 1, 1)
    assert hand.told() == []


def test_a_stream_that_reached_its_timeout_goes_on_without_ado() -> None:
    hand = Hand()
    request = hand.request()
    hand.accepted()
    hand.lines(bookmark(9, ends_initial=True))
    hand.now += request.timeout_seconds - 1
    hand.ended()
    assert hand.request(within=0).query["resourceVersion"] == "9"
    assert (hand.counters.renewals, hand.counters.stream_breaks) == (1, 0)


def test_a_server_that_cuts_each_stream_is_asked_less_often_and_logged_once() -> None:
    hand = Hand()
    hand.sync({"a/1": 5}, 9)
    hand.stay_healthy()
    pauses = []
    for version in range(10, 22):
        hand.lines(event("MODIFIED", "a/1", version))
        hand.ended(is_truncated=True)
        before = hand.now
        assert hand.request(within=30).kind is RequestKind.WATCH
        pauses.append(hand.now - before)
        hand.accepted()
    assert pauses[0] == 0.0
    assert pauses[1] <= 1.0
    assert pauses[-1] >= 15.0
    assert hand.told() == ["OUTAGE_BEGAN"]
    hand.lines(event("MODIFIED", "a/1", 30))
    assert hand.told() == []
    hand.stay_healthy()
    assert hand.told() == ["OUTAGE_ENDED"]
    assert hand.sink.current_status is SyncStatus.IN_SYNC


@pytest.mark.parametrize("how", ["http", "event"])
def test_410_lists_again_and_sends_differences_only(how: str) -> None:
    hand = Hand()
    hand.sync({"a/1": 5, "a/2": 6, "a/3": 7}, 9)
    hand.stay_healthy()
    if how == "http":
        hand.ended()
        hand.request()
        hand.refused(410, "Expired", "too old resource version: 9 (50)")
    else:
        hand.lines(error_event(410, "Expired"))
        assert not hand.is_streaming()
    assert hand.sink.take() == []
    request = hand.request(within=1)
    assert request.kind is RequestKind.WATCH_LIST
    assert request.query["resourceVersion"] == "9"
    hand.accepted()
    hand.lines(event("ADDED", "a/1", 5), event("ADDED", "a/3", 20), event("ADDED", "a/4", 21))
    assert hand.sink.take() == ["resync", "initial a/3@20", "initial a/4@21"]
    hand.lines(bookmark(30, ends_initial=True))
    assert hand.sink.take() == ["delete a/2", "in-sync"]
    assert hand.sink.map == {"a/1": "5", "a/3": "20", "a/4": "21"}
    assert hand.counters.relists_410 == 1
    assert hand.counters.objects_swept == 1
    assert hand.told() == ["RELIST"]
    assert hand.sink.events[-1].raw is None


def test_an_expired_continue_token_restarts_the_list() -> None:
    hand = without_watch_list()
    hand.request()
    hand.page(pod_list({"a/1": 5, "a/2": 5}, 9, token="old"))
    hand.request()
    hand.refused(410, "Expired", "The provided continue parameter is too old")
    request = hand.request(within=1)
    assert request.query == {"limit": "500"}
    hand.page(pod_list({"a/2": 5}, 12))
    assert hand.sink.take() == ["resync", "list a/1@5", "list a/2@5", "delete a/1", "in-sync"]


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        (410, "Expired", "too old"),
        (410, "Expired", "Too large resource version"),
        (504, "Timeout", "Too large resource version: 9, current: 5"),
    ],
)
def test_a_list_whose_version_is_not_known_is_made_without_one_and_trusts_no_version(
    code: int, reason: str, message: str
) -> None:
    hand = Hand()
    hand.sync({"a/1": 5}, 9)
    hand.stay_healthy()
    hand.lines(error_event(410, "Expired"))
    assert hand.request(within=1).query["resourceVersion"] == "9"
    hand.refused(code, reason, message)
    request = hand.request(within=1)
    assert "resourceVersion" not in request.query
    hand.accepted()
    # The same version may stand for another content where the history went back.
    hand.lines(event("ADDED", "a/1", 5), bookmark(6, ends_initial=True))
    assert hand.sink.take() == ["resync", "initial a/1@5", "in-sync"]
    hand.stay_healthy()
    hand.ended(is_truncated=True)
    assert hand.request().query["resourceVersion"] == "6"


def test_bookmarks_that_go_back_confirm_nothing_and_in_the_end_list_again() -> None:
    hand = Hand()
    hand.sync({"a/1": 50}, 90)
    hand.stay_healthy()
    confirmations = hand.sink.confirmations
    for _ in range(hand.policy.backward_bookmarks_max - 1):
        hand.lines(bookmark(40))
    assert hand.is_streaming()
    hand.lines(bookmark(41))
    assert not hand.is_streaming()
    assert hand.sink.confirmations == confirmations
    assert "resourceVersion" not in hand.request(within=1).query
