"""Quantiles: accuracy, window, merging, and the list for another process."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typha.observability.quantiles import SHORT_SLOTS, SHORT_WINDOW_SECONDS, WINDOW_SECONDS, Histogram

SLOT = WINDOW_SECONDS / 5


def of(*values: float) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def test_quantiles_of_an_empty_histogram_are_nan() -> None:
    samples = Histogram().samples()
    assert all(math.isnan(samples[name]) for name in ("0.5", "0.9", "0.99"))
    assert (samples["sum"], samples["count"]) == (0, 0)


def test_quantiles_of_a_known_distribution() -> None:
    histogram = of(*(i / 1000 for i in range(1, 1001)))
    for quantile in (0.5, 0.9, 0.99):
        assert histogram.quantile(quantile) == pytest.approx(quantile, rel=0.07)
    assert histogram.total == pytest.approx(500.5)


@given(st.lists(st.floats(min_value=2e-6, max_value=1e8), min_size=1, max_size=200), st.sampled_from((0.5, 0.9, 0.99)))
def test_the_error_of_a_quantile_is_bounded(values: list[float], quantile: float) -> None:
    exact = sorted(values)[math.ceil(quantile * len(values)) - 1]
    assert of(*values).quantile(quantile) == pytest.approx(exact, rel=0.0625)


@pytest.mark.parametrize(("value", "shown"), [(0.0, 0.0), (-1.0, 0.0), (1e-9, 0.0), (math.nan, 0.0)])
def test_values_below_the_range_count_as_zero(value: float, shown: float) -> None:
    assert of(value).quantile(0.5) == shown


@pytest.mark.parametrize("value", [2.0**30, 1e300, math.inf])
def test_values_above_the_range_count_as_the_largest(value: float) -> None:
    assert of(value).quantile(0.5) == pytest.approx(2**30, rel=0.1)


def test_a_value_can_be_recorded_several_times_at_once() -> None:
    histogram = Histogram()
    histogram.record(0.5, times=10)
    assert (histogram.count, histogram.total) == (10, 5.0)


def test_quantiles_forget_after_ten_minutes_but_totals_do_not() -> None:
    histogram = Histogram()
    histogram.rotate(0)
    histogram.record(1.0)
    histogram.rotate(WINDOW_SECONDS - SLOT / 2)
    assert histogram.quantile(0.5) == pytest.approx(1.0, rel=0.0625)
    histogram.rotate(WINDOW_SECONDS + SLOT)
    assert math.isnan(histogram.quantile(0.5))
    assert (histogram.count, histogram.total) == (1, 1.0)


def test_the_window_slides_in_steps() -> None:
    histogram = Histogram()
    for step in range(20):
        histogram.rotate(step * SLOT)
        histogram.record(2.0**step)
    assert sum(histogram.buckets()) == 5
    assert histogram.quantile(0.0001) == pytest.approx(2.0**15, rel=0.0625)


def test_a_long_gap_empties_the_window() -> None:
    histogram = of(1.0)
    histogram.rotate(0)
    histogram.rotate(1e9)
    assert histogram.buckets() == []
    histogram.record(3.0)
    histogram.rotate(1e9 + 1)
    assert sum(histogram.buckets()) == 1


@given(st.lists(st.floats(0, 1e6)), st.lists(st.floats(0, 1e6)))
def test_merging_equals_recording_all_values(first: list[float], second: list[float]) -> None:
    merged = of(*first)
    merged.merge(of(*second))
    both = of(*first, *second)
    assert merged.buckets() == both.buckets()
    assert merged.count == both.count
    assert merged.total == pytest.approx(both.total)


@given(st.lists(st.floats(0, 1e6)))
def test_a_list_of_integers_holds_the_whole_histogram(values: list[float]) -> None:
    histogram = of(*values)
    flat = histogram.to_list()
    assert all(isinstance(item, int) for item in flat)
    received = Histogram.from_list(flat)
    assert received.buckets() == histogram.buckets()
    assert received.count == histogram.count
    assert received.total == pytest.approx(histogram.total, abs=1e-5)


@pytest.mark.parametrize("flat", [[], [1], [0, 0, 1], [0, 0, 100_000, 1], [0, 0, -1, 1]])
def test_other_lists_are_rejected(flat: list[int]) -> None:
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_list(flat)


def test_a_short_window_forgets_after_a_minute_at_the_latest() -> None:
    histogram = Histogram(window_seconds=SHORT_WINDOW_SECONDS, slots=SHORT_SLOTS)
    histogram.rotate(0.0)
    histogram.record(1.0)
    for second in range(60):
        histogram.rotate(second)
    assert histogram.quantile(0.5) == pytest.approx(1.0, rel=0.07)
    histogram.rotate(60.0)
    assert math.isnan(histogram.quantile(0.5))
    assert histogram.count == 1


def test_totals_of_another_histogram_can_be_added_without_its_window() -> None:
    ended, histogram = Histogram(), Histogram()
    ended.record(2.0, times=3)
    histogram.add_totals(ended.to_list())
    assert (histogram.count, histogram.total) == (3, 6.0)
    assert math.isnan(histogram.quantile(0.5))
