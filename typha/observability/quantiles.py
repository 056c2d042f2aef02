"""Quantiles over a sliding window, from counts in logarithmic buckets. Pure; the time is an argument.

Each power of two has eight buckets of equal width, so the error of a quantile is at most 6.25 %. The histograms of
several processes can be added exactly. The summaries of the Prometheus client cannot.
"""

import math
from collections.abc import Sequence

QUANTILES = (0.5, 0.9, 0.99)

WINDOW_SECONDS = 600.0
"""Length of the window, the same as in the original's summaries."""
SHORT_WINDOW_SECONDS = 60.0
"""Of the original's summary of client latency, so that a spike is soon gone."""

SLOTS = 5
SHORT_SLOTS = 2
"""A window moves by a slot, so it covers between all slots and all but one, as in the original."""
_BUCKETS_PER_OCTAVE = 8
_LOWEST_EXPONENT = -20  # about a microsecond; smaller values count as zero
_HIGHEST_EXPONENT = 30  # a gigabyte, or 34 years
BUCKETS = (_HIGHEST_EXPONENT - _LOWEST_EXPONENT) * _BUCKETS_PER_OCTAVE + 1
"""Bucket 0 is for values below a microsecond. The last bucket also takes all larger values."""
LIST_LENGTH_MAX = 2 + 2 * BUCKETS
"""Of a histogram's `to_list`."""

# frexp returns a mantissa in [1/2, 1) and an exponent one above log2's. Bucket 1 begins at the smallest value.
_MANTISSA_FACTOR = 2 * _BUCKETS_PER_OCTAVE
_OFFSET = 1 - (_LOWEST_EXPONENT + 1) * _BUCKETS_PER_OCTAVE - _BUCKETS_PER_OCTAVE
_SMALLEST = 2.0**_LOWEST_EXPONENT
_LARGEST = 2.0**_HIGHEST_EXPONENT
_SUM_UNITS = 1_000_000  # `to_list` has the sum in millionths, as an integer
_frexp = math.frexp


class Histogram:
    """Count and sum of all values, and counts per bucket of a window in slots of equal length."""

    __slots__ = ("_current", "_older", "_slot_end_seconds", "_slot_seconds", "count", "total")

    def __init__(self, *, window_seconds: float = WINDOW_SECONDS, slots: int = SLOTS) -> None:
        self.count = 0
        self.total = 0.0
        self._current: list[int] | None = None  # allocated for the first value: most histograms stay empty
        self._older: list[list[int] | None] = [None] * (slots - 1)
        self._slot_seconds = window_seconds / slots
        self._slot_end_seconds: float | None = None

    def __repr__(self) -> str:
        return f"Histogram(count={self.count}, total={self.total:g}, p50={self.quantile(0.5):g})"

    def record(self, value: float, times: int = 1) -> None:
        """Record a value, `times` times."""
        if self._current is None:
            self._current = [0] * BUCKETS
        # Inlines _bucket: every delivery calls this, and a function call would double the cost.
        if _SMALLEST <= value < _LARGEST:
            mantissa, exponent = _frexp(value)
            self._current[exponent * _BUCKETS_PER_OCTAVE + int(mantissa * _MANTISSA_FACTOR) + _OFFSET] += times
        else:
            self._current[_bucket(value)] += times
        self.count += times
        self.total += value * times

    def rotate(self, now_seconds: float) -> None:
        """Drop the slots that have left the window. Call this regularly, with a monotonic time."""
        if self._slot_end_seconds is None:
            self._slot_end_seconds = now_seconds + self._slot_seconds
        overdue_seconds = now_seconds - self._slot_end_seconds
        if overdue_seconds < 0:
            return
        slots = min(len(self._older) + 1, int(overdue_seconds / self._slot_seconds) + 1)
        for _ in range(slots):
            self._older = [self._current, *self._older[:-1]]
            self._current = None
        self._slot_end_seconds = now_seconds + self._slot_seconds

    def merge(self, other: "Histogram") -> None:
        """Add the values of another histogram. The values of its window count as recorded now."""
        self.count += other.count
        self.total += other.total
        self._add(_nonempty(other.buckets()))

    def merge_list(self, flat: Sequence[int]) -> None:
        """Add the result of another histogram's `to_list`. Raises ValueError if the list is not one."""
        check_list(flat)
        self.add_totals(flat)
        self._add(list(zip(flat[2::2], flat[3::2], strict=True)))

    def add_totals(self, flat: Sequence[int]) -> None:
        """Add count and sum of another histogram's `to_list`, which was checked, and none of its window."""
        self.count += flat[0]
        self.total += flat[1] / _SUM_UNITS

    def buckets(self) -> list[int]:
        """The counts per bucket in the window; empty if no value was recorded."""
        slots = [slot for slot in (self._current, *self._older) if slot is not None]
        if len(slots) == 1:
            return list(slots[0])
        return [sum(column) for column in zip(*slots, strict=True)] if slots else []

    def quantile(self, quantile: float) -> float:
        """A quantile of the window; NaN if the window is empty."""
        return _quantile(_nonempty(self.buckets()), quantile)

    def samples(self) -> dict[str, float]:
        """The samples of a summary: each quantile of `QUANTILES` by its text, `sum` and `count`."""
        counts = _nonempty(self.buckets())
        shown = {str(quantile): _quantile(counts, quantile) for quantile in QUANTILES}
        return {**shown, "sum": self.total, "count": float(self.count)}

    def to_list(self) -> list[int]:
        """A flat list for another process: count, sum in millionths, then bucket and count for each bucket in use."""
        flat = [self.count, max(0, round(self.total * _SUM_UNITS))]
        for bucket, count in _nonempty(self.buckets()):
            flat += (bucket, count)
        return flat

    @classmethod
    def from_list(cls, flat: Sequence[int]) -> "Histogram":
        """A histogram from the result of `to_list`.

        Raises:
            ValueError: the list is not a result of `to_list`.
        """
        histogram = cls()
        histogram.merge_list(flat)
        return histogram

    def _add(self, counts: list[tuple[int, int]]) -> None:
        if counts and self._current is None:
            self._current = [0] * BUCKETS
        for bucket, count in counts:
            if self._current is not None:
                self._current[bucket] += count


def check_list(flat: Sequence[int]) -> None:
    """Check a result of `Histogram.to_list` that came from another process. Raises ValueError if it is none."""
    if not 2 <= len(flat) <= LIST_LENGTH_MAX or len(flat) % 2 or min(flat) < 0 or max(flat[2::2], default=0) >= BUCKETS:
        raise ValueError("not a histogram")


def _nonempty(buckets: list[int]) -> list[tuple[int, int]]:
    """(bucket, count) of the buckets that are not empty."""
    return [(bucket, count) for bucket, count in enumerate(buckets) if count]


def _bucket(value: float) -> int:
    if _SMALLEST <= value < _LARGEST:
        mantissa, exponent = _frexp(value)
        return exponent * _BUCKETS_PER_OCTAVE + int(mantissa * _MANTISSA_FACTOR) + _OFFSET
    return BUCKETS - 1 if value >= _LARGEST else 0  # NaN also counts as zero


def _value(bucket: int) -> float:
    """The middle of a bucket."""
    if bucket == 0:
        return 0.0
    octave, step = divmod(bucket - 1, _BUCKETS_PER_OCTAVE)
    return 2.0 ** (_LOWEST_EXPONENT + octave) * (1 + (step + 0.5) / _BUCKETS_PER_OCTAVE)


def _quantile(counts: list[tuple[int, int]], quantile: float) -> float:
    rank = quantile * sum(count for _, count in counts)
    below = 0
    for bucket, count in counts:
        below += count
        if below >= rank:
            return _value(bucket)
    return math.nan
