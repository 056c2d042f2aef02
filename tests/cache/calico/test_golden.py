"""Every recording of the original, replayed: what a fresh server holds, and what clients are sent step by step."""

import pytest

from cache.calico import syncers
from tests.cache.calico import corpus

RECORDINGS = 122


def _expected_snapshot(scenario: corpus.Scenario, syncer: str) -> dict[str, corpus.Item]:
    return scenario.snapshot(syncer)


@pytest.mark.parametrize("name", corpus.NAMES)
def test_a_fresh_server_holds_what_the_original_held(name: str) -> None:
    scenario = corpus.load(name)
    replay = corpus.Replay(scenario.group)
    replay.apply_list(scenario.objects_after)
    built_in = set(corpus.Replay(scenario.group).snapshot(syncers.FELIX))
    for syncer in syncers.NAMES:
        expected = scenario.snapshot(syncer)
        held = {key: item for key, item in replay.snapshot(syncer).items() if key in expected or key not in built_in}
        assert held == expected, syncer


@pytest.mark.parametrize("name", corpus.NAMES)
def test_clients_are_sent_what_the_original_sent(name: str) -> None:
    scenario = corpus.load(name)
    replay = corpus.Replay(scenario.group)
    replay.apply_list(corpus.baseline(scenario).objects_after)
    for syncer in syncers.NAMES:
        replay.take(syncer)
    for step, events in enumerate(scenario.events):
        for event in events:
            replay.play(event)
        for syncer in syncers.NAMES:
            assert sorted(replay.take(syncer), key=repr) == sorted(scenario.delta(syncer, step), key=repr), (
                syncer,
                step,
            )


def test_every_recording_is_here() -> None:
    assert len(corpus.NAMES) == RECORDINGS
