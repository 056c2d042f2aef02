"""The server for operators, asked by the client of the commands; and by peers that misbehave."""

import asyncio
import contextlib
import json
import pathlib
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from structlog import testing

from tests.harness.worker_stand import eventually
from typha.admin import client, local_socket, server
from typha.observability import http_connections


class Stage(NamedTuple):
    server: server.AdminServer
    path: str

    async def get(self, path: str, **query: object) -> Any:
        """What the commands do."""
        return await asyncio.to_thread(client.Service(self.path).get, path, **query)


async def echo(query: server.Query) -> server.Answer:
    """The query."""
    if "bad" in query:
        raise server.BadQuery("not so")
    if "defect" in query:
        raise KeyError("oh")
    if "gone" in query:
        return server.Answer(b"", status=410)
    return server.Answer(json.dumps(query).encode())


async def large(_query: server.Query) -> server.Answer:
    """More than a socket's buffer takes."""
    return server.Answer(json.dumps(["x" * 1000] * 5000).encode())


async def never(_query: server.Query) -> server.Answer:
    """No answer."""
    await asyncio.Event().wait()
    return server.Answer(b"")


@contextlib.asynccontextmanager
async def opened(folder: pathlib.Path, limits: http_connections.Limits = server.LIMITS) -> AsyncIterator[Stage]:
    made = server.AdminServer("admin", {"/echo": echo, "/large": large, "/never": never}, limits=limits)
    listener = local_socket.Listener(str(folder / "a.sock"))
    running = asyncio.create_task(made.run([listener.socket], peer_of=local_socket.peer_of))
    await asyncio.sleep(0)
    try:
        yield Stage(made, listener.path)
    finally:
        running.cancel()
        await asyncio.wait([running])
        listener.close()


async def test_answers_and_errors(tmp_path: pathlib.Path) -> None:
    async with opened(tmp_path) as stage:
        assert await stage.get("/echo", a="1", b="ä/&", c=None) == {"a": "1", "b": "ä/&"}
        assert len(await stage.get("/large")) == 5000
        for query, problem in (({"bad": 1}, "status 400: not so"), ({"defect": 1}, "status 500: internal error")):
            with pytest.raises(client.Unanswered, match=problem):
                await stage.get("/echo", **query)
        with pytest.raises(client.Changed):
            await stage.get("/echo", gone=1)
        with pytest.raises(client.Unanswered, match="status 404"):
            await stage.get("/other")
        with pytest.raises(client.Unanswered, match="status 400"):
            await stage.get("/echo", **{f"p{number}": 1 for number in range(30)})


async def test_a_defect_is_logged_once(tmp_path: pathlib.Path) -> None:
    async with opened(tmp_path) as stage:
        with testing.capture_logs() as lines:
            for _ in range(3):
                with pytest.raises(client.Unanswered):
                    await stage.get("/echo", defect=1)
        assert [line["path"] for line in lines] == ["/echo"]


async def test_only_reading_methods(tmp_path: pathlib.Path) -> None:
    async with opened(tmp_path) as stage:
        reader, writer = await asyncio.open_unix_connection(stage.path)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert b" 405 " in (await reader.read()).partition(b"\r\n")[0]
        writer.close()


async def test_another_user_is_refused_counted_and_logged(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as stage:
        service = client.Service(stage.path)
        connected = await asyncio.to_thread(local_socket.connect, stage.path)  # before users are 4711
        monkeypatch.setattr(local_socket, "_user_of", lambda _: 4711)
        with testing.capture_logs() as lines:
            other = socket.socket(socket.AF_UNIX)
            other.connect(stage.path)
            await eventually(lambda: stage.server.refused[http_connections.FORBIDDEN])
            assert await asyncio.to_thread(other.recv, 10) == b""
            other.close()
        assert [line["reason"] for line in lines] == ["forbidden"]
        monkeypatch.undo()
        assert await asyncio.to_thread(service.get, "/echo") == {}
        connected.close()


async def test_connections_are_bounded_and_a_silent_one_gives_way(tmp_path: pathlib.Path) -> None:
    limits = server.LIMITS._replace(connections=2, grace_seconds=0.0)
    async with opened(tmp_path, limits) as stage:
        silent = [local_socket.connect(stage.path) for _ in range(3)]
        assert await stage.get("/echo", a=1) == {"a": "1"}
        assert stage.server.refused[http_connections.TOO_MANY] >= 2
        for end in silent:
            end.close()


async def test_a_page_that_takes_too_long_is_given_up(tmp_path: pathlib.Path) -> None:
    limits = server.LIMITS._replace(answer_seconds=0.05)
    async with opened(tmp_path, limits) as stage:
        with pytest.raises(client.Unanswered):
            await stage.get("/never")
        assert stage.server.refused[http_connections.TIMEOUT] == 1
        assert await stage.get("/echo") == {}
