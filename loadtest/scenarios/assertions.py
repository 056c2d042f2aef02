"""What storms and crashes are judged by: nobody is refused, nobody is left in silence, and everybody is back."""

import dataclasses
from collections.abc import Collection
from typing import Final

from loadtest.environment import testbed
from loadtest.reporting import report
from loadtest.swarm import histogram, supervisor

PING_INTERVAL_SECONDS: Final = 10.0
"""The service's default."""
REPORTED_SECONDS: Final = 0.6
"""Processes of the swarm report every half a second: after this much, what has happened is known."""


@dataclasses.dataclass(frozen=True)
class Span:
    """The swarm since a moment: what it was then, to be compared with what it is."""

    running: testbed.Stage
    before: supervisor.Totals
    back_before: list[int]
    ended_before: dict[str, int]
    """Connections that the service had seen end, by reason."""

    def lost(self) -> int:
        """Connections of agents in sync that ended since."""
        return self.running.swarm.totals().lost - self.before.lost

    def back(self) -> histogram.Histogram:
        """From the loss of each connection to in-sync again."""
        return self.running.swarm.back_after.since(self.back_before)

    def is_everybody_back(self) -> bool:
        """Whether each agent that lost its connection is in sync again, and all others still are."""
        totals = self.running.swarm.totals()
        return totals.in_sync >= totals.agents and self.back().total >= totals.lost - self.before.lost

    def facts(self) -> dict[str, str]:
        """How long it took the agents to come back."""
        back = self.back()
        quantiles = [(name, back.quantile(part) or 0.0) for name, part in (("p50", 0.5), ("p99", 0.99), ("slowest", 1))]
        text = ", ".join(f"{name} {value:.2f} s" for name, value in quantiles)
        return {"connection lost to in sync again": f"{text} over {back.total:,} connections"}

    async def reasons(self) -> dict[str, str]:
        """Why connections ended, by the service's own account; of a service that is the same all the time."""
        rise = _rise(self.ended_before, await _ended(self.running))
        return {"connections ended, as the service counts them": _text(rise)}

    def checks(
        self, *, judge_times: bool, ping_interval_seconds: float = PING_INTERVAL_SECONDS, expected: Collection[str] = ()
    ) -> list[report.Check]:
        """Nobody refused (but in the `expected` ways), nobody in silence for longer than the ping interval."""
        after = self.running.swarm.totals()
        refused = _rise(self.before.unserved, after.unserved)
        unexpected = sum(count for reason, count in refused.items() if reason not in expected)
        goodbyes = _rise(self.before.goodbyes, after.goodbyes)
        silence, read_gap = self.running.swarm.take_silence()
        return [
            report.Check(
                "nobody is refused",
                not unexpected and not goodbyes,
                f"connections that did not come to be in sync: {_text(refused)}; goodbyes: {_text(goodbyes)}",
            ),
            report.Check(
                "no agent is left in silence for longer than the ping interval",
                silence <= ping_interval_seconds or not judge_times,
                f"{silence:.1f} s at the longest, interval {ping_interval_seconds:g} s; "
                f"between two reads of an agent {read_gap:.1f} s",
            ),
        ]


async def begin(running: testbed.Stage) -> Span:
    """From now on; the silence of before is forgotten."""
    await running.sleep(REPORTED_SECONDS)
    running.swarm.take_silence()
    ended = await _ended(running)
    return Span(running, running.swarm.totals(), list(running.swarm.back_after.counts), ended)


async def _ended(running: testbed.Stage) -> dict[str, int]:
    ends = (await running.service.counters()).by_label("typha_disconnects_total", "reason")
    return {reason: int(count) for reason, count in ends.items()}


def _rise(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}


def _text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
