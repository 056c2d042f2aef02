"""The verdict: does every agent hold what the API server has, and was nothing reported gone that was not? Pure.

Deletions. An agent "sees an object deleted" when its map loses it: by a deletion, by a snapshot without it, or by an
update of the same key with another uid. An object, which is a key and a uid, is never live again after its deletion at
the API server. So a deletion was seen of a live object (a phantom) if and only if
- the object is live at the API server when everything is over, or
- the one writer never asked for its deletion, or the first agent saw it gone before the writer asked.
The second rule needs a writer that notes each deletion just before it asks for it (`deletions_asked`), and one
clock for both; together they leave no phantom out.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from loadtest.swarm import control
from loadtest.verification import expected_state

EXAMPLES: Final = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What the agents hold, compared with the API server."""

    agents: int
    converged: int
    public_agents: int
    """Of `agents`: those that decode everything through the public client."""
    public_converged: int
    keys: int
    digest: int
    differing: list[str]
    """The first few agents that hold something else, in words."""
    deletions_seen: int
    """Distinct objects that some agent saw deleted."""
    phantom_deletions: list[str]
    deletions_lost: int

    @property
    def passed(self) -> bool:
        """Every agent holds the API server's state, and none saw a live object deleted."""
        return self.converged == self.agents and not self.phantom_deletions and not self.deletions_lost

    def line(self) -> str:
        """One line for people."""
        text = f"{self.converged} of {self.agents} agents hold the API server's state: {self.keys} keys, digest "
        text += f"{self.digest:016x} ({self.public_converged} of {self.public_agents} through the public client)"
        if self.deletions_seen:
            text += f"; {self.deletions_seen} deletions seen, {len(self.phantom_deletions)} of them of a live object"
        return text


def judge(
    reports: Iterable[control.Digests],
    expected: expected_state.Truth,
    *,
    deletions_asked: Mapping[tuple[str, str], int] | None = None,
) -> Verdict:
    """Compares all agents with the API server.

    Args:
        reports: what the processes of the swarm answered, after everything became quiet.
        expected: what the API server listed, after everything became quiet.
        deletions_asked: when the writer asked to delete each (key, uid), in nanoseconds since 1970; None if writers
            are unknown, and then only the first rule is applied.
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


def unchanged(before: expected_state.Truth, after: expected_state.Truth) -> expected_state.Truth:
    """The keys whose object and version were the same in both lists."""
    live = {
        key: entry
        for key, entry in after.live.items()
        if key in before.live and (before.live[key].uid, before.live[key].revision) == (entry.uid, entry.revision)
    }
    return expected_state.Truth(live)


def unstable_keys(before: expected_state.Truth, after: expected_state.Truth) -> set[str]:
    """All other keys of either list: what an agent holds of them is not judged."""
    return (before.live.keys() | after.live.keys()) - unchanged(before, after).live.keys()


def _public(agents: Sequence[control.AgentDigest]) -> list[control.AgentDigest]:
    return [one for one in agents if one.name.startswith("public-")]


def _phantoms(
    first_seen: Mapping[tuple[str, str], tuple[int, str]],
    expected: expected_state.Truth,
    asked: Mapping[tuple[str, str], int] | None,
) -> list[str]:
    phantoms = []
    for (key, uid), (seen_ns, by) in sorted(first_seen.items()):
        name = f"{key} ({uid}), seen gone first by {'a public client' if by == 'public' else 'a raw agent'},"
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
