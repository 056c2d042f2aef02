"""What SIGUSR1 makes the hub log: bounded, whatever there is."""

from collections.abc import AsyncIterator

import pytest
from structlog import testing

from cache import resources
from cache.kube import api, watcher
from protocol import messages
from tests.harness import worker_stand
from typha import service, settings


@pytest.fixture
async def idle() -> AsyncIterator[service.Service]:
    """A service that does not run: the test feeds its hub."""
    configured = settings.Settings(server_port=-1, server_host="127.0.0.1", calico_feeds="false", workers=0)
    with service.open_listener(configured) as listener:
        made = service.Service(configured, listener)
        made.hub.add_feeds([worker_stand.raw_feed()])
        yield made
        made.hub.close()


async def test_each_part_has_a_line(idle: service.Service) -> None:
    idle.hub.apply(worker_stand.pod("a", "a secret of somebody"))
    idle.hub.status(worker_stand.PODS, messages.SyncStatus.IN_SYNC)
    idle.hub.batch_end()
    idle.hub.want_channel(worker_stand.FEED, "native")
    with testing.capture_logs() as lines:
        assert idle.diagnosis.write()
    by_event = {line["event"]: line for line in lines}
    assert by_event["Diagnosis of the hub"]["feeds"] == 1
    assert by_event["Diagnosis of the hub"]["resident_bytes"] > 1 << 20
    assert by_event["Diagnosis of the hub"]["open_files"] > 1
    feed = by_event["Diagnosis of a feed"]
    assert (feed["feed"], feed["status"], feed["keys"]) == (worker_stand.FEED, "in-sync", 1)
    assert "secret" not in str(lines)


async def test_lines_and_times_are_limited(idle: service.Service) -> None:
    session = api.KubeApi()
    for number in range(300):
        type = resources.ResourceType("", "v1", f"things{number}")
        idle.collector.watchers.append(watcher.Watcher(session, type, idle.hub))
    with testing.capture_logs() as lines:
        assert idle.diagnosis.write()
        assert not idle.diagnosis.write()  # a moment ago
    assert sum(line["event"] == "Diagnosis of a watch" for line in lines) == 100
    assert sum(line["event"] == "Diagnosis of the hub" for line in lines) == 1
