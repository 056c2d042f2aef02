"""The state digest: its definition, and that keeping it equals computing it."""

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


def test_key_and_value_do_not_run_into_each_other() -> None:
    assert digest.pair_digest(b"ab", b"c") != digest.pair_digest(b"a", b"bc")


@given(maps)
def test_it_is_what_the_page_says(content: dict[str, bytes]) -> None:
    assert digest.state_digest(content.items()) == by_definition(content)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.none() | st.binary(max_size=3)), max_size=40))
def test_kept_equals_computed(steps: list[tuple[str, bytes | None]]) -> None:
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
