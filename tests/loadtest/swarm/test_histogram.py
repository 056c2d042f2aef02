"""Tests of loadtest.swarm.histogram."""

import math

import hypothesis
from hypothesis import strategies as st

from loadtest.swarm import histogram


@hypothesis.given(st.integers(0, (1 << 40) - 1))
def test_a_duration_lies_in_its_bucket(microseconds: int) -> None:
    bucket = histogram.bucket_of(microseconds)
    assert histogram.lower_bound(bucket) <= microseconds < histogram.lower_bound(bucket + 1)
    assert histogram.lower_bound(bucket + 1) - histogram.lower_bound(bucket) <= max(1, microseconds / 31)


def test_durations_out_of_range_count_as_the_bound() -> None:
    assert histogram.bucket_of(-5) == 0
    assert histogram.bucket_of(1 << 60) == histogram.bucket_of((1 << 40) - 1) < histogram.BUCKETS


@hypothesis.given(st.lists(st.integers(0, 10**8), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_quantiles_are_those_of_the_values(values: list[int], fraction: float) -> None:
    counted = histogram.Histogram()
    for value in values:
        counted.add(value)
    ordered = sorted(values)
    quantile = counted.quantile(fraction)
    assert quantile is not None
    near = {min(len(values), max(1, math.floor(fraction * len(values)) + extra)) - 1 for extra in (0, 1)}
    assert any(abs(quantile * 1e6 - ordered[index]) <= ordered[index] * 0.04 + 1 for index in near)


def test_differences_and_sums() -> None:
    first, second = histogram.Histogram(), histogram.Histogram()
    first.add(100)
    first.add(100)
    second.merge(first.sparse())
    before = first.copy()
    first.add(5000)
    second.merge(first.since(before).sparse())
    assert (before.total, first.total, second.total) == (2, 3, 3)
    assert second.counts == first.counts
    first.clear()
    assert (first.total, second.total) == (0, 3)
    assert histogram.Histogram().quantile(0.5) is None
