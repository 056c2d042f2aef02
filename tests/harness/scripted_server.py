"""An API server on a real loopback socket. It answers from a script, one entry per request."""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

from aiohttp import web

from cache.kube import access, api, watcher
from cache.watch.policy import WatchPolicy
from tests.harness.watch_harness import PODS, RecordingSink

Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

FAST = WatchPolicy(
    backoff_base_seconds=0.01,
    backoff_max_seconds=0.05,
    connect_backoff_max_seconds=0.05,
    retry_after_max_seconds=0.2,
    initial_quiet_seconds=30.0,
    absent_seconds=0.05,
    absent_grace_seconds=0.1,
    healthy_seconds=0.05,
    idle_seconds=30.0,
    quiet_seconds=30.0,
    list_read_seconds=30.0,
    slice_items=3,
    sweep_rest_seconds=0.0,
)
"""Comes back soon, and waits for a server for as long as a busy machine may take."""
IMPATIENT = dataclasses.replace(
    FAST, initial_quiet_seconds=0.2, idle_seconds=0.3, quiet_seconds=0.3, list_read_seconds=0.3
)
"""For tests of a server that is silent."""
_PATIENCE_SECONDS = 180.0


class NotifyingSink(RecordingSink):
    """A recording sink that tests can wait on."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def batch_end(self) -> None:
        super().batch_end()
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds at the end of a batch."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_map(self, expected: dict[str, str]) -> None:
        await self.until(lambda: self.map == expected)


class ScriptedServer:
    """Answers the n-th request with the n-th entry of the script. Later requests get a stream that stays open."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.requests: list[web.Request] = []
        self.open_streams = 0
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._closing = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._closing = asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        answer = self.script.pop(0) if self.script else self.stream()
        return await answer(request)

    # Entries for the script.

    def body(self, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(body=body, status=status, headers=headers, content_type="application/json")

        return answer

    def stream(self, *pieces: bytes, then: str = "stay") -> Answer:
        """Write the pieces one by one. Then stay open, end cleanly, or abort the connection."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            self.open_streams += 1
            try:
                for piece in pieces:
                    await response.write(piece)
                    await asyncio.sleep(0)
                if then == "abort":
                    assert request.transport is not None
                    request.transport.abort()
                elif then == "stay":
                    await self._stay(request)
            finally:
                self.open_streams -= 1
            return response

        return answer

    def drip(self, beginning: bytes = b"", *, status: int = 200, byte: bytes = b" ") -> Answer:
        """Write the beginning, and then one byte after the other, for as long as the connection lives."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(status=status)
            await response.prepare(request)
            self.open_streams += 1
            try:
                await response.write(beginning)
                while not self._closing.is_set():
                    await response.write(byte)
                    await asyncio.sleep(0.01)
            except ConnectionError:
                pass
            finally:
                self.open_streams -= 1
            return response

        return answer

    def silence(self) -> Answer:
        """Accept the request and never answer."""

        async def answer(request: web.Request) -> web.StreamResponse:
            await self._stay(request)
            return web.Response()

        return answer

    async def _stay(self, request: web.Request) -> None:
        while not self._closing.is_set() and request.transport is not None and not request.transport.is_closing():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await self._closing.wait()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        holds = condition()
        while not holds:
            await asyncio.sleep(0.001)
            holds = condition()


def lines(*values: bytes) -> bytes:
    return b"".join(value + b"\n" for value in values)


def session_to(server: ScriptedServer) -> api.KubeApi:
    async def load() -> access.Access:
        return access.Access(host=server.url, source="test")

    return api.KubeApi(load)


@contextlib.asynccontextmanager
async def watching(
    server: ScriptedServer, policy: WatchPolicy = FAST, session: api.KubeApi | None = None
) -> AsyncIterator[tuple[watcher.Watcher, NotifyingSink]]:
    """Run a watcher on the server. At the end, cancel it and check that it leaves nothing."""
    session = session or session_to(server)
    await session.start()
    sink = NotifyingSink()
    subject = watcher.Watcher(session, PODS, sink, policy=policy)
    task = asyncio.create_task(subject.run(), name="watcher")
    try:
        yield subject, sink
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await session.close()
