"""What the service reports about itself, from the hub's state."""

import math
import pathlib
import socket
from collections.abc import AsyncIterator

import pytest

from cache import objects
from cache.feeds.calico import feed as calico_feed
from cache.feeds.calico import syncers
from cache.kube import api, watcher
from cache.watch import policy
from cache.watch.policy import WatchPolicy
from protocol import formats, messages
from protocol.reasons import DisconnectReason
from tests.harness import hub_stand, worker_stand
from tests.harness.hub_stand import LIMITS
from tests.harness.served import FEED, Cluster
from typha import service, settings
from typha.hub import collector, hub, shortages, supervisor
from typha.ipc import link
from typha.ipc import messages as ipc
from typha.observability import buckets, health, logs, loop_latency, metrics, metrics_table, quantiles, webserver
from typha.upstream import source as upstream_source
from typha.worker import stats

IDLE_SETTINGS = settings.Settings(workers=0)
WAITING, RESYNC, IN_SYNC = messages.SyncStatus.WAITING, messages.SyncStatus.RESYNC, messages.SyncStatus.IN_SYNC


@pytest.fixture
async def idle(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> AsyncIterator[service.Service]:
    """A service that does not run: the test feeds its hub."""
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
    """Whether the readiness endpoint says so after a report, with a worker."""
    one.collector.report(one.health)
    one.health.report(health.CLIENT_PORT, now_seconds=0.0, ready=True)
    return one.health.readiness(0.0).status == 200


async def test_ready_after_the_first_sync_whatever_happens_to_the_api_server(idle: service.Service) -> None:
    assert not is_ready(idle)
    for status in (WAITING, RESYNC):
        idle.hub.status(worker_stand.PODS, status)
        idle.hub.batch_end()
        assert not is_ready(idle)
    for status in (IN_SYNC, RESYNC, WAITING):
        idle.hub.status(worker_stand.PODS, status)
        idle.hub.batch_end()
        assert is_ready(idle)
        assert idle.health.liveness(0.0).status == 200
        assert f"{status.label}, 0 keys" in idle.health.table(0.0)
    assert health.cache_reporter(FEED) in idle.health.table(0.0)


async def test_not_ready_without_a_worker_that_accepts_connections(idle: service.Service) -> None:
    idle.hub.status(worker_stand.PODS, IN_SYNC)
    idle.hub.batch_end()
    assert is_ready(idle)
    idle.collector.report_client_port(idle.health)
    assert idle.health.readiness(0.0).status == 503
    assert idle.health.liveness(0.0).status == 200
    assert "0 of 1 workers accept connections" in idle.health.table(0.0)
    worker = hub_stand.Worker()
    worker.attach(idle.hub)
    idle.collector.report_client_port(idle.health)
    assert idle.health.readiness(0.0).status == 503
    worker.say(ipc.Ready())
    idle.supervisor.look()
    idle.collector.report_client_port(idle.health)
    assert idle.health.readiness(0.0).status == 200
    idle.hub.remove_worker(worker.handle.number)
    worker.close()


async def test_not_ready_while_draining(idle: service.Service) -> None:
    idle.hub.status(worker_stand.PODS, IN_SYNC)
    idle.hub.batch_end()
    assert is_ready(idle)
    idle.stop("test")
    assert not is_ready(idle)
    assert idle.health.liveness(0.0).status == 200


async def test_every_sample_is_in_the_table(idle: service.Service) -> None:
    known = {metric.name: metric for metric in metrics_table.METRICS}
    idle.hub.apply(worker_stand.pod("a"))
    idle.hub.status(worker_stand.PODS, IN_SYNC)
    idle.hub.batch_end()
    idle.hub.want_channel(FEED, "native")
    for name in "xy":
        idle.hub.skipped(objects.SkippedObject(worker_stand.PODS, "", name, "no-identity", ""))
    samples = idle.collector.samples()
    assert samples.keys() <= known.keys()
    for name, values in samples.items():
        for labels in values:
            extra = known[name].kind is metrics_table.Kind.SUMMARY
            assert len(labels) == len(known[name].labels) + extra, name
    assert samples["typha_cache_size"] == {(FEED,): 1}
    assert samples["typha_objects_skipped"] == {("core/v1/pods", "no-identity"): 2, ("other", "other"): 0}
    assert samples["typha_connections_active"] == {(): 0}
    assert samples["typha_log_bytes"] == {(FEED, "native"): 0}


async def test_dead_workers_are_counted(idle: service.Service) -> None:
    async def reports_and_ends(_: ipc.WorkerConfig, __: socket.socket, end: socket.socket) -> None:
        counts = ipc.WorkerCounts(accepted=4, feeds={FEED: ipc.FeedCounts(bytes_sent=7)})
        counts.feeds[FEED].propagation.record(buckets.PROPAGATION_BOUNDS, 0.2, 3)
        said = link.Link(end, ipc.FOR_WORKER)
        said.send(ipc.Report(counts, active=4))
        histogram = quantiles.Histogram()
        histogram.record(2.0, times=5)
        said.send(ipc.ReportHistograms(FEED, {"typha_ping_latency": histogram.to_list()}))

    workers = supervisor.Supervisor(idle.hub, IDLE_SETTINGS, LIMITS, idle.listener, serve_embedded=reports_and_ends)
    await workers.run()
    max_latency = loop_latency.MaxLatency(0.0)
    samples = collector.Collector(
        IDLE_SETTINGS, idle.hub, workers, max_latency=max_latency, open_files_limit=1024
    ).samples()
    assert samples["typha_connections_accepted"] == {(): 4}
    assert samples["typha_connections_active"] == {(): 0}
    assert samples["typha_disconnects_total"][DisconnectReason.WORKER_DIED.value,] == 4
    assert (
        samples["typha_propagation_seconds"][FEED, "0.25"] == samples["typha_propagation_seconds"][FEED, "count"] == 3
    )
    assert samples["typha_ping_latency"][FEED, "count"] == 5  # a counter must not fall
    assert math.isnan(samples["typha_ping_latency"][FEED, "0.99"])


async def test_shortages_and_log_lines_of_hub_and_workers_are_added_up(idle: service.Service) -> None:
    configured = settings.Settings(workers=2)
    workers = supervisor.Supervisor(idle.hub, configured, LIMITS, idle.listener, serve_embedded=idle_worker)
    worker = hub_stand.Worker()
    worker.attach(idle.hub)
    worker.say(ipc.Report(ipc.WorkerCounts(shortages=2, log_errors=3, log_lines_dropped=4)))
    idle.hub.shortages.note(shortages.Lacking.LINK, OSError("lacking"))
    idle.hub.shortages.note(shortages.Lacking.LOG, OSError("lacking"))
    samples = collector.Collector(
        configured, idle.hub, workers, max_latency=loop_latency.MaxLatency(0.0), open_files_limit=1024
    ).samples()
    found = samples["typha_shortages_total"]
    assert {lacking: count for (lacking,), count in found.items() if count} == {"worker-link": 3, "log": 1}
    own = logs.COUNTERS.errors + logs.COUNTERS.dropped
    assert samples["typha_log_errors"] == {(): own + 3 + 4}  # dropped lines too, as in the original
    assert samples["typha_logs_dropped"] == {(): logs.COUNTERS.dropped + 4}
    assert idle.collector.samples()["typha_log_errors"] == {(): own}  # an embedded worker has the log
    idle.hub.remove_worker(worker.handle.number)
    worker.close()


async def idle_worker(*_: object) -> None:
    """No worker runs in the hub."""


@pytest.mark.parametrize("idle", ["auto"], indirect=True)
async def test_not_ready_until_the_feeds_are_decided(idle: service.Service) -> None:
    idle.hub.status(worker_stand.PODS, IN_SYNC)
    idle.hub.batch_end()
    assert not is_ready(idle)
    assert "felix-cache" in idle.health.readiness(0.0).body
    idle.hub.withdraw_awaited()
    assert is_ready(idle)
    assert "felix-cache" not in idle.health.readiness(0.0).body


def a_source(the_hub: hub.Hub) -> upstream_source.Source:
    """Of a replica that may follow others, and is elected to watch."""

    async def nothing() -> None:
        """Is not called."""

    async def answers() -> bool:
        return True

    return upstream_source.Source(
        settings.Settings(upstream=upstream_source.ELECTED),
        the_hub,
        incarnation=bytes(16),
        max_value_bytes=1,
        candidates=list,
        watch=nothing,
        api_answers=answers,
        must_watch=lambda: True,
    )


async def test_a_page_has_a_limited_number_of_series(idle: service.Service) -> None:
    """With the four feeds, all kinds, and whatever may be counted of them."""
    configured = settings.Settings(server_port=-1, workers=3, calico_feeds="true")
    feeds = [calico_feed.CalicoFeed(spec, max_value_bytes=1 << 20) for spec in syncers.specs(syncers.Group.V1)]
    the_hub = hub.Hub(feeds, LIMITS)
    workers = supervisor.Supervisor(the_hub, configured, LIMITS, idle.listener, serve_embedded=idle_worker)
    made = collector.Collector(
        configured,
        the_hub,
        workers,
        max_latency=loop_latency.MaxLatency(0.0),
        open_files_limit=1024,
        version="v1",
        commit="c",
    )
    made.source = a_source(the_hub)
    made.register(idle.health)
    made.web_servers.append(webserver.health_server(idle.health, configured))
    made.web_servers.append(webserver.metrics_server(lambda: b"", metrics.CONTENT_TYPE, configured))
    types = the_hub.types
    session = api.KubeApi()
    for type in types:
        watched = watcher.Watcher(session, type, the_hub, policy=WatchPolicy())
        watched.counters.errors = dict.fromkeys(watched.counters.errors, 1)
        watched.counters.relists_410 = watched.counters.resumes = 1
        watched.counters.last_confirmed = 0.0
        made.watchers.append(watched)
        the_hub.expensive_conversions[str(type)] = 1
        for reason in ("undecodable", "no-identity", "wrong-kind"):
            the_hub.objects_skipped[str(type), reason] = 1
        the_hub.status(type, IN_SYNC)
    the_hub.updates_refused |= {f"reason-{number}": 1 for number in range(60)}
    the_hub.commit()
    for source in feeds:
        for name in formats.NAMES:
            the_hub.want_channel(source.name, name)
    assert len(the_hub.channels) == len(feeds) * len(formats.NAMES) == 20
    while (wanted := the_hub.snapshots.take()) is not None:
        worker_stand.build_snapshot(the_hub, wanted)
    worker = hub_stand.Worker()
    worker.attach(the_hub)
    histogram = quantiles.Histogram()
    histogram.record(1.0)
    for source in feeds:
        worker.handle.histograms[source.name] = dict.fromkeys(stats.HISTOGRAMS, histogram.to_list())
    counts = {source.name: ipc.FeedCounts() for source in feeds}
    for found in counts.values():
        found.propagation.record(buckets.PROPAGATION_BOUNDS, 1.0, 1)
        found.propagation_from_write.record(buckets.WRITE_BOUNDS, 1.0, 1)
    worker.say(ipc.Report(ipc.WorkerCounts(feeds=counts, disconnects=dict.fromkeys(DisconnectReason, 1))))
    page = metrics.make_registry(
        metrics.SamplesCollector(made.samples, syncers=the_hub.names), runtime=True, process=True
    )
    for _ in range(2):  # what is shown does not grow from page to page
        lines = [line for line in metrics.exposition(page).decode().splitlines() if not line.startswith("#")]
        certificates_at_most = 4
        assert 400 < len(lines) + certificates_at_most <= collector.SERIES_MAX, len(lines)
    shown = [line for line in lines if line.startswith("typha_watch_errors_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in shown) == len(types) * len(policy.Failure)  # none is lost
    assert 'typha_watch_errors_total{type="other",class="other"}' in "\n".join(shown)
    worker.close()
    the_hub.close()
