"""The watch driver with a scripted API server on a real socket."""

import dataclasses

import pytest
import structlog

from cache.kube import access, api
from protocol.messages import SyncStatus
from tests.harness.scripted_server import FAST, IMPATIENT, ScriptedServer, lines, watching
from tests.harness.watch_harness import bookmark, error_event, event, json_bytes, pod, pod_list, status

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
        server.body(status(429), status=429, headers={"Retry-After": "1"}),
        server.body(status(500), status=500),
        server.body(b"<html>" + b"x" * 100_000, status=503),
        server.body(b"moved", status=301, headers={"Location": "http://127.0.0.1:1/"}),
        server.stream(initial(9, x=5)),
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
        server.stream(initial(9, x=5), lines(event("MODIFIED", "a/x", 10)) + broken, then=then),
        server.stream(lines(event("MODIFIED", "a/x", 11))),
    ]
    async with watching(server, IMPATIENT if failure == "idle" else FAST) as (subject, sink):
        await sink.until_map({"a/x": "11"})
        assert subject.counters.resumes == 1
        assert failure is None or subject.counters.errors[failure] == 1
    assert server.requests[1].query["resourceVersion"] == "10"


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
    assert [request.query["limit"] for request in server.requests[1:5]] == ["500", "500", "500", "250"]


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
