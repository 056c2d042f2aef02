"""The choice of the next address, and the pauses."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import addresses


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("typha:5473", ("typha", 5473)),
        ("typha", ("typha", 5473)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1]", ("fe80::1", 5473)),
    ],
)
def test_parse(address: str, expected: tuple[str, int]) -> None:
    assert addresses.parse(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":1",
        "typha:",
        "typha:0",
        "typha:65536",
        "typha:x",
        "typha:²",
        "::1",
        "[::1",
        "[::1]1",
        "[]:1",
        "two words:1",
    ],
)
def test_the_error_names_a_bad_address(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        addresses.parse(address)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="no addresses"):
        addresses.Rotation([])


def test_a_failure_switches_to_another_address() -> None:
    rotation = addresses.Rotation(["a", "b", "c"])
    tried = []
    for _ in range(6):
        tried.append(rotation.current())
        rotation.failed(0.0)
    assert sorted(tried[:3]) == ["a", "b", "c"]
    assert tried[3:] == tried[:3]


def test_a_requested_pause_applies_to_its_own_address_only() -> None:
    rotation = addresses.Rotation(["a", "b"])
    first = rotation.current()
    assert rotation.failed(100.0, retry_after_seconds=60.0) <= 0.1
    second = rotation.current()
    assert second != first
    for _ in range(5):
        rotation.failed(101.0)
        assert rotation.current() == second
    assert rotation.failed(161.0) <= 6.4
    assert rotation.current() == first


def test_a_requested_pause_is_limited() -> None:
    rotation = addresses.Rotation(["a"])
    assert 2.0 <= rotation.failed(0.0, retry_after_seconds=2.0) <= 2.1
    assert 300.0 <= rotation.failed(0.0, retry_after_seconds=1e9) <= 300.2


@given(st.integers(), st.integers(min_value=1, max_value=60))
def test_pauses_grow_up_to_half_a_minute(seed: int, failures: int) -> None:
    rotation = addresses.Rotation(["a"], rng=random.Random(seed))
    for number in range(failures):
        assert 0.0 <= rotation.failed(0.0) <= min(30.0, 0.1 * 2**number)
    assert rotation.failed(0.0, lived_seconds=addresses.HEALTHY_SECONDS) <= 0.1


def test_pauses_are_evenly_distributed() -> None:
    pauses = []
    for seed in range(400):
        rotation = addresses.Rotation(["a"], rng=random.Random(seed))
        for _ in range(12):
            rotation.failed(0.0)
        pauses.append(rotation.failed(0.0))
    assert sum(pause < 15.0 for pause in pauses) == pytest.approx(200, abs=50)
    assert min(pauses) < 1.0
    assert max(pauses) > 29.0


def test_a_server_that_another_one_names_is_tried_once() -> None:
    rotation = addresses.Rotation(["a", "b"])
    first = rotation.current()
    assert rotation.failed(0.0, retry_after_seconds=60.0, servers=("", "[x", first, "c:1", "c:0")) <= 0.1
    assert (rotation.current(), rotation.trusted_host) == ("c:1", first)
    rotation.failed(0.0)
    second = rotation.current()
    assert second not in (first, "c:1")
    assert rotation.trusted_host == second
    rotation.failed(0.0, servers=(first,))
    assert (rotation.current(), rotation.trusted_host) == (first, second)
    rotation.failed(0.0)
    assert rotation.current() == second
