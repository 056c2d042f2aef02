"""Drives one watch machine: sends its requests, reads the answers, keeps the event loop responsive, and logs.

The machine (`cache.watch.machine`) takes all decisions. This module only does the I/O. Every await can be cancelled;
cancellation closes the open response.
"""

import asyncio
import random
import time
from collections.abc import Callable

import aiohttp
import structlog

from cache import objects, resources
from cache.kube import access, api
from cache.watch import api_group, decoding, requests
from cache.watch.health import WatchCounters
from cache.watch.machine import WatchMachine
from cache.watch.policy import Failure, WatchPolicy
from cache.watch.requests import RequestKind
from protocol.messages import SyncStatus

_log = structlog.get_logger(__name__)


class Watcher:
    """Lists and watches one resource type for a sink. Start `run` as a task. The properties may be read at any time."""

    def __init__(
        self,
        session: api.KubeApi,
        type: resources.ResourceType,
        sink: objects.WatchSink,
        *,
        policy: WatchPolicy | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        group: api_group.ApiGroup | None = None,
    ) -> None:
        self.type = type
        self._session = session
        self._policy = policy or WatchPolicy()
        self._clock = clock
        self._since_yield = 0
        self._machine = WatchMachine(
            type,
            sink,
            policy=self._policy,
            random=rng or random.Random(),
            now=clock(),
            group=group,
        )

    @property
    def counters(self) -> WatchCounters:
        """The watcher's counters."""
        return self._machine.counters

    @property
    def status(self) -> SyncStatus:
        """The status that the sink received last."""
        return self._machine.status

    @property
    def object_count(self) -> int:
        """The number of known objects of the type."""
        return self._machine.object_count

    async def run(self) -> None:
        """Watch until cancelled, or until the sink raises an exception."""
        while True:
            action = self._machine.next_action(self._clock())
            if isinstance(action, requests.Pause):
                await asyncio.sleep(max(0.0, action.until - self._clock()))
                self._machine.tick(self._clock())
            elif isinstance(action, requests.ReloadCredentials):
                await self._reload_credentials()
            else:
                await self._perform(action)
            await self._finish_batch()

    async def _reload_credentials(self) -> None:
        try:
            await self._session.reload()
        except access.AccessError as error:
            self._machine.interrupted(self._clock(), Failure.CREDENTIALS, str(error))

    async def _perform(self, request: requests.Request) -> None:
        try:
            response = await self._session.get(
                request.path, request.query, read_timeout_seconds=request.read_timeout_seconds
            )
            # If the body was read to its end, the connection is back in the pool by now, and this does nothing.
            try:
                await self._read_answer(request, response)
            finally:
                api.close_response(response)
        except api.Interrupted as error:
            self._machine.interrupted(self._clock(), error.failure, error.detail)

    async def _read_answer(self, request: requests.Request, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            body = await api.read_beginning(response, self._policy.max_error_bytes)
            retry_after = api.retry_after_seconds(response)
            self._machine.refused(self._clock(), response.status, body=body, retry_after_seconds=retry_after)
        elif request.kind is RequestKind.LIST:
            await self._read_page(response)
        else:
            self._machine.accepted(self._clock())
            await self._read_stream(response)

    async def _read_page(self, response: aiohttp.ClientResponse) -> None:
        body = await api.read_body(response, self._policy.max_page_bytes)
        try:
            page = decoding.decode_page(body)
        except decoding.InvalidInput as error:
            raise api.Interrupted(Failure.MALFORMED, str(error)) from error
        del body
        self._machine.begin_page(self._clock(), page)
        size = self._policy.slice_items
        for start in range(0, len(page.items), size):
            self._machine.items(page, page.items[start : start + size])
            await asyncio.sleep(0)
        self._machine.end_page(self._clock(), page)

    async def _read_stream(self, response: aiohttp.ClientResponse) -> None:
        machine = self._machine
        splitter = decoding.LineSplitter(self._policy.max_line_bytes)
        while machine.streaming:
            deadline = machine.deadline
            chunk = await self._read_until(response, deadline)
            if chunk == b"":
                machine.stream_ended(self._clock(), is_truncated=splitter.has_rest)
            elif chunk is not None:
                try:
                    lines = splitter.feed(chunk)
                except decoding.InvalidInput as error:
                    raise api.Interrupted(Failure.TOO_LARGE, str(error)) from error
                await self._process_lines(lines)
            now = self._clock()
            if deadline is not None and now >= deadline and machine.streaming:
                machine.tick(now)
            await self._finish_batch()

    async def _read_until(self, response: aiohttp.ClientResponse, deadline: float | None) -> bytes | None:
        """Return the next bytes, or None if none arrived before the deadline."""
        if deadline is None:
            return await api.read_chunk(response)
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                return await api.read_chunk(response)
        except TimeoutError:
            return None

    async def _process_lines(self, lines: list[bytes]) -> None:
        machine = self._machine
        for line in lines:
            machine.line(self._clock(), line)
            if not machine.streaming:
                return
            self._since_yield += 1
            if self._since_yield >= self._policy.slice_items:
                # A read that finds data does not suspend, so let other tasks run now.
                self._since_yield = 0
                await asyncio.sleep(0)

    async def _finish_batch(self) -> None:
        is_sweeping = self._machine.sweep(self._clock())
        while is_sweeping:
            await asyncio.sleep(0)
            is_sweeping = self._machine.sweep(self._clock())
        for notice in self._machine.take_notices():
            log = {"info": _log.info, "warning": _log.warning, "error": _log.error}[notice.level]
            log(notice.kind.value, type=str(self.type), **notice.fields)
        self._machine.end_batch(self._clock())
