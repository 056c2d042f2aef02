"""The watch driver with a scripted API server on a real socket."""

import asyncio
import contextlib
import dataclasses
import gzip

import pytest
import structlog
from aiohttp import web

from cache import objects
from cache.kube import access, api, watcher
from protocol.messages import SyncStatus
from tests.harness.scripted_server import (
    FAST,
    IMPATIENT,
    NotifyingSink,
    ScriptedServer,
    eventually,
    lines,
    session_to,
    watching,
)
from tests.harness.watch_harness import PODS, bookmark, error_event, event, json_bytes, pod, pod_list, status

NO_WATCH_LIST = status(422, "Invalid", "sendInitialEvents is forbidden for watch")


def initial(version: int, **objects: int) -> bytes:
    events = [event("ADDED", f"a/{name}", object_version) for name, object_version in objects.items()]
    return lines(*events, bookmark(version, ends_initial=True))


async def test_a_watch_list_in_small_chunks_gives_objects_and_status(server: ScriptedServer) -> None:
    data = initial(9, x=5, y=6) + lines(event("MODIFIED", "a/x", 10), event("DELETED", "a/y", 11))
    server.script = [server.stream(*(data[start : start + 7] for start in range(0, len(data), 7)))]
    async with watching(server) as (subject, sink):
        await sink.until_map({"a/x": "10"})
        await sink.until(lambda: subject.counters.last_confirmed is not None)
        assert sink.take() == ["resync", "initial a/x@5", "initial a/y@6", "in-sync", "event a/x@10", "delete a/y"]
        assert sink.events[0].raw == json_bytes(pod("a/x", 5))
        assert subject.status is SyncStatus.IN_SYNC
        assert subject.object_count == 1
    assert server.requests[0].query["sendInitialEvents"] == "true"
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


async def test_pages_are_listed_without_watch_list(server: ScriptedServer) -> None:
    objects = {f"a/{index}": index + 1 for index in range(10)}
    first, second = dict(list(objects.items())[:7]), dict(list(objects.items())[7:])
    token = "a+b/c= &?"
    server.script = [
        server.body(NO_WATCH_LIST, status=422),
        server.body(pod_list(first, 20, token=token)),
        server.body(pod_list(second, 20)),
        server.stream(lines(event("MODIFIED", "a/0", 21))),
    ]
    expected = {identity: str(version) for identity, version in objects.items()} | {"a/0": "21"}
    async with watching(server) as (subject, sink):
        await sink.until_map(expected)
        assert subject.counters.list_pages == 2
    assert server.requests[2].query["continue"] == token
    assert server.requests[3].query["resourceVersion"] == "20"


async def test_410_and_a_relist_send_differences_only(server: ScriptedServer) -> None:
    server.script = [
        server.stream(initial(9, x=5, y=6), lines(error_event(410, "Expired"))),
        server.body(status(410, "Expired"), status=410),
        server.stream(initial(30, x=5, z=20)),
    ]
    async with watching(server) as (subject, sink):
        await sink.until_map({"a/x": "5", "a/z": "20"})
        assert subject.counters.relists_410 == 1
        assert "delete a/x" not in sink.log
    assert server.requests[1].query["resourceVersion"] == "9"
    assert "resourceVersion" not in server.requests[2].query


async def test_a_type_that_is_installed_later_is_listed(server: ScriptedServer) -> None:
    server.script = [server.body(b"404 page not found\n", status=404)] * 3 + [server.stream(initial(9, x=5))]
    async with watching(server) as (subject, sink):
        await sink.until_map({"a/x": "5"})
        assert sink.take() == ["in-sync", "resync", "initial a/x@5", "in-sync"]
        assert subject.counters.errors["not-found"] == 3


async def test_refused_requests_are_retried(server: ScriptedServer) -> None:
    server.script = [
        server.body(status(403, "Forbidden"), status=403),
        server.body(b'{"resources":[{"name":"pods/log"},{"name":"pods"}]}'),
        server.body(status(429), status=429, headers={"Retry-After": "1"}),
        server.body(status(500), status=500),
        server.body(b"<html>" + b"x" * 100_000, status=503),
        server.body(b"moved", status=301, headers={"Location": "http://127.0.0.1:1/"}),
        server.body(pod_list({"a/x": 5}, 9)),
    ]
    async with watching(server) as (subject, sink):
        await sink.until_map({"a/x": "5"})
        errors = {name: count for name, count in subject.counters.errors.items() if count}
        assert errors == {"forbidden": 1, "throttled": 1, "server-error": 2, "rejected": 1}
        assert subject.counters.outages == 1


@pytest.mark.parametrize(
    ("broken", "then", "failure"),
    [
        (b'{"type":"MODIFIED","object":{"kind"', "abort", None),
        (b'{"type":"MODIFIED","object":{"kind"', "end", "truncated"),
        (b'{"type":"MODIFIED","object":{"kind"\n', "stay", "malformed"),
        (b"", "end", "truncated"),
        (b"", "stay", "idle"),
    ],
)
async def test_a_broken_stream_resumes(server: ScriptedServer, broken: bytes, then: str, failure: str | None) -> None:
    server.script = [
        server.stream(initial(9, x=5), lines(event("MODIFIED", "a/x", 10), bookmark(10)) + broken, then=then),
        server.stream(lines(event("MODIFIED", "a/x", 11))),
    ]
    async with watching(server, IMPATIENT if failure == "idle" else FAST) as (subject, sink):
        await sink.until_map({"a/x": "11"})
        assert subject.counters.resumes == 1
        assert failure is None or subject.counters.errors[failure] == 1
    assert server.requests[1].query["resourceVersion"] == "10"


async def test_a_silent_stream_of_a_server_without_bookmarks_is_renewed(server: ScriptedServer) -> None:
    quiet = server.stream(then="stay")
    server.script = [server.stream(initial(9, x=5)), quiet, quiet, server.stream(lines(event("MODIFIED", "a/x", 11)))]
    with structlog.testing.capture_logs() as logs:
        async with watching(server, IMPATIENT) as (subject, sink):
            await sink.until_map({"a/x": "11"})
            counters = subject.counters
            assert (counters.renewals, counters.stream_breaks, counters.lists) == (3, 0, 1)
            assert not any(counters.errors.values())
            assert sink.current_status is SyncStatus.IN_SYNC
    assert {entry["log_level"] for entry in logs} == {"info"}
    assert [request.query.get("resourceVersion") for request in server.requests[:4]] == [None, "9", "9", "9"]


async def test_a_request_without_answer_times_out(server: ScriptedServer) -> None:
    server.script = [server.silence(), server.stream(initial(9, x=5))]
    async with watching(server, IMPATIENT) as (subject, sink):
        await sink.until_map({"a/x": "5"})
        assert subject.counters.errors["idle"] == 1


async def test_a_server_that_ignores_send_initial_events_is_listed(server: ScriptedServer) -> None:
    server.script = [server.stream(lines(event("ADDED", "a/x", 5))), server.body(pod_list({"a/x": 5, "a/y": 6}, 9))]
    async with watching(server, IMPATIENT) as (subject, sink):
        await sink.until_map({"a/x": "5", "a/y": "6"})
        assert subject.counters.list_pages == 1


async def test_broken_lists_are_repeated(server: ScriptedServer) -> None:
    whole = pod_list({"a/x": 5}, 9)
    server.script = [
        server.body(NO_WATCH_LIST, status=422),
        server.body(whole[:-5]),
        server.stream(whole[:20], then="abort"),
        server.body(b"x" * 2000),
        server.body(whole),
    ]
    async with watching(server, dataclasses.replace(FAST, max_page_bytes=1000)) as (subject, sink):
        await sink.until_map({"a/x": "5"})
        assert subject.counters.errors["malformed"] == 1
        assert subject.counters.errors["too-large"] == 1
    assert [request.query["limit"] for request in server.requests[1:5]] == ["500", "500", "250", "125"]


async def test_a_line_that_is_too_long_ends_the_stream(server: ScriptedServer) -> None:
    server.script = [server.stream(initial(9, x=5), *[b"x" * 2000] * 500), server.stream(lines(bookmark(10)))]
    async with watching(server, dataclasses.replace(FAST, max_line_bytes=2000)) as (subject, sink):
        await sink.until(lambda: subject.counters.resumes == 1)
        assert subject.counters.errors["too-large"] == 1


async def test_a_restart_of_the_server_is_an_outage_with_two_log_lines(server: ScriptedServer) -> None:
    server.script = [server.stream(initial(9, x=5)), server.stream(lines(event("MODIFIED", "a/x", 10)))]
    with structlog.testing.capture_logs() as logs:
        async with watching(server) as (subject, sink):
            await sink.until_map({"a/x": "5"})
            await server.stop()
            await sink.until(lambda: subject.counters.errors["network"] >= 5)
            assert subject.status is SyncStatus.IN_SYNC
            await server.start()
            await sink.until_map({"a/x": "10"})
            await sink.until(lambda: "watch the resource type again" in str(logs))
            assert subject.counters.outages == 1
    events = [entry["event"] for entry in logs if entry.get("type") == "core/v1/pods"]
    assert events == ["cannot list or watch a resource type", "can list and watch the resource type again"]


async def test_unauthorized_loads_the_credentials_again(server: ScriptedServer) -> None:
    tokens = iter(["old", "new", "newest"])
    now = [0.0]

    async def load() -> access.Access:
        return access.Access(host=server.url, authorization=f"Bearer {next(tokens)}")

    def clock() -> float:
        now[0] += 11.0  # longer than the minimum time between two reloads
        return now[0]

    session = api.KubeApi(load, clock=clock)
    server.script = [server.body(status(401), status=401), server.stream(initial(9, x=5))]
    async with watching(server, session=session) as (subject, sink):
        await sink.until_map({"a/x": "5"})
        assert subject.counters.errors["unauthorized"] == 1
    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer old", "Bearer new"]


async def test_many_lines_let_other_tasks_run_and_give_one_state(server: ScriptedServer) -> None:
    data = lines(*(event("ADDED", f"a/{index}", index + 1) for index in range(5000)), bookmark(9000, ends_initial=True))
    relist = initial(9500)
    server.script = [server.stream(data, lines(error_event(410, "Expired"))), server.stream(relist)]
    async with watching(server) as (subject, sink):
        await sink.until(lambda: subject.counters.events == 5000)
        await sink.until_map({})
        assert subject.counters.objects_swept == 5000
        assert sink.current_status is SyncStatus.IN_SYNC


HASTY = dataclasses.replace(FAST, page_seconds=0.5)
"""Longer than the time between two bytes of a server that drips, shorter than a test's patience."""


async def test_a_list_that_drips_is_given_up_by_name(server: ScriptedServer) -> None:
    server.script = [
        server.body(NO_WATCH_LIST, status=422),
        server.drip(b'{"kind":"PodList","items":['),
        server.body(pod_list({"a/x": 5}, 9)),
    ]
    with structlog.testing.capture_logs() as logs:
        async with watching(server, HASTY) as (subject, sink):
            await sink.until_map({"a/x": "5"})
            assert subject.counters.errors["deadline"] >= 1
    line = next(entry for entry in logs if entry["event"] == "cannot list or watch a resource type")
    assert (line["type"], line["detail"]) == ("core/v1/pods", "/api/v1/pods: no whole answer within 0.5 s")


async def test_headers_that_never_come_are_not_waited_for(server: ScriptedServer) -> None:
    server.script = [server.silence(), server.stream(initial(9, x=5))]
    async with watching(server, HASTY) as (subject, sink):
        await sink.until_map({"a/x": "5"})
        assert subject.counters.errors["deadline"] >= 1


async def test_a_body_of_an_error_that_drips_counts_with_what_has_arrived(server: ScriptedServer) -> None:
    server.script = [server.drip(b"broken", status=500, byte=b"!"), server.stream(initial(9, x=5))]
    with structlog.testing.capture_logs() as logs:
        async with watching(server, dataclasses.replace(FAST, error_body_seconds=0.3)) as (subject, sink):
            await sink.until_map({"a/x": "5"})
            assert subject.counters.errors["server-error"] == 1
    assert "HTTP 500: broken!" in str(logs)


async def test_a_body_of_an_error_is_read_up_to_a_limit(server: ScriptedServer) -> None:
    server.script = [server.stream(*[b"x" * 1000] * 100, then="stay"), server.stream(initial(9, x=5))]
    session = session_to(server)
    await session.start()
    response = await session.get("/", {}, read_timeout_seconds=5.0)
    assert await api.read_beginning(response, 4096, seconds=60.0) == b"x" * 4096
    api.close_response(response)
    await session.close()


async def test_an_event_that_drips_ends_the_stream(server: ScriptedServer) -> None:
    server.script = [
        server.drip(initial(9, x=5) + b'{"type":"MODIFIED"', byte=b"x"),
        server.stream(lines(event("MODIFIED", "a/x", 11))),
    ]
    with structlog.testing.capture_logs() as logs:
        async with watching(server, dataclasses.replace(FAST, line_seconds=0.3)) as (subject, sink):
            await sink.until_map({"a/x": "11"})
            assert subject.counters.errors["deadline"] == 1
            assert sink.current_status is SyncStatus.IN_SYNC
    assert "/api/v1/pods: no whole watch event within 0.3 s" in str(logs)


async def test_a_type_is_lost_while_a_request_waits(server: ScriptedServer) -> None:
    server.script = [server.stream(initial(9, x=5), then="end"), server.silence()]
    policy = dataclasses.replace(FAST, lost_seconds=0.3)
    async with watching(server, policy) as (subject, sink):
        await sink.until(lambda: sink.log[-1:] == ["waiting"])
        assert subject.status is SyncStatus.WAITING
        assert len(server.requests) == 2
        assert subject.counters.errors["idle"] == 0  # the request still waits


@pytest.mark.parametrize(
    "headers",
    [{"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}, {"Content-Encoding": "identity, br"}],
)
async def test_a_compressed_answer_is_refused_and_not_unpacked(server: ScriptedServer, headers: dict[str, str]) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    server.script = [
        server.body(NO_WATCH_LIST, status=422),
        server.body(bomb, headers=headers),
        server.body(pod_list({"a/x": 5}, 9)),
    ]
    with structlog.testing.capture_logs() as logs:
        async with watching(server) as (subject, sink):
            await sink.until_map({"a/x": "5"})
            assert subject.counters.errors["malformed"] == 1
    assert f"/api/v1/pods: the answer has Content-Encoding '{headers['Content-Encoding']}'" in str(logs)


async def test_lists_and_streams_are_asked_for_uncompressed(server: ScriptedServer) -> None:
    """Compression would take the API server's CPU, and an answer that unpacks to more than it seems is refused."""
    server.script = [
        server.body(NO_WATCH_LIST, status=422),
        server.body(pod_list({"a/x": 5}, 9, token="more")),
        server.body(status(410, "Expired"), status=410),
        server.body(pod_list({"a/x": 5, "a/y": 6}, 9)),
        server.stream(lines(event("MODIFIED", "a/x", 10)), then="end"),
        server.body(status(403, "Forbidden"), status=403),
        server.body(b'{"resources":[{"name":"pods"}]}'),
    ]
    async with watching(server) as (_, sink):
        await eventually(lambda: len(server.requests) >= 8)
        assert sink.map == {"a/x": "10", "a/y": "6"}
    kinds = [
        sorted(set(request.query) & {"watch", "sendInitialEvents", "limit", "continue"}) for request in server.requests
    ]
    assert kinds[:5] == [["sendInitialEvents", "watch"], ["limit"], ["continue", "limit"], [], ["watch"]]
    assert server.requests[6].path == "/api/v1"
    assert {request.headers["Accept-Encoding"] for request in server.requests} == {"identity"}


async def test_a_compressed_stream_is_refused_and_said_and_the_list_goes_on_as_polls(server: ScriptedServer) -> None:
    packed = gzip.compress(lines(event("MODIFIED", "a/x", 10)))
    version = 9

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal version
        if "watch" in request.query:
            return await server.body(packed, headers={"Content-Encoding": "gzip"})(request)
        version += 1
        return await server.body(pod_list({"a/x": version}, version))(request)

    server.script = [answer] * 1000
    with structlog.testing.capture_logs() as logs:
        async with watching(server) as (subject, sink):
            await sink.until(lambda: sink.map.get("a/x") == "20")
            assert subject.counters.errors["malformed"] >= 10
            assert sink.current_status is SyncStatus.IN_SYNC
    assert "/api/v1/pods: the answer has Content-Encoding 'gzip'" in str(logs)
    assert [entry["event"] for entry in logs].count("resource type cannot be watched, polling it") == 1


async def test_a_forbidden_type_is_looked_up_among_those_that_the_api_server_lists(server: ScriptedServer) -> None:
    forbidden = server.body(status(403, "Forbidden"), status=403)
    server.script = [
        *(forbidden, server.body(b"404 page not found", status=404)),
        *(forbidden, server.body(b'{"kind":"APIResourceList","resources":[{"name":"pods/log"},{"name":"nodes"}]}')),
        *(forbidden, server.body(b'{"resources":[{"name":"pods"}]}')),
        *(forbidden, server.body(status(403, "Forbidden"), status=403)),
        *(forbidden, server.body(b"{", status=200)),
        server.stream(initial(9, x=5)),
    ]
    with structlog.testing.capture_logs() as logs:
        async with watching(server) as (subject, sink):
            await sink.until(lambda: sink.current_status is SyncStatus.IN_SYNC)
            assert len(server.requests) == 2
            await sink.until_map({"a/x": "5"})
            assert (subject.counters.errors["forbidden"], subject.counters.errors["not-found"]) == (3, 2)
    lines_of_type = [(entry["event"], entry["log_level"]) for entry in logs if entry.get("type")]
    assert lines_of_type[:3] == [
        ("resource type is not installed", "info"),
        ("resource type cannot be read", "error"),
        ("resource type is installed", "info"),
    ]


async def test_one_bad_object_of_a_page_leaves_its_type_in_sync(server: ScriptedServer) -> None:
    good = pod_list({f"a/{index}": index + 1 for index in range(10)}, 20)
    bad = b'{"metadata":{"name":"bad","namespace":"a","resourceVersion":"1"},"x":"\\ud800"},'
    server.script = [
        server.body(NO_WATCH_LIST, status=422),
        server.body(good.replace(b'"items":[', b'"items":[' + bad)),
        server.stream(lines(b'{"type":"MODIFIED","object":%s}' % bad[:-1], event("MODIFIED", "a/0", 21))),
    ]
    async with watching(server) as (subject, sink):
        await sink.until_map({f"a/{index}": str(index + 1) for index in range(1, 10)} | {"a/0": "21"})
        assert sink.current_status is SyncStatus.IN_SYNC
        assert not any(subject.counters.errors.values())
    assert [(skipped.name, skipped.reason) for skipped in sink.skipped_objects] == [("bad", "undecodable")] * 2


async def test_a_page_too_large_to_look_for_bad_objects_is_made_smaller(server: ScriptedServer) -> None:
    bad = b'{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":[NaN]}'
    server.script = [server.body(NO_WATCH_LIST, status=422), server.body(bad + b" " * 500), server.body(bad)]
    async with watching(server, dataclasses.replace(FAST, max_split_bytes=200)) as (subject, sink):
        await sink.until(lambda: sink.current_status is SyncStatus.IN_SYNC)
        assert subject.counters.errors["too-large"] == 1
    assert [request.query["limit"] for request in server.requests[1:3]] == ["500", "250"]
    assert len(sink.skipped_objects) == 1


async def test_a_list_of_another_kind_is_refused(server: ScriptedServer) -> None:
    server.script = [
        server.body(NO_WATCH_LIST, status=422),
        server.body(pod_list({"a/x": 5}, 9).replace(b"PodList", b"ConfigMapList")),
        server.body(pod_list({"a/x": 5}, 9)),
    ]
    async with watching(server) as (subject, sink):
        await sink.until_map({"a/x": "5"})
        assert subject.counters.errors["malformed"] == 1


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked"])
async def test_a_transfer_coding_that_was_not_asked_for_is_refused(server: ScriptedServer, coding: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n0\r\n\r\n" % coding.encode())
        request.transport.close()
        return web.Response()

    server.script = [answer, server.stream(initial(9, x=5))]
    async with watching(server) as (subject, sink):
        await sink.until_map({"a/x": "5"})
        assert subject.counters.errors["malformed"] == 1


async def test_endless_provisional_answers_are_not_waited_for(server: ScriptedServer) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        while transport is not None and not transport.is_closing():
            transport.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await asyncio.sleep(0.01)
        return web.Response()

    server.script = [answer, server.stream(initial(9, x=5))]
    async with watching(server, HASTY) as (subject, sink):
        await sink.until_map({"a/x": "5"})
        assert subject.counters.errors["deadline"] >= 1


@pytest.mark.parametrize("how", ["lines", "page"])
async def test_a_slice_ends_when_its_objects_take_long(server: ScriptedServer, how: str) -> None:
    objects = {f"a/{index}": index + 1 for index in range(20)}
    if how == "lines":
        server.script = [server.stream(initial(30), lines(*(event("ADDED", *item) for item in objects.items())))]
    else:
        server.script = [server.body(NO_WATCH_LIST, status=422), server.body(pod_list(objects, 30))]
    policy = dataclasses.replace(FAST, slice_items=1000, slice_seconds=0.0)
    async with watching(server, policy) as (_, sink):
        seen = set()

        async def look() -> None:
            while len(sink.map) < len(objects):
                seen.add(len(sink.map))
                await asyncio.sleep(0)

        looking = asyncio.create_task(look(), name="look")
        await sink.until(lambda: len(sink.map) == len(objects))
        await looking
    assert len(seen) >= 4


class FullSink(NotifyingSink):
    """A sink with room for some events. The test makes room for more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.limit = room
        self.has_waiter = False

    async def room(self) -> None:
        """Wait for the test."""
        self.has_waiter = len(self.events) >= self.limit
        await eventually(lambda: len(self.events) < self.limit)

    def make_room(self) -> None:
        """Make room for one more event."""
        self.has_waiter = False
        self.limit = len(self.events) + 1


@pytest.mark.parametrize(
    ("way", "before", "events"),
    [("page", 0, 30), ("stream", 0, 30), ("sweep", 30, 60), ("sweep, then an event", 30, 61)],
)
async def test_a_flood_comes_in_slices_as_the_sink_has_room(
    server: ScriptedServer, way: str, before: int, events: int
) -> None:
    many = {f"a/{number}": number + 1 for number in range(30)}
    added = lines(*(event("ADDED", *item) for item in many.items()))
    expired = added + initial(99) + lines(error_event(410, "Expired"))
    server.script = {
        "page": [server.body(NO_WATCH_LIST, status=422), server.body(pod_list(many, 99))],
        "stream": [server.stream(initial(0), added)],
        "sweep": [server.stream(expired), server.stream(initial(100))],
        "sweep, then an event": [
            server.stream(expired),
            server.stream(initial(100) + lines(event("ADDED", "a/1", 101))),
        ],
    }[way]
    sink, session = FullSink(before + 1), session_to(server)
    await session.start()
    task = asyncio.create_task(watcher.Watcher(session, PODS, sink, policy=FAST).run(), name="watcher")
    while len(sink.events) < events:
        seen = max(before, len(sink.events))
        await eventually(lambda: sink.has_waiter or len(sink.events) == events)
        assert len(sink.events) - seen <= FAST.slice_items
        sink.make_room()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await session.close()


class ForgetfulSink(NotifyingSink):
    """A sink without memory for some of its calls."""

    def __init__(self, *failing: int) -> None:
        super().__init__()
        self.failing = failing
        self.calls = 0

    def apply(self, event: objects.ObjectEvent) -> None:
        self._call()
        super().apply(event)

    def delete(self, event: objects.ObjectEvent) -> None:
        self._call()
        super().delete(event)

    def _call(self) -> None:
        self.calls += 1
        if self.calls - 1 in self.failing:
            raise MemoryError


@pytest.mark.parametrize("failing", [(0,), (2, 3), (4,), (5,), (6,), (6, 7), tuple(range(0, 14, 2))])
async def test_an_object_comes_again_for_which_there_was_no_memory(
    server: ScriptedServer, failing: tuple[int, ...]
) -> None:
    """Calls 0 to 3 are of a list, 4 and 5 of events, and 6 of the sweep after another list."""
    sink = ForgetfulSink(*failing)
    later = {10: event("MODIFIED", "a/v", 10), 11: event("DELETED", "a/w", 11), 12: error_event(410, "Expired")}

    async def answer(request: web.Request) -> web.StreamResponse:
        is_second = sink.map.get("a/v") == "10" and "a/w" not in sink.map
        if "limit" in request.query:  # after three broken streams
            listed = {"a/v": 10, "a/y": 4} if is_second else {"a/v": 1, "a/w": 2, "a/x": 3, "a/y": 4}
            return await server.body(pod_list(listed, 20 if is_second else 9))(request)
        if "sendInitialEvents" in request.query:
            known = initial(20, v=10, y=4) if is_second else initial(9, v=1, w=2, x=3, y=4) + lines(*later.values())
        else:
            since = int(request.query["resourceVersion"])
            known = lines(*(line for version, line in later.items() if since < version <= 12))
        return await server.stream(known)(request)

    server.script = [answer] * 60
    session = session_to(server)
    await session.start()
    subject = watcher.Watcher(session, PODS, sink, policy=FAST)
    task = asyncio.create_task(subject.run(), name="watcher")
    await eventually(lambda: task.done() or (sink.map == {"a/v": "10", "a/y": "4"} and subject.object_count == 2))
    assert not task.done()
    assert subject.counters.errors["memory"] > 0
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await session.close()
