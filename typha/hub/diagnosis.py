"""What SIGUSR1 makes the hub log: what it knows of itself, its feeds, its workers and the API server.

A bounded number of lines, and nothing of the objects that pass through.
"""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

import structlog

from typha import clock
from typha.hub import collector, hub, supervisor
from typha.observability import logs, memory

_log = structlog.get_logger("typha.diagnosis")

_LINES_OF_A_KIND_MAX = 100
_TASKS_MAX = 50
_SECONDS_BETWEEN = 1.0
"""A signal in a loop must not fill the log."""

_Lines: TypeAlias = Iterator[tuple[str, dict[str, Any]]]


class Diagnosis:
    """Writes it, up to once a second."""

    def __init__(self, the_hub: hub.Hub, the_supervisor: supervisor.Supervisor, collected: collector.Collector) -> None:
        self._hub = the_hub
        self._supervisor = the_supervisor
        self._collected = collected
        self._limit = logs.LineLimit(1, seconds=_SECONDS_BETWEEN)

    def write(self) -> bool:
        """Logs it; False if there was one a moment ago."""
        if not self._limit.allows():
            return False
        self._limit.take_suppressed()
        self._write_hub()
        for kind in (self._feed_fields(), self._channel_fields(), self._worker_fields(), self._watch_fields()):
            for event, fields in itertools.islice(kind, _LINES_OF_A_KIND_MAX):
                _log.info(event, **fields)
        return True

    def _write_hub(self) -> None:
        tasks = sorted(task.get_name() for task in asyncio.all_tasks())
        totals = self._supervisor.totals()
        _log.info(
            "Diagnosis of the hub",
            **memory.of_process(),
            threads=threading.active_count(),
            tasks=len(tasks),
            task_names=", ".join(tasks[:_TASKS_MAX]),
            workers=f"{len(self._hub.workers)} of {self._supervisor.wanted}",
            worker_restarts=self._supervisor.restarts,
            feeds=len(self._hub.feeds),
            awaited_feeds=", ".join(self._hub.awaited),
            channels=len(self._hub.channels),
            log_bytes=self._hub.retention.log_bytes,
            accepted=totals.accepted,
            disconnects=", ".join(f"{reason.value} {count}" for reason, count in sorted(totals.disconnects.items())),
            shortages=sum(self._hub.shortages.counts.values()) + totals.shortages,
            conversions_waiting=self._hub.conversions.waiting,
            log_lines_dropped=logs.COUNTERS.dropped,
            log_errors=logs.COUNTERS.errors,
            pause_seconds_max=round(self._collected.max_latency.recent_seconds, 4),
        )

    def _feed_fields(self) -> _Lines:
        for name, source in self._hub.feeds.items():
            store = source.store
            yield (
                "Diagnosis of a feed",
                {
                    "feed": name,
                    "status": store.status.label,
                    "keys": len(store),
                    "value_bytes": store.value_bytes,
                    "sequence": store.sequence,
                    "tombstones": store.tombstone_count,
                    "backlog": source.backlog,
                },
            )

    def _channel_fields(self) -> _Lines:
        for (feed, wire_format, subscription), channel in self._hub.channels.items():
            reports = [report for report in self._hub.workers.channel_reports(channel) if report is not None]
            yield (
                "Diagnosis of a wire format",
                {
                    "feed": feed,
                    "format": wire_format,
                    "subscription": subscription.label if subscription is not None else "",
                    "clients": sum(report.clients for report in reports),
                    "held": sum(report.held for report in reports),
                    "catching_up": sum(report.catching_up for report in reports),
                    "lag_bytes": max((report.lag_bytes for report in reports), default=0),
                    "lag_seconds": round(max((report.lag_seconds for report in reports), default=0.0), 3),
                    "log_bytes": channel.log.used_bytes,
                    "snapshot_bytes": channel.snapshot.length if channel.snapshot else 0,
                },
            )

    def _worker_fields(self) -> _Lines:
        now = clock.monotonic()
        for number, worker in self._hub.workers.items():
            yield (
                "Diagnosis of a worker's link",
                {
                    "worker": number,
                    "ready": worker.ready,
                    "connections": worker.report.active,
                    "closing": worker.report.closing,
                    "heard_seconds_ago": round(now - worker.heard_at, 3),
                    "publishes_under_way": worker.publishes_under_way,
                    "longest_turn_seconds": round(worker.report.longest_turn_seconds, 4),
                },
            )

    def _watch_fields(self) -> _Lines:
        now = clock.monotonic()
        for one in self._collected.watchers:
            confirmed = one.counters.last_confirmed
            yield (
                "Diagnosis of a watch",
                {
                    "type": str(one.type),
                    "status": one.status.label,
                    "objects": one.object_count,
                    "confirmed_seconds_ago": None if confirmed is None else round(now - confirmed, 1),
                    "resumes": one.counters.resumes,
                    "errors": ", ".join(f"{failure} {count}" for failure, count in one.counters.errors.items()),
                },
            )
