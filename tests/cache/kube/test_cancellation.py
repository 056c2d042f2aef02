"""A watcher can be cancelled at every await, and leaves no task and no connection."""

import asyncio

import pytest

from cache.kube import watcher
from tests.harness.scripted_server import FAST, NotifyingSink, ScriptedServer, eventually, lines, session_to
from tests.harness.watch_harness import PODS, bookmark, error_event, event, pod_list, status

_TURNS = 60
_DEADLINE_SECONDS = 180.0


def whole_story(server: ScriptedServer) -> None:
    """A script that visits every state and every kind of answer within few iterations of the event loop."""
    many = {f"a/{index}": index + 1 for index in range(8)}
    server.script = [
        server.body(status(401), status=401),
        server.body(status(422), status=422),
        server.body(pod_list(many, 20, token="more")),
        server.body(pod_list({"b/0": 15}, 20)),
        server.stream(lines(event("MODIFIED", "a/0", 21), error_event(410, "Expired"))),
        server.body(pod_list({"b/0": 15}, 30)),
        server.stream(lines(bookmark(31))),
    ]


@pytest.mark.parametrize("turns", range(_TURNS))
async def test_cancelled_after_any_number_of_loop_iterations(server: ScriptedServer, turns: int) -> None:
    whole_story(server)
    session = session_to(server)
    await session.start()
    sink = NotifyingSink()
    task = asyncio.create_task(watcher.Watcher(session, PODS, sink, policy=FAST).run(), name="watcher")
    for turn in range(turns):
        # Wait for the network now and then, or all iterations pass before the first answer.
        await asyncio.sleep(0.002 if turn % 3 == 0 else 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: server.open_streams == 0)
    await session.close()


async def test_without_cancellation_the_whole_script_runs(server: ScriptedServer) -> None:
    whole_story(server)
    session = session_to(server)
    await session.start()
    sink = NotifyingSink()
    task = asyncio.create_task(watcher.Watcher(session, PODS, sink, policy=FAST).run(), name="watcher")
    await sink.until_map({"b/0": "15"})
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await session.close()


@pytest.mark.parametrize("place", ["headers", "body", "initial events", "watching", "pause"])
async def test_cancelled_during_long_waits(server: ScriptedServer, place: str) -> None:
    server.script = {
        "headers": [server.silence()],
        "body": [server.body(status(422), status=422), server.stream(b'{"kind":"PodList"')],
        "initial events": [server.stream(lines(event("ADDED", "a/x", 5)))],
        "watching": [server.stream(lines(bookmark(5, ends_initial=True)))],
        "pause": [server.body(b"", status=429, headers={"Retry-After": "9"})],
    }[place]
    wanted = 2 if place == "body" else 1
    session = session_to(server)
    await session.start()
    task = asyncio.create_task(watcher.Watcher(session, PODS, NotifyingSink()).run(), name="watcher")
    await eventually(lambda: len(server.requests) == wanted)
    await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: server.open_streams == 0)
    await session.close()


async def test_an_exception_of_the_sink_ends_the_watcher_and_closes_its_stream(server: ScriptedServer) -> None:
    class BrokenSink(NotifyingSink):
        def batch_end(self) -> None:
            if self.map:
                raise TimeoutError("a fault of the sink, not of the network")

    server.script = [server.stream(lines(event("ADDED", "a/x", 5)))]
    session = session_to(server)
    await session.start()
    task = asyncio.create_task(watcher.Watcher(session, PODS, BrokenSink()).run(), name="watcher")
    with pytest.raises(TimeoutError, match="a fault of the sink"):
        await asyncio.wait_for(task, _DEADLINE_SECONDS)
    await eventually(lambda: server.open_streams == 0)
    await session.close()
