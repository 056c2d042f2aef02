"""Checks that several scenarios share: no agent is refused or silent, all come back, and the others do not notice."""

import dataclasses
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from loadtest.environment import measurement, testbed
from loadtest.reporting import report
from loadtest.swarm import histogram, supervisor

PING_INTERVAL_SECONDS: Final = 10.0
"""The service's default."""
P99_FACTOR: Final = 1.2
P99_SLACK_SECONDS: Final = 0.003


@dataclasses.dataclass
class Disturbance:
    """The p99 of the undisturbed agents, in alternating spans without and with a disturbance."""

    without: list[float] = dataclasses.field(default_factory=list)
    with_it: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    """The service's memory at its peak, with the disturbance."""

    def add(self, without: measurement.Window, with_it: measurement.Window) -> None:
        """Add one span of each."""
        self.without.append(without.latency_seconds(0.99))
        self.with_it.append(with_it.latency_seconds(0.99))
        self.peak_bytes = max(self.peak_bytes, with_it.peak_bytes)

    def check(self, name: str, *, judged: bool) -> report.Check:
        """The medians differ by at most 20 % or 3 ms."""
        without, with_it = statistics.median(self.without), statistics.median(self.with_it)
        within = with_it <= max(without * P99_FACTOR, without + P99_SLACK_SECONDS)
        detail = f"p99 {without * 1e3:.1f} ms without, {with_it * 1e3:.1f} ms with them"
        return report.Check(name, within or not judged, detail if judged else f"{detail} (not judged)")


@dataclasses.dataclass(frozen=True)
class Span:
    """What has happened to the swarm's connections since `begin`."""

    testbed: testbed.Testbed
    before: supervisor.Totals
    back_before: histogram.Histogram
    ended_before: Mapping[str, int]
    """Connections that had ended, by the service's reason."""

    def lost(self) -> int:
        """Connections that were in sync and have ended."""
        return self.testbed.swarm.totals().lost - self.before.lost

    def back(self) -> histogram.Histogram:
        """From the loss of each connection to in-sync again."""
        return self.testbed.swarm.back_after.since(self.back_before)

    def all_are_back(self) -> bool:
        """Whether each agent that lost its connection is in sync again, and all others still are."""
        totals = self.testbed.swarm.totals()
        return totals.in_sync >= totals.agents and self.back().total >= totals.lost - self.before.lost

    def facts(self) -> dict[str, str]:
        """How long the agents took to come back."""
        back = self.back()
        quantiles = [(name, back.quantile(part) or 0.0) for name, part in (("p50", 0.5), ("p99", 0.99), ("slowest", 1))]
        text = ", ".join(f"{name} {value:.2f} s" for name, value in quantiles)
        return {"connection lost to in sync again": f"{text} over {back.total:,} connections"}

    async def reasons(self) -> dict[str, str]:
        """Why connections ended, as the service counted them. The service must not have been restarted."""
        rise = _rise(self.ended_before, await _ended(self.testbed))
        return {"connections ended, as the service counts them": _text(rise)}

    def checks(
        self, *, judge_times: bool, ping_interval_seconds: float = PING_INTERVAL_SECONDS, expected: Collection[str] = ()
    ) -> list[report.Check]:
        """No agent was refused (except in the `expected` ways), or silent for longer than the ping interval."""
        after = self.testbed.swarm.totals()
        refused = _rise(self.before.unserved, after.unserved)
        unexpected = sum(count for reason, count in refused.items() if reason not in expected)
        goodbyes = _rise(self.before.goodbyes, after.goodbyes)
        silence, read_gap = self.testbed.swarm.take_silence()
        return [
            report.Check(
                "no agent is refused",
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


async def begin(running: testbed.Testbed) -> Span:
    """Start a span now, and forget earlier silences."""
    await running.sleep(testbed.REPORTED_SECONDS)
    running.swarm.take_silence()
    ended = await _ended(running)
    return Span(running, running.swarm.totals(), running.swarm.back_after.copy(), ended)


def milliseconds(seconds: Sequence[float]) -> str:
    """Times in a report."""
    return ", ".join(f"{value * 1e3:.1f}" for value in seconds) + " ms"


async def _ended(running: testbed.Testbed) -> dict[str, int]:
    ends = (await running.service.counters()).by_label("typha_disconnects_total", "reason")
    return {reason: int(count) for reason, count in ends.items()}


def _rise(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}


def _text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
