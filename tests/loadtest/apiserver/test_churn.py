"""Tests of loadtest.apiserver.churn: the writes, their rate, and their repeatability."""

import json
import time
from typing import Any

import pytest

from loadtest import WRITTEN_AT
from loadtest.apiserver import churn, objects, resources
from loadtest.apiserver.churn import ChurnSettings, ChurnWriter
from loadtest.apiserver.population import Population, populate
from loadtest.apiserver.simulator import Simulator
from loadtest.apiserver.store import Store

SMALL = Population(nodes=3, pods=50, namespaces=3, services=5, widgets=4)


def new_store() -> Store:
    store = Store()
    for resource in resources.BUILT_IN:
        store.install(resource)
    populate(store, SMALL, seed=0)
    return store


def test_the_same_seed_gives_the_same_writes() -> None:
    stores = [new_store(), new_store()]
    for store in stores:
        writer = ChurnWriter(store, ChurnSettings(), seed=3)
        for number in range(300):
            writer.write(number)
    states = [[store.objects(resource) for resource in store.resources()] for store in stores]
    assert states[0] == states[1]
    assert stores[0].version == stores[1].version


def test_all_operations_are_made_and_marked_with_their_time() -> None:
    store = new_store()
    events: list[objects.Event] = []
    store.subscribe(lambda _, event: events.append(event))
    writer = ChurnWriter(store, ChurnSettings(), seed=0)
    for number in range(500):
        writer.write(1000 + number)
    kinds = {kind: [event for event in events if event.kind is kind] for kind in objects.EventKind}
    assert writer.counts["create"] == len(kinds[objects.EventKind.ADDED]) > 20
    assert writer.counts["update"] == len(kinds[objects.EventKind.MODIFIED]) > 300
    assert writer.counts["delete"] == len(kinds[objects.EventKind.DELETED]) > 20
    for event in kinds[objects.EventKind.ADDED] + kinds[objects.EventKind.MODIFIED]:
        metadata = json.loads(event.item)["metadata"]
        assert 1000 <= int(metadata["annotations"][WRITTEN_AT]) < 1500
        assert churn.MARKER in metadata["labels"]


def test_the_time_is_a_label_too_on_request() -> None:
    store = new_store()
    writer = ChurnWriter(
        store, ChurnSettings(types={"pods": 1.0}, label_times=True, pod_bytes=4000, update=0, delete=0), seed=0
    )
    writer.write(1000)
    [pod] = [item for key, item in store.objects(resources.PODS).items() if "churn-" in key]
    metadata = json.loads(pod)["metadata"]
    assert metadata["labels"][WRITTEN_AT] == metadata["annotations"][WRITTEN_AT] == "1000"
    assert len(pod) > 3500


def test_it_continues_after_a_deletion_by_another_writer_or_a_roll_back() -> None:
    store = new_store()
    settings = ChurnSettings(types={"pods": 1.0})
    writer = ChurnWriter(store, settings, seed=0)
    for number in range(50):
        writer.write(number)
    for key in store.objects(resources.PODS):
        store.delete(resources.PODS, *key.split("/"))
    for number in range(50):
        writer.write(number)
    store.roll_back(store.version - 40)
    again = ChurnWriter(store, settings, seed=0)
    for number in range(50):
        writer.write(number)
        again.write(number)
    assert sum(writer.counts.values()) > 100
    assert store.count(resources.PODS) > 0


@pytest.mark.parametrize(
    "members",
    [
        {"rate_per_second": 0},
        {"rate_per_second": -1},
        {"create": 0, "update": 0, "delete": 0},
        {"types": {"dragons": 1}},
        {"types": {}},
        {"update": -1},
    ],
)
def test_invalid_settings(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="churn"):
        ChurnSettings(**members)


def test_types_that_are_not_served() -> None:
    with pytest.raises(ValueError, match="served"):
        ChurnWriter(Store(), ChurnSettings(), seed=0)


async def test_the_pace_is_kept_by_an_absolute_schedule() -> None:
    simulator = Simulator()
    simulator.populate(SMALL)
    begin = time.monotonic()
    simulator.churn.start(ChurnSettings(rate_per_second=400, duration_seconds=0.5))
    await simulator.churn.wait()
    assert time.monotonic() - begin >= 0.49
    statistics = simulator.churn.statistics()
    assert statistics["create"] + statistics["update"] + statistics["delete"] == 200
    assert not simulator.churn.running


async def test_a_burst_comes_at_once() -> None:
    simulator = Simulator()
    simulator.populate(SMALL)
    version = simulator.store.version
    await simulator.churn.burst(500)
    assert simulator.store.version == version + 500
