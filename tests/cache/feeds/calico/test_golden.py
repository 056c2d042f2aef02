"""Replays every recording of the original: the data of a fresh server, and the updates of each step."""

import pytest

from cache.feeds.calico import syncers
from tests.harness import corpus, deviations

RECORDINGS = 122
_NOTHING = deviations.Deviation("")


def _replay_after_baseline(scenario: corpus.Scenario) -> corpus.Replay:
    replay = corpus.Replay(scenario.group)
    replay.apply_list(corpus.baseline(scenario).objects_after)
    for syncer in syncers.NAMES:
        replay.take(syncer)
    return replay


@pytest.mark.parametrize("name", corpus.NAMES)
def test_a_fresh_server_has_the_originals_data(name: str) -> None:
    scenario = corpus.load(name)
    replay = corpus.Replay(scenario.group)
    built_in = set(corpus.Replay(scenario.group).snapshot(syncers.FELIX))
    replay.apply_list(scenario.objects_after)
    deviation = deviations.DEVIATIONS.get(name, _NOTHING).snapshot
    for syncer in syncers.NAMES:
        expected = scenario.snapshot(syncer) | {item.key: item for item in deviation.get(syncer, ())}
        held = {key: item for key, item in replay.snapshot(syncer).items() if key in expected or key not in built_in}
        assert held == expected, syncer


@pytest.mark.parametrize("name", corpus.NAMES)
def test_clients_receive_the_originals_updates(name: str) -> None:
    scenario = corpus.load(name)
    replay = _replay_after_baseline(scenario)
    deviation = deviations.DEVIATIONS.get(name, _NOTHING).deltas
    for step, events in enumerate(scenario.events):
        for event in events:
            replay.play(event)
        for syncer in syncers.NAMES:
            expected = deviation.get((syncer, step), scenario.delta(syncer, step))
            assert sorted(replay.take(syncer), key=repr) == sorted(expected, key=repr), (syncer, step)


@pytest.mark.parametrize("name", corpus.NAMES)
def test_items_of_one_object_have_the_originals_order(name: str) -> None:
    scenario = corpus.load(name)
    replay = _replay_after_baseline(scenario)
    for step, events in enumerate(scenario.events):
        recorded = {syncer: scenario.delta(syncer, step) for syncer in syncers.NAMES}
        for event in events:
            replay.play(event)
            for syncer in syncers.NAMES:
                # The deletions and annotations of a configuration may come in any order.
                sent = [item for item in replay.take(syncer) if "/config/" not in item.key]
                places = [recorded[syncer].index(item) for item in sent if recorded[syncer].count(item) == 1]
                assert places == sorted(places), (syncer, step, sent)


# The original's second server repairs its ClusterInformation at start, so its objects differ from the first server's.
@pytest.mark.parametrize("name", [name for name in corpus.NAMES if not name.startswith("clusterinformation")])
def test_list_and_watch_lead_to_the_same_data(name: str) -> None:
    scenario = corpus.load(name)
    watched = _replay_after_baseline(scenario)
    for event in [event for events in scenario.events for event in events]:
        watched.play(event)
    listed = corpus.Replay(scenario.group)
    listed.apply_list(corpus.baseline(scenario).objects_after)
    listed.apply_list(scenario.objects_after)
    for syncer in syncers.NAMES:
        assert _values(watched.snapshot(syncer)) == _values(listed.snapshot(syncer)), syncer


def _values(items: dict[str, corpus.Item]) -> dict[str, str | None]:
    return {key: item.value for key, item in items.items()}


@pytest.mark.parametrize("name", sorted(deviations.REJECTED))
def test_rejected_objects_are_named(name: str) -> None:
    scenario = corpus.load(name)
    replay = _replay_after_baseline(scenario)
    for events in scenario.events:
        for event in events:
            replay.play(event)
    assert set(replay.rejections) == deviations.REJECTED[name]


def test_all_recordings_are_present() -> None:
    assert len(corpus.NAMES) == RECORDINGS


def test_deviations_name_existing_recordings() -> None:
    assert {*deviations.DEVIATIONS, *deviations.REJECTED} <= set(corpus.NAMES)
