"""Histograms with fixed buckets: unlike quantiles, they can be added up over time, processes and replicas. Pure.

A worker counts in them and reports the totals, so they are messages too.
"""

import bisect
from collections.abc import Iterator
from typing import Annotated, Final, TypeAlias

import msgspec

PROPAGATION_BOUNDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds. A pass over 1,000 clients takes some milliseconds, coalescing up to 0.1 s; above 10 s agents hold old data
for so long that people notice."""
WRITE_BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds. The API server's times have a resolution of 1 s, so finer buckets would say nothing."""
APPLIED_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Seconds. A client on a quiet feed reports at once, one on a busy feed within a second."""
BUCKETS_MAX: Final = 32

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1e15)]
_Counts: TypeAlias = Annotated[list[_Count], msgspec.Meta(max_length=BUCKETS_MAX)]


class BucketCounts(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """How many values fell into each bucket since the start, and their sum. Empty counts stand for zeros."""

    counts: _Counts = []
    seconds: _Seconds = 0.0

    def record(self, bounds: tuple[float, ...], seconds: float, times: int) -> None:
        """Record a value, `times` times. A negative one, which clocks that differ can cause, counts as 0."""
        self.counts_of(bounds)[bisect.bisect_left(bounds, seconds)] += times
        if seconds > 0:
            self.seconds += seconds * times

    def counts_of(self, bounds: tuple[float, ...]) -> list[int]:
        """The counts themselves, to record many values in a loop: `bisect_left` of the bounds gives the bucket."""
        if not self.counts:
            self.counts = [0] * (len(bounds) + 1)
        return self.counts

    def add(self, other: "BucketCounts") -> None:
        """Add another's counts, of which `is_of` holds for the same bounds."""
        self.seconds += other.seconds
        if other.counts:
            mine = self.counts or [0] * len(other.counts)
            self.counts = [one + another for one, another in zip(mine, other.counts, strict=True)]

    def is_of(self, bounds: tuple[float, ...]) -> bool:
        """Whether these can be counts of buckets with these upper bounds."""
        return not self.counts or len(self.counts) == len(bounds) + 1

    def samples(self, bounds: tuple[float, ...]) -> Iterator[tuple[str, float]]:
        """The samples of the exposition format: each bucket by its bound's text, cumulated; `sum` and `count`."""
        total = 0
        for bound, count in zip((*map(str, bounds), "+Inf"), self.counts or [0] * (len(bounds) + 1), strict=True):
            total += count
            yield bound, total
        yield "sum", self.seconds
        yield "count", total
