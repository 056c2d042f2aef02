"""What the service reports about itself: samples for /metrics, and states for the health endpoints."""

from collections.abc import Iterable

from cache.feeds import feed as cache_feed
from cache.feeds.calico import releases
from cache.kube import api, watcher
from protocol import formats, reasons
from typha import clock, settings
from typha.hub import channel as hub_channel
from typha.hub import hub, rebalancing, shortages, supervisor
from typha.ipc import messages
from typha.observability import buckets, certificates, health, logs, loop_latency, metrics, quantiles, spans, webserver
from typha.peers import freshness, watch
from typha.settings import machine
from typha.upstream import source as upstream_source

_monotonic = clock.monotonic
SERIES_MAX = 500
"""Of a page with all four feeds and everything that they can count. A feed for agents of an older release adds some
ninety."""
_OTHER = "other"
_LABEL_SETS_MAX = {
    "typha_watch_errors_total": 8,
    "typha_watch_relists_total": 6,
    "typha_watch_resumes_total": 6,
    "typha_objects_skipped": 7,
    "typha_expensive_conversions_total": 4,
    "typha_updates_dropped_total": 7,
}
"""Of metrics by kind or reason, which together could have a thousand series. The ones that count first are shown; all
others are added up as `other`. A cluster with faults of more kinds has one fault that concerns all of them."""
_FORMATS_BY_USE = tuple(reversed(formats.NAMES))
"""Agents use Typha's formats, and nearly all of them the compressed one."""


class Collector:
    """Reads plain numbers from the parts; keeps none of its own, only which label values it has shown."""

    def __init__(
        self,
        configured: settings.Settings,
        the_hub: hub.Hub,
        the_supervisor: supervisor.Supervisor,
        *,
        max_latency: loop_latency.MaxLatency,
        open_files_limit: int,
        version: str = "",
        commit: str = "",
    ) -> None:
        self._build = version, commit
        self._memory_limit_bytes = machine.read().memory_limit_bytes or 0
        self._expiry_times = certificates.ExpiryTimes(
            {
                "ServerCertFile": configured.server_cert_file,
                "CAFile": configured.ca_file,
                "PrometheusMetricsCertFile": configured.prometheus_metrics_cert_file,
                "PrometheusMetricsCAFile": configured.prometheus_metrics_ca_file,
            }
        )
        self._health: health.HealthAggregator | None = None
        self._shown: dict[str, set[tuple[str, ...]]] = {name: set() for name in _LABEL_SETS_MAX}
        self._settings = configured
        self._hub = the_hub
        self._supervisor = the_supervisor
        self.max_latency = max_latency
        self._open_files_limit = open_files_limit
        self._reported_feeds: list[str] = []
        self.session: api.KubeApi | None = None
        self.watchers: list[watcher.Watcher] = []
        self.web_servers: list[webserver.WebServer] = []
        self.spans: spans.SpanExporter | None = None
        self.peers: watch.Peers | None = None
        self.source: upstream_source.Source | None = None
        """None if this replica always watches the API server."""
        self.rebalancer: rebalancing.Rebalancer | None = None
        self.http_refused: dict[str, dict[str, int]] = {}
        """The same counts of other HTTP servers, by name and reason."""

    def samples(self) -> metrics.Samples:
        """Everything, as of now."""
        parts = (
            self._connection_samples,
            self._histogram_samples,
            self._feed_samples,
            self._watch_samples,
            self._process_samples,
            self._state_samples,
        )
        found = {name: values for part in parts for name, values in part().items()}
        return found | {name: self._bounded(name, found[name]) for name in _LABEL_SETS_MAX}

    def _bounded(self, name: str, values: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
        """The values that count, with a limited number of label sets: those that counted first, and `other`."""
        shown = self._shown[name]
        labels_count = len(metrics.BY_NAME[name].labels)
        limited: dict[tuple[str, ...], float] = {(_OTHER,) * labels_count: 0}  # so that their sum begins at 0
        for labels, value in values.items():
            if not value:
                continue
            if labels not in shown and len(shown) < _LABEL_SETS_MAX[name]:
                shown.add(labels)
            place = labels if labels in shown else (_OTHER,) * labels_count
            limited[place] = limited.get(place, 0) + value
        return limited

    def _connection_samples(self) -> metrics.Samples:
        totals = self._supervisor.totals()
        reports = [worker.report for worker in self._hub.workers.values()]
        channels = [channel for report in reports for channel in report.channels.values()]
        catch_ups = self._hub.catch_ups
        return {
            "typha_connections_accepted": {(): totals.accepted},
            "typha_connections_active": {(): sum(report.active for report in reports)},
            "typha_connections_dropped": {(): totals.disconnects.get(reasons.DisconnectReason.REBALANCED, 0)},
            "typha_connections_limit": {(): 0 if self.rebalancer is None else self.rebalancer.limit.connections},
            "typha_disconnects_total": {(reason.value,): count for reason, count in totals.disconnects.items()},
            "typha_worker_restarts_total": {(): self._supervisor.restarts},
            "typha_clients_held": {
                (): sum(channel.held for channel in channels) + sum(report.closing for report in reports)
            },
            "typha_tls_reload_failures_total": {(): totals.tls_reload_failures},
            "typha_client_catch_ups_total": {(): totals.catch_ups},
            "typha_shortages_total": self._shortages(totals),
            "typha_clients_catching_up": {(): sum(channel.catching_up for channel in channels)},
            "typha_catch_up_blocks_total": {(): catch_ups.blocks_made},
            "typha_catch_up_block_bytes_total": {(): catch_ups.bytes_made},
            "typha_catch_up_refusals_total": {(): catch_ups.refused},
            "typha_catch_up_seconds_total": {(): catch_ups.seconds},
            "typha_client_lag_bytes_max": {(): max((channel.lag_bytes for channel in channels), default=0)},
            "typha_client_lag_seconds_max": {(): max((channel.lag_seconds for channel in channels), default=0.0)},
            "typha_worker_pause_seconds_max": {
                (): max((report.longest_turn_seconds for report in reports), default=0.0)
            },
            "typha_worker_pause_seconds_worst": {(): self._supervisor.longest_turn_seconds},
            "typha_deliveries_total": {(feed,): counts.deliveries for feed, counts in totals.feeds.items()},
            "typha_bytes_sent_total": {(feed,): counts.bytes_sent for feed, counts in totals.feeds.items()},
            "typha_breadcrumb_block": {(feed,): counts.sends for feed, counts in totals.feeds.items()},
            "typha_breadcrumb_non_block": {(feed,): counts.late_sends for feed, counts in totals.feeds.items()},
            "typha_snapshots_reused": {(feed,): counts.snapshots_sent for feed, counts in totals.feeds.items()},
            "typha_clients_resumed_total": {
                (feed, by): count
                for feed, counts in totals.feeds.items()
                for by, count in (("position", counts.resumed), ("digests", counts.snapshots_in_part))
            },
            "typha_subscriptions": {(): len(self._hub.derived.selections)},
            "typha_subscriptions_declined_total": {
                (): sum(counts.subscriptions_declined for counts in totals.feeds.values())
            },
            "typha_propagation_seconds": metrics.histogram_samples(
                {(feed,): counts.propagation for feed, counts in totals.feeds.items()}, buckets.PROPAGATION_BOUNDS
            ),
            "typha_propagation_from_write_seconds": metrics.histogram_samples(
                {(feed,): counts.propagation_from_write for feed, counts in totals.feeds.items()}, buckets.WRITE_BOUNDS
            ),
        }

    def _shortages(self, totals: messages.WorkerCounts) -> dict[tuple[str, ...], float]:
        counts = {lacking: self._hub.shortages.counts.get(lacking, 0) for lacking in shortages.Lacking}
        counts[shortages.Lacking.LINK] += totals.shortages
        return {(lacking.value,): count for lacking, count in counts.items()}

    def _histogram_samples(self) -> metrics.Samples:
        """The workers' histograms, added up, and the hub's own."""
        merged: dict[str, dict[tuple[str, ...], quantiles.Histogram]] = {}
        for worker in self._hub.workers.values():
            for feed, histograms in worker.histograms.items():
                for name, flat in histograms.items():
                    one = merged.setdefault(name, {}).setdefault((feed,), quantiles.Histogram())
                    one.merge_list(flat)
        for (metric, feed), totals in self._supervisor.dead_histograms.items():
            merged.setdefault(metric, {}).setdefault((feed,), quantiles.Histogram()).merge(totals)
        for feed, histogram in self._hub.publisher.batch_sizes.items():
            histogram.rotate(_monotonic())
            merged.setdefault("typha_breadcrumb_size", {})[feed,] = histogram
        return {name: metrics.summary_samples(histograms) for name, histograms in merged.items()}

    def _feed_samples(self) -> metrics.Samples:
        feeds = self._hub.feeds.values()
        channels = self._hub.channels.values()
        streaming: dict[tuple[str, ...], float] = {(source.name,): 0 for source in feeds}
        agents: dict[tuple[str, ...], float] = {(release.value,): 0 for release in releases.Release}
        for channel in channels:
            reports = self._hub.workers.channel_reports(channel)
            clients = sum(report.clients for report in reports if report is not None)
            streaming[channel.feed.name,] += clients
            if channel.feed.name in releases.BY_FEED and not formats.replaces_by_snapshot(channel.encoder.name):
                agents[releases.BY_FEED[channel.feed.name].value,] += clients
        built: dict[tuple[str, ...], float] = {(source.name,): 0 for source in feeds}
        log_bytes: dict[tuple[str, ...], float] = {}
        for channel in channels:
            built[channel.feed.name,] += channel.snapshots_built
            labels = channel.feed.name, channel.encoder.name
            log_bytes[labels] = log_bytes.get(labels, 0) + channel.log.used_bytes
        return {
            "typha_connections_streaming": streaming,
            "typha_felix_agents": agents,
            "typha_breadcrumb_seq_number": {
                (name,): count for name, count in self._hub.publisher.batches_total.items()
            },
            "typha_cache_size": {(source.name,): len(source.store) for source in feeds},
            "typha_tombstones": {(source.name,): source.store.tombstone_count for source in feeds},
            "typha_updates_skipped": {(source.name,): source.skipped for source in feeds},
            "typha_updates_total": {
                (source.name,): self._hub.publisher.updates_total[source.name] + source.skipped for source in feeds
            },
            **self._applied_samples(),
            "typha_snapshots_generated": built,
            "typha_cache_bytes": {(source.name,): source.store.value_bytes for source in feeds},
            **_snapshot_samples(channels),
            "typha_log_bytes": log_bytes,
            "typha_updates_dropped_total": {(reason,): count for reason, count in self._hub.updates_refused.items()},
            "typha_expensive_conversions_total": {
                (type,): count for type, count in self._hub.expensive_conversions.items()
            },
            "typha_conversions_waiting": {(): self._hub.conversions.waiting},
            "typha_objects_skipped": {(type, reason): n for (type, reason), n in self._hub.objects_skipped.items()},
        }

    def _applied_samples(self) -> metrics.Samples:
        now = _monotonic()
        found = {
            (name,): self._hub.convergence.reported(name, times, now)
            for name, times in self._hub.publisher.commit_times.items()
            if self._hub.convergence.is_reported(name)
        }
        return {
            "typha_clients_reporting": {labels: one.reporting for labels, one in found.items()},
            "typha_clients_applied": {labels: one.applied for labels, one in found.items()},
            "typha_applied_lag_seconds_max": {labels: one.lag_seconds for labels, one in found.items()},
            "typha_applied_everywhere_seconds": metrics.histogram_samples(
                {(feed,): counts for feed, counts in self._hub.convergence.seconds.items()}, buckets.APPLIED_BOUNDS
            ),
        }

    def _watch_samples(self) -> metrics.Samples:
        relists: dict[tuple[str, ...], float] = {}
        resumes: dict[tuple[str, ...], float] = {}
        failures: dict[tuple[str, ...], float] = {}
        confirmed: dict[tuple[str, ...], float] = {}
        now = _monotonic()
        for one in self.watchers:
            counters, name = one.counters, str(one.type)
            relists[name, "410"] = counters.relists_410
            resumes[name,] = counters.resumes
            failures |= {(name, failure): count for failure, count in counters.errors.items()}
            if counters.last_confirmed is not None:
                confirmed[name,] = now - counters.last_confirmed
        return {
            "typha_watch_relists_total": relists,
            "typha_watch_resumes_total": resumes,
            "typha_watch_errors_total": failures,
            "typha_watch_last_confirmed_seconds": confirmed,
        }

    def _process_samples(self) -> metrics.Samples:
        # A worker inside the hub has the hub's log.
        totals = self._supervisor.totals() if self._supervisor.wanted else messages.WorkerCounts()
        return {
            "typha_log_errors": {
                (): logs.COUNTERS.errors + totals.log_errors + logs.COUNTERS.dropped + totals.log_lines_dropped
            },
            "typha_logs_dropped": {(): logs.COUNTERS.dropped + totals.log_lines_dropped},
            "typha_config_invalid_values": {(): self._settings.config_invalid_values},
            "typha_trace_spans_exported_total": {(): 0 if self.spans is None else self.spans.exported},
            "typha_trace_spans_dropped_total": {(): 0 if self.spans is None else self.spans.dropped},
            "typha_open_files_limit": {(): self._open_files_limit},
            "typha_hub_pause_seconds_max": {(): self.max_latency.recent_seconds},
            "typha_hub_pause_seconds_worst": {(): self.max_latency.worst_seconds},
            "typha_reload_failures_total": {
                ("api-server",): self.session.load_failures if self.session else 0,
                ("metrics-tls",): sum(server.tls_failures for server in self.web_servers),
            },
            "typha_http_refused_total": {
                (name, reason): count
                for name, counts in [
                    *((server.name, server.refused) for server in self.web_servers),
                    *self.http_refused.items(),
                ]
                for reason, count in counts.items()
            },
        }

    def _state_samples(self) -> metrics.Samples:
        aggregator = self._health
        return {
            "typha_build_info": {self._build: 1},
            "typha_ready": {(): aggregator is not None and int(aggregator.is_ready(_monotonic()))},
            "typha_draining": {(): aggregator is not None and int(aggregator.is_draining)},
            "typha_workers_wanted": {(): max(1, self._supervisor.wanted)},
            "typha_workers_serving": {(): self._supervisor.accepting},
            "typha_certificate_expiry_timestamp_seconds": self._expiry_times.read(),
            "typha_stale_seconds": {(): self.peers.stale_seconds if self.peers is not None else 0.0},
            "typha_handing_over": {
                (): self.peers is not None and int(self.peers.stance is freshness.Stance.HANDING_OVER)
            },
            **self._source_samples(),
            "typha_memory_limit_bytes": {(): self._memory_limit_bytes},
        }

    @property
    def source_text(self) -> str:
        """Where the data comes from, if that may be another replica; else empty."""
        if self.source is None:
            return ""
        chosen = self.source.choice
        return chosen.mode.value if chosen.upstream is None else f"{chosen.mode.value} {chosen.upstream.address}"

    def _source_samples(self) -> metrics.Samples:
        """Only where there may be an upstream: a replica that follows has no series of watches instead."""
        if self.source is None:
            return {"typha_source": {}, "typha_source_changes_total": {}}
        present = self.source.choice.mode
        return {
            "typha_source": {
                (mode.value,): max(1, self.source.choice.distance) if mode is present else 0
                for mode in self.source.changes
            },
            "typha_source_changes_total": {(mode.value,): count for mode, count in self.source.changes.items()},
        }

    def register(self, aggregator: health.HealthAggregator) -> None:
        """Registers what is reported on."""
        self._health = aggregator
        now = _monotonic()
        aggregator.register(health.SYNC_SERVER, now_seconds=now)
        aggregator.register(health.CLIENT_PORT, now_seconds=now, live=False, ready=True)
        self._reported_feeds = self._hub.names
        for name in self._reported_feeds:
            aggregator.register(health.cache_reporter(name), now_seconds=now, ready=True)

    def report_client_port(self, aggregator: health.HealthAggregator) -> None:
        """Reports whether connections are accepted; to be called after each look of the supervisor."""
        accepting = self._supervisor.accepting
        aggregator.report(
            health.CLIENT_PORT,
            now_seconds=_monotonic(),
            ready=accepting > 0,
            detail=f"{accepting} of {max(1, self._supervisor.wanted)} workers accept connections",
        )

    def report(self, aggregator: health.HealthAggregator) -> None:
        """Reports on everything; to be called more often than the reporters time out."""
        now = _monotonic()
        aggregator.report(
            health.SYNC_SERVER,
            now_seconds=now,
            live=True,
            detail=f"{len(self._hub.workers)} of {max(1, self._supervisor.wanted)} workers"
            + (f", {self.source_text}" if self.source_text else ""),
        )
        self._report_freshness(aggregator, now)
        self._report_awaited(aggregator, now)
        for name, source in self._hub.feeds.items():
            if name in releases.PROJECTIONS:
                continue  # made when the first agent of the release comes: readiness does not depend on it
            status = source.store.status
            # Once there is something to serve, this replica serves it, however old. An API server that is away, or is
            # being listed again, concerns all replicas, and must not take all of them out of the Service.
            aggregator.report(
                health.cache_reporter(name),
                now_seconds=now,
                live=True,
                ready=source.synced_once,
                detail=f"{status.label}, {len(source.store)} keys{self._staleness(source, now)}",
            )

    def _report_freshness(self, aggregator: health.HealthAggregator, now: float) -> None:
        peers = self.peers
        if peers is None or not peers.is_enabled:
            return
        stale = f" for {peers.stale_seconds:.0f} s" if peers.stale_seconds else ""
        aggregator.report(
            health.FRESHNESS,
            now_seconds=now,
            ready=peers.stance is not freshness.Stance.HANDING_OVER,
            detail=f"{peers.stance.value}{stale}, {len(peers.known)} replicas known",
        )

    def _staleness(self, source: cache_feed.Feed, now: float) -> str:
        """What the health detail says of a feed that the API server does not confirm."""
        if not source.is_stale:
            return ""
        seconds = 0.0 if source.last_confirmed is None else now - source.last_confirmed
        return f", not confirmed by the API server for {seconds:.0f} s"

    def _report_awaited(self, aggregator: health.HealthAggregator, now: float) -> None:
        """Feeds that may yet come are not ready; those that do not come are not reported on."""
        for name in self._hub.awaited:
            detail = "waiting for the API server's list of groups"
            aggregator.report(health.cache_reporter(name), now_seconds=now, live=True, ready=False, detail=detail)
        names = self._hub.names
        for name in self._reported_feeds:
            if name not in names:
                aggregator.unregister(health.cache_reporter(name))
        self._reported_feeds = names


def _snapshot_samples(channels: Iterable[hub_channel.HubChannel]) -> metrics.Samples:
    """Sizes of each feed's newest snapshot, in the format that most agents use if there is one."""
    compressed: dict[tuple[str, ...], float] = {}
    raw: dict[tuple[str, ...], float] = {}
    for one in sorted(channels, key=lambda one: _FORMATS_BY_USE.index(one.encoder.name)):
        if one.snapshot is not None and one.subscription is None:
            compressed.setdefault((one.feed.name,), one.snapshot.length)
            raw.setdefault((one.feed.name,), one.snapshot.raw_length)
    return {"typha_snapshot_raw_bytes": raw, "typha_snapshot_compressed_bytes": compressed}
