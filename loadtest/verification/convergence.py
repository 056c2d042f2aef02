"""The verdict: every agent holds what the API server has, and saw no live object deleted.

An agent sees an object deleted when its map loses the object: by a deletion, by a snapshot without it, or by an update
of the same key with another uid. An object is a key and a uid; once deleted at the API server, it never comes back. So
the deletion of a live object (a phantom) was seen if and only if
- the object is live at the API server in the end, or
- the one writer never asked for its deletion, or asked later than the first agent saw it.
The second rule needs a writer that records each deletion just before it asks for it (`deletions_asked`), and one clock.
"""

import asyncio
import dataclasses
import datetime
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from cache.feeds import raw
from loadtest.swarm import control, supervisor
from loadtest.verification import expected_state

EXAMPLES: Final = 5
POLL_INTERVAL_SECONDS: Final = 0.25
SETTLE_SECONDS: Final = 2.0
"""Delay between the first list and the capture of the agents' maps, on a cluster that others write to."""
ATTEMPTS_WHILE_CHANGING: Final = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The agents' maps compared with the API server."""

    agents: int
    converged: int
    public_agents: int
    """Those of `agents` that use the public client."""
    public_converged: int
    keys: int
    digest: int
    differing: list[str]
    """Descriptions of the first few agents whose map differs."""
    deletions_seen: int
    """Distinct objects that at least one agent saw deleted."""
    phantom_deletions: list[str]
    deletions_lost: int

    @property
    def passed(self) -> bool:
        """Whether every agent holds the API server's state, and none saw a live object deleted."""
        return self.converged == self.agents and not self.phantom_deletions and not self.deletions_lost

    def line(self) -> str:
        """The verdict in one line."""
        text = f"{self.converged} of {self.agents} agents hold the API server's state: {self.keys} keys, digest "
        text += f"{self.digest:016x} ({self.public_converged} of {self.public_agents} through the public client)"
        if self.deletions_seen:
            text += f"; {self.deletions_seen} deletions seen, {len(self.phantom_deletions)} of them of a live object"
        return text


async def when_quiet(
    swarm: supervisor.Swarm,
    read: Callable[[], Awaitable[expected_state.ExpectedState]],
    *,
    timeout_seconds: float,
    deletions_asked: Mapping[tuple[str, str], int] | None = None,
) -> Verdict:
    """The verdict when nothing writes any more: when all agents hold what `read` returns, or at the timeout."""
    deadline = time.monotonic() + timeout_seconds
    expected = await read()
    while True:
        verdict = judge(await swarm.digests(), expected, deletions_asked=deletions_asked)
        if verdict.converged == verdict.agents or time.monotonic() > deadline:
            return verdict
        await asyncio.sleep(POLL_INTERVAL_SECONDS)


async def while_changing(
    swarm: supervisor.Swarm, client: expected_state.ApiClient, specs: Sequence[raw.ResourceSpec]
) -> Verdict:
    """The verdict on a cluster that changes: about the keys whose object and version are the same in two lists.

    The agents' maps are captured between the lists. An object that was created and deleted in between is in neither
    list, but may be in a map. So a comparison that fails is repeated a few times.
    """
    for attempt in range(ATTEMPTS_WHILE_CHANGING):
        before = await client.read_state(specs)
        await asyncio.sleep(SETTLE_SECONDS)
        await swarm.capture()
        after = await client.read_state(specs)
        reports = await swarm.digests(captured=True, without=unstable_keys(before, after))
        verdict = judge(reports, unchanged(before, after))
        if verdict.converged == verdict.agents or attempt + 1 == ATTEMPTS_WHILE_CHANGING:
            break
    return verdict


def judge(
    reports: Iterable[control.Digests],
    expected: expected_state.ExpectedState,
    *,
    deletions_asked: Mapping[tuple[str, str], int] | None = None,
) -> Verdict:
    """Compare all agents with the API server, when nothing writes any more.

    `deletions_asked` is when the writer asked to delete each (key, uid), in nanoseconds since 1970. None means that the
    writers are unknown; then only the first rule applies.
    """
    reports = list(reports)
    agents = [one for report in reports for one in report.agents]
    same = [one for one in agents if (one.digest, one.keys) == (expected.digest, len(expected.live))]
    other = [one for one in agents if (one.digest, one.keys) != (expected.digest, len(expected.live))]
    first_seen: dict[tuple[str, str], tuple[int, str]] = {}
    for report in reports:
        by = report.agents[0].name.partition("-")[0] if report.agents else ""
        for deletion in report.deletions:
            place = (deletion.key, deletion.uid)
            seen = (deletion.first_seen_ns, by)
            first_seen[place] = min(seen, first_seen.get(place, seen))
    return Verdict(
        agents=len(agents),
        converged=len(same),
        public_agents=len(_public(agents)),
        public_converged=len(_public(same)),
        keys=len(expected.live),
        digest=expected.digest,
        differing=[f"{one.name}: {one.keys} keys, digest {one.digest:016x}" for one in other[:EXAMPLES]],
        deletions_seen=len(first_seen),
        phantom_deletions=_phantoms(first_seen, expected, deletions_asked),
        deletions_lost=sum(report.deletions_lost for report in reports),
    )


def unchanged(
    before: expected_state.ExpectedState, after: expected_state.ExpectedState
) -> expected_state.ExpectedState:
    """The keys whose object and version are the same in both lists."""
    live = {
        key: entry
        for key, entry in after.live.items()
        if key in before.live and (before.live[key].uid, before.live[key].revision) == (entry.uid, entry.revision)
    }
    return expected_state.ExpectedState(live)


def unstable_keys(before: expected_state.ExpectedState, after: expected_state.ExpectedState) -> set[str]:
    """All other keys of both lists; they are not judged."""
    return (before.live.keys() | after.live.keys()) - unchanged(before, after).live.keys()


def _public(agents: Sequence[control.AgentDigest]) -> list[control.AgentDigest]:
    return [one for one in agents if one.name.startswith("public-")]


def _phantoms(
    first_seen: Mapping[tuple[str, str], tuple[int, str]],
    expected: expected_state.ExpectedState,
    asked: Mapping[tuple[str, str], int] | None,
) -> list[str]:
    phantoms = []
    for (key, uid), (seen_ns, by) in sorted(first_seen.items()):
        at = datetime.datetime.fromtimestamp(seen_ns / 1e9, datetime.UTC).time().isoformat("milliseconds")
        name = f"{key} ({uid}), seen gone first at {at} by {'a public client' if by == 'public' else 'a raw agent'},"
        live = expected.live.get(key)
        if live is not None and live.uid == uid:
            phantoms.append(f"{name} is live")
        elif asked is not None:
            asked_ns = asked.get((key, uid))
            if asked_ns is None:
                phantoms.append(f"{name} was never deleted")
            elif seen_ns < asked_ns:
                phantoms.append(f"{name} was deleted only {(asked_ns - seen_ns) / 1e6:.1f} ms later")
    return phantoms
