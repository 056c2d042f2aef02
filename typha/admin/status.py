"""The pages `/v1/status` and `/v1/clients`: the service, its feeds and kinds, and who is connected.

Times are seconds since 1970, durations seconds.
"""

import importlib.metadata
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from typha import clock
from typha.admin import server
from typha.hub import client_lists, collector, hub, supervisor
from typha.ipc import messages

_monotonic = clock.monotonic

CLIENTS_MAX = 10_000
"""Clients of one answer."""
_SORT_KEYS: dict[str, Callable[[messages.ConnectedClient], Any]] = {
    "node": lambda client: (client.node, client.address),
    "lag": lambda client: (-client.lag_seconds, -client.lag_bytes, client.node),
    "lag-bytes": lambda client: (-client.lag_bytes, client.node),
    "bytes": lambda client: (-client.bytes_sent, client.node),
    "age": lambda client: (-client.age_seconds, client.node),
    "version": lambda client: (client.version, client.node),
    "feed": lambda client: (client.feed, client.node),
    "state": lambda client: (client.state.value, client.node),
}
SORTS = tuple(_SORT_KEYS)


class Client(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One connection."""

    node: str
    address: str
    version: str
    info: str
    release: str
    feed: str
    format: str
    state: str
    lag_seconds: float
    lag_bytes: int
    sequence: int
    bytes_sent: int
    age_seconds: float
    worker: int
    tls_name: str
    number: int


class StatusPages:
    """Reads the parts; keeps nothing."""

    def __init__(
        self,
        the_hub: hub.Hub,
        the_supervisor: supervisor.Supervisor,
        collected: collector.Collector,
        *,
        port: int,
        is_draining: Callable[[], bool],
    ) -> None:
        self._hub = the_hub
        self._supervisor = the_supervisor
        self._collected = collected
        self._started_at = clock.time_ns() / 1e9
        self._port = port
        self._is_draining = is_draining

    @property
    def pages(self) -> dict[str, server.Page]:
        """Both, by path."""
        return {"/v1/status": self.status, "/v1/clients": self.clients}

    async def status(self, _query: server.Query) -> server.Answer:
        """The service, its feeds, and the kinds that it watches."""
        return server.Answer(msgspec.json.encode(self.described()))

    def described(self) -> dict[str, Any]:
        """The same as a value."""
        return {"service": self._service(), "feeds": self._feeds(), "kinds": self._kinds()}

    def _service(self) -> dict[str, Any]:
        reports = [worker.report for worker in self._hub.workers.values()]
        return {
            "version": importlib.metadata.version("typha"),
            "pod": socket.gethostname(),
            "incarnation": self._supervisor.incarnation,
            "started_at": self._started_at,
            "now": clock.time_ns() / 1e9,
            "is_draining": self._is_draining(),
            "workers": [
                {"worker": number, "ready": worker.ready, "connections": worker.report.active}
                for number, worker in sorted(self._hub.workers.items())
            ],
            "port": self._port,
            "open_connections": sum(report.active + report.closing for report in reports),
        }

    def _feeds(self) -> list[dict[str, Any]]:
        found = []
        now, unix = _monotonic(), clock.time_ns() / 1e9
        for name, source in self._hub.feeds.items():
            channels = [channel for channel in self._hub.channels.values() if channel.feed is source]
            reports = [
                report
                for channel in channels
                for report in self._hub.workers.channel_reports(channel)
                if report is not None
            ]
            changed = self._hub.commit_times[name].newest
            found.append(
                {
                    "feed": name,
                    "status": source.store.status.label,
                    "keys": len(source.store),
                    "value_bytes": source.store.value_bytes,
                    "digest": f"{source.store.digest:016x}",
                    "sequence": source.store.sequence,
                    "clients": sum(report.clients for report in reports),
                    "held": sum(report.held for report in reports),
                    "lag_seconds": max((report.lag_seconds for report in reports), default=0.0),
                    "formats": [channel.encoder.name for channel in channels],
                    "snapshot_bytes": sum(channel.snapshot.length for channel in channels if channel.snapshot),
                    "log_bytes": sum(channel.log.used_bytes for channel in channels),
                    "changed_at": None if changed is None else unix - (now - changed),
                }
            )
        return found

    def _kinds(self) -> list[dict[str, Any]]:
        now = _monotonic()
        found = []
        for one in self._collected.watchers:
            confirmed = one.counters.last_confirmed
            found.append(
                {
                    "type": str(one.type),
                    "state": one.status.label,
                    "objects": one.object_count,
                    "confirmed_seconds": None if confirmed is None else now - confirmed,
                    "feeds": [name for name, source in self._hub.feeds.items() if one.type in source.types],
                }
            )
        return found

    async def clients(self, query: server.Query) -> server.Answer:
        """The connections: `sort`, `limit`, and `feed`, `node`, `state` to choose some."""
        unknown = query.keys() - {"sort", "limit", "feed", "node", "state"}
        if unknown:
            raise server.BadQuery(f"unknown parameter {min(unknown)!r}")
        sort = query.get("sort", "node")
        if sort not in _SORT_KEYS:
            raise server.BadQuery(f"sort is one of {', '.join(SORTS)}")
        limit = number(query, "limit", default=CLIENTS_MAX, most=CLIENTS_MAX)
        listed = await self._hub.client_lists.newest()
        key = _SORT_KEYS[sort]
        chosen = sorted(
            (one for one in listed.clients if _is_chosen(one.client, query)), key=lambda one: key(one.client)
        )
        return server.Answer(
            msgspec.json.encode(
                {
                    "clients": [_client(one) for one in chosen[:limit]],
                    "total": len(chosen),
                    "complete": not listed.missing,
                    "missing_workers": listed.missing,
                }
            )
        )


def number(query: server.Query, name: str, *, default: int, most: int) -> int:
    """A parameter that is a number from 0 to `most`. Raises BadQuery."""
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)) or int(text) > most:
        raise server.BadQuery(f"{name} is a number up to {most}")
    return int(text)


def _client(connected: client_lists.Connected) -> Client:
    one = connected.client
    return Client(
        node=one.node,
        address=one.address,
        version=one.version,
        info=one.info,
        release=one.release,
        feed=one.feed,
        format=one.wire_format,
        state=one.state.value,
        lag_seconds=round(one.lag_seconds, 3),
        lag_bytes=one.lag_bytes,
        sequence=one.sequence,
        bytes_sent=one.bytes_sent,
        age_seconds=round(one.age_seconds, 3),
        worker=connected.worker,
        tls_name=one.tls_name,
        number=one.number,
    )


def _is_chosen(client: messages.ConnectedClient, query: server.Query) -> bool:
    return (
        query.get("feed", client.feed) == client.feed
        and query.get("node", client.node) == client.node
        and query.get("state", client.state.value) == client.state.value
    )
