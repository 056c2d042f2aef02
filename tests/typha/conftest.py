"""Fixtures of the service's tests."""

import asyncio
import contextlib
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest

from tests.harness import certificates, hub_stand, worker_stand
from typha import clock
from typha.worker import policy, tls

OpenStage: TypeAlias = Callable[..., Awaitable[worker_stand.WorkerStand]]
OpenTlsStage: TypeAlias = Callable[..., Awaitable[worker_stand.WorkerStand]]


@pytest.fixture
async def virtual_time() -> AsyncIterator[None]:
    """Hub and workers run by the loop's time, which jumps to the next deadline in tests that are marked `looptime`.

    Ask for it with `usefixtures`, which comes before the stage.
    """
    with clock.replaced(monotonic=asyncio.get_running_loop().time, time_ns=time.time_ns):
        yield


@pytest.fixture
async def open_stage() -> AsyncIterator[OpenStage]:
    """Opens workers with the given limits; they end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(limits: policy.Policy = worker_stand.FAST, **arguments: Any) -> worker_stand.WorkerStand:
            return await stack.enter_async_context(worker_stand.WorkerStand(limits, **arguments).running())

        yield open_one


@pytest.fixture
async def stage(open_stage: OpenStage) -> worker_stand.WorkerStand:
    """A worker that is in sync and has three objects."""
    opened = await open_stage()
    opened.put(*(worker_stand.pod(name, "x") for name in ("a", "b", "c")))
    opened.in_sync()
    return opened


@pytest.fixture(params=certificates.ENGINES)
def files(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> certificates.Files:
    """A server's files, for each engine of TLS."""
    return certificates.make(tmp_path, request.param)


@pytest.fixture
def open_tls(open_stage: OpenStage, files: certificates.Files) -> OpenTlsStage:
    """Opens workers with TLS that are in sync and have three objects; their peers have good certificates."""

    async def open_one(
        limits: policy.Policy = worker_stand.FAST,
        *,
        client_tls: tls.ClientTls | None = None,
        feed_name: str = worker_stand.FEED,
        **arguments: Any,
    ) -> worker_stand.WorkerStand:
        stage = await open_stage(limits, client_tls=client_tls or files.settings(), feed_name=feed_name, **arguments)
        stage.put(*(worker_stand.pod(name, "x" * 10) for name in ("a", "b", "c")))
        stage.in_sync()
        stage.peers_tls = certificates.client_context(files.authority)
        return stage

    return open_one


@pytest.fixture
def bench() -> Iterator[hub_stand.HubStand]:
    """A hub with a feed of pods, and no workers."""
    before = worker_stand.descriptors_before()
    opened = hub_stand.HubStand()
    yield opened
    opened.hub.close()
    for worker in opened.workers:
        worker.close()
    assert worker_stand.open_descriptors() == before
