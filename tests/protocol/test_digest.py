"""The state digest: its definition, and its incremental computation."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from protocol import digest

maps = st.dictionaries(st.text(max_size=20), st.binary(max_size=40), max_size=12)


def by_definition(content: dict[str, bytes]) -> int:
    total = 0
    for key, value in content.items():
        encoded = key.encode()
        whole = hashlib.sha256(len(encoded).to_bytes(4, "big") + encoded + value).digest()
        total = (total + int.from_bytes(whole[:8], "big")) % 2**64
    return total


def test_an_empty_map_is_zero() -> None:
    assert digest.state_digest([]) == 0
    assert digest.StateDigest().value == 0


def test_the_boundary_between_key_and_value_counts() -> None:
    assert digest.pair_digest(b"ab", b"c") != digest.pair_digest(b"a", b"bc")


@given(maps)
def test_state_digest_matches_the_specification(content: dict[str, bytes]) -> None:
    assert digest.state_digest(content.items()) == by_definition(content)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.none() | st.binary(max_size=3)), max_size=40))
def test_incremental_digest_equals_full_digest(steps: list[tuple[str, bytes | None]]) -> None:
    kept = digest.StateDigest()
    content: dict[str, bytes] = {}
    for key, value in steps:
        if value is None:
            kept.discard(key)
            content.pop(key, None)
        else:
            kept.put(key, value)
            content[key] = value
        assert kept.value == digest.state_digest(content.items())
        assert len(kept) == len(content)
