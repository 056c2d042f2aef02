"""What the watch machine does with API servers that never give what it asks for, in virtual time.

No retry repeats for ever what cannot work, and silence that is normal is no failure.
"""

from collections.abc import Callable
from typing import TypeAlias

import pytest

from cache.watch import policy, requests
from cache.watch.policy import Failure
from cache.watch.requests import RequestKind
from cache.watch.states import Watching
from protocol.messages import SyncStatus
from tests.harness.watch_harness import MachineDriver, bookmark, error_event, event, pod_list

PATIENCE_SECONDS = 300.0
OBJECTS = {f"a/{index}": index + 1 for index in range(1200)}
VERSION = 2000

Server: TypeAlias = Callable[[MachineDriver, requests.Request], None]
"""Answers a request. Lists end, and watches are accepted."""


def give_list(driver: MachineDriver, request: requests.Request) -> None:
    """The next page of a server in order, or the whole list."""
    start = int(request.query.get("continue", "0"))
    end = start + int(request.query.get("limit", len(OBJECTS)))
    page = dict(list(OBJECTS.items())[start:end])
    driver.page(pod_list(page, VERSION, token=str(end) if end < len(OBJECTS) else ""))


def run(
    driver: MachineDriver, server: Server, *, until: Callable[[], bool], seconds: float = PATIENCE_SECONDS
) -> list[str]:
    """Let the server answer until a condition holds. Return the requests, in short form."""
    end = driver.now + seconds
    asked: list[str] = []
    while not until():
        assert driver.now < end, f"not within {seconds:g} s: {asked[-30:]}"
        action = driver.action()
        if isinstance(action, requests.Pause):
            driver.now = action.until
            driver.tick()
        elif isinstance(action, requests.Request):
            asked.append(short(action))
            server(driver, action)
    return asked


def short(request: requests.Request) -> str:
    if request.kind is not RequestKind.LIST:
        return str(request.kind.value)
    return "page" if "limit" in request.query else "whole"


def paging(fault: Callable[[MachineDriver, requests.Request], bool]) -> Server:
    """A server without WatchList. The fault says whether it has answered itself."""

    def server(driver: MachineDriver, request: requests.Request) -> None:
        if request.kind is RequestKind.WATCH_LIST:
            driver.refused(422, "Invalid", "sendInitialEvents is forbidden")
        elif request.kind is RequestKind.WATCH:
            driver.accepted()
        elif not fault(driver, request):
            give_list(driver, request)

    return server


def refusing(code: int, reason: str = "", *, only: str) -> Server:
    """Refuses pages with a continue token, or with a limit."""

    def fault(driver: MachineDriver, request: requests.Request) -> bool:
        if only not in request.query:
            return False
        driver.refused(code, reason, "no")
        return True

    return paging(fault)


def failing(failure: Failure, *, only: str) -> Server:
    def fault(driver: MachineDriver, request: requests.Request) -> bool:
        if only not in request.query:
            return False
        driver.now += request.answer_seconds if failure is Failure.DEADLINE else 0.0
        driver.failed(failure, "no")
        return True

    return paging(fault)


def repeats_its_first_page(driver: MachineDriver, request: requests.Request) -> bool:
    if "limit" not in request.query:
        return False
    driver.page(pod_list(dict(list(OBJECTS.items())[:500]), VERSION, token="500"))
    return True


WHOLE_ONLY = [
    pytest.param(refusing(410, "Expired", only="continue"), id="tokens that expire"),
    pytest.param(refusing(500, only="continue"), id="errors"),
    pytest.param(refusing(504, "Timeout", only="continue"), id="timeouts of the server"),
    pytest.param(refusing(429, "TooManyRequests", only="continue"), id="throttling"),
    pytest.param(refusing(400, "BadRequest", only="continue"), id="refused tokens"),
    pytest.param(refusing(414, only="continue"), id="tokens too long for a proxy"),
    pytest.param(refusing(400, "BadRequest", only="limit"), id="refused limits"),
    pytest.param(refusing(503, only="limit"), id="limits that break it"),
    pytest.param(failing(Failure.DEADLINE, only="continue"), id="slow pages"),
    pytest.param(failing(Failure.IDLE, only="limit"), id="silence"),
    pytest.param(failing(Failure.TRUNCATED, only="continue"), id="cut pages"),
    pytest.param(failing(Failure.DISCONNECTED, only="continue"), id="closed connections"),
    pytest.param(failing(Failure.MALFORMED, only="continue"), id="broken pages"),
    pytest.param(failing(Failure.TOO_LARGE, only="limit"), id="pages too large at any limit"),
    pytest.param(paging(repeats_its_first_page), id="the first page for ever"),
]


@pytest.mark.parametrize("server", WHOLE_ONLY)
def test_a_list_that_cannot_be_paged_is_asked_for_whole_once(server: Server) -> None:
    driver = MachineDriver()
    asked = run(driver, server, until=driver.is_streaming, seconds=900)
    assert asked.count("whole") == 1
    assert asked[-2:] == ["whole", "watch"]
    assert len(asked) <= 15
    assert driver.sink.current_status is SyncStatus.IN_SYNC
    assert len(driver.sink.map) == len(OBJECTS)
    assert [notice.fields["way"] for notice in driver.notices if notice.kind.name == "OTHER_WAY"] == ["whole list"]
    # The next list begins with pages again.
    driver.lines(error_event(410, "Expired"))
    assert short(driver.request(within=60)) == "page"


def test_an_expired_token_costs_no_time() -> None:
    driver = MachineDriver()
    before = driver.now
    run(driver, refusing(410, "Expired", only="continue"), until=driver.is_streaming)
    assert driver.now == before


def test_a_whole_list_asks_for_the_version_that_the_pages_asked_for() -> None:
    driver = MachineDriver()
    server = refusing(410, "Expired", only="continue")
    run(driver, server, until=driver.is_streaming)
    driver.lines(error_event(410, "Expired"))
    first = driver.request(within=1)
    give_list(driver, first)
    driver.request()
    driver.refused(410, "Expired")
    whole = driver.request(within=5)
    assert whole.query == {name: first.query[name] for name in ("resourceVersion", "resourceVersionMatch")}


def test_a_list_that_nothing_gives_is_bounded_and_said() -> None:
    driver = MachineDriver()
    asked: list[str] = []
    began_at = driver.now

    def server(driver: MachineDriver, request: requests.Request) -> None:
        asked.append(short(request))
        driver.refused(500, "InternalError", "no")

    run(driver, server, until=lambda: driver.now > began_at + 3600, seconds=4000)
    assert {"watchlist", "page", "whole"} == set(asked)
    assert 3600 / 30 <= len(asked) <= 3600 / 15 + 20
    assert driver.notice_kinds() == ["OUTAGE_BEGAN", "OTHER_WAY", "OTHER_WAY"]


@pytest.mark.parametrize("failure", [Failure.DEADLINE, Failure.TRUNCATED, Failure.TOO_LARGE])
def test_pages_that_are_too_much_become_smaller_and_grow_again(failure: Failure) -> None:
    limits = []

    def fault(driver: MachineDriver, request: requests.Request) -> bool:
        limit = int(request.query.get("limit", len(OBJECTS)))
        limits.append(limit)
        is_good = limit <= 150
        if not is_good:
            driver.failed(failure, "too much")
        return not is_good

    driver = MachineDriver()
    run(driver, paging(fault), until=driver.is_streaming)
    assert limits[:3] == [500, 250, 125]
    assert driver.sink.current_status is SyncStatus.IN_SYNC
    if failure is Failure.TOO_LARGE:
        assert set(limits[3:]) == {125}
    else:
        assert 250 in limits[3:]
    driver.lines(error_event(410, "Expired"))
    assert driver.request(within=60).query["limit"] == "500"


def test_a_whole_list_that_is_too_large_is_asked_for_in_larger_pages() -> None:
    """Tokens live for two pages only."""
    pages: list[int] = []

    def fault(driver: MachineDriver, request: requests.Request) -> bool:
        if "limit" not in request.query:
            driver.failed(Failure.TOO_LARGE, "too large")
            return True
        if "continue" not in request.query:
            pages.append(0)
        pages[-1] += 1
        if pages[-1] > 2:
            driver.refused(410, "Expired", "too old")
        return pages[-1] > 2

    driver = MachineDriver()
    asked = run(driver, paging(fault), until=driver.is_streaming)
    assert asked.count("whole") == 1
    assert pages == [3, 3, 2]
    assert driver.sink.current_status is SyncStatus.IN_SYNC


@pytest.mark.parametrize("code", [429, 500, 501, 503])
def test_a_watch_list_that_is_always_refused_gives_way_to_pages(code: int) -> None:
    def server(driver: MachineDriver, request: requests.Request) -> None:
        if request.kind is RequestKind.WATCH_LIST:
            driver.refused(code, "no")
        elif request.kind is RequestKind.LIST:
            give_list(driver, request)
        else:
            driver.accepted()

    driver = MachineDriver()
    asked = run(driver, server, until=driver.is_streaming)
    assert asked == ["watchlist"] * driver.policy.stalls_max + ["page"] * 3 + ["watch"]


def test_an_outage_of_the_connection_changes_no_request() -> None:
    driver = MachineDriver()
    for _ in range(100):
        request = driver.request(within=60)
        assert request.kind is RequestKind.WATCH_LIST
        driver.failed(Failure.NETWORK)


# A watch that brings nothing.


def ended_at_once(driver: MachineDriver) -> None:
    driver.accepted()
    driver.ended()


def expired_at_once(driver: MachineDriver) -> None:
    driver.accepted()
    driver.lines(error_event(410, "Expired"))


def broken_at_once(driver: MachineDriver) -> None:
    driver.accepted()
    driver.lines(b'{"type":"MODIFIED","object":')


NO_WATCH: list[Callable[[MachineDriver], None]] = [
    ended_at_once,
    expired_at_once,
    broken_at_once,
    lambda driver: driver.refused(410, "Expired"),
    lambda driver: driver.refused(504, "Timeout", "Too large resource version: 9, current: 5"),
    lambda driver: driver.refused(500, "InternalError"),
    lambda driver: driver.refused(400, "BadRequest"),
    lambda driver: driver.failed(Failure.DISCONNECTED),
    lambda driver: driver.failed(Failure.MALFORMED, "compressed"),
]


@pytest.mark.parametrize("fail", NO_WATCH)
def test_a_watch_that_brings_nothing_after_each_list_becomes_a_poll(fail: Callable[[MachineDriver], None]) -> None:
    written = [1]

    def server(driver: MachineDriver, request: requests.Request) -> None:
        if request.kind is RequestKind.WATCH_LIST:
            driver.refused(422)
        elif request.kind is RequestKind.LIST:
            written[0] += 1
            driver.page(pod_list({"a/1": written[0]}, written[0]))
        elif is_broken:
            fail(driver)
        else:
            driver.accepted()

    driver = MachineDriver()
    is_broken = True
    run(driver, server, until=lambda: written[0] > 10, seconds=1000)
    began_at, lists, changes = driver.now, driver.counters.lists, len(driver.sink.log)
    assert driver.notice_kinds().count("NO_WATCH") == 1
    run(driver, server, until=lambda: driver.now > began_at + 6 * 3600, seconds=7 * 3600)
    assert driver.counters.lists - lists >= 6 * 60  # within a minute
    assert driver.counters.lists - lists <= 6 * 3600 / 15
    assert all(line.startswith("list ") for line in driver.sink.log[changes:])  # no change of the status
    assert driver.now - driver.counters.last_confirmed <= 60
    assert driver.notice_kinds() == []
    # The watch works again.
    is_broken = False
    run(driver, server, until=driver.is_streaming)
    driver.lines(event("MODIFIED", "a/1", 100_000))
    assert isinstance(driver.machine.state, Watching)
    driver.stay_healthy()
    assert driver.notice_kinds() == ["OUTAGE_ENDED"]


def test_throttling_and_restarts_keep_the_position_of_a_watch() -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5}, 9)
    driver.stay_healthy()
    driver.ended()
    for code in [503] * 8 + [429] * 8:
        assert driver.request(within=60).kind is RequestKind.WATCH
        driver.refused(code)
    assert driver.request(within=60).query["resourceVersion"] == "9"


# Silence that is normal.


def a_day(driver: MachineDriver, *, bookmark_seconds: float, bookmarks: int, cut_seconds: float) -> float:
    """Let a quiet type be watched for a day. Return the longest time without a confirmation."""
    end = driver.now + 86_400
    version = 9
    longest = 0.0
    while driver.now < end:
        request = driver.request(within=5)
        assert request.kind is RequestKind.WATCH
        driver.accepted()
        driver.settle()
        longest = max(longest, driver.now - driver.counters.last_confirmed)
        opened_at = heard_at = driver.now
        while driver.is_streaming():
            bookmark_at = heard_at + bookmark_seconds if bookmarks else float("inf")
            silent_at = heard_at + request.read_timeout_seconds
            ended_at = opened_at + min(request.timeout_seconds, cut_seconds)
            deadline = driver.machine.deadline
            assert deadline is not None
            driver.now = min(deadline, bookmark_at, silent_at, ended_at)
            longest = max(longest, driver.now - driver.counters.last_confirmed)
            if driver.now == ended_at:
                driver.ended()
            elif driver.now == bookmark_at:
                bookmarks -= 1
                version += 1
                heard_at = driver.now
                driver.lines(bookmark(version))
            elif driver.now == silent_at:
                driver.failed(Failure.IDLE, "no byte for too long")
            else:
                driver.tick()
    return longest


@pytest.mark.parametrize(
    ("bookmarks", "cut_seconds"), [(0, 1e9), (0, 30.0), (0, 100.0), (1_000_000, 1e9), (1_000_000, 59.0), (50, 1e9)]
)
@pytest.mark.parametrize("use_watch_list", [True, False])
def test_a_quiet_type_stays_quiet_and_fresh_for_a_day(bookmarks: int, cut_seconds: float, use_watch_list: bool) -> None:
    driver = MachineDriver(policy=policy.WatchPolicy(use_watch_list=use_watch_list))
    if use_watch_list:
        driver.sync({"a/1": 5}, 9)
        driver.now += driver.policy.quiet_seconds
        driver.failed(Failure.IDLE)
    else:
        driver.request()
        driver.page(pod_list({"a/1": 5}, 9))
    driver.sink.take()
    longest = a_day(driver, bookmark_seconds=62.0, bookmarks=bookmarks, cut_seconds=cut_seconds)
    assert longest < 150  # of the alarm in docs/operations.md
    assert driver.counters.lists == 1
    assert driver.sink.take() == []
    assert driver.notice_kinds() == []
    # The stream in which the bookmarks ended, and the next one.
    assert driver.counters.errors["idle"] == (2 if bookmarks == 50 else 0)
    if cut_seconds == 1e9:
        assert driver.counters.stream_breaks == driver.counters.errors["idle"]
        assert driver.counters.renewals >= 86_400 / 600 - 1


def test_a_stream_that_had_bookmarks_and_falls_silent_is_half_open() -> None:
    driver = MachineDriver()
    driver.sync({}, 9)
    driver.lines(bookmark(10))
    driver.stay_healthy()
    driver.failed(Failure.IDLE)
    assert driver.request().read_timeout_seconds == driver.policy.idle_seconds
    assert (driver.counters.errors["idle"], driver.counters.stream_breaks) == (1, 1)


# Starting API servers, and the length of outages.

INITIALIZING = "storage is (re)initializing"


def test_a_fresh_api_server_is_no_warning() -> None:
    driver = MachineDriver()
    for _ in range(8):
        driver.request(within=10)
        driver.refused(429, "TooManyRequests", INITIALIZING, retry_after=1)
    request = driver.request(within=10)
    give_list(driver, request) if request.kind is RequestKind.LIST else driver.accepted()
    assert not [notice for notice in driver.notices if notice.level != "info"]
    assert driver.counters.errors["starting"] == 8
    assert driver.counters.outages == 0


def test_a_type_that_the_api_server_never_reads_is_said() -> None:
    driver = MachineDriver()
    began_at = driver.now
    while not [notice for notice in driver.notices if notice.kind.name == "OUTAGE_BEGAN"]:
        driver.request(within=10)
        driver.refused(429, "TooManyRequests", INITIALIZING, retry_after=1)
        assert driver.pause() <= driver.policy.connect_backoff_max_seconds
    assert 60 <= driver.now - began_at <= 75


@pytest.mark.parametrize("is_quiet", [True, False])
def test_the_length_of_an_outage_is_true_across_changing_errors(is_quiet: bool) -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5}, 9)
    driver.stay_healthy()
    driver.now += 100
    began_at = driver.now
    driver.ended(is_truncated=True)
    for _ in range(12):
        driver.request(within=60)
        driver.failed(Failure.NETWORK)
    for code, message in [(403, "RBAC"), (404, ""), (503, ""), (429, INITIALIZING), (429, INITIALIZING)]:
        driver.request(within=60)
        driver.refused(code, "", message)
    driver.request(within=60)
    seconds = driver.now - began_at
    driver.accepted()
    if not is_quiet:
        driver.lines(bookmark(10))
    driver.now += 1
    driver.tick()
    driver.stay_healthy()
    ended = driver.notices[-1]
    assert ended.fields["seconds"] == pytest.approx(seconds, abs=0.001)
    assert [notice.kind.name for notice in driver.notices] == ["OUTAGE_BEGAN", "ACTION_NEEDED", "OUTAGE_ENDED"]


def test_an_outage_that_began_with_a_start_has_its_whole_length() -> None:
    driver = MachineDriver()
    began_at = driver.now
    for code, message in [(429, INITIALIZING), (500, "no")]:
        driver.request(within=60)
        driver.refused(code, "", message)
    driver.request(within=60)
    seconds = driver.now - began_at
    driver.accepted()
    driver.lines(bookmark(9, ends_initial=True))
    driver.stay_healthy()
    assert driver.notices[-1].fields["seconds"] == pytest.approx(seconds, abs=0.001)


# Types that may not be read.


def test_a_forbidden_type_that_is_not_listed_is_not_installed() -> None:
    driver = MachineDriver()
    driver.request()
    driver.refused(403, "Forbidden", "no", is_listed=False)
    assert driver.sink.take() == ["in-sync"]
    [notice] = driver.notices
    assert (notice.kind.name, notice.level) == ("ABSENT", "info")
    assert "does not list it" in str(notice.fields["reason"])
    for _ in range(100):
        assert driver.pause() == driver.policy.absent_seconds
        driver.request()
        driver.refused(403, "Forbidden", "no", is_listed=False)
    assert driver.notices == [notice]
    # It is installed, but may not be read.
    driver.pause()
    driver.request()
    driver.refused(403, "Forbidden", "no", is_listed=True)
    assert driver.notices[-1].kind is requests.NoticeKind.ACTION_NEEDED
    assert 'missing RBAC rule: verb "watch" on resource "pods"' in str(driver.notices[-1].fields["detail"])
    # It may be read.
    driver.request(within=60)
    driver.accepted()
    driver.lines(event("ADDED", "a/1", 5), bookmark(9, ends_initial=True))
    assert driver.sink.map == {"a/1": "5"}
    assert driver.machine.status is SyncStatus.IN_SYNC


def test_a_forbidden_type_of_which_nothing_is_known_is_not_in_sync() -> None:
    driver = MachineDriver()
    for is_listed in (None, True, None):
        driver.request(within=60)
        driver.refused(403, "Forbidden", "no", is_listed=is_listed)
    assert driver.sink.take() == []
    [notice] = driver.notices
    assert notice.kind is requests.NoticeKind.ACTION_NEEDED
    assert "whether the type is installed is unknown: 503" in str(notice.fields["detail"])


def test_a_removed_type_that_may_not_be_read_loses_its_objects_after_a_while() -> None:
    driver = MachineDriver()
    driver.sync({"a/1": 5}, 9)
    driver.ended()
    driver.request()
    first = driver.now
    driver.refused(403, is_listed=False)
    assert driver.sink.take() == []
    while driver.sink.map:
        driver.request(within=5)
        driver.refused(403, is_listed=False)
    assert driver.now - first >= driver.policy.absent_grace_seconds
    assert driver.machine.status is SyncStatus.IN_SYNC


def test_an_optional_type_that_is_not_installed_is_no_warning() -> None:
    driver = MachineDriver(policy=policy.WatchPolicy(is_optional=True))
    driver.request()
    driver.refused(403, is_listed=False)
    assert driver.notice_kinds() == ["ABSENT"]
    assert driver.machine.status is SyncStatus.IN_SYNC
