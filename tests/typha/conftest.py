"""Fixtures of the service's tests."""

import asyncio
import contextlib
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest

from tests.harness import certificates, hub_bench, support
from typha import clock
from typha.worker import policy, tls

OpenStage: TypeAlias = Callable[..., Awaitable[support.Stage]]
OpenTlsStage: TypeAlias = Callable[..., Awaitable[support.Stage]]


@pytest.fixture
async def virtual_time() -> AsyncIterator[None]:
    """Hub and workers run by the loop's time, which jumps to the next deadline in tests that are marked `looptime`.

    Ask for it with `usefixtures`, which comes before the stage.
    """
    with clock.replaced(monotonic=asyncio.get_running_loop().time, time_ns=time.time_ns):
        yield


@pytest.fixture
async def open_stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenStage]:
    """Opens a stage with the given numbers in place of the settings'; closed with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(limits: policy.Policy = support.FAST, **arguments: Any) -> support.Stage:
            monkeypatch.setattr(policy, "from_settings", lambda _: limits)
            return await stack.enter_async_context(support.Stage(limits, **arguments).running())

        yield open_one


@pytest.fixture
async def stage(open_stage: OpenStage) -> support.Stage:
    """A stage that is in sync and has three objects."""
    opened = await open_stage()
    opened.put(*(support.pod(name, "x") for name in ("a", "b", "c")))
    opened.in_sync()
    return opened


@pytest.fixture
def files(tmp_path: pathlib.Path) -> certificates.Files:
    """A server's files."""
    return certificates.make(tmp_path)


@pytest.fixture
def open_tls(open_stage: OpenStage, files: certificates.Files) -> OpenTlsStage:
    """Opens a stage with TLS that is in sync and has three objects; its peers have good certificates."""

    async def open_one(
        limits: policy.Policy = support.FAST,
        *,
        client_tls: tls.ClientTls | None = None,
        feed_name: str = support.FEED,
        **numbers: int,
    ) -> support.Stage:
        stage = await open_stage(limits, client_tls=client_tls or files.settings(), feed_name=feed_name, **numbers)
        stage.put(*(support.pod(name, "x" * 10) for name in ("a", "b", "c")))
        stage.in_sync()
        stage.peers_tls = certificates.client_context(files.authority)
        return stage

    return open_one


@pytest.fixture
def bench() -> Iterator[hub_bench.Bench]:
    """A hub with a feed of pods, and nobody who listens."""
    before = support.open_descriptors()
    opened = hub_bench.Bench()
    yield opened
    opened.hub.close()
    for worker in opened.workers:
        worker.close()
    assert support.open_descriptors() == before
