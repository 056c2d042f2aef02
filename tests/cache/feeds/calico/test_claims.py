"""The visible item of a key that several objects claim."""

import random

from hypothesis import given
from hypothesis import strategies as st

from cache.feeds.calico import claims, model


def claim(name: str, *, rank: int = 0, last_wins: bool = True) -> claims.Claim:
    return claims.Claim(rank, name, last_wins, model.Item("k", f"{rank}{name}".encode(), "1"))


def shown(held: claims.Claims) -> str:
    return next(held.of("k")).name


def test_the_last_or_the_first_name_wins() -> None:
    for last_wins, expected in ((True, "c"), (False, "a")):
        held = claims.Claims()
        for name in "bca":
            held.put(claim(name, last_wins=last_wins))
        assert shown(held) == expected


def test_the_lower_rank_wins_for_any_names() -> None:
    held = claims.Claims()
    assert held.put(claim("z", rank=1))
    assert held.put(claim("a", rank=0))
    assert not held.put(claim("zz", rank=1))
    assert shown(held) == "a"


def test_a_new_claim_replaces_the_owners_old_one() -> None:
    held = claims.Claims()
    held.put(claim("a"))
    held.put(claim("b"))
    assert not held.put(claim("a"))
    assert held.put(claim("b"))
    assert [each.name for each in held.of("k")] == ["b", "a"]


def test_the_next_claim_becomes_visible() -> None:
    held = claims.Claims()
    held.put(claim("a"))
    held.put(claim("b"))
    assert held.drop("k", 0, "a") == (False, claim("b").item)
    held.put(claim("a"))
    assert held.drop("k", 0, "b") == (True, claim("a").item)
    assert held.drop("k", 0, "a") == (True, None)
    assert "k" not in held
    assert len(held) == 0


@given(st.sets(st.tuples(st.integers(0, 2), st.sampled_from("abcd")), min_size=1), st.randoms())
def test_the_visible_claim_does_not_depend_on_the_order(owners: set[tuple[int, str]], shuffle: random.Random) -> None:
    results = set()
    for _ in range(3):
        held = claims.Claims()
        order = sorted(owners)
        shuffle.shuffle(order)
        for rank, name in order:
            held.put(claim(name, rank=rank))
        results.add(next(held.of("k")).owner)
    lowest = min(rank for rank, _ in owners)
    assert results == {(lowest, max(name for rank, name in owners if rank == lowest))}
