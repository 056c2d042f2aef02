"""A small client for lists and watches, for tests of the simulated API server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

JsonObject = dict[str, Any]
PATIENCE_SECONDS = 180.0
"""A machine may be busy with other things for a while."""


class Watch:
    """A watch stream, read line by line. Every read has a deadline."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def line(self) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.response.content.readline()

    async def event(self) -> tuple[str, JsonObject]:
        line = await self.line()
        assert line.endswith(b"\n"), line
        event = json.loads(line)
        return event["type"], event["object"]

    async def names(self, count: int) -> list[str]:
        """The next events, each as type and name: `ADDED x`."""
        events = [await self.event() for _ in range(count)]
        return [f"{kind} {value['metadata']['name']}" for kind, value in events]


class Api:
    """Requests to one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def get(self, path: str, **query: str | int) -> tuple[int, JsonObject]:
        async with self.session.get(self.url + path, params=query) as response:
            return response.status, json.loads(await response.read())

    async def send(self, method: str, path: str, value: Any = None, **headers: str) -> tuple[int, JsonObject]:
        data = None if value is None else json.dumps(value).encode()
        headers.setdefault("Content-Type", "application/json")
        async with self.session.request(method, self.url + path, data=data, headers=headers) as response:
            return response.status, json.loads(await response.read())

    async def pages(self, path: str, *, limit: int, **query: str | int) -> list[JsonObject]:
        """Read all pages of a list. Every request must succeed."""
        pages: list[JsonObject] = []
        token = ""
        while True:
            status, page = await self.get(path, limit=limit, **({"continue": token} if token else query))
            assert status == 200, page
            pages.append(page)
            token = page["metadata"].get("continue", "")
            if not token:
                return pages

    @contextlib.asynccontextmanager
    async def watch(self, path: str, **query: str | int) -> AsyncIterator[Watch]:
        async with self.session.get(self.url + path, params={"watch": "true", **query}) as response:
            assert response.status == 200, await response.text()
            try:
                yield Watch(response)
            finally:
                # Closing a TLS connection normally would take longer than the test's loop exists.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


def names(*pages: JsonObject) -> list[str]:
    """The names of the items in list pages."""
    return [item["metadata"]["name"] for page in pages for item in page["items"]]
