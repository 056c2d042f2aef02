"""Takes the proof: waits until everything is quiet, asks API server and agents, and compares."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from cache.feeds import raw
from loadtest.swarm import supervisor
from loadtest.verification import convergence, expected_state

POLL_INTERVAL_SECONDS: Final = 0.25
SETTLE_SECONDS: Final = 2.0
"""On a cluster that others write to: so long after the first list the agents' maps are looked at."""
ATTEMPTS_WHILE_CHANGING: Final = 5


async def when_quiet(
    swarm: supervisor.Swarm,
    read: Callable[[], Awaitable[expected_state.Truth]],
    *,
    timeout_seconds: float,
    deletions_asked: Mapping[tuple[str, str], int] | None = None,
) -> convergence.Verdict:
    """The verdict when nobody writes any more: as soon as all agents hold what `read` says, or at the timeout."""
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
    """The verdict on a cluster that changes: over the keys whose object and version are the same in two lists.

    Agents' maps are captured between the lists. What was created and deleted in between is in neither list, but may be
    in a map; so a comparison that fails is made again, a few times.
    """
    for attempt in range(ATTEMPTS_WHILE_CHANGING):
        before = await client.truth(specs)
        await asyncio.sleep(SETTLE_SECONDS)
        await swarm.capture()
        after = await client.truth(specs)
        reports = await swarm.digests(captured=True, without=convergence.unstable_keys(before, after))
        verdict = convergence.judge(reports, convergence.unchanged(before, after))
        if verdict.converged == verdict.agents or attempt + 1 == ATTEMPTS_WHILE_CHANGING:
            break
    return verdict
