"""The one table of metrics: names, kinds, labels and what they mean. Pure.

The original's names are exact: its counters have no `_total`. docs/metrics.md is generated from this table.
"""

import enum
from typing import NamedTuple


class Kind(enum.StrEnum):
    """The type of a metric, as the exposition format names it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    SUMMARY = "summary"


class Metric(NamedTuple):
    """A row of the table. A summary's samples have one more label value: a quantile, `sum` or `count`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


_C, _G, _S = Kind.COUNTER, Kind.GAUGE, Kind.SUMMARY
_SYNCER = ("syncer",)

NOT_COUNTED = "Not counted yet: "
"""Begins the help of a metric that exists for dashboards' sake only, and stays 0 (NaN)."""

ORIGINAL: tuple[Metric, ...] = (
    Metric("typha_connections_accepted", _C, (), "Connections accepted."),
    Metric("typha_connections_active", _G, (), "Connections open, those in their handshake included."),
    Metric("typha_connections_dropped", _C, (), f"{NOT_COUNTED}connections dropped to rebalance replicas."),
    Metric("typha_connections_streaming", _G, _SYNCER, "Connections past their handshake."),
    Metric("typha_connections_grace_used", _C, _SYNCER, f"{NOT_COUNTED}nobody is cut off, so nobody needs a grace."),
    Metric("typha_client_snapshot_send_secs", _S, _SYNCER, "Seconds to send a client its snapshot."),
    Metric("typha_client_latency_secs", _S, _SYNCER, "Seconds from a change in the log to its write to a client."),
    Metric(
        "typha_client_write_latency_secs", _S, _SYNCER, "Seconds to write to one client, mean of each pass over all."
    ),
    Metric("typha_next_breadcrumb_latency_secs", _S, _SYNCER, f"{NOT_COUNTED}seconds waited for the next batch."),
    Metric("typha_ping_latency", _S, _SYNCER, "Seconds from a ping to its pong."),
    Metric("typha_kvs_per_msg", _S, _SYNCER, "Updates per write to a client."),
    Metric("typha_breadcrumb_seq_number", _G, _SYNCER, "Sequence number of the newest change."),
    Metric("typha_breadcrumb_block", _C, _SYNCER, "Writes to clients that had waited for them."),
    Metric("typha_breadcrumb_non_block", _C, _SYNCER, "Writes to clients that were behind."),
    Metric("typha_breadcrumb_size", _S, _SYNCER, "Updates per batch."),
    Metric("typha_cache_size", _G, _SYNCER, "Keys in the store."),
    Metric("typha_updates_total", _C, _SYNCER, "Updates that changed something which the feed carries."),
    Metric("typha_updates_skipped", _C, _SYNCER, "Updates that changed nothing a feed carries."),
    Metric("typha_snapshots_generated", _C, _SYNCER, "Snapshot files made."),
    Metric("typha_snapshots_reused", _C, _SYNCER, "Snapshot files given to clients."),
    Metric("typha_snapshot_raw_bytes", _G, _SYNCER, "Size of the newest snapshot before compression."),
    Metric("typha_snapshot_compressed_bytes", _G, _SYNCER, "Size of the newest snapshot's file."),
    Metric("typha_log_errors", _C, (), "Log lines the hub could not write; unlike the original, without dropped ones."),
    Metric("typha_logs_dropped", _C, (), "Log lines the hub dropped because its queue was full."),
)

OURS: tuple[Metric, ...] = (
    Metric("typha_disconnects_total", _C, ("reason",), "Connections closed, by their one reason."),
    Metric("typha_worker_restarts_total", _C, (), "Worker processes replaced after their death."),
    Metric("typha_watch_relists_total", _C, ("type", "reason"), "Lists after the first, by cause."),
    Metric("typha_watch_resumes_total", _C, ("type",), "Broken watch streams resumed from the last version."),
    Metric("typha_watch_errors_total", _C, ("type", "class"), "Failed requests and broken streams, by class."),
    Metric("typha_watch_last_confirmed_seconds", _G, ("type",), "Seconds since the API server confirmed the view."),
    Metric("typha_deliveries_total", _C, _SYNCER, "Updates handed to clients, once per client, without snapshots."),
    Metric("typha_bytes_sent_total", _C, _SYNCER, "Bytes handed to clients' sockets."),
    Metric("typha_log_bytes", _G, ("syncer", "format"), "Memory of a delta log."),
    Metric("typha_clients_held", _G, (), "Connections held back: refused ones, and ones before the first sync."),
    Metric("typha_client_catch_ups_total", _C, (), "Times that a client fell out of the log, and was to be caught up."),
    Metric("typha_clients_catching_up", _G, (), "Clients that are being caught up by blocks, or wait for one."),
    Metric("typha_catch_up_blocks_total", _C, (), "Catch-up blocks made; one serves all that need the same."),
    Metric("typha_catch_up_block_bytes_total", _C, (), "Bytes of the catch-up blocks made."),
    Metric("typha_catch_up_refusals_total", _C, (), "Start points for which a snapshot or a new start was the answer."),
    Metric("typha_catch_up_seconds_total", _C, (), "Seconds that the hub has spent making catch-up blocks."),
    Metric("typha_tombstones", _G, _SYNCER, "Deletions that are remembered, to catch slow clients up."),
    Metric("typha_client_lag_bytes_max", _G, (), "Bytes of log that the slowest client has not read."),
    Metric("typha_client_lag_seconds_max", _G, (), "Seconds that the slowest client is behind."),
    Metric("typha_updates_dropped_total", _C, ("reason",), "Updates no client got, for they could not be carried."),
    Metric("typha_config_invalid_values", _G, (), "Invalid values of settings at start, replaced by defaults."),
    Metric("typha_tls_reload_failures_total", _C, (), "Changes of the TLS files that workers could not use."),
    Metric("typha_open_files_limit", _G, (), "Limit of open files, raised as far as allowed at start."),
    Metric(
        "typha_hub_pause_seconds_max", _G, (), "Longest time the hub's loop was held up lately: ten minutes or more."
    ),
    Metric("typha_hub_pause_seconds_worst", _G, (), "Longest time the hub's loop was held up since its start."),
    Metric("typha_worker_pause_seconds_max", _G, (), "Longest turn of a worker's loop lately: ten minutes or more."),
    Metric("typha_worker_pause_seconds_worst", _G, (), "Longest turn of any worker's loop, of dead ones too."),
)

METRICS: tuple[Metric, ...] = ORIGINAL + OURS

_HEADINGS = (("### The original's metrics", ORIGINAL), ("### Metrics of our own", OURS))


def documentation() -> str:
    """The tables of docs/metrics.md."""
    parts = []
    for heading, metrics in _HEADINGS:
        lines = [heading, "", "| Name | Kind | Labels | Meaning |", "|---|---|---|---|"]
        lines += [f"| `{m.name}` | {m.kind} | {', '.join(m.labels) or '-'} | {m.help} |" for m in metrics]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
