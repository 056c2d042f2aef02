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
from cache.kube import access, api, discovery
from cache.watch import api_group, decoding, reflector, requests
from cache.watch.health import WatchCounters
from cache.watch.machine import WatchMachine
from cache.watch.policy import Failure, WatchPolicy
from cache.watch.requests import RequestKind
from protocol.messages import SyncStatus

_ITEMS_PER_LOOK = 5
"""Items of a page between two looks at the clock."""
_SPLIT_STEPS = 10
"""Steps of a scan before other tasks run: at most 100,000 brackets."""
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
        self._sink = sink
        self._policy = policy or WatchPolicy()
        self._clock = clock
        self._since_yield = 0
        self._slice_began = 0.0
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
    def is_unconfirmed(self) -> bool:
        """Whether the API server can no longer confirm the known objects."""
        return self._machine.is_unconfirmed(self._clock())

    @property
    def object_count(self) -> int:
        """The number of known objects of the type."""
        return self._machine.object_count

    async def run(self) -> None:
        """Watch until cancelled, or until the sink raises an exception. Lack of memory ends a request, and not more."""
        is_short = False
        while True:
            try:
                if is_short:
                    await asyncio.sleep(self._policy.backoff_base_seconds)
                    self._machine.interrupted(self._clock(), Failure.MEMORY, "no memory for an object or an answer")
                    is_short = False
                await self._step()
            except MemoryError:
                is_short = True

    async def _step(self) -> None:
        action = self._machine.next_action(self._clock())
        if isinstance(action, requests.Pause):
            await asyncio.sleep(max(0.0, action.until - self._clock()))
            self._machine.tick(self._clock())
        elif isinstance(action, requests.ReloadCredentials):
            await self._reload_credentials()
        elif isinstance(action, requests.LookUp):
            await self._look_up()
        else:
            await self._perform(action)
        await self._finish_batch()

    async def _reload_credentials(self) -> None:
        try:
            await self._session.reload()
        except access.AccessError as error:
            self._machine.interrupted(self._clock(), Failure.CREDENTIALS, str(error))

    async def _look_up(self) -> None:
        is_listed: bool | None = None
        problem = ""
        try:
            is_listed = await discovery.lists(self._session, self.type)
        except (api.Interrupted, discovery.Refused) as error:
            problem = str(error)
        self._machine.looked_up(self._clock(), is_listed=is_listed, problem=problem)

    async def _perform(self, request: requests.Request) -> None:
        lost_in_seconds = max(0.0, self._machine.lost_at - self._clock())
        losing = asyncio.get_running_loop().call_later(lost_in_seconds, self._lose)
        try:
            await self._exchange(request)
        except api.Interrupted as error:
            self._machine.interrupted(self._clock(), error.failure, error.detail)
        finally:
            losing.cancel()

    def _lose(self) -> None:
        """Report the type as lost while a request waits. A stream moves its deadline itself."""
        if not self._machine.streaming:
            self._machine.tick(self._clock())
            self._log_notices()
            self._machine.end_batch(self._clock())

    async def _exchange(self, request: requests.Request) -> None:
        response: aiohttp.ClientResponse | None = None
        body = b""
        try:
            async with api.deadline(request.answer_seconds, "no whole answer"):
                response = await self._session.get(
                    request.path, request.query, read_timeout_seconds=request.read_timeout_seconds
                )
                if response.status == 200 and request.kind is RequestKind.LIST:
                    body = await api.read_body(response, self._policy.max_page_bytes)
            if response.status != 200:
                await self._read_error(response)
            elif request.kind is RequestKind.LIST:
                await self._process_page(body)
            else:
                self._machine.accepted(self._clock())
                await self._finish_batch()
                await self._read_stream(response)
        finally:
            # If the body was read to its end, the connection is back in the pool by now, and this does nothing.
            if response is not None:
                api.close_response(response)

    async def _read_error(self, response: aiohttp.ClientResponse) -> None:
        policy = self._policy
        body = await api.read_beginning(response, policy.max_error_bytes, seconds=policy.error_body_seconds)
        retry_after = api.retry_after_seconds(response)
        self._machine.refused(self._clock(), response.status, body=body, retry_after_seconds=retry_after)

    async def _process_page(self, body: bytes) -> None:
        try:
            page = await self._decode_page(body)
        except decoding.InvalidInput as error:
            raise api.Interrupted(Failure.MALFORMED, str(error)) from error
        del body
        self._machine.begin_page(self._clock(), page)
        size = min(self._policy.slice_items, _ITEMS_PER_LOOK)
        self._slice_began = self._clock()
        for start in range(0, len(page.items), size):
            try:
                self._machine.items(page, page.items[start : start + size])
            except reflector.TooManyObjects as error:
                raise api.Interrupted(Failure.ENDLESS, str(error)) from error
            await self._let_others_run(size)
        self._machine.end_page(self._clock(), page)

    async def _decode_page(self, body: bytes) -> decoding.ListPage:
        """Decode a page. If an object in it cannot be decoded, find the objects, and leave out that one only."""
        try:
            decoding.check_density(body)
            return decoding.decode_page(body, self.type)
        except decoding.InvalidInput as error:
            if len(body) > self._policy.max_split_bytes:
                raise api.Interrupted(Failure.TOO_LARGE, str(error)) from error
            split = decoding.split_page(body, self.type)
            while True:
                try:
                    for _ in range(_SPLIT_STEPS):
                        next(split)
                except StopIteration as end:
                    page: decoding.ListPage = end.value
                    return page
                except decoding.InvalidInput:
                    raise error from None
                await asyncio.sleep(0)

    async def _read_stream(self, response: aiohttp.ClientResponse) -> None:
        machine = self._machine
        splitter = decoding.LineSplitter(self._policy.max_line_bytes)
        while machine.streaming:
            deadline = machine.deadline
            line_deadline = self._line_deadline(splitter)
            if deadline is None or (line_deadline is not None and line_deadline < deadline):
                deadline = line_deadline
            chunk = await self._read_until(response, deadline)
            if chunk == b"":
                machine.stream_ended(self._clock(), is_truncated=splitter.has_rest)
            elif chunk is not None:
                try:
                    lines = splitter.feed(chunk, self._clock())
                except decoding.InvalidInput as error:
                    raise api.Interrupted(Failure.TOO_LARGE, str(error)) from error
                await self._process_lines(lines)
            now = self._clock()
            line_deadline = self._line_deadline(splitter)
            if line_deadline is not None and now >= line_deadline and machine.streaming:
                detail = f"no whole watch event within {self._policy.line_seconds:g} s"
                raise api.Interrupted(Failure.DEADLINE, detail)
            if machine.deadline is not None and now >= machine.deadline:
                machine.tick(now)
            await self._finish_batch()

    def _line_deadline(self, splitter: decoding.LineSplitter) -> float | None:
        return None if splitter.pending_since is None else splitter.pending_since + self._policy.line_seconds

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
        self._slice_began = self._clock()
        for line in lines:
            machine.line(self._clock(), line)
            await self._sweep()
            if not machine.streaming:
                return
            await self._let_others_run(1)

    async def _let_others_run(self, objects_processed: int) -> None:
        """End the slice if it is over. A read that finds data does not suspend, so nothing else would."""
        self._since_yield += objects_processed
        is_long = self._clock() - self._slice_began >= self._policy.slice_seconds
        if is_long or self._since_yield >= self._policy.slice_items:
            self._since_yield = 0
            await self._pause(0.0)
            self._slice_began = self._clock()

    async def _pause(self, seconds: float) -> None:
        """Let other tasks run, until the sink has room. Then each watcher has a slice: a flood delays only itself."""
        await asyncio.sleep(seconds)
        await self._sink.room()

    async def _sweep(self) -> None:
        while self._machine.sweep(self._clock()):
            await self._pause(self._policy.sweep_rest_seconds)

    async def _finish_batch(self) -> None:
        await self._sweep()
        self._log_notices()
        self._machine.end_batch(self._clock())

    def _log_notices(self) -> None:
        for notice in self._machine.take_notices():
            log = {"info": _log.info, "warning": _log.warning, "error": _log.error}[notice.level]
            log(notice.kind.value, type=str(self.type), **notice.fields)
