"""What a cluster needs: replicas, CPU, memory, egress and the API server's load, modelled from measured figures. Pure.

docs/sizing.md says what the figures come from, how they are put together, and how far the model is from recorded runs.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Final, NamedTuple


class Figure(NamedTuple):
    """A measured figure, or a limit of the service."""

    value: float
    unit: str
    what: str
    source: str
    """Page of docs/ and section."""


_BENCH: Final = "performance.md, Results"
_SIZES: Final = "operations.md, Sizes"
_API: Final = "comparison.md, section 1"
_TLS: Final = "decisions/tls-engines.md"

FIGURES: Final[dict[str, Figure]] = {
    "write_us": Figure(6.5, "us", "worker: one write to a client", _BENCH),
    "tls_write_us": Figure(12.0, "us", "the same over mutual TLS", _BENCH),
    "pass_ms": Figure(0.7, "ms", "worker: one pass, whatever its clients", _SIZES),
    "commit_ms": Figure(0.8, "ms", "hub: one commit to its workers", "decisions/measured-costs.md"),
    "update_ms": Figure(0.025, "ms", "hub: one update, from object to message", "decisions/measured-costs.md"),
    "delivery_kb": Figure(0.4, "kB", "update of a pod on the wire, snappy", "sizing.md, Checks"),
    "p99_passes": Figure(2.5, "passes", "p99 of a delivery, in passes of a worker", _BENCH),
    "hub_mb": Figure(50.0, "MB", "hub without objects", _SIZES),
    "hub_kb_per_pod": Figure(1.82, "kB", "hub: one more pod, with its share of nodes", _SIZES),
    "worker_mb": Figure(30.0, "MB", "worker without clients", _SIZES),
    "client_kb": Figure(36.0, "kB", "worker: one more client over mutual TLS, at the peak of a storm", _SIZES),
    "snapshot_kb_per_pod": Figure(0.15, "kB", "a pod in a snapshot for Felix, snappy", "sizing.md, Checks"),
    "log_mb": Figure(64.0, "MB", "log at most (LogBudgetBytes)", "operations.md, Memory"),
    "start_s": Figure(1.5, "s", "CPU from start to ready without objects", _SIZES),
    "start_ms_per_pod": Figure(0.05, "ms", "the same, one more pod", _SIZES),
    "ready_s": Figure(2.0, "s", "time from start to ready without objects", _SIZES),
    "ready_ms_per_pod": Figure(0.16, "ms", "the same, one more pod", _SIZES),
    "storm_ms": Figure(0.85, "ms", "CPU for a client that comes over mutual TLS, without its snapshot", _TLS),
    "storm_ms_per_mb": Figure(0.4, "ms", "CPU for a megabyte of its snapshot", _TLS),
    "watches": Figure(26.0, "", "watches of a replica that watches for itself", _API),
    "api_kb_per_update": Figure(8.0, "kB", "API server: one update to one replica", _API),
    "api_start_kb_per_pod": Figure(9.0, "kB", "API server: the first lists, for each pod", _API),
    "api_start_ms_per_pod": Figure(0.3, "ms", "API server: CPU for the first lists, for each pod", _API),
    "watch_s": Figure(450.0, "s", "mean time until a watch is renewed", "decisions/watching.md"),
    "connections_max": Figure(10_000, "", "connections of a replica (MaxConnectionsUpperLimit)", "configuration.md"),
}

WORKERS_MAX: Final = 3
"""The default for a machine with four CPUs or more."""
PASS_SECONDS_MAX: Final = 0.05
"""A worker's pass over all its clients. With longer ones p99 is above 0.1 s."""
REPLICAS_MIN: Final = 3
"""With fewer, a roll-out or a lost machine leaves one."""
WATCHERS: Final = 2
"""Replicas of a fleet in tiers that watch the API server."""
CONNECTIONS_PER_NODE: Final = 4
"""Of Calico's agents on a node; one of them, Felix, gets the updates of all pods."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is asked."""

    nodes: int
    pods: int
    updates_per_second: float
    """Changes that all agents must hear of."""
    replicas: int = 0
    """0 for as many as the model wants."""
    workers: int = WORKERS_MAX
    network_gbit_per_second: float = 10.0
    """Of the machine of each replica."""
    is_tls: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica, with its share of the nodes."""

    nodes: float
    cores: float
    pass_seconds: float
    p99_seconds: float
    hub_mb: float
    workers_mb: float
    shared_mb: float
    """Logs and snapshots."""
    egress_mb_per_second: float
    start_cpu_seconds: float
    ready_seconds: float
    snapshot_mb: float
    storm_cpu_seconds: float
    """For all its clients at once."""
    storm_seconds: float
    """Until they are in sync: CPU of its workers, or the network."""

    @property
    def memory_mb(self) -> float:
        """All of it."""
        return self.hub_mb + self.workers_mb + self.shared_mb


def value(name: str) -> float:
    """A figure of the table."""
    return FIGURES[name].value


def replica(cluster: Cluster, nodes: float) -> Replica:
    """What a replica needs that serves so many nodes."""
    write_us = value("tls_write_us" if cluster.is_tls else "write_us")
    rate = cluster.updates_per_second
    pass_seconds = value("pass_ms") / 1e3 + nodes / cluster.workers * write_us / 1e6
    # Updates that come during a pass go into the next one together: a worker never needs more than one CPU.
    passes = min(rate, 1 / pass_seconds)
    workers_cores = passes * pass_seconds * cluster.workers
    hub_cores = min(1.0, (passes * value("commit_ms") + rate * value("update_ms")) / 1e3)
    snapshot_mb = cluster.pods * value("snapshot_kb_per_pod") / 1e3
    connections = nodes * CONNECTIONS_PER_NODE
    storm_cpu = (connections * value("storm_ms") + nodes * snapshot_mb * value("storm_ms_per_mb")) / 1e3
    network_seconds = nodes * snapshot_mb / (cluster.network_gbit_per_second * 1e3 / 8)
    return Replica(
        nodes=nodes,
        cores=workers_cores + hub_cores,
        pass_seconds=pass_seconds,
        p99_seconds=pass_seconds * value("p99_passes"),
        hub_mb=value("hub_mb") + cluster.pods * value("hub_kb_per_pod") / 1e3,
        workers_mb=cluster.workers * value("worker_mb") + connections * value("client_kb") / 1e3,
        shared_mb=value("log_mb") + 2 * snapshot_mb,
        egress_mb_per_second=nodes * rate * value("delivery_kb") / 1e3,
        start_cpu_seconds=value("start_s") + cluster.pods * value("start_ms_per_pod") / 1e3,
        ready_seconds=value("ready_s") + cluster.pods * value("ready_ms_per_pod") / 1e3,
        snapshot_mb=snapshot_mb,
        storm_cpu_seconds=storm_cpu,
        storm_seconds=max(storm_cpu / cluster.workers, network_seconds),
    )


def replicas(cluster: Cluster) -> tuple[int, str]:
    """How many replicas are needed so that one may be missing, and which limit decides."""
    write_us = value("tls_write_us" if cluster.is_tls else "write_us")
    nodes_max = {
        "a pass of a worker": (PASS_SECONDS_MAX - value("pass_ms") / 1e3) * 1e6 / write_us * cluster.workers,
        "MaxConnectionsUpperLimit": value("connections_max") / CONNECTIONS_PER_NODE,
        "the network": cluster.network_gbit_per_second
        * 1e6
        / 8
        / 2  # half of it, so that a storm has room
        / (max(cluster.updates_per_second, 1e-9) * value("delivery_kb")),
    }
    reason, least = min(nodes_max.items(), key=lambda item: item[1])
    wanted = 1 + math.ceil(cluster.nodes / least)
    return (wanted, reason) if wanted > REPLICAS_MIN else (REPLICAS_MIN, "the least that survives a lost machine")


def lines(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """The plan, for people."""
    wanted, reason = replicas(cluster)
    count = cluster.replicas or wanted
    each, one_less = (replica(cluster, cluster.nodes / divisor) for divisor in (count, max(1, count - 1)))
    cores = one_less.cores
    yield "cluster", f"{cluster.nodes:,} nodes, {cluster.pods:,} pods, {cluster.updates_per_second:g} updates/s"
    yield "replicas", f"{wanted}, because of {reason}" + (f"; {count} are planned" if count != wanted else "")
    yield "nodes of a replica", f"{each.nodes:,.0f}; {one_less.nodes:,.0f} while one is missing"
    yield (
        "CPU of a replica",
        f"{each.cores:.1f} cores in use, {cores:.1f} while one is missing, {cluster.workers} workers",
    )
    yield "CPU of all", f"{each.cores * count:.1f} cores"
    yield (
        "p99 of a delivery",
        f"{each.p99_seconds * 1e3:.0f} ms, {one_less.p99_seconds * 1e3:.0f} ms while one is missing",
    )
    parts = (
        f"hub {one_less.hub_mb:,.0f}, workers {one_less.workers_mb:,.0f}, logs and snapshots {one_less.shared_mb:,.0f}"
    )
    yield "memory of a replica", f"{one_less.memory_mb:,.0f} MB while one is missing ({parts})"
    total = each.egress_mb_per_second * count
    yield "egress", f"{each.egress_mb_per_second:,.0f} MB/s of each replica, {total:,.0f} MB/s of all"
    ready = f"ready after {each.ready_seconds:.0f} s ({each.start_cpu_seconds:.0f} s of CPU each)"
    synced = f"all in sync {each.storm_seconds:.0f} s later ({each.storm_cpu_seconds:.0f} s of CPU each)"
    yield "full restart", f"{ready}; then {each.snapshot_mb:.0f} MB for each node, {synced}"
    for name, watchers in (("API server", count), ("API server, in tiers", min(WATCHERS, count))):
        yield name, _api_server(cluster, watchers)


def _api_server(cluster: Cluster, watchers: int) -> str:
    watches = watchers * value("watches")
    sent = watchers * cluster.updates_per_second * value("api_kb_per_update") / 1e3
    start_mb = watchers * cluster.pods * value("api_start_kb_per_pod") / 1e3
    start_cpu = watchers * cluster.pods * value("api_start_ms_per_pod") / 1e3
    return (
        f"{watches:.0f} watches, {watches / value('watch_s'):.1f} requests/s, {sent:,.1f} MB/s; a full restart: "
        f"{start_mb:,.0f} MB and {start_cpu:.0f} s of CPU"
    )


def table() -> str:
    """The figures as docs/sizing.md has them."""
    rows = [
        f"| `{name}` | {figure.value:,g} {figure.unit}".rstrip() + f" | {figure.what} | {figure.source} |"
        for name, figure in FIGURES.items()
    ]
    return "\n".join(["| Figure | Value | What | From |", "|---|---|---|---|", *rows])
