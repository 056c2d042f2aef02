"""The table of all metrics: name, kind, labels and meaning. Pure.

The names of the original are exact, so its counters have no `_total`. docs/metrics.md is generated from this table.
"""

import enum
from typing import NamedTuple

from typha.observability import buckets


class Kind(enum.StrEnum):
    """The type of a metric, by its name in the exposition format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    SUMMARY = "summary"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One row. Samples of a summary have one more label value: a quantile, `sum` or `count`. So have those of a
    histogram: the upper bound of a bucket, which is one of `bounds` or `+Inf`, `sum` or `count`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()


_C, _G, _S, _H = Kind.COUNTER, Kind.GAUGE, Kind.SUMMARY, Kind.HISTOGRAM
_SYNCER = ("syncer",)

NOT_COUNTED = "Not counted: "
"""Starts the help of a metric that exists only for dashboards of the original; it stays 0, a summary NaN."""

ORIGINAL: tuple[Metric, ...] = (
    Metric("typha_connections_accepted", _C, (), "Accepted connections."),
    Metric("typha_connections_active", _G, (), "Open connections, including those in the handshake."),
    Metric("typha_connections_dropped", _C, (), "Connections of clients that were sent to other replicas."),
    Metric("typha_connections_limit", _G, (), "Connections above which clients are sent to other replicas."),
    Metric("typha_connections_streaming", _G, _SYNCER, "Connections that have completed the handshake."),
    Metric(
        "typha_connections_grace_used",
        _C,
        _SYNCER,
        f"{NOT_COUNTED}slow consumers are not disconnected, so no grace period exists.",
    ),
    Metric("typha_client_snapshot_send_secs", _S, _SYNCER, "Seconds to send one client its snapshot."),
    Metric(
        "typha_client_latency_secs",
        _S,
        _SYNCER,
        "Seconds by which what a client is sent is older than the newest change; 0 for a client that keeps up.",
    ),
    Metric(
        "typha_client_write_latency_secs", _S, _SYNCER, "Seconds of one write to one client; every 64th is measured."
    ),
    Metric(
        "typha_next_breadcrumb_latency_secs",
        _S,
        _SYNCER,
        "Seconds for which a slow consumer waits for its turn to be sent more.",
    ),
    Metric("typha_ping_latency", _S, _SYNCER, "Seconds from a ping to its pong."),
    Metric("typha_kvs_per_msg", _S, _SYNCER, "Updates in one write to one client."),
    Metric(
        "typha_breadcrumb_seq_number",
        _G,
        _SYNCER,
        "Number of the newest batch of updates, from the start of the service.",
    ),
    Metric("typha_breadcrumb_block", _C, _SYNCER, "Batches sent to a client that waited for them."),
    Metric(
        "typha_breadcrumb_non_block",
        _C,
        _SYNCER,
        "Batches sent to a client for which they lay ready, because it lagged.",
    ),
    Metric("typha_breadcrumb_size", _S, _SYNCER, "Updates in one batch; 0 for a second without one."),
    Metric("typha_cache_size", _G, _SYNCER, "Keys in the store."),
    Metric("typha_updates_total", _C, _SYNCER, "Updates from the API server, including skipped ones."),
    Metric("typha_updates_skipped", _C, _SYNCER, "Updates that did not change the content of the feed."),
    Metric("typha_snapshots_generated", _C, _SYNCER, "Snapshot files built."),
    Metric("typha_snapshots_reused", _C, _SYNCER, "Snapshots sent to clients from an existing file."),
    Metric(
        "typha_snapshot_raw_bytes", _G, _SYNCER, "Size of the newest snapshot for agents before compression, in bytes."
    ),
    Metric("typha_snapshot_compressed_bytes", _G, _SYNCER, "Size of the newest snapshot for agents, in bytes."),
    Metric("typha_log_errors", _C, (), "Log lines that the hub or a worker failed to write, and dropped ones."),
    Metric("typha_logs_dropped", _C, (), "Log lines that the hub or a worker dropped because its queue was full."),
)

OURS: tuple[Metric, ...] = (
    Metric(
        "typha_propagation_seconds",
        _H,
        _SYNCER,
        "Seconds from the receipt of a change to its write to one client.",
        buckets.PROPAGATION_BOUNDS,
    ),
    Metric(
        "typha_propagation_from_write_seconds",
        _H,
        _SYNCER,
        "Seconds from the time that the API server noted in a changed object to its write to one client, up to 1 s too "
        "high.",
        buckets.WRITE_BOUNDS,
    ),
    Metric(
        "typha_clients_reporting",
        _G,
        _SYNCER,
        "Clients of the native protocol that report what they have applied. All others are not counted as applied.",
    ),
    Metric(
        "typha_clients_applied",
        _G,
        _SYNCER,
        "Of those, clients that have applied every change older than 2 s.",
    ),
    Metric(
        "typha_applied_lag_seconds_max",
        _G,
        _SYNCER,
        "Age of the oldest change that one of those clients has not applied, in seconds.",
    ),
    Metric(
        "typha_applied_everywhere_seconds",
        _H,
        _SYNCER,
        "Seconds from the publication of a change until the last of those clients has applied it. One change of a feed "
        "is measured at a time; after 60 s it counts as longer than that.",
        buckets.APPLIED_BOUNDS,
    ),
    Metric("typha_build_info", _G, ("version", "commit"), "Version and Git commit of the service; always 1."),
    Metric("typha_ready", _G, (), "1 while /readiness answers 200, else 0."),
    Metric("typha_draining", _G, (), "1 while the service drains, else 0."),
    Metric(
        "typha_stale_seconds",
        _G,
        (),
        "Seconds for which the API server has not confirmed a feed of this replica; 0 while it confirms all.",
    ),
    Metric("typha_handing_over", _G, (), "1 while clients are handed over to replicas that are fresh, else 0."),
    Metric(
        "typha_source",
        _G,
        ("mode",),
        "With the setting Upstream, where the data comes from. 1 for the present mode; for following, the number of "
        "replicas between this one and the API server. 0 for the other modes.",
    ),
    Metric(
        "typha_source_changes_total",
        _C,
        ("mode",),
        "How often the data began to come from elsewhere: watching (the API server), following (another replica), "
        "searching (nowhere). As refusing, how often an upstream was left because of what it sent.",
    ),
    Metric("typha_workers_wanted", _G, (), "Workers that are to serve; 1 for one inside the hub."),
    Metric("typha_workers_serving", _G, (), "Workers that accept connections."),
    Metric(
        "typha_certificate_expiry_timestamp_seconds",
        _G,
        ("file",),
        "Unix time at which the first certificate in a file expires, by the setting that names the file.",
    ),
    Metric("typha_memory_limit_bytes", _G, (), "Memory limit of the service's cgroup; 0 for none."),
    Metric("typha_cache_bytes", _G, _SYNCER, "Size of all keys and values in the store, in bytes."),
    Metric("typha_disconnects_total", _C, ("reason",), "Closed connections, by reason."),
    Metric(
        "typha_felix_agents",
        _G,
        ("release",),
        "Agents of feed felix by the release whose data they get; clients of the native protocol left out.",
    ),
    Metric("typha_worker_restarts_total", _C, (), "Worker processes that ended unexpectedly and were replaced."),
    Metric("typha_watch_relists_total", _C, ("type", "reason"), "Repeated lists of a resource type, by reason."),
    Metric("typha_watch_resumes_total", _C, ("type",), "Broken watch streams that resumed from the last version."),
    Metric(
        "typha_watch_errors_total",
        _C,
        ("type", "class"),
        "Failed requests and broken watch streams, by class of error.",
    ),
    Metric(
        "typha_watch_last_confirmed_seconds",
        _G,
        ("type",),
        "Seconds since the API server last confirmed that the view is current.",
    ),
    Metric(
        "typha_deliveries_total", _C, _SYNCER, "Updates sent to clients, counted once per client, without snapshots."
    ),
    Metric("typha_bytes_sent_total", _C, _SYNCER, "Bytes written to client sockets."),
    Metric("typha_log_bytes", _G, ("syncer", "format"), "Size of a delta log in memory, in bytes."),
    Metric(
        "typha_clients_held",
        _G,
        (),
        "Connections held open without data: refused ones, and ones that wait for a snapshot.",
    ),
    Metric(
        "typha_client_catch_ups_total",
        _C,
        (),
        "Times that the log no longer held a client's position and catch-up started.",
    ),
    Metric("typha_clients_catching_up", _G, (), "Clients that read a catch-up block or wait for one."),
    Metric(
        "typha_catch_up_blocks_total",
        _C,
        (),
        "Catch-up blocks built; one block serves all clients at the same position.",
    ),
    Metric("typha_catch_up_block_bytes_total", _C, (), "Bytes of all catch-up blocks built."),
    Metric(
        "typha_catch_up_refusals_total",
        _C,
        (),
        "Requests for a catch-up block that led to a new snapshot or a disconnect instead.",
    ),
    Metric("typha_catch_up_seconds_total", _C, (), "Seconds that the hub has spent on catch-up blocks."),
    Metric(
        "typha_tombstones",
        _G,
        _SYNCER,
        "Deletions that are kept for slow consumers, and for clients that come back by their position.",
    ),
    Metric(
        "typha_clients_resumed_total",
        _C,
        ("syncer", "by"),
        "Clients that had the map from an earlier connection, and were sent what they lacked: by position or digests.",
    ),
    Metric(
        "typha_subscriptions", _G, (), "Different subscriptions that clients of the native protocol have; at most 16."
    ),
    Metric(
        "typha_subscriptions_declined_total",
        _C,
        (),
        "Clients that were sent the whole feed because their subscription was one too many.",
    ),
    Metric("typha_client_lag_bytes_max", _G, (), "Backlog of the slowest client in the log, in bytes."),
    Metric("typha_client_lag_seconds_max", _G, (), "Lag of the slowest client in seconds."),
    Metric(
        "typha_updates_dropped_total",
        _C,
        ("reason",),
        "Objects that cannot be sent, or (`doubtful`) that are sent but may not mean what they say.",
    ),
    Metric(
        "typha_objects_skipped",
        _C,
        ("kind", "reason"),
        "Objects of a resource type that cannot be decoded, or that have no usable name.",
    ),
    Metric(
        "typha_expensive_conversions_total",
        _C,
        ("kind",),
        "Conversions of one object that took more than 100 ms of CPU time.",
    ),
    Metric("typha_conversions_waiting", _G, (), "Large objects whose newest state waits for its conversion."),
    Metric(
        "typha_config_invalid_values", _G, (), "Invalid values of settings that were replaced by defaults at start."
    ),
    Metric(
        "typha_shortages_total",
        _C,
        ("lacking",),
        "Attempts that failed for lack of descriptors, memory or space, and are repeated, by what they were to make.",
    ),
    Metric("typha_tls_reload_failures_total", _C, (), "Changed TLS files that workers could not use."),
    Metric(
        "typha_reload_failures_total",
        _C,
        ("files",),
        "Failed attempts to load access to the API server, and changed TLS files that the metrics port could not use.",
    ),
    Metric(
        "typha_http_refused_total",
        _C,
        ("server", "reason"),
        "Connections to the metrics or health port or the admin socket that were closed early, and malformed requests, "
        "by reason.",
    ),
    Metric("typha_trace_spans_exported_total", _C, (), "Spans that a collector of traces has accepted."),
    Metric(
        "typha_trace_spans_dropped_total",
        _C,
        (),
        "Spans that were dropped, because the collector of traces did not accept them or was too slow.",
    ),
    Metric("typha_open_files_limit", _G, (), "Limit of open files per process, after raising it at start."),
    Metric(
        "typha_hub_pause_seconds_max",
        _G,
        (),
        "Longest pause of the hub's event loop in the last 10 to 20 minutes, in seconds.",
    ),
    Metric(
        "typha_hub_pause_seconds_worst", _G, (), "Longest pause of the hub's event loop since its start, in seconds."
    ),
    Metric(
        "typha_worker_pause_seconds_max",
        _G,
        (),
        "Longest turn of a worker's event loop in the last 10 to 20 minutes, in seconds.",
    ),
    Metric(
        "typha_worker_pause_seconds_worst",
        _G,
        (),
        "Longest turn of any worker's event loop, including ended workers, in seconds.",
    ),
)

METRICS: tuple[Metric, ...] = ORIGINAL + OURS

_HEADINGS = (("### Metrics of the original", ORIGINAL), ("### Additional metrics", OURS))


def documentation() -> str:
    """The tables of docs/metrics.md."""
    parts = []
    for heading, metrics in _HEADINGS:
        lines = [heading, "", "| Name | Kind | Labels | Meaning |", "|---|---|---|---|"]
        lines += [f"| `{m.name}` | {m.kind} | {', '.join(m.labels) or '-'} | {m.help} |" for m in metrics]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
