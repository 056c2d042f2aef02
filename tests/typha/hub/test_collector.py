"""What the service says of itself, as of the hub's state."""

import pathlib
from collections.abc import AsyncIterator

import pytest

from protocol import messages
from protocol.reasons import DisconnectReason
from tests.harness import support
from tests.harness.served import FEED, Cluster
from typha import service, settings
from typha.observability import health, metrics_table

WAITING, RESYNC, IN_SYNC = messages.SyncStatus.WAITING, messages.SyncStatus.RESYNC, messages.SyncStatus.IN_SYNC


@pytest.fixture
async def idle(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> AsyncIterator[service.Service]:
    """A service that does not run: its hub is told by the test."""
    configured = settings.Settings(
        server_port=-1,
        server_host="127.0.0.1",
        feeds_file=str(Cluster(tmp_path).feeds_file),
        calico_feeds=getattr(request, "param", "false"),
        workers=0,
    )
    with service.open_listener(configured) as listener:
        made = service.Service(configured, listener)
        yield made
        made.hub.close()


def is_ready(one: service.Service) -> bool:
    one.collector.report(one.health)
    return one.health.readiness(0.0).status == 200


async def test_ready_from_the_first_sync_on_whatever_becomes_of_the_api_server(idle: service.Service) -> None:
    assert not is_ready(idle)
    for status in (WAITING, RESYNC):
        idle.hub.status(support.PODS, status)
        idle.hub.batch_end()
        assert not is_ready(idle)
    for status in (IN_SYNC, RESYNC, WAITING):
        idle.hub.status(support.PODS, status)
        idle.hub.batch_end()
        assert is_ready(idle)
        assert idle.health.liveness(0.0).status == 200
        assert f"{status.label}, 0 keys" in idle.health.table(0.0)
    assert health.cache_reporter(FEED) in idle.health.table(0.0)


async def test_not_ready_while_draining(idle: service.Service) -> None:
    idle.hub.status(support.PODS, IN_SYNC)
    idle.hub.batch_end()
    assert is_ready(idle)
    idle.stop("test")
    assert not is_ready(idle)
    assert idle.health.liveness(0.0).status == 200


async def test_every_sample_stands_in_the_table(idle: service.Service) -> None:
    known = {metric.name: metric for metric in metrics_table.METRICS}
    idle.hub.apply(support.pod("a"))
    idle.hub.status(support.PODS, IN_SYNC)
    idle.hub.batch_end()
    idle.hub.wanted(FEED, "native")
    samples = idle.collector.samples()
    assert samples.keys() <= known.keys()
    for name, values in samples.items():
        for labels in values:
            extra = known[name].kind is metrics_table.Kind.SUMMARY
            assert len(labels) == len(known[name].labels) + extra, name
    assert samples["typha_cache_size"] == {(FEED,): 1}
    assert samples["typha_connections_active"] == {(): 0}
    assert samples["typha_log_bytes"] == {(FEED, "native"): 0}


async def test_the_dead_are_counted(idle: service.Service) -> None:
    idle.workers.dead.add({"accepted": 4, "disconnects": {DisconnectReason.WORKER_DIED.value: 4}})
    samples = idle.collector.samples()
    assert samples["typha_connections_accepted"] == {(): 4}
    assert samples["typha_disconnects_total"]["worker-died",] == 4


@pytest.mark.parametrize("idle", ["auto"], indirect=True)
async def test_not_ready_until_it_is_known_which_feeds_there_are(idle: service.Service) -> None:
    idle.hub.status(support.PODS, IN_SYNC)
    idle.hub.batch_end()
    assert not is_ready(idle)
    assert "felix-cache" in idle.health.readiness(0.0).body
    idle.hub.withdraw_awaited()
    assert is_ready(idle)
    assert "felix-cache" not in idle.health.readiness(0.0).body
