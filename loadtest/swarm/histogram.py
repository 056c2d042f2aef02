"""Counts of durations in logarithmic buckets, 32 to an octave: a bucket is at most 3.2 % wide. Pure."""

from collections.abc import Iterable

_SUB_BITS = 5
_MAX_MICROSECONDS = (1 << 40) - 1  # 12 days
BUCKETS = ((_MAX_MICROSECONDS.bit_length() - _SUB_BITS + 1) << _SUB_BITS) + 1


def bucket_of(microseconds: int) -> int:
    """Index of the bucket of a duration. Durations below zero or above 12 days count as the bound."""
    value = min(max(microseconds, 0), _MAX_MICROSECONDS)
    shift = max(0, value.bit_length() - _SUB_BITS - 1)
    return (shift << _SUB_BITS) + (value >> shift)


def lower_bound(bucket: int) -> int:
    """Smallest duration of a bucket, in microseconds."""
    if bucket < 2 << _SUB_BITS:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return (bucket - (shift << _SUB_BITS)) << shift


class Histogram:
    """Counts by bucket. `counts` is public, so that a hot loop can add to it without a call."""

    __slots__ = ("counts",)

    def __init__(self, sparse: Iterable[tuple[int, int]] = ()) -> None:
        self.counts = [0] * BUCKETS
        self.merge(sparse)

    def add(self, microseconds: int) -> None:
        """Count one duration."""
        self.counts[bucket_of(microseconds)] += 1

    def merge(self, sparse: Iterable[tuple[int, int]]) -> None:
        """Add another histogram, given as its (bucket, count) pairs."""
        for bucket, count in sparse:
            self.counts[bucket] += count

    def copy(self) -> "Histogram":
        """The same counts, for `since`."""
        return Histogram(enumerate(self.counts))

    def since(self, before: "Histogram") -> "Histogram":
        """The durations that were counted after `before` was copied from this histogram."""
        pairs = zip(self.counts, before.counts, strict=True)
        return Histogram((bucket, new - old) for bucket, (new, old) in enumerate(pairs))

    def sparse(self) -> list[tuple[int, int]]:
        """The (bucket, count) pairs that are not zero."""
        return [(bucket, count) for bucket, count in enumerate(self.counts) if count]

    def clear(self) -> None:
        """Forget everything; a hot loop may hold `counts`, which stays the same list."""
        self.counts[:] = [0] * BUCKETS

    @property
    def total(self) -> int:
        """Number of durations counted."""
        return sum(self.counts)

    def quantile(self, fraction: float) -> float | None:
        """The duration, in seconds, that `fraction` (0..1) of the counted ones do not exceed; None without any.

        It is the middle of a bucket, so the error is at most 1.6 %.
        """
        total = self.total
        if not total:
            return None
        rank = max(1, min(total, round(fraction * total + 0.5)))
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                return (lower_bound(bucket) + lower_bound(bucket + 1)) / 2 / 1e6
        raise AssertionError("the counts do not add up to their total")

    def quantiles_text(self, unit: str) -> str:
        """p50 and p99 for a report; `unit` names what was counted."""
        quantiles = [(name, self.quantile(fraction)) for name, fraction in (("p50", 0.5), ("p99", 0.99))]
        text = ", ".join("-" if value is None else f"{name} {value * 1e3:.1f} ms" for name, value in quantiles)
        return f"{text} over {self.total:,} {unit}"
