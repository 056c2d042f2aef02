"""The rows of the bench: what is measured, its goal, and when the goal is met. Pure."""

import dataclasses
import enum
import statistics
from collections.abc import Mapping, Sequence
from typing import Final

CPU_FACTOR: Final = 1.25
LATENCY_FACTOR: Final = 1.25
LATENCY_SLACK_MILLISECONDS: Final = 5.0
LOG_BUDGET_MEGABYTES: Final = 64 * 1024 * 1024 / 1e6
"""Default of the setting LogBudgetBytes."""


class Rule(enum.Enum):
    """When the goal of a figure is met."""

    CPU = "at most 1.25 x bare"
    LATENCY = "at most 1.25 x bare + 5 ms"
    GOAL = "at most the goal"
    SHOWN = "only shown"


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One number. Where there is a bare loop, the goal is only for orientation. Latencies are in milliseconds."""

    name: str
    title: str
    unit: str
    rule: Rule
    goal: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Figures with one name. `measurement` names the comparison or standalone measurement that makes them."""

    name: str
    measurement: str
    figures: tuple[Figure, ...]
    both: bool = True
    """Whether the protocol makes a difference; if not, the row exists for the native protocol only."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The median of each side's rounds."""

    figure: Figure
    ours: float
    bare: float | None = None
    judged: bool = True

    @property
    def ratio(self) -> float | None:
        """The service's value divided by the bare loop's."""
        return self.ours / self.bare if self.bare else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal, or if the size is not judged."""
        if not self.judged or self.figure.rule is Rule.SHOWN:
            return None
        if self.figure.rule is Rule.GOAL:
            return self.figure.goal is None or self.ours <= self.figure.goal
        if self.bare is None:
            return None
        if self.figure.rule is Rule.CPU:
            return self.ours <= self.bare * CPU_FACTOR
        return self.ours <= self.bare * LATENCY_FACTOR + LATENCY_SLACK_MILLISECONDS


Rounds = Mapping[str, Sequence[float]]
"""Name of a figure -> its value in each round."""


def results(wanted: Sequence[Row], ours: Rounds, bare: Rounds, *, judged: bool) -> list[Result]:
    """The medians of the wanted figures that were measured, in order."""
    return [
        Result(
            figure,
            statistics.median(ours[figure.name]),
            statistics.median(bare[figure.name]) if bare.get(figure.name) else None,
            judged,
        )
        for row in wanted
        for figure in row.figures
        if ours.get(figure.name)
    ]


def choose(names: Sequence[str]) -> list[Row]:
    """The rows with these names, or all without names. Raises ValueError for an unknown name."""
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no such row: {', '.join(unknown)} (there are {', '.join(known)})")
    return [known[name] for name in dict.fromkeys(names)] if names else list(ROWS)


def _delivery(agents: int, rate: int, *, cpu_goal: float | None, p99_goal: float | None, tls: bool = False) -> Row:
    prefix, over = ("mtls-", " over mTLS") if tls else ("", "")
    name = f"{prefix}{agents}x{rate}"
    load = f"{agents:,} clients x {rate} updates/s{over}"
    return Row(
        name,
        "mtls" if tls else str(agents),
        (
            Figure(f"cpu-{name}", f"CPU per delivery, {load}", "µs", Rule.CPU, cpu_goal),
            Figure(f"p99-{name}", f"delivery p99, {load}", "ms", Rule.LATENCY, p99_goal),
        ),
    )


def _peak(agents: int) -> Row:
    goal = 250 + LOG_BUDGET_MEGABYTES
    title = f"peak memory under churn, {agents:,} clients"
    return Row(
        f"peak-memory-{agents}",
        str(agents),
        (Figure(f"peak-memory-{agents}", title, "MB", Rule.GOAL, goal),),
    )


ROWS: Final = (
    _delivery(1000, 20, cpu_goal=7, p99_goal=12),
    _delivery(2000, 50, cpu_goal=None, p99_goal=22),
    _delivery(2000, 100, cpu_goal=None, p99_goal=32),
    _delivery(5000, 20, cpu_goal=None, p99_goal=85),
    _delivery(5000, 50, cpu_goal=None, p99_goal=95),
    _delivery(5000, 100, cpu_goal=None, p99_goal=100),
    _delivery(1000, 20, cpu_goal=12, p99_goal=None, tls=True),
    Row(
        "burst",
        "2000",
        (
            Figure("burst-cpu", "burst of 2,000 updates, 2,000 clients: CPU", "s", Rule.CPU, 2),
            Figure("burst-slowest", "the same, slowest delivery from its write", "ms", Rule.LATENCY, 150),
        ),
    ),
    Row(
        "storm",
        "2000",
        (
            Figure("storm-cpu", "snapshot storm of 2,000 clients: CPU per client", "ms", Rule.CPU, 0.25),
            Figure("storm-slowest", "the same, slowest from connect to in sync", "ms", Rule.SHOWN),
        ),
    ),
    Row(
        "mtls-storm",
        "mtls",
        (
            Figure("mtls-storm-cpu", "snapshot storm of 1,000 clients over mTLS: CPU per client", "ms", Rule.CPU, 2),
            Figure("mtls-storm-slowest", "the same, slowest from connect to in sync", "ms", Rule.SHOWN),
        ),
    ),
    Row(
        "mtls-storm-go",
        "mtls",
        (
            Figure("mtls-storm-go", "the same storm, a server on Go's TLS: CPU per client", "ms", Rule.SHOWN),
            Figure("mtls-storm-go-ratio", "the service's CPU divided by that server's", "", Rule.GOAL, 1),
            Figure("mtls-storm-go-slowest", "that server, slowest from connect to in sync", "ms", Rule.SHOWN),
        ),
        both=False,
    ),
    Row("idle-memory", "5000", (Figure("idle-memory", "memory per idle client", "kB", Rule.GOAL, 2),)),
    Row(
        "mtls-idle-memory",
        "mtls",
        (Figure("mtls-idle-memory", "memory per idle client over mTLS", "kB", Rule.GOAL, 28),),
    ),
    _peak(1000),
    _peak(2000),
    _peak(5000),
    Row(
        "calico",
        "calico",
        (
            Figure("first-sync", "first sync of 20,000 pods, all Calico's feeds: CPU from exec", "s", Rule.GOAL, 2),
            Figure("memory-no-clients", "memory with 20,000 pods, no clients", "MB", Rule.GOAL, 180),
            Figure("memory-first-sync", "the same, at its peak during the first sync", "MB", Rule.SHOWN),
        ),
        both=False,
    ),
    Row(
        "memory-model",
        "memory-model",
        (
            Figure("memory-key-raw", "memory of a key of a raw feed, beyond its value", "bytes", Rule.SHOWN),
            Figure("memory-key-calico", "memory of a key of Calico's feeds, beyond its value", "bytes", Rule.SHOWN),
            Figure("memory-deletion", "memory of a deleted key that clients may not know of", "bytes", Rule.SHOWN),
            Figure("memory-channel-zstd", "memory of a channel, beyond its snapshot: zstd", "MB", Rule.SHOWN),
            Figure("memory-channel-plain", "the same, plain", "MB", Rule.SHOWN),
            Figure("memory-update-zstd", "log of a channel, for one update of a pod: zstd", "bytes", Rule.SHOWN),
            Figure("memory-update-plain", "the same, plain", "bytes", Rule.SHOWN),
        ),
        both=False,
    ),
    Row(
        "pauses",
        "pauses",
        (
            Figure("pause-hub", "worst pause of the hub", "ms", Rule.GOAL, 100),
            Figure("pause-worker", "worst pause of a worker", "ms", Rule.GOAL, 20),
        ),
    ),
    Row(
        "stalled",
        "stalled",
        (Figure("stalled", "10 % of clients stalled: checks that fail", "", Rule.GOAL, 0),),
    ),
    Row(
        "api-requests",
        "api-requests",
        (
            Figure("api-requests", "requests to the API server with 10 clients", "", Rule.SHOWN),
            Figure("api-requests-more", "more of them with 1,000 clients", "", Rule.GOAL, 0),
        ),
    ),
    Row(
        "bare-send",
        "1000",
        (Figure("bare-send", "a send loop without a watch, CPU per delivery, 1,000 x 20", "µs", Rule.SHOWN),),
        both=False,
    ),
)

NAMES: Final = tuple(row.name for row in ROWS)
