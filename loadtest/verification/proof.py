"""The proof at the end of a run: compares what the agents hold with what the API server has."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from cache.feeds import raw
from loadtest.swarm import supervisor
from loadtest.verification import convergence, expected_state

POLL_INTERVAL_SECONDS: Final = 0.25
SETTLE_SECONDS: Final = 2.0
"""Delay between the first list and the capture of the agents' maps, on a cluster that others write to."""
ATTEMPTS_WHILE_CHANGING: Final = 5


async def when_quiet(
    swarm: supervisor.Swarm,
    read: Callable[[], Awaitable[expected_state.ExpectedState]],
    *,
    timeout_seconds: float,
    deletions_asked: Mapping[tuple[str, str], int] | None = None,
) -> convergence.Verdict:
    """The verdict when nothing writes any more: when all agents hold what `read` returns, or at the timeout."""
    deadline = time.monotonic() + timeout_seconds
    expected = await read()
    while True:
        verdict = convergence.judge(await swarm.digests(), expected, deletions_asked=deletions_asked)
        if verdict.converged == verdict.agents or time.monotonic() > deadline:
            return verdict
        await asyncio.sleep(POLL_INTERVAL_SECONDS)


async def while_changing(
    swarm: supervisor.Swarm, client: expected_state.ApiClient, specs: Sequence[raw.ResourceSpec]
) -> convergence.Verdict:
    """The verdict on a cluster that changes: about the keys whose object and version are the same in two lists.

    The agents' maps are captured between the lists. An object that was created and deleted in between is in neither
    list, but may be in a map. So a comparison that fails is repeated a few times.
    """
    for attempt in range(ATTEMPTS_WHILE_CHANGING):
        before = await client.read_state(specs)
        await asyncio.sleep(SETTLE_SECONDS)
        await swarm.capture()
        after = await client.read_state(specs)
        reports = await swarm.digests(captured=True, without=convergence.unstable_keys(before, after))
        verdict = convergence.judge(reports, convergence.unchanged(before, after))
        if verdict.converged == verdict.agents or attempt + 1 == ATTEMPTS_WHILE_CHANGING:
            break
    return verdict
