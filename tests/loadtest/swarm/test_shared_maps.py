"""Tests of loadtest.swarm.shared_maps."""

import gc

import hypothesis
import pytest
from hypothesis import strategies as st

from loadtest.swarm import agent, shared_maps
from tests.harness.swarm_peers import Source, connect, feed, value

KEYS = st.sampled_from([f"k{number}" for number in range(12)])
CHANGES = st.lists(st.tuples(KEYS, st.none() | st.integers(0, 3)), min_size=1, max_size=4)


@hypothesis.given(st.lists(CHANGES, max_size=12), st.sets(st.integers(0, 11)))
def test_any_history_gives_the_digest_of_its_map(history: list[list[tuple[str, int | None]]], again: set[int]) -> None:
    """One agent follows the deltas; another connects now and then and joins the first one's maps."""
    shared = agent.Shared()
    source = Source({"k0": value("0")})
    first, second = connect(shared), connect(shared)
    for one in (first, second):
        feed(one, source.snapshot())
    for number, changes in enumerate(history):
        delta = source.change(*((key, None if uid is None else value(str(uid))) for key, uid in changes))
        feed(first, delta)
        if number in again:
            feed(second, source.snapshot())
        else:
            feed(second, delta)
        assert first.map is second.map
        assert (first.map.digest, first.map.keys) == (source.digest, len(source.content))
    for key, content in source.content.items():
        assert first.map.entry(key) is not None, content
    assert first.map.entry("nothing") is None


def test_maps_without_agents_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_maps, "REMEMBERED_CHANGES", 50)
    shared = agent.Shared()
    source = Source({"k": value("0")})
    fast, stalled = connect(shared), connect(shared)
    for one in (fast, stalled):
        feed(one, source.snapshot())
    deltas = [source.change(("k", value("0", content=number))) for number in range(500)]
    for delta in deltas:
        feed(fast, delta)
    gc.collect()
    assert len(shared.table) < 60
    for delta in deltas:
        feed(stalled, delta)
    assert stalled.map is fast.map


def test_too_many_deletions_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_maps, "MAX_DELETIONS", 2)
    shared = agent.Shared()
    source = Source({f"k{number}": value(str(number)) for number in range(5)})
    one = connect(shared)
    feed(one, source.snapshot())
    for number in range(5):
        feed(one, source.change((f"k{number}", None)))
    assert (len(shared.table.deletions), shared.table.deletions_lost, one.deletions) == (2, 3, 5)
