"""Histograms with fixed buckets: what they count, and that they can be added up."""

import msgspec
import pytest

from typha.observability.buckets import BUCKETS_MAX, PROPAGATION_BOUNDS, WRITE_BOUNDS, BucketCounts

BOUNDS = (1.0, 2.0)


def test_a_value_counts_in_its_bucket_and_all_above() -> None:
    made = BucketCounts()
    for seconds, times in ((0.5, 1), (1.0, 2), (1.5, 3), (9.0, 4), (-5.0, 5)):
        made.record(BOUNDS, seconds, times)
    assert dict(made.samples(BOUNDS)) == {"1.0": 8, "2.0": 11, "+Inf": 15, "sum": 43.0, "count": 15}


def test_without_values_all_samples_are_zeros() -> None:
    assert dict(BucketCounts().samples(BOUNDS)) == {"1.0": 0, "2.0": 0, "+Inf": 0, "sum": 0.0, "count": 0}


def test_counts_add_up() -> None:
    one, another = BucketCounts(), BucketCounts()
    one.record(BOUNDS, 0.5, 2)
    another.record(BOUNDS, 3.0, 1)
    total = BucketCounts()
    for made in (BucketCounts(), one, another, BucketCounts()):
        total.add(made)
    assert dict(total.samples(BOUNDS)) == {"1.0": 2, "2.0": 2, "+Inf": 3, "sum": 4.0, "count": 3}
    assert one.counts == [2, 0, 0]  # adding changes none of them


@pytest.mark.parametrize(("counts", "is_sane"), [([], True), ([1, 2, 3], True), ([1, 2], False), ([0] * 4, False)])
def test_counts_of_other_buckets_are_told(counts: list[int], is_sane: bool) -> None:
    assert BucketCounts(counts).is_of(BOUNDS) is is_sane


@pytest.mark.parametrize("said", [[[-1], 0.0], [[0] * (BUCKETS_MAX + 1), 0.0], [[], -1.0], [[], float("nan")], [["x"]]])
def test_what_a_worker_must_not_say_is_refused(said: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(said, BucketCounts)


@pytest.mark.parametrize("bounds", [PROPAGATION_BOUNDS, WRITE_BOUNDS])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert len(bounds) < BUCKETS_MAX
