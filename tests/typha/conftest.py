"""Fixtures of the service's tests."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest

from tests.typha import hub_bench, support
from typha import policy

OpenStage: TypeAlias = Callable[..., Awaitable[support.Stage]]


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
def bench() -> Iterator[hub_bench.Bench]:
    """A hub with a feed of pods, and nobody who listens."""
    before = support.open_descriptors()
    opened = hub_bench.Bench()
    yield opened
    opened.hub.close()
    for worker in opened.workers:
        worker.close()
    assert support.open_descriptors() == before
